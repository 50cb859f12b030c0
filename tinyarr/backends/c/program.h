/* What the kernels of a program share. */
#include <omp.h>
#include <stdio.h>
#include <string.h>

/* Not inlined: compilers take long over one function that holds a whole program. */
#define KERNEL __attribute__((noinline)) static void
/* Calls alone: optimized, thousands of them take gcc more than their number. */
#define SCHEDULE __attribute__((optimize("O0"))) static void
#define CONTRACTED __attribute__((optimize("fp-contract=fast")))
#define MIN(x, y) ((x) < (y) ? (x) : (y))
#define MAX(x, y) ((x) > (y) ? (x) : (y))

/* Vectors as wide as the processor's, and as many rows of VECTORS of them in a tile as its registers hold. */
#if defined(__AVX512F__)
#define VECTOR 64
#define ROWS 8
#elif defined(__AVX__)
#define VECTOR 32
#define ROWS 4
#elif defined(__ARM_NEON)
#define VECTOR 16
#define ROWS 8
#else
#define VECTOR 16
#define ROWS 4
#endif
#define VECTORS 3
#define DEPTH 256 /* of packed panels: one of a takes 8 KiB at most in float32, one of b 48 */
#define GROUP 96  /* rows or columns of a job at most */
#define SPREAD 16 /* steps of a tile between one prefetch and the next */

/* Pairs of elements of two vectors of 16 bytes: of their first halves, and of their second. */
#define INDEX(T) __typeof__(__builtin_choose_expr(sizeof(T) == 4, (int32_t)0, (int64_t)0)) /* as wide as T */
#define ZIP_LOW_float32 {0, 4, 1, 5}
#define ZIP_HIGH_float32 {2, 6, 3, 7}
#define ZIP_LOW_float64 {0, 2}
#define ZIP_HIGH_float64 {1, 3}

/* The first bad index that a kernel met: in which launch, where, and what it was. */
typedef struct {
    int64_t launch, position, value;
} report_t;

static inline void report(report_t *error, int64_t launch, int64_t position, int64_t value)
{
#pragma omp critical
    if (error->launch < 0 || (error->launch == launch && position < error->position)) {
        error->position = position;
        error->value = value;
#pragma omp atomic write
        error->launch = launch;
    }
}

/* Whether a launch up to this one, all of whose reports a barrier has made visible, met a bad index. A thread that asks
   late may find what a later launch has reported since, and must answer as all others did, or they wait at a barrier for
   ever. */
static inline int stopped(report_t *error, int64_t launch)
{
    int64_t first;
#pragma omp atomic read
    first = error->launch;
    return first >= 0 && first <= launch;
}

/* Says how long ago `since` is, and what was launched meanwhile: for TINYARR_LOG=launches. */
static inline void launched(double *since, const char *what)
{
#pragma omp master
    {
        fprintf(stderr, "%10.6f s  %s\n", omp_get_wtime() - *since, what);
        *since = omp_get_wtime();
    }
}
