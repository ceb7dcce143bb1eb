#include <errno.h>
#include <unistd.h>

#include "base/error.h"
#include "offload/disk_engine.h"

#include <string.h>

struct uring {
    const struct hri_io_ops *io;
    void *ring;
    struct hri_ring_options options;
    pid_t owner; /* thread that made the ring; the kernel lets no other one use it */
    bool unsubmitted;
};

/* gettid costs a system call, and this is asked at every request. */
static pid_t thread_id(void)
{
    static _Thread_local pid_t id;
    if (id == 0)
        id = gettid();
    return id;
}

static hr_status_t uring_create(struct hri_disk *disk, bool plain, void **state_out)
{
    const struct hri_disk_options *options = &disk->options;
    if (options->io->ring_create == NULL)
        return hri_error_set(HR_ERR_UNSUPPORTED, "io_uring: not in this build");
    struct uring *uring = hri_calloc(options->alloc, 1, sizeof *uring);
    if (uring == NULL)
        return hri_alloc_status();
    uring->io = options->io;
    uring->options = (struct hri_ring_options){options->fd, options->depth, plain};
    uring->owner = thread_id();
    int error = options->io->ring_create(options->io->ctx, &uring->options, &uring->ring);
    if (error < 0) {
        hri_free(options->alloc, uring);
        return hri_error_set(HR_ERR_UNSUPPORTED, "io_uring: the kernel refuses a%s ring: %s",
                             plain ? " plain" : "", strerror(-error));
    }
    *state_out = uring;
    return HR_OK;
}

static hr_status_t full_create(struct hri_disk *disk, void **state_out)
{
    return uring_create(disk, false, state_out);
}

static hr_status_t plain_create(struct hri_disk *disk, void **state_out)
{
    return uring_create(disk, true, state_out);
}

static bool uring_destroy(struct hri_disk *disk, void *state)
{
    struct uring *uring = state;
    uring->io->ring_destroy(uring->io->ctx, uring->ring);
    hri_free(disk->options.alloc, uring);
    return false; /* the kernel has the file itself, not its number */
}

static int uring_push(void *state, const struct hri_ring_op *op)
{
    struct uring *uring = state;
    uring->unsubmitted = true;
    return uring->io->ring_push(uring->io->ctx, uring->ring, op);
}

/* EAGAIN and EBUSY mean that results must be taken first; they are an answer here, bounded by the
 * caller's own limits. */
static int uring_enter(struct uring *uring, bool wait, uint64_t wait_ns)
{
    int error = uring->io->ring_enter(uring->io->ctx, uring->ring, wait, wait_ns);
    if (error >= 0)
        uring->unsubmitted = false;
    return error == -EAGAIN || error == -EBUSY || error == -EINTR ? 0 : error;
}

static int uring_flush(void *state)
{
    struct uring *uring = state;
    return uring->unsubmitted ? uring_enter(uring, false, 0) : 0;
}

static int uring_reap(void *state, struct hri_ring_result *results, uint32_t n_max,
                      uint64_t wait_ns)
{
    struct uring *uring = state;
    int error = uring_flush(uring);
    if (error < 0)
        return error;
    int n = uring->io->ring_reap(uring->io->ctx, uring->ring, results, n_max);
    if (n != 0 || wait_ns == 0)
        return n;
    error = uring_enter(uring, true, wait_ns);
    if (error < 0)
        return error;
    return uring->io->ring_reap(uring->io->ctx, uring->ring, results, n_max);
}

static int uring_set_buffer(void *state, uint32_t slot, void *base, size_t bytes)
{
    struct uring *uring = state;
    return uring->io->ring_register(uring->io->ctx, uring->ring, slot, base, bytes);
}

static bool uring_foreign(const void *state)
{
    const struct uring *uring = state;
    return uring->owner != thread_id();
}

static int uring_remake(void *state)
{
    struct uring *uring = state;
    void *ring;
    int error = uring->io->ring_create(uring->io->ctx, &uring->options, &ring);
    if (error < 0)
        return error;
    uring->io->ring_destroy(uring->io->ctx, uring->ring);
    uring->ring = ring;
    uring->owner = thread_id();
    uring->unsubmitted = false;
    return 0;
}

const struct hri_disk_engine hri_disk_uring = {
    .name = "uring",
    .mode = HR_IO_URING,
    .create = full_create,
    .destroy = uring_destroy,
    .push = uring_push,
    .flush = uring_flush,
    .reap = uring_reap,
    .set_buffer = uring_set_buffer,
    .foreign = uring_foreign,
    .remake = uring_remake,
};

const struct hri_disk_engine hri_disk_uring_plain = {
    .name = "uring-plain",
    .mode = HR_IO_URING_PLAIN,
    .create = plain_create,
    .destroy = uring_destroy,
    .push = uring_push,
    .flush = uring_flush,
    .reap = uring_reap,
};
