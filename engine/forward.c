/* The decoder's layers. */
#include <string.h>
#include <time.h>

#include "engine/device.h"
#include "engine/repack.h"
#include "engine/session.h"

#define ROWS_PER_ITEM 16

uint64_t hre_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Row-wise work that is worth sharing among threads when there are many rows. */
struct row_job {
    const struct hre_model *model;
    const struct hre_session *session;
    const struct hre_norm *norm;
    const struct hre_layer *layer;
    float *x;
    const float *delta;
    float *y;
    uint32_t n_rows;
};

static uint32_t rows_of_item(const struct row_job *job, uint32_t item, uint32_t *count_out)
{
    uint32_t first = item * ROWS_PER_ITEM, left = job->n_rows - first;

    *count_out = left < ROWS_PER_ITEM ? left : ROWS_PER_ITEM;
    return first;
}

static void run_rows(struct row_job *job, hre_work_fn work)
{
    hre_workers_run(job->model->workers, work, job,
                    (job->n_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
}

/* x += delta where there is one, y = norm(x) where there is one. */
static void norm_item(void *context, uint32_t item, uint32_t thread)
{
    const struct row_job *job = context;
    const struct hre_ops *ops = job->model->ops;
    uint32_t width = job->model->info.width, count, first = rows_of_item(job, item, &count);
    float eps = job->model->norm_eps;

    (void)thread;
    for (uint32_t i = first; i < first + count; i++) {
        float *x = job->x + (size_t)i * width;

        if (job->delta) {
            ops->add(x, job->delta + (size_t)i * width, width);
        }
        if (job->norm && job->norm->bias) {
            ops->layer_norm(x, job->norm->weight, job->norm->bias, eps, width,
                            job->y + (size_t)i * width);
        } else if (job->norm) {
            ops->rms_norm(x, job->norm->weight, eps, width, job->y + (size_t)i * width);
        }
    }
}

static void rope_item(void *context, uint32_t item, uint32_t thread)
{
    const struct row_job *job = context;
    const struct hre_session *s = job->session;
    const struct hre_model_info *info = &job->model->info;
    uint32_t pairs = info->n_rot / 2, count, first = rows_of_item(job, item, &count);
    size_t table = (size_t)job->layer->rope * s->chunk_tokens * pairs;

    (void)thread;
    for (uint32_t i = first; i < first + count; i++) {
        const float *cosine = s->cosine + table + (size_t)i * pairs,
                    *sine = s->sine + table + (size_t)i * pairs;

        job->model->ops->rope(s->k + (size_t)i * info->n_kv_heads * info->k_dim, info->n_kv_heads,
                              info->k_dim, info->n_rot, info->rope_layout, cosine, sine);
        job->model->ops->rope(s->q + (size_t)i * info->n_q_heads * info->k_dim, info->n_q_heads,
                              info->k_dim, info->n_rot, info->rope_layout, cosine, sine);
    }
}

static void activate_item(void *context, uint32_t item, uint32_t thread)
{
    const struct row_job *job = context;
    const struct hre_session *s = job->session;
    uint32_t width = job->model->info.ffn_width, count, first = rows_of_item(job, item, &count);

    (void)thread;
    if (job->layer->gate.data) {
        job->model->ops->swiglu(s->gate + (size_t)first * width, s->up + (size_t)first * width,
                                count * width);
    } else {
        job->model->ops->gelu(s->up + (size_t)first * width, count * width);
    }
}

/* ---------------------------------------------------------------------------------- embedding */

static void embed_one(const struct hre_model *model, uint32_t id, float *y)
{
    const struct hre_weight *w = &model->embedding;

    /* A row of floats has room for one of quants: they are read first. */
    model->ops->dequantise[w->type](hre_weight_row(w, id, model->row), w->cols, y);
}

static void embed(struct hre_session *s, const struct hre_pass *pass)
{
    const struct hre_model *model = s->model;
    uint32_t width = model->info.width;

    for (uint32_t i = 0; i < pass->n; i++) {
        embed_one(model, pass->ids[i], s->x + (size_t)i * width);
    }
    if (!model->smear) {
        return;
    }
    /* Each token gets a share of the raw embedding before it; from the end, so that none has been
     * changed yet. */
    for (uint32_t i = pass->n; i-- > 0;) {
        float *x = s->x + (size_t)i * width;
        const float *before = x - width;

        if (i == 0 && s->lengths[pass->first_sequence] == 0) {
            continue;
        }
        if (i == 0) {
            embed_one(model, s->last_ids[pass->first_sequence], s->h);
            before = s->h;
        }
        for (uint32_t j = 0; j < width; j++) {
            x[j] += model->smear[j] * before[j];
        }
    }
}

static void fill_ropes(struct hre_session *s, const struct hre_pass *pass)
{
    const struct hre_model *model = s->model;
    size_t pairs = model->info.n_rot / 2;

    for (uint32_t r = 0; r < model->n_ropes; r++) {
        size_t at = r * s->chunk_tokens * pairs;

        hre_rope_fill(&model->ropes[r], s->lengths[pass->first_sequence], pass->n, s->cosine + at,
                      s->sine + at);
    }
}

/* ---------------------------------------------------------------------------------- attention */

void hre_report_add(struct hr_attend_report *sum, const struct hr_attend_report *r)
{
    for (int i = 0; i < HR_LEVELS; i++) {
        sum->rows_by_level[i] += r->rows_by_level[i];
        sum->bytes_by_level[i] += r->bytes_by_level[i];
    }
    sum->rows_device += r->rows_device;
    sum->blocks_total += r->blocks_total;
    sum->blocks_hit += r->blocks_hit;
    sum->blocks_fetched += r->blocks_fetched;
    sum->blocks_estimated += r->blocks_estimated;
    sum->blocks_late += r->blocks_late;
    sum->blocks_lost += r->blocks_lost;
    sum->bytes_from_host += r->bytes_from_host;
    sum->bytes_from_file += r->bytes_from_file;
    sum->bytes_selected += r->bytes_selected;
    sum->bytes_hit += r->bytes_hit;
    sum->body_bytes += r->body_bytes;
    sum->ios += r->ios;
    sum->rows_visited += r->rows_visited;
    sum->heads_capped += r->heads_capped;
    sum->rows_rests += r->rows_rests;
    sum->bytes_rests += r->bytes_rests;
    sum->predicted_error += r->predicted_error;
    sum->late_error += r->late_error;
    sum->true_error += r->true_error;
    sum->predicted_error_max = r->predicted_error_max > sum->predicted_error_max
                                   ? r->predicted_error_max
                                   : sum->predicted_error_max;
    sum->true_error_max =
        r->true_error_max > sum->true_error_max ? r->true_error_max : sum->true_error_max;
    for (int i = 0; i < HR_STAGES; i++) {
        sum->time_ns[i] += r->time_ns[i];
    }
}

hr_status_t hre_append(struct hre_session *s, struct hre_pass *pass, uint32_t layer)
{
    const struct hre_model_info *info = &s->model->info;
    struct hr_tensor k = hr_tensor_make(s->k, HR_DTYPE_F32, pass->n, info->n_kv_heads, info->k_dim);
    struct hr_tensor v = hr_tensor_make(s->v, HR_DTYPE_F32, pass->n, info->n_kv_heads, info->v_dim);
    uint64_t begin = hre_now_ns();
    hr_status_t status = HR_OK;

    for (uint32_t i = 0; i < pass->n_sequences && status == HR_OK; i++) {
        status = hr_sequence_append(s->sequences[pass->first_sequence + i], layer, &k, &v, NULL);
    }
    pass->times.append_ns += hre_now_ns() - begin;
    return status == HR_OK ? HR_OK : hre_fail_library(status, "appending K and V");
}

/* What is left for a layer of its share of the token's time and of what the layers before it left over. */
static uint64_t deadline_share(const struct hre_session *s, const struct hre_pass *pass,
                               uint32_t layer)
{
    uint64_t deadline_ns = pass->decode ? pass->decode->deadline_ns : 0;
    if (deadline_ns == 0) {
        return 0;
    }
    double share = (double)deadline_ns * (layer + 1) / s->model->info.n_layers;
    double left = share - (double)(hre_now_ns() - pass->begin_ns);
    return left > 1 ? (uint64_t)left : 1;
}

/* Recipes learn from a prompt's queries. Those of the sequence that is attended are seen on the way, but for the last layer's, of which
 * only the rows go on that somebody asked for; the others' are shown. */
hr_status_t hre_show(struct hre_session *s, const struct hre_pass *pass, uint32_t layer,
                     uint32_t n_queries)
{
    const struct hre_model_info *info = &s->model->info;
    struct hr_tensor q = hr_tensor_make(s->q, HR_DTYPE_F32, pass->n, info->n_q_heads, info->k_dim);
    hr_status_t status = HR_OK;

    for (uint32_t i = 0; pass->n > 1 && i < pass->n_sequences && status == HR_OK; i++) {
        if (i > 0 || n_queries < pass->n) {
            status = hr_sequence_observe(s->sequences[pass->first_sequence + i], layer, &q);
        }
    }
    return status == HR_OK ? HR_OK : hre_fail_library(status, "showing queries");
}

/* s->q has the queries of all rows; the last n_queries attend. */
hr_status_t hre_attend(struct hre_session *s, struct hre_pass *pass, uint32_t layer,
                       uint32_t n_queries)
{
    const struct hre_model_info *info = &s->model->info;
    float *newest = s->q + (size_t)(pass->n - n_queries) * info->n_q_heads * info->k_dim;
    struct hr_tensor q =
        hr_tensor_make(newest, HR_DTYPE_F32, n_queries, info->n_q_heads, info->k_dim);
    struct hr_tensor out =
        hr_tensor_make(s->att, HR_DTYPE_F32, n_queries, info->n_q_heads, info->v_dim);
    struct hr_attend_report report;
    uint64_t begin = hre_now_ns();
    pass->attend.deadline_ns = deadline_share(s, pass, layer);
    hr_status_t status = hr_sequence_attend(s->sequences[pass->first_sequence], layer, &q,
                                            &pass->attend, &out, pass->sum ? &report : NULL, NULL);

    pass->times.attend_ns += hre_now_ns() - begin;
    if (status != HR_OK) {
        return hre_fail_library(status, "attending");
    }
    if (pass->sum) {
        hre_report_add(pass->sum, &report);
    }
    if (pass->attend.refined_out) {
        pass->decode->on_refined(pass->decode->on_refined_context, layer,
                                 s->lengths[pass->first_sequence] + pass->n,
                                 pass->attend.refined_out);
    }
    return HR_OK;
}

/* ------------------------------------------------------------------------------------- layers */

/* K, V and queries of all rows; h holds the normed input. */
static void project(struct hre_session *s, const struct hre_layer *layer, uint32_t n)
{
    struct hre_product products[] = {{&layer->k, s->k}, {&layer->v, s->v}, {&layer->q, s->q}};
    struct row_job job = {.model = s->model, .session = s, .layer = layer, .n_rows = n};

    hre_linear_apply(s->model->linear, s->h, n, products, 3);
    run_rows(&job, rope_item);
}

/* For recipes that choose a layer early: the next layer's queries, from this layer's normed input (InfiniGen, section 4.3).
 * Uses q and k as scratch, before this layer's own. */
static hr_status_t foresee(struct hre_session *s, const struct hre_pass *pass, uint32_t next)
{
    const struct hre_model_info *info = &s->model->info;
    hr_sequence_t *sequence = s->sequences[pass->first_sequence];

    if (pass->n != 1 || next >= info->n_layers || !hr_sequence_wants_prefetch(sequence, next)) {
        return HR_OK;
    }
    const struct hre_layer *layer = &s->model->layers[next];
    struct hre_product query = {&layer->q, s->q};
    struct row_job job = {.model = s->model, .session = s, .layer = layer, .n_rows = 1};
    struct hr_tensor q = hr_tensor_make(s->q, HR_DTYPE_F32, 1, info->n_q_heads, info->k_dim);
    hre_linear_apply(s->model->linear, s->h, 1, &query, 1);
    memset(s->k, 0, (size_t)info->n_kv_heads * info->k_dim * sizeof *s->k);
    run_rows(&job, rope_item);
    hr_status_t status = hr_sequence_prefetch(sequence, next, &q, NULL);
    return status == HR_OK ? HR_OK : hre_fail_library(status, "foreseeing queries");
}

/* x += feed-forward(norm(x + delta)) over n rows; the last product is left at h for the next norm
 * to add. */
static void feed_forward(struct hre_session *s, const struct hre_layer *layer, float *x,
                         const float *delta, uint32_t n)
{
    struct hre_product wide[] = {{&layer->up, s->up}, {&layer->gate, s->gate}};
    struct hre_product down = {&layer->down, s->h};
    struct row_job job = {.model = s->model,
                          .session = s,
                          .norm = &layer->ffn_norm,
                          .layer = layer,
                          .x = x,
                          .delta = delta,
                          .y = s->h,
                          .n_rows = n};
    int gated = layer->gate.data != NULL;

    run_rows(&job, norm_item);
    hre_linear_apply(s->model->linear, s->h, n, wide, gated ? 2 : 1);
    run_rows(&job, activate_item);
    hre_linear_apply(s->model->linear, gated ? s->gate : s->up, n, &down, 1);
}

/*
 * One layer over n rows at x, of which n_queries at the end go on. The attention's output takes the
 * place of h, so that x alone holds the stream. Afterwards h holds what is still to be added to the
 * last n_queries rows of x.
 */
static hr_status_t run_layer(struct hre_session *s, struct hre_pass *pass, uint32_t i,
                             const float *delta, uint32_t n_queries)
{
    const struct hre_layer *layer = &s->model->layers[i];
    struct row_job job = {.model = s->model,
                          .norm = &layer->attn_norm,
                          .x = s->x,
                          .delta = delta,
                          .y = s->h,
                          .n_rows = pass->n};

    run_rows(&job, norm_item);
    hr_status_t status = foresee(s, pass, i + 1);
    if (status != HR_OK) {
        return status;
    }
    project(s, layer, pass->n);
    if (pass->watch) {
        pass->watch->rows(pass->watch->rows_context, i, s->lengths[pass->first_sequence], pass->n,
                          s->q, s->k, s->v);
    }
    hre_workers_rest(s->model->workers);
    status = hre_append(s, pass, i);
    if (status == HR_OK) {
        status = hre_show(s, pass, i, n_queries);
    }
    if (status != HR_OK || n_queries == 0) {
        return status;
    }
    status = hre_attend(s, pass, i, n_queries);
    if (status != HR_OK) {
        return status;
    }
    float *x = s->x + (size_t)(pass->n - n_queries) * s->model->info.width;
    struct hre_product output = {&layer->output, s->h};
    hre_linear_apply(s->model->linear, s->att, n_queries, &output, 1);
    feed_forward(s, layer, x, s->h, n_queries);
    return HR_OK;
}

hr_status_t hre_forward(struct hre_session *session, struct hre_pass *pass)
{
    const struct hre_model *model = session->model;
    uint32_t n_layers = model->info.n_layers;
    const float *delta = NULL;

    if (model->device) {
        return hre_device_forward(session, pass);
    }
    embed(session, pass);
    fill_ropes(session, pass);
    for (uint32_t i = 0; i < n_layers; i++) {
        /* Of the last layer only the rows that somebody asked for go on; the others leave their K
         * and V. */
        uint32_t n_queries = i + 1 < n_layers ? pass->n : pass->rows_needed;
        hr_status_t status = run_layer(session, pass, i, delta, n_queries);

        if (status != HR_OK) {
            return status;
        }
        delta = session->h;
    }
    struct row_job job = {.model = model,
                          .norm = &model->output_norm,
                          .x = session->x +
                               (size_t)(pass->n - pass->rows_needed) * model->info.width,
                          .delta = delta,
                          .y = session->h,
                          .n_rows = pass->rows_needed};
    run_rows(&job, norm_item);
    return HR_OK;
}
