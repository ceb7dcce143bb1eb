/* The device tier of one sequence on a device with memory of its own: frames that hold recently refined
 * blocks, and tables that say which frame holds which block. Both lie in device memory, and hits, misses and
 * replacement are decided there (kernels/cuda/resolve.cu); the host deals the memory out and forgets blocks.
 *
 * Every layer has frames of its own: layers take turns, so one clock over all of them would lose every
 * frame just before its layer comes round again (docs/decisions/0002).
 *
 * Threads: as the device. Everything is put into the device's stream. */
#ifndef HRI_OFFLOAD_DEVICE_TIER_H
#define HRI_OFFLOAD_DEVICE_TIER_H

#include "base/alloc.h"
#include "kernels/device.h"
#include "offload/store.h"

struct hri_device_tier;

struct hri_device_tier_options {
    struct hri_device *device;
    struct hri_alloc *alloc; /* of the handle */
    uint32_t n_layers;       /* with blocks */
    uint32_t n_heads, blocks_max;
    uint32_t n_frames;    /* of each layer, at least 1 */
    uint32_t frame_bytes; /* multiple of 16 */
};
/* Device bytes such a tier takes: frames, tables. */
uint64_t hri_device_tier_bytes(const struct hri_device_tier_options *options);
/* HR_ERR_BUDGET, HR_ERR_NOMEM (the message says what is needed), HR_ERR_DEVICE. */
hr_status_t hri_device_tier_create(const struct hri_device_tier_options *options,
                                   struct hri_device_tier **tier_out);
void hri_device_tier_destroy(struct hri_device_tier *tier); /* NULL is legal */

/* For launches; stays as it is as long as the tier lives. */
const struct hri_cuda_residency *hri_device_tier_table(const struct hri_device_tier *tier,
                                                       uint32_t layer);
/* Frame f of the layer lies at f * frame_bytes. */
unsigned char *hri_device_tier_frames(const struct hri_device_tier *tier, uint32_t layer);

/* No frame of the layer holds anything. */
hr_status_t hri_device_tier_clear(struct hri_device_tier *tier, uint32_t layer);
/* Forgets blocks >= n_blocks of a head; waits for the stream. */
hr_status_t hri_device_tier_truncate(struct hri_device_tier *tier, uint32_t layer, uint32_t head,
                                     uint32_t n_blocks);

/* -- the host tier as the device sees it -- */
/* The store's host memory, one run; for pinning. bytes 0: there is none. */
struct hri_host_run {
    unsigned char *base;
    size_t bytes;
};
struct hri_host_run hri_store_host_run(const struct hri_store *store);

#endif
