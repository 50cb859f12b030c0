/* A kernel can't raise: it leaves the first bad value that it meets in the host's memory, where the next
   synchronization finds it. */

__device__ __forceinline__ void report(uint64_t *words, int code, int64_t value, int64_t position)
{
    if (atomicCAS(words, 0ull, (uint64_t)code) == 0) {
        words[1] = value;
        words[2] = position;
    }
}
