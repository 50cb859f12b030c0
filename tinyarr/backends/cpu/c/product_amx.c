/* c = a b in float32 by a processor's matrix unit (Intel AMX), which multiplies tiles of bfloat16 and adds in float32.

   A float32 x is x1 + x2 + x3, three bfloat16, each the rest rounded. Of the nine products that make up x y the six largest
   are added; the others come to less than 2^-22 of it (Henry, Tang & Heinecke 2019, "Leveraging the bfloat16 artificial
   intelligence datatype for higher-precision computations"). The unit adds 32 products before it adds them to a sum, so
   that long sums err less than in product.c.

   Infinities, NaN and what rounds to infinity have no such parts: product.c makes the blocks that they go into. Parts
   below 2^-126 are lost: what is below 2^-110 has fewer digits.

   A block of c, SIDE x SIDE, is four tiles: the product of a panel of a, SIDE rows, and one of b, SIDE columns. A tile of a is
   16 rows of 32 steps along k; one of b has a row for each two steps, with their 16 columns side by side. So an operand
   that lies by steps packs easily as b, one that lies by rows as a, and the larger one chooses. The smaller operand is
   packed once, by all threads together. A job packs a few panels of the larger one, a piece of them at a time, which stays
   in the L1 cache while it is multiplied with all of the smaller one's. The order of additions depends on k alone. */
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#define SIDE 32
#define PARTS 3
#define JOB 2 /* panels */

#define ZERO_TILE(t) __asm__ volatile("tilezero %%tmm" #t ::);
#define LOAD_TILE(t, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"((int64_t)(stride)) : "memory");
#define STORE_TILE(t, to, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory");
#define MULTIPLY_TILES(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::);

typedef uint32_t words_t __attribute__((vector_size(64)));
typedef uint16_t halves_t __attribute__((vector_size(64)));
typedef float floats_t __attribute__((vector_size(64)));
typedef float unaligned_t __attribute__((vector_size(64), aligned(4)));
typedef words_t tile_t[16];

/* For each SIDE steps along k the parts, for each of them the tiles of the first 16 rows and of the others. */
typedef struct {
    tile_t tiles[PIECE / SIDE][PARTS][2];
    int64_t special, padding[7]; /* whether a number has no parts */
} panel_t;

typedef float block_t[SIDE][SIDE] __attribute__((aligned(64)));

/* The rows of a, or the columns of b: how many, how far apart, how far along k to the next. */
typedef struct {
    const float *x;
    int64_t count, stride, along;
} side_t;

static int amx_allowed;

/* Linux wants to be asked, for the unit's registers make what it saves of a thread 8 KiB larger. */
__attribute__((constructor)) static void ask_for_amx(void)
{
    const long request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    amx_allowed = syscall(SYS_arch_prctl, request, tile_data) == 0;
}

static void configure_tiles(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int t = 0; t < 8; t++)
        shapes.row_bytes[t] = 64, shapes.rows[t] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
}

/* The parts of 16 numbers, each in the upper half of a word. */
static inline __attribute__((always_inline)) void split(const float *from, words_t part[PARTS], words_t *special)
{
    floats_t x = *(const unaligned_t *)from;
    *special |= ((words_t)x & 0x7fffffff) + 0x01000000; /* sets it for exponents of 254 and 255 */
    for (int i = 0; i < PARTS; i++) {
        part[i] = ((words_t)x + 0x8000 * (i < PARTS - 1)) & 0xffff0000; /* the last part needs no rounding */
        x -= (floats_t)part[i];
    }
}

/* 16 x 16 words: zipping the two halves, row by row, brings a column's elements closer, at last side by side. */
static inline __attribute__((always_inline)) void transpose(words_t *tile)
{
    const words_t low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
        tile_t zipped;
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            zipped[i] = __builtin_shuffle(tile[i / 2], tile[i / 2 + 8], i % 2 ? high : low);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            tile[i] = zipped[i];
    }
}

/* The tiles of 16 rows (or columns) and SIDE steps from x on, with zeros where there are fewer. */
static inline __attribute__((always_inline)) void pack_tiles(
    const side_t *side, const float *x, int64_t rows, int64_t depth, int is_b, tile_t made[PARTS], words_t *special)
{
    const halves_t upper = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51,
        53, 55, 57, 59, 61, 63};
    int64_t stride = side->stride, along = side->along;
    float edge[16 * SIDE];
    if (rows < 16 || depth < SIDE || (along != 1 && stride != 1)) {
        for (int64_t r = 0; r < 16; r++)
            for (int64_t p = 0; p < SIDE; p++)
                edge[r * SIDE + p] = r < rows && p < depth ? x[r * stride + p * along] : 0;
        x = edge, stride = SIDE, along = 1;
    }
    int by_rows = along == 1;
    for (int r = 0; r < 16; r++) {
        words_t first[PARTS], second[PARTS];
        const float *from = by_rows ? x + r * stride : x + 2 * r * along;
        split(from, first, special);
        split(from + (by_rows ? 16 : along), second, special);
        for (int i = 0; i < PARTS; i++)
            made[i][r] = by_rows ? (words_t)__builtin_shuffle((halves_t)first[i], (halves_t)second[i], upper)
                                 : first[i] >> 16 | second[i];
    }
    if (by_rows == is_b)
        for (int i = 0; i < PARTS; i++)
            transpose(made[i]);
}

__attribute__((noinline)) static void pack_piece(
    const side_t *side, int64_t first, int64_t start, int64_t depth, int is_b, panel_t *panel)
{
    words_t special = {0};
    for (int64_t p = 0; p < depth; p += SIDE)
        for (int half = 0; half < 2; half++) {
            int64_t row = first + 16 * half;
            const float *x = side->x + row * side->stride + (start + p) * side->along;
            tile_t made[PARTS];
            pack_tiles(side, x, side->count - row, depth - p, is_b, made, &special);
            for (int i = 0; i < PARTS; i++)
                memcpy(panel->tiles[p / SIDE][i][half], made[i], sizeof(tile_t));
        }
    panel->special = 0;
    for (int i = 0; i < 16; i++)
        panel->special |= special[i] >> 31;
}

/* sums (+)= a b, the smaller products first: x1 y3, x1 y2, x2 y2, x2 y1, x3 y1 and x1 y1, where b_first says that x is b. */
__attribute__((noinline)) static void multiply(
    int64_t depth, const panel_t *a, const panel_t *b, int b_first, block_t sums, int add, ahead_float32 *ahead)
{
#define LOAD_A(part) LOAD_TILE(4, x[part][0], 64) LOAD_TILE(5, x[part][1], 64)
#define LOAD_B(part) LOAD_TILE(6, y[part][0], 64) LOAD_TILE(7, y[part][1], 64)
#define MULTIPLY MULTIPLY_TILES(0, 4, 6) MULTIPLY_TILES(1, 4, 7) MULTIPLY_TILES(2, 5, 6) MULTIPLY_TILES(3, 5, 7)
    if (add) {
        LOAD_TILE(0, sums[0], sizeof(*sums))
        LOAD_TILE(1, sums[0] + 16, sizeof(*sums))
        LOAD_TILE(2, sums[16], sizeof(*sums))
        LOAD_TILE(3, sums[16] + 16, sizeof(*sums))
    } else {
        ZERO_TILE(0) ZERO_TILE(1) ZERO_TILE(2) ZERO_TILE(3)
    }
    for (int64_t step = 0; step < (depth + SIDE - 1) / SIDE; step++) {
        const tile_t(*x)[2] = a->tiles[step], (*y)[2] = b->tiles[step];
        for (int i = 0; i < 4; i++)
            fetch_float32(ahead);
        if (b_first) {
            LOAD_B(0) LOAD_A(2) MULTIPLY
            LOAD_A(1) MULTIPLY
            LOAD_B(1) MULTIPLY
            LOAD_A(0) MULTIPLY
            LOAD_B(2) MULTIPLY
            LOAD_B(0) MULTIPLY
        } else {
            LOAD_A(0) LOAD_B(2) MULTIPLY
            LOAD_B(1) MULTIPLY
            LOAD_A(1) MULTIPLY
            LOAD_B(0) MULTIPLY
            LOAD_A(2) MULTIPLY
            LOAD_A(0) MULTIPLY
        }
    }
    STORE_TILE(0, sums[0], sizeof(*sums))
    STORE_TILE(1, sums[0] + 16, sizeof(*sums))
    STORE_TILE(2, sums[16], sizeof(*sums))
    STORE_TILE(3, sums[16] + 16, sizeof(*sums))
}

/* The same from numbers of which some have no parts. */
__attribute__((noinline)) static void multiply_whole(const side_t *a, int64_t row, const side_t *b, int64_t column,
    int64_t start, int64_t depth, block_t sums, int add)
{
    float panels[(COLUMNS_float32 + ROWS) * DEPTH] __attribute__((aligned(64)));
    const float *x = a->x + row * a->stride + start * a->along, *y = b->x + column * b->stride + start * b->along;
    product_alone_float32(MIN(SIDE, a->count - row), MIN(SIDE, b->count - column), depth, x, a->stride, a->along, y,
        b->along, b->stride, sums[0], SIDE, 1, add, panels);
}

static void transpose_block(block_t sums)
{
    words_t(*rows)[2] = (words_t(*)[2])sums;
    tile_t corners[2][2];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            for (int r = 0; r < 16; r++)
                corners[i][j][r] = rows[16 * i + r][j];
            transpose(corners[i][j]);
        }
    for (int r = 0; r < SIDE; r++)
        for (int j = 0; j < 2; j++)
            rows[r][j] = corners[j][r / 16][r % 16];
}

/* c (+)= sums, of which it has m x n. */
__attribute__((noinline)) static void store_block(
    int64_t m, int64_t n, block_t sums, float *c, int64_t c_row, int64_t c_column, int add)
{
    if (c_row == 1 && c_column != 1) {
        transpose_block(sums);
        return store_block(n, m, sums, c, c_column, c_row, add);
    }
    for (int64_t r = 0; r < m; r++)
        if (c_column == 1)
            for (int64_t s = 0; s < n; s++)
                c[r * c_row + s] = add ? c[r * c_row + s] + sums[r][s] : sums[r][s];
        else
            for (int64_t s = 0; s < n; s++) {
                float *x = c + r * c_row + s * c_column;
                *x = add ? *x + sums[r][s] : sums[r][s];
            }
}

/* Called by all threads together. held: for how many pieces of the smaller operand's panels scratch has room. turned: that
   a and b have changed places, so that the bits are those of the product that was meant. */
__attribute__((noinline, noclone)) static void product_in_parts(
    int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row,
    int64_t b_column, float *c, int64_t c_row, int64_t c_column, int add, float *scratch, int64_t held, int turned)
{
    int tall = m > n;
    side_t left = {a, m, a_row, a_column}, right = {b, n, b_column, b_row};
    side_t small = tall ? right : left, large = tall ? left : right;
    int large_is_b = large.along != 1, b_first = (large_is_b == tall) != turned;
    int64_t large_step = tall ? c_row : c_column, small_step = tall ? c_column : c_row;
    int64_t panels = (small.count + SIDE - 1) / SIDE;
    panel_t *shared = (panel_t *)scratch;
    char *own = (char *)(shared + held * panels) + omp_get_thread_num() * JOB * (sizeof(panel_t) + panels * sizeof(block_t));
    panel_t *pieces = (panel_t *)own;
    block_t *sums = (block_t *)(pieces + JOB);
    configure_tiles();
    for (int64_t start = 0; start < k; start += held * PIECE) {
        int64_t end = MIN(k, start + held * PIECE);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < (end - start + PIECE - 1) / PIECE * panels; part++) {
            int64_t from = start + part / panels * PIECE;
            pack_piece(&small, part % panels * SIDE, from, MIN(PIECE, end - from), !large_is_b, shared + part);
        }
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < large.count; job += JOB * SIDE) {
            int64_t stop = MIN(large.count, job + JOB * SIDE);
            for (int64_t from = start; from < end; from += PIECE) {
                int64_t depth = MIN(PIECE, end - from);
                for (int64_t first = job; first < stop; first += SIDE)
                    pack_piece(&large, first, from, depth, large_is_b, pieces + (first - job) / SIDE);
                int last = from + PIECE >= end; /* then probably this thread's next job */
                int64_t later = last ? job + omp_get_num_threads() * JOB * SIDE : job, then = last ? start : from + PIECE;
                int64_t rows = MIN(JOB * SIDE, large.count - later), length = MIN(PIECE, end - then);
                ahead_float32 ahead = {large.x + later * large.stride + then * large.along, rows, large.stride, length, 0};
                if (large.along != 1)
                    ahead = (ahead_float32){ahead.x, rows > 0 ? length : 0, large.along, rows, 0};
                for (int64_t i = 0; i < panels; i++)
                    for (int64_t first = job; first < stop; first += SIDE) {
                        const panel_t *piece = pieces + (first - job) / SIDE;
                        const panel_t *other = shared + (from - start) / PIECE * panels + i;
                        float(*to)[SIDE] = sums[(first - job) / SIDE * panels + i];
                        int further = from > start;
                        if (last)
                            for (int r = 0; r < SIDE; r++) {
                                const float *row = c + first * large_step + i * SIDE * small_step + r * MAX(c_row, c_column);
                                __builtin_prefetch(row, 1);
                                __builtin_prefetch(row + 16, 1);
                            }
                        if (!piece->special && !other->special)
                            multiply(depth, large_is_b ? other : piece, large_is_b ? piece : other, b_first, to, further,
                                &ahead);
                        else if (large_is_b)
                            multiply_whole(&small, i * SIDE, &large, first, from, depth, to, further);
                        else
                            multiply_whole(&large, first, &small, i * SIDE, from, depth, to, further);
                    }
            }
            for (int64_t first = job; first < stop; first += SIDE)
                for (int64_t i = 0; i < panels; i++) {
                    float(*made)[SIDE] = sums[(first - job) / SIDE * panels + i];
                    float *to = c + first * large_step + i * SIDE * small_step;
                    int64_t larges = MIN(SIDE, large.count - first), smalls = MIN(SIDE, small.count - i * SIDE);
                    if (large_is_b)
                        store_block(smalls, larges, made, to, small_step, large_step, add || start);
                    else
                        store_block(larges, smalls, made, to, large_step, small_step, add || start);
                }
        }
    }
    __asm__ volatile("tilerelease" ::);
}
#else
#define amx_allowed 0
#define product_in_parts(...)
#endif
