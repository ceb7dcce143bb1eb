/*
 * Sampling against probabilities computed with the C library, and a fixed sequence that every
 * machine must give.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/fail.h"
#include "engine/sample.h"

#define VOCAB 50

static void make_logits(float *logits)
{
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)((i * 37) % VOCAB) / 8;
}

static hre_sampler_t *create(double temperature, uint32_t top_k, double top_p, double min_p,
                             uint64_t seed)
{
    struct hre_sample_options options;
    hre_sampler_t *sampler = NULL;

    hre_sample_options_init(&options);
    options.temperature = temperature;
    options.top_k = top_k;
    options.top_p = top_p;
    options.min_p = min_p;
    options.seed = seed;
    if (hre_sampler_create(&options, VOCAB, &sampler) != HR_OK)
        fail_msg("%s", hre_last_error());
    return sampler;
}

static uint32_t next(hre_sampler_t *sampler, const float *logits)
{
    uint32_t id = UINT32_MAX;

    if (hre_sampler_next(sampler, logits, &id) != HR_OK)
        fail_msg("%s", hre_last_error());
    return id;
}

static void test_greedy(void **state)
{
    float logits[VOCAB];
    hre_sampler_t *sampler = create(0, 0, 1, 0, 0);

    (void)state;
    make_logits(logits);
    logits[0] = -INFINITY;
    assert_int_equal(next(sampler, logits), 27); /* 27 * 37 mod 50 = 49 */
    logits[31] = logits[12] = logits[40] = 100;
    assert_int_equal(next(sampler, logits), 12);
    hre_sampler_destroy(sampler);
}

/* Which tokens the rules leave, by sorting and adding up in floating point. */
static void expected_probabilities(const float *logits, double temperature, uint32_t top_k,
                                   double top_p, double min_p, double *p)
{
    int order[VOCAB];
    double sum = 0, kept = 0;
    uint32_t n = 0;

    for (int i = 0; i < VOCAB; i++) {
        order[i] = i;
        for (int j = i; j > 0 && logits[order[j]] > logits[order[j - 1]]; j--) {
            int other = order[j];
            order[j] = order[j - 1];
            order[j - 1] = other;
        }
    }
    for (uint32_t i = 0; i < (top_k ? top_k : VOCAB); i++)
        sum += exp((logits[order[i]] - logits[order[0]]) / temperature);
    memset(p, 0, VOCAB * sizeof(*p));
    while (n < (top_k ? top_k : VOCAB) && (n == 0 || kept < top_p * sum)) {
        double weight = exp((logits[order[n]] - logits[order[0]]) / temperature);
        p[order[n++]] = weight >= min_p ? weight : 0;
        kept += weight;
    }
    kept = 0;
    for (int i = 0; i < VOCAB; i++)
        kept += p[i];
    for (int i = 0; i < VOCAB; i++)
        p[i] /= kept;
}

static void check_distribution(double temperature, uint32_t top_k, double top_p, double min_p)
{
    const int draws = 20000;
    float logits[VOCAB];
    double p[VOCAB];
    int counts[VOCAB] = {0};
    hre_sampler_t *sampler = create(temperature, top_k, top_p, min_p, 11);

    make_logits(logits);
    expected_probabilities(logits, temperature, top_k, top_p, min_p, p);
    for (int i = 0; i < draws; i++)
        counts[next(sampler, logits)]++;
    for (int i = 0; i < VOCAB; i++) {
        double deviation = sqrt(draws * p[i] * (1 - p[i]));
        if (p[i] == 0 ? counts[i] != 0 : fabs(counts[i] - draws * p[i]) > 5 * deviation + 1)
            fail_msg("token %d came %d times, expected %.1f (T %g, k %u, p %g, min %g)", i,
                     counts[i], draws * p[i], temperature, top_k, top_p, min_p);
    }
    hre_sampler_destroy(sampler);
}

static void test_distributions(void **state)
{
    (void)state;
    check_distribution(1, 0, 1, 0);
    check_distribution(0.3, 0, 1, 0);
    check_distribution(5, 0, 1, 0);
    check_distribution(1, 7, 1, 0);
    check_distribution(1, 0, 0.8, 0);
    check_distribution(2, 20, 0.5, 0);
    check_distribution(1.5, 0, 1, 0.2);
    check_distribution(2, 30, 0.9, 0.3);
}

static void test_same_everywhere(void **state)
{
    /*
     * From the published definitions of splitmix64 and xoshiro256**, and weights with 60 decimals.
     */
    static const uint32_t want[] = {8, 31, 47, 27, 24, 43, 47, 31, 31, 4, 16, 31, 27, 20, 8,  13,
                                    5, 28, 4,  47, 17, 27, 35, 4,  20, 5, 8,  39, 12, 35, 36, 13};
    float logits[VOCAB];
    hre_sampler_t *sampler = create(1.3, 40, 0.95, 0.001, 42);

    (void)state;
    make_logits(logits);
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        uint32_t id = next(sampler, logits);
        if (id != want[i])
            fail_msg("draw %zu is token %u, expected %u", i, id, want[i]);
    }
    hre_sampler_destroy(sampler);
}

static void test_extremes(void **state)
{
    float logits[VOCAB];
    double temperatures[] = {1e-300, 1e-3, 1e300};

    (void)state;
    make_logits(logits);
    for (size_t i = 0; i < 2; i++) {
        hre_sampler_t *sampler = create(temperatures[i], 0, 1, 0, i);
        for (int n = 0; n < 20; n++)
            assert_int_equal(next(sampler, logits), 27);
        hre_sampler_destroy(sampler);
    }
    hre_sampler_t *sampler = create(temperatures[2], 0, 1, 0, 5);
    bool seen[VOCAB] = {0};
    for (int n = 0; n < 2000; n++)
        seen[next(sampler, logits)] = true;
    for (int i = 0; i < VOCAB; i++)
        assert_true(seen[i]);
    hre_sampler_destroy(sampler);

    sampler = create(1, 1, 1e-9, 1, 5);
    logits[3] = logits[27];
    for (int n = 0; n < 20; n++)
        assert_int_equal(next(sampler, logits), 3);
    hre_sampler_destroy(sampler);

    sampler = create(1, 0, 0.9, 0, 5);
    for (int i = 0; i < VOCAB; i++)
        logits[i] = i == 9 ? -3e38f : -INFINITY;
    assert_int_equal(next(sampler, logits), 9);
    hre_sampler_destroy(sampler);
}

static void test_bad_logits(void **state)
{
    float logits[VOCAB];
    uint32_t id = 77;

    (void)state;
    for (int temperature = 0; temperature < 2; temperature++) {
        hre_sampler_t *sampler = create(temperature, 0, 1, 0, 0);
        make_logits(logits);
        logits[44] = NAN;
        assert_int_equal(hre_sampler_next(sampler, logits, &id), HR_ERR_NONFINITE);
        assert_string_equal(hre_last_error(), "logit of token 44 is not a number");
        logits[44] = INFINITY;
        assert_int_equal(hre_sampler_next(sampler, logits, &id), HR_ERR_NONFINITE);
        assert_string_equal(hre_last_error(), "logit of token 44 is infinite");
        for (int i = 0; i < VOCAB; i++)
            logits[i] = -INFINITY;
        assert_int_equal(hre_sampler_next(sampler, logits, &id), HR_ERR_NONFINITE);
        assert_int_equal(id, 77);
        hre_sampler_destroy(sampler);
    }
}

static void assert_refused(double temperature, double top_p, double min_p, uint32_t vocab,
                           const char *line)
{
    struct hre_sample_options options;
    hre_sampler_t *sampler = NULL;

    hre_sample_options_init(&options);
    options.temperature = temperature;
    options.top_p = top_p;
    options.min_p = min_p;
    assert_int_equal(hre_sampler_create(&options, vocab, &sampler), HR_ERR_INVALID);
    assert_null(sampler);
    assert_string_equal(hre_last_error(), line);
}

static void test_refused_options(void **state)
{
    struct hre_sample_options options = {.struct_size = 3};
    hre_sampler_t *sampler = NULL;

    (void)state;
    assert_refused(-1, 1, 0, 9, "temperature is -1; expected a number >= 0");
    assert_refused(INFINITY, 1, 0, 9, "temperature is inf; expected a number >= 0");
    assert_refused(1, 0, 0, 9, "top-p is 0; expected more than 0 and at most 1");
    assert_refused(1, 1.5, 0, 9, "top-p is 1.5; expected more than 0 and at most 1");
    assert_refused(1, 1, -0.5, 9, "min-p is -0.5; expected 0 to 1");
    assert_refused(1, 1, 0, 0, "vocabulary of 0 tokens; 1 to 16777216 are possible");
    assert_int_equal(hre_sampler_create(&options, 9, &sampler), HR_ERR_VERSION);
    hre_sampler_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),          cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_same_everywhere), cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_bad_logits),      cmocka_unit_test(test_refused_options),
    };

    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
