/* Cross-entropy of rows of V logits that are `stride` apart, and its gradient; a block of THREADS for each row.

   T: stored, A: computed in. Packs of PACK elements are aligned in the whole matrix, so that rows of any length can be
   loaded 128 bits at a time; what a pack holds of other rows is left out.
   Source of the online softmax: Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3. */

#define EACH for (int k = 0; k < PACK; k++)

/* In float, exponentials are powers of 2, whose hardware instruction errs by 2^-22: that is enough for a sum. With
   s = scaled(largest), power(x, s) is e^(x - largest) but for a factor common to all x, which comes of rounding s and
   whose logarithm is excess(largest). */
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

__device__ __forceinline__ float power_of_two(float x)
{
    float y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float scaled(float x) { return x * LOG2_E; }
__device__ __forceinline__ float power(float x, float s) { return power_of_two(fmaf(x, LOG2_E, -s)); }
__device__ __forceinline__ float ratio(float s, float t) { return power_of_two(s - t); }
__device__ __forceinline__ float excess(float x) { return fmaf(x, LOG2_E, -scaled(x)) * LN_2; }

__device__ __forceinline__ double scaled(double x) { return x; }
__device__ __forceinline__ double power(double x, double s) { return exp(x - s); }
__device__ __forceinline__ double ratio(double s, double t) { return exp(s - t); }
__device__ __forceinline__ double excess(double x) { return 0; }

/* Largest logit so far, and the sum of power(logit, scaled(largest)). */
struct Softmax { A largest, sum; };

__device__ __forceinline__ Softmax join(Softmax a, Softmax b)
{
    A largest = MAX(a.largest, b.largest); /* NaN is in the sum */
    if (largest == -INFINITY)
        return {largest, a.sum + b.sum};
    A s = scaled(largest);
    return {largest, a.sum * ratio(scaled(a.largest), s) + b.sum * ratio(scaled(b.largest), s)};
}

template <int LANES> __device__ __forceinline__ Softmax join_lanes(Softmax x)
{
#pragma unroll
    for (int distance = LANES / 2; distance; distance /= 2) {
        Softmax other = {__shfl_xor_sync(~0u, x.largest, distance), __shfl_xor_sync(~0u, x.sum, distance)};
        x = threadIdx.x & distance ? join(other, x) : join(x, other);
    }
    return x;
}

__device__ __forceinline__ Softmax join_block(Softmax x)
{
    __shared__ Softmax of_warp[THREADS / 32];
    x = join_lanes<32>(x);
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    return join_lanes<THREADS / 32>(of_warp[threadIdx.x % (THREADS / 32)]);
}

/* Elements i to i + PACK of a row, i counted from its first; packs reach beyond both ends, but not beyond `total`. */
__device__ __forceinline__ Pack<T, PACK> load_pack(const T *row, int i, int64_t left)
{
    if (ALIGNED && i + PACK <= left)
        return load<PACK>(row + i);
    Pack<T, PACK> pack;
#pragma unroll
    EACH pack.at[k] = row[i + k < left ? i + k : (int)left - 1];
    return pack;
}

/* LOSS: writes loss and lse, the logarithm of the sum of exp, of each row. Else lse is given.
   GRADIENT: out = g (softmax(logits) - onehot(target)), which may take the logits' place; WEIGHTED: g (R) is given,
   else it is 1. Both are 0 for ignored targets, and out is 0 in what pads a row. EXACT: softmax is divided by its own sum, 1 but for rounding. */
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy(A *loss, A *lse, T *out, const A *g, const T *logits, const int64_t *targets, int64_t classes,
              int64_t stride, int64_t ignored, int64_t first_row, uint64_t *words)
{
    int64_t begin = blockIdx.x * stride;
    const T *row = logits + begin;
    /* Elements that may be read from here on: to the matrix's end, but not what pads a row. */
    int64_t left = stride > classes ? classes : (gridDim.x - blockIdx.x) * stride;
    int V = classes, first = threadIdx.x * PACK - (int)(begin % PACK);
    int64_t target = targets[blockIdx.x];
    bool counted = target != ignored;
    if (counted && (target < 0 || target >= V)) {
        if (threadIdx.x == 0)
            report(words, 2, target, first_row + blockIdx.x);
        counted = false;
    }
    Softmax softmax = {LOSS ? -INFINITY : lse[blockIdx.x], LOSS || EXACT ? (A)0 : (A)1};
    if (LOSS || EXACT)
        for (int i = first; i < V; i += THREADS * PACK) {
            Pack<T, PACK> pack = load_pack(row, i, left);
            if (i < 0 || i + PACK > V)
#pragma unroll
                EACH pack.at[k] = i + k >= 0 && i + k < V ? pack.at[k] : narrow<T>((A)-INFINITY);
            A largest = softmax.largest;
#pragma unroll
            EACH largest = LOSS ? MAX(largest, widen(pack.at[k])) : largest;
            if (LOSS && largest != softmax.largest) {
                softmax.sum *= ratio(scaled(softmax.largest), scaled(largest));
                softmax.largest = largest;
            }
            A s = LOSS && largest == -INFINITY ? (A)0 : scaled(largest);
#pragma unroll
            EACH softmax.sum += power(widen(pack.at[k]), s);
        }
    if (LOSS) {
        softmax = join_block(softmax);
        if (threadIdx.x == 0) {
            A beyond = LOG(softmax.sum) - (softmax.largest == -INFINITY ? (A)0 : excess(softmax.largest));
            lse[blockIdx.x] = softmax.largest + beyond; /* may be the place of loss, where no one wants it */
            loss[blockIdx.x] = counted ? (softmax.largest - widen(row[target])) + beyond : (A)0;
        }
    } else if (EXACT) {
        A largest = softmax.largest;
        softmax.largest = 0;
        softmax = join_block(softmax); /* equal shifts: their sums are added */
        softmax.largest = largest;
    }
    if (!GRADIENT)
        return;
    __syncthreads(); /* the loss has read its logit */
    /* Arithmetic is what takes the time here, so all that concerns few elements is asked once a pack. */
    A weight = counted ? (WEIGHTED ? g[blockIdx.x] : (A)1) : (A)0;
    A s = scaled(softmax.largest), share = weight / softmax.sum;
    int end = stride, known = weight == 0 ? 0 : V;
    for (int i = first; i < end; i += THREADS * PACK) {
        Pack<T, PACK> pack = load_pack(row, i, left);
        A slope[PACK];
#pragma unroll
        EACH slope[k] = power(widen(pack.at[k]), s) * share;
        if ((unsigned)((int)target - i) < PACK)
#pragma unroll
            EACH slope[k] -= i + k == target ? weight : (A)0;
        if (i + PACK > known)
#pragma unroll
            EACH slope[k] = i + k < known ? slope[k] : (A)0;
#pragma unroll
        EACH pack.at[k] = narrow<T>(slope[k]);
        if (ALIGNED && i >= 0 && i + PACK <= end)
            store(out + begin + i, pack);
        else
#pragma unroll
            EACH if (i + k >= 0 && i + k < end)
                out[begin + i + k] = pack.at[k];
    }
}
