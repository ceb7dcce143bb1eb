#include "cli/whole_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/out.h"

/* Devices and pipes are written in place: a file renamed over one would replace it. So is a link
 * that leads to no name, such as /dev/stderr when standard error is a deleted file. */
static bool is_in_place(const char *path)
{
    struct stat st;
    char resolved[PATH_MAX];
    if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode) && !realpath(path, resolved))
        return true;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
}

/* Where a link leads (/dev/stderr is one): the file there is what must be replaced, not the
 * link. */
static const char *followed(const char *path, char *resolved)
{
    return realpath(path, resolved) ? resolved : path;
}

/* A file of its own beside path; -1 with errno. */
static int open_beside(const char *path, char *temp)
{
    if (snprintf(temp, PATH_MAX, "%s.XXXXXX", path) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return mkstemp(temp);
}

int cli_whole_file_check(const char *path)
{
    char temp[PATH_MAX], resolved[PATH_MAX];
    struct stat st;
    if (!path || strcmp(path, "-") == 0 || is_in_place(path))
        return 0;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return cli_fail("cannot write '%s': %s", path, strerror(EISDIR));
    int fd = open_beside(followed(path, resolved), temp);
    if (fd < 0)
        return cli_fail("cannot write '%s': %s", path, strerror(errno));
    close(fd);
    unlink(temp);
    return 0;
}

static int write_all(int fd, const char *text, size_t n)
{
    while (n) {
        ssize_t wrote = write(fd, text, n);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return -1;
        text += wrote;
        n -= (size_t)wrote;
    }
    return 0;
}

static int write_parts(int fd, const struct cli_bytes *parts, size_t n_parts)
{
    int failed = 0;
    for (size_t i = 0; i < n_parts && !failed; i++)
        failed = write_all(fd, parts[i].data, parts[i].n);
    return failed;
}

static int write_renamed(const char *path, const struct cli_bytes *parts, size_t n_parts)
{
    char temp[PATH_MAX], resolved[PATH_MAX];
    path = followed(path, resolved);
    int fd = open_beside(path, temp);
    if (fd < 0)
        return -1;
    mode_t mask = umask(0);
    umask(mask);
    if (write_parts(fd, parts, n_parts) < 0 || fchmod(fd, 0666 & ~mask) < 0 || fsync(fd) < 0)
        goto err_unlink;
    int failed = close(fd);
    fd = -1;
    if (failed || rename(temp, path) < 0)
        goto err_unlink;
    return 0;

err_unlink:;
    int error = errno;
    if (fd >= 0)
        close(fd);
    unlink(temp);
    errno = error;
    return -1;
}

static int write_in_place(const char *path, const struct cli_bytes *parts, size_t n_parts)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return -1;
    int failed = write_parts(fd, parts, n_parts), error = errno;
    failed |= close(fd);
    errno = failed && error ? error : errno;
    return failed;
}

int cli_whole_file_write(const char *path, const struct cli_bytes *parts, size_t n_parts)
{
    if (strcmp(path, "-") == 0) {
        for (size_t i = 0; i < n_parts; i++)
            fwrite(parts[i].data, 1, parts[i].n,
                   stdout); /* cli_out_close tells whether it arrived */
        return 0;
    }
    if ((is_in_place(path) ? write_in_place : write_renamed)(path, parts, n_parts) < 0)
        return cli_fail("cannot write '%s': %s", path, strerror(errno));
    return 0;
}
