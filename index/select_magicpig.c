/* MagicPIG (arXiv 2410.16179): attention estimated from a sample. Keys less their mean lie in 150 hash tables of 10 bits; rows
 * that share a bucket with the query in two tables or more are the sample of that query head, and each enters the softmax
 * with its logit minus the logarithm of the probability that it was drawn. What was not drawn counts as nothing.
 *
 * The sample's size is what the hash makes it. Where it exceeds the budget, rows are drawn from it evenly and their weights grow
 * accordingly, so that the estimator stays what it was. Query heads of a group have samples of their own; a row that one of
 * them drew moves once. */
#include "base/rng.h"
#include "index/magicpig.h"
#include "index/params.h"
#include "index/rows.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define PROBABILITY_MIN 1e-12 /* keeps logarithms finite */

static uint32_t param(const struct hri_index_options *o, const char *key)
{
    return (uint32_t)hri_recipe_value(&o->recipe, key);
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return o->rows_max * sizeof(float);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    (void)n_blocks;
    return head->n_rows * sizeof(float);
}

static uint64_t host_bytes(const struct hri_index_head *head)
{
    const struct hri_magicpig *s = head->state;
    return hri_simhash_bytes(&s->hash);
}

static void destroy(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_magicpig *s = head->state;
    hri_simhash_destroy(&s->hash, o);
    hri_free(o->scratch, s->center);
    hri_free(o->device, s->length);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_magicpig *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    uint64_t seed = o->seed ^ (uint64_t)o->layer << 40 ^ (uint64_t)o->head << 20;
    hr_status_t status =
        hri_simhash_create(&s->hash, o, param(o, "bits"), param(o, "tables"), seed);
    s->center = hri_calloc(o->scratch, o->k_dim, sizeof *s->center);
    s->length = hri_array(o->device, o->rows_max, sizeof *s->length);
    if (status == HR_OK && (!s->center || !s->length))
        status = hri_alloc_status();
    if (status != HR_OK)
        destroy(head);
    return status;
}

static void center_make(struct hri_magicpig *s, const float *k, uint32_t n, uint32_t d)
{
    for (uint32_t j = 0; j < d; j++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += k[(size_t)i * d + j];
        s->center[j] = (float)(sum / n);
    }
    s->has_center = true;
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    const struct hri_index_options *o = &head->options;
    struct hri_magicpig *s = head->state;
    uint32_t d = o->k_dim;
    (void)v, (void)position_end;
    float *x = hri_aligned(o->scratch, 64, (size_t)n * d * sizeof *x);
    if (!x)
        return hri_alloc_status();
    if (!s->has_center)
        center_make(s, k, n, d);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < d; j++)
            x[(size_t)i * d + j] = k[(size_t)i * d + j] - s->center[j];
        s->length[first_row + i] = sqrtf(hri_dot(x + (size_t)i * d, x + (size_t)i * d, d));
    }
    hr_status_t status = hri_simhash_add(&s->hash, o, x, n, first_row);
    hri_free(o->scratch, x);
    return status;
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    struct hri_magicpig *s = head->state;
    hri_simhash_truncate(&s->hash, n_rows);
    s->has_center = s->has_center && n_rows > 0;
}

/* A step's scratch. */
struct sample {
    float length[HR_GROUP_MAX], center_dot[HR_GROUP_MAX]; /* |q|, q . centre */
    float shift;       /* log of how many rows of the sample one that moved stands for */
    uint32_t *buckets; /* [g][tables] */
    uint32_t *rows;    /* [rows_max] drawn by any query head */
    uint16_t *drawn;   /* [rows_max] a bit per query head */
    uint8_t *count;    /* [rows_max] collisions of one query head */
};

static size_t scratch_bytes(const struct hri_index_options *o)
{
    size_t rows = hri_lanes_up(o->rows_max), tables = param(o, "tables");
    return sizeof(struct sample) + o->g * tables * sizeof(uint32_t) +
           rows * (sizeof(uint32_t) + sizeof(uint16_t) + 1) + 64;
}

static struct sample *sample_at(const struct hri_index_options *o, const struct hri_select_in *in)
{
    struct sample *s = in->scratch;
    size_t rows = hri_lanes_up(o->rows_max);
    s->buckets = (uint32_t *)(s + 1);
    s->rows = s->buckets + (size_t)o->g * param(o, "tables");
    s->drawn = (uint16_t *)(s->rows + rows);
    s->count = (uint8_t *)(s->drawn + rows);
    return s;
}

/* Rows that share `least` buckets or more with query head g; returns the entries looked at. */
static uint32_t draw(const struct hri_simhash *h, uint32_t g, uint32_t least, struct sample *s,
                     uint32_t *n_rows)
{
    uint32_t seen = 0;
    for (uint32_t t = 0; t < h->tables; t++) {
        uint32_t row = h->bucket[((size_t)t << h->bits) + s->buckets[g * h->tables + t]];
        for (; row != HRI_SIMHASH_END; row = h->next[(size_t)row * h->tables + t], seen++) {
            s->count[row] += s->count[row] < UINT8_MAX;
            if (s->count[row] != least)
                continue;
            if (!s->drawn[row])
                s->rows[(*n_rows)++] = row;
            s->drawn[row] |= (uint16_t)(1u << g);
        }
    }
    return seen;
}

/* Every row of the sample is as likely as any other to be among the first `fit`. */
static void thin(const struct hri_index_options *o, uint32_t position, uint32_t n, uint32_t fit,
                 struct sample *s)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, o->seed ^ (uint64_t)o->layer << 48 ^ (uint64_t)o->head << 32 ^ position);
    for (uint32_t i = 0; i < fit; i++) {
        uint32_t j = i + (uint32_t)hri_rng_below(&rng, n - i), row = s->rows[i];
        s->rows[i] = s->rows[j];
        s->rows[j] = row;
    }
    s->shift = logf((float)n / (float)fit);
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct hri_magicpig *state = head->state;
    struct sample *s = sample_at(o, in);
    uint32_t n = 0, fit = hri_rows_fit(head, in, out), d = o->k_dim;
    s->shift = 0;
    if (head->n_rows == 0)
        return HR_OK;
    memset(s->drawn, 0, head->n_rows * sizeof *s->drawn);
    hri_simhash_query(&state->hash, o->kernels, in->q, o->g, s->buckets);
    for (uint32_t g = 0; g < o->g; g++) {
        const float *q = in->q + (size_t)g * d;
        s->length[g] = sqrtf(hri_dot(q, q, d));
        s->center_dot[g] = hri_dot(q, state->center, d);
        memset(s->count, 0, head->n_rows);
        out->rows_visited += draw(&state->hash, g, param(o, "collisions"), s, &n);
    }
    if (n > fit && fit > 0)
        thin(o, in->position, n, fit, s);
    out->n_items = n < fit ? n : fit;
    memcpy(out->items, s->rows, out->n_items * sizeof *out->items);
    out->bytes = (uint64_t)out->n_items * in->row_bytes;
    return HR_OK;
}

static void weigh_row(struct hri_index_head *head, const struct hri_select_in *in, uint32_t i,
                      uint32_t row, const float *dots, float *log_weight_out)
{
    const struct hri_index_options *o = &head->options;
    const struct hri_magicpig *state = head->state;
    const struct sample *s = in->scratch;
    (void)i;
    for (uint32_t g = 0; g < o->g; g++) {
        double lengths = (double)s->length[g] * state->length[row];
        double cosine = lengths > 0 ? ((double)dots[g] - s->center_dot[g]) / lengths : 0;
        double p = hri_simhash_probability(&state->hash, cosine, param(o, "collisions"));
        log_weight_out[g] =
            s->drawn[row] >> g & 1 ? s->shift - (float)log(fmax(p, PROBABILITY_MIN)) : -INFINITY;
    }
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct hri_magicpig *s = head->state;
    hri_simhash_image(&s->hash, &head->options, head->n_rows, im);
    hri_image_flag(im, &s->has_center);
    hri_image_floats(im, s->center, head->options.k_dim);
    hri_image_floats(im, s->length, head->n_rows);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .host_bytes = host_bytes,
    .create = create,
    .destroy = destroy,
    .scratch_bytes = scratch_bytes,
    .select = select_rows,
    .weigh_row = weigh_row,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
    .image = image,
};

static const struct hri_param params_magicpig[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE("MagicPIG attends the first of every 16 layers densely"),
    {"bits", "of a hash", "MagicPIG, section 5 (K)", 10, 1, 16},
    {"tables", "hash tables", "MagicPIG, section 5 (L)", 150, 8, 1024},
    {"collisions", "tables in which a row shares the query's bucket, at least",
     "MagicPIG, section 4.2", 2, 1, 8},
    PARAM_END};

const struct hri_selector hri_selector_magicpig = {
    .name = "magicpig",
    .summary = "rows drawn by locality-sensitive hashing, weighed by how likely that was",
    .source = "MagicPIG, arXiv 2410.16179",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_magicpig,
    .ops = &ops,
};
