/* Reductions of dense tensors. The order of additions depends on the shape alone, so bits don't vary.

   T is how elements are stored, A what they are accumulated in, R how results are stored. COMBINE(a, b) and START are
   the operation. PACK neighbours are loaded at once where ALIGNED says that addresses allow it. */

#define RUN 64

__device__ __forceinline__ A combine(A a, A b) { return COMBINE(a, b); }

__device__ __forceinline__ A combine_warp(A a)
{
#pragma unroll
    for (int distance = 16; distance; distance /= 2)
        a = combine(a, __shfl_xor_sync(~0u, a, distance));
    return a;
}

/* out (K, S), x (K, R): block (k, s) reduces part s of row k, `part` elements long, a multiple of PACK. Each thread
   takes every THREADS-th pack, keeping a total for each place in the pack. */
extern "C" __global__ void __launch_bounds__(THREADS)
reduce_rows(TO_OUT out, FROM_X x, int64_t length, int64_t part)
{
    __shared__ A of_warp[THREADS / 32];
    int64_t row = blockIdx.x * length;
    int64_t begin = blockIdx.y * part, end = begin + part < length ? begin + part : length;
    A total[PACK];
#pragma unroll
    for (int k = 0; k < PACK; k++)
        total[k] = START;
#pragma unroll 4
    for (int64_t i = begin + threadIdx.x * PACK; i < end; i += THREADS * PACK) {
        Pack<T, PACK> pack;
        if (i + PACK <= end)
            pack = fetch<PACK, ALIGNED>(x, row + i);
        else
#pragma unroll
            for (int k = 0; k < PACK; k++)
                if (i + k < end)  // each once: what is fetched may be stored over what it is made of
                    pack.at[k] = fetch<1, false>(x, row + i + k).at[0];
#pragma unroll
        for (int k = 0; k < PACK; k++)
            if (i + k < end)
                total[k] = combine(total[k], (A)widen(pack.at[k]));
    }
#pragma unroll
    for (int k = 1; k < PACK; k++)
        total[0] = combine(total[0], total[k]);
    A result = combine_warp(total[0]);
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = result;
    __syncthreads();
    if (threadIdx.x < 32) {
        result = combine_warp(threadIdx.x < THREADS / 32 ? of_warp[threadIdx.x] : (A)START);
        if (threadIdx.x == 0)
            put<1, false>(out, blockIdx.x * (int64_t)gridDim.y + blockIdx.y, Pack<R, 1>{narrow<R>(result)});
    }
}

/* out (K), x (K, R) with few elements a row, a multiple of PACK: a warp for each row. */
extern "C" __global__ void __launch_bounds__(THREADS)
reduce_short_rows(TO_OUT out, FROM_X x, int64_t rows, int64_t length)
{
    int64_t row = blockIdx.x * (int64_t)(THREADS / 32) + threadIdx.x / 32;
    if (row >= rows)
        return;
    A total = START;
#pragma unroll 4
    for (int i = threadIdx.x % 32 * PACK; i < (int)length; i += 32 * PACK) {
        Pack<T, PACK> pack = fetch<PACK, ALIGNED>(x, row * length + i);
#pragma unroll
        for (int k = 0; k < PACK; k++)
            total = combine(total, (A)widen(pack.at[k]));
    }
    total = combine_warp(total);
    if (threadIdx.x % 32 == 0)
        put<1, false>(out, row, Pack<R, 1>{narrow<R>(total)});
}

/* out (S, K, C), x (K, R, C): block (c, k, s) reduces part s of the R rows for 32 packs of columns; its 8 warps take
   every 8th row. K may exceed the grid: each block walks on by its size. */
extern "C" __global__ void __launch_bounds__(THREADS)
reduce_columns(TO_OUT out, FROM_X x, int64_t outer, int64_t length, int64_t columns, int64_t part)
{
    __shared__ A of_warp[8][32][PACK + 1];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t column = (blockIdx.x * (int64_t)32 + lane) * PACK;
    int64_t begin = blockIdx.z * part, end = begin + part < length ? begin + part : length;
    for (int64_t k = blockIdx.y; k < outer; k += gridDim.y) {
        A total[PACK];
#pragma unroll
        for (int j = 0; j < PACK; j++)
            total[j] = START;
        for (int64_t first = begin + warp; column < columns && first < end; first += 8 * RUN) {
            int64_t last = first + 8 * RUN < end ? first + 8 * RUN : end;
            A run[PACK];
#pragma unroll
            for (int j = 0; j < PACK; j++)
                run[j] = START;
#pragma unroll 4
            for (int64_t i = first; i < last; i += 8) {
                Pack<T, PACK> pack = fetch<PACK, ALIGNED>(x, (k * length + i) * columns + column);
#pragma unroll
                for (int j = 0; j < PACK; j++)
                    run[j] = combine(run[j], (A)widen(pack.at[j]));
            }
#pragma unroll
            for (int j = 0; j < PACK; j++)
                total[j] = combine(total[j], run[j]);
        }
#pragma unroll
        for (int j = 0; j < PACK; j++)
            of_warp[warp][lane][j] = total[j];
        __syncthreads();
        if (warp == 0 && column < columns) {
#pragma unroll
            for (int j = 0; j < PACK; j++) {
                A result = of_warp[0][lane][j];
                for (int w = 1; w < 8; w++)
                    result = combine(result, of_warp[w][lane][j]);
                int64_t at = (blockIdx.z * outer + k) * columns + column + j;
                put<1, false>(out, at, Pack<R, 1>{narrow<R>(result)});
            }
        }
        __syncthreads();
    }
}
