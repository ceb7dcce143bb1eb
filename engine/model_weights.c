/*
 * Weights of a mapped file move to memory of the model's own, in pages of 2 MiB where the system has them: a core reads those about twice as
 * fast as pages of 4 KiB. On the way they are put into the order in which the level's dot products read them (repack.h). The file's
 * pages are given back, one weight after the other, so that nothing is held twice.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/fail.h"
#include "engine/model.h"
#include "engine/repack.h"

#define ROWS_PER_ITEM    (16 * HRE_GROUP_ROWS)
#define WEIGHT_ALIGNMENT 64
#define HUGE_PAGE        ((size_t)2 << 20)

struct move {
    struct hre_model *model;
    struct hre_weight from;
    unsigned char *to;
    uint32_t packed_rows;
    size_t used; /* of the region */
};

static size_t weight_bytes(const struct hre_weight *w)
{
    return w->rows * w->row_bytes;
}

static void move_item(void *context, uint32_t item, uint32_t thread)
{
    const struct move *m = context;
    const struct hre_weight *w = &m->from;
    uint32_t first = item * ROWS_PER_ITEM, left = w->rows - first;
    uint32_t end = first + (left < ROWS_PER_ITEM ? left : ROWS_PER_ITEM), r = first;
    const unsigned char *from = w->data;

    (void)thread;
    for (; r < end && r < m->packed_rows; r += HRE_GROUP_ROWS) {
        hre_repack_group(w->type, from + r * w->row_bytes, w->row_bytes, m->to + r * w->row_bytes);
    }
    memcpy(m->to + r * w->row_bytes, from + r * w->row_bytes, (end - r) * w->row_bytes);
}

typedef void (*visit_fn)(struct move *move, struct hre_weight *w);

static void measure(struct move *m, struct hre_weight *w)
{
    m->used += (weight_bytes(w) + WEIGHT_ALIGNMENT - 1) / WEIGHT_ALIGNMENT * WEIGHT_ALIGNMENT;
}

static void move_weight(struct move *m, struct hre_weight *w)
{
    int packs = hre_can_repack(w->type) && m->model->ops->dot_groups[w->type];

    m->from = *w;
    m->to = (unsigned char *)m->model->weights + m->used;
    m->packed_rows = packs ? w->rows / HRE_GROUP_ROWS * HRE_GROUP_ROWS : 0;
    hre_workers_run(m->model->workers, move_item, m, (w->rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM);
    hre_gguf_release(m->model->gguf, w->data, weight_bytes(w));
    w->data = m->to;
    w->packed_rows = m->packed_rows;
    measure(m, w);
}

/* Every matrix that rows of activations are multiplied with. */
static void visit_all(struct move *m, visit_fn visit)
{
    for (uint32_t i = 0; i < m->model->info.n_layers; i++) {
        struct hre_layer *layer = &m->model->layers[i];
        struct hre_weight *weights[] = {&layer->q,    &layer->k,  &layer->v,   &layer->output,
                                        &layer->gate, &layer->up, &layer->down};

        for (size_t w = 0; w < sizeof(weights) / sizeof(weights[0]); w++) {
            if (weights[w]->data) {
                visit(m, weights[w]);
            }
        }
    }
    visit(m, &m->model->output);
}

/* Aligned, so that every page but the last can be a large one. */
static void *map_region(size_t bytes)
{
    unsigned char *p =
        mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        return NULL;
    }
    size_t before = HUGE_PAGE - (uintptr_t)p % HUGE_PAGE;

    munmap(p, before);
    munmap(p + before + bytes, HUGE_PAGE - before);
    (void)madvise(p + before, bytes, MADV_HUGEPAGE); /* a wish; small pages work as well */
    return p + before;
}

hr_status_t hre_model_move_weights(struct hre_model *model)
{
    struct move m = {.model = model};
    int tied = model->embedding.data == model->output.data;

    if (!hre_gguf_is_mapped(model->gguf)) {
        return HR_OK;
    }
    visit_all(&m, measure);
    model->weights_bytes = (m.used + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    model->weights = map_region(model->weights_bytes);
    model->row = malloc(model->embedding.row_bytes);
    if (!model->weights || !model->row) {
        return hre_fail(HR_ERR_NOMEM, "%s: no memory for %zu bytes of weights",
                        hre_gguf_name(model->gguf), m.used);
    }
    m.used = 0;
    visit_all(&m, move_weight);
    model->embedding = tied ? model->output : model->embedding;
    model->info.owned_bytes += model->embedding.row_bytes;
    return HR_OK;
}

void hre_model_free_weights(struct hre_model *model)
{
    if (model->weights) {
        munmap(model->weights, model->weights_bytes);
    }
    free(model->row);
}
