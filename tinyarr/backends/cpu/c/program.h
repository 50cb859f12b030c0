/* What the kernels of a program share. */
#include <omp.h>
#include <stdio.h>
#include <string.h>

/* Not inlined: compilers take long over one function that holds a whole program. */
#define KERNEL __attribute__((noinline)) static void
#define MIN(x, y) ((x) < (y) ? (x) : (y))

/* Vectors as wide as the processor's, and as many rows of a tile as its registers hold. */
#if defined(__AVX512F__)
#define VECTOR 64
#define TILE_ROWS 12
#elif defined(__AVX__)
#define VECTOR 32
#define TILE_ROWS 6
#else
#define VECTOR 16
#define TILE_ROWS 8
#endif
#define DEPTH 256 /* of packed panels: a panel of b takes 32 KiB */
#define GROUP 96  /* rows or columns that a job streams */

/* The first bad index that a kernel met: in which launch, where, and what it was. */
typedef struct {
    int64_t launch, position, value;
} report_t;

static inline void report(report_t *error, int64_t launch, int64_t position, int64_t value)
{
#pragma omp critical
    if (error->launch < 0 || (error->launch == launch && position < error->position))
        *error = (report_t){launch, position, value};
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
