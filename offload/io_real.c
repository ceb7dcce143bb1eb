#include "offload/io_ops.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
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

static const struct hri_io_ops real_ops = {
    .open_temp = real_open_temp,
    .close_file = real_close_file,
    .stat_file = real_stat_file,
    .allocate = real_allocate,
    .readv = real_readv,
    .writev = real_writev,
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
