/* Tokens through a model on a GPU, layer by layer. */
#include <string.h>

#include "engine/device.h"

hr_status_t hre_device_tokens_put(struct hre_session *s, const struct hre_pass *pass)
{
    const hre_model_t *model = s->model;
    struct hre_device *d = model->device;
    const size_t pairs = model->info.n_rot / 2, bytes = pass->n * pairs * sizeof(float);
    const uint32_t length = s->lengths[pass->first_sequence];
    hr_status_t status = HR_OK;

    d->host_ids[0] = length > 0 ? s->last_ids[pass->first_sequence] : HRI_CUDA_NONE;
    memcpy(d->host_ids + 1, pass->ids, pass->n * sizeof(*pass->ids));
    status = hri_device_copy(d->device, d->ids, d->host_ids, (pass->n + 1) * sizeof(*d->ids));
    for (uint32_t r = 0; r < model->n_ropes && status == HR_OK; r++) {
        const size_t at = (size_t)r * d->rows_max * pairs;

        hre_rope_fill(&model->ropes[r], length, pass->n, d->host_cosine + at, d->host_sine + at);
        status = hri_device_copy(d->device, d->cosine + at, d->host_cosine + at, bytes);
        if (status == HR_OK) {
            status = hri_device_copy(d->device, d->sine + at, d->host_sine + at, bytes);
        }
    }
    return status;
}

/* Queries, keys and values of the pass's tokens to the host. */
static hr_status_t rows_take(struct hre_device *d, const struct hre_model_info *info, uint32_t n)
{
    const size_t f = n * sizeof(float), kv = info->n_kv_heads;
    hr_status_t status =
        hri_device_copy(d->device, d->host_q, d->q, f * info->n_q_heads * info->k_dim);

    if (status == HR_OK) {
        status = hri_device_copy(d->device, d->host_k, d->k, f * kv * info->k_dim);
    }
    if (status == HR_OK) {
        status = hri_device_copy(d->device, d->host_v, d->v, f * kv * info->v_dim);
    }
    return status == HR_OK ? hri_device_wait(d->device) : status;
}

/* Whether the library attends these queries where they are. */
static int attends_there(const struct hre_session *s, const struct hre_pass *pass)
{
    size_t least = hr_sequence_device_work(s->sequences[pass->first_sequence], 1);

    return pass->attend.mode == HR_ATTEND_EXACT && pass->n > 1 && least > 0 &&
           !pass->attend.check_exact;
}

static hr_status_t attend_there(struct hre_session *s, struct hre_pass *pass, uint32_t layer,
                                uint32_t n_queries, struct hre_device_rows *att)
{
    const struct hre_model_info *info = &s->model->info;
    struct hre_device *d = s->model->device;
    struct hr_device_attend a;
    struct hr_attend_report report;
    uint64_t begin = hre_now_ns();

    hr_device_attend_init(&a);
    att->dtype = hre_device_rows_for(d, n_queries).dtype;
    a.q = d->q + (size_t)(pass->n - n_queries) * info->n_q_heads * info->k_dim;
    a.out = d->att;
    a.out_dtype = att->dtype;
    a.n_tokens = n_queries;
    /* Of the last layer only some queries go on: all of them were shown before. */
    a.q_host = n_queries == pass->n ? s->q : NULL;
    a.work = d->attend_work;
    a.work_bytes = d->attend_work_bytes;
    a.stream = d->stream;
    hr_status_t status =
        hr_sequence_attend_device(s->sequences[pass->first_sequence], layer, &a, &report);
    pass->times.attend_ns += hre_now_ns() - begin;
    if (status != HR_OK) {
        return hre_fail_library(status, "attending");
    }
    if (pass->sum) {
        hre_report_add(pass->sum, &report);
    }
    return HR_OK;
}

/* The host's attention, whose output goes to the device as the product wants it. */
static hr_status_t attend_here(struct hre_session *s, struct hre_pass *pass, uint32_t layer,
                               uint32_t n_queries, struct hre_device_rows *att)
{
    const struct hre_model_info *info = &s->model->info;
    struct hre_device *d = s->model->device;
    const size_t n = (size_t)n_queries * info->n_q_heads * info->v_dim;
    hr_status_t status = hre_attend(s, pass, layer, n_queries);

    if (status != HR_OK) {
        return status;
    }
    status = hri_device_copy(d->device, d->att, d->host_att, n * sizeof(float));
    struct hre_device_rows wanted = hre_device_rows_for(d, n_queries);
    if (status == HR_OK && wanted.dtype == HR_DTYPE_BF16) {
        status = hri_device_check(d->device, d->launch->round(d->att, n, wanted.data, d->stream),
                                  "a layer");
        *att = wanted;
    }
    return status == HR_OK ? HR_OK : hre_fail_library(status, "a layer");
}

static hr_status_t run_layer(struct hre_session *s, struct hre_pass *pass, uint32_t i,
                             const float *delta, uint32_t n_queries)
{
    const hre_model_t *model = s->model;
    struct hre_device *d = model->device;
    const struct hre_device_qkv to = {d->q, d->k, d->v};
    struct hre_device_rows att = {d->att, HR_DTYPE_F32};
    const int there = attends_there(s, pass);
    hr_status_t status = hri_device_check(
        d->device, hre_device_layer_begin(model, i, delta, pass->n, to, d->stream), "a layer");

    if (status == HR_OK) {
        status = rows_take(d, &model->info, pass->n);
    }
    if (status != HR_OK) {
        return hre_fail_library(status, "a layer");
    }
    if (pass->watch) {
        pass->watch->rows(pass->watch->rows_context, i, s->lengths[pass->first_sequence], pass->n,
                          s->q, s->k, s->v);
    }
    hre_workers_rest(model->workers);
    status = hre_append(s, pass, i);
    if (status == HR_OK) {
        status = hre_show(s, pass, i, n_queries);
    }
    if (status != HR_OK || n_queries == 0) {
        return status;
    }
    status = there ? attend_there(s, pass, i, n_queries, &att)
                   : attend_here(s, pass, i, n_queries, &att);
    if (status != HR_OK) {
        return status;
    }
    float *x = d->x + (size_t)(pass->n - n_queries) * model->info.width;
    status = hri_device_check(
        d->device, hre_device_layer_end(model, i, att, x, n_queries, d->stream), "a layer");
    return status == HR_OK ? HR_OK : hre_fail_library(status, "a layer");
}

static hr_status_t run_layers(struct hre_session *s, struct hre_pass *pass)
{
    const hre_model_t *model = s->model;
    struct hre_device *d = model->device;
    const uint32_t n_layers = model->info.n_layers, rest = pass->n - pass->rows_needed;
    const float *delta = NULL;
    hr_status_t status = hre_device_tokens_put(s, pass);

    if (status == HR_OK) {
        status =
            hri_device_check(d->device, hre_device_embed(model, pass->n, d->stream), "embeddings");
    }
    if (status != HR_OK) {
        return hre_fail_library(status, "embeddings");
    }
    for (uint32_t i = 0; i < n_layers && status == HR_OK; i++) {
        /* As on the CPU: of the last layer only the rows that somebody asked for go on. */
        status = run_layer(s, pass, i, delta, i + 1 < n_layers ? pass->n : pass->rows_needed);
        delta = d->h;
    }
    if (status != HR_OK || pass->rows_needed == 0) {
        return status;
    }
    d->normed = hre_device_rows_for(d, pass->rows_needed);
    d->has_logits = false;
    float *x = d->x + (size_t)rest * model->info.width;
    status = hri_device_check(d->device,
                              hre_device_output_norm(model, x, delta, pass->rows_needed, d->stream),
                              "the output");
    return status == HR_OK ? HR_OK : hre_fail_library(status, "the output");
}

/* Layers that have tokens which others lack give them back, so that the sequences can be saved. */
static void undo(struct hre_session *s, const struct hre_pass *pass)
{
    for (uint32_t i = 0; i < pass->n_sequences; i++) {
        uint32_t at = pass->first_sequence + i;

        (void)hr_sequence_truncate(s->sequences[at], s->lengths[at]);
    }
}

hr_status_t hre_device_forward(struct hre_session *s, struct hre_pass *pass)
{
    struct hre_device *d = s->model->device;
    bool graph = false;
    hr_status_t status = hre_device_graph_ready(s, pass, &graph);

    if (status == HR_OK) {
        hri_device_range_begin(d->device, pass->decode ? "model token" : "model prompt");
        status = graph ? hre_device_graph_run(s, pass) : HR_ERR_UNSUPPORTED;
        if (status == HR_ERR_UNSUPPORTED) {
            status = run_layers(s, pass);
        }
        hri_device_range_end(d->device);
    }
    if (status != HR_OK) {
        undo(s, pass);
    }
    return status;
}

hr_status_t hre_device_logits(struct hre_session *s, uint32_t first, uint32_t n, float *out)
{
    const hre_model_t *model = s->model;
    struct hre_device *d = model->device;
    const size_t vocab = model->info.vocab, width = model->info.width;
    hr_status_t status = HR_OK;

    for (uint32_t i = 0; i < n && status == HR_OK; i += HRE_LOGIT_ROWS) {
        const uint32_t count = n - i < HRE_LOGIT_ROWS ? n - i : HRE_LOGIT_ROWS;
        struct hre_device_rows x = d->normed;

        x.data = x.dtype == HR_DTYPE_F32 ? (void *)((float *)x.data + (first + i) * width)
                                         : (void *)((uint16_t *)x.data + (first + i) * width);
        if (!d->has_logits) {
            status = hri_device_check(
                d->device, hre_device_product(d, x, count, &d->output, d->logits, d->stream),
                "logits");
        }
        if (status == HR_OK) {
            status = hri_device_copy(d->device, out + i * vocab, d->logits,
                                     count * vocab * sizeof(*out));
        }
        status = status == HR_OK ? hri_device_wait(d->device) : status;
    }
    return status == HR_OK ? HR_OK : hre_fail_library(status, "logits");
}
