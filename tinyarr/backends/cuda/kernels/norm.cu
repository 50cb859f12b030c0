/* Layer norm and RMS norm (CENTER: with the mean subtracted), and their gradients, on rows.cu.

   Sources: Ba et al. 2016, "Layer normalization", eq. 3 and 4; Zhang & Sennrich 2019, "Root mean square layer
   normalization", eq. 4. */

/* row -= a, in its columns. */
__device__ __forceinline__ void subtract(A (&row)[PACKS][PACK], A a)
{
#pragma unroll
    EACH_PACK
        if (COLUMN(p) < C)
#pragma unroll
            EACH row[p][k] -= a;
}

/* The sum of x - a over a row, or of its square. */
template <bool SQUARED> __device__ __forceinline__ A sum_about(const A (&row)[PACKS][PACK], A a)
{
    A sum = 0;
#pragma unroll
    EACH_PACK
        if (COLUMN(p) < C)
#pragma unroll
            EACH sum += SQUARED ? (row[p][k] - a) * (row[p][k] - a) : row[p][k] - a;
    return over_row<add>(sum);
}

/* out, x (R, C), weight, bias (C), mean, rstd (R). A row that is not normalized well (ops/norm.py) is done
   again: scaled as by ops/more/statistics.py's scale_of, as is sqrt(eps), and centered in steps. The mean that is subtracted
   first is exact for equal elements; what its rounding has left is subtracted then. */
extern "C" __global__ void __launch_bounds__(THREADS * ROWS)
normalize(TO_OUT out, A *mean, A *rstd, FROM_X x, const T *weight, const T *bias, int64_t rows, A eps)
{
    int64_t row = blockIdx.x * (int64_t)ROWS + threadIdx.x / THREADS;
    if (row >= rows)
        return;
    A h[PACKS][PACK], w[PACKS][PACK];
    load_row(h, x, row * C);
    load_row(w, weight, 0);
    const A limit = LARGEST;
    A average = CENTER ? sum_of(h) / (A)C : (A)0, by = 1;
    A var = sum_about<true>(h, average) / (A)C, scale = 1 / SQRT(var + eps);
    bool is_well = scale > 0 && scale < limit && average * average <= var * (A)(STEEPEST * STEEPEST);
    A all_of_mean = average;
    if (!is_well) { /* all threads of a row agree, and a block of several warps has one row */
        A top = SQRT(eps);
#pragma unroll
        EACH_PACK
#pragma unroll
            EACH top = larger(h[p][k] < 0 ? -h[p][k] : h[p][k], top);
        top = over_row<larger<A>>(top);
        by = top >= limit ? 1 / (A)SCALE : top <= 1 / limit ? (A)SCALE : (A)1;
#pragma unroll
        EACH_PACK
#pragma unroll
            EACH h[p][k] *= by;
        average = 0;
        if (CENTER) {
            A about = sum_of(h) / (A)C;
            about += sum_about<false>(h, about) / (A)C;
            subtract(h, about);
            average = sum_of(h) / (A)C;
            all_of_mean = (about + average) / by;
        }
        A scaled_eps = SQRT(eps) * by;
        scaled_eps = scaled_eps * scaled_eps < (A)SMALLEST && eps > 0 ? (A)SMALLEST : scaled_eps * scaled_eps;
        scale = 1 / SQRT(sum_about<true>(h, average) / (A)C + scaled_eps);
    }
    if (threadIdx.x % THREADS == 0) {
        if (CENTER)
            mean[row] = all_of_mean;
        rstd[row] = scale * by;
    }
#pragma unroll
    EACH_PACK
#pragma unroll
        EACH h[p][k] = (h[p][k] - average) * scale * w[p][k];
    if (CENTER) {
        load_row(w, bias, 0);
#pragma unroll
        EACH_PACK
#pragma unroll
            EACH h[p][k] += w[p][k];
    }
    store_row(out, row * C, h);
}

/* With h = (x - mean) rstd and d = g weight: dx = rstd (d - mean(d) - h mean(d h)), without mean(d) for RMS norm.
   dweight and dbias (gridDim, C): each block's sums of g h and g over the rows that it walks. */
extern "C" __global__ void __launch_bounds__(THREADS * ROWS)
normalize_gradient(TO_DX dx, A *dweight, A *dbias, FROM_G g, FROM_X x, const T *weight, const A *mean, const A *rstd,
                   int64_t rows)
{
    A of_weight[PACKS][PACK] = {}, of_bias[PACKS][PACK] = {};
    for (int64_t first = blockIdx.x * (int64_t)ROWS; first < rows; first += gridDim.x * (int64_t)ROWS) {
        int64_t row = first + threadIdx.x / THREADS;
        if (row >= rows)
            break;
        A h[PACKS][PACK], d[PACKS][PACK];
        load_row(h, x, row * C);
        load_row(d, g, row * C);
        A average = CENTER ? mean[row] : (A)0, scale = rstd[row];
#pragma unroll
        EACH_PACK {
            if (COLUMN(p) < C) {
                Pack<T, PACK> w = fetch<PACK, ALIGNED>(weight, COLUMN(p));
#pragma unroll
                EACH {
                    h[p][k] = (h[p][k] - average) * scale;
                    of_weight[p][k] += d[p][k] * h[p][k];
                    of_bias[p][k] += d[p][k];
                    d[p][k] *= widen(w.at[k]);
                }
            } else {
#pragma unroll
                EACH h[p][k] = 0;
            }
        }
        A along = dot(d, h) / (A)C, common = CENTER ? sum_of(d) / (A)C : (A)0;
#pragma unroll
        EACH_PACK
#pragma unroll
            EACH d[p][k] = (d[p][k] - common - h[p][k] * along) * scale;
        store_row(dx, row * C, d);
    }
    store_shares(dweight + blockIdx.x * (int64_t)C, of_weight);
    if (CENTER)
        store_shares(dbias + blockIdx.x * (int64_t)C, of_bias);
}
