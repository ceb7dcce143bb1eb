/* TokenSelect (arXiv 2411.02886): exact logits of all keys, which stay on the device; softmax per query head, summed over all heads
 * of the layer (soft voting): one choice of tokens for all. The choice is used again while the queries' mean cosine with those that
 * made it stays above a threshold. What is not chosen is dropped. Since the keys are on the device, values alone are fetched. */
#include "index/kept.h"
#include "index/params.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

struct tokens {
    unsigned char *k; /* [rows_max][k_dim] in the sequence's dtype */
    size_t key_bytes;
    struct hri_kept kept; /* rows; the items of head 0 are the layer's */
};

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return (uint64_t)o->rows_max * o->k_dim * hr_dtype_bytes(o->dtype);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct tokens *s = head->state;
    (void)n_blocks;
    return head->n_rows * s->key_bytes;
}

static void destroy(struct hri_index_head *head)
{
    struct tokens *s = head->state;
    const struct hri_index_options *o = &head->options;
    hri_free(o->device, s->k);
    hri_kept_destroy(&s->kept, o);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct tokens *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->key_bytes = o->k_dim * hr_dtype_bytes(o->dtype);
    s->k = hri_aligned(o->device, 64, o->rows_max * s->key_bytes);
    hr_status_t status =
        s->k ? hri_kept_create(&s->kept, o, o->head == 0 ? o->rows_max : 0) : hri_alloc_status();
    if (status != HR_OK)
        destroy(head);
    return status;
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    const struct tokens *s = head->state;
    (void)v, (void)position_end;
    head->options.kernels->from_f32(s->k + first_row * s->key_bytes, k, head->options.dtype,
                                    (size_t)n * head->options.k_dim);
    return HR_OK;
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    struct tokens *s = head->state;
    (void)n_rows;
    s->kept.valid = false;
}

static void rebuild_row(struct hri_index_head *head, uint32_t row, float *k)
{
    const struct tokens *s = head->state;
    head->options.kernels->to_f32(k, s->k + row * s->key_bytes, head->options.dtype,
                                  head->options.k_dim);
}

/* Scratch of head 0: votes and ranks; of every head: logits. */
static size_t scratch_bytes(const struct hri_index_options *o)
{
    size_t stride = hri_lanes_up(o->rows_max);
    return (o->g + 1) * stride * sizeof(float) + stride * sizeof(struct hri_ranked) + 64;
}

/* Adds the shares of the head's attention, sink and window included, to votes. */
static void vote(const struct hri_index_head *head, const struct hri_select_in *in, float *votes)
{
    const struct hri_index_options *o = &head->options;
    const struct tokens *s = head->state;
    uint32_t n = head->n_rows;
    size_t stride = hri_lanes_up(o->rows_max);
    float *logits = (float *)in->scratch + stride;
    struct hri_rows rows = {.base = s->k, .stride_bytes = s->key_bytes, .n = n, .dtype = o->dtype};
    o->kernels->score_rows(in->q, o->g, o->k_dim, rows, o->soft_cap, logits, stride);
    for (uint32_t g = 0; g < o->g; g++) {
        float *x = logits + g * stride, top = o->kernels->max(x, n);
        bool near = in->near && in->near->l[g] > 0;
        if (near && in->near->m[g] > top)
            top = in->near->m[g];
        float total = o->kernels->exp_sum(x, top, x, n);
        if (near)
            total += in->near->l[g] * expf(in->near->m[g] - top);
        for (uint32_t i = 0; i < n; i++)
            votes[i] += x[i] / total;
    }
}

static bool turned(struct hri_index_head *const *heads, uint32_t n_heads,
                   const struct hri_select_in *in)
{
    const struct hri_index_options *o = &heads[0]->options;
    double cosine = 0;
    for (uint32_t h = 0; h < n_heads; h++) {
        const struct tokens *s = heads[h]->state;
        if (!s->kept.valid)
            return true;
        cosine += hri_cosine(s->kept.q, in[h].q, o->g, o->k_dim) / n_heads;
    }
    return !(cosine > hri_recipe_value(&o->recipe, "reuse_cosine"));
}

static void choose(struct hri_index_head *const *heads, uint32_t n_heads,
                   const struct hri_select_in *in, uint32_t n_best)
{
    struct tokens *first = heads[0]->state;
    const struct hri_index_options *o = &heads[0]->options;
    uint32_t n = heads[0]->n_rows;
    size_t stride = hri_lanes_up(o->rows_max);
    float *votes = in[0].scratch;
    struct hri_ranked *ranked = (struct hri_ranked *)(void *)(votes + (o->g + 1) * stride);
    memset(votes, 0, n * sizeof *votes);
    for (uint32_t h = 0; h < n_heads; h++)
        vote(heads[h], &in[h], votes);
    for (uint32_t i = 0; i < n; i++)
        ranked[i] = (struct hri_ranked){votes[i], i};
    hri_rank_select(ranked, n, n_best);
    hri_rank_sort(ranked, n_best);
    for (uint32_t i = 0; i < n_best; i++)
        first->kept.items[i] = ranked[i].item;
    first->kept.n = n_best;
    for (uint32_t h = 0; h < n_heads; h++) {
        struct tokens *s = heads[h]->state;
        memcpy(s->kept.q, in[h].q, (size_t)o->g * o->k_dim * sizeof(float));
        s->kept.valid = true;
    }
}

static hr_status_t select_layer(struct hri_index_head *const *heads, uint32_t n_heads,
                                const struct hri_select_in *in, struct hri_select_out *out)
{
    const struct tokens *first = heads[0]->state;
    uint64_t fits = in[0].row_bytes ? in[0].budget_bytes / in[0].row_bytes : 0;
    uint32_t n = heads[0]->n_rows < fits ? heads[0]->n_rows : (uint32_t)fits;
    n = n < out[0].items_max ? n : out[0].items_max;
    if (turned(heads, n_heads, in))
        choose(heads, n_heads, in, n);
    n = n < first->kept.n ? n : first->kept.n;
    for (uint32_t h = 0; h < n_heads; h++) {
        memcpy(out[h].items, first->kept.items, n * sizeof *out[h].items);
        out[h].n_items = n;
        out[h].bytes = (uint64_t)n * in[h].row_bytes;
    }
    return HR_OK;
}

static hr_status_t select_one(struct hri_index_head *head, const struct hri_select_in *in,
                              struct hri_select_out *out)
{
    return select_layer(&head, 1, in, out);
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct tokens *s = head->state;
    hri_image_bytes(im, s->k, head->n_rows * s->key_bytes);
    hri_kept_image(&s->kept, &head->options, im);
    for (uint32_t i = 0; im->loads && hri_image_ok(im) && s->kept.valid && i < s->kept.n; i++)
        hri_image_check(im, s->kept.items[i] < head->n_rows, "a kept choice of nothing");
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
    .forget = truncate_rows,
    .rebuild_row = rebuild_row,
    .image = image,
};

static const struct hri_param params_tokenselect[] = {
    {"sink", "first tokens that stay on the device", "TokenSelect, section 5.1", 128, 0, 4096},
    {"window", "newest tokens that stay on the device", "TokenSelect, section 5.1", 512, 1, 65536},
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"reuse_cosine", "mean cosine of the queries above which a choice is used again",
     "TokenSelect, section 4.3", 0.9, -1, 1},
    PARAM_END};

const struct hri_selector hri_selector_tokenselect = {
    .name = "tokenselect",
    .summary = "tokens by exact scores of keys kept on the device, all heads of a layer voting for "
               "one choice",
    .source = "TokenSelect, arXiv 2411.02886",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_tokenselect,
    .ops = &ops,
};
