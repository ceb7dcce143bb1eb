/* RetroInfer (arXiv 2505.02922, section 4): spherical k-means on mean-centred keys inside segments, about 16 tokens per
 * cluster. Clusters are ranked by the softmax of query times centroid, summed over the group: the best are attended
 * exactly, the next share of them is estimated by exp(q . centroid) with row count and mean value, the rest is dropped.
 *
 * Centroids and mean values are float16, the precision they are published with. A cluster that is larger than a block
 * may be lies in several blocks, which are only taken together; its summary is one. */
#include "index/clusters.h"
#include "index/params.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_clusters_bytes(o, o->blocks_max, true);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct hri_clusters *clusters = head->state;
    return n_blocks ? hri_clusters_bytes(&head->options, clusters->n, true) : 0;
}

static hr_status_t create(struct hri_index_head *head)
{
    head->state = hri_calloc(head->options.scratch, 1, sizeof(struct hri_clusters));
    if (!head->state)
        return hri_alloc_status();
    hr_status_t status = hri_clusters_create(head->state, &head->options, true);
    if (status != HR_OK)
        hri_free(head->options.scratch, head->state);
    return status;
}

static void destroy(struct hri_index_head *head)
{
    hri_clusters_destroy(head->state, &head->options);
    hri_free(head->options.scratch, head->state);
}

static hr_status_t group(struct hri_index_head *head, struct hri_segment *segment)
{
    uint32_t *cluster_rows;
    uint32_t n = hri_centred_clusters(head, segment, segment->n, &cluster_rows);
    hri_clusters_add(head->state, head, segment, cluster_rows, n);
    return HR_OK;
}

/* step->mark: 1 where the cluster is estimated. */
static void mark_zone(const struct hri_index_head *head, const struct hri_clusters *clusters,
                      struct hri_step *step)
{
    uint32_t n = clusters->n,
             zone = (uint32_t)(hri_recipe_value(&head->options.recipe, "estimate") * n);
    for (uint32_t c = 0; c < n; c++)
        step->ranked[c] = (struct hri_ranked){step->mark[c] ? -1 : step->work[c], c};
    memset(step->mark, 0, n);
    hri_rank_select(step->ranked, n, zone);
    for (uint32_t i = 0; i < zone; i++)
        step->mark[step->ranked[i].item] = step->ranked[i].key >= 0;
}

static hr_status_t select_clusters(struct hri_index_head *head, const struct hri_select_in *in,
                                   struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct hri_clusters *clusters = head->state;
    struct hri_step step = hri_step_at(head, in);
    hri_clusters_heal(clusters, head);
    uint32_t n = clusters->n;
    hri_means_dots(&clusters->means, o, in->q, n, step.dots, step.stride);
    memset(step.work, 0, n * sizeof(float));
    for (uint32_t g = 0; g < o->g; g++) {
        float *weight = step.weight + g * step.stride;
        hri_softmax(o->kernels, step.dots + g * step.stride, weight, n);
        for (uint32_t c = 0; c < n; c++)
            step.work[c] += weight[c];
    }
    for (uint32_t c = 0; c < n; c++)
        step.ranked[c] = (struct hri_ranked){step.work[c], c};
    hri_clusters_take(clusters, head, in, step.ranked, n, step.mark, out);
    mark_zone(head, clusters, &step);
    return HR_OK;
}

/* n_rows of a cluster as one summary. */
static void add_estimate(struct hri_index_head *head, const struct hri_step *step, uint32_t c,
                         uint32_t n_rows, struct hri_partial *part)
{
    const struct hri_index_options *o = &head->options;
    const struct hri_clusters *clusters = head->state;
    float log_weight[HR_GROUP_MAX], value[HR_GROUP_MAX * HR_HEAD_DIM_MAX];
    hri_means_read(&clusters->means, o, c, NULL, value);
    for (uint32_t g = 0; g < o->g; g++) {
        log_weight[g] = step->dots[g * step->stride + c] + logf((float)n_rows);
        memmove(value + (size_t)g * o->v_dim, value, o->v_dim * sizeof(float));
    }
    hri_partial_add(part, o->g, o->v_dim, log_weight, value);
}

static uint32_t estimate(struct hri_index_head *head, const struct hri_select_in *in,
                         const struct hri_select_out *out, const uint32_t *blocks, uint32_t n,
                         struct hri_partial *part)
{
    const struct hri_clusters *clusters = head->state;
    struct hri_step step = hri_step_at(head, in);
    uint32_t n_blocks = 0;
    for (uint32_t i = 0; !out && i < n; i++, n_blocks++)
        add_estimate(head, &step, hri_clusters_of(clusters, blocks[i]), head->block_rows[blocks[i]],
                     part);
    for (uint32_t c = 0; out && c < clusters->n; c++) {
        if (!step.mark[c])
            continue;
        add_estimate(head, &step, c, clusters->cluster[c].n_rows, part);
        n_blocks += clusters->cluster[c].n_blocks;
    }
    return n_blocks;
}

static void centers(const struct hri_index_head *head, uint32_t block, float *k_center,
                    float *v_center)
{
    const struct hri_clusters *clusters = head->state;
    hri_means_read(&clusters->means, &head->options, hri_clusters_of(clusters, block), k_center,
                   v_center);
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    hri_clusters_image(head->state, head, im);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .workspace_bytes = hri_centred_workspace_bytes,
    .group = group,
    .scratch_bytes = hri_step_bytes,
    .select = select_clusters,
    .estimate = estimate,
    .centers = centers,
    .image = image,
};

static const struct hri_param params_retroinfer[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
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
    .splits_clusters = true,
    .params = params_retroinfer,
    .ops = &ops,
};
