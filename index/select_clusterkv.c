/* ClusterKV (arXiv 2412.03213): the keys of a prompt in n / 80 clusters by cosine, later rows 320 at a time. A step reads clusters in
 * the order of q . mean key, summed over the group, until the budget is spent; the last one is trimmed to what is left. The rest is
 * dropped. */
#include "index/params.h"
#include "index/row_clusters.h"
#include "index/rows.h"
#include "index/image.h"

struct clusterkv {
    struct hri_row_clusters clusters; /* first: tests read it */
};

static uint32_t target_of(const struct hri_index_options *o)
{
    return (uint32_t)hri_recipe_value(&o->recipe, "cluster");
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_row_clusters_bytes(o, hri_row_clusters_max(o, target_of(o)));
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct clusterkv *s = head->state;
    (void)n_blocks;
    return hri_row_clusters_bytes(&head->options, s->clusters.n);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct clusterkv *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    hr_status_t status = hri_row_clusters_create(&s->clusters, o, target_of(o));
    if (status == HR_OK)
        head->state = s;
    else
        hri_free(o->scratch, s);
    return status;
}

static void destroy(struct hri_index_head *head)
{
    struct clusterkv *s = head->state;
    hri_row_clusters_destroy(&s->clusters, &head->options);
    hri_free(head->options.scratch, s);
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    struct clusterkv *s = head->state;
    (void)v, (void)position_end;
    return hri_row_clusters_add(&s->clusters, &head->options, k, n, first_row,
                                (uint32_t)hri_recipe_value(&head->options.recipe, "iterations"));
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    struct clusterkv *s = head->state;
    hri_row_clusters_truncate(&s->clusters, n_rows);
}

/* Scratch: dots [g][clusters], then ranks. */
static size_t scratch_bytes(const struct hri_index_options *o)
{
    size_t stride = hri_lanes_up(hri_row_clusters_max(o, target_of(o)));
    return stride * (o->g * sizeof(float) + sizeof(struct hri_ranked)) + 64;
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    const struct clusterkv *s = head->state;
    const struct hri_row_clusters *c = &s->clusters;
    size_t stride = hri_lanes_up(c->clusters_max);
    float *dots = in->scratch;
    struct hri_ranked *ranked = (struct hri_ranked *)(void *)(dots + o->g * stride);
    uint32_t fit = hri_rows_fit(head, in, out);
    hri_means_dots(&c->means, o, in->q, c->n, dots, stride);
    for (uint32_t i = 0; i < c->n; i++) {
        ranked[i] = (struct hri_ranked){0, i};
        for (uint32_t g = 0; g < o->g; g++)
            ranked[i].key += dots[g * stride + i];
    }
    hri_rank_sort(ranked, c->n);
    for (uint32_t i = 0; i < c->n && out->n_items < fit; i++) {
        uint32_t at = c->first[ranked[i].item], n = hri_row_cluster_rows(c, ranked[i].item);
        for (uint32_t r = 0; r < n && out->n_items < fit; r++)
            out->items[out->n_items++] = c->row[at + r];
    }
    out->bytes = (uint64_t)out->n_items * in->row_bytes;
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct clusterkv *s = head->state;
    hri_row_clusters_image(&s->clusters, &head->options, head->n_rows, im);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .scratch_bytes = scratch_bytes,
    .select = select_rows,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
    .image = image,
};

static const struct hri_param params_clusterkv[] = {
    {"sink", "first tokens that stay on the device", "ClusterKV, section 4.1", 16, 0, 4096},
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    {"decode_segment", "tokens clustered together while decoding", "ClusterKV, section 4.1", 320,
     16, 8192},
    PARAM_DENSE(""),
    {"cluster", "mean tokens per cluster", "ClusterKV, section 4.1", 80, 9, 4096},
    {"iterations", "k-means iterations", "", 10, 1, 100},
    PARAM_END};

const struct hri_selector hri_selector_clusterkv = {
    .name = "clusterkv",
    .summary = "clusters of keys by cosine, in the order of query times mean key; the last trimmed",
    .source = "ClusterKV, arXiv 2412.03213",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_clusterkv,
    .ops = &ops,
};
