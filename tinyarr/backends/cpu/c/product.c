/* c = a b for $name: a is m x k, b is k x n, each with any strides (counted in elements).

   Both operands are packed into panels as deep as the L1 cache likes, ROWS rows of a and COLUMNS columns of b, padded
   with zeros, and tile() multiplies a panel of each with all of a tile of c in registers. One operand is packed once and
   shared; jobs stream through the other's panels. How an element's products are added depends on k alone. */
#define ROWS_$name TILE_ROWS
#define LANES_$name (VECTOR / (int)sizeof($T))
#define COLUMNS_$name (2 * LANES_$name)

typedef $T vector_$name __attribute__((vector_size(VECTOR)));
typedef $T unaligned_$name __attribute__((vector_size(VECTOR), aligned(sizeof($T))));

/* The one place where multiply-adds are contracted. */
__attribute__((optimize("fp-contract=fast"), noinline)) static void tile_$name(
    int64_t depth, const $T *restrict a, const $T *restrict b, $T *c, int64_t stride, int add)
{
    vector_$name left[ROWS_$name], right[ROWS_$name];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS_$name; r++)
        left[r] = right[r] = (vector_$name){0};
    for (int64_t p = 0; p < depth; p++, a += ROWS_$name, b += COLUMNS_$name) {
        vector_$name x = *(const vector_$name *)b, y = *(const vector_$name *)(b + LANES_$name);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS_$name; r++) {
            left[r] += a[r] * x;
            right[r] += a[r] * y;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS_$name; r++) {
        unaligned_$name *to = (unaligned_$name *)(c + r * stride);
        unaligned_$name *next = (unaligned_$name *)(c + r * stride + LANES_$name);
        *to = add ? *to + left[r] : left[r];
        *next = add ? *next + right[r] : right[r];
    }
}

/* panel[p * width + r] = x[r, p] for `rows` rows, and 0 for the rest of the width. */
__attribute__((noinline)) static void pack_$name(
    int64_t rows, int64_t width, int64_t depth, const $T *x, int64_t row_stride, int64_t depth_stride, $T *panel)
{
    if (rows == width && row_stride == 1) {
        for (int64_t p = 0; p < depth; p++)
            memcpy(panel + p * width, x + p * depth_stride, (size_t)width * sizeof($T));
        return;
    }
    for (int64_t first = 0; first < depth; first += 16) {
        int64_t last = first + 16 < depth ? first + 16 : depth;
        for (int64_t r = 0; r < width; r++)
            for (int64_t p = first; p < last; p++)
                panel[p * width + r] = r < rows ? x[r * row_stride + p * depth_stride] : 0;
    }
}

/* A tile at the edge, or of a result whose rows are not contiguous, is computed aside. */
__attribute__((noinline)) static void edge_$name(
    int64_t depth, const $T *a, const $T *b, $T *c, int64_t row_stride, int64_t column_stride, int64_t rows,
    int64_t columns, int add)
{
    $T whole[ROWS_$name * COLUMNS_$name];
    tile_$name(depth, a, b, whole, COLUMNS_$name, 0);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            $T *to = c + i * row_stride + j * column_stride;
            *to = add ? *to + whole[i * COLUMNS_$name + j] : whole[i * COLUMNS_$name + j];
        }
}

/* The tiles of one group of panels of the streamed operand with all panels of the shared one.
   streamed: 'a' or 'b'. own: room for the group's panels. */
__attribute__((noinline)) static void job_$name(
    char streamed, int64_t first, int64_t end, int64_t m, int64_t n, int64_t depth, const $T *x, int64_t row_stride,
    int64_t depth_stride, const $T *shared, $T *own, $T *c, int64_t c_row, int64_t c_column, int add)
{
    int64_t width = streamed == 'a' ? ROWS_$name : COLUMNS_$name, size = streamed == 'a' ? m : n;
    int64_t other = streamed == 'a' ? COLUMNS_$name : ROWS_$name, others = streamed == 'a' ? n : m;
    for (int64_t start = 0; start < depth; start += DEPTH) {
        int64_t deep = depth - start < DEPTH ? depth - start : DEPTH;
        for (int64_t s = first; s < end; s += width)
            pack_$name(MIN(width, size - s), width, deep, x + s * row_stride + start * depth_stride, row_stride,
                depth_stride, own + (s - first) * deep);
        const $T *panel = shared + start * ((others + other - 1) / other * other);
        for (int64_t o = 0; o < others; o += other)
            for (int64_t s = first; s < end; s += width) {
                const $T *mine = own + (s - first) * deep, *theirs = panel + o * deep;
                const $T *a = streamed == 'a' ? mine : theirs, *b = streamed == 'a' ? theirs : mine;
                int64_t i = streamed == 'a' ? s : o, j = streamed == 'a' ? o : s;
                $T *to = c + i * c_row + j * c_column;
                if (c_column == 1 && i + ROWS_$name <= m && j + COLUMNS_$name <= n)
                    tile_$name(deep, a, b, to, c_row, add || start);
                else
                    edge_$name(deep, a, b, to, c_row, c_column, MIN(ROWS_$name, m - i), MIN(COLUMNS_$name, n - j),
                        add || start);
            }
    }
}

/* Called by all threads together. Each thread's part of scratch comes after the shared one: see matmul.py. */
__attribute__((noinline, noclone)) static void product_$name(
    int64_t m, int64_t n, int64_t k, const $T *a, int64_t a_row, int64_t a_column, const $T *b, int64_t b_row,
    int64_t b_column, $T *c, int64_t c_row, int64_t c_column, int add, $T *scratch, int64_t shared_size)
{
    char streamed = m > n ? 'a' : 'b';
    $T *own = scratch + shared_size + omp_get_thread_num() * (int64_t)(GROUP * DEPTH);
    int64_t width = streamed == 'a' ? COLUMNS_$name : ROWS_$name, panels = ((streamed == 'a' ? n : m) + width - 1) / width;
    int64_t depth = shared_size / (panels * width) / DEPTH * DEPTH;
    int64_t stride = streamed == 'a' ? b_column : a_row, along = streamed == 'a' ? b_row : a_column;
    int64_t size = streamed == 'a' ? n : m, group = GROUP / (streamed == 'a' ? ROWS_$name : COLUMNS_$name);
    group *= streamed == 'a' ? ROWS_$name : COLUMNS_$name;
    for (int64_t start = 0; start < k; start += depth) {
        int64_t deep = MIN(depth, k - start), chunks = (deep + DEPTH - 1) / DEPTH;
        const $T *x = (streamed == 'a' ? b : a) + start * along;
#pragma omp for schedule(static)
        for (int64_t part = 0; part < chunks * panels; part++) {
            int64_t from = part / panels * DEPTH, first = part % panels * width, length = MIN(DEPTH, deep - from);
            pack_$name(MIN(width, size - first), width, length, x + first * stride + from * along, stride, along,
                scratch + from * panels * width + first * length);
        }
        const $T *y = streamed == 'a' ? a + start * a_column : b + start * b_row;
        int64_t all = streamed == 'a' ? m : n;
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < all; first += group)
            job_$name(streamed, first, MIN(first + group, all), m, n, deep, y, streamed == 'a' ? a_row : b_column,
                streamed == 'a' ? a_column : b_row, scratch, own, c, c_row, c_column, add || start);
    }
}

/* The same by one thread; scratch has room for both operands' panels. */
__attribute__((noinline, noclone)) static void product_alone_$name(
    int64_t m, int64_t n, int64_t k, const $T *a, int64_t a_row, int64_t a_column, const $T *b, int64_t b_row,
    int64_t b_column, $T *c, int64_t c_row, int64_t c_column, int add, $T *scratch)
{
    int64_t wide = (n + COLUMNS_$name - 1) / COLUMNS_$name * COLUMNS_$name;
    for (int64_t start = 0; start < k; start += DEPTH) {
        int64_t deep = MIN(DEPTH, k - start);
        for (int64_t first = 0; first < n; first += COLUMNS_$name)
            pack_$name(MIN(COLUMNS_$name, n - first), COLUMNS_$name, deep, b + start * b_row + first * b_column,
                b_column, b_row, scratch + first * deep);
        for (int64_t first = 0; first < m; first += ROWS_$name)
            job_$name('a', first, MIN(first + ROWS_$name, m), m, n, deep, a + start * a_column, a_row, a_column,
                scratch, scratch + wide * DEPTH, c, c_row, c_column, add || start);
    }
}
