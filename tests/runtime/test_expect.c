/* hr_sequence_expect: rows of a long prompt are arranged for queries that stand behind its end, where rotary embedding has turned them. The
 * reference is the library without the hint: the same rows, queries and budget, and its true errors. */
#include "tests/runtime/naive.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { D = 32, PROMPT = 6144, CHUNK = 512, STEPS = 24, TOKENS_MAX = 65536 };

static const struct shape shape = {.n_layers = 1,
                                   .n_q = 2,
                                   .n_kv = 1,
                                   .dk = D,
                                   .dv = D,
                                   .dtype = HR_DTYPE_BF16,
                                   .rope = HR_ROPE_HALF};
static float k[(PROMPT + STEPS) * D], v[(PROMPT + STEPS) * D], q[(PROMPT + STEPS) * 2 * D];
static float frequencies[D / 2];

static void turn(float *x, uint32_t position)
{
    for (uint32_t i = 0; i < D / 2; i++) {
        double angle = position * (double)frequencies[i], c = cos(angle), s = sin(angle);
        double a = (double)x[i], b = (double)x[i + D / 2];
        x[i] = (float)(a * c - b * s);
        x[i + D / 2] = (float)(a * s + b * c);
    }
}

/* Queries before rotation lie along a few axes of their own, and one turn takes from one to many prompts: where they will point says
 * only the position. Keys lie in all directions. */
static void make(void)
{
    struct random r = {7};
    for (uint32_t i = 0; i < D / 2; i++) {
        frequencies[i] = (float)(0.004 * pow(1.3, i));
    }
    for (uint32_t p = 0; p < PROMPT + STEPS; p++) {
        for (uint32_t i = 0; i < D; i++) {
            k[(size_t)p * D + i] = (float)random_normal(&r);
            v[(size_t)p * D + i] = 0.5f + (i == 0 ? 1.0f : 0.03f) * (float)random_normal(&r);
        }
        for (uint32_t h = 0; h < 2; h++) {
            float *x = q + ((size_t)p * 2 + h) * D;
            for (uint32_t i = 0; i < D; i++) {
                x[i] = (i < 3 ? 10.0f : 0.1f) * (float)random_normal(&r);
            }
            turn(x, p);
        }
    }
}

static hr_sequence_t *sequence_open(hr_runtime_t *rt)
{
    struct hr_rope rope = {HR_ROPE_HALF, D, frequencies};
    struct hr_sequence_options o;
    hr_sequence_t *s = NULL;
    options_for(&shape, TOKENS_MAX, "headrace:sketch=0,segment=1024", 0.005, &o);
    o.rope = &rope;
    assert_int_equal(hr_sequence_create(rt, &o, &s), HR_OK);
    return s;
}

static void prompt(hr_sequence_t *s, uint32_t first, uint32_t n)
{
    for (uint32_t end = first + n; first < end; first += CHUNK) {
        static float out[CHUNK * 2 * D];
        assert_int_equal(rows_append(s, &shape, 0, k, v, first, CHUNK), HR_OK);
        assert_int_equal(queries_attend(s, &shape, 0, HR_ATTEND_EXACT, q, first, CHUNK, out, NULL),
                         HR_OK);
    }
}

static double error_of(hr_sequence_t *s)
{
    double sum = 0;
    for (uint32_t i = 0; i < STEPS; i++) {
        struct hr_attend_report report;
        float out[2 * D];
        assert_int_equal(rows_append(s, &shape, 0, k, v, PROMPT + i, 1), HR_OK);
        assert_int_equal(
            queries_attend(s, &shape, 0, HR_ATTEND_RECIPE, q, PROMPT + i, 1, out, &report), HR_OK);
        sum += report.true_error / STEPS;
    }
    return sum;
}

static void test_long_prompt(void **state)
{
    (void)state;
    make();
    hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *plain = sequence_open(rt), *hinted = sequence_open(rt), *fork = NULL,
                  *wrong = sequence_open(rt);
    prompt(plain, 0, PROMPT);
    assert_int_equal(hr_sequence_expect(hinted, PROMPT), HR_OK);
    prompt(hinted, 0, PROMPT / 2);
    assert_int_equal(hr_sequence_fork(hinted, &fork), HR_OK);
    prompt(hinted, PROMPT / 2, PROMPT / 2);
    prompt(fork, PROMPT / 2, PROMPT / 2);
    double without = error_of(plain), with = error_of(hinted);
    assert_true(with > 0 && with < 0.85 * without);
    /* A fork goes on with what its parent was told. */
    assert_true(fabs(error_of(fork) - with) < 1e-12);
    /* A query before that position ends the expectation: what follows is as without it. */
    float out[2 * D];
    assert_int_equal(hr_sequence_expect(wrong, PROMPT), HR_OK);
    prompt(wrong, 0, CHUNK);
    assert_int_equal(queries_attend(wrong, &shape, 0, HR_ATTEND_RECIPE, q, CHUNK - 1, 1, out, NULL),
                     HR_OK);
    prompt(wrong, CHUNK, PROMPT - CHUNK);
    assert_true(error_of(wrong) > (with + without) / 2);
    hr_sequence_destroy(plain);
    hr_sequence_destroy(hinted);
    hr_sequence_destroy(fork);
    hr_sequence_destroy(wrong);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

static void refused(hr_status_t status, const char *words)
{
    assert_int_equal(status, HR_ERR_INVALID);
    assert_non_null(strstr(hr_last_error(), words));
}

static void test_bad_input(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *s = sequence_open(rt);
    refused(hr_sequence_expect(NULL, 3), "no sequence");
    refused(hr_sequence_expect(s, TOKENS_MAX + 1), "position 65537 is beyond tokens_max 65536");
    refused(hr_sequence_expect(s, UINT32_MAX), "beyond tokens_max");
    assert_int_equal(hr_sequence_expect(s, TOKENS_MAX), HR_OK);
    assert_int_equal(hr_sequence_expect(s, 0), HR_OK);
    hr_sequence_destroy(s);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_prompt),
        cmocka_unit_test(test_bad_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
