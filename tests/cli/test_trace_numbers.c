/* Half floats of traces: every half there and back, and rounding against the library's own conversion. */
#include "tests/test.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "cli/trace.h"

static void test_every_half(void **state)
{
    (void)state;
    for (uint32_t half = 0; half < 65536; half++) {
        float value = cli_float_from_half((uint16_t)half), want = hri_f32_from_f16((uint16_t)half);
        if ((half & 0x7c00u) == 0x7c00u && (half & 0x3ffu)) {
            assert_true(isnan(value));
            continue;
        }
        assert_memory_equal(&value, &want, sizeof value);
        assert_int_equal(cli_half_from_float(value), half);
    }
}

/* Exponents from far below the smallest half to far above the largest, and ties. */
static void test_rounding(void **state)
{
    (void)state;
    uint64_t x = 88172645463325252u;
    for (uint32_t i = 0; i < 4000000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        uint32_t bits = (uint32_t)x;
        float value;
        bits = (bits & 0x807fffffu) | (90 + bits % 60) << 23;
        if (i % 3 == 0)
            bits &= 0xfffff000u; /* half-way cases */
        memcpy(&value, &bits, sizeof value);
        if (cli_half_from_float(value) != hri_f16_from_f32(value))
            fail_msg("%a: %04x, not %04x", (double)value, cli_half_from_float(value),
                     hri_f16_from_f32(value));
    }
    assert_int_equal(cli_half_from_float(65519.0f), 0x7bff);
    assert_int_equal(cli_half_from_float(65520.0f), 0x7c00);
    assert_int_equal(cli_half_from_float(-INFINITY), 0xfc00);
    assert_true((cli_half_from_float(NAN) & 0x7c00u) == 0x7c00u &&
                (cli_half_from_float(NAN) & 0x3ffu));
}

static void test_folder_names(void **state)
{
    static const char *const pairs[][2] = {{"a", "a"},      {"a/", "a"},   {"a/b", "b"},
                                           {"/x/b//", "b"}, {"../q", "q"}, {"/", "/"}};
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        char *name = cli_folder_name(pairs[i][0]);
        assert_string_equal(name, pairs[i][1]);
        free(name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_folder_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
