/* Status codes inside the library: the public list, and the habit of passing failures on. */
#ifndef HRI_BASE_STATUS_H
#define HRI_BASE_STATUS_H

#include <headrace/status.h>

/*
 * Returns the status of expr from the calling function when it is not HR_OK. Only where there is
 * nothing to undo.
 */
#define HRI_TRY(expr)                                                                              \
    do {                                                                                           \
        hr_status_t hri_try_status = (expr);                                                       \
        if (hri_try_status != HR_OK)                                                               \
            return hri_try_status;                                                                 \
    } while (0)

#endif
