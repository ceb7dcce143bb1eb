#include "cli/text_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/out.h"

/* Length of the well-formed sequence that starts at p (n bytes left), or 0. Table 3-7 of the
 * Unicode standard. */
static size_t utf8_length(const unsigned char *p, size_t n)
{
    unsigned char c = p[0];
    if (c < 0x80)
        return 1;
    size_t length = c >= 0xc2 && c <= 0xdf   ? 2
                    : (c & 0xf0) == 0xe0     ? 3
                    : c >= 0xf0 && c <= 0xf4 ? 4
                                             : 0;
    if (length == 0 || length > n)
        return 0;
    unsigned char low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    unsigned char high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < low || p[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    }
    return length;
}

size_t cli_utf8_check(const char *text, size_t n)
{
    size_t at = 0;
    while (at < n) {
        size_t length = utf8_length((const unsigned char *)text + at, n - at);
        if (length == 0)
            break;
        at += length;
    }
    return at;
}

/* All bytes of fd; NULL with errno. */
static char *read_all(int fd, size_t *bytes_out)
{
    size_t room = 1 << 16, n = 0;
    char *text = malloc(room);
    while (text) {
        ssize_t got = read(fd, text + n, room - n - 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            break;
        if (got == 0) {
            text[n] = '\0';
            *bytes_out = n;
            return text;
        }
        n += (size_t)got;
        if (n > CLI_TEXT_BYTES_MAX) {
            errno = EFBIG;
            break;
        }
        if (room - n > 1)
            continue;
        char *larger = realloc(text, room *= 2);
        if (!larger)
            break;
        text = larger;
    }
    free(text);
    return NULL;
}

static int open_text(const char *path)
{
    struct stat st;
    int fd = strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        close(fd);
        errno = EISDIR;
        return -1;
    }
    return fd;
}

int cli_text_read(const char *path, char **text_out, size_t *bytes_out)
{
    static const char mark[] = "\xef\xbb\xbf";
    size_t n = 0;
    int fd = open_text(path);
    if (fd < 0)
        return cli_fail("cannot read '%s': %s", path, strerror(errno));
    char *text = read_all(fd, &n);
    int error = errno;
    close(fd);
    if (!text)
        return cli_fail("cannot read '%s': %s", path, strerror(error));
    size_t bad = cli_utf8_check(text, n);
    if (bad < n) {
        unsigned byte = (unsigned char)text[bad];
        free(text);
        return cli_fail("'%s' is not UTF-8: byte 0x%02x at offset %zu", path, byte, bad);
    }
    if (n >= 3 && memcmp(text, mark, 3) == 0) {
        memmove(text, text + 3, n - 3 + 1);
        n -= 3;
    }
    if (n == 0) {
        free(text);
        return cli_fail("'%s' is empty", path);
    }
    *text_out = text;
    *bytes_out = n;
    return 0;
}
