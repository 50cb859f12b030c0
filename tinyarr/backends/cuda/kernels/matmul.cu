/* out (M, N) = x (M, K) y (K, N), of any strides, for a batch of them.

   T: stored, A: accumulated in, R: stored result. A block makes a TILE x TILE part of the result: it walks along K in
   steps of DEPTH, holding both operands' part in shared memory, and each of its 16 x 16 threads keeps 4 x 4 sums, 16
   apart, so that neighbouring threads store neighbours. Each sum is added up in the order of K. */

#define TILE 64
#define DEPTH 16

extern "C" __global__ void __launch_bounds__(256)
matmul(TO_OUT out, FROM_X x, FROM_Y y, int64_t M, int64_t N, int64_t K, int64_t x_row, int64_t x_column, int64_t y_row,
       int64_t y_column, int64_t out_row, int64_t batch, int64_t x_batch, int64_t y_batch, int64_t out_batch)
{
    __shared__ A of_x[DEPTH][TILE + 1], of_y[DEPTH][TILE + 1];
    int64_t m0 = blockIdx.y * (int64_t)TILE, n0 = blockIdx.x * (int64_t)TILE;
    int row = threadIdx.x / 16, column = threadIdx.x % 16;
    for (int64_t b = blockIdx.z; b < batch; b += gridDim.z) {
        A sum[4][4] = {};
        for (int64_t k0 = 0; k0 < K; k0 += DEPTH) {
            for (int i = threadIdx.x; i < TILE * DEPTH; i += 256) {
                /* Neighbouring threads read along the axis in which the operand is contiguous. */
                int m = x_column == 1 ? i / DEPTH : i % TILE, xk = x_column == 1 ? i % DEPTH : i / TILE;
                int n = y_column == 1 ? i % TILE : i / DEPTH, yk = y_column == 1 ? i / TILE : i % DEPTH;
                bool in_x = m0 + m < M && k0 + xk < K, in_y = n0 + n < N && k0 + yk < K;
                int64_t at_x = b * x_batch + (m0 + m) * x_row + (k0 + xk) * x_column;
                int64_t at_y = b * y_batch + (k0 + yk) * y_row + (n0 + n) * y_column;
                of_x[xk][m] = in_x ? (A)widen(fetch<1, false>(x, at_x).at[0]) : (A)0;
                of_y[yk][n] = in_y ? (A)widen(fetch<1, false>(y, at_y).at[0]) : (A)0;
            }
            __syncthreads();
#pragma unroll
            for (int k = 0; k < DEPTH; k++) {
                A left[4], right[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    left[i] = of_x[k][row + 16 * i];
                    right[i] = of_y[k][column + 16 * i];
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        sum[i][j] = MULTIPLY_ADD(left[i], right[j], sum[i][j]);
            }
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int64_t m = m0 + row + 16 * i, n = n0 + column + 16 * j;
                if (m < M && n < N) {
                    int64_t at = b * out_batch + m * out_row + n;
#if ACCUMULATE
                    sum[i][j] += (A)widen(out[at]);
#endif
                    put<1, false>(out, at, Pack<R, 1>{narrow<R>(sum[i][j])});
                }
            }
    }
}
