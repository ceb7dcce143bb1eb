/* Squeezed Attention (arXiv 2411.09688): keys clustered by cosine, one cluster for 20 tokens; a cluster's importance is
 * exp(q . c) over the estimated denominator, the sum of count * exp(q . c) over all clusters; rows of the clusters above a threshold
 * are read, one threshold for all heads of a layer. It is given, or calibrated each step so that the heads together spend
 * their budget. Two levels: centroids of centroids say which are compared at all. The rest is dropped. */
#include "index/params.h"
#include "index/row_clusters.h"
#include "index/rows.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define COARSE_TARGET 5u /* centroids per coarse one: 1 % of the tokens */

struct squeezed {
    struct hri_row_clusters clusters; /* first: tests read it */
    struct hri_row_clusters coarse;   /* its rows are clusters; unused with one level */
    struct hri_ranked *all;           /* head 0: [heads][clusters_max] */
};

static uint32_t param(const struct hri_index_options *o, const char *key)
{
    return (uint32_t)hri_recipe_value(&o->recipe, key);
}

static uint32_t coarse_target(const struct hri_index_options *o)
{
    return COARSE_TARGET * param(o, "cluster");
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    uint64_t bytes = hri_row_clusters_bytes(o, hri_row_clusters_max(o, param(o, "cluster")));
    if (param(o, "levels") == 2)
        bytes += hri_row_clusters_bytes(o, hri_row_clusters_max(o, coarse_target(o)));
    return bytes;
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct squeezed *s = head->state;
    (void)n_blocks;
    return hri_row_clusters_bytes(&head->options, s->clusters.n + s->coarse.n);
}

static void destroy(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct squeezed *s = head->state;
    if (s->clusters.row)
        hri_row_clusters_destroy(&s->clusters, o);
    if (s->coarse.row)
        hri_row_clusters_destroy(&s->coarse, o);
    hri_free(o->scratch, s->all);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct squeezed *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    hr_status_t status = hri_row_clusters_create(&s->clusters, o, param(o, "cluster"));
    if (status == HR_OK && param(o, "levels") == 2)
        status = hri_row_clusters_create(&s->coarse, o, coarse_target(o));
    s->coarse.target = COARSE_TARGET; /* its rows are centroids */
    if (status == HR_OK && o->head == 0) {
        s->all =
            hri_array(o->scratch, (o->n_heads ? o->n_heads : 1) * (size_t)s->clusters.clusters_max,
                      sizeof *s->all);
        status = s->all ? HR_OK : hri_alloc_status();
    }
    if (status != HR_OK)
        destroy(head);
    return status;
}

/* The second level groups the centroids that the first just made. */
static hr_status_t coarse_add(struct hri_index_head *head, uint32_t first_cluster)
{
    const struct hri_index_options *o = &head->options;
    struct squeezed *s = head->state;
    uint32_t n = s->clusters.n - first_cluster;
    float *means = hri_aligned(o->scratch, 64, (n + (size_t)1) * o->k_dim * sizeof *means);
    if (!means)
        return hri_alloc_status();
    for (uint32_t i = 0; i < n; i++)
        hri_means_read(&s->clusters.means, o, first_cluster + i, means + (size_t)i * o->k_dim,
                       NULL);
    hr_status_t status =
        hri_row_clusters_add(&s->coarse, o, means, n, first_cluster, param(o, "iterations"));
    hri_free(o->scratch, means);
    return status;
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    const struct hri_index_options *o = &head->options;
    struct squeezed *s = head->state;
    uint32_t before = s->clusters.n;
    (void)v, (void)position_end;
    hr_status_t status =
        hri_row_clusters_add(&s->clusters, o, k, n, first_row, param(o, "iterations"));
    return status == HR_OK && s->coarse.row ? coarse_add(head, before) : status;
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    struct squeezed *s = head->state;
    hri_row_clusters_truncate(&s->clusters, n_rows);
    if (s->coarse.row)
        hri_row_clusters_truncate(&s->coarse, s->clusters.n);
}

/* Scratch of a head: logits [g][clusters], importance [clusters], coarse ranks [clusters], compared [clusters]. */
struct scratch {
    size_t stride;
    float *logits, *importance;
    struct hri_ranked *ranked;
    uint8_t *compared;
};

static size_t scratch_bytes(const struct hri_index_options *o)
{
    size_t stride = hri_lanes_up(hri_row_clusters_max(o, param(o, "cluster")));
    return stride * ((o->g + 1) * sizeof(float) + sizeof(struct hri_ranked) + 1) + 64;
}

static struct scratch scratch_at(const struct hri_index_head *head, const struct hri_select_in *in)
{
    const struct squeezed *s = head->state;
    struct scratch w = {.stride = hri_lanes_up(s->clusters.clusters_max), .logits = in->scratch};
    w.importance = w.logits + head->options.g * w.stride;
    w.ranked = (struct hri_ranked *)(void *)(w.importance + w.stride);
    w.compared = (uint8_t *)(w.ranked + w.stride);
    return w;
}

/* importance[i] += exp(q . c_i) / sum over those compared of count * exp(q . c), mean over the group. */
static void weigh(const struct hri_index_head *head, const struct hri_row_clusters *c,
                  const struct hri_select_in *in, struct scratch *w)
{
    const struct hri_index_options *o = &head->options;
    hri_means_dots(&c->means, o, in->q, c->n, w->logits, w->stride);
    memset(w->importance, 0, c->n * sizeof *w->importance);
    for (uint32_t g = 0; g < o->g; g++) {
        const float *x = w->logits + g * w->stride;
        float top = -INFINITY;
        double total = 0;
        for (uint32_t i = 0; i < c->n; i++)
            top = w->compared[i] ? fmaxf(top, x[i]) : top;
        for (uint32_t i = 0; i < c->n; i++)
            if (w->compared[i])
                total += (double)hri_row_cluster_rows(c, i) * expf(x[i] - top);
        for (uint32_t i = 0; i < c->n && total > 0; i++)
            if (w->compared[i])
                w->importance[i] += (float)(expf(x[i] - top) / total / o->g);
    }
}

/* Marks the centroids of the best coarse ones, until a share of all is marked. */
static void open_coarse(const struct hri_index_head *head, const struct hri_select_in *in,
                        struct scratch *w)
{
    const struct squeezed *s = head->state;
    const struct hri_row_clusters *c = &s->coarse;
    uint32_t open = 0,
             most = (uint32_t)ceil(hri_recipe_value(&head->options.recipe, "open") * s->clusters.n);
    memset(w->compared, 1, c->n);
    weigh(head, c, in, w);
    for (uint32_t i = 0; i < c->n; i++)
        w->ranked[i] = (struct hri_ranked){w->importance[i], i};
    hri_rank_sort(w->ranked, c->n);
    memset(w->compared, 0, s->clusters.n);
    for (uint32_t i = 0; i < c->n && open < most; i++)
        for (uint32_t j = c->first[w->ranked[i].item]; j < c->first[w->ranked[i].item + 1];
             j++, open++)
            w->compared[c->row[j]] = 1;
}

static hr_status_t select_layer(struct hri_index_head *const *heads, uint32_t n_heads,
                                const struct hri_select_in *in, struct hri_select_out *out)
{
    const struct squeezed *first = heads[0]->state;
    double threshold = hri_recipe_value(&heads[0]->options.recipe, "threshold");
    uint64_t budget = 0;
    uint32_t n = 0;
    for (uint32_t h = 0; h < n_heads; h++) {
        const struct squeezed *s = heads[h]->state;
        struct scratch w = scratch_at(heads[h], &in[h]);
        if (s->coarse.row)
            open_coarse(heads[h], &in[h], &w);
        else
            memset(w.compared, 1, s->clusters.n);
        weigh(heads[h], &s->clusters, &in[h], &w);
        for (uint32_t i = 0; i < s->clusters.n; i++)
            if (w.compared[i] && w.importance[i] > threshold)
                first->all[n++] =
                    (struct hri_ranked){w.importance[i], h * s->clusters.clusters_max + i};
        budget += in[h].row_bytes ? in[h].budget_bytes / in[h].row_bytes : 0;
    }
    hri_rank_sort(first->all, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t h = first->all[i].item / first->clusters.clusters_max,
                 c = first->all[i].item % first->clusters.clusters_max;
        const struct hri_row_clusters *own = &((const struct squeezed *)heads[h]->state)->clusters;
        uint32_t rows = hri_row_cluster_rows(own, c);
        if (rows > budget || rows > out[h].items_max - out[h].n_items)
            break; /* the threshold */
        memcpy(out[h].items + out[h].n_items, own->row + own->first[c], rows * sizeof(uint32_t));
        out[h].n_items += rows;
        budget -= rows;
    }
    for (uint32_t h = 0; h < n_heads; h++)
        out[h].bytes = (uint64_t)out[h].n_items * in[h].row_bytes;
    return HR_OK;
}

static hr_status_t select_one(struct hri_index_head *head, const struct hri_select_in *in,
                              struct hri_select_out *out)
{
    return select_layer(&head, 1, in, out);
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct squeezed *s = head->state;
    hri_row_clusters_image(&s->clusters, &head->options, head->n_rows, im);
    if (s->coarse.row)
        hri_row_clusters_image(&s->coarse, &head->options, s->clusters.n, im);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .scratch_bytes = scratch_bytes,
    .select = select_one,
    .select_layer = select_layer,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
    .image = image,
};

static const struct hri_param params_squeezed[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"cluster", "mean tokens per cluster", "Squeezed Attention, section 3.1", 20, 9, 4096},
    {"iterations", "k-means iterations", "", 10, 1, 100},
    {"threshold", "importance above which a cluster is read; 0: calibrated to the budget",
     "Squeezed Attention, section 3.1", 0, 0, 1},
    {"levels", "2: centroids of centroids first", "Squeezed Attention, section 3.3", 1, 1, 2},
    {"open", "share of the centroids that the second level lets through", "", 0.5, 0, 1},
    PARAM_END};

const struct hri_selector hri_selector_squeezed = {
    .name = "squeezed",
    .summary = "clusters of keys whose estimated share of attention exceeds one threshold",
    .source = "Squeezed Attention, arXiv 2411.09688",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .shares_budget = true,
    .params = params_squeezed,
    .ops = &ops,
};
