/* Cross-entropy of rows of V logits that lie `stride` apart, and its gradient; a block of THREADS for each row.

   T: stored, A: computed in. Packs of PACK elements are aligned in the whole matrix, so that rows of any length can be
   loaded 128 bits at a time; what a pack holds of other rows is left out.
   Source of the online softmax: Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3. */

#define EACH for (int k = 0; k < PACK; k++)

/* Largest logit so far, and the sum of exp(logit - largest). */
struct Softmax { A largest, sum; };

__device__ __forceinline__ Softmax join(Softmax a, Softmax b)
{
    A largest = a.largest > b.largest ? a.largest : b.largest;
    if (a.largest != a.largest || b.largest != b.largest)
        largest = NAN;
    if (largest == -INFINITY)
        return {largest, a.sum + b.sum};
    return {largest, a.sum * EXP(a.largest - largest) + b.sum * EXP(b.largest - largest)};
}

__device__ __forceinline__ Softmax join_block(Softmax x)
{
    __shared__ Softmax of_warp[32];
#pragma unroll
    for (int distance = 16; distance; distance /= 2) {
        Softmax other = {__shfl_xor_sync(~0u, x.largest, distance), __shfl_xor_sync(~0u, x.sum, distance)};
        x = threadIdx.x & distance ? join(other, x) : join(x, other);
    }
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warp[0];
    for (int w = 1; w < THREADS / 32; w++)
        x = join(x, of_warp[w]);
    return x;
}

__device__ __forceinline__ Pack<T, PACK> load_pack(const T *x, int64_t first, int64_t total)
{
    if (ALIGNED && first + PACK <= total)
        return load<PACK>(x + first);
    Pack<T, PACK> pack;
#pragma unroll
    EACH pack.at[k] = x[first + k < total ? first + k : total - 1];
    return pack;
}

/* LOSS: writes loss and lse, the logarithm of the sum of exp, of each row. Else lse is given.
   GRADIENT: out = g (softmax(logits) - onehot(target)), which may take the logits' place; WEIGHTED: g (R) is given,
   else it is 1. Both are 0 for ignored targets. */
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy(A *loss, A *lse, T *out, const A *g, const T *logits, const int64_t *targets, int64_t V, int64_t stride,
              int64_t ignored, int64_t first_row, uint64_t *words)
{
    int64_t row = blockIdx.x, begin = row * stride, end = begin + V;
    int64_t total = (gridDim.x - 1) * stride + V;
    int64_t target = targets[row];
    bool counted = target != ignored;
    if (counted && (target < 0 || target >= V)) {
        if (threadIdx.x == 0)
            report(words, 2, target, first_row + row);
        counted = false;
    }
    Softmax softmax = {LOSS ? -INFINITY : lse[row], 0};
    for (int64_t p = begin / PACK + threadIdx.x; p * PACK < end; p += THREADS) {
        Pack<T, PACK> pack = load_pack(logits, p * PACK, total);
        A largest = softmax.largest, x[PACK];
#pragma unroll
        EACH {
            bool inside = p * PACK + k >= begin && p * PACK + k < end;
            x[k] = inside ? widen(pack.at[k]) : -INFINITY;
            if (LOSS)
                largest = x[k] > largest || x[k] != x[k] ? x[k] : largest;
        }
        if (LOSS && largest != softmax.largest) {
            softmax.sum *= EXP(softmax.largest - largest);
            softmax.largest = largest;
        }
        A shift = LOSS && largest == -INFINITY ? (A)0 : largest;
#pragma unroll
        EACH softmax.sum += EXP(x[k] - shift);
    }
    if (LOSS) {
        softmax = join_block(softmax);
        if (threadIdx.x == 0) {
            lse[row] = softmax.largest + LOG(softmax.sum); /* lse may be the place of loss, where no one wants it */
            loss[row] = counted ? (softmax.largest - widen(logits[begin + target])) + LOG(softmax.sum) : (A)0;
        }
    } else {
        A largest = softmax.largest;
        softmax.largest = 0;
        softmax = join_block(softmax); /* equal shifts: their sums are added */
        softmax.largest = largest;
    }
    if (!GRADIENT)
        return;
    __syncthreads(); /* the loss has read its logit */
    A weight = counted ? (WEIGHTED ? g[row] : (A)1) : (A)0, share = 1 / softmax.sum;
    for (int64_t p = begin / PACK + threadIdx.x; p * PACK < end; p += THREADS) {
        Pack<T, PACK> pack = load_pack(logits, p * PACK, total);
        bool whole = p * PACK >= begin && p * PACK + PACK <= end;
#pragma unroll
        EACH {
            A softmax_k = EXP(widen(pack.at[k]) - softmax.largest) * share;
            A slope = softmax_k - (p * PACK + k == begin + target ? (A)1 : (A)0);
            pack.at[k] = narrow<T>(weight == 0 ? (A)0 : slope * weight);
        }
        if (ALIGNED && whole)
            store(out + p * PACK, pack);
        else
#pragma unroll
            EACH if (p * PACK + k >= begin && p * PACK + k < end)
                out[p * PACK + k] = pack.at[k];
    }
}
