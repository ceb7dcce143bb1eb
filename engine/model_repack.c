/* Weights are put into the order in which the dot products of the level read them (repack.h), where they lie: the mapping of the file is
 * private, so that a page that changes becomes the process's own in place of the file's. */
#include <stdlib.h>

#include "engine/fail.h"
#include "engine/model.h"
#include "engine/repack.h"

#define GROUPS_PER_ITEM 16

struct job {
    const struct hre_weight *w;
    unsigned char *scratch; /* [threads][scratch_bytes] */
    size_t scratch_bytes;
};

static size_t group_bytes(const struct hre_weight *w)
{
    return HRE_GROUP_ROWS * w->row_bytes;
}

static void repack_item(void *context, uint32_t item, uint32_t thread)
{
    const struct job *job = context;
    const struct hre_weight *w = job->w;
    uint32_t first = item * GROUPS_PER_ITEM, end = first + GROUPS_PER_ITEM;

    for (uint32_t g = first; g < end && g < w->rows / HRE_GROUP_ROWS; g++) {
        /* The mapping is writable now; other users see constants. */
        unsigned char *rows = (unsigned char *)(uintptr_t)w->data + g * group_bytes(w);

        hre_repack_group(w->type, rows, w->row_bytes, job->scratch + thread * job->scratch_bytes);
    }
}

/* A file may have two names for the same bytes: they stay as they are. */
static int is_alone(const hre_gguf_t *gguf, const struct hre_weight *w)
{
    const char *begin = w->data, *end = begin + w->rows * w->row_bytes;
    uint32_t n = 0;

    for (uint64_t i = 0; i < hre_gguf_tensor_count(gguf); i++) {
        const struct hre_gguf_tensor *t = hre_gguf_tensor_at(gguf, i);
        const char *data = t->data;

        n += data < end && begin < data + t->n_bytes;
    }
    return n == 1;
}

static int fits(const struct hre_model *model, const struct hre_weight *w)
{
    return w->data && hre_can_repack(w->type) && model->ops->dot_groups[w->type] &&
           is_alone(model->gguf, w);
}

typedef void (*visit_fn)(const struct hre_model *model, struct job *job, struct hre_weight *w);

static void measure(const struct hre_model *model, struct job *job, struct hre_weight *w)
{
    size_t bytes = fits(model, w) ? group_bytes(w) : 0;

    job->scratch_bytes = bytes > job->scratch_bytes ? bytes : job->scratch_bytes;
}

static void repack(const struct hre_model *model, struct job *job, struct hre_weight *w)
{
    uint32_t groups = w->rows / HRE_GROUP_ROWS;

    if (!fits(model, w)) {
        return;
    }
    job->w = w;
    hre_workers_run(model->workers, repack_item, job,
                    (groups + GROUPS_PER_ITEM - 1) / GROUPS_PER_ITEM);
    w->packed_rows = groups * HRE_GROUP_ROWS;
}

/* Every matrix that rows of activations are multiplied with. */
static void visit_all(struct hre_model *model, struct job *job, visit_fn visit)
{
    for (uint32_t i = 0; i < model->info.n_layers; i++) {
        struct hre_layer *layer = &model->layers[i];
        struct hre_weight *weights[] = {&layer->q,    &layer->k,  &layer->v,   &layer->output,
                                        &layer->gate, &layer->up, &layer->down};

        for (size_t w = 0; w < sizeof(weights) / sizeof(weights[0]); w++) {
            visit(model, job, weights[w]);
        }
    }
    visit(model, job, &model->output);
}

hr_status_t hre_model_repack(struct hre_model *model)
{
    struct job job = {.scratch_bytes = 0};

    visit_all(model, &job, measure);
    if (job.scratch_bytes == 0 || !hre_gguf_make_writable(model->gguf)) {
        return HR_OK;
    }
    job.scratch = malloc(hre_workers_count(model->workers) * job.scratch_bytes);
    model->row = malloc(model->embedding.row_bytes);
    if (!job.scratch || !model->row) {
        free(job.scratch);
        return hre_fail(HR_ERR_NOMEM, "%s: no memory to repack weights",
                        hre_gguf_name(model->gguf));
    }
    int tied = model->embedding.data == model->output.data;
    visit_all(model, &job, repack);
    model->embedding = tied ? model->output : model->embedding;
    model->info.owned_bytes += model->embedding.row_bytes;
    free(job.scratch);
    return HR_OK;
}
