/* The engine's own last error: one line of text per thread, set by the first function that sees
 * what is wrong. */
#ifndef HRE_FAIL_H
#define HRE_FAIL_H

#include <headrace/headrace.h>

/* Keeps the formatted line for hre_last_error() and returns status, so that "return hre_fail(...)"
 * is one line. */
hr_status_t hre_fail(hr_status_t status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The same for a call into the library that failed: what was being done, then the library's own
 * line. */
hr_status_t hre_fail_library(hr_status_t status, const char *what);

/* The calling thread's last failure of any hre_ function, "" if there was none. Valid until its
 * next failing call. */
const char *hre_last_error(void);

#endif
