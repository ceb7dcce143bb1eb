/*
 * Asynchronous reads and writes of one file descriptor. A request is whole or failed: short
 * transfers are continued, EINTR and EAGAIN tried again a bounded number of times, and what gets no
 * answer is given up after a hard timeout.
 *
 * After such a timeout the disk is broken: the kernel may still own the memory of the requests that
 * were given up (request->abandoned), so that memory must never be used or freed again; every later
 * submit fails.
 *
 * Threads: one at a time. In mode uring reads must be reaped by the thread that submitted them: the
 * first call from another thread gives what is under way up (error ESTALE, abandoned) and goes on
 * with a new ring.
 */
#ifndef HRI_OFFLOAD_DISK_H
#define HRI_OFFLOAD_DISK_H

#include <headrace/headrace.h>

#include "base/alloc.h"
#include "offload/io_ops.h"

#define HRI_DISK_IOV_MAX    32
#define HRI_DISK_TIMEOUT_NS 60000000000u
#define HRI_DISK_TRIES_MAX  32 /* of one request that the kernel asks to repeat */

struct hri_disk_request {
    /* in; iov is used up */
    bool write;
    uint32_t n_iov;
    uint64_t offset;
    struct iovec iov[HRI_DISK_IOV_MAX];
    /* out */
    int error; /* 0, or an errno value; ETIMEDOUT for the hard timeout */
    bool abandoned;
    struct hri_disk_request *next; /* in the list hri_disk_reap returns */
    /* private */
    uint32_t iov_begin, slot, tries;
    uint64_t left_bytes, position, progress_ns;
    struct hri_ring_op op;
};

struct hri_disk;

struct hri_disk_options {
    const struct hri_io_ops *io;
    struct hri_alloc *alloc;
    int fd;
    hr_io_mode_t mode;    /* not AUTO */
    uint32_t depth;       /* requests under way at most */
    uint32_t align_bytes; /* of offsets, for continuing short transfers; 1: buffered */
    uint64_t timeout_ns;  /* 0: HRI_DISK_TIMEOUT_NS; the table's own, if it has one, comes first */
};
/* HR_ERR_UNSUPPORTED where the kernel refuses the mode, HR_ERR_NOMEM. */
hr_status_t hri_disk_create(const struct hri_disk_options *options, struct hri_disk **disk_out);
/* Waits for what is under way; NULL is legal. True: a thread that was given up may still be inside of a transfer, so that fd has to
 * stay open for good: its number could become another file's. */
bool hri_disk_destroy(struct hri_disk *disk);
const char *hri_disk_name(const struct hri_disk *disk);

/* False when depth requests are under way. On a broken disk the request is taken and comes back
 * failed. */
bool hri_disk_submit(struct hri_disk *disk, struct hri_disk_request *request);
/* Hands all submitted requests to the kernel; a reap does it too. */
void hri_disk_flush(struct hri_disk *disk);
/* A list of finished requests, NULL when there is none within wait_ns (0: does not block). */
struct hri_disk_request *hri_disk_reap(struct hri_disk *disk, uint64_t wait_ns);
uint32_t
hri_disk_in_flight(const struct hri_disk *disk);     /* 0: none is under way or waits for a reap */
uint32_t hri_disk_room(const struct hri_disk *disk); /* requests that submit would take now */
bool hri_disk_broken(const struct hri_disk *disk);

/* Best effort; the memory must stay mapped until hri_disk_unregister. */
void hri_disk_register(struct hri_disk *disk, void *base, size_t bytes);
void hri_disk_unregister(struct hri_disk *disk, void *base);

struct hri_disk_stats {
    uint64_t finished, short_transfers, repeats, stray_completions;
    uint32_t registered_buffers; /* memory runs the kernel took */
};
void hri_disk_stats(const struct hri_disk *disk, struct hri_disk_stats *stats_out);

#endif
