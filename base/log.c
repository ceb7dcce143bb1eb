#include "base/log.h"

#include <stdio.h>

void hri_log_write(const struct hri_log *log, int level, const char *format, ...)
{
    if (!hri_log_on(log, level))
        return;
    char message[HRI_LOG_BYTES_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (length >= 0)
        log->fn(log->ctx, level, message);
}

const char *hri_log_level_name(int level)
{
    static const char *const names[] = {"error", "warn", "info", "debug", "trace"};
    return level >= 0 && level <= HRI_LOG_TRACE ? names[level] : "?";
}
