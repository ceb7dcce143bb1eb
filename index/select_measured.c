/* Recipes that split the heads by what the prompt shows of them, or by a table where one is given.
 *
 * RazorAttention (arXiv 2407.15891): retrieval heads attend everything; the others sink and window, and one compensation row: the
 * mean key and mean value of all rows dropped, with weight log n. Published: retrieval heads are those that echo and induce on repeated
 * random tokens, which needs runs of the model; a table can say so (gates). Without one: the heads of a layer whose prompt queries
 * look farthest back.
 *
 * Task-KV (arXiv 2501.15113): heads whose outputs lie far from the mean of the layer's heads attend everything; the others sink, window
 * and, within the budget, the rows that the prompt's last queries looked at most. Measured on each prompt segment by itself. */
#include "index/head_class.h"
#include "index/params.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

struct measured {
    struct hri_samples samples;
    bool classified, retrieves;
    /* razor: sums of all rows so far, after each call of add_rows */
    double *k_sum, *v_sum; /* [k_dim], [v_dim] */
    /* task-kv */
    float *row_mass;           /* [rows_max] */
    struct hri_ranked *ranked; /* [rows_max] best first */
    uint32_t n_ranked;
};

static bool is_razor(const struct hri_index_options *o)
{
    return o->recipe.selector == &hri_selector_razorattention;
}

static void destroy(struct hri_index_head *head)
{
    struct measured *s = head->state;
    const struct hri_index_options *o = &head->options;
    hri_samples_destroy(&s->samples, o);
    hri_free(o->device, s->k_sum);
    hri_free(o->device, s->v_sum);
    hri_free(o->scratch, s->row_mass);
    hri_free(o->device, s->ranked);
    hri_free(o->scratch, s);
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return is_razor(o) ? (o->k_dim + o->v_dim) * sizeof(double)
                       : (uint64_t)o->rows_max * sizeof(struct hri_ranked);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    const struct measured *s = head->state;
    (void)n_blocks;
    if (s->retrieves)
        return 0;
    return is_razor(&head->options) ? device_bytes(&head->options)
                                    : (uint64_t)s->n_ranked * sizeof *s->ranked;
}

static hr_status_t create_tables(struct measured *s, const struct hri_index_options *o)
{
    hr_status_t status = hri_samples_create(&s->samples, o);
    if (status != HR_OK)
        return status;
    if (is_razor(o)) {
        s->k_sum = hri_calloc(o->device, o->k_dim, sizeof *s->k_sum);
        s->v_sum = hri_calloc(o->device, o->v_dim, sizeof *s->v_sum);
        return s->k_sum && s->v_sum ? HR_OK : hri_alloc_status();
    }
    s->row_mass = hri_calloc(o->scratch, o->rows_max, sizeof *s->row_mass);
    s->ranked = hri_array(o->device, o->rows_max, sizeof *s->ranked);
    return s->row_mass && s->ranked ? HR_OK : hri_alloc_status();
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct measured *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    hr_status_t status = create_tables(s, o);
    if (status != HR_OK) {
        destroy(head);
        return status;
    }
    s->retrieves = true; /* until it is known, nothing is lost */
    if (o->gate >= 0) {
        s->classified = true;
        s->retrieves = hri_gate_retrieves(o, hri_recipe_value(&o->recipe, "threshold"), 0);
    }
    return HR_OK;
}

static void observe(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position)
{
    struct measured *s = head->state;
    hri_samples_observe(&s->samples, &head->options, q, n, first_position);
}

static void classes_set(struct hri_index_head *const *heads, uint32_t n_heads,
                        const bool *retrieves)
{
    for (uint32_t h = 0; h < n_heads; h++) {
        struct measured *s = heads[h]->state;
        s->retrieves = retrieves[h];
        s->classified = true;
    }
}

/* -- razor -- */

static hr_status_t prepare_razor(struct hri_index_head *const *heads, uint32_t n_heads,
                                 const float *k, const float *v, uint32_t n, uint32_t first_row)
{
    const struct hri_samples *samples[HR_HEADS_MAX];
    bool retrieves[HR_HEADS_MAX], found = false;
    const struct measured *first = heads[0]->state;
    if (first->classified)
        return HR_OK;
    for (uint32_t h = 0; h < n_heads; h++)
        samples[h] = &((const struct measured *)heads[h]->state)->samples;
    hr_status_t status = hri_class_by_reach(
        heads, n_heads, samples, k, v, n, first_row,
        hri_recipe_value(&heads[0]->options.recipe, "retrieval"), retrieves, &found);
    if (found)
        classes_set(heads, n_heads, retrieves);
    return status;
}

static hr_status_t add_rows_razor(struct hri_index_head *head, const float *k, const float *v,
                                  uint32_t n, uint32_t first_row, uint32_t position_end)
{
    const struct hri_index_options *o = &head->options;
    struct measured *s = head->state;
    (void)first_row, (void)position_end;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < o->k_dim; j++)
            s->k_sum[j] += k[(size_t)i * o->k_dim + j];
        for (uint32_t j = 0; j < o->v_dim; j++)
            s->v_sum[j] += v[(size_t)i * o->v_dim + j];
    }
    return HR_OK;
}

/* The rows are not kept, so what goes is taken for average. */
static void truncate_razor(struct hri_index_head *head, uint32_t n_rows)
{
    const struct hri_index_options *o = &head->options;
    struct measured *s = head->state;
    double left = head->n_rows ? (double)n_rows / head->n_rows : 0;
    for (uint32_t j = 0; j < o->k_dim; j++)
        s->k_sum[j] *= left;
    for (uint32_t j = 0; j < o->v_dim; j++)
        s->v_sum[j] *= left;
}

static hr_status_t select_razor(struct hri_index_head *head, const struct hri_select_in *in,
                                struct hri_select_out *out)
{
    (void)in;
    out->all = ((const struct measured *)head->state)->retrieves;
    return HR_OK;
}

/* The compensation row of a streaming head. */
static uint32_t compensate(struct hri_index_head *head, const struct hri_select_in *in,
                           const struct hri_select_out *out, const uint32_t *blocks, uint32_t n,
                           struct hri_partial *part)
{
    const struct hri_index_options *o = &head->options;
    const struct measured *s = head->state;
    float weight[HR_GROUP_MAX], value[HR_GROUP_MAX * HR_HEAD_DIM_MAX];
    (void)blocks, (void)n;
    if (!out || out->all || head->n_rows == 0)
        return 0;
    for (uint32_t g = 0; g < o->g; g++) {
        double logit = 0;
        for (uint32_t j = 0; j < o->k_dim; j++)
            logit += in->q[(size_t)g * o->k_dim + j] * s->k_sum[j] / head->n_rows;
        if (o->soft_cap > 0)
            logit = o->soft_cap * tanh(logit / o->soft_cap);
        weight[g] = (float)(logit + log(head->n_rows));
        for (uint32_t j = 0; j < o->v_dim; j++)
            value[(size_t)g * o->v_dim + j] = (float)(s->v_sum[j] / head->n_rows);
    }
    hri_partial_add(part, o->g, o->v_dim, weight, value);
    return 1;
}

/* -- task-kv -- */

/* Distance of every head's outputs from the mean of all the layer's query heads, mean over samples and group. o: [n_heads]
 * arrays of [found][g][v_dim]. */
static void distances(const struct hri_index_options *o, float *const *out, uint32_t n_heads,
                      uint32_t found, double *distance)
{
    memset(distance, 0, n_heads * sizeof *distance);
    for (uint32_t s = 0; s < found; s++) {
        double center[HR_HEAD_DIM_MAX] = {0};
        for (uint32_t h = 0; h < n_heads; h++)
            for (uint32_t g = 0; g < o->g; g++)
                for (uint32_t j = 0; j < o->v_dim; j++)
                    center[j] +=
                        out[h][((size_t)s * o->g + g) * o->v_dim + j] / (double)(n_heads * o->g);
        for (uint32_t h = 0; h < n_heads; h++)
            for (uint32_t g = 0; g < o->g; g++) {
                double square = 0;
                for (uint32_t j = 0; j < o->v_dim; j++)
                    square += pow(out[h][((size_t)s * o->g + g) * o->v_dim + j] - center[j], 2);
                distance[h] += sqrt(square) / (found * o->g);
            }
    }
}

static hr_status_t measure_task(struct hri_index_head *const *heads, uint32_t n_heads,
                                const float *k, const float *v, uint32_t n, uint32_t first_row,
                                float *memory, float *work)
{
    const struct hri_index_options *o = &heads[0]->options;
    double far[HRI_SAMPLES_MAX], distance[HR_HEADS_MAX];
    float *out[HR_HEADS_MAX];
    bool retrieves[HR_HEADS_MAX];
    uint32_t found = HRI_SAMPLES_MAX;
    for (uint32_t h = 0; h < n_heads; h++) {
        struct measured *s = heads[h]->state;
        out[h] = memory + (size_t)h * HRI_SAMPLES_MAX * o->g * o->v_dim;
        uint32_t own = hri_samples_attend(&s->samples, o, k + (size_t)h * n * o->k_dim,
                                          v + (size_t)h * n * o->v_dim, n, first_row, 0, far,
                                          out[h], s->row_mass + first_row, work);
        found = own < found ? own : found;
    }
    const struct measured *first = heads[0]->state;
    if (found == 0 || first->classified)
        return HR_OK;
    distances(o, out, n_heads, found, distance);
    hri_class_top(distance, n_heads, hri_recipe_value(&o->recipe, "heterogeneous"), retrieves);
    classes_set(heads, n_heads, retrieves);
    return HR_OK;
}

static hr_status_t prepare_task(struct hri_index_head *const *heads, uint32_t n_heads,
                                const float *k, const float *v, uint32_t n, uint32_t first_row)
{
    const struct hri_index_options *o = &heads[0]->options;
    for (uint32_t h = 0; h < n_heads; h++)
        memset(((struct measured *)heads[h]->state)->row_mass + first_row, 0, n * sizeof(float));
    size_t outputs = (size_t)n_heads * HRI_SAMPLES_MAX * o->g * o->v_dim;
    float *memory = hri_array(o->scratch, outputs + n, sizeof *memory);
    if (!memory)
        return hri_alloc_status();
    hr_status_t status = measure_task(heads, n_heads, k, v, n, first_row, memory, memory + outputs);
    hri_free(o->scratch, memory);
    return status;
}

static hr_status_t add_rows_task(struct hri_index_head *head, const float *k, const float *v,
                                 uint32_t n, uint32_t first_row, uint32_t position_end)
{
    struct measured *s = head->state;
    (void)k, (void)v, (void)position_end;
    s->n_ranked = first_row + n;
    for (uint32_t i = 0; i < s->n_ranked; i++)
        s->ranked[i] = (struct hri_ranked){s->row_mass[i], i};
    hri_rank_sort(s->ranked, s->n_ranked);
    return HR_OK;
}

static void truncate_task(struct hri_index_head *head, uint32_t n_rows)
{
    (void)add_rows_task(head, NULL, NULL, 0, n_rows, 0);
}

static hr_status_t select_task(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    const struct measured *s = head->state;
    out->all = s->retrieves;
    if (out->all)
        return HR_OK;
    uint64_t fits = in->row_bytes ? in->budget_bytes / in->row_bytes : 0;
    uint32_t n = s->n_ranked < fits ? s->n_ranked : (uint32_t)fits;
    n = n < out->items_max ? n : out->items_max;
    for (uint32_t i = 0; i < n && s->ranked[i].key > 0; i++)
        out->items[out->n_items++] = s->ranked[i].item;
    out->bytes = (uint64_t)out->n_items * in->row_bytes;
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    struct measured *s = head->state;
    hri_samples_image(&s->samples, o, im);
    hri_image_flag(im, &s->classified);
    hri_image_flag(im, &s->retrieves);
    if (is_razor(o)) {
        hri_image_doubles(im, s->k_sum, o->k_dim);
        hri_image_doubles(im, s->v_sum, o->v_dim);
        return;
    }
    hri_image_floats(im, s->row_mass, head->n_rows);
    if (im->loads && hri_image_ok(im))
        (void)add_rows_task(head, NULL, NULL, 0, head->n_rows, 0); /* ranks them */
}

static const struct hri_selector_ops razor_ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .observe = observe,
    .prepare = prepare_razor,
    .select = select_razor,
    .estimate = compensate,
    .add_rows = add_rows_razor,
    .truncate_rows = truncate_razor,
    .image = image,
};
static const struct hri_selector_ops task_ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .observe = observe,
    .prepare = prepare_task,
    .select = select_task,
    .add_rows = add_rows_task,
    .truncate_rows = truncate_task,
    .image = image,
};

static const struct hri_param params_razor[] = {
    {"sink", "first tokens that stay on the device", "RazorAttention, section 4.1", 4, 0, 4096},
    {"window", "newest tokens that stay on the device",
     "RazorAttention, section 4.1 (there: at least 4000, or a fifth of the text)", 4000, 1, 65536},
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"threshold", "with a table: gates of at least this retrieve", "", 0.5, 0, 1},
    {"retrieval", "without a table: share of a layer's heads that retrieve",
     "RazorAttention, section 4.1 (there: 14 % inducing, 1 % echoing, of all heads)", 0.15, 0, 1},
    PARAM_END};

static const struct hri_param params_task[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"threshold", "with a table: gates of at least this are heterogeneous", "", 0.5, 0, 1},
    {"heterogeneous", "without a table: share of a layer's heads that attend everything", "", 0.25,
     0, 1},
    PARAM_END};

const struct hri_selector hri_selector_razorattention = {
    .name = "razorattention",
    .summary = "retrieval heads attend everything; the others sink, window and one row that stands "
               "for what they drop",
    .source = "RazorAttention, arXiv 2407.15891",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_razor,
    .ops = &razor_ops,
};

const struct hri_selector hri_selector_task_kv = {
    .name = "task-kv",
    .summary = "heads far from the mean of the layer's outputs attend everything, the others sink, "
               "window and what the prompt looked at",
    .source = "Task-KV, arXiv 2501.15113",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_task,
    .ops = &task_ops,
};
