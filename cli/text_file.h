/* Texts to read: whole files, checked to be UTF-8. */
#ifndef CLI_TEXT_FILE_H
#define CLI_TEXT_FILE_H

#include <stdbool.h>
#include <stddef.h>

#define CLI_TEXT_BYTES_MAX ((size_t)1 << 30)

/* The file's bytes and a '\0' behind them; "-" is standard input. A byte-order mark at the start
 * is dropped. 0, or an exit code after a message that names the file (and the offset of the
 * first byte that is not UTF-8). The caller frees *text_out. */
int cli_text_read(const char *path, char **text_out, size_t *bytes_out);

/* Offset of the first byte that is not part of well-formed UTF-8, or n. */
size_t cli_utf8_check(const char *text, size_t n);

#endif
