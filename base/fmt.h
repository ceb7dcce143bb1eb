/*
 * Numbers for people. hr_format_bytes is public; the others are for logs and reports inside the
 * library.
 */
#ifndef HRI_BASE_FMT_H
#define HRI_BASE_FMT_H

#include <headrace/parse.h>
#include <stddef.h>

/* "850 ns", "12.3 us", "4.56 ms", "7.89 s" into text (at least 16 bytes); returns text. */
char *hri_format_ns(uint64_t ns, char *text, size_t text_bytes);

/* A text that grows in a buffer of a size and is cut where that ends; terminated as long as there was room for anything. */
struct hri_text {
    char *at;
    size_t left;
};
void hri_text_put(struct hri_text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
