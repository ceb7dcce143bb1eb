/* LouisKV (arXiv 2510.11292): the prompt is grouped by k-means, the output into temporal segments that end where its meaning
 * turns. Units are ranked by the softmax of query times mean key, averaged over the group; they are retrieved anew only at such
 * a boundary, where the mean cosine of the query with the first one of the running segment falls below tau, and kept in between.
 * What is not chosen is dropped. */
#include "index/clusters.h"
#include "index/kept.h"
#include "index/params.h"
#include "index/image.h"

#include <string.h>

struct louis {
    struct hri_clusters units;
    struct hri_kept kept;
    uint32_t prompt_end;     /* token after the newest one seen in a chunk of queries */
    uint64_t *boundary;      /* a bit per token: a segment of the output begins here */
    uint32_t boundaries_max; /* tokens */
};

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_clusters_bytes(o, o->blocks_max, false);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct louis *s = head->state;
    return n_blocks ? hri_clusters_bytes(&head->options, s->units.n, false) : 0;
}

static void destroy(struct hri_index_head *head)
{
    struct louis *s = head->state;
    const struct hri_index_options *o = &head->options;
    hri_clusters_destroy(&s->units, o);
    hri_kept_destroy(&s->kept, o);
    hri_free(o->scratch, s->boundary);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct louis *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->boundaries_max = o->rows_max + o->n_sink;
    s->boundary = hri_calloc(o->scratch, s->boundaries_max / 64 + 1, sizeof *s->boundary);
    hr_status_t status =
        s->boundary ? hri_clusters_create(&s->units, o, false) : hri_alloc_status();
    if (status == HR_OK)
        status = hri_kept_create(&s->kept, o, o->blocks_max);
    if (status != HR_OK)
        destroy(head);
    return status;
}

static void observe(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position)
{
    struct louis *s = head->state;
    (void)q;
    if (n > 1 && first_position + n > s->prompt_end)
        s->prompt_end = first_position + n;
}

/* Rows of the segment that are the prompt's. Where no queries were shown, a segment that is larger than those of a decode. A
 * whole number of units, so that blocks do not outnumber their tables; what is left over joins the output. */
static uint32_t prompt_rows(const struct hri_index_head *head, const struct hri_segment *segment)
{
    const struct hri_index_options *o = &head->options;
    const struct louis *s = head->state;
    uint32_t first = o->n_sink + segment->first_row, n = segment->n;
    if (n > (uint32_t)hri_recipe_value(&o->recipe, "decode_segment") || first + n <= s->prompt_end)
        return n;
    return s->prompt_end > first ? (s->prompt_end - first) / segment->target * segment->target : 0;
}

static bool is_boundary(const struct louis *s, uint32_t token)
{
    return token < s->boundaries_max && s->boundary[token / 64] >> token % 64 & 1;
}

/* Temporal segments: at least target rows, then up to the next boundary, at most cap. */
static uint32_t temporal_units(const struct hri_index_head *head, const struct hri_segment *segment,
                               uint32_t first, uint32_t *unit_rows)
{
    const struct louis *s = head->state;
    uint32_t token = head->options.n_sink + segment->first_row, n = 0, rows = 0;
    for (uint32_t i = first; i < segment->n; i++) {
        bool ends = rows == segment->cap || (rows >= segment->target && is_boundary(s, token + i));
        if (ends) {
            unit_rows[n++] = rows;
            rows = 0;
        }
        segment->order[i] = i;
        rows++;
    }
    if (rows)
        unit_rows[n++] = rows;
    return n;
}

static hr_status_t group(struct hri_index_head *head, struct hri_segment *segment)
{
    struct louis *s = head->state;
    uint32_t *unit_rows, n = prompt_rows(head, segment), n_units = 0;
    if (n)
        n_units = hri_centred_clusters(head, segment, n, &unit_rows);
    else
        unit_rows = segment->workspace;
    n_units += temporal_units(head, segment, n, unit_rows + n_units);
    hri_clusters_add(&s->units, head, segment, unit_rows, n_units);
    return HR_OK;
}

static void retrieve(struct hri_index_head *head, const struct hri_select_in *in,
                     struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct louis *s = head->state;
    struct hri_step step = hri_step_at(head, in);
    uint32_t n = s->units.n;
    hri_means_dots(&s->units.means, o, in->q, n, step.dots, step.stride);
    for (uint32_t c = 0; c < n; c++)
        step.ranked[c] = (struct hri_ranked){0, c};
    for (uint32_t g = 0; g < o->g; g++) {
        hri_softmax(o->kernels, step.dots + g * step.stride, step.work, n);
        for (uint32_t c = 0; c < n; c++)
            step.ranked[c].key += step.work[c];
    }
    hri_clusters_take(&s->units, head, in, step.ranked, n, step.mark, out);
}

static hr_status_t select_units(struct hri_index_head *head, const struct hri_select_in *in,
                                struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct louis *s = head->state;
    double tau = hri_recipe_value(&o->recipe, "tau");
    hri_clusters_heal(&s->units, head);
    if (s->kept.valid && hri_cosine(s->kept.q, in->q, o->g, o->k_dim) >= tau) {
        hri_kept_take(head, in, &s->kept, hri_step_at(head, in).ranked, out);
        return HR_OK;
    }
    if (in->position < s->boundaries_max)
        s->boundary[in->position / 64] |= (uint64_t)1 << in->position % 64;
    retrieve(head, in, out);
    hri_kept_store(&s->kept, o, in->q, out);
    return HR_OK;
}

static void forget(struct hri_index_head *head, uint32_t n_tokens)
{
    struct louis *s = head->state;
    hri_clusters_heal(&s->units, head);
    s->kept.valid = false;
    s->prompt_end = s->prompt_end < n_tokens ? s->prompt_end : n_tokens;
    for (uint32_t t = n_tokens; t < s->boundaries_max && t % 64; t++)
        s->boundary[t / 64] &= ~((uint64_t)1 << t % 64);
    for (uint32_t word = (n_tokens + 63) / 64; word < s->boundaries_max / 64 + 1; word++)
        s->boundary[word] = 0;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct louis *s = head->state;
    uint32_t words = s->boundaries_max / 64 + 1;
    while (!im->loads && words > 0 && s->boundary[words - 1] == 0)
        words--;
    hri_clusters_image(&s->units, head, im);
    hri_kept_image(&s->kept, &head->options, im);
    hri_image_u32(im, &s->prompt_end, UINT32_MAX, "");
    hri_image_u32(im, &words, s->boundaries_max / 64 + 1, "boundaries beyond the end");
    if (hri_image_ok(im))
        hri_image_bytes(im, s->boundary, words * sizeof *s->boundary);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .workspace_bytes = hri_centred_workspace_bytes,
    .group = group,
    .scratch_bytes = hri_step_bytes,
    .observe = observe,
    .forget = forget,
    .select = select_units,
    .image = image,
};

static const struct hri_param params_louiskv[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"block", "mean tokens per cluster of the prompt, fewest of a segment of the output",
     "LouisKV, section 4.2", 16, 4, 64},
    {"iterations", "k-means iterations", "", 10, 1, 50},
    {"tau", "mean cosine with the segment's first query below which units are retrieved anew",
     "LouisKV, section 4.1", 0.7, -1, 1},
    PARAM_END};

const struct hri_selector hri_selector_louiskv = {
    .name = "louiskv",
    .summary = "clusters of the prompt and temporal segments of the output, retrieved anew only "
               "where the query turns",
    .source = "LouisKV, arXiv 2510.11292",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_EXACT,
    .splits_clusters = true,
    .params = params_louiskv,
    .ops = &ops,
};
