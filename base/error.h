/*
 * The message of the last failure, kept per thread. It is the library's only state outside a
 * handle: a message has to survive the call that failed, and failures also happen where no handle
 * exists yet.
 */
#ifndef HRI_BASE_ERROR_H
#define HRI_BASE_ERROR_H

#include "base/status.h"

#define HRI_ERROR_BYTES_MAX 1024

/*
 * Records the message (cut at HRI_ERROR_BYTES_MAX) for hr_last_error() and returns status, so
 * that the first function that sees a failure can write `return hri_error_set(HR_ERR_IO, "read of
 * %s: %s", path, strerror(errno));`. The arguments may include hr_last_error() itself, to put a
 * prefix before it.
 */
hr_status_t hri_error_set(hr_status_t status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * Carries a message from one thread to another: a worker copies its failure with hri_error_get,
 * the thread that waits for it repeats it with hri_error_set(status, "%s", message).
 */
void hri_error_get(char *message, unsigned message_bytes);

void hri_error_clear(void);

#endif
