/* c = a b in float32 by a processor's matrix unit (Intel AMX), which multiplies tiles of bfloat16 and adds in float32.

   A float32 x is x1 + x2 + x3, three bfloat16, each the rest rounded. Of the nine products that make up x y the six largest
   are added; the others come to less than 2^-22 of it (Henry, Tang & Heinecke 2019, "Leveraging the bfloat16 artificial
   intelligence datatype for higher-precision computations"). The unit adds 32 products before it adds them to a sum. So
   short sums err half as much as in product.c, and those of thousands, which it adds up in parts, up to half again as much.

   Infinities, NaN and what rounds to infinity have no such parts: product.c makes the blocks that they go into. Parts
   below 2^-126 are lost: what is below 2^-110 has fewer digits.

   A block of c, SIDE x SIDE, is four tiles: the product of a panel of a, SIDE rows, and one of b, SIDE columns. A tile of a is
   16 rows of 32 steps along k; one of b has a row for each two steps, with their 16 columns side by side. So an operand
   that is stored by steps packs easily as b, one stored by rows as a, and the larger one chooses. The smaller operand is
   packed once, by all threads together. A job packs a few panels of the larger one, a piece of them at a time, which stays
   in the L1 cache while it is multiplied with all of the smaller one's. The order of additions depends on k alone. */
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#define SIDE 32
#define PARTS 3
#define PIECE 64 /* steps that are packed together: 12 KiB of a panel */
#define JOB 2    /* panels: their pieces, the other operand's and two blocks of sums fill the L1 cache */

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
        for (int i = 0; i < 4; i++) /* so that eight panels, of 256 rows, fetch all */
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

/* The same from numbers of which some have no parts: SIDE rows of a and columns of b, at most. */
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

/* Prefetches a block of c, whose rows (or columns) are `apart`. */
static void fetch_block(const float *c, int64_t apart)
{
    for (int r = 0; r < SIDE; r++) {
        __builtin_prefetch(c + r * apart, 1);
        __builtin_prefetch(c + r * apart + 16, 1);
    }
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

/* One product: its operands, which of them has the part of a, and which comes first in the order of additions; where the
   result goes, and how far apart there the rows of each operand are; and the panels of the smaller one, by pieces. */
typedef struct {
    side_t small, large;
    int large_is_b, b_first, add;
    float *c;
    int64_t small_step, large_step, panels;
    panel_t *shared;
} product_t;

/* What a job packs next, after the piece at `from`: probably of this thread's next job, where this one's was the last. */
static ahead_float32 next_piece(const product_t *p, int64_t job, int64_t start, int64_t from, int64_t end)
{
    const side_t *x = &p->large;
    int last = from + PIECE >= end;
    int64_t first = last ? job + omp_get_num_threads() * JOB * SIDE : job, then = last ? start : from + PIECE;
    int64_t rows = MAX(0, MIN(JOB * SIDE, x->count - first)), depth = MIN(PIECE, end - then);
    const float *at = x->x + first * x->stride + then * x->along;
    return x->along == 1 ? (ahead_float32){at, rows, x->stride, depth, 0}
                         : (ahead_float32){at, rows ? depth : 0, x->along, rows, 0};
}

/* sums (+)= the product of panel i of the smaller operand and of the larger one's panel from `first` on, of one piece. */
static void multiply_piece(const product_t *p, int64_t i, const panel_t *other, int64_t first, const panel_t *piece,
    int64_t from, int64_t depth, block_t sums, int add, ahead_float32 *ahead)
{
    const side_t *small = &p->small, *large = &p->large;
    if (piece->special || other->special) {
        if (p->large_is_b)
            multiply_whole(small, i * SIDE, large, first, from, depth, sums, add);
        else
            multiply_whole(large, first, small, i * SIDE, from, depth, sums, add);
    } else if (p->large_is_b)
        multiply(depth, other, piece, p->b_first, sums, add, ahead);
    else
        multiply(depth, piece, other, p->b_first, sums, add, ahead);
}

/* Panels of the larger operand from row `job` on, times all of the smaller one: from `start` to `end` along k. */
static void multiply_job(const product_t *p, int64_t job, int64_t start, int64_t end, panel_t *pieces, block_t *sums)
{
    int64_t stop = MIN(p->large.count, job + JOB * SIDE);
    for (int64_t from = start; from < end; from += PIECE) {
        int64_t depth = MIN(PIECE, end - from);
        ahead_float32 ahead = next_piece(p, job, start, from, end);
        for (int64_t first = job; first < stop; first += SIDE)
            pack_piece(&p->large, first, from, depth, p->large_is_b, pieces + (first - job) / SIDE);
        for (int64_t i = 0; i < p->panels; i++)
            for (int64_t first = job; first < stop; first += SIDE) {
                int64_t number = (first - job) / SIDE;
                const panel_t *other = p->shared + (from - start) / PIECE * p->panels + i;
                float(*to)[SIDE] = sums[number * p->panels + i];
                if (from + PIECE >= end) /* the block is stored soon */
                    fetch_block(p->c + first * p->large_step + i * SIDE * p->small_step, MAX(p->large_step, p->small_step));
                multiply_piece(p, i, other, first, pieces + number, from, depth, to, from > start, &ahead);
            }
    }
    for (int64_t first = job; first < stop; first += SIDE)
        for (int64_t i = 0; i < p->panels; i++) {
            float(*made)[SIDE] = sums[(first - job) / SIDE * p->panels + i];
            float *to = p->c + first * p->large_step + i * SIDE * p->small_step;
            int64_t rows = MIN(SIDE, p->large.count - first), others = MIN(SIDE, p->small.count - i * SIDE);
            if (p->large_is_b)
                store_block(others, rows, made, to, p->small_step, p->large_step, p->add || start);
            else
                store_block(rows, others, made, to, p->large_step, p->small_step, p->add || start);
        }
}

/* Called by all threads together. held: for how many pieces of the smaller operand's panels scratch has room. turned: that
   a and b have changed places, so that the bits are those of the product that was meant. */
__attribute__((noinline, noclone)) static void product_in_parts(
    int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column, const float *b, int64_t b_row,
    int64_t b_column, float *c, int64_t c_row, int64_t c_column, int add, float *scratch, int64_t held, int turned)
{
    side_t left = {a, m, a_row, a_column}, right = {b, n, b_column, b_row};
    int tall = m > n;
    product_t p = {tall ? right : left, tall ? left : right, .add = add, .c = c, .shared = (panel_t *)scratch};
    p.small_step = tall ? c_column : c_row, p.large_step = tall ? c_row : c_column;
    p.large_is_b = p.large.along != 1, p.b_first = (p.large_is_b == tall) != turned;
    p.panels = (p.small.count + SIDE - 1) / SIDE;
    int64_t nbytes = JOB * (sizeof(panel_t) + p.panels * sizeof(block_t)); /* of a thread's own */
    panel_t *pieces = (panel_t *)((char *)(p.shared + held * p.panels) + omp_get_thread_num() * nbytes);
    configure_tiles();
    for (int64_t start = 0; start < k; start += held * PIECE) {
        int64_t end = MIN(k, start + held * PIECE);
        int64_t count = (end - start + PIECE - 1) / PIECE;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count * p.panels; i++) { /* neighbours in memory are packed one after another */
            int64_t piece = p.small.along == 1 ? i % count : i / p.panels, panel = p.small.along == 1 ? i / count : i % p.panels;
            int64_t from = start + piece * PIECE;
            pack_piece(&p.small, panel * SIDE, from, MIN(PIECE, end - from), !p.large_is_b, p.shared + piece * p.panels + panel);
        }
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < p.large.count; job += JOB * SIDE)
            multiply_job(&p, job, start, end, pieces, (block_t *)(pieces + JOB));
    }
    __asm__ volatile("tilerelease" ::);
}
#else
#define amx_allowed 0
#define product_in_parts(...)
#endif
