#include "engine/model.h"

#include "engine/device.h"

#include <stdlib.h>
#include <string.h>

void hre_model_options_init(struct hre_model_options *options)
{
    *options = (struct hre_model_options){.struct_size = sizeof(*options)};
}

static hr_status_t open_file(const char *path, hre_gguf_t **gguf_out)
{
    size_t bytes;

    if (strcmp(path, "tiny") == 0) {
        const void *data = hre_tiny_file(&bytes);

        return hre_gguf_open_memory(data, bytes, "tiny", gguf_out);
    }
    return hre_gguf_open(path, gguf_out);
}

static uint32_t widest(const struct hre_model *model)
{
    uint32_t cols = model->info.width;

    for (uint32_t i = 0; i < model->info.n_layers; i++) {
        const struct hre_layer *layer = &model->layers[i];

        cols = layer->output.cols > cols ? layer->output.cols : cols;
        cols = layer->down.cols > cols ? layer->down.cols : cols;
    }
    return cols;
}

static hr_status_t open_parts(hre_model_t *model, const char *path,
                              const struct hre_model_options *options,
                              const struct hri_device_ops *ops)
{
    hr_status_t status = hre_ops_choose(options->cpu_level, &model->ops);

    if (status == HR_OK) {
        status = open_file(path, &model->gguf);
    }
    if (status == HR_OK) {
        status = hre_model_bind(model);
    }
    if (status == HR_OK) {
        status = hre_workers_create(options->n_threads, &model->workers);
    }
    if (status == HR_OK) {
        status = hre_device_open(model, options, ops);
    }
    if (status == HR_OK && !model->device) {
        status = hre_model_move_weights(model);
    }
    if (status == HR_OK) {
        status = hre_linear_create(model->ops, model->workers, widest(model), &model->linear);
    }
    return status;
}

hr_status_t hre_model_open(const char *path, const struct hre_model_options *options,
                           hre_model_t **model_out)
{
    return hre_model_open_on(path, options, NULL, model_out);
}

hr_status_t hre_model_open_on(const char *path, const struct hre_model_options *options,
                              const struct hri_device_ops *ops, hre_model_t **model_out)
{
    struct hre_model_options defaults;

    if (!path || !model_out) {
        return hre_fail(HR_ERR_INVALID, "hre_model_open: path and model_out must not be NULL");
    }
    if (!options) {
        hre_model_options_init(&defaults);
        options = &defaults;
    }
    if (options->struct_size != sizeof(*options)) {
        return hre_fail(HR_ERR_INVALID, "hre_model_open: options of %zu bytes, %zu expected",
                        options->struct_size, sizeof(*options));
    }
    hre_model_t *model = calloc(1, sizeof(*model));
    if (!model) {
        return hre_fail(HR_ERR_NOMEM, "%s: no memory", path);
    }
    hr_status_t status = open_parts(model, path, options, ops);
    if (status != HR_OK) {
        hre_model_close(model);
        return status;
    }
    model->info.n_threads = hre_workers_count(model->workers);
    model->info.cpu_level = model->ops->name;
    model->info.owned_bytes += hre_linear_bytes(model->linear);
    *model_out = model;
    return HR_OK;
}

void hre_model_close(hre_model_t *model)
{
    if (!model) {
        return;
    }
    hre_device_close(model->device);
    hre_linear_destroy(model->linear);
    hre_workers_destroy(model->workers);
    for (uint32_t i = 0; i < model->n_ropes; i++) {
        hre_rope_table_fini(&model->ropes[i]);
    }
    free(model->ropes);
    free(model->rope_bases);
    free(model->windows);
    free(model->log_n);
    free(model->library_ropes);
    free(model->layers);
    free(model->architecture);
    free(model->name);
    hre_model_free_weights(model);
    hre_gguf_close(model->gguf);
    free(model);
}

const struct hre_model_info *hre_model_info(const hre_model_t *model)
{
    return &model->info;
}

const hre_gguf_t *hre_model_gguf(const hre_model_t *model)
{
    return model->gguf;
}

static void run_tasks(void *workers, hr_task_fn fn, void *fn_context, uint32_t n_tasks)
{
    hre_workers_run(workers, fn, fn_context, n_tasks);
}

void hre_model_runtime_options(hre_model_t *model, struct hr_runtime_options *options)
{
    hre_workers_share(model->workers);
    options->n_threads = hre_workers_count(model->workers);
    options->run_tasks = run_tasks;
    options->run_tasks_context = model->workers;
}

void hre_model_sequence_options(const hre_model_t *model, struct hr_sequence_options *options)
{
    const struct hre_model_info *info = &model->info;

    options->n_layers = info->n_layers;
    options->n_q_heads = info->n_q_heads;
    options->n_kv_heads = info->n_kv_heads;
    options->k_dim = info->k_dim;
    options->v_dim = info->v_dim;
    options->scale = 0.0f;
    options->soft_cap = 0.0f;
    options->sliding_window = model->any_window ? model->windows : NULL;
    options->rope = model->library_ropes;
    options->log_n = model->log_n;
}
