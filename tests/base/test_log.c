#include "base/log.h"

#include "tests/test.h"

struct seen {
    int count, level;
    char message[HRI_LOG_BYTES_MAX];
};

static void record(void *ctx, int level, const char *message)
{
    struct seen *seen = ctx;
    seen->count++;
    seen->level = level;
    snprintf(seen->message, sizeof seen->message, "%s", message);
}

static void test_levels(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct hri_log log = {record, &seen, HRI_LOG_INFO};
    hri_log_info(&log, "block %d", 7);
    assert_int_equal(seen.count, 1);
    assert_int_equal(seen.level, HRI_LOG_INFO);
    assert_string_equal(seen.message, "block 7");
    hri_log_debug(&log, "not seen");
    assert_int_equal(seen.count, 1);
    hri_log_error(&log, "seen");
    assert_int_equal(seen.count, 2);
    assert_true(hri_log_on(&log, HRI_LOG_WARN));
    assert_false(hri_log_on(&log, HRI_LOG_TRACE));
}

static void test_nowhere_to_log(void **state)
{
    (void)state;
    struct hri_log silent = {NULL, NULL, HRI_LOG_TRACE};
    hri_log_error(&silent, "dropped");
    hri_log_error(NULL, "dropped");
    assert_false(hri_log_on(NULL, HRI_LOG_ERROR));
}

static void test_level_names(void **state)
{
    (void)state;
    assert_string_equal(hri_log_level_name(HRI_LOG_WARN), "warn");
    assert_string_equal(hri_log_level_name(99), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_nowhere_to_log),
        cmocka_unit_test(test_level_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
