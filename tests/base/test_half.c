#include "base/half.h"

#include <math.h>

#include "tests/test.h"

/* By arithmetic: sign, exponent and fraction as the standard defines them. */
static double f16_value(uint16_t half)
{
    int exponent = half >> 10 & 31;
    double fraction = half & 1023, sign = half & 0x8000 ? -1 : 1;
    if (exponent == 31)
        return fraction != 0 ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, -24);
    return sign * ldexp(1024 + fraction, exponent - 25);
}

static void test_every_f16(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t half = (uint16_t)i;
        float value = hri_f32_from_f16(half);
        double expected = f16_value(half);
        if (isnan(expected)) {
            assert_true(isnan(value));
            assert_true(isnan(hri_f32_from_f16(hri_f16_from_f32(value))));
            continue;
        }
        assert_true((double)value == expected);
        assert_int_equal(hri_f16_from_f32(value), half);
    }
}

/* Between two neighbours: the nearer one, at the middle the even one. */
static void test_f16_rounding(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 0x7c00; i++) {
        float low = hri_f32_from_f16((uint16_t)i);
        double high = i + 1 < 0x7c00 ? (double)hri_f32_from_f16((uint16_t)(i + 1)) : 65536.0;
        float middle = (float)(((double)low + high) / 2); /* exact */
        uint16_t even = (uint16_t)(i % 2 == 0 ? i : i + 1);
        assert_int_equal(hri_f16_from_f32(middle), even);
        assert_int_equal(hri_f16_from_f32(nextafterf(middle, 0)), i);
        assert_int_equal(hri_f16_from_f32(nextafterf(middle, INFINITY)), i + 1);
        assert_int_equal(hri_f16_from_f32(-middle), even | 0x8000);
    }
    assert_int_equal(hri_f16_from_f32(1e30f), 0x7c00);
    assert_int_equal(hri_f16_from_f32(1e-30f), 0);
    assert_int_equal(hri_f16_from_f32(-INFINITY), 0xfc00);
}

static void test_bf16(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t half = (uint16_t)i;
        float value = hri_f32_from_bf16(half);
        assert_int_equal(hri_f32_bits(value), i << 16);
        if (isnan(value))
            assert_true(isnan(hri_f32_from_bf16(hri_bf16_from_f32(value))));
        else
            assert_int_equal(hri_bf16_from_f32(value), half);
    }
    assert_int_equal(hri_bf16_from_f32(hri_f32_from_bits(0x3f808000)), 0x3f80); /* tie to even */
    assert_int_equal(hri_bf16_from_f32(hri_f32_from_bits(0x3f818000)), 0x3f82);
    assert_int_equal(hri_bf16_from_f32(hri_f32_from_bits(0x3f808001)), 0x3f81);
    assert_int_equal(hri_bf16_from_f32(hri_f32_from_bits(0x7f7fffff)),
                     0x7f80); /* overflow to infinity */
    assert_true(isnan(hri_f32_from_bf16(hri_bf16_from_f32(hri_f32_from_bits(0x7f800001)))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_f16),
        cmocka_unit_test(test_f16_rounding),
        cmocka_unit_test(test_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
