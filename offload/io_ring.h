/* The ring entries of struct hri_io_ops on liburing; without it every ring_create is -ENOSYS. */
#ifndef HRI_OFFLOAD_IO_RING_H
#define HRI_OFFLOAD_IO_RING_H

#include "offload/io_ops.h"

int hri_io_ring_create(void *ctx, const struct hri_ring_options *options, void **ring_out);
void hri_io_ring_destroy(void *ctx, void *ring);
int hri_io_ring_register(void *ctx, void *ring, uint32_t slot, void *base, size_t bytes);
int hri_io_ring_push(void *ctx, void *ring, const struct hri_ring_op *op);
int hri_io_ring_enter(void *ctx, void *ring, bool wait, uint64_t timeout_ns);
int hri_io_ring_reap(void *ctx, void *ring, struct hri_ring_result *results, uint32_t n_max);

/* What a probe of the kernel's io_uring finds. error: minus an errno value where no ring can be
 * made at all. */
struct hri_io_ring_features {
    int error;
    bool defer_taskrun;
    bool read_fixed, readv, writev;
    bool registered_buffers;
};
void hri_io_ring_probe(struct hri_io_ring_features *features_out);

#endif
