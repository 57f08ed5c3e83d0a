/* STREAM-style loops and a pointer chase in plain C with OpenMP: the peers of the benchmarks `stream` and `chase`. */

#define _GNU_SOURCE
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE (2UL << 20)

void set_threads(int threads) { omp_set_num_threads(threads); }

#define TRIAD(name, type)                                              \
    void name(int64_t n, type s, const type *a, const type *b, type *c) \
    {                                                                  \
        _Pragma("omp parallel for schedule(static)")                   \
        for (int64_t i = 0; i < n; i++)                                \
            c[i] = a[i] + s * b[i];                                    \
    }

#define COPY(name, type)                                               \
    void name(int64_t n, type s, const type *a, const type *b, type *c) \
    {                                                                  \
        (void)s;                                                       \
        (void)b;                                                       \
        _Pragma("omp parallel for schedule(static)")                   \
        for (int64_t i = 0; i < n; i++)                                \
            c[i] = a[i];                                               \
    }

TRIAD(triad_float64, double)
TRIAD(triad_float32, float)
COPY(copy_float64, double)
COPY(copy_float32, float)

/* Memory on huge pages where the kernel allows, first touched by the threads that the loops above give each part to. */
void *new_array(size_t bytes)
{
    void *array = aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    if (!array)
        return NULL;
    madvise(array, bytes, MADV_HUGEPAGE);
    int64_t words = bytes / sizeof(uint32_t);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < words; i++)
        ((uint32_t *)array)[i] = 1;
    return array;
}

void free_array(void *array) { free(array); }

uint64_t follow(uint64_t at, uint64_t hops, const uint32_t *following)
{
    for (uint64_t hop = 0; hop < hops; hop++)
        at = following[at];
    return at;
}
