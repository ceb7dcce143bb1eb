/* What every test of the index includes. */
#ifndef TESTS_INDEX_INDEX_TEST_H
#define TESTS_INDEX_INDEX_TEST_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "index/head.h"
#include "tests/index/bench_head.h"
#include "tests/index/synth.h"

/* Fails with both numbers. */
#define CHECK_NEAR(actual, expected, tolerance)                                                    \
    do {                                                                                           \
        double actual_ = (double)(actual), expected_ = (double)(expected),                         \
               tolerance_ = (double)(tolerance);                                                   \
        if (!(fabs(actual_ - expected_) <= tolerance_))                                            \
            fail_msg("%s is %.9g, expected %.9g within %.3g", #actual, actual_, expected_,         \
                     tolerance_);                                                                  \
    } while (0)

struct test_part {
    float m[HR_GROUP_MAX], l[HR_GROUP_MAX], o[HR_GROUP_MAX * HR_HEAD_DIM_MAX],
        out[HR_GROUP_MAX * HR_HEAD_DIM_MAX];
    struct hri_partial part;
};

static inline void test_part_clear(struct test_part *p, uint32_t g, uint32_t dv)
{
    p->part = (struct hri_partial){p->m, p->l, p->o};
    hri_partial_clear(&p->part, g, dv);
}

static inline const float *test_part_finish(struct test_part *p, uint32_t g, uint32_t dv)
{
    hri_partial_finish(&p->part, g, dv, p->out, NULL);
    return p->out;
}

static inline double relative_error(const float *x, const float *truth, uint32_t n)
{
    double far = 0, size = 0;
    for (uint32_t i = 0; i < n; i++) {
        far += ((double)x[i] - truth[i]) * ((double)x[i] - truth[i]);
        size += (double)truth[i] * truth[i];
    }
    return sqrt(far / (size + 1e-30));
}

#endif
