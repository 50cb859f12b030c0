/* Cumulative sums and products along an axis: x (K, R, C) dense, out likewise. A block walks along each line, THREADS
   elements at a time. T: stored, A: accumulated. */

extern "C" __global__ void __launch_bounds__(THREADS) scan(T *out, const T *x, int64_t length, int64_t columns)
{
    __shared__ A of_warp[THREADS / 32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t line = blockIdx.x;
    int64_t start = line / columns * length * columns + line % columns;
    A carried = START;
    for (int64_t first = 0; first < length; first += THREADS) {
        int64_t i = first + threadIdx.x;
        A total = i < length ? (A)widen(x[start + i * columns]) : (A)START;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            A before = __shfl_up_sync(~0u, total, distance);
            if (lane >= distance)
                total = COMBINE(before, total);
        }
        if (lane == 31)
            of_warp[warp] = total;
        __syncthreads();
        A before = carried;
        for (int w = 0; w < warp; w++)
            before = COMBINE(before, of_warp[w]);
        for (int w = 0; w < THREADS / 32; w++)
            carried = COMBINE(carried, of_warp[w]);
        if (i < length)
            out[start + i * columns] = narrow<T>(COMBINE(before, total));
        __syncthreads();
    }
}
