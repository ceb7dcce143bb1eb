/* What the tests of the kernels share: buffers that end at a page that must not be touched, random
 * data, the levels of this machine, and comparisons that print the case that failed. Everything
 * random comes from one seed per case, which a failure prints. */
#ifndef KERNEL_TEST_H
#define KERNEL_TEST_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/kernels.h"

/* -- buffers: the last byte is followed by a page without access, so that reading or writing past
 * the end is a fault -- */

struct guarded {
    void *map;
    size_t bytes;
};
static struct guarded guarded_list[256];
static unsigned guarded_count;

static inline void *guarded_alloc(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
    char *map = mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(map != MAP_FAILED);
    assert_true(guarded_count < sizeof guarded_list / sizeof *guarded_list);
    assert_int_equal(mprotect(map + body, page, PROT_NONE), 0);
    memset(map, 0xff, body); /* NaN as f32, f16 and bf16 */
    guarded_list[guarded_count++] = (struct guarded){map, body + page};
    return map + body - bytes;
}

static inline float *guarded_floats(size_t n)
{
    return guarded_alloc(n * sizeof(float));
}

static inline void guarded_free_all(void)
{
    while (guarded_count > 0) {
        guarded_count--;
        munmap(guarded_list[guarded_count].map, guarded_list[guarded_count].bytes);
    }
}

/* -- data -- */

static inline void fill_normal(struct hri_rng *rng, float *x, size_t n, double deviation)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(hri_rng_normal(rng) * deviation);
}

static inline size_t dtype_bytes(hr_dtype_t dtype)
{
    return dtype == HR_DTYPE_F32 ? 4 : 2;
}

/* Rounds x to the dtype in place and writes it to dst in that dtype. */
static inline void to_dtype(void *dst, float *x, hr_dtype_t dtype, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        switch (dtype) {
        case HR_DTYPE_F16:
            half = hri_f16_from_f32(x[i]);
            x[i] = hri_f32_from_f16(half);
            ((uint16_t *)dst)[i] = half;
            break;
        case HR_DTYPE_BF16:
            half = hri_bf16_from_f32(x[i]);
            x[i] = hri_f32_from_bf16(half);
            ((uint16_t *)dst)[i] = half;
            break;
        default:
            ((float *)dst)[i] = x[i];
        }
    }
}

static inline struct hri_partial partial_make(uint32_t g, uint32_t dv)
{
    struct hri_partial part = {guarded_floats(g), guarded_floats(g),
                               guarded_floats((size_t)g * dv)};
    hri_partial_clear(&part, g, dv);
    return part;
}

static inline struct hri_partial partial_copy(const struct hri_partial *from, uint32_t g,
                                              uint32_t dv)
{
    struct hri_partial part = partial_make(g, dv);
    memcpy(part.m, from->m, g * sizeof(float));
    memcpy(part.l, from->l, g * sizeof(float));
    memcpy(part.o, from->o, (size_t)g * dv * sizeof(float));
    return part;
}

/* -- levels -- */

#define LEVELS_MAX 4

static inline unsigned levels_here(const struct hri_kernels *levels[LEVELS_MAX])
{
    unsigned n = 0;
    for (int level = HRI_KERNEL_REF; level <= (int)hri_kernels_best(); level++)
        levels[n++] = hri_kernels_get((enum hri_kernel_level)level);
    return n;
}

static const uint32_t group_sizes[] = {1, 2, 3, 4, 5, 6, 7, 8, 16};
static const uint32_t lengths[] = {0, 1, 15, 16, 17, 31, 32, 33};
static const uint32_t dims[][2] = {{8, 8},     {24, 24},  {32, 32},   {64, 64},
                                   {80, 80},   {96, 96},  {128, 128}, {192, 128},
                                   {256, 256}, {40, 104}, {128, 8},   {8, 248}};
static const hr_dtype_t dtypes[] = {HR_DTYPE_F32, HR_DTYPE_F16, HR_DTYPE_BF16};

#define COUNT_OF(array)       (sizeof(array) / sizeof *(array))
#define FOR_EACH(item, array) for (size_t item = 0; item < COUNT_OF(array); item++)

/* -- comparisons -- */

static char case_text[256];
#define CASE(...) (void)snprintf(case_text, sizeof case_text, __VA_ARGS__)

/* |a - b| over |b| as vectors; differing infinities count as infinite. */
static inline double relative_error(const float *a, const float *b, size_t n)
{
    double difference = 0.0, size = 0.0;

    for (size_t i = 0; i < n; i++) {
        if (a[i] == b[i] && isinf(a[i]))
            continue;
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return difference == 0.0 ? 0.0 : sqrt(difference / size);
}

/* The largest |a - b|. */
static inline double absolute_error(const float *a, const float *b, size_t n)
{
    double largest = 0.0;

    for (size_t i = 0; i < n; i++) {
        double difference = a[i] == b[i] ? 0.0 : fabs((double)a[i] - (double)b[i]);
        largest = difference > largest || isnan(difference) ? difference : largest;
        if (isnan(difference))
            return difference;
    }
    return largest;
}

#define CHECK_BELOW(value, limit)                                                                  \
    do {                                                                                           \
        double check_value = (value), check_limit = (limit);                                       \
        if (!(check_value <= check_limit))                                                         \
            fail_msg("%s: %s = %g, limit %g", case_text, #value, check_value, check_limit);        \
    } while (0)

/* Two partials stand for the same (output, lse). */
static inline void check_partials(const struct hri_partial *a, const struct hri_partial *b,
                                  uint32_t g, uint32_t dv, double tolerance)
{
    float *out_a = malloc(2 * (size_t)g * (dv + 1) * sizeof(float));
    assert_non_null(out_a);
    float *out_b = out_a + (size_t)g * dv, *lse_a = out_b + (size_t)g * dv, *lse_b = lse_a + g;

    hri_partial_finish(a, g, dv, out_a, lse_a);
    hri_partial_finish(b, g, dv, out_b, lse_b);
    for (uint32_t i = 0; i < g; i++) {
        CHECK_BELOW(relative_error(out_a + (size_t)i * dv, out_b + (size_t)i * dv, dv), tolerance);
        CHECK_BELOW(absolute_error(lse_a + i, lse_b + i, 1),
                    tolerance * (1.0 + (isinf(lse_b[i]) ? 0.0 : fabs((double)lse_b[i]))));
    }
    free(out_a);
}

#endif
