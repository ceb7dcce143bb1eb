/* to_f32, from_f32, find_nonfinite, min_max, exp_sum, weigh_rows, max. Conversions are exact: all 65,536
 * halves, and rounding at ties.
 *
 *   operation   tolerance
 *   exp_sum     1e-6 relative per element above 1e-37, 1e-37 absolute below; 1e-6 relative
 *               for the sum
 *   others      equal */
#include "kernel_test.h"

#define TOLERANCE_EXP 1e-6

/* The definition of a 16-bit float with the given number of exponent bits, by powers of two. */
static double half_value(uint16_t bits, int exponent_bits)
{
    const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    double value;

    if (exponent == (1 << exponent_bits) - 1)
        value = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        value = ldexp(mantissa, 1 - bias - mantissa_bits);
    else
        value = ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
    return bits & 0x8000 ? -value : value;
}

static bool same(double a, double b)
{
    return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b));
}

static void test_every_half(void **state)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    uint16_t *half = guarded_alloc(65536 * 2), *back = guarded_alloc(65536 * 2);
    float *x = guarded_floats(65536);

    (void)state;
    for (uint32_t i = 0; i < 65536; i++)
        half[i] = (uint16_t)i;
    for (unsigned level = 0; level < n_levels; level++) {
        for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
            const hr_dtype_t dtype = is_bf16 ? HR_DTYPE_BF16 : HR_DTYPE_F16;
            levels[level]->to_f32(x, half, dtype, 65536);
            levels[level]->from_f32(back, x, dtype, 65536);
            for (uint32_t i = 0; i < 65536; i++) {
                if (!same((double)x[i], half_value(half[i], is_bf16 ? 8 : 5)))
                    fail_msg("%s to_f32 of %#x dtype %d", levels[level]->name, i, (int)dtype);
                if (isnan(x[i]) ? !isnan(half_value(back[i], is_bf16 ? 8 : 5)) : back[i] != half[i])
                    fail_msg("%s from_f32 of %#x dtype %d", levels[level]->name, i, (int)dtype);
            }
        }
    }
    guarded_free_all();
}

/* Halfway between neighbours, and one float to either side of it: to the even one, and to the
 * nearer one. */
static void test_rounding(void **state)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);

    (void)state;
    for (unsigned level = 0; level < n_levels; level++) {
        for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
            const int bits = is_bf16 ? 8 : 5;
            const hr_dtype_t dtype = is_bf16 ? HR_DTYPE_BF16 : HR_DTYPE_F16;
            const uint32_t largest = is_bf16 ? 0x7f7f : 0x7bff;
            for (uint32_t i = 0; i < largest; i += 7) {
                /* In a vector of 16 and alone, so that vector code and tail both meet it. */
                float x[17];
                uint16_t half[17];
                float middle =
                    (float)((half_value((uint16_t)i, bits) + half_value((uint16_t)(i + 1), bits)) /
                            2);
                for (int j = 0; j < 17; j++)
                    x[j] = j % 3 == 0   ? middle
                           : j % 3 == 1 ? nextafterf(middle, INFINITY)
                                        : nextafterf(middle, 0.0f);
                levels[level]->from_f32(half, x, dtype, 17);
                for (int j = 0; j < 17; j++) {
                    uint32_t want = j % 3 == 0 ? i + (i & 1) : j % 3 == 1 ? i + 1 : i;
                    if (half[j] != want)
                        fail_msg("%s dtype %d: %a became %#x, not %#x", levels[level]->name,
                                 (int)dtype, (double)x[j], half[j], want);
                }
            }
            float big[] = {65519.9f, 65520.0f, 3.4e38f, INFINITY};
            uint16_t half[4];
            levels[level]->from_f32(half, big, dtype, 4);
            assert_true(is_bf16 || (half[0] == 0x7bff && half[1] == 0x7c00));
            assert_int_equal(half[2], is_bf16 ? 0x7f80 : 0x7c00);
            assert_int_equal(half[3], is_bf16 ? 0x7f80 : 0x7c00);
        }
    }
}

static void test_find_nonfinite(void **state)
{
    static const uint32_t sizes[] = {0, 1, 15, 16, 17, 1023, 1024, 1025, 3000};
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;

    (void)state;
    hri_rng_seed(&rng, 8);
    for (unsigned level = 0; level < n_levels; level++) {
        FOR_EACH(t, dtypes)
        {
            FOR_EACH(b, sizes)
            {
                const uint32_t n = sizes[b];
                float *x = guarded_floats(n);
                void *data = guarded_alloc(n * dtype_bytes(dtypes[t]));
                fill_normal(&rng, x, n, 100.0);
                to_dtype(data, x, dtypes[t], n);
                assert_int_equal(levels[level]->find_nonfinite(data, dtypes[t], n), n);
                for (int trial = 0; trial < 6 && n > 0; trial++) {
                    uint32_t at = trial == 0   ? 0
                                  : trial == 1 ? n - 1
                                               : (uint32_t)hri_rng_below(&rng, n);
                    uint32_t later = at + (uint32_t)hri_rng_below(&rng, n - at);
                    float saved = x[at], saved_later = x[later];
                    x[later] = INFINITY;
                    x[at] = trial % 3 == 0 ? NAN : trial % 3 == 1 ? INFINITY : -INFINITY;
                    levels[0]->from_f32(data, x, dtypes[t], n);
                    assert_int_equal(levels[level]->find_nonfinite(data, dtypes[t], n), at);
                    x[later] = saved_later;
                    x[at] = saved;
                }
                guarded_free_all();
            }
        }
    }
}

static void test_min_max(void **state)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;

    (void)state;
    hri_rng_seed(&rng, 9);
    for (unsigned level = 0; level < n_levels; level++) {
        FOR_EACH(d, dims)
        {
            FOR_EACH(b, lengths)
            {
                const uint32_t n = lengths[b], width = dims[d][0];
                float *x = guarded_floats((size_t)n * width), *min = guarded_floats(width),
                      *max = guarded_floats(width);
                fill_normal(&rng, x, (size_t)n * width, 1.0);
                levels[level]->min_max(x, n, width, min, max);
                for (uint32_t j = 0; j < width; j++) {
                    float low = INFINITY, high = -INFINITY;
                    for (uint32_t i = 0; i < n; i++) {
                        low = fminf(low, x[(size_t)i * width + j]);
                        high = fmaxf(high, x[(size_t)i * width + j]);
                    }
                    assert_true(low == min[j] && high == max[j]);
                }
                guarded_free_all();
            }
        }
    }
}

static void check_exp(const struct hri_kernels *k, const float *x, float shift, uint32_t n)
{
    float *y = guarded_floats(n);
    double want = 0.0;
    float sum = k->exp_sum(x, shift, y, n);

    for (uint32_t i = 0; i < n; i++) {
        double e = exp((double)(x[i] - shift));
        CASE("%s exp(%a)", k->name, (double)(x[i] - shift));
        CHECK_BELOW(fabs((double)y[i] - e), TOLERANCE_EXP * e + 1e-37);
        want += e;
    }
    CASE("%s exp_sum of %u", k->name, n);
    CHECK_BELOW(fabs((double)sum - want), TOLERANCE_EXP * want + 1e-36);
}

static void test_exp_sum(void **state)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;

    (void)state;
    hri_rng_seed(&rng, 10);
    for (unsigned level = 0; level < n_levels; level++) {
        const struct hri_kernels *k = levels[level];
        FOR_EACH(b, lengths)
        {
            float *x = guarded_floats(lengths[b]);
            fill_normal(&rng, x, lengths[b], 20.0);
            check_exp(k, x, 0.0f, lengths[b]);
            float same_place = k->exp_sum(x, 2.0f, x, lengths[b]);
            assert_true(same_place >= 0.0f);
            guarded_free_all();
        }
        float *x = guarded_floats(20000);
        for (int i = 0; i < 20000; i++)
            x[i] =
                -110.0f + 188.0f * (float)i / 20000.0f; /* to 78, where the sum is still finite */
        check_exp(k, x, 0.0f, 20000);
        for (int i = 0; i < 80; i++) {
            x[i] = 80.0f + 8.7f * (float)i / 80.0f;
            check_exp(k, x + i, 0.0f, 1);
        }
        const float special[] = {-INFINITY, -1e30f, 0.0f, -104.5f, 200.0f};
        float y[5];
        k->exp_sum(special, 0.0f, y, 5);
        assert_true(y[0] == 0.0f && y[1] == 0.0f && y[2] == 1.0f && y[3] <= 1e-37f && isinf(y[4]));
        guarded_free_all();
    }
}

/* Against exp_sum's definition in double, run by run. */
static void check_weigh(const struct hri_kernels *k, struct hri_rng *rng, uint32_t g, uint32_t n,
                        bool in_place)
{
    const size_t x_stride = n + 3, y_stride = in_place ? x_stride : n + 1;
    float *x = guarded_floats(g * x_stride), *y = in_place ? x : guarded_floats(g * y_stride);
    float *before = guarded_floats(g * x_stride), shift[HR_GROUP_MAX];
    float sum[HR_GROUP_MAX], square[HR_GROUP_MAX], most[HR_GROUP_MAX];
    fill_normal(rng, x, (uint32_t)(g * x_stride), 10.0);
    memcpy(before, x, g * x_stride * sizeof *x);
    if (!in_place)
        memset(y, 0x5a, g * y_stride * sizeof *y);
    for (uint32_t gh = 0; gh < g; gh++)
        shift[gh] = (float)gh - 4;
    k->weigh_rows(x, x_stride, shift, g, n, y, y_stride, sum, square, most);
    for (uint32_t gh = 0; gh < g; gh++) {
        double want = 0, squares = 0;
        float largest = -INFINITY;
        CASE("%s weigh_rows, run %u of %u rows", k->name, gh, n);
        for (uint32_t i = 0; i < n; i++) {
            float logit = before[gh * x_stride + i];
            double e = exp((double)logit - (double)shift[gh]);
            largest = fmaxf(largest, logit);
            CHECK_BELOW(fabs((double)y[gh * y_stride + i] - e), 4 * TOLERANCE_EXP * e + 1e-37);
            want += e;
            squares += e * e;
        }
        assert_true(most[gh] == largest);
        CHECK_BELOW(fabs((double)sum[gh] - want), 4 * TOLERANCE_EXP * want + 1e-36);
        CHECK_BELOW(fabs((double)square[gh] - squares), 8 * TOLERANCE_EXP * squares + 1e-36);
        for (size_t i = n; i < y_stride; i++) { /* nothing beyond a run is written */
            float as_it_was = before[gh * x_stride + i], filled;
            memset(&filled, 0x5a, sizeof filled);
            assert_memory_equal(&y[gh * y_stride + i], in_place ? &as_it_was : &filled,
                                sizeof filled);
        }
    }
    guarded_free_all();
}

static void test_weigh_rows(void **state)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;

    (void)state;
    hri_rng_seed(&rng, 12);
    for (unsigned level = 0; level < n_levels; level++)
        for (uint32_t n = 0; n < 70; n++)
            check_weigh(levels[level], &rng, 1 + n % HR_GROUP_MAX, n, n % 3 == 0);
}

static void test_max(void **state)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;

    (void)state;
    hri_rng_seed(&rng, 11);
    for (unsigned level = 0; level < n_levels; level++) {
        for (uint32_t n = 0; n < 70; n++) {
            float *x = guarded_floats(n), want = -INFINITY;
            fill_normal(&rng, x, n, 1.0);
            for (uint32_t i = 0; i < n; i++)
                want = fmaxf(want, x[i]);
            assert_true(levels[level]->max(x, n) == want);
            guarded_free_all();
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_find_nonfinite),
        cmocka_unit_test(test_min_max),
        cmocka_unit_test(test_exp_sum),
        cmocka_unit_test(test_weigh_rows),
        cmocka_unit_test(test_max),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
