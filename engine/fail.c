#include "engine/fail.h"

#include <stdarg.h>
#include <stdio.h>

#define LINE_BYTES 512

static _Thread_local char last_line[LINE_BYTES];

hr_status_t hre_fail(hr_status_t status, const char *format, ...)
{
    /* Formatted aside first: an argument may be the last line itself. */
    char line[LINE_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    snprintf(last_line, sizeof(last_line), "%s", line);
    return status;
}

hr_status_t hre_fail_library(hr_status_t status, const char *what)
{
    const char *line = hr_last_error();

    return hre_fail(status, "%s: %s", what, line[0] ? line : hr_status_text(status));
}

const char *hre_last_error(void)
{
    return last_line;
}
