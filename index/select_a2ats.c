/* A2ATS (arXiv 2502.12665): keys by one vector quantiser whose centroids keep the scores of sample queries, not the keys
 * themselves: k-means under |P (k - c)| with P'P the queries' second moment. Positions are decoupled (windowed rotary
 * embedding): keys are coded as they were before rotation, and a query is turned as if every row outside the window stood at one distance.
 * Softmax of the estimated scores, summed over the group; the best rows are read with their true positions, the rest is dropped. */
#include "index/coded_rows.h"
#include "index/linalg.h"
#include "index/params.h"
#include "index/rotation.h"
#include "index/rows.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define QUERIES_PER_CALL 32u
#define RIDGE            0.01 /* of the mean diagonal: directions no sample query had */

struct a2ats {
    struct hri_coded_rows coded; /* first: tests read it */
    struct hri_rotation rotation;
    float *moment; /* [d][d] of queries, turned to the fixed distance */
    float *metric; /* [d][d] */
    float *u;      /* [g][d] the step's query, turned */
    bool has_queries;
};

static uint32_t param(const struct hri_index_options *o, const char *key)
{
    return (uint32_t)hri_recipe_value(&o->recipe, key);
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_coded_rows_bytes(o, 1, param(o, "codes"), o->rows_max);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct a2ats *s = head->state;
    (void)n_blocks;
    return hri_coded_rows_held(&s->coded, head->n_rows);
}

static void destroy(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct a2ats *s = head->state;
    if (s->coded.d)
        hri_coded_rows_destroy(&s->coded, o);
    hri_rotation_destroy(&s->rotation, o->scratch);
    hri_free(o->scratch, s->moment);
    hri_free(o->scratch, s->metric);
    hri_free(o->scratch, s->u);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct a2ats *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    size_t square = (size_t)o->k_dim * o->k_dim * sizeof(float);
    s->moment = hri_aligned_zero(o->scratch, 64, square);
    s->metric = hri_aligned_zero(o->scratch, 64, square);
    s->u = hri_aligned(o->scratch, 64, (size_t)o->g * o->k_dim * sizeof *s->u);
    hr_status_t status = s->moment && s->metric && s->u ? HR_OK : hri_alloc_status();
    if (status == HR_OK)
        status = hri_rotation_create(&s->rotation, o->scratch, &o->rope);
    if (status == HR_OK)
        status = hri_coded_rows_create(&s->coded, o, 1, param(o, "codes"), param(o, "iterations"),
                                       param(o, "train"));
    if (status != HR_OK)
        destroy(head);
    return status;
}

/* The group's query of a position, as if it stood at the fixed distance from position 0. */
static void query_turn(const struct hri_index_head *head, const float *q, uint32_t position,
                       float *u)
{
    const struct hri_index_options *o = &head->options;
    const struct a2ats *s = head->state;
    uint32_t far = param(o, "distance");
    memcpy(u, q, (size_t)o->g * o->k_dim * sizeof *u);
    for (uint32_t g = 0; g < o->g; g++)
        hri_rotation_apply(&s->rotation, u + (size_t)g * o->k_dim, 1, o->k_dim,
                           position > far ? position - far : far - position,
                           position > far ? -1 : 1);
}

static void observe(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position)
{
    const struct hri_index_options *o = &head->options;
    struct a2ats *s = head->state;
    uint32_t stride = n / QUERIES_PER_CALL ? n / QUERIES_PER_CALL : 1;
    for (uint32_t i = 0; !s->coded.frozen && i < n; i += stride) {
        query_turn(head, q + (size_t)i * o->g * o->k_dim, first_position + i, s->u);
        o->kernels->second_moment(s->u, o->g, o->k_dim, s->moment);
        s->has_queries = true;
    }
}

/* P'P = the moment with a ridge; rows of P are eigenvectors times root eigenvalues. */
static hr_status_t metric_make(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct a2ats *s = head->state;
    uint32_t d = o->k_dim;
    double trace = 0, *a = hri_array(o->scratch, (size_t)d * d, sizeof *a),
           *values = hri_array(o->scratch, d, sizeof *values);
    void *work = hri_array(o->scratch, 1, hri_eigen_work_bytes(d));
    hr_status_t status = a && values && work ? HR_OK : hri_alloc_status();
    for (uint32_t j = 0; j < d; j++)
        trace += s->moment[(size_t)j * d + j];
    for (size_t i = 0; status == HR_OK && i < (size_t)d * d; i++)
        a[i] = s->moment[i] + (i % (d + 1) == 0 ? RIDGE * trace / d : 0);
    if (status == HR_OK)
        status = hri_eigen(a, d, values, work);
    for (size_t i = 0; status == HR_OK && i < (size_t)d * d; i++)
        s->metric[i] = (float)(a[i] * sqrt(fmax(values[i / d], 0)));
    if (status == HR_OK && trace > 0)
        s->coded.metric = s->metric;
    hri_free(o->scratch, a);
    hri_free(o->scratch, values);
    hri_free(o->scratch, work);
    return status;
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    const struct hri_index_options *o = &head->options;
    struct a2ats *s = head->state;
    (void)v, (void)position_end;
    hr_status_t status = HR_OK;
    if (s->has_queries && hri_coded_rows_trains(&s->coded, first_row, n))
        status = metric_make(head);
    if (status != HR_OK)
        return status;
    float *x = hri_aligned(o->scratch, 64, (size_t)n * o->k_dim * sizeof *x);
    if (!x)
        return hri_alloc_status();
    memcpy(x, k, (size_t)n * o->k_dim * sizeof *x);
    hri_rotation_apply(&s->rotation, x, n, o->k_dim, o->n_sink + first_row, -1);
    status = hri_coded_rows_add(&s->coded, o, x, n, first_row);
    hri_free(o->scratch, x);
    return status;
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    struct a2ats *s = head->state;
    hri_coded_rows_truncate(&s->coded, n_rows);
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    struct a2ats *s = head->state;
    struct hri_rows_step step = hri_rows_step_at(head, in);
    query_turn(head, in->q, in->position, s->u);
    hri_coded_rows_score(&s->coded, &head->options, s->u, head->n_rows, step.logits, step.stride);
    hri_rows_take_softmax(head, in, &step, out);
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct a2ats *s = head->state;
    size_t square = (size_t)head->options.k_dim * head->options.k_dim;
    bool has_metric = s->coded.metric != NULL;
    hri_image_flag(im, &s->has_queries);
    hri_image_flag(im, &has_metric);
    hri_image_floats(im, s->moment, square);
    hri_image_floats(im, s->metric, square);
    s->coded.metric = has_metric ? s->metric : NULL;
    hri_coded_rows_image(&s->coded, &head->options, head->n_rows, im);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .scratch_bytes = hri_rows_step_bytes,
    .observe = observe,
    .select = select_rows,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
    .image = image,
};

static const struct hri_param params_a2ats[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"codes", "centroids", "", 512, 1, 65536},
    {"iterations", "k-means iterations", "", 10, 1, 100},
    {"distance", "tokens at which every row outside the window is taken to stand",
     "A2ATS, section 3.1", 2048, 0, 1048576},
    {"train", "rows that centroids are made from at least, before they stay as they are", "", 4096,
     1, 1048576},
    PARAM_END};

const struct hri_selector hri_selector_a2ats = {
    .name = "a2ats",
    .summary = "rows by keys quantised for the scores of sample queries, positions decoupled",
    .source = "A2ATS, arXiv 2502.12665",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_a2ats,
    .ops = &ops,
};
