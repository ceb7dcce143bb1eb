/* What every test includes: cmocka in the order it wants, and a few helpers. */
#ifndef HR_TESTS_TEST_H
#define HR_TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/status.h>

/* Fails with the library's own message when the call did not succeed. */
#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        hr_status_t assert_ok_status = (expr);                                                     \
        if (assert_ok_status != HR_OK)                                                             \
            fail_msg("%s gave %s: %s", #expr, hr_status_name(assert_ok_status), hr_last_error());  \
    } while (0)

/* The call fails with this status and its message contains the words. */
#define assert_fails(expr, expected, words)                                                        \
    do {                                                                                           \
        hr_status_t assert_fails_status = (expr);                                                  \
        if (assert_fails_status != (expected))                                                     \
            fail_msg("%s gave %s, not %s", #expr, hr_status_name(assert_fails_status), #expected); \
        if (strstr(hr_last_error(), (words)) == NULL)                                              \
            fail_msg("%s said \"%s\", which lacks \"%s\"", #expr, hr_last_error(), (words));       \
    } while (0)

/* Seed of a property test: HEADRACE_TEST_SEED, or the given one. Print it where a check fails. */
static inline uint64_t test_seed(uint64_t fallback)
{
    const char *text = getenv("HEADRACE_TEST_SEED");
    return text != NULL && text[0] != '\0' ? strtoull(text, NULL, 0) : fallback;
}

#endif
