/*
 * Status codes: what every function of the library that can fail returns.
 *
 * A code says what kind of thing went wrong; hr_last_error() says exactly what, in one line, for
 * the last failure on the calling thread. Codes never change their number; new ones are added at
 * the end.
 */
#ifndef HEADRACE_STATUS_H
#define HEADRACE_STATUS_H

#ifndef HR_API
#define HR_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* X(code, number, text) */
#define HR_STATUS_LIST(X)                                                                          \
    X(HR_OK, 0, "ok")                                                                              \
    X(HR_ERR_INVALID, 1, "bad argument")                                                           \
    X(HR_ERR_SHAPE, 2, "shape or stride does not fit")                                             \
    X(HR_ERR_DTYPE, 3, "element type does not fit")                                                \
    X(HR_ERR_NONFINITE, 4, "not a finite number")                                                  \
    X(HR_ERR_NOMEM, 5, "out of memory")                                                            \
    X(HR_ERR_BUDGET, 6, "over a budget that was set")                                              \
    X(HR_ERR_FULL, 7, "full, try again")                                                           \
    X(HR_ERR_IO, 8, "input or output failed")                                                      \
    X(HR_ERR_CORRUPT, 9, "data is corrupt")                                                        \
    X(HR_ERR_NOTFOUND, 10, "not found")                                                            \
    X(HR_ERR_EXISTS, 11, "exists already")                                                         \
    X(HR_ERR_UNSUPPORTED, 12, "not supported here")                                                \
    X(HR_ERR_STATE, 13, "not possible in this state")                                              \
    X(HR_ERR_VERSION, 14, "version does not fit")                                                  \
    X(HR_ERR_BUSY, 15, "in use")                                                                   \
    X(HR_ERR_TIMEOUT, 16, "took too long")                                                         \
    X(HR_ERR_DEVICE, 17, "the device failed")                                                      \
    X(HR_ERR_CANCELED, 18, "canceled")                                                             \
    X(HR_ERR_INTERNAL, 19, "internal error")

typedef enum hr_status {
#define HR_STATUS_ENUM(code, number, text) code = number,
    HR_STATUS_LIST(HR_STATUS_ENUM)
#undef HR_STATUS_ENUM
} hr_status_t;

/*
 * The code's own name, such as "HR_ERR_IO", or "HR_ERR_?" for a number that is no status. Never
 * NULL.
 */
HR_API const char *hr_status_name(hr_status_t status);

/* What the code means, in a few words and lower case. Never NULL. */
HR_API const char *hr_status_text(hr_status_t status);

/*
 * The message of the last failure on the calling thread, or "" if there was none. Valid until the
 * next call into the library on the same thread. Successful calls leave it alone, so look at it
 * only after a failure.
 */
HR_API const char *hr_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
