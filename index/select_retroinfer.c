/* RetroInfer (arXiv 2505.02922, section 4): spherical k-means on mean-centred keys inside segments,
 * about 16 tokens per cluster. The clusters with the most attention per row (softmax over clusters
 * per query head, summed over the group) are attended exactly, the next share of the clusters is
 * estimated from centroid, row count and mean value, the rest is dropped.
 *
 * Two things differ from the paper, both in the index's favour or neutral: centroids and mean
 * values are kept as int8, and a cluster larger than a block may be is several blocks with a
 * summary each. */
#include "index/group.h"
#include "index/head.h"
#include "index/params.h"

#include <string.h>

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_summary_bytes(o, o->blocks_max);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    return hri_summary_bytes(&head->options, n_blocks);
}

static size_t workspace_bytes(const struct hri_index_options *o, uint32_t n)
{
    return hri_round_up((uint64_t)n * o->k_dim * sizeof(float), 64) +
           hri_group_kmeans_work_bytes(n, o->k_dim, hri_index_target_rows(&o->recipe)) +
           2 * (size_t)(o->k_dim + o->v_dim) * sizeof(float) + 256;
}

static hr_status_t group(struct hri_index_head *head, struct hri_segment *segment)
{
    uint32_t d = head->options.k_dim, n = segment->n;
    double mean[HR_HEAD_DIM_MAX] = {0};
    float *y = segment->workspace;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < d; j++)
            mean[j] += segment->k[(size_t)i * d + j];
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < d; j++)
            y[(size_t)i * d + j] = segment->k[(size_t)i * d + j] - (float)(mean[j] / n);
    struct hri_group_in in = {.kernels = head->options.kernels,
                              .y = y,
                              .n = n,
                              .d = d,
                              .target = segment->target,
                              .cap = segment->cap,
                              .iterations =
                                  (uint32_t)hri_recipe_value(&head->options.recipe, "iterations"),
                              .spherical = true};
    void *work = (char *)segment->workspace + hri_round_up((uint64_t)n * d * sizeof(float), 64);
    segment->n_blocks = hri_group_kmeans(&in, work, segment->order, segment->block_rows);
    return HR_OK;
}

static hr_status_t summarise(struct hri_index_head *head, const struct hri_segment *segment)
{
    hri_summary_add(head, segment);
    return HR_OK;
}

/* step->mark: 1 where the block is estimated. */
static hr_status_t select_clusters(struct hri_index_head *head, const struct hri_select_in *in,
                                   struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct hri_step step = hri_step_at(head, in);
    uint32_t n = head->n_blocks;
    hri_step_first_order(head, &step);
    hri_summary_dots(head, in->q, step.dots, step.stride);
    hri_step_weigh(head, in, &step);
    memset(step.work, 0, n * sizeof(float));
    for (uint32_t g = 0; g < o->g; g++)
        for (uint32_t b = 0; b < n; b++)
            step.work[b] += step.weight[g * step.stride + b] / step.total[g];
    for (uint32_t b = 0; b < n; b++)
        step.ranked[b] = (struct hri_ranked){step.work[b] / head->block_rows[b], b};
    struct hri_take take = {.ranked = step.ranked, .n = n, .budget_bytes = in->budget_bytes};
    hri_take_blocks(head, in, &take, out);

    uint32_t zone = (uint32_t)(hri_recipe_value(&o->recipe, "estimate") * n);
    for (uint32_t i = 0; i < out->n_items; i++)
        step.work[out->items[i]] = -1;
    for (uint32_t b = 0; b < n; b++)
        step.ranked[b] = (struct hri_ranked){step.work[b], b};
    memset(step.mark, 0, n);
    hri_rank_select(step.ranked, n, zone);
    for (uint32_t i = 0; i < zone; i++)
        step.mark[step.ranked[i].item] = step.ranked[i].key >= 0;
    return HR_OK;
}

static uint32_t estimate(struct hri_index_head *head, const struct hri_select_in *in,
                         const struct hri_select_out *out, const uint32_t *blocks, uint32_t n,
                         struct hri_partial *part)
{
    struct hri_step step = hri_step_at(head, in);
    if (out)
        return hri_step_estimate_marked(head, &step, part);
    hri_step_estimate_listed(head, &step, blocks, n, part);
    return n;
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = hri_summary_create,
    .destroy = hri_summary_destroy,
    .workspace_bytes = workspace_bytes,
    .group = group,
    .summarise = summarise,
    .scratch_bytes = hri_step_bytes,
    .select = select_clusters,
    .estimate = estimate,
};

static const struct hri_param params_retroinfer[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(256),
    PARAM_DENSE(""),
    {"block", "mean tokens per cluster", "RetroInfer, arXiv 2505.02922, section 4", 16, 4, 64},
    {"estimate", "share of the clusters that is estimated; the rest is dropped",
     "RetroInfer, section 4", 0.232, 0, 1},
    {"iterations", "k-means iterations", "RetroInfer, section 4", 10, 1, 50},
    PARAM_END};

const struct hri_selector hri_selector_retroinfer = {
    .name = "retroinfer",
    .summary = "spherical k-means clusters; the best exactly, the next estimated by centroid and "
               "mean value",
    .source = "RetroInfer, arXiv 2505.02922, section 4",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .params = params_retroinfer,
    .ops = &ops,
};
