/* Rows of C elements, each held in the registers of THREADS threads: PACKS packs of PACK elements for a thread.

   T: stored, A: computed in. With 32 threads a row, a block has ROWS rows and its warps know nothing of each other. */

#define EACH_PACK for (int p = 0; p < PACKS; p++)
#define EACH for (int k = 0; k < PACK; k++)
#define COLUMN(p) (((p) * THREADS + threadIdx.x % THREADS) * PACK)

__device__ __forceinline__ A add(A a, A b) { return a + b; }
template <typename V> __device__ __forceinline__ V plus(V a, V b) { return a + b; }
template <typename V> __device__ __forceinline__ V larger(V a, V b) { return a > b ? a : b; }
template <typename V> __device__ __forceinline__ V smaller(V a, V b) { return a < b ? a : b; }

/* COMBINE over the threads of a row, in a fixed order; every one gets it. */
template <auto COMBINE, typename V> __device__ __forceinline__ V over_row(V x)
{
#pragma unroll
    for (int distance = 16; distance; distance /= 2)
        x = COMBINE(x, __shfl_xor_sync(~0u, x, distance));
#if THREADS > 32
    __shared__ V of_warp[THREADS / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warp[threadIdx.x % (THREADS / 32)];
#pragma unroll
    for (int distance = THREADS / 64; distance; distance /= 2)
        x = COMBINE(x, __shfl_xor_sync(~0u, x, distance));
#endif
    return x;
}

/* The row from position `at` on, 0 beyond its end. */
template <typename From> __device__ __forceinline__ void load_row(A (&row)[PACKS][PACK], const From &from, int64_t at)
{
#pragma unroll
    EACH_PACK {
        if (COLUMN(p) < C) {
            Pack<T, PACK> pack = fetch<PACK, ALIGNED>(from, at + COLUMN(p));
#pragma unroll
            EACH row[p][k] = widen(pack.at[k]);
        } else {
#pragma unroll
            EACH row[p][k] = 0;
        }
    }
}

template <typename To> __device__ __forceinline__ void store_row(const To &to, int64_t at, const A (&row)[PACKS][PACK])
{
#pragma unroll
    EACH_PACK {
        if (COLUMN(p) < C) {
            Pack<T, PACK> pack;
#pragma unroll
            EACH pack.at[k] = narrow<T>(row[p][k]);
            put<PACK, ALIGNED>(to, at + COLUMN(p), pack);
        }
    }
}

__device__ __forceinline__ A sum_of(const A (&row)[PACKS][PACK])
{
    A sum = 0;
#pragma unroll
    EACH_PACK
#pragma unroll
        EACH sum += row[p][k];
    return over_row<add>(sum);
}

__device__ __forceinline__ A dot(const A (&x)[PACKS][PACK], const A (&y)[PACKS][PACK])
{
    A sum = 0;
#pragma unroll
    EACH_PACK
#pragma unroll
        EACH sum += x[p][k] * y[p][k];
    return over_row<add>(sum);
}
