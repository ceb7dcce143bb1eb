/* A model's way to a GPU: its memory there, its weights as bfloat16. */
#include <stdlib.h>
#include <string.h>

#include "engine/device.h"
#include "engine/quant.h"
#include "engine/repack.h"

#define STAGING_BYTES (8u << 20)
#define ROWS_PER_ITEM 8
#define BLAS_BYTES    ((size_t)32 << 20) /* what cuBLAS takes itself on an sm_90 */
/* Of hr_sequence_attend_device: rows of K and V that lie there at once. */
#define ATTEND_ROWS_BYTES ((size_t)8 << 20)

/* --------------------------------------------------------------------------------------- layout */

static void weight_carve(struct hri_device_carve *c, const struct hre_weight *w,
                         struct hre_device_weight *to)
{
    if (!w->data) {
        return;
    }
    to->rows = w->rows;
    to->cols = w->cols;
    to->w = hri_device_carve(c, (size_t)w->rows * w->cols, sizeof(uint16_t));
    to->bias = w->bias ? hri_device_carve(c, w->rows, sizeof(float)) : NULL;
}

static void norm_carve(struct hri_device_carve *c, const struct hre_norm *norm, uint32_t width,
                       struct hre_device_norm *to)
{
    to->weight = hri_device_carve(c, width, sizeof(float));
    to->bias = norm->bias ? hri_device_carve(c, width, sizeof(float)) : NULL;
}

static int is_tied(const hre_model_t *model)
{
    return model->embedding.data == model->output.data;
}

/* With a base of NULL it only adds up. */
static void weights_carve(const hre_model_t *model, struct hre_device *d,
                          struct hri_device_carve *c)
{
    uint32_t width = model->info.width;

    weight_carve(c, &model->embedding, &d->embedding);
    if (is_tied(model)) {
        d->output = d->embedding;
    } else {
        weight_carve(c, &model->output, &d->output);
    }
    norm_carve(c, &model->output_norm, width, &d->output_norm);
    d->smear = model->smear ? hri_device_carve(c, width, sizeof(float)) : NULL;
    for (uint32_t i = 0; i < model->info.n_layers; i++) {
        const struct hre_layer *from = &model->layers[i];
        struct hre_device_layer *to = &d->layers[i];

        norm_carve(c, &from->attn_norm, width, &to->attn_norm);
        norm_carve(c, &from->ffn_norm, width, &to->ffn_norm);
        weight_carve(c, &from->q, &to->q);
        weight_carve(c, &from->k, &to->k);
        weight_carve(c, &from->v, &to->v);
        weight_carve(c, &from->output, &to->output);
        weight_carve(c, &from->gate, &to->gate);
        weight_carve(c, &from->up, &to->up);
        weight_carve(c, &from->down, &to->down);
    }
}

static uint32_t widest(const hre_model_t *model)
{
    const struct hre_model_info *info = &model->info;
    uint32_t most = info->width, att = info->n_q_heads * info->v_dim;

    most = info->ffn_width > most ? info->ffn_width : most;
    return att > most ? att : most;
}

static void scratch_carve(const hre_model_t *model, struct hre_device *d,
                          struct hri_device_carve *c)
{
    const struct hre_model_info *info = &model->info;
    const size_t rows = d->rows_max, pairs = info->n_rot / 2, f = sizeof(float);
    const size_t q = (size_t)info->n_q_heads * info->k_dim,
                 att = (size_t)info->n_q_heads * info->v_dim;

    d->ids = hri_device_carve(c, rows + 1, sizeof(uint32_t));
    d->cosine = hri_device_carve(c, model->n_ropes * rows * pairs, f);
    d->sine = hri_device_carve(c, model->n_ropes * rows * pairs, f);
    d->x = hri_device_carve(c, rows * info->width, f);
    d->h = hri_device_carve(c, rows * info->width, f);
    d->q = hri_device_carve(c, rows * q, f);
    d->k = hri_device_carve(c, rows * info->n_kv_heads * info->k_dim, f);
    d->v = hri_device_carve(c, rows * info->n_kv_heads * info->v_dim, f);
    d->att = hri_device_carve(c, rows * att, f);
    d->up = hri_device_carve(c, rows * info->ffn_width, f);
    d->gate = hri_device_carve(c, model->layers[0].gate.data ? rows * info->ffn_width : 0, f);
    d->few = hri_device_carve(c, (size_t)HRI_CUDA_LINEAR_ROWS_MAX * widest(model), f);
    d->half = hri_device_carve(c, rows * widest(model), sizeof(uint16_t));
    d->logits = hri_device_carve(c, (size_t)HRE_LOGIT_ROWS * info->vocab, f);
    d->linear_work = hri_device_carve(c, d->launch->linear_work(HRI_CUDA_LINEAR_ROWS_MAX), f);
    d->linear_arrived = hri_device_carve(c, d->launch->linear_counters(), sizeof(uint32_t));
    d->blas_work = hri_device_carve(c, d->blas ? BLAS_BYTES : 0, 1);
    /* Queries, their factors and the state of their softmax; then rows. */
    d->attend_work_bytes = rows * (q + att + 3 * info->n_q_heads) * f + ATTEND_ROWS_BYTES + 4096;
    d->attend_work = hri_device_carve(c, d->attend_work_bytes, 1);
}

static void host_carve(const hre_model_t *model, struct hre_device *d, struct hri_device_carve *c)
{
    const struct hre_model_info *info = &model->info;
    const size_t rows = d->rows_max, pairs = info->n_rot / 2, f = sizeof(float);

    d->host_ids = hri_device_carve(c, rows + 1, sizeof(uint32_t));
    d->host_cosine = hri_device_carve(c, model->n_ropes * rows * pairs, f);
    d->host_sine = hri_device_carve(c, model->n_ropes * rows * pairs, f);
    d->host_q = hri_device_carve(c, rows * info->n_q_heads * info->k_dim, f);
    d->host_k = hri_device_carve(c, rows * info->n_kv_heads * info->k_dim, f);
    d->host_v = hri_device_carve(c, rows * info->n_kv_heads * info->v_dim, f);
    d->host_att = hri_device_carve(c, rows * info->n_q_heads * info->v_dim, f);
}

/* -------------------------------------------------------------------------------------- weights */

struct upload {
    hre_model_t *model;
    const struct hre_weight *from;
    uint16_t *staging; /* [rows][cols] of this piece */
    uint32_t first, count;
    float *rows; /* [threads][cols_max] */
    uint32_t cols_max;
};

static uint16_t bf16_of_float(float x)
{
    uint32_t bits = bits_of_float(x);

    return (bits & 0x7fffffffu) > 0x7f800000u
               ? (uint16_t)((bits >> 16) | 64u)
               : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static void upload_item(void *context, uint32_t item, uint32_t thread)
{
    const struct upload *u = context;
    const struct hre_weight *w = u->from;
    uint32_t first = item * ROWS_PER_ITEM, end = first + ROWS_PER_ITEM;
    float *row = u->rows + (size_t)thread * u->cols_max;

    for (uint32_t r = first; r < end && r < u->count; r++) {
        const unsigned char *from = (const unsigned char *)w->data + (u->first + r) * w->row_bytes;
        uint16_t *to = u->staging + (size_t)r * w->cols;

        u->model->ops->dequantise[w->type](from, w->cols, row);
        for (uint32_t i = 0; i < w->cols; i++) {
            to[i] = bf16_of_float(row[i]);
        }
    }
}

/* The device pointers are const for everybody else. */
static void *writable(const void *p)
{
    return (void *)(uintptr_t)p;
}

static hr_status_t vector_put(struct hre_device *d, const float *to, const float *from, uint32_t n)
{
    if (!from) {
        return HR_OK;
    }
    return hri_device_copy(d->device, writable(to), from, n * sizeof(float));
}

static hr_status_t weight_put(struct hre_device *d, struct upload *u, const struct hre_weight *from,
                              const struct hre_device_weight *to)
{
    hr_status_t status = HR_OK;

    if (!from->data) {
        return HR_OK;
    }
    const size_t row_bytes = from->cols * sizeof(uint16_t);
    const uint32_t rows = STAGING_BYTES / row_bytes > 0 ? (uint32_t)(STAGING_BYTES / row_bytes) : 1;
    u->from = from;
    for (uint32_t r = 0; r < from->rows && status == HR_OK; r += rows) {
        u->first = r;
        u->count = from->rows - r < rows ? from->rows - r : rows;
        hre_workers_run(u->model->workers, upload_item, u,
                        (u->count + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
        status = hri_device_copy(d->device, writable(to->w + (size_t)r * from->cols), u->staging,
                                 u->count * row_bytes);
        status = status == HR_OK ? hri_device_wait(d->device) : status;
    }
    if (status == HR_OK) {
        status = vector_put(d, to->bias, from->bias, from->rows);
    }
    if (hre_gguf_is_mapped(u->model->gguf)) { /* nobody needs it here again */
        hre_gguf_release(u->model->gguf, from->data, from->rows * from->row_bytes);
    }
    return status;
}

static hr_status_t norm_put(struct hre_device *d, const struct hre_norm *from,
                            const struct hre_device_norm *to, uint32_t width)
{
    hr_status_t status = vector_put(d, to->weight, from->weight, width);

    return status == HR_OK ? vector_put(d, to->bias, from->bias, width) : status;
}

static hr_status_t layer_put(struct hre_device *d, struct upload *u, uint32_t i)
{
    const struct hre_layer *from = &u->model->layers[i];
    const struct hre_device_layer *to = &d->layers[i];
    const struct {
        const struct hre_weight *from;
        const struct hre_device_weight *to;
    } weights[] = {{&from->q, &to->q},           {&from->k, &to->k},       {&from->v, &to->v},
                   {&from->output, &to->output}, {&from->gate, &to->gate}, {&from->up, &to->up},
                   {&from->down, &to->down}};
    uint32_t width = u->model->info.width;
    hr_status_t status = norm_put(d, &from->attn_norm, &to->attn_norm, width);

    if (status == HR_OK) {
        status = norm_put(d, &from->ffn_norm, &to->ffn_norm, width);
    }
    for (size_t w = 0; w < sizeof(weights) / sizeof(weights[0]) && status == HR_OK; w++) {
        status = weight_put(d, u, weights[w].from, weights[w].to);
    }
    return status;
}

static hr_status_t all_put(struct hre_device *d, struct upload *u)
{
    const hre_model_t *model = u->model;
    hr_status_t status = weight_put(d, u, &model->embedding, &d->embedding);

    if (status == HR_OK && !is_tied(model)) {
        status = weight_put(d, u, &model->output, &d->output);
    }
    if (status == HR_OK) {
        status = norm_put(d, &model->output_norm, &d->output_norm, model->info.width);
    }
    if (status == HR_OK) {
        status = vector_put(d, d->smear, model->smear, model->info.width);
    }
    for (uint32_t i = 0; i < model->info.n_layers && status == HR_OK; i++) {
        status = layer_put(d, u, i);
    }
    return status == HR_OK ? hri_device_wait(d->device) : status;
}

static hr_status_t weights_load(struct hre_device *d, hre_model_t *model)
{
    struct hri_device_buffer staging = {0};
    struct upload u = {.model = model, .cols_max = widest(model)};
    const size_t row_bytes = u.cols_max * sizeof(uint16_t);
    const size_t piece_bytes = row_bytes > STAGING_BYTES ? row_bytes : STAGING_BYTES;
    /* A piece as it goes there, then a row of floats for every thread. */
    hr_status_t status = hri_device_buffer_create(
        d->device,
        piece_bytes + (size_t)hre_workers_count(model->workers) * u.cols_max * sizeof(*u.rows),
        &staging);

    if (status != HR_OK) {
        return status;
    }
    u.staging = staging.base;
    u.rows = (float *)(void *)((unsigned char *)staging.base + piece_bytes);
    status = all_put(d, &u);
    hri_device_buffer_destroy(d->device, &staging);
    return status;
}

/* ----------------------------------------------------------------------------------------- life */

static void log_line(void *context, int level, const char *line)
{
    const struct hre_device *d = context;

    d->log_fn(d->log_context, (hr_log_level_t)level, line);
}

/* 16-byte loads begin at every row. */
static hr_status_t widths_check(const hre_model_t *model)
{
    const struct hre_model_info *info = &model->info;
    const struct {
        const char *name;
        uint32_t width;
    } widths[] = {{"width", info->width},
                  {"feed-forward width", info->ffn_width},
                  {"width of all heads' values", info->n_q_heads * info->v_dim}};

    for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++) {
        if (widths[i].width % 8 != 0) {
            return hre_fail(HR_ERR_UNSUPPORTED,
                            "%s: its %s of %u is no multiple of 8, which a GPU's kernels need",
                            hre_gguf_name(model->gguf), widths[i].name, widths[i].width);
        }
    }
    return HR_OK;
}

static hr_status_t memory_take(struct hre_device *d, const hre_model_t *model)
{
    struct hri_device_carve weights = {0}, scratch = {0}, host = {0};

    host_carve(model, d, &host);
    hr_status_t status =
        hri_device_alloc(d->device, "the model's weights", d->weights.bytes, &d->weights);
    if (status == HR_OK) {
        status = hri_device_alloc(d->device, "the model's scratch", d->scratch.bytes, &d->scratch);
    }
    if (status == HR_OK) {
        status = hri_device_buffer_create(d->device, host.used, &d->host);
    }
    if (status == HR_OK) {
        status = hri_device_fill(d->device, d->scratch.base, 0, d->scratch.bytes);
    }
    if (status != HR_OK) {
        return status;
    }
    weights.base = d->weights.base;
    scratch.base = d->scratch.base;
    host = (struct hri_device_carve){d->host.base, 0};
    weights_carve(model, d, &weights);
    scratch_carve(model, d, &scratch);
    host_carve(model, d, &host);
    return HR_OK;
}

/* Not found is no failure. */
static void blas_open(struct hre_device *d, const char *library)
{
    char why[256];

    if (library ? !*library : hri_device_ops(d->device)->emulated) {
        return;
    }
    d->blas = hri_cublas_open(library, d->stream, why, sizeof(why));
    if (!d->blas) {
        hri_log_warn(&d->log,
                     "no cuBLAS (%s): prompts are multiplied by the library's own kernels, which "
                     "are slower",
                     why);
    }
}

static size_t scratch_bytes(const hre_model_t *model, struct hre_device *d, uint32_t rows)
{
    struct hri_device_carve scratch = {0};

    d->rows_max = rows;
    scratch_carve(model, d, &scratch);
    return scratch.used;
}

static void rows_choose(const hre_model_t *model, struct hre_device *d, uint32_t wanted)
{
    const size_t most = hri_device_facts(d->device)->free_bytes / HRE_DEVICE_ROWS_SHARE;
    uint32_t rows = wanted ? wanted : HRE_DEVICE_ROWS_MOST;

    while (!wanted && rows > HRE_DEVICE_ROWS_LEAST && scratch_bytes(model, d, rows) > most) {
        rows /= 2;
    }
    d->rows_max = rows;
}

static hr_status_t device_fill(struct hre_device *d, hre_model_t *model,
                               const struct hri_device_options *o,
                               const struct hre_model_options *options)
{
    struct hri_device_carve weights = {0}, scratch = {0};
    hr_status_t status = hri_device_open(o, &d->device);

    if (status != HR_OK) {
        return status;
    }
    d->launch = o->ops->launch;
    d->stream = hri_device_stream(d->device);
    blas_open(d, options->blas);
    weights_carve(model, d, &weights);
    rows_choose(model, d, options->device_rows);
    scratch_carve(model, d, &scratch); /* some of it is sized by the machine */
    status = hri_device_budget(d->device, weights.used + scratch.used,
                               "the model's weights in bfloat16 and its scratch");
    if (status != HR_OK) {
        return status;
    }
    d->weights.bytes = weights.used;
    d->scratch.bytes = scratch.used;
    status = memory_take(d, model);
    if (status == HR_OK && d->blas) {
        d->blas_failed = hri_cublas_workspace(d->blas, d->blas_work, BLAS_BYTES) != 0;
    }
    return status == HR_OK ? weights_load(d, model) : status;
}

hr_status_t hre_device_open(hre_model_t *model, const struct hre_model_options *options,
                            const struct hri_device_ops *ops)
{
    struct hri_device_options o = {.ops = NULL};
    hr_status_t status = hri_device_find(options->device, ops, &o.ops, &o.ordinal);

    if (status != HR_OK) {
        return hre_fail(status, "%s", hr_last_error());
    }
    if (!o.ops) {
        return HR_OK;
    }
    status = widths_check(model);
    struct hre_device *d = status == HR_OK ? calloc(1, sizeof(*d)) : NULL;
    model->device = d;
    if (d) {
        d->layers = calloc(model->info.n_layers, sizeof(*d->layers));
    }
    if (!d || !d->layers) {
        return status != HR_OK ? status : hre_fail(HR_ERR_NOMEM, "no memory for a model's device");
    }
    d->log_fn = options->log;
    d->log_context = options->log_context;
    d->log = (struct hri_log){
        .fn = options->log ? log_line : NULL, .ctx = d, .level_max = HRI_LOG_DEBUG};
    o.log = &d->log;
    status = device_fill(d, model, &o, options);
    if (status != HR_OK) {
        return hre_fail(status, "%s", hr_last_error());
    }
    model->info.device = hri_device_facts(d->device)->name;
    model->info.device_rows = d->rows_max;
    model->info.device_blas = d->blas && !d->blas_failed ? hri_cublas_name(d->blas) : NULL;
    model->info.device_weight_bytes = d->weights.bytes;
    model->info.device_scratch_bytes = d->scratch.bytes;
    return HR_OK;
}

void hre_device_close(struct hre_device *d)
{
    if (!d) {
        return;
    }
    hri_cublas_close(d->blas);
    if (d->device) {
        hri_device_buffer_destroy(d->device, &d->host);
        hri_device_free(d->device, &d->scratch);
        hri_device_free(d->device, &d->weights);
        hri_device_close(d->device);
    }
    free(d->layers);
    free(d);
}
