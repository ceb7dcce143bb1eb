/* Files that appear whole or not at all: written beside their place, synced, renamed. */
#ifndef CLI_WHOLE_FILE_H
#define CLI_WHOLE_FILE_H

#include <stddef.h>

struct cli_bytes {
    const void *data;
    size_t n;
};

/* Says early that a file could not be written later, before minutes of work: 0, or an exit code
 * after a message. path NULL or "-" is fine. */
int cli_whole_file_check(const char *path);
/* All parts, one after the other: 0, or an exit code after a message. Links are followed; devices and
 * pipes are written in place; "-" is standard output. */
int cli_whole_file_write(const char *path, const struct cli_bytes *parts, size_t n_parts);

#endif
