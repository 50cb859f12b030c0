/* c = a b for $name: a is m x k, b is k x n, each with any strides (counted in elements).

   Registers hold a tile of c, ROWS x COLUMNS. tile() multiplies a panel of a, which has ROWS rows, with a panel of b,
   which has COLUMNS columns; both are DEPTH deep and packed, so that it reads them from beginning to end. The smaller
   operand is packed once, by all threads together, and passes through the L2 cache for each job. A job packs a group of
   panels of the larger operand and multiplies each with all of the smaller one's. Memory has time to answer while a tile
   is computed: there, line by line, what the job packs next and where the tile will be stored come into the caches.

   An element of c is the sum, in order, of sums over DEPTH products each: the order depends on k alone. */
#define LANES_$name (VECTOR / (int)sizeof($T))
#define COLUMNS_$name (VECTORS * LANES_$name)
#define LINE_$name (64 / (int)sizeof($T))
#define SHORT_$name (16 / (int)sizeof($T))

typedef $T vector_$name __attribute__((vector_size(VECTOR)));
typedef $T unaligned_$name __attribute__((vector_size(VECTOR), aligned(sizeof($T))));
typedef $T short_$name __attribute__((vector_size(16)));
typedef INDEX($T) index_$name __attribute__((vector_size(16)));

/* The rows of a, or the columns of b: how many, how far apart, how far along k to the next, how many a panel has. */
typedef struct {
    const $T *x;
    int64_t count, stride, along, width;
} operand_$name;

/* What will be packed next: `rows` pieces of memory, `step` apart and `length` long; `done` of the first is fetched. */
typedef struct {
    const $T *x;
    int64_t rows, step, length, done;
} ahead_$name;

static inline void fetch_$name(ahead_$name *ahead)
{
    if (ahead->rows <= 0)
        return;
    __builtin_prefetch(ahead->x + ahead->done, 0, 2);
    __builtin_prefetch(ahead->x + ahead->done + LINE_$name, 0, 2);
    ahead->done += 2 * LINE_$name;
    if (ahead->done >= ahead->length) {
        ahead->x += ahead->step;
        ahead->done = 0;
        ahead->rows--;
    }
}

/* The one place where multiply-adds are contracted. */
CONTRACTED static inline __attribute__((always_inline)) void tile_of_$name(const int vectors, int64_t depth,
    const $T *restrict a, const $T *restrict b, $T *c, int64_t stride, int add, ahead_$name *ahead)
{
    vector_$name sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++)
            sums[r][v] = (vector_$name){0};
    for (int64_t p = 0; p < depth; p++, a += ROWS, b += vectors * LANES_$name) {
        if (p % SPREAD == 0) { /* all at once, they would keep b's lines waiting */
            if (p < ROWS * SPREAD)
#pragma GCC unroll 3
                for (int v = 0; v < vectors; v++)
                    __builtin_prefetch(c + p / SPREAD * stride + v * LANES_$name, 1);
            fetch_$name(ahead);
        }
        vector_$name x[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++)
            x[v] = *(const vector_$name *)(b + v * LANES_$name);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++)
                sums[r][v] += a[r] * x[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            unaligned_$name *to = (unaligned_$name *)(c + r * stride + v * LANES_$name);
            *to = add ? *to + sums[r][v] : sums[r][v];
        }
}

/* The last panel of b may have fewer vectors than the others. */
CONTRACTED __attribute__((noinline)) static void tile_$name(int vectors, int64_t depth, const $T *restrict a,
    const $T *restrict b, $T *c, int64_t stride, int add, ahead_$name *ahead)
{
    if (vectors == 3)
        tile_of_$name(3, depth, a, b, c, stride, add, ahead);
    else if (vectors == 2)
        tile_of_$name(2, depth, a, b, c, stride, add, ahead);
    else
        tile_of_$name(1, depth, a, b, c, stride, add, ahead);
}

/* A square block, 16 bytes a row: zipping its two halves, row by row, brings a column's elements closer, at last side
   by side. */
static inline __attribute__((always_inline)) void transpose_$name(short_$name *block)
{
    const index_$name low = ZIP_LOW_$name, high = ZIP_HIGH_$name;
#pragma GCC unroll 2
    for (int apart = 1; apart < SHORT_$name; apart *= 2) {
        short_$name zipped[SHORT_$name];
#pragma GCC unroll 4
        for (int i = 0; i < SHORT_$name; i++)
            zipped[i] = __builtin_shuffle(block[i / 2], block[(i + SHORT_$name) / 2], i % 2 ? high : low);
#pragma GCC unroll 4
        for (int i = 0; i < SHORT_$name; i++)
            block[i] = zipped[i];
    }
}

/* panel[p * width + r] = x[r, p]; beyond `rows`, the last of them is repeated (what comes of it is not stored). */
static inline __attribute__((always_inline)) void pack_of_$name(const int64_t width, int64_t rows, int64_t depth,
    const $T *restrict x, int64_t stride, int64_t along, $T *restrict panel)
{
    int64_t done = 0;
    if (along == 1)
        for (; done + LINE_$name <= depth; done += LINE_$name)
            for (int64_t first = 0; first < width; first += SHORT_$name) {
                const $T *from[SHORT_$name];
                for (int r = 0; r < SHORT_$name; r++)
                    from[r] = x + MIN(first + r, rows - 1) * stride + done;
                for (int64_t p = 0; p < LINE_$name; p += SHORT_$name) {
                    short_$name block[SHORT_$name];
                    for (int r = 0; r < SHORT_$name; r++)
                        memcpy(&block[r], from[r] + p, 16);
                    transpose_$name(block);
                    for (int r = 0; r < SHORT_$name; r++)
                        *(short_$name *)(panel + (done + p + r) * width + first) = block[r];
                }
            }
    else if (stride == 1 && rows == width)
        for (; done < depth; done++)
            for (int64_t first = 0; first < width; first += ROWS)
                memcpy(panel + done * width + first, x + done * along + first, ROWS * sizeof($T));
    for (; done < depth; done++)
        for (int64_t r = 0; r < width; r++)
            panel[done * width + r] = x[MIN(r, rows - 1) * stride + done * along];
}

/* The panel of x from its row (b: column) `first` and from `start` along k. */
__attribute__((noinline)) static void pack_$name(
    const operand_$name *x, int64_t first, int64_t start, int64_t depth, $T *panel)
{
    const $T *from = x->x + first * x->stride + start * x->along;
    int64_t rows = MIN(x->width, x->count - first), width = (rows + LANES_$name - 1) / LANES_$name * LANES_$name;
    if (x->width == ROWS)
        pack_of_$name(ROWS, rows, depth, from, x->stride, x->along, panel);
    else if (rows == COLUMNS_$name)
        pack_of_$name(COLUMNS_$name, COLUMNS_$name, depth, from, x->stride, x->along, panel);
    else
        pack_of_$name(width, rows, depth, from, x->stride, x->along, panel);
}

/* All tiles of a c of m x n from panels; one at the edge, or of a c whose rows are not contiguous, is made aside. */
__attribute__((noinline)) static void tiles_$name(int64_t m, int64_t n, int64_t depth, const $T *a, const $T *b, $T *c,
    int64_t c_row, int64_t c_column, int add, ahead_$name *ahead)
{
    for (int64_t j = 0; j < n; j += COLUMNS_$name)
        for (int64_t i = 0; i < m; i += ROWS) {
            int64_t rows = MIN(ROWS, m - i), columns = MIN(COLUMNS_$name, n - j);
            int vectors = (int)((columns + LANES_$name - 1) / LANES_$name);
            $T *to = c + i * c_row + j * c_column, aside[ROWS * COLUMNS_$name];
            if (c_column == 1 && rows == ROWS && columns == vectors * LANES_$name) {
                tile_$name(vectors, depth, a + i * depth, b + j * depth, to, c_row, add, ahead);
                continue;
            }
            tile_$name(vectors, depth, a + i * depth, b + j * depth, aside, COLUMNS_$name, 0, ahead);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t s = 0; s < columns; s++) {
                    $T *x = to + r * c_row + s * c_column, sum = aside[r * COLUMNS_$name + s];
                    *x = add ? *x + sum : sum;
                }
        }
}

/* Called by all threads together. Each thread's part of scratch comes after the shared one: see matmul.py. */
__attribute__((noinline, noclone)) static void product_$name(
    int64_t m, int64_t n, int64_t k, const $T *a, int64_t a_row, int64_t a_column, const $T *b, int64_t b_row,
    int64_t b_column, $T *c, int64_t c_row, int64_t c_column, int add, $T *scratch, int64_t shared_size)
{
    int tall = m > n;
    operand_$name left = {a, m, a_row, a_column, ROWS}, right = {b, n, b_column, b_row, COLUMNS_$name};
    operand_$name small = tall ? right : left, large = tall ? left : right;
    int64_t panels = (small.count + small.width - 1) / small.width, padded = panels * small.width;
    int64_t held = shared_size / padded / DEPTH * DEPTH, share = large.count / (4 * omp_get_num_threads());
    int64_t group = MAX(MIN(GROUP, share) / large.width, 1) * large.width;
    $T *own = scratch + shared_size + omp_get_thread_num() * (int64_t)(GROUP * DEPTH);
    for (int64_t start = 0; start < k; start += held) {
        int64_t end = MIN(k, start + held);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < (end - start + DEPTH - 1) / DEPTH * panels; part++) {
            int64_t from = start + part / panels * DEPTH, deep = MIN(DEPTH, end - from);
            int64_t first = part % panels * small.width;
            pack_$name(&small, first, from, deep, scratch + (from - start) * padded + first * deep);
        }
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < large.count; first += group)
            for (int64_t from = start; from < end; from += DEPTH) {
                int64_t deep = MIN(DEPTH, end - from), count = MIN(group, large.count - first);
                for (int64_t i = 0; i < count; i += large.width)
                    pack_$name(&large, first + i, from, deep, own + i * deep);
                int last = from + DEPTH >= end; /* then probably this thread's next job */
                int64_t later = last ? first + omp_get_num_threads() * group : first, then = last ? start : from + DEPTH;
                int64_t rows = MIN(group, large.count - later), length = MIN(DEPTH, end - then);
                ahead_$name ahead = {large.x + later * large.stride + then * large.along, rows, large.stride, length, 0};
                if (large.along != 1)
                    ahead = (ahead_$name){ahead.x, rows > 0 ? length : 0, large.along, rows, 0};
                const $T *shared = scratch + (from - start) * padded;
                tiles_$name(tall ? count : m, tall ? n : count, deep, tall ? own : shared, tall ? shared : own,
                    c + first * (tall ? c_row : c_column), c_row, c_column, add || from, &ahead);
            }
    }
}

/* The same by one thread; scratch has room for the panels of b and for one of a. */
__attribute__((noinline, noclone)) static void product_alone_$name(
    int64_t m, int64_t n, int64_t k, const $T *a, int64_t a_row, int64_t a_column, const $T *b, int64_t b_row,
    int64_t b_column, $T *c, int64_t c_row, int64_t c_column, int add, $T *scratch)
{
    operand_$name left = {a, m, a_row, a_column, ROWS}, right = {b, n, b_column, b_row, COLUMNS_$name};
    $T *own = scratch + (n + COLUMNS_$name - 1) / COLUMNS_$name * COLUMNS_$name * DEPTH;
    ahead_$name nothing = {0};
    for (int64_t start = 0; start < k; start += DEPTH) {
        int64_t deep = MIN(DEPTH, k - start);
        for (int64_t j = 0; j < n; j += COLUMNS_$name)
            pack_$name(&right, j, start, deep, scratch + j * deep);
        for (int64_t i = 0; i < m; i += ROWS) {
            pack_$name(&left, i, start, deep, own);
            tiles_$name(MIN(ROWS, m - i), n, deep, own, scratch, c + i * c_row, c_row, c_column, add || start, &nothing);
        }
    }
}
