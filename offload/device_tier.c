#include "offload/device_tier.h"

#include "base/assert.h"
#include "base/error.h"
#include "offload/store_impl.h"

#include <string.h>

#define JOBS_MAX 1024u /* blocks forgotten by one launch */

struct hri_device_tier {
    struct hri_device_tier_options options;
    struct hri_device_memory memory;
    struct hri_cuda_residency *tables; /* [n_layers] */
    unsigned char **frames;            /* [n_layers] */
    uint32_t *frame_of;                /* [blocks_max] on the host, of one head */
    struct hri_cuda_job *jobs;         /* [JOBS_MAX] on the host */
    struct hri_cuda_job *device_jobs;
    uint32_t *device_n;
};

/* Deals out the memory of all layers; with a NULL base it adds up. tables, frames: NULL, or [n_layers]. */
static void carve(const struct hri_device_tier_options *o, struct hri_device_carve *c,
                  struct hri_device_tier *tier)
{
    struct hri_cuda_job *jobs = hri_device_carve(c, JOBS_MAX, sizeof *jobs);
    uint32_t *n = hri_device_carve(c, 1, sizeof *n);
    for (uint32_t i = 0; i < o->n_layers; i++) {
        struct hri_cuda_residency t = {.n_frames = o->n_frames, .blocks_max = o->blocks_max};
        t.frame_of = hri_device_carve(c, (size_t)o->n_heads * o->blocks_max, sizeof *t.frame_of);
        t.holds = hri_device_carve(c, o->n_frames, sizeof *t.holds);
        t.last_turn = hri_device_carve(c, o->n_frames, sizeof *t.last_turn);
        t.referenced = hri_device_carve(c, o->n_frames, 1);
        uint32_t *clock = hri_device_carve(c, 2, sizeof *clock);
        unsigned char *frames = hri_device_carve(c, o->n_frames, o->frame_bytes);
        if (tier == NULL)
            continue;
        t.hand = clock;
        t.turn = clock + 1;
        tier->tables[i] = t;
        tier->frames[i] = frames;
    }
    if (tier != NULL) {
        tier->device_jobs = jobs;
        tier->device_n = n;
    }
}

uint64_t hri_device_tier_bytes(const struct hri_device_tier_options *options)
{
    struct hri_device_carve c = {0};
    carve(options, &c, NULL);
    return c.used;
}

static hr_status_t host_create(struct hri_device_tier *tier)
{
    const struct hri_device_tier_options *o = &tier->options;
    tier->tables = hri_array(o->alloc, o->n_layers, sizeof *tier->tables);
    tier->frames = hri_array(o->alloc, o->n_layers, sizeof *tier->frames);
    tier->frame_of = hri_array(o->alloc, o->blocks_max, sizeof *tier->frame_of);
    tier->jobs = hri_array(o->alloc, JOBS_MAX, sizeof *tier->jobs);
    return tier->tables && tier->frames && tier->frame_of && tier->jobs ? HR_OK
                                                                        : hri_alloc_status();
}

hr_status_t hri_device_tier_create(const struct hri_device_tier_options *options,
                                   struct hri_device_tier **tier_out)
{
    HRI_ASSERT(options->n_frames > 0 && options->frame_bytes % 16 == 0);
    struct hri_device_tier *tier = hri_calloc(options->alloc, 1, sizeof *tier);
    if (tier == NULL)
        return hri_alloc_status();
    tier->options = *options;
    hr_status_t status = host_create(tier);
    if (status == HR_OK)
        status = hri_device_alloc(options->device, "frames", hri_device_tier_bytes(options),
                                  &tier->memory);
    if (status == HR_OK) {
        struct hri_device_carve c = {tier->memory.base, 0};
        carve(options, &c, tier);
    }
    for (uint32_t i = 0; i < options->n_layers && status == HR_OK; i++)
        status = hri_device_tier_clear(tier, i);
    if (status != HR_OK) {
        hri_device_tier_destroy(tier);
        return status;
    }
    *tier_out = tier;
    return HR_OK;
}

void hri_device_tier_destroy(struct hri_device_tier *tier)
{
    if (tier == NULL)
        return;
    struct hri_alloc *alloc = tier->options.alloc;
    hri_device_free(tier->options.device, &tier->memory);
    hri_free(alloc, tier->tables);
    hri_free(alloc, tier->frames);
    hri_free(alloc, tier->frame_of);
    hri_free(alloc, tier->jobs);
    hri_free(alloc, tier);
}

const struct hri_cuda_residency *hri_device_tier_table(const struct hri_device_tier *tier,
                                                       uint32_t layer)
{
    return &tier->tables[layer];
}

unsigned char *hri_device_tier_frames(const struct hri_device_tier *tier, uint32_t layer)
{
    return tier->frames[layer];
}

hr_status_t hri_device_tier_clear(struct hri_device_tier *tier, uint32_t layer)
{
    struct hri_device *device = tier->options.device;
    HRI_TRY(hri_device_alive(device));
    return hri_device_check(
        device,
        hri_device_ops(device)->launch->residency_clear(&tier->tables[layer], tier->options.n_heads,
                                                        hri_device_stream(device)),
        "clearing a table");
}

static hr_status_t drop(struct hri_device_tier *tier, uint32_t layer, uint32_t n)
{
    struct hri_device *device = tier->options.device;
    HRI_TRY(hri_device_copy(device, tier->device_jobs, tier->jobs, n * sizeof *tier->jobs));
    HRI_TRY(hri_device_copy(device, tier->device_n, &n, sizeof n));
    return hri_device_check(
        device,
        hri_device_ops(device)->launch->residency_drop(&tier->tables[layer], tier->device_jobs,
                                                       tier->device_n, hri_device_stream(device)),
        "dropping blocks");
}

hr_status_t hri_device_tier_truncate(struct hri_device_tier *tier, uint32_t layer, uint32_t head,
                                     uint32_t n_blocks)
{
    const uint32_t blocks_max = tier->options.blocks_max;
    if (n_blocks >= blocks_max)
        return HR_OK;
    const uint32_t *from = tier->tables[layer].frame_of + (size_t)head * blocks_max + n_blocks;
    HRI_TRY(hri_device_copy(tier->options.device, tier->frame_of, from,
                            (blocks_max - n_blocks) * sizeof *from));
    HRI_TRY(hri_device_wait(tier->options.device));
    uint32_t n = 0;
    for (uint32_t b = n_blocks; b < blocks_max; b++) {
        if (tier->frame_of[b - n_blocks] == HRI_CUDA_NONE)
            continue;
        tier->jobs[n++] = (struct hri_cuda_job){head, b, tier->frame_of[b - n_blocks], 0};
        if (n == JOBS_MAX) {
            HRI_TRY(drop(tier, layer, n));
            n = 0;
        }
    }
    return n > 0 ? drop(tier, layer, n) : HR_OK;
}

struct hri_host_run hri_store_host_run(const struct hri_store *store)
{
    const struct hri_region *region = &store->host.region;
    return (struct hri_host_run){region->base, region->base != NULL ? region->bytes : 0};
}
