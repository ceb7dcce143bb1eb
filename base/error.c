#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[HRI_ERROR_BYTES_MAX];

hr_status_t hri_error_set(hr_status_t status, const char *format, ...)
{
    /* Formatted aside, because the arguments may point at the message that is being replaced. */
    char message[HRI_ERROR_BYTES_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (length < 0)
        message[0] = '\0';
    memcpy(last_error, message, strlen(message) + 1);
    return status;
}

void hri_error_get(char *message, unsigned message_bytes)
{
    snprintf(message, message_bytes, "%s", last_error);
}

void hri_error_clear(void)
{
    last_error[0] = '\0';
}

const char *hr_last_error(void)
{
    return last_error;
}
