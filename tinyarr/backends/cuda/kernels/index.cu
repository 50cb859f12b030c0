/* Gathering rows by number, adding rows back to where they came from, and scattering.

   I is the type of the indices, N how many rows there are. An index outside is reported and its row left out. */

__device__ __forceinline__ int64_t row_of(const I *indices, int64_t j, int64_t n, bool wrap, uint64_t *words)
{
    int64_t i = (int64_t)indices[j];
    int64_t row = wrap && i < 0 ? i + n : i;
    if (row >= 0 && row < n)
        return row;
    report(words, 1, i, j);
    return -1;
}

#ifdef TAKE
/* out (K, J, C), x (K, N, C), indices (J). T is a unit of up to 16 bytes. */
extern "C" __global__ void __launch_bounds__(256)
take(T *out, const T *x, const I *indices, int64_t units, int64_t columns, int64_t count, int64_t n, int wrap,
     uint64_t *words)
{
    for (int64_t t = blockIdx.x * (int64_t)256 + threadIdx.x; t < units; t += gridDim.x * (int64_t)256) {
        int64_t c = t % columns, j = t / columns % count, k = t / columns / count;
        int64_t row = row_of(indices, j, n, wrap, words);
        if (row >= 0)
            out[t] = x[(k * n + row) * columns + c];
    }
}
#endif

#ifdef SORT
/* A stable radix sort of the J numbers of rows, 8 bits a pass: `keys` are sorted, `order` says where each was. A block
   takes `part` keys, 1024 at a time. counts (blocks, 256): how often each digit comes in each block's part. */

extern "C" __global__ void __launch_bounds__(256)
begin_sort(int32_t *keys, int32_t *order, const I *indices, int64_t count, int64_t n, int wrap, uint64_t *words)
{
    int64_t j = blockIdx.x * (int64_t)256 + threadIdx.x;
    if (j >= count)
        return;
    int64_t row = row_of(indices, j, n, wrap, words);
    keys[j] = row < 0 ? n : row;
    order[j] = j;
}

extern "C" __global__ void __launch_bounds__(1024)
count_digits(int32_t *counts, const int32_t *keys, int64_t count, int64_t part, int shift)
{
    __shared__ int32_t of_digit[256];
    if (threadIdx.x < 256)
        of_digit[threadIdx.x] = 0;
    __syncthreads();
    int64_t begin = blockIdx.x * part, end = begin + part < count ? begin + part : count;
    for (int64_t j = begin + threadIdx.x; j < end; j += 1024)
        atomicAdd(&of_digit[keys[j] >> shift & 255], 1);
    __syncthreads();
    if (threadIdx.x < 256)
        counts[blockIdx.x * (int64_t)256 + threadIdx.x] = of_digit[threadIdx.x];
}

/* begins (256): where the block's first key of each digit goes: behind all of smaller digits, and those of the same
   digit in the parts before. All 1024 threads take part. */
__device__ __forceinline__ void find_begins(int32_t *begins, const int32_t *counts)
{
    __shared__ int32_t before[4][256], total[4][256], of_warp[8];
    int digit = threadIdx.x % 256, group = threadIdx.x / 256, lane = threadIdx.x % 32;
    int32_t own_before = 0, own_total = 0;
#pragma unroll 16
    for (int block = group; block < gridDim.x; block += 4) {
        int32_t n = counts[block * (int64_t)256 + digit];
        own_before += block < blockIdx.x ? n : 0;
        own_total += n;
    }
    before[group][digit] = own_before;
    total[group][digit] = own_total;
    __syncthreads();
    int32_t all = total[0][digit] + total[1][digit] + total[2][digit] + total[3][digit], sum = all;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        int32_t smaller = __shfl_up_sync(~0u, sum, distance);
        sum += lane >= distance ? smaller : 0;
    }
    if (group == 0 && lane == 31)
        of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (group == 0) {
        int32_t begin = sum - all + before[0][digit] + before[1][digit] + before[2][digit] + before[3][digit];
        for (int w = 0; w < threadIdx.x / 32; w++)
            begin += of_warp[w];
        begins[digit] = begin;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(1024)
place(int32_t *to_keys, int32_t *to_order, const int32_t *keys, const int32_t *order, const int32_t *counts,
      int64_t count, int64_t part, int shift)
{
    __shared__ int32_t begins[256], of_warp[32][256]; /* where the next key of a digit goes: the block's, each warp's */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    find_begins(begins, counts);
    int64_t begin = blockIdx.x * part, end = begin + part < count ? begin + part : count;
    for (int64_t first = begin; first < end; first += 1024) {
        for (int i = threadIdx.x; i < 32 * 256; i += 1024)
            of_warp[i / 256][i % 256] = 0;
        __syncthreads();
        int64_t j = first + threadIdx.x;
        int32_t key = j < end ? keys[j] : -1, digit = key >> shift & 255; /* what is beyond is last, in no one's way */
        uint32_t equal = __match_any_sync(~0u, digit);
        int32_t rank = __popc(equal & ((1u << lane) - 1));
        if (rank == 0)
            of_warp[warp][digit] = __popc(equal);
        __syncthreads();
        if (threadIdx.x < 256) {
            int32_t next = begins[threadIdx.x];
#pragma unroll
            for (int w = 0; w < 32; w++) {
                int32_t own = of_warp[w][threadIdx.x];
                of_warp[w][threadIdx.x] = next;
                next += own;
            }
            begins[threadIdx.x] = next;
        }
        __syncthreads();
        if (j < end) {
            int32_t to = of_warp[warp][digit] + rank;
            to_keys[to] = key;
            to_order[to] = order[j];
        }
        __syncthreads();
    }
}
#endif

#ifdef ADD
/* What a row of the result becomes: a sum, or with UPDATE the row that is there plus the sum, rounded as it would be. */
__device__ __forceinline__ T with_sum(T old, A sum)
{
    return UPDATE ? narrow<T>(widen(old) + widen(narrow<T>(sum))) : narrow<T>(sum);
}

/* out (K, N, C) += g (K, J, C) by rows, in the order of `order`, where rows with equal keys are neighbours. A piece is
   PIECE rows of that order. A run of equal keys inside a piece is finished there; what it has of longer runs goes to
   partial (pieces, 2, K, C): in place 0 where the run began before the piece, in place 1 where it begins in it. */

extern "C" __global__ void __launch_bounds__(128)
add_rows(T *out, A *partial, const T *g, const int32_t *keys, const int32_t *order, int64_t count, int64_t n,
         int64_t columns)
{
    __shared__ int32_t key_of[PIECE + 1], row_of[PIECE];
    int64_t begin = blockIdx.x * (int64_t)PIECE, k = blockIdx.z;
    int rows = count - begin < PIECE ? count - begin : PIECE;
    for (int p = threadIdx.x; p <= PIECE; p += 128) {
        key_of[p] = begin + p < count ? keys[begin + p] : -1;
        if (p < rows)
            row_of[p] = order[begin + p];
    }
    bool began_before = begin > 0 && keys[begin - 1] == keys[begin];
    __syncthreads();
    int64_t column = (blockIdx.y * (int64_t)128 + threadIdx.x) * PACK;
    if (column >= columns)
        return;
    const T *from = g + k * count * columns + column;
    A total[PACK] = {};
    for (int first = 0; first < rows; first += AT_ONCE) {
        Pack<T, PACK> packs[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++)
            packs[u] = fetch<PACK, ALIGNED>(from, row_of[first + u < rows ? first + u : first] * columns);
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int p = first + u;
            bool inside = p < rows;
#pragma unroll
            for (int i = 0; i < PACK; i++)
                total[i] += inside ? widen(packs[u].at[i]) : (A)0;
            int32_t key = key_of[inside ? p : 0];
            bool goes_on = key_of[inside ? p + 1 : 0] == key;
            if (!inside || (goes_on && p + 1 < rows))
                continue;
            if (began_before || goes_on) {
                A *to = partial + ((blockIdx.x * (int64_t)2 + !began_before) * gridDim.z + k) * columns + column;
#pragma unroll
                for (int i = 0; i < PACK; i++)
                    to[i] = total[i];
            } else if (key < n) {
                T *to = out + (k * n + key) * columns + column;
#pragma unroll
                for (int i = 0; i < PACK; i++)
                    to[i] = with_sum(to[i], total[i]);
            }
#pragma unroll
            for (int i = 0; i < PACK; i++)
                total[i] = 0;
            began_before = false;
        }
    }
}

/* The block of the piece in which a long run begins adds the run's parts, in order. */
extern "C" __global__ void __launch_bounds__(128)
join_runs(T *out, const A *partial, const int32_t *keys, int64_t count, int64_t n, int64_t columns)
{
    int64_t begin = blockIdx.x * (int64_t)PIECE, end = begin + PIECE;
    int64_t column = blockIdx.y * (int64_t)128 + threadIdx.x, k = blockIdx.z;
    if (column >= columns || end >= count || keys[end] != keys[end - 1])
        return;
    int32_t key = keys[end];
    if (key >= n || (begin > 0 && keys[begin - 1] == key))
        return;
    int64_t stride = gridDim.z * columns;
    const A *from = partial + (blockIdx.x * (int64_t)2 * gridDim.z + k) * columns + column;
    A total = from[stride];
    bool goes_on = true;
    for (int64_t piece = blockIdx.x + 1; goes_on; piece += 32) { /* 32 loads at once, added in order */
        int32_t keys_of[32];
        A parts[32];
#pragma unroll
        for (int i = 0; i < 32; i++)
            keys_of[i] = piece + i < gridDim.x ? keys[(piece + i) * PIECE] : -1;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            goes_on = goes_on && keys_of[i] == key;
            parts[i] = goes_on ? from[(i + 1) * 2 * stride] : (A)0;
        }
#pragma unroll
        for (int i = 0; i < 32; i++)
            total += parts[i];
        from += 64 * stride;
    }
    T *to = out + (k * n + key) * columns + column;
    *to = with_sum(*to, total);
}
#endif

#ifdef SCATTER
/* owner (N): the last j whose index is that row, or -1. out (N) = values[owner], or x where there is none. */

extern "C" __global__ void __launch_bounds__(256)
find_owners(int32_t *owner, const I *indices, int64_t count, int64_t n, uint64_t *words)
{
    int64_t j = blockIdx.x * (int64_t)256 + threadIdx.x;
    int64_t row = j < count ? row_of(indices, j, n, false, words) : -1;
    if (row >= 0)
        atomicMax(owner + row, (int32_t)j);
}

extern "C" __global__ void __launch_bounds__(256)
scatter(T *out, const T *x, const T *values, const int32_t *owner, int64_t n)
{
    int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x;
    if (i < n)
        out[i] = owner[i] < 0 ? x[i] : values[owner[i]];
}
#endif
