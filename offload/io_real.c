#include "offload/io_ops.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "offload/io_ring.h"

static int real_open_temp(void *ctx, const char *dir, bool direct)
{
    (void)ctx;
    int flags = O_CLOEXEC | (direct ? O_DIRECT : 0);
    int fd = open(dir, O_TMPFILE | O_RDWR | O_EXCL | flags, 0600);
    /* Kernels and file systems without O_TMPFILE answer in three ways; a folder that is missing
     * stays an error. */
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT))
        return fd >= 0 ? fd : -errno;
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/.headrace-XXXXXX", dir);
    if (length < 0 || (size_t)length >= sizeof path)
        return -ENAMETOOLONG;
    fd = mkostemp(path, flags);
    if (fd < 0)
        return -errno;
    if (unlink(path) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

static int real_close_file(void *ctx, int fd)
{
    (void)ctx;
    return close(fd) == 0 ? 0 : -errno;
}

/* statx with STATX_DIOALIGN; both alignments 0 where the C library or the kernel is older. */
static void query_dio_align(int fd, struct hri_io_stat *stat_out)
{
#ifdef STATX_DIOALIGN
    struct statx info;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) != 0 ||
        !(info.stx_mask & STATX_DIOALIGN))
        return;
    stat_out->dio_memory_align = info.stx_dio_mem_align;
    stat_out->dio_offset_align = info.stx_dio_offset_align;
#else
    (void)fd;
    (void)stat_out;
#endif
}

static int real_stat_file(void *ctx, int fd, struct hri_io_stat *stat_out)
{
    (void)ctx;
    struct stat file;
    struct statfs fs;
    if (fstat(fd, &file) != 0 || fstatfs(fd, &fs) != 0)
        return -errno;
    *stat_out = (struct hri_io_stat){
        .physical_bytes = (uint64_t)file.st_blocks * 512u,
        .free_bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize,
        .fs_magic = (uint64_t)fs.f_type & 0xffffffffu,
        .file_bytes = (uint64_t)file.st_size,
        .device = (uint64_t)file.st_dev,
        .inode = (uint64_t)file.st_ino,
    };
    query_dio_align(fd, stat_out);
    return 0;
}

static int real_allocate(void *ctx, int fd, uint64_t offset, uint64_t bytes)
{
    (void)ctx;
    return fallocate(fd, 0, (off_t)offset, (off_t)bytes) == 0 ? 0 : -errno;
}

static ssize_t real_readv(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset)
{
    (void)ctx;
    ssize_t n = preadv(fd, iov, n_iov, (off_t)offset);
    return n >= 0 ? n : -errno;
}

static ssize_t real_writev(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset)
{
    (void)ctx;
    ssize_t n = pwritev(fd, iov, n_iov, (off_t)offset);
    return n >= 0 ? n : -errno;
}

static ssize_t real_readv_cached(void *ctx, int fd, const struct iovec *iov, int n_iov,
                                 uint64_t offset)
{
    (void)ctx;
    ssize_t n = preadv2(fd, iov, n_iov, (off_t)offset, RWF_NOWAIT);
    return n >= 0 ? n : -errno;
}

static int real_folder_open(void *ctx, const char *path, bool make, bool *made_out)
{
    (void)ctx;
    char name[4096]; /* without slashes at its end, through which the kernel would follow a link */
    size_t length = strlen(path);
    if (length >= sizeof name)
        return -ENAMETOOLONG;
    memcpy(name, path, length + 1);
    while (length > 1 && name[length - 1] == '/')
        name[--length] = '\0';
    bool made = make && mkdir(name, 0700) == 0;
    if (make && !made && errno != EEXIST)
        return -errno;
    if (made_out != NULL)
        *made_out = made;
    int fd = open(name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat info;
    if (fd < 0 && errno == ENOTDIR)
        return lstat(name, &info) == 0 && S_ISLNK(info.st_mode) ? -ELOOP : -ENOTDIR;
    return fd >= 0 ? fd : -errno;
}

static bool is_one_of(const char *names, const char *name)
{
    for (size_t n = strlen(name); *names != '\0'; names += strcspn(names, "/")) {
        names += *names == '/';
        if (strncmp(names, name, n) == 0 && (names[n] == '/' || names[n] == '\0'))
            return true;
    }
    return false;
}

static int real_folder_alone(void *ctx, int folder, const char *names)
{
    (void)ctx;
    int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    size_t ours = 0, others = 0;
    if (d == NULL) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return -error;
    }
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        bool is_dots = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
        bool is_ours = is_one_of(names, e->d_name);
        ours += is_ours;
        others += !is_dots && !is_ours;
    }
    closedir(d);
    return ours > 0 && others == 0;
}

/* By way of itself, as the path may mean another one by now. */
static int real_folder_remove(void *ctx, int folder, const char *path)
{
    (void)ctx;
    size_t end = strlen(path), begin;
    while (end > 0 && path[end - 1] == '/')
        end--;
    for (begin = end; begin > 0 && path[begin - 1] != '/';)
        begin--;
    char name[260];
    int n = snprintf(name, sizeof name, "../%.*s", (int)(end - begin), path + begin);
    if (n < 0 || (size_t)n >= sizeof name)
        return -ENAMETOOLONG;
    return unlinkat(folder, name, AT_REMOVEDIR) == 0 ? 0 : -errno;
}

/* Names are ours and have no slash; what stands under one may be anybody's. */
static int plain_file(int fd)
{
    struct stat info;
    if (fd < 0)
        return -errno;
    int error = fstat(fd, &info) != 0 ? errno : S_ISREG(info.st_mode) ? 0 : EMEDIUMTYPE;
    if (error == 0)
        return fd;
    close(fd);
    return -error;
}

static int real_file_open(void *ctx, int folder, const char *name, bool create)
{
    (void)ctx;
    int flags = create ? O_RDWR | O_CREAT | O_EXCL : O_RDONLY | O_NONBLOCK;
    return plain_file(openat(folder, name, flags | O_NOFOLLOW | O_CLOEXEC, 0600));
}

static int real_file_rename(void *ctx, int folder, const char *from, const char *to)
{
    (void)ctx;
    return renameat(folder, from, folder, to) == 0 ? 0 : -errno;
}

static int real_file_remove(void *ctx, int folder, const char *name)
{
    (void)ctx;
    return unlinkat(folder, name, 0) == 0 ? 0 : -errno;
}

static int real_sync_file(void *ctx, int fd)
{
    (void)ctx;
    return fsync(fd) == 0 ? 0 : -errno;
}

static int real_set_direct(void *ctx, int fd, bool direct)
{
    (void)ctx;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    flags = direct ? flags | O_DIRECT : flags & ~O_DIRECT;
    return fcntl(fd, F_SETFL, flags) == 0 ? 0 : -errno;
}

static void real_write_back(void *ctx, int fd, uint64_t offset, uint64_t bytes)
{
    (void)ctx;
    (void)sync_file_range(fd, (off64_t)offset, (off64_t)bytes, SYNC_FILE_RANGE_WRITE);
}

static int holder_of(int fd)
{
    char text[24] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    return n > 0 ? (int)strtol(text, NULL, 10) : 0;
}

/* True if the name still stands for what fd has locked: its holder may have removed it before we came. */
static bool still_named(int fd, int folder, const char *name)
{
    struct stat ours, named;
    return fstat(fd, &ours) == 0 && fstatat(folder, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
}

#define LOCK_TRIES 8

static int real_file_lock(void *ctx, int folder, const char *name, int *holder_out)
{
    (void)ctx;
    *holder_out = 0;
    for (int i = 0; i < LOCK_TRIES; i++) {
        int fd = plain_file(
            openat(folder, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
        if (fd < 0)
            return fd;
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            int error = errno == EWOULDBLOCK ? EBUSY : errno;
            *holder_out = holder_of(fd);
            close(fd);
            return -error;
        }
        char text[24];
        int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
        if (still_named(fd, folder, name) && ftruncate(fd, 0) == 0 &&
            pwrite(fd, text, (size_t)n, 0) == n)
            return fd;
        close(fd);
    }
    return -EAGAIN;
}

static const struct hri_io_ops real_ops = {
    .open_temp = real_open_temp,
    .close_file = real_close_file,
    .stat_file = real_stat_file,
    .allocate = real_allocate,
    .readv = real_readv,
    .writev = real_writev,
    .readv_cached = real_readv_cached,
    .folder_open = real_folder_open,
    .folder_alone = real_folder_alone,
    .folder_remove = real_folder_remove,
    .file_open = real_file_open,
    .file_rename = real_file_rename,
    .file_remove = real_file_remove,
    .sync_file = real_sync_file,
    .set_direct = real_set_direct,
    .write_back = real_write_back,
    .file_lock = real_file_lock,
    .ring_create = hri_io_ring_create,
    .ring_destroy = hri_io_ring_destroy,
    .ring_register = hri_io_ring_register,
    .ring_push = hri_io_ring_push,
    .ring_enter = hri_io_ring_enter,
    .ring_reap = hri_io_ring_reap,
};

const struct hri_io_ops *hri_io_real(void)
{
    return &real_ops;
}
