/* PQCache (arXiv 2407.12820): every key as the numbers of its nearest centroids in 2 halves of its dimensions, 64 centroids
 * each, from k-means over the prompt's keys. A step looks up q . centroid, adds the halves, takes the softmax over the rows per query
 * head, sums it over the group and reads the best rows. What is not chosen is dropped. */
#include "index/coded_rows.h"
#include "index/params.h"
#include "index/rows.h"
#include "index/image.h"

static uint32_t param(const struct hri_index_options *o, const char *key)
{
    return (uint32_t)hri_recipe_value(&o->recipe, key);
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_coded_rows_bytes(o, param(o, "parts"), 1u << param(o, "bits"), o->rows_max);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    (void)n_blocks;
    return hri_coded_rows_held(head->state, head->n_rows);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    head->state = hri_calloc(o->scratch, 1, sizeof(struct hri_coded_rows));
    if (!head->state)
        return hri_alloc_status();
    hr_status_t status =
        hri_coded_rows_create(head->state, o, param(o, "parts"), 1u << param(o, "bits"),
                              param(o, "iterations"), param(o, "train"));
    if (status != HR_OK)
        hri_free(o->scratch, head->state);
    return status;
}

static void destroy(struct hri_index_head *head)
{
    hri_coded_rows_destroy(head->state, &head->options);
    hri_free(head->options.scratch, head->state);
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    (void)v, (void)position_end;
    return hri_coded_rows_add(head->state, &head->options, k, n, first_row);
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    hri_coded_rows_truncate(head->state, n_rows);
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    struct hri_rows_step step = hri_rows_step_at(head, in);
    hri_coded_rows_score(head->state, &head->options, in->q, head->n_rows, step.logits,
                         step.stride);
    hri_rows_take_softmax(head, in, &step, out);
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    hri_coded_rows_image(head->state, &head->options, head->n_rows, im);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .scratch_bytes = hri_rows_step_bytes,
    .select = select_rows,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
    .image = image,
};

static const struct hri_param params_pqcache[] = {
    {"sink", "first tokens that stay on the device", "PQCache, section 4", 32, 0, 4096},
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"parts", "sub-vectors of a key", "PQCache, section 4", 2, 1, 32},
    {"bits", "of a sub-vector's code", "PQCache, section 4", 6, 1, 12},
    {"iterations", "k-means iterations", "PQCache, section 3.3", 25, 1, 100},
    {"train", "rows that centroids are made from at least, before they stay as they are", "", 4096,
     1, 1048576},
    PARAM_END};

const struct hri_selector hri_selector_pqcache = {
    .name = "pqcache",
    .summary = "rows by product-quantised keys: table look-ups, softmax, sum over the group",
    .source = "PQCache, arXiv 2407.12820",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_pqcache,
    .ops = &ops,
};
