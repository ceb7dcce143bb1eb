/* InfiniGen (OSDI 2024): a layer's rows are chosen a layer early. Queries and keys are turned to the strongest directions of the
 * queries (there: SVD of query activations, folded into the weights; here: eigenvectors of the prompt's query moment) and 30 % of
 * the columns of the keys stay on the device. The query is a guess made of the input of the layer before (in->early_q; the step's own
 * query where none was given). Rows whose partial score lies within alpha of the largest count; all heads of a layer fetch the mean of
 * their counts, at most a share of the rows, best first. What is not chosen is dropped. */
#include "index/head.h"
#include "index/linalg.h"
#include "index/means.h"
#include "index/params.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define QUERIES_PER_CALL 32u

struct infini {
    float *moment;     /* [k_dim][k_dim] of the prompt's queries */
    float *projection; /* [columns][k_dim], once the first rows came */
    uint16_t *keys;    /* [rows_max][columns] float16 */
    float *q;          /* [g][columns] */
    uint32_t columns;  /* a multiple of 8; beyond the share they are 0 */
    bool has_basis, has_queries;
};

static uint32_t columns_of(const struct hri_index_options *o)
{
    uint32_t n = (uint32_t)(hri_recipe_value(&o->recipe, "columns") * o->k_dim);
    return ((n ? n : 1) + 7) / 8 * 8;
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return (uint64_t)o->rows_max * columns_of(o) * sizeof(uint16_t) +
           (uint64_t)columns_of(o) * o->k_dim * sizeof(float);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct infini *s = head->state;
    (void)n_blocks;
    return head->n_rows ? (uint64_t)head->n_rows * s->columns * sizeof(uint16_t) +
                              (uint64_t)s->columns * head->options.k_dim * sizeof(float)
                        : 0;
}

static void destroy(struct hri_index_head *head)
{
    struct infini *s = head->state;
    const struct hri_index_options *o = &head->options;
    hri_free(o->scratch, s->moment);
    hri_free(o->device, s->projection);
    hri_free(o->device, s->keys);
    hri_free(o->scratch, s->q);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct infini *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->columns = columns_of(o);
    s->moment = hri_aligned_zero(o->scratch, 64, (size_t)o->k_dim * o->k_dim * sizeof(float));
    s->projection = hri_aligned_zero(o->device, 64, (size_t)s->columns * o->k_dim * sizeof(float));
    s->keys = hri_aligned(o->device, 64, (size_t)o->rows_max * s->columns * sizeof *s->keys);
    s->q = hri_aligned(o->scratch, 64, (size_t)o->g * s->columns * sizeof(float));
    if (s->moment && s->projection && s->keys && s->q)
        return HR_OK;
    destroy(head);
    return hri_alloc_status();
}

static void observe(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position)
{
    const struct hri_index_options *o = &head->options;
    struct infini *s = head->state;
    uint32_t stride = n / QUERIES_PER_CALL ? n / QUERIES_PER_CALL : 1;
    (void)first_position;
    for (uint32_t i = 0; !s->has_basis && i < n; i += stride) {
        o->kernels->second_moment(q + (size_t)i * o->g * o->k_dim, o->g, o->k_dim, s->moment);
        s->has_queries = true;
    }
}

/* The directions in which the queries are largest; where none were seen, the keys. */
static hr_status_t make_basis(struct hri_index_head *head, const float *k, uint32_t n)
{
    const struct hri_index_options *o = &head->options;
    struct infini *s = head->state;
    uint32_t d = o->k_dim, used = (uint32_t)(hri_recipe_value(&o->recipe, "columns") * d);
    if (!s->has_queries)
        o->kernels->second_moment(k, n, d, s->moment);
    double *a = hri_array(o->scratch, (size_t)d * d, sizeof *a);
    double *values = hri_array(o->scratch, d, sizeof *values);
    void *work = hri_array(o->scratch, 1, hri_eigen_work_bytes(d));
    hr_status_t status = a && values && work ? HR_OK : hri_alloc_status();
    for (size_t i = 0; status == HR_OK && i < (size_t)d * d; i++)
        a[i] = s->moment[i];
    if (status == HR_OK)
        status = hri_eigen(a, d, values, work);
    used = used ? used : 1;
    for (uint32_t r = 0; status == HR_OK && r < used; r++)
        for (uint32_t j = 0; j < d; j++)
            s->projection[(size_t)r * d + j] = (float)a[(size_t)(d - 1 - r) * d + j];
    s->has_basis = status == HR_OK;
    hri_free(o->scratch, a);
    hri_free(o->scratch, values);
    hri_free(o->scratch, work);
    return status;
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    const struct hri_index_options *o = &head->options;
    struct infini *s = head->state;
    (void)v, (void)position_end;
    hr_status_t status = s->has_basis ? HR_OK : make_basis(head, k, n);
    if (status != HR_OK)
        return status;
    float *partial = hri_aligned(o->scratch, 64, (size_t)n * s->columns * sizeof *partial);
    if (!partial)
        return hri_alloc_status();
    o->kernels->matmul_nt(k, n, o->k_dim, s->projection, s->columns, partial);
    for (size_t i = 0; i < (size_t)n * s->columns; i++)
        s->keys[(size_t)first_row * s->columns + i] = hri_half_clamped(partial[i]);
    hri_free(o->scratch, partial);
    return HR_OK;
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    (void)head, (void)n_rows; /* rows beyond are written again before they are read */
}

static size_t scratch_bytes(const struct hri_index_options *o)
{
    size_t stride = hri_lanes_up(o->rows_max);
    return o->g * stride * sizeof(float) + stride * sizeof(struct hri_ranked) + 64;
}

static struct hri_ranked *ranks_at(const struct hri_index_options *o,
                                   const struct hri_select_in *in)
{
    return (struct hri_ranked *)(void *)((float *)in->scratch + o->g * hri_lanes_up(o->rows_max));
}

/* Partial scores relative to the largest per query head, the best of the group into the ranks. Returns how many rows lie
 * within alpha, mean over the group. */
static double speculate(struct hri_index_head *head, const struct hri_select_in *in)
{
    const struct hri_index_options *o = &head->options;
    struct infini *s = head->state;
    uint32_t n = head->n_rows;
    size_t stride = hri_lanes_up(o->rows_max), count = 0;
    float *scores = in->scratch, alpha = (float)hri_recipe_value(&o->recipe, "alpha");
    struct hri_ranked *ranked = ranks_at(o, in);
    o->kernels->matmul_nt(in->early_q ? in->early_q : in->q, o->g, o->k_dim, s->projection,
                          s->columns, s->q);
    struct hri_rows rows = {.base = s->keys,
                            .stride_bytes = s->columns * sizeof *s->keys,
                            .n = n,
                            .dtype = HR_DTYPE_F16};
    o->kernels->score_rows(s->q, o->g, s->columns, rows, o->soft_cap, scores, stride);
    for (uint32_t i = 0; i < n; i++)
        ranked[i] = (struct hri_ranked){-INFINITY, i};
    for (uint32_t g = 0; g < o->g; g++) {
        const float *x = scores + g * stride;
        float top = o->kernels->max(x, n);
        for (uint32_t i = 0; i < n; i++) {
            count += x[i] > top - alpha;
            ranked[i].key = fmaxf(ranked[i].key, x[i] - top);
        }
    }
    return (double)count / o->g;
}

static hr_status_t select_layer(struct hri_index_head *const *heads, uint32_t n_heads,
                                const struct hri_select_in *in, struct hri_select_out *out)
{
    const struct hri_index_options *o = &heads[0]->options;
    double mean = 0, most = hri_recipe_value(&o->recipe, "most") * heads[0]->n_rows;
    for (uint32_t h = 0; h < n_heads; h++)
        mean += heads[h]->n_rows ? speculate(heads[h], &in[h]) / n_heads : 0;
    for (uint32_t h = 0; h < n_heads; h++) {
        uint32_t n = (uint32_t)fmin(floor(mean + 1e-9), most);
        uint64_t fits = in[h].row_bytes ? in[h].budget_bytes / in[h].row_bytes : 0;
        n = n < fits ? n : (uint32_t)fits;
        n = n < out[h].items_max ? n : out[h].items_max;
        struct hri_ranked *ranked = ranks_at(&heads[h]->options, &in[h]);
        hri_rank_select(ranked, heads[h]->n_rows, n);
        hri_rank_sort(ranked, n);
        for (uint32_t i = 0; i < n; i++)
            out[h].items[i] = ranked[i].item;
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
    const struct hri_index_options *o = &head->options;
    struct infini *s = head->state;
    hri_image_flag(im, &s->has_basis);
    hri_image_flag(im, &s->has_queries);
    hri_image_floats(im, s->moment, (size_t)o->k_dim * o->k_dim);
    hri_image_floats(im, s->projection, (size_t)s->columns * o->k_dim);
    hri_image_halfs(im, s->keys, (size_t)head->n_rows * s->columns);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .scratch_bytes = scratch_bytes,
    .observe = observe,
    .select = select_one,
    .select_layer = select_layer,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
    .image = image,
};

static const struct hri_param params_infinigen[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"columns", "share of the key's turned columns that stay on the device",
     "InfiniGen, section 5.1", 0.3, 0.01, 1},
    {"alpha", "logits below the largest up to which a row counts", "InfiniGen, section 5.1", 4, 0,
     8},
    {"most", "share of the rows that is never exceeded", "InfiniGen, section 5.1", 0.2, 0, 1},
    PARAM_END};

const struct hri_selector hri_selector_infinigen = {
    .name = "infinigen",
    .summary = "rows by scores in few turned columns of the keys, speculated from the layer before",
    .source = "InfiniGen, OSDI 2024, arXiv 2406.19707",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .wants_early_q = true,
    .params = params_infinigen,
    .ops = &ops,
};
