/* out (B, M, N) = x, where x is transposed in memory: its axis of M is contiguous. T is a type of the elements' size. Tiles go
   through shared memory, so that both reading and writing run along contiguous axes. */

#define TILE 64

extern "C" __global__ void __launch_bounds__(256)
transpose(T *out, const T *x, int64_t M, int64_t N, int64_t out_batch, int64_t out_row, int64_t x_batch,
          int64_t x_column)
{
    __shared__ T tile[TILE][TILE + 4 / sizeof(T) + 1];
    int64_t m0 = blockIdx.y * (int64_t)TILE, n0 = blockIdx.x * (int64_t)TILE;
    x += blockIdx.z * x_batch;
    out += blockIdx.z * out_batch;
    int across = threadIdx.x % TILE, along = threadIdx.x / TILE;
#pragma unroll
    for (int n = along; n < TILE; n += 256 / TILE)
        if (m0 + across < M && n0 + n < N)
            tile[n][across] = x[m0 + across + (n0 + n) * x_column];
    __syncthreads();
#pragma unroll
    for (int m = along; m < TILE; m += 256 / TILE)
        if (m0 + m < M && n0 + across < N)
            out[(m0 + m) * out_row + n0 + across] = tile[across][m];
}
