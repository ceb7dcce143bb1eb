/* A token through all layers as one graph. The device has the token's rows first; the host takes them from its answer, so that
 * log, tail and statistics are as if it had appended them itself. */
#include "runtime/device_index.h"
#include "runtime/device_part.h"
#include "runtime/device_rows.h"

#include "base/clock.h"
#include "base/error.h"
#include <math.h>
#include <string.h>

struct hr_step_graph {
    hr_sequence_t *s;
    struct hri_device_memory memory;
    struct hr_step_buffers *buffers; /* [n_layers] */
    void *graph;
};

void hr_step_graph_options_init(struct hr_step_graph_options *options)
{
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
}

static void buffers_carve(const hr_sequence_t *s, struct hri_device_carve *c,
                          struct hr_step_buffers *buffers)
{
    struct hr_step_buffers b;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        b.q = hri_device_carve(c, (size_t)s->n_q * s->dk, sizeof(float));
        b.k = hri_device_carve(c, (size_t)s->n_kv * s->dk, sizeof(float));
        b.v = hri_device_carve(c, (size_t)s->n_kv * s->dv, sizeof(float));
        b.out = s->layers[i].exact ? (s->held != NULL ? s->held->layers[i].out.out : NULL)
                : s->part != NULL  ? s->part->layers[i].out.out
                                   : NULL;
        if (buffers != NULL) {
            buffers[i] = b;
        }
    }
}

uint64_t hri_step_graph_bytes(const hr_sequence_t *s)
{
    struct hri_device_carve c = {0};
    buffers_carve(s, &c, NULL);
    return c.used;
}

static hr_status_t supported(const hr_sequence_t *s)
{
    const char *why = NULL;
    for (uint32_t i = 0; i < s->n_layers && why == NULL; i++) {
        if (!s->layers[i].exact && s->part == NULL) {
            why = "its steps do not run on a GPU";
        } else if (s->layers[i].exact && !hri_held_whole(s, i)) {
            why = "some of its layers attend rows that are not all on a GPU";
        }
    }
    if (why == NULL && s->part != NULL && !s->part->direct && !s->part->mailed) {
        why = "host memory could not be pinned";
    }
    return why != NULL ? hri_error_set(HR_ERR_UNSUPPORTED, "hr_step_graph: the sequence: %s", why)
                       : HR_OK;
}

static int layer_launch(const hr_sequence_t *s, uint32_t i, const struct hr_step_buffers *b)
{
    return s->layers[i].exact ? hri_held_launch(s, i, b->q, b->k, b->v)
                              : hri_device_launch(s, i, b->q, b->k, b->v);
}

static hr_status_t layers_record(hr_step_graph_t *g, const struct hr_step_graph_options *o)
{
    const hr_sequence_t *s = g->s;
    struct hri_device *device = s->runtime->gpu;
    void *stream = hri_device_stream(device);
    hr_status_t status = HR_OK;
    for (uint32_t i = 0; i <= s->n_layers && status == HR_OK; i++) {
        if (o->between != NULL) {
            status = o->between(o->context, i, g->buffers, stream);
        }
        if (status == HR_OK && i < s->n_layers) {
            const struct hr_step_buffers *b = &g->buffers[i];
            status = hri_device_check(device, layer_launch(s, i, b), "recording a token");
        }
    }
    return status;
}

static hr_status_t record(hr_step_graph_t *g, const struct hr_step_graph_options *o)
{
    struct hri_device *device = g->s->runtime->gpu;
    const struct hri_device_ops *ops = hri_device_ops(device);
    void *stream = hri_device_stream(device);
    hr_status_t status = hri_device_check(device, ops->capture_begin(stream), "recording a token");
    if (status != HR_OK) {
        return status;
    }
    status = layers_record(g, o);
    int ended = ops->capture_end(stream, &g->graph);
    return status == HR_OK ? hri_device_check(device, ended, "recording a token") : status;
}

hr_status_t hr_step_graph_create(hr_sequence_t *s, const struct hr_step_graph_options *options,
                                 hr_step_graph_t **graph_out)
{
    if (s == NULL || options == NULL || graph_out == NULL) {
        return hri_error_set(HR_ERR_INVALID,
                             "hr_step_graph_create: no sequence, no options or no place for it");
    }
    if (options->struct_size != sizeof *options) {
        return hri_error_set(HR_ERR_VERSION,
                             "step graph options: struct_size %zu where this library has %zu",
                             options->struct_size, sizeof *options);
    }
    hr_status_t status = supported(s);
    if (status != HR_OK) {
        return status;
    }
    struct hri_alloc *a = &s->runtime->alloc;
    struct hri_device_carve c = {0};
    hr_step_graph_t *g = hri_calloc(a, 1, sizeof *g);
    if (g == NULL) {
        return hri_alloc_status();
    }
    g->s = s;
    g->buffers = hri_array(a, s->n_layers, sizeof *g->buffers);
    buffers_carve(s, &c, NULL);
    hri_device_index_yield(s->runtime, c.used);
    status = g->buffers == NULL
                 ? hri_alloc_status()
                 : hri_device_alloc(s->runtime->gpu, "a graph's buffers", c.used, &g->memory);
    if (status == HR_OK) {
        c = (struct hri_device_carve){g->memory.base, 0};
        buffers_carve(s, &c, g->buffers);
        status = hri_device_fill(s->runtime->gpu, g->memory.base, 0, g->memory.bytes);
    }
    status = status == HR_OK ? record(g, options) : status;
    if (status != HR_OK) {
        hr_step_graph_destroy(g);
        return status;
    }
    *graph_out = g;
    return HR_OK;
}

void hr_step_graph_destroy(hr_step_graph_t *g)
{
    if (g == NULL) {
        return;
    }
    struct hri_device *device = g->s->runtime->gpu;
    struct hri_alloc *a = &g->s->runtime->alloc;
    if (g->graph != NULL) {
        hri_device_ops(device)->graph_destroy(g->graph);
    }
    hri_device_free(device, &g->memory);
    hri_free(a, g->buffers);
    hri_free(a, g);
}

hr_status_t hr_step_graph_buffers(const hr_step_graph_t *g, uint32_t layer,
                                  struct hr_step_buffers *buffers_out)
{
    if (g == NULL || buffers_out == NULL || layer >= g->s->n_layers) {
        return hri_error_set(HR_ERR_INVALID, "hr_step_graph_buffers: %s",
                             g == NULL || buffers_out == NULL ? "no graph or no place for them"
                                                              : "no such layer");
    }
    *buffers_out = g->buffers[layer];
    return HR_OK;
}

/* -- a token -- */

static hr_status_t room_check(const hr_sequence_t *s)
{
    for (uint32_t i = 1; i < s->n_layers; i++) {
        if (s->layers[i].n_tokens != s->layers[0].n_tokens) {
            return hri_error_set(HR_ERR_STATE,
                                 "hr_step_graph_run: layer %u has %u tokens, layer 0 has %u", i,
                                 s->layers[i].n_tokens, s->layers[0].n_tokens);
        }
    }
    if (s->layers[0].n_tokens >= s->tokens_max) {
        return hri_error_set(
            HR_ERR_FULL, "hr_step_graph_run: the sequence has tokens_max %u tokens", s->tokens_max);
    }
    return HR_OK;
}

static hr_status_t step_begin(struct hri_device_token *t)
{
    hr_sequence_t *s = t->s;
    hr_status_t status = hri_settle(s, t->layer, s->decode_segment, true);
    status = status == HR_OK ? hri_device_sync(s, t->layer, t->layer->n_tokens) : status;
    if (status != HR_OK) {
        return status;
    }
    float log_n = logf((float)(t->position + 1));
    for (uint32_t h = 0; h < s->n_q; h++) {
        t->in->scale[h] = hri_query_factor(s, t->layer, h, log_n);
    }
    hri_device_in_fill(t);
    return HR_OK;
}

static hr_status_t layer_begin(hr_sequence_t *s, uint32_t i, uint32_t position,
                               struct hr_attend_report *report)
{
    if (s->layers[i].exact) {
        if (s->part != NULL) {
            s->part->ticket++; /* tickets count layers */
        }
        return hri_held_token_begin(s, i, position, report);
    }
    struct hri_device_token t = hri_device_token(s, i, position, report);
    return step_begin(&t);
}

/* All inputs of all layers lie in one run, and so do all outputs: one of layers with steps, one of those with exact rows. */
static hr_status_t inputs_put(hr_sequence_t *s, uint32_t first_step)
{
    const struct hri_device_part *p = s->part;
    hr_status_t status = s->held != NULL ? hri_held_put(s) : HR_OK;
    return status == HR_OK && p != NULL
               ? hri_device_copy(p->device, p->layers[first_step].in.n_blocks,
                                 p->ins[first_step].n_blocks,
                                 hri_device_layers(s) * p->ins[first_step].bytes)
               : status;
}

static hr_status_t outputs_take(hr_sequence_t *s, uint32_t first_step)
{
    const struct hri_device_part *p = s->part;
    hr_status_t status = s->held != NULL ? hri_held_take(s) : HR_OK;
    return status == HR_OK && p != NULL
               ? hri_device_copy(p->device, p->outs[first_step].out, p->layers[first_step].out.out,
                                 hri_device_layers(s) * p->outs[first_step].bytes)
               : status;
}

static hr_status_t replay(hr_step_graph_t *g, uint32_t first_ticket,
                          struct hr_attend_report *report)
{
    hr_sequence_t *s = g->s;
    struct hri_device *device = s->runtime->gpu;
    uint32_t first_step = 0;
    while (s->part != NULL && s->layers[first_step].exact) {
        first_step++;
    }
    hr_status_t status = inputs_put(s, first_step);
    if (status == HR_OK) {
        status = hri_device_check(
            device, hri_device_ops(device)->graph_launch(g->graph, hri_device_stream(device)),
            "a token");
    }
    status = status == HR_OK ? outputs_take(s, first_step) : status;
    struct hri_device_mail mail = {
        .n_layers = s->n_layers, .first_ticket = first_ticket, .report = report};
    if (status == HR_OK && s->part != NULL && s->part->mailed) {
        status = hri_device_mail_serve(s, &mail);
        report->blocks_lost += mail.n_lost;
    }
    return status == HR_OK ? hri_device_wait(device) : status;
}

/* The row that the device made, as if it had been appended here. */
static hr_status_t row_append(hr_sequence_t *s, uint32_t i, unsigned char *row)
{
    const size_t element = hr_dtype_bytes(s->dtype);
    struct hr_tensor k = hr_tensor_make(row, s->dtype, 1, s->n_kv, s->dk);
    struct hr_tensor v = hr_tensor_make(row + s->dk * element, s->dtype, 1, s->n_kv, s->dv);
    k.strides[1] = v.strides[1] = s->dk + s->dv;
    k.strides[0] = v.strides[0] = (int64_t)s->n_kv * (s->dk + s->dv);
    k.strides[2] = v.strides[2] = 1;
    return hr_sequence_append(s, i, &k, &v, NULL);
}

static hr_status_t query_check(const hr_sequence_t *s, uint32_t i, const float *q)
{
    size_t n = (size_t)s->n_q * s->dk;
    size_t bad = s->runtime->kernels->find_nonfinite(q, HR_DTYPE_F32, n);
    return bad == n ? HR_OK
                    : hri_error_set(HR_ERR_NONFINITE,
                                    "q: layer %u, head %zu, dimension %zu is not finite", i,
                                    bad / s->dk, bad % s->dk);
}

static hr_status_t step_end(hr_sequence_t *s, uint32_t i, uint32_t position,
                            struct hr_attend_report *report)
{
    struct hri_device_token t = hri_device_token(s, i, position, report);
    hri_device_report(&t);
    hr_status_t status = query_check(s, i, t.out->q);
    status = status == HR_OK ? row_append(s, i, t.out->row) : status;
    if (status == HR_OK) {
        t.d->rows_synced = t.layer->n_tokens;
        for (uint32_t h = 0; h < s->n_kv; h++) {
            hri_index_observe(t.layer->heads[h], t.out->q + (size_t)h * s->g * s->dk, 1, position);
        }
    }
    return status;
}

static hr_status_t layer_end(hr_sequence_t *s, uint32_t i, uint32_t position,
                             struct hr_attend_report *report)
{
    if (!s->layers[i].exact) {
        return step_end(s, i, position, report);
    }
    const struct hri_held_out *out = &s->held->outs[i];
    hr_status_t status = query_check(s, i, out->q);
    status = status == HR_OK ? row_append(s, i, out->row) : status;
    if (status == HR_OK) {
        hri_held_token_end(s, i, position, report);
    }
    return status;
}

/* Takes the token back from the layers that have it; the last rows are in every tail. */
static hr_status_t token_undo(hr_sequence_t *s, uint32_t n_tokens, hr_status_t status)
{
    char message[HRI_ERROR_BYTES_MAX];
    hri_error_get(message, sizeof message);
    (void)hr_sequence_truncate(s, n_tokens);
    return hri_error_set(status, "%s", message);
}

hr_status_t hr_step_graph_run(hr_step_graph_t *g, struct hr_attend_report *report_out)
{
    if (g == NULL) {
        return hri_error_set(HR_ERR_INVALID, "hr_step_graph_run: no graph");
    }
    hr_sequence_t *s = g->s;
    struct hr_attend_report report = {.true_error = -1.0, .true_error_max = -1.0};
    hr_status_t status = room_check(s);
    status = status == HR_OK ? hri_device_alive(s->runtime->gpu) : status;
    const uint32_t position = s->layers[0].n_tokens;
    const uint32_t first_ticket = s->part != NULL ? s->part->ticket + 1 : 0;
    for (uint32_t i = 0; i < s->n_layers && status == HR_OK; i++) {
        status = layer_begin(s, i, position, &report);
    }
    uint64_t began_ns = hri_now_ns();
    if (status == HR_OK) {
        hri_device_range_begin(s->runtime->gpu, "headrace token");
        status = replay(g, first_ticket, &report);
        hri_device_range_end(s->runtime->gpu);
    }
    if (status != HR_OK) {
        return status;
    }
    report.time_ns[HRI_ATTEND] = hri_now_ns() - began_ns;
    for (uint32_t i = 0; i < s->n_layers && status == HR_OK; i++) {
        status = layer_end(s, i, position, &report);
    }
    if (status != HR_OK) {
        return token_undo(s, position, status);
    }
    report.predicted_error /= s->n_layers;
    report.late_error /= s->n_layers;
    if (report_out != NULL) {
        *report_out = report;
    }
    return HR_OK;
}
