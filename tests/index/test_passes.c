/* Loops over all blocks against their definitions in double, for every length around the widths that they work in. */
#include "tests/test.h"

#include <math.h>

#include "base/half.h"
#include "base/rng.h"
#include "index/passes.h"
#include "index/sort.h"

#define LENGTH_MAX 300

struct arrays {
    float weight[LENGTH_MAX], rate[LENGTH_MAX], out[LENGTH_MAX];
    uint16_t spread[LENGTH_MAX];
    uint8_t state[LENGTH_MAX], rows[LENGTH_MAX];
    int8_t codes[LENGTH_MAX];
};

static void fill(struct arrays *a, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    for (uint32_t i = 0; i < LENGTH_MAX; i++) {
        a->weight[i] = (float)exp(3 * hri_rng_normal(&rng));
        a->rate[i] = hri_rng_below(&rng, 3) ? (float)fabs(hri_rng_normal(&rng)) : 0;
        a->out[i] = (float)hri_rng_normal(&rng);
        a->spread[i] = hri_bf16_from_f32((float)exp(2 * hri_rng_normal(&rng)));
        a->state[i] = (uint8_t)hri_rng_below(&rng, 5);
        a->rows[i] = (uint8_t)(1 + hri_rng_below(&rng, 255));
        a->codes[i] = (int8_t)((int)hri_rng_below(&rng, 255) - 127);
    }
}

static void near(double got, double want, double size, const char *what, uint32_t n)
{
    if (!(fabs(got - want) <= 2e-6 * (size + fabs(want)))) {
        print_error("%s of %u: %.9g instead of %.9g\n", what, n, got, want);
        fail();
    }
}

static void sums(const struct arrays *a, uint32_t n)
{
    double sum = 0, weight = 0, square = 0, doubt = 0, lean = 0, drift = 0;
    for (uint32_t i = 0; i < n; i++) {
        double w = (double)a->weight[i], r = (double)a->rate[i];
        sum += w;
        weight += r > 0 ? w : 0;
        square += r > 0 ? w * w : 0;
        doubt += w * w * r;
        drift += w * fmin(1.7 * (double)hri_f32_from_bf16(a->spread[i]), 1);
        lean += a->state[i] < 3 ? w * (double)hri_f32_from_bf16(a->spread[i]) : 0;
    }
    struct hri_unread_sums unread = hri_pass_unread(a->weight, a->rate, n);
    near((double)hri_pass_sum(a->weight, n), sum, 0, "sum", n);
    near((double)unread.weight, weight, 0, "unread weight", n);
    near((double)unread.square, square, 0, "unread square", n);
    near((double)unread.doubt, doubt, 0, "unread doubt", n);
    near((double)hri_pass_lean(a->weight, a->spread, a->state, 3, n), lean, 0, "lean", n);
    near((double)hri_pass_drift(a->weight, a->spread, 1.7f, 1, n), drift, 0, "drift", n);
}

static void maps(const struct arrays *a, uint32_t n)
{
    float doubt[LENGTH_MAX], rate[LENGTH_MAX], logs[LENGTH_MAX], scaled[LENGTH_MAX],
        added[LENGTH_MAX];
    memcpy(doubt, a->out, sizeof doubt);
    memcpy(scaled, a->weight, sizeof scaled);
    memcpy(added, a->out, sizeof added);
    hri_pass_doubt_add(a->weight, a->rate, 0.3f, doubt, n);
    hri_pass_rates(a->spread, a->rows, 0.7f, rate, n);
    hri_pass_log_weights(a->out, a->spread, 0.4f, 2, logs, n);
    hri_pass_scale_unread(scaled, a->rate, 1.5f, n);
    hri_pass_value_add(a->codes, 0.3f, added, n);
    for (uint32_t i = 0; i < n; i++) {
        double w = (double)a->weight[i], s = (double)hri_f32_from_bf16(a->spread[i]);
        double v = fmin(0.7 * s, 3), old = (double)a->out[i];
        near((double)doubt[i], old + fmin(0.09 * w * w * (double)a->rate[i], 1), 1, "doubt", n);
        near((double)rate[i],
             (v + v * v / 2 + v * v * v / 6 + v * v * v * v / 24 + 0.3) / a->rows[i], 0, "rate", n);
        near((double)logs[i], old + fmin(0.4 * s, 2), 1, "log weight", n);
        near((double)scaled[i], a->rate[i] > 0 ? 1.5 * w : w, 0, "scaled weight", n);
        near((double)added[i], old + 0.3 * a->codes[i], 10, "value", n);
    }
    hri_pass_family_rates(a->spread, a->spread + 1, a->weight, a->rate, 0.7f, 0.2f, rate,
                          n > 0 ? n - 1 : 0);
    for (uint32_t i = 0; i + 1 < n; i++) {
        double v = fmin(0.7 * (double)hri_f32_from_bf16(a->spread[i]), 3),
               w = fmin(0.2 * (double)hri_f32_from_bf16(a->spread[i + 1]), 3);
        near((double)rate[i],
             (v + v * v / 2 + v * v * v / 6 + v * v * v * v / 24) * (double)a->weight[i] +
                 (w + w * w / 2 + w * w * w / 6 + w * w * w * w / 24 + 0.3) * (double)a->rate[i],
             0, "family's rate", n);
    }
    for (uint32_t i = n; i < LENGTH_MAX; i++)
        assert_true(doubt[i] == a->out[i] && scaled[i] == a->weight[i] && added[i] == a->out[i]);
}

static void split(const struct arrays *a, uint32_t n)
{
    uint32_t list[LENGTH_MAX], found, want = 0;
    double small = 0;
    float sum = hri_pass_split(a->weight, 2, list, &found, n);
    for (uint32_t i = 0; i < n; i++) {
        if (a->weight[i] >= 2)
            assert_int_equal(list[want++], i);
        else
            small += (double)a->weight[i];
    }
    assert_int_equal(found, want);
    near((double)sum, small, 0, "sum of small ones", n);
    float kept[LENGTH_MAX];
    near((double)hri_pass_keep(a->weight, 2, kept, n), small, 0, "sum of those not kept", n);
    for (uint32_t i = 0; i < n; i++)
        assert_true(kept[i] == (a->weight[i] >= 2 ? a->weight[i] : 0));
}

static void worth(const struct arrays *a, uint32_t n)
{
    const float factor[3] = {0.5f, 2, 3};
    float got[LENGTH_MAX];
    for (uint32_t g = 1; g <= 3; g++) {
        hri_pass_worth(a->weight, n, g, factor, got, n / 3);
        for (uint32_t i = 0; i < n / 3; i++) {
            double sum = 0;
            for (uint32_t j = 0; j < g; j++) {
                double w = j * n + i < LENGTH_MAX ? (double)a->weight[j * n + i] : 0;
                sum += (double)factor[j] * w * w;
            }
            near((double)got[i], sum, 0, "worth", n);
        }
    }
}

static void bins(const struct arrays *a, uint32_t n)
{
    uint16_t bin[LENGTH_MAX + 1];
    bin[n] = 7;
    hri_pass_bins(a->out, 1.5f, bin, n);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(bin[i], hri_bin_of(1.5f * a->out[i]));
    assert_int_equal(bin[n], 7);
}

/* Four levels a byte, the nearest one. */
static void quarters(const struct arrays *a, uint32_t n)
{
    uint8_t codes[LENGTH_MAX / 4 + 1];
    int8_t wide[LENGTH_MAX + 4];
    uint32_t quarter = n / 4;
    memset(codes, 0xab, sizeof codes);
    memset(wide, 77, sizeof wide);
    hri_pass_quarters_code(a->out, 3, quarter, codes);
    hri_pass_quarters_widen(codes, quarter, wide);
    assert_int_equal(codes[quarter], 0xab);
    assert_int_equal(wide[4 * quarter], 77);
    for (uint32_t i = 0; i < 4 * quarter; i++) {
        double x = (double)a->out[i] * 3, best = x < -1 ? -3 : x < 0 ? -1 : x < 1 ? 1 : 3;
        if (fabs(x) > 1e-6 && fabs(fabs(x) - 1) > 1e-6)
            assert_int_equal(wide[i], (int)best);
    }
}

static void scale(const struct arrays *a, uint32_t n)
{
    float x[LENGTH_MAX + 1];
    double sum = 0;
    memcpy(x, a->weight, n * sizeof *x);
    x[n] = 7;
    float got = hri_pass_scale(x, 0.75f, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(x[i] == 0.75f * a->weight[i]);
        sum += (double)x[i];
    }
    assert_true(x[n] == 7);
    float most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = fmaxf(most, a->out[i]);
    assert_true(hri_pass_most(a->out, n) == most);
    near((double)got, sum, 0, "scale", n);
}

/* What is not finite gets some code: a session's file may hold anything. */
static void test_quarters_of_what_is_not_finite(void **state)
{
    (void)state;
    const float x[8] = {NAN, -NAN, INFINITY, -INFINITY, 0, 1e30f, -1e30f, 1e-40f};
    uint8_t codes[2];
    hri_pass_quarters_code(x, 1, 2, codes);
    assert_int_equal(codes[0], 0 | 3 << 2 | 2 << 4 | 0 << 6);
    assert_int_equal(codes[1], 0 | 0 << 2 | 3 << 4 | 2 << 6);
    hri_pass_quarters_code(x, INFINITY, 2, codes);
    assert_int_equal(codes[0] & 3, 0);
}

static void test_all_lengths(void **state)
{
    (void)state;
    static struct arrays a;
    for (uint32_t n = 0; n <= LENGTH_MAX; n++) {
        fill(&a, n);
        sums(&a, n);
        maps(&a, n);
        split(&a, n);
        quarters(&a, n);
        scale(&a, n);
        bins(&a, n);
        if (3 * n <= LENGTH_MAX)
            worth(&a, n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_lengths),
        cmocka_unit_test(test_quarters_of_what_is_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
