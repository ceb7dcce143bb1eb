/* A token of a recipe with steps on the GPU as one graph: the library's launches with the model's between them. */
#include <stdlib.h>

#include "engine/device.h"

struct recording {
    const hre_model_t *model;
    struct hre_device *device;
};

static int between(const struct recording *r, uint32_t layer, const struct hr_step_buffers *b,
                   void *stream)
{
    const hre_model_t *model = r->model;
    struct hre_device *d = r->device;
    const float *delta = layer > 0 ? d->h : NULL;

    if (layer == 0) {
        HRE_LAUNCHED(hre_device_embed(model, 1, stream));
    } else {
        struct hre_device_rows att = {b[layer - 1].out, HR_DTYPE_F32};

        HRE_LAUNCHED(hre_device_layer_end(model, layer - 1, att, d->x, 1, stream));
    }
    if (layer < model->info.n_layers) {
        struct hre_device_qkv to = {b[layer].q, b[layer].k, b[layer].v};

        return hre_device_layer_begin(model, layer, delta, 1, to, stream);
    }
    HRE_LAUNCHED(hre_device_output_norm(model, d->x, delta, 1, stream));
    return hre_device_product(d, hre_device_rows_for(d, 1), 1, &d->output, d->logits, stream);
}

static hr_status_t record(void *context, uint32_t layer, const struct hr_step_buffers *buffers,
                          hr_stream_t stream)
{
    const struct recording *r = context;

    return hri_device_check(r->device->device, between(r, layer, buffers, stream),
                            "recording the model");
}

/* What a graph does not do is asked for layer by layer. */
static bool wanted(const struct hre_pass *pass)
{
    const struct hre_decode_options *o = pass->decode;

    return o && pass->n == 1 && o->mode != HR_ATTEND_EXACT && !o->check_exact && !o->strict_exact &&
           o->deadline_ns == 0 && !o->on_refined;
}

hr_status_t hre_device_graph_ready(struct hre_session *s, const struct hre_pass *pass,
                                   bool *ready_out)
{
    struct hre_device_graph *g = &s->graphs[pass->first_sequence];
    struct recording r = {s->model, s->model->device};
    struct hr_step_graph_options o;

    *ready_out = wanted(pass) && g->graph;
    if (!wanted(pass) || g->graph || g->refused) {
        return HR_OK;
    }
    hr_step_graph_options_init(&o);
    o.between = record;
    o.context = &r;
    hr_status_t status = hr_step_graph_create(s->sequences[pass->first_sequence], &o, &g->graph);
    /* No steps there, or no memory left for a graph's buffers: layer by layer, then. */
    g->refused = status == HR_ERR_UNSUPPORTED || status == HR_ERR_BUDGET;
    if (g->refused) {
        hri_log_write(&r.device->log, status == HR_ERR_BUDGET ? HRI_LOG_WARN : HRI_LOG_INFO,
                      "tokens go through the GPU layer by layer, not as one graph: %s",
                      hr_last_error());
    }
    *ready_out = status == HR_OK;
    return status == HR_OK || g->refused ? HR_OK : hre_fail_library(status, "recording a token");
}

hr_status_t hre_device_graph_run(struct hre_session *s, struct hre_pass *pass)
{
    struct hre_device *d = s->model->device;
    struct hr_attend_report report;
    hr_status_t status = hre_device_tokens_put(s, pass);

    /* The graph runs in another stream. */
    status = status == HR_OK ? hri_device_wait(d->device) : status;
    uint64_t begin = hre_now_ns();
    if (status == HR_OK) {
        status = hr_step_graph_run(s->graphs[pass->first_sequence].graph, &report);
    }
    pass->times.attend_ns += hre_now_ns() - begin;
    if (status == HR_ERR_UNSUPPORTED) {
        struct hre_device_graph *g = &s->graphs[pass->first_sequence];

        hri_log_info(&d->log, "tokens go through the GPU layer by layer from now on: %s",
                     hr_last_error());
        hr_step_graph_destroy(g->graph);
        *g = (struct hre_device_graph){.refused = true};
        return status;
    }
    if (status != HR_OK) {
        return hre_fail_library(status, "a token");
    }
    if (pass->sum) { /* means, where sums over the layers are added up */
        report.predicted_error *= s->model->info.n_layers;
        report.late_error *= s->model->info.n_layers;
        hre_report_add(pass->sum, &report);
    }
    d->has_logits = true;
    s->stats.decode_graph_tokens++;
    return HR_OK;
}

void hre_device_session_end(struct hre_session *s)
{
    for (uint32_t i = 0; s->graphs && i < s->n_sequences; i++) {
        hr_step_graph_destroy(s->graphs[i].graph);
    }
    free(s->graphs);
    s->graphs = NULL;
}
