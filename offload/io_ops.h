/*
 * The few system calls of the file tier as one table, so that tests can make every one of them
 * fail, fall short, come late or come twice. Return values are 0 or a count, or minus an errno
 * value; nothing here looks at errno or sets a message.
 *
 * The ring entries are the level of io_uring that matters: push what shall be done, enter the
 * kernel, take results. readv and writev are called from several threads at once; everything else
 * from the store's thread, or one that makes the call for it (offload/io_guard.h). The table and its
 * ctx outlive the store; for ever where an I/O hung, as its thread cannot be ended.
 */
#ifndef HRI_OFFLOAD_IO_OPS_H
#define HRI_OFFLOAD_IO_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct hri_io_stat {
    uint64_t physical_bytes;   /* blocks the file takes on the disk */
    uint64_t free_bytes;       /* left on the file system for us */
    uint64_t fs_magic;         /* statfs f_type */
    uint64_t file_bytes;       /* length */
    uint64_t device, inode;    /* which file or folder it is, whatever its name */
    uint32_t dio_memory_align; /* of buffers for direct I/O; 0: the kernel does not say */
    uint32_t dio_offset_align; /* of offsets and lengths; 0: the kernel does not say */
};

struct hri_ring_options {
    int fd;
    uint32_t depth;
    bool plain; /* no DEFER_TASKRUN, SINGLE_ISSUER, registered file or buffers: what every kernel
                   with io_uring has */
};

struct hri_ring_op {
    bool write;
    int buffer; /* registered buffer that holds iov[0]; -1: none */
    uint32_t n_iov;
    const struct iovec *iov; /* [n_iov], valid until the result */
    uint64_t offset;
    uint64_t user; /* comes back with the result */
};

struct hri_ring_result {
    uint64_t user;
    int32_t result; /* bytes, or minus an errno value */
};

struct hri_io_ops {
    void *ctx;
    /* NULL: this table. Where rings and the transfers of disks are, which have time-outs of their own. */
    const struct hri_io_ops *transfers;
    uint64_t
        timeout_ns; /* an I/O that gets no answer for so long is given up; 0: as the store says */
    uint64_t
        call_timeout_ns; /* the same of calls that a guard makes (io_guard.h); 0: as its maker says */
    /* A new file in dir that vanishes when it is closed, mode 0600. Returns the descriptor. */
    int (*open_temp)(void *ctx, const char *dir, bool direct);
    int (*close_file)(void *ctx, int fd);
    int (*stat_file)(void *ctx, int fd, struct hri_io_stat *stat_out);
    /* Reserves blocks and lengthens the file as needed. */
    int (*allocate)(void *ctx, int fd, uint64_t offset, uint64_t bytes);
    ssize_t (*readv)(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset);
    ssize_t (*writev)(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset);
    /* May be NULL: never. As readv, but only what is in memory already: waits for no disk. -EAGAIN where nothing is. */
    ssize_t (*readv_cached)(void *ctx, int fd, const struct iovec *iov, int n_iov, uint64_t offset);
    /* -- folders and named files, for saved sessions; NULL in tables that are used without them -- */
    /* The folder at path, which may be no link; `make` makes it, mode 0700, if it is missing. Closed with close_file. */
    int (*folder_open)(void *ctx, const char *path, bool make, bool *made_out);
    /* 1: the folder has some of these names, which slashes separate, and nothing else. */
    int (*folder_alone)(void *ctx, int folder, const char *names);
    /* The open folder, of which the last part of path is the name; -ENOTEMPTY if there is anything in it. */
    int (*folder_remove)(void *ctx, int folder, const char *path);
    /* A plain file in the folder, never through a link; -EMEDIUMTYPE: it is something else. create: a new one, mode 0600, -EEXIST if the name is taken; else for reading. */
    int (*file_open)(void *ctx, int folder, const char *name, bool create);
    int (*file_rename)(void *ctx, int folder, const char *from, const char *to);
    int (*file_remove)(void *ctx, int folder, const char *name);
    /* What was written to the file, or done to names in the folder, is on the disk when this returns. */
    int (*sync_file)(void *ctx, int fd);
    /* May be NULL: never. Transfers of this file go past the page cache from now on, or no longer; they are whole pages then. -EINVAL
     * where the file system cannot. */
    int (*set_direct)(void *ctx, int fd, bool direct);
    /* May be NULL. A hint without a result: what was written there will be synced soon, so the disk may begin with it. */
    void (*write_back)(void *ctx, int fd, uint64_t offset, uint64_t bytes);
    /* Opens and locks a file until it is closed, also against this process; it says who we are. -EBUSY: somebody has it;
     * *holder_out is that process, 0 if it cannot be told. */
    int (*file_lock)(void *ctx, int folder, const char *name, int *holder_out);
    /* -ENOSYS where there is no io_uring. The ring belongs to the calling thread unless it is
     * plain. */
    int (*ring_create)(void *ctx, const struct hri_ring_options *options, void **ring_out);
    void (*ring_destroy)(void *ctx, void *ring);
    /* Makes slot (0 .. HRI_RING_BUFFERS - 1) stand for a run of memory of at most 1 GiB. */
    int (*ring_register)(void *ctx, void *ring, uint32_t slot, void *base, size_t bytes);
    int (*ring_push)(void *ctx, void *ring, const struct hri_ring_op *op); /* -EBUSY: enter first */
    /* Hands over what was pushed; with wait also waits for a result, at most timeout_ns. */
    int (*ring_enter)(void *ctx, void *ring, bool wait, uint64_t timeout_ns);
    /* Takes up to n_max results without blocking; their number. */
    int (*ring_reap)(void *ctx, void *ring, struct hri_ring_result *results, uint32_t n_max);
};

#define HRI_RING_BUFFERS          16u
#define HRI_RING_BUFFER_BYTES_MAX ((size_t)1 << 30)

const struct hri_io_ops *hri_io_real(void);

static inline const struct hri_io_ops *hri_io_transfers(const struct hri_io_ops *io)
{
    return io->transfers != NULL ? io->transfers : io;
}

#endif
