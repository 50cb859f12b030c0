/* Attention on tensor cores that never stores the T x S weights.
   Sources: Dao et al. 2022, "FlashAttention"; Dao 2023, "FlashAttention-2", algorithms 1 and 2.

   q (B, H, T, D), k and v (B, G, S, D), where H / G heads of q share one of k and v, in bfloat16; out (B, H, T, D); lse
   (B, H, T), the logarithm of the sum of exp over a query's scores. D is 64 or 128. Where CAUSAL, the queries are the
   last T of the S positions.

   Every product here is one of two: of rows with rows (x y^T, `rows_times_rows`) and of weights in registers with rows
   (p y, `weights_times_rows`). A warp makes BANDS bands of 16 rows of the result, so that what it reads of y serves all of
   them: reading shared memory is what bounds these kernels. The backward pass makes dk and dv in blocks that own
   keys, and dq in blocks that own queries; each computes the weights anew, 7 products in all where 5 would do with
   atomic additions, whose order is not the same twice. Per head and pair of positions a product is 2 D operations. */

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
#define OWNED (16 * BANDS * WARPS) /* rows of the tile that a block owns: queries, or keys in keys_gradient */
#define CHUNKS (D / 8)             /* of 16 bytes in a row */
#define HALF(tile) ((tile) % 2 * TILE * D) /* tiles that are walked over alternate between two places */
#define EACH_BAND for (int m = 0; m < BANDS; m++)

/* Tiles in shared memory: rows of D bfloat16, whose 16-byte chunks are permuted within each group of 8, so that the 8
   rows of a matrix that ldmatrix reads at once are in different banks. */
__device__ __forceinline__ bfloat16 *chunk_of(bfloat16 *tile, int row, int chunk)
{
    return tile + row * D + (chunk ^ (row & 7)) * 8;
}

/* Starts copying `rows` rows from global memory; those from `count` on become 0. */
__device__ __forceinline__ void copy_tile(bfloat16 *tile, const bfloat16 *from, int64_t stride, int rows, int count)
{
    for (int i = threadIdx.x; i < rows * CHUNKS; i += 32 * WARPS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        uint32_t to = __cvta_generic_to_shared(chunk_of(tile, row, chunk));
        const bfloat16 *source = from + (row < count ? row * stride + chunk * 8 : 0);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(row < count ? 16 : 0));
    }
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int PENDING> __device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
    __syncthreads();
}

/* Four 8 x 8 matrices; each lane names a row. Lane l receives elements 2 (l % 4) and the next of row l / 4. */
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], const bfloat16 *row)
{
    uint32_t from = __cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(from));
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&m)[4], const bfloat16 *row)
{
    uint32_t from = __cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(from));
}

/* c (16, 8) += a (16, 16) b (16, 8), added up in float32. Lane l holds of c columns 2 (l % 4) and the next, in c[0] and
   c[1] of row l / 4, in c[2] and c[3] of row l / 4 + 8. */
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* c = x y^T, for the warp's bands of tile x from `row` on and the TILE rows of tile y. */
__device__ __forceinline__ void rows_times_rows(float (&c)[BANDS][TILE / 8][4], bfloat16 *x, int row, bfloat16 *y)
{
    int lane = threadIdx.x % 32;
#pragma unroll
    EACH_BAND
#pragma unroll
        for (int j = 0; j < TILE / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                c[m][j][i] = 0;
#pragma unroll
    for (int d = 0; d < D / 16; d++) {
        uint32_t a[BANDS][4], b[4];
#pragma unroll
        EACH_BAND load_matrices(a[m], chunk_of(x, row + 16 * m + lane % 16, 2 * d + lane / 16));
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            load_matrices(b, chunk_of(y, 16 * j + lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2));
#pragma unroll
            EACH_BAND {
                multiply_add(c[m][2 * j], a[m], b[0], b[1]);
                multiply_add(c[m][2 * j + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* c += p y, for each band's weights p (16, TILE), rounded to bfloat16, and the TILE rows of tile y. */
__device__ __forceinline__ void weights_times_rows(float (&c)[BANDS][D / 8][4], const float (&p)[BANDS][TILE / 8][4],
                                                   bfloat16 *y)
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < TILE / 16; j++) {
        uint32_t a[BANDS][4], b[4];
#pragma unroll
        EACH_BAND
#pragma unroll
            for (int i = 0; i < 4; i++) /* the layout of a result is that of half an operand */
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;"
                    : "=r"(a[m][i]) : "f"(p[m][2 * j + i / 2][i % 2 * 2 + 1]), "f"(p[m][2 * j + i / 2][i % 2 * 2]));
#pragma unroll
        for (int d = 0; d < D / 16; d++) {
            load_matrices_transposed(b, chunk_of(y, 16 * j + lane % 16, 2 * d + lane / 16));
#pragma unroll
            EACH_BAND {
                multiply_add(c[m][2 * d], a[m], b[0], b[1]);
                multiply_add(c[m][2 * d + 1], a[m], b[2], b[3]);
            }
        }
    }
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* The 16 rows of c from `row` on, each times its factor, rounded, to the rows of `to` (count, D). */
__device__ __forceinline__ void store_rows(bfloat16 *to, const float (&c)[D / 8][4], int row, int count, float upper,
                                           float lower)
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + lane / 4 + 8 * half;
        float factor = half ? lower : upper;
        if (r < count)
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                Pack<bfloat16, 2> pair;
                pair.at[0] = narrow<bfloat16>(c[j][2 * half] * factor);
                pair.at[1] = narrow<bfloat16>(c[j][2 * half + 1] * factor);
                store(to + (int64_t)r * D + 8 * j + lane % 4 * 2, pair);
            }
    }
}

/* Where element i of matrix j of band m stands in the warp's part of a result. */
#define ROW(m, i) (16 * (m) + threadIdx.x % 32 / 4 + (i) / 2 * 8)
#define COLUMN(j, i) (8 * (j) + threadIdx.x % 4 * 2 + (i) % 2)

__device__ __forceinline__ bool hidden(int key, int query, int T, int S)
{
    return key >= S || (CAUSAL && key > query + S - T);
}

struct Strides { int64_t batch, head, row; };

/* A block owns OWNED queries of a head and walks over the keys that they see, TILE at a time. */
extern "C" __global__ void __launch_bounds__(32 * WARPS)
attention(bfloat16 *out, float *lse, const bfloat16 *q, const bfloat16 *k, const bfloat16 *v, Strides of_q,
          Strides of_k, Strides of_v, int T, int S, int shared_heads, float scale)
{
    extern __shared__ bfloat16 memory[];
    bfloat16 *queries = memory, *keys = queries + OWNED * D, *values = keys + 2 * TILE * D;
    int first = (gridDim.x - 1 - blockIdx.x) * OWNED; /* the longest rows of the causal triangle come first */
    int head = blockIdx.y, lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 * BANDS;
    q += blockIdx.z * of_q.batch + head * of_q.head + first * of_q.row;
    k += blockIdx.z * of_k.batch + head / shared_heads * of_k.head;
    v += blockIdx.z * of_v.batch + head / shared_heads * of_v.head;
    int seen = CAUSAL ? min(S, first + OWNED + S - T) : S, tiles = (seen + TILE - 1) / TILE;

    copy_tile(queries, q, of_q.row, OWNED, T - first);
    copy_tile(keys, k, of_k.row, TILE, S);
    copy_tile(values, v, of_v.row, TILE, S);
    commit_copies();
    float o[BANDS][D / 8][4] = {}, largest[BANDS][2], sum[BANDS][2] = {};
#pragma unroll
    EACH_BAND largest[m][0] = largest[m][1] = -INFINITY;
    float scale_2 = scale * LOG2_E;
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) {
            int next = (tile + 1) * TILE;
            copy_tile(keys + HALF(tile + 1), k + next * of_k.row, of_k.row, TILE, S - next);
            copy_tile(values + HALF(tile + 1), v + next * of_v.row, of_v.row, TILE, S - next);
            commit_copies();
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        float s[BANDS][TILE / 8][4];
        rows_times_rows(s, queries, row, keys + HALF(tile));
        int begin = tile * TILE;
        if (begin + TILE > S || (CAUSAL && begin + TILE > first + row + S - T))
#pragma unroll
            EACH_BAND
#pragma unroll
                for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (hidden(begin + COLUMN(j, i), first + row + ROW(m, i), T, S))
                            s[m][j][i] = -INFINITY;
        /* Algorithm 1, lines 9 and 10, for the two rows of a lane in each band: its quad shares them. */
#pragma unroll
        EACH_BAND
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float before = largest[m][half], top = before;
#pragma unroll
                for (int j = 0; j < TILE / 8; j++)
                    top = fmaxf(top, fmaxf(s[m][j][2 * half], s[m][j][2 * half + 1]));
                top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
                top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
                float shift = top * scale_2, correction = exp2_fast(fmaf(before, scale_2, -shift));
                largest[m][half] = top;
                sum[m][half] *= correction;
#pragma unroll
                for (int j = 0; j < D / 8; j++) {
                    o[m][j][2 * half] *= correction;
                    o[m][j][2 * half + 1] *= correction;
                }
#pragma unroll
                for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        s[m][j][i] = exp2_fast(fmaf(s[m][j][i], scale_2, -shift));
                        sum[m][half] += s[m][j][i];
                    }
            }
        weights_times_rows(o, s, values + HALF(tile));
        __syncthreads();
    }
    int64_t base = (blockIdx.z * (int64_t)gridDim.y + head) * T + first;
#pragma unroll
    EACH_BAND {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float &total = sum[m][half];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            if (int r = row + ROW(m, 2 * half); lane % 4 == 0 && first + r < T)
                lse[base + r] = largest[m][half] * scale + logf(total);
        }
        store_rows(out + base * D, o[m], row + 16 * m, T - first, 1 / sum[m][0], 1 / sum[m][1]);
    }
}

/* delta (B, H, T): the sums over D of g out (line 4 of algorithm 2). A warp for each query; out is dense. */
extern "C" __global__ void __launch_bounds__(256)
row_products(float *delta, const bfloat16 *g, const bfloat16 *out, Strides of_g, int T, int heads, int64_t rows)
{
    int64_t r = blockIdx.x * (int64_t)8 + threadIdx.x / 32;
    if (r >= rows)
        return;
    const bfloat16 *from = g + r / T / heads * of_g.batch + r / T % heads * of_g.head + r % T * of_g.row;
    float sum = 0;
    for (int d = threadIdx.x % 32 * 2; d < D; d += 64) {
        Pack<bfloat16, 2> x = load<2>(from + d), y = load<2>(out + r * D + d);
        sum = fmaf(widen(x.at[0]), widen(y.at[0]), fmaf(widen(x.at[1]), widen(y.at[1]), sum));
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        delta[r] = sum;
}

/* dk, dv (B, G, S, D). A block owns OWNED keys and walks over the queries that see them, TILE at a time, of each head
   that shares the keys in turn. The weights are transposed: a row for each key. */
extern "C" __global__ void __launch_bounds__(32 * WARPS)
keys_gradient(bfloat16 *dk, bfloat16 *dv, const bfloat16 *g, const bfloat16 *q, const bfloat16 *k, const bfloat16 *v,
              const float *lse, const float *delta, Strides of_g, Strides of_q, Strides of_k, Strides of_v, int T,
              int S, int shared_heads, float scale)
{
    extern __shared__ bfloat16 memory[];
    bfloat16 *keys = memory, *values = keys + OWNED * D;
    bfloat16 *queries = values + OWNED * D, *slopes = queries + 2 * TILE * D;
    __shared__ float of_query[2][TILE]; /* lse in base 2, and delta */
    int first = blockIdx.x * OWNED, group = blockIdx.y, row = threadIdx.x / 32 * 16 * BANDS;
    int heads = gridDim.y * shared_heads;
    k += blockIdx.z * of_k.batch + group * of_k.head + first * of_k.row;
    v += blockIdx.z * of_v.batch + group * of_v.head + first * of_v.row;
    int start = CAUSAL ? max(0, first - (S - T)) / TILE : 0; /* the first tile of queries that see a key of the block */
    int of_head = (T + TILE - 1) / TILE - start, tiles = shared_heads * of_head;

    auto copy_queries = [&](int tile) {
        int head = group * shared_heads + tile / of_head, begin = (start + tile % of_head) * TILE;
        const bfloat16 *from_q = q + blockIdx.z * of_q.batch + head * of_q.head + begin * of_q.row;
        const bfloat16 *from_g = g + blockIdx.z * of_g.batch + head * of_g.head + begin * of_g.row;
        copy_tile(queries + HALF(tile), from_q, of_q.row, TILE, T - begin);
        copy_tile(slopes + HALF(tile), from_g, of_g.row, TILE, T - begin);
        commit_copies();
    };
    copy_tile(keys, k, of_k.row, OWNED, S - first);
    copy_tile(values, v, of_v.row, OWNED, S - first);
    if (tiles > 0)
        copy_queries(0);
    float of_k_rows[BANDS][D / 8][4] = {}, of_v_rows[BANDS][D / 8][4] = {};
    float scale_2 = scale * LOG2_E;
    for (int tile = 0; tile < tiles; tile++) {
        int head = group * shared_heads + tile / of_head, begin = (start + tile % of_head) * TILE;
        if (threadIdx.x < TILE) {
            int64_t at = (blockIdx.z * (int64_t)heads + head) * T + begin + threadIdx.x;
            bool inside = begin + threadIdx.x < T;
            of_query[0][threadIdx.x] = inside ? lse[at] * LOG2_E : INFINITY; /* the weights beyond become 0 */
            of_query[1][threadIdx.x] = inside ? delta[at] : 0;
        }
        if (tile + 1 < tiles) {
            copy_queries(tile + 1);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        float p[BANDS][TILE / 8][4], ds[BANDS][TILE / 8][4];
        rows_times_rows(p, keys, row, queries + HALF(tile));
        rows_times_rows(ds, values, row, slopes + HALF(tile));
#pragma unroll
        EACH_BAND
#pragma unroll
            for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) { /* lines 11 and 14 of algorithm 2 */
                    int c = COLUMN(j, i);
                    bool unseen = hidden(first + row + ROW(m, i), begin + c, T, S);
                    p[m][j][i] = unseen ? 0 : exp2_fast(fmaf(p[m][j][i], scale_2, -of_query[0][c]));
                    ds[m][j][i] = p[m][j][i] * (ds[m][j][i] - of_query[1][c]);
                }
        weights_times_rows(of_v_rows, p, slopes + HALF(tile));
        weights_times_rows(of_k_rows, ds, queries + HALF(tile));
        __syncthreads();
    }
    int64_t base = (blockIdx.z * (int64_t)gridDim.y + group) * S + first;
#pragma unroll
    EACH_BAND {
        store_rows(dk + base * D, of_k_rows[m], row + 16 * m, S - first, scale, scale);
        store_rows(dv + base * D, of_v_rows[m], row + 16 * m, S - first, 1, 1);
    }
}

/* dq (B, H, T, D). A block owns OWNED queries and walks over the keys that they see. */
extern "C" __global__ void __launch_bounds__(32 * WARPS)
queries_gradient(bfloat16 *dq, const bfloat16 *g, const bfloat16 *q, const bfloat16 *k, const bfloat16 *v,
                 const float *lse, const float *delta, Strides of_g, Strides of_q, Strides of_k, Strides of_v, int T,
                 int S, int shared_heads, float scale)
{
    extern __shared__ bfloat16 memory[];
    bfloat16 *queries = memory, *slopes = queries + OWNED * D;
    bfloat16 *keys = slopes + OWNED * D, *values = keys + 2 * TILE * D;
    int first = (gridDim.x - 1 - blockIdx.x) * OWNED;
    int head = blockIdx.y, row = threadIdx.x / 32 * 16 * BANDS;
    q += blockIdx.z * of_q.batch + head * of_q.head + first * of_q.row;
    g += blockIdx.z * of_g.batch + head * of_g.head + first * of_g.row;
    k += blockIdx.z * of_k.batch + head / shared_heads * of_k.head;
    v += blockIdx.z * of_v.batch + head / shared_heads * of_v.head;
    int seen = CAUSAL ? min(S, first + OWNED + S - T) : S, tiles = (seen + TILE - 1) / TILE;
    int64_t base = (blockIdx.z * (int64_t)gridDim.y + head) * T + first;
    float lse_2[BANDS][2], of_row[BANDS][2];
#pragma unroll
    EACH_BAND
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row + ROW(m, 2 * half);
            lse_2[m][half] = first + r < T ? lse[base + r] * LOG2_E : INFINITY;
            of_row[m][half] = first + r < T ? delta[base + r] : 0;
        }

    auto copy_keys = [&](int tile) {
        int begin = tile * TILE;
        copy_tile(keys + HALF(tile), k + begin * of_k.row, of_k.row, TILE, S - begin);
        copy_tile(values + HALF(tile), v + begin * of_v.row, of_v.row, TILE, S - begin);
        commit_copies();
    };
    copy_tile(queries, q, of_q.row, OWNED, T - first);
    copy_tile(slopes, g, of_g.row, OWNED, T - first);
    copy_keys(0);
    float of_q_rows[BANDS][D / 8][4] = {};
    float scale_2 = scale * LOG2_E;
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) {
            copy_keys(tile + 1);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        float s[BANDS][TILE / 8][4], ds[BANDS][TILE / 8][4];
        rows_times_rows(s, queries, row, keys + HALF(tile));
        rows_times_rows(ds, slopes, row, values + HALF(tile));
#pragma unroll
        EACH_BAND
#pragma unroll
            for (int j = 0; j < TILE / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    bool unseen = hidden(tile * TILE + COLUMN(j, i), first + row + ROW(m, i), T, S);
                    float p = unseen ? 0 : exp2_fast(fmaf(s[m][j][i], scale_2, -lse_2[m][i / 2]));
                    ds[m][j][i] = p * (ds[m][j][i] - of_row[m][i / 2]);
                }
        weights_times_rows(of_q_rows, ds, keys + HALF(tile));
        __syncthreads();
    }
#pragma unroll
    EACH_BAND store_rows(dq + base * D, of_q_rows[m], row + 16 * m, T - first, scale, scale);
}
