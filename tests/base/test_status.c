#include "tests/test.h"

static void test_names_and_texts(void **state)
{
    (void)state;
    assert_string_equal(hr_status_name(HR_OK), "HR_OK");
    assert_string_equal(hr_status_name(HR_ERR_BUDGET), "HR_ERR_BUDGET");
    assert_int_equal(HR_ERR_INTERNAL, 19);
    for (int i = 0; i <= HR_ERR_INTERNAL; i++) {
        assert_true(strncmp(hr_status_name((hr_status_t)i), i == 0 ? "HR_OK" : "HR_ERR_", 5) == 0);
        assert_true(strlen(hr_status_text((hr_status_t)i)) > 1);
    }
}

static void test_numbers_that_are_no_status(void **state)
{
    (void)state;
    assert_string_equal(hr_status_name((hr_status_t)20), "HR_ERR_?");
    assert_string_equal(hr_status_name((hr_status_t)-1), "HR_ERR_?");
    assert_string_equal(hr_status_text((hr_status_t)12345), "not a status");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_and_texts),
        cmocka_unit_test(test_numbers_that_are_no_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
