/* In place of kernel.cuh: the kernel as a function, which joined.cu calls with the block and the grid of a member. */
#define KERNEL(threads, name, ...) \
    static __device__ __forceinline__ void name(const uint3 BLOCK, const dim3 GRID, __VA_ARGS__)
