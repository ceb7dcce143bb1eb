#include "base/error.h"

#include <pthread.h>

#include "tests/test.h"

static void test_set_and_read(void **state)
{
    (void)state;
    hri_error_clear();
    assert_string_equal(hr_last_error(), "");
    assert_int_equal(hri_error_set(HR_ERR_IO, "read of %s: %d", "x", 5), HR_ERR_IO);
    assert_string_equal(hr_last_error(), "read of x: 5");
}

static void test_prefix_of_itself(void **state)
{
    (void)state;
    hri_error_set(HR_ERR_IO, "inner");
    hri_error_set(HR_ERR_IO, "outer: %s", hr_last_error());
    assert_string_equal(hr_last_error(), "outer: inner");
}

static void test_long_message_is_cut(void **state)
{
    (void)state;
    char text[3 * HRI_ERROR_BYTES_MAX];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    hri_error_set(HR_ERR_IO, "%s", text);
    assert_int_equal(strlen(hr_last_error()), HRI_ERROR_BYTES_MAX - 1);
}

static void *other_thread(void *message)
{
    assert_string_equal(hr_last_error(), "");
    hri_error_set(HR_ERR_IO, "of the other");
    hri_error_get(message, 64);
    return NULL;
}

static void test_one_message_per_thread(void **state)
{
    (void)state;
    char carried[64] = "";
    hri_error_set(HR_ERR_IO, "of this one");
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, other_thread, carried), 0);
    pthread_join(thread, NULL);
    assert_string_equal(hr_last_error(), "of this one");
    assert_string_equal(carried, "of the other");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_and_read),
        cmocka_unit_test(test_prefix_of_itself),
        cmocka_unit_test(test_long_message_is_cut),
        cmocka_unit_test(test_one_message_per_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
