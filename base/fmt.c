#include "base/fmt.h"

#include <stdarg.h>
#include <stdio.h>

char *hr_format_bytes(uint64_t bytes, char *text, size_t text_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    uint64_t scale = 1;
    while (unit < 6 && bytes / scale >= 1024) {
        scale *= 1024;
        unit++;
    }
    /* 1023.996 KiB would print as 1024: it is a MiB then. */
    if (unit < 6 && unit > 0 && (double)bytes / (double)scale >= 1023.95) {
        scale *= 1024;
        unit++;
    }
    if (bytes % scale == 0)
        snprintf(text, text_bytes, "%llu %s", (unsigned long long)(bytes / scale), units[unit]);
    else if (bytes / scale < 10)
        snprintf(text, text_bytes, "%.2f %s", (double)bytes / (double)scale, units[unit]);
    else
        snprintf(text, text_bytes, "%.1f %s", (double)bytes / (double)scale, units[unit]);
    return text;
}

char *hri_format_ns(uint64_t ns, char *text, size_t text_bytes)
{
    if (ns < 1000)
        snprintf(text, text_bytes, "%llu ns", (unsigned long long)ns);
    else if (ns < 1000000)
        snprintf(text, text_bytes, "%.3g us", (double)ns / 1e3);
    else if (ns < 1000000000)
        snprintf(text, text_bytes, "%.3g ms", (double)ns / 1e6);
    else
        snprintf(text, text_bytes, "%.3f s", (double)ns / 1e9);
    return text;
}

void hri_text_put(struct hri_text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text->at, text->left, format, args);
    va_end(args);
    size_t used = n < 0 ? 0 : (size_t)n < text->left ? (size_t)n : text->left - 1;
    text->at += used;
    text->left -= used;
}
