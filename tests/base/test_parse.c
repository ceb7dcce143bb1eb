#include "base/parse.h"

#include <math.h>
#include <stdbool.h>

#include "base/rng.h"
#include "tests/test.h"

static void check_bytes(const char *text, uint64_t expected)
{
    uint64_t bytes = 0;
    hr_status_t status = hr_parse_bytes(text, &bytes);
    if (status != HR_OK || bytes != expected)
        fail_msg("'%s' gave %s, %llu, not %llu", text, hr_status_name(status),
                 (unsigned long long)bytes, (unsigned long long)expected);
}

static void test_bytes(void **state)
{
    (void)state;
    check_bytes("8388608", 8388608);
    check_bytes("8MB", 8000000);
    check_bytes("8MiB", 8388608);
    check_bytes("8mib", 8388608);
    check_bytes("8Mi", 8388608);
    check_bytes("24 MiB", 24u << 20);
    check_bytes(" 24 MiB ", 24u << 20);
    check_bytes("1.5GiB", 1610612736);
    check_bytes("0.1kB", 100);
    check_bytes("0", 0);
    check_bytes("7B", 7);
    check_bytes("3k", 3000);
    check_bytes("2T", 2000000000000u);
    check_bytes("18446744073709551615", UINT64_MAX);
    check_bytes("9007199254740993", 9007199254740993u); /* not exact in a double */
    check_bytes("16777215TiB", UINT64_MAX - (1ull << 40) + 1);
}

static void test_bytes_that_are_none(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",      " ",       "MiB",   "-1",      "+1",   "1.5",  "1.5B", ".5MiB",
        "1.MiB", "1..5MiB", "8MiBx", "8 8",     "8XiB", "0x10", "1e6",  "nan",
        "inf",   "1,5MiB",  "8M iB", "8 MiB 9", "--1",  "1-",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        uint64_t bytes = 77;
        if (hr_parse_bytes(texts[i], &bytes) != HR_ERR_INVALID)
            fail_msg("'%s' was taken as %llu bytes", texts[i], (unsigned long long)bytes);
        assert_int_equal(bytes, 77);
    }
    uint64_t bytes;
    assert_fails(hr_parse_bytes("8XB", &bytes), HR_ERR_INVALID,
                 "'8XB' is not a size; write it like 8388608, 8MB or 8MiB");
    assert_fails(hr_parse_bytes("18446744073709551616", &bytes), HR_ERR_INVALID, "too large");
    assert_fails(hr_parse_bytes("99999999999999999999999999GiB", &bytes), HR_ERR_INVALID,
                 "too large");
    assert_fails(hr_parse_bytes("16777216TiB", &bytes), HR_ERR_INVALID, "too large");
    assert_fails(hr_parse_bytes(NULL, &bytes), HR_ERR_INVALID, "not a size");
}

static void check_fraction(const char *text, double expected)
{
    double fraction = -1;
    hr_status_t status = hr_parse_fraction(text, &fraction);
    if (status != HR_OK || fraction != expected)
        fail_msg("'%s' gave %s, %.17g, not %.17g", text, hr_status_name(status), fraction,
                 expected);
}

static void test_fractions(void **state)
{
    (void)state;
    check_fraction("1%", 0.01);
    check_fraction("0.01", 0.01);
    check_fraction("0.5%", 0.005);
    check_fraction("0.5 %", 0.005);
    check_fraction("7%", 0.07);
    check_fraction("100%", 1);
    check_fraction("1", 1);
    check_fraction("0", 0);
    check_fraction("0.0", 0);
    check_fraction("33.3%", 0.333);
}

static void test_fractions_that_are_none(void **state)
{
    (void)state;
    static const char *const texts[] = {"",     "%",   "-1%",  "1%%",  "1% x", "nan",
                                        "1e-2", "0x1", "101%", "1.01", "inf",  "."};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        double fraction = 77;
        if (hr_parse_fraction(texts[i], &fraction) != HR_ERR_INVALID)
            fail_msg("'%s' was taken as %g", texts[i], fraction);
        assert_true(fraction == 77);
    }
    double fraction;
    assert_fails(hr_parse_fraction("150%", &fraction), HR_ERR_INVALID, "at most 100%");
}

static void test_durations(void **state)
{
    (void)state;
    uint64_t ns;
    assert_ok(hr_parse_duration_ns("250us", &ns));
    assert_int_equal(ns, 250000);
    assert_ok(hr_parse_duration_ns("1.5s", &ns));
    assert_int_equal(ns, 1500000000);
    assert_ok(hr_parse_duration_ns("3 min", &ns));
    assert_int_equal(ns, 180000000000);
    assert_ok(hr_parse_duration_ns("0ms", &ns));
    assert_int_equal(ns, 0);
    assert_fails(hr_parse_duration_ns("5", &ns), HR_ERR_INVALID, "duration");
    assert_fails(hr_parse_duration_ns("-5s", &ns), HR_ERR_INVALID, "duration");
    assert_fails(hr_parse_duration_ns("6000000h", &ns), HR_ERR_INVALID, "too large");
}

static void test_counts(void **state)
{
    (void)state;
    uint64_t count = 0;
    assert_ok(hr_parse_count("7500", 1, 10000, &count));
    assert_int_equal(count, 7500);
    assert_ok(hr_parse_count("18446744073709551615", 0, UINT64_MAX, &count));
    assert_true(count == UINT64_MAX);
    assert_fails(hr_parse_count("0", 1, 9, &count), HR_ERR_INVALID, "1 to 9");
    assert_fails(hr_parse_count("18446744073709551616", 0, UINT64_MAX, &count), HR_ERR_INVALID,
                 "too large");
    assert_fails(hr_parse_count("-1", 0, 9, &count), HR_ERR_INVALID, "whole number");
    assert_fails(hr_parse_count("1.5", 0, 9, &count), HR_ERR_INVALID, "whole number");
    assert_fails(hr_parse_count("1x", 0, 9, &count), HR_ERR_INVALID, "whole number");
    assert_fails(hr_parse_count("", 0, 9, &count), HR_ERR_INVALID, "whole number");
    assert_fails(hr_parse_count(NULL, 0, 9, &count), HR_ERR_INVALID, "whole number");
}

static void test_reals(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double value;
    } cases[] = {{"0.7", 0.7},   {"-2.5", -2.5}, {"+1", 1},    {"1e-3", 1e-3},
                 {"2.5E2", 250}, {" 3 ", 3},     {"1e-999", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double value = 77;
        assert_ok(hr_parse_real(cases[i].text, &value));
        assert_true(value == cases[i].value);
    }
    static const char *const texts[] = {"",   "-",     "nan", "inf",    "1e", "1e+",
                                        "1x", "0x1p3", "--1", "1e9999", "1 2"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        double value = 77;
        if (hr_parse_real(texts[i], &value) != HR_ERR_INVALID)
            fail_msg("'%s' was taken as %g", texts[i], value);
    }
}

static void test_lists(void **state)
{
    (void)state;
    char item[HRI_PARSE_ITEM_BYTES_MAX];
    const char *cursor = "full, quest ,headrace";
    assert_ok(hri_parse_list_next(&cursor, item));
    assert_string_equal(item, "full");
    assert_ok(hri_parse_list_next(&cursor, item));
    assert_string_equal(item, "quest");
    assert_ok(hri_parse_list_next(&cursor, item));
    assert_string_equal(item, "headrace");
    assert_null(cursor);
    static const char *const bad[] = {"", " ", ",a", " ,"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        cursor = bad[i];
        assert_fails(hri_parse_list_next(&cursor, item), HR_ERR_INVALID, "empty item");
    }
    cursor = "a,";
    assert_ok(hri_parse_list_next(&cursor, item));
    assert_fails(hri_parse_list_next(&cursor, item), HR_ERR_INVALID, "empty item");
    char text[200];
    memset(text, 'x', sizeof text);
    text[64] = '\0';
    cursor = text;
    assert_fails(hri_parse_list_next(&cursor, item), HR_ERR_INVALID, "63 characters");
    text[63] = '\0';
    cursor = text;
    assert_ok(hri_parse_list_next(&cursor, item));
}

/* Arbitrary text is refused or understood, never both, and outputs change only with HR_OK. */
static void test_arbitrary_text(void **state)
{
    (void)state;
    static const char alphabet[] = "0123456789..%%kKmMgGtTiIbBsuneE+- ,x\t\n\xc3";
    uint64_t seed = test_seed(11);
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    for (int i = 0; i < 200000; i++) {
        char text[12], item[HRI_PARSE_ITEM_BYTES_MAX];
        size_t length = hri_rng_below(&rng, sizeof text);
        for (size_t c = 0; c < length; c++)
            text[c] = alphabet[hri_rng_below(&rng, sizeof alphabet - 1)];
        text[length] = '\0';
        uint64_t whole = 77;
        double real = 77;
        const char *cursor = text;
        bool fine = true;
        if (hr_parse_bytes(text, &whole) != HR_OK)
            fine = fine && whole == 77;
        whole = 77;
        if (hr_parse_duration_ns(text, &whole) != HR_OK)
            fine = fine && whole == 77;
        if (hr_parse_fraction(text, &real) == HR_OK)
            fine = fine && real >= 0 && real <= 1;
        if (hr_parse_real(text, &real) == HR_OK)
            fine = fine && isfinite(real);
        while (cursor != NULL && hri_parse_list_next(&cursor, item) == HR_OK)
            fine = fine && item[0] != '\0' && strchr(item, ',') == NULL;
        if (!fine)
            fail_msg("seed %llu, turn %d: '%s'", (unsigned long long)seed, i, text);
    }
}

static void test_formatted_sizes_come_back(void **state)
{
    (void)state;
    struct hri_rng rng;
    hri_rng_seed(&rng, test_seed(12));
    for (int i = 0; i < 20000; i++) {
        uint64_t bytes = hri_rng_u64(&rng) >> (20 + hri_rng_below(&rng, 44)), back = 0;
        char text[16];
        assert_ok(hr_parse_bytes(hr_format_bytes(bytes, text, sizeof text), &back));
        double error = fabs((double)back - (double)bytes) / ((double)bytes + 1);
        if (error > 0.006)
            fail_msg("%llu became '%s' and came back as %llu", (unsigned long long)bytes, text,
                     (unsigned long long)back);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),          cmocka_unit_test(test_bytes_that_are_none),
        cmocka_unit_test(test_fractions),      cmocka_unit_test(test_fractions_that_are_none),
        cmocka_unit_test(test_durations),      cmocka_unit_test(test_counts),
        cmocka_unit_test(test_reals),          cmocka_unit_test(test_lists),
        cmocka_unit_test(test_arbitrary_text), cmocka_unit_test(test_formatted_sizes_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
