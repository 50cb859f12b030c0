/* The position of the first extreme element, x (K, R, C) dense, out (K, C). BETTER(a, b) orders two elements; NaN is
   better than every number. A warp for each result. */

__device__ __forceinline__ bool better(A a, A b) { return a != a ? b == b : BETTER(a, b); }

extern "C" __global__ void __launch_bounds__(256)
argreduce(int64_t *out, const T *x, int64_t results, int64_t length, int64_t columns)
{
    int64_t result = blockIdx.x * (int64_t)8 + threadIdx.x / 32;
    if (result >= results)
        return;
    const T *row = x + result / columns * length * columns + result % columns;
    int lane = threadIdx.x % 32;
    int64_t place = lane < length ? lane : 0;
    A best = widen(row[place * columns]);
    for (int64_t i = lane + 32; i < length; i += 32) {
        A other = widen(row[i * columns]);
        if (better(other, best)) {
            best = other;
            place = i;
        }
    }
#pragma unroll
    for (int distance = 16; distance; distance /= 2) {
        A other = __shfl_xor_sync(~0u, best, distance);
        int64_t there = __shfl_xor_sync(~0u, place, distance);
        if (better(other, best) || (!better(best, other) && there < place)) {
            best = other;
            place = there;
        }
    }
    if (lane == 0)
        out[result] = place;
}
