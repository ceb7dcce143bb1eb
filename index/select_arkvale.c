/* ArkVale (NeurIPS 2024): pages of consecutive tokens; a page is the cuboid around its mean key whose half sides
 * are the mean absolute deviations per channel ("cuboid-mean"), its score the largest logit inside. The group
 * shares its pages, so scores are added over its query heads. What is not chosen is dropped. */
#include "index/head.h"
#include "index/means.h"
#include "index/pages.h"
#include "index/params.h"
#include "index/image.h"

#include <math.h>

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_bounds_bytes(o, o->blocks_max);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    return hri_bounds_bytes(&head->options, n_blocks);
}

static void write_cuboid(struct hri_index_head *head, uint32_t block, const float *k, uint32_t n)
{
    uint32_t d = head->options.k_dim;
    size_t at = (size_t)block * d;
    for (uint32_t j = 0; j < d; j++) {
        double center = 0, deviation = 0;
        for (uint32_t i = 0; i < n; i++)
            center += k[(size_t)i * d + j];
        center /= n;
        for (uint32_t i = 0; i < n; i++)
            deviation += fabs(k[(size_t)i * d + j] - center);
        deviation /= n;
        head->bounds.min[at + j] = hri_half_clamped((float)(center - deviation));
        head->bounds.max[at + j] = hri_half_clamped((float)(center + deviation));
    }
}

static hr_status_t summarise(struct hri_index_head *head, const struct hri_segment *segment)
{
    const float *k = segment->k;
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        write_cuboid(head, head->n_blocks + b, k, segment->block_rows[b]);
        k += (size_t)segment->block_rows[b] * head->options.k_dim;
    }
    return HR_OK;
}

/* The head's own tables are all there is. */
static void image(struct hri_index_head *head, struct hri_image *im)
{
    (void)head, (void)im;
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = hri_bounds_create,
    .destroy = hri_bounds_destroy,
    .summarise = summarise,
    .scratch_bytes = hri_step_bytes,
    .select = hri_bounds_select,
    .image = image,
};

static const struct hri_param params_arkvale[] = {PARAM_SINK(64),
                                                  PARAM_WINDOW(64),
                                                  PARAM_SEGMENT(8192),
                                                  PARAM_DECODE_SEGMENT(512),
                                                  PARAM_DENSE(""),
                                                  {"page",
                                                   "consecutive tokens per block (also: block)",
                                                   "ArkVale, NeurIPS 2024, section 5.1", 32, 4, 64},
                                                  PARAM_END};

const struct hri_selector hri_selector_arkvale = {
    .name = "arkvale",
    .summary = "pages by the largest logit in the cuboid of mean and mean deviation of their keys",
    .source = "ArkVale, NeurIPS 2024, section 4",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .params = params_arkvale,
    .ops = &ops,
};
