#include "offload/io_ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#if HR_HAVE_URING

#include <liburing.h>

struct ring {
    struct io_uring uring;
    int fd; /* the descriptor, or 0 as the index of the registered file */
    bool fixed_file;
    bool buffers; /* the table of registered buffers exists */
};

static int ring_init(struct ring *ring, const struct hri_ring_options *options)
{
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    /* Completions may pile up while the owner computes; twice the depth leaves room for
     * continuations of short transfers. */
    params.flags = IORING_SETUP_CQSIZE;
    params.cq_entries = options->depth * 2;
    if (!options->plain)
        params.flags |=
            IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    return io_uring_queue_init_params(options->depth, &ring->uring, &params);
}

int hri_io_ring_create(void *ctx, const struct hri_ring_options *options, void **ring_out)
{
    (void)ctx;
    struct ring *ring = calloc(1, sizeof *ring);
    if (ring == NULL)
        return -ENOMEM;
    ring->fd = options->fd;
    int error = ring_init(ring, options);
    if (error < 0) {
        free(ring);
        return error;
    }
    if (!options->plain) {
        if (io_uring_register_files(&ring->uring, &options->fd, 1) == 0) {
            ring->fd = 0;
            ring->fixed_file = true;
        }
        ring->buffers = io_uring_register_buffers_sparse(&ring->uring, HRI_RING_BUFFERS) == 0;
    }
    *ring_out = ring;
    return 0;
}

void hri_io_ring_destroy(void *ctx, void *ring_opaque)
{
    (void)ctx;
    struct ring *ring = ring_opaque;
    io_uring_queue_exit(&ring->uring);
    free(ring);
}

int hri_io_ring_register(void *ctx, void *ring_opaque, uint32_t slot, void *base, size_t bytes)
{
    (void)ctx;
    struct ring *ring = ring_opaque;
    if (!ring->buffers)
        return -EOPNOTSUPP;
    struct iovec iov = {base, bytes};
    __u64 tag = 0;
    int n = io_uring_register_buffers_update_tag(&ring->uring, slot, &iov, &tag, 1);
    return n < 0 ? n : 0;
}

int hri_io_ring_push(void *ctx, void *ring_opaque, const struct hri_ring_op *op)
{
    (void)ctx;
    struct ring *ring = ring_opaque;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    if (sqe == NULL)
        return -EBUSY;
    const struct iovec *iov = op->iov;
    unsigned bytes = (unsigned)iov->iov_len;
    if (op->n_iov > 1 && op->write)
        io_uring_prep_writev(sqe, ring->fd, iov, op->n_iov, op->offset);
    else if (op->n_iov > 1)
        io_uring_prep_readv(sqe, ring->fd, iov, op->n_iov, op->offset);
    else if (op->buffer >= 0 && op->write)
        io_uring_prep_write_fixed(sqe, ring->fd, iov->iov_base, bytes, op->offset, op->buffer);
    else if (op->buffer >= 0)
        io_uring_prep_read_fixed(sqe, ring->fd, iov->iov_base, bytes, op->offset, op->buffer);
    else if (op->write)
        io_uring_prep_write(sqe, ring->fd, iov->iov_base, bytes, op->offset);
    else
        io_uring_prep_read(sqe, ring->fd, iov->iov_base, bytes, op->offset);
    if (ring->fixed_file)
        io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    sqe->user_data = op->user;
    return 0;
}

int hri_io_ring_enter(void *ctx, void *ring_opaque, bool wait, uint64_t timeout_ns)
{
    (void)ctx;
    struct ring *ring = ring_opaque;
    if (!wait) {
        int n = io_uring_submit(&ring->uring);
        return n < 0 ? n : 0;
    }
    struct __kernel_timespec timeout = {
        .tv_sec = (int64_t)(timeout_ns / 1000000000u),
        .tv_nsec = (long long)(timeout_ns % 1000000000u),
    };
    struct io_uring_cqe *cqe;
    int n = io_uring_submit_and_wait_timeout(&ring->uring, &cqe, 1, &timeout, NULL);
    return n == -ETIME || n == -EINTR ? 0 : n < 0 ? n : 0;
}

int hri_io_ring_reap(void *ctx, void *ring_opaque, struct hri_ring_result *results, uint32_t n_max)
{
    (void)ctx;
    struct ring *ring = ring_opaque;
    uint32_t n = 0;
    struct io_uring_cqe *cqe;
    while (n < n_max && io_uring_peek_cqe(&ring->uring, &cqe) == 0 && cqe != NULL) {
        results[n].user = cqe->user_data;
        results[n].result = cqe->res;
        io_uring_cqe_seen(&ring->uring, cqe);
        n++;
    }
    return (int)n;
}

static void probe_ops(struct hri_io_ring_features *features)
{
    struct io_uring_probe *probe = io_uring_get_probe();
    if (probe == NULL)
        return;
    features->read_fixed = io_uring_opcode_supported(probe, IORING_OP_READ_FIXED);
    features->readv = io_uring_opcode_supported(probe, IORING_OP_READV);
    features->writev = io_uring_opcode_supported(probe, IORING_OP_WRITEV);
    io_uring_free_probe(probe);
}

void hri_io_ring_probe(struct hri_io_ring_features *features_out)
{
    *features_out = (struct hri_io_ring_features){0};
    struct ring ring = {0};
    struct hri_ring_options options = {.fd = -1, .depth = 4, .plain = false};
    int error = ring_init(&ring, &options);
    features_out->defer_taskrun = error == 0;
    if (error != 0) {
        options.plain = true;
        error = ring_init(&ring, &options);
    }
    features_out->error = error;
    if (error != 0)
        return;
    features_out->registered_buffers = io_uring_register_buffers_sparse(&ring.uring, 1) == 0;
    io_uring_queue_exit(&ring.uring);
    probe_ops(features_out);
}

#else

int hri_io_ring_create(void *ctx, const struct hri_ring_options *options, void **ring_out)
{
    (void)ctx;
    (void)options;
    (void)ring_out;
    return -ENOSYS;
}

void hri_io_ring_destroy(void *ctx, void *ring)
{
    (void)ctx;
    (void)ring;
}

int hri_io_ring_register(void *ctx, void *ring, uint32_t slot, void *base, size_t bytes)
{
    (void)ctx;
    (void)ring;
    (void)slot;
    (void)base;
    (void)bytes;
    return -ENOSYS;
}

int hri_io_ring_push(void *ctx, void *ring, const struct hri_ring_op *op)
{
    (void)ctx;
    (void)ring;
    (void)op;
    return -ENOSYS;
}

int hri_io_ring_enter(void *ctx, void *ring, bool wait, uint64_t timeout_ns)
{
    (void)ctx;
    (void)ring;
    (void)wait;
    (void)timeout_ns;
    return -ENOSYS;
}

int hri_io_ring_reap(void *ctx, void *ring, struct hri_ring_result *results, uint32_t n_max)
{
    (void)ctx;
    (void)ring;
    (void)results;
    (void)n_max;
    return -ENOSYS;
}

void hri_io_ring_probe(struct hri_io_ring_features *features_out)
{
    *features_out = (struct hri_io_ring_features){.error = -ENOSYS};
}

#endif
