/* Sums over rows, on rows.cu: each block's, which are its share, and those of all blocks. */

/* to (C) = the sums of the block's rows' shares, in order. */
template <typename V> __device__ __forceinline__ void store_shares(V *to, const V (&share)[PACKS][PACK])
{
#if ROWS > 1
    __shared__ V shares[ROWS][C];
    __syncthreads();
#pragma unroll
    EACH_PACK
        if (COLUMN(p) < C)
#pragma unroll
            EACH shares[threadIdx.x / THREADS][COLUMN(p) + k] = share[p][k];
    __syncthreads();
    for (int c = threadIdx.x; c < C; c += THREADS * ROWS) {
        V sum = 0;
        for (int r = 0; r < ROWS; r++)
            sum += shares[r][c];
        to[c] = sum;
    }
#else
#pragma unroll
    EACH_PACK
        if (COLUMN(p) < C)
#pragma unroll
            EACH to[COLUMN(p) + k] = share[p][k];
#endif
}

/* first, second (C) = the sums of the blocks' shares (blocks, C), in order; the second where blockIdx.y is 1. A block adds
   32 columns, each of its 8 warps every 8th share. */
extern "C" __global__ void __launch_bounds__(256)
sum_shares(T *first, T *second, const A *of_first, const A *of_second, int blocks)
{
    __shared__ A of_warp[8][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    const A *shares = blockIdx.y ? of_second : of_first;
    A sum = 0;
    if (column < C)
#pragma unroll 8
        for (int b = warp; b < blocks; b += 8)
            sum += shares[b * (int64_t)C + column];
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < C) {
        for (int w = 1; w < 8; w++)
            sum += of_warp[w][lane];
        (blockIdx.y ? second : first)[column] = narrow<T>(sum);
    }
}
