/*
 * Logging through a callback. A struct hri_log belongs to a handle and is passed around by
 * pointer; the library prints nothing by itself. Messages are lower case, one line, without a
 * newline.
 */
#ifndef HRI_BASE_LOG_H
#define HRI_BASE_LOG_H

#include <stdarg.h>
#include <stddef.h>

enum hri_log_level {
    HRI_LOG_ERROR = 0,
    HRI_LOG_WARN = 1,
    HRI_LOG_INFO = 2,
    HRI_LOG_DEBUG = 3,
    HRI_LOG_TRACE = 4,
};

#define HRI_LOG_BYTES_MAX 1024

/* Called on the thread that logs; message is valid only during the call. */
typedef void (*hri_log_fn)(void *ctx, int level, const char *message);

struct hri_log {
    hri_log_fn fn; /* NULL: everything is dropped */
    void *ctx;
    int level_max; /* enum hri_log_level; messages above it are dropped before they are formatted */
};

/*
 * True where a message of this level would be seen: guards work that is only done for a message.
 * log may be NULL.
 */
static inline int hri_log_on(const struct hri_log *log, int level)
{
    return log != NULL && log->fn != NULL && level <= log->level_max;
}

void hri_log_write(const struct hri_log *log, int level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define hri_log_error(log, ...) hri_log_write((log), HRI_LOG_ERROR, __VA_ARGS__)
#define hri_log_warn(log, ...)  hri_log_write((log), HRI_LOG_WARN, __VA_ARGS__)
#define hri_log_info(log, ...)  hri_log_write((log), HRI_LOG_INFO, __VA_ARGS__)
#define hri_log_debug(log, ...) hri_log_write((log), HRI_LOG_DEBUG, __VA_ARGS__)
#define hri_log_trace(log, ...) hri_log_write((log), HRI_LOG_TRACE, __VA_ARGS__)

/* "error", "warn", "info", "debug", "trace" */
const char *hri_log_level_name(int level);

#endif
