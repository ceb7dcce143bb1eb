#include "base/fmt.h"

#include "tests/test.h"

static void check_bytes(uint64_t bytes, const char *expected)
{
    char text[16];
    assert_string_equal(hr_format_bytes(bytes, text, sizeof text), expected);
}

static void test_bytes(void **state)
{
    (void)state;
    check_bytes(0, "0 B");
    check_bytes(512, "512 B");
    check_bytes(1023, "1023 B");
    check_bytes(1024, "1 KiB");
    check_bytes(24u << 20, "24 MiB");
    check_bytes(1610612736, "1.50 GiB");
    check_bytes(12000000, "11.4 MiB");
    check_bytes((1u << 20) - 1, "1.00 MiB");
    check_bytes(UINT64_MAX, "16.0 EiB");
}

static void test_times(void **state)
{
    (void)state;
    char text[16];
    assert_string_equal(hri_format_ns(850, text, sizeof text), "850 ns");
    assert_string_equal(hri_format_ns(12345, text, sizeof text), "12.3 us");
    assert_string_equal(hri_format_ns(4560000, text, sizeof text), "4.56 ms");
    assert_string_equal(hri_format_ns(7890000000, text, sizeof text), "7.890 s");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_times),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
