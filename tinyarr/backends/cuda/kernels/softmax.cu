/* Softmax of rows (LOGARITHM: its logarithm), on rows.cu. */

/* out, x (R, C). */
extern "C" __global__ void __launch_bounds__(THREADS * ROWS) softmax(TO_OUT out, FROM_X x, int64_t rows)
{
    int64_t row = blockIdx.x * (int64_t)ROWS + threadIdx.x / THREADS;
    if (row >= rows)
        return;
    A h[PACKS][PACK], largest = -INFINITY, sum = 0;
    load_row(h, x, row * C);
#pragma unroll
    EACH_PACK
        if (COLUMN(p) < C)
#pragma unroll
            EACH largest = larger(h[p][k], largest);
    largest = over_row<larger<A>>(largest);
#pragma unroll
    EACH_PACK
        if (COLUMN(p) < C)
#pragma unroll
            EACH {
                A shifted = h[p][k] - largest, e = EXP(shifted);
                sum += e;
                h[p][k] = LOGARITHM ? shifted : e;
            }
    sum = over_row<add>(sum);
    A subtracted = LOGARITHM ? LOG(sum) : (A)0;
#pragma unroll
    EACH_PACK
#pragma unroll
        EACH h[p][k] = LOGARITHM ? h[p][k] - subtracted : h[p][k] / sum;
    store_row(out, row * C, h);
}
