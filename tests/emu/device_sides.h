/* What the tests of models on the device share: a model with a runtime and a sequence on either side, and how their logits compare. */
#ifndef DEVICE_SIDES_H
#define DEVICE_SIDES_H

#include "tests/emu/device_emu.h"
#include "tests/test.h"

#include "base/half.h"
#include "engine/device.h"
#include "engine/repack.h"
#include "runtime/sequence.h"
#include "tests/engine/run_model.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define HEADRACE "headrace:decode_segment=32,window=32"

enum { KEYS = 8, TOKENS_MAX = 640, WEIGHTS_MAX = 256 };

/* A model with a runtime and a sequence. */
struct side {
    hre_model_t *model;
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    hre_session_t *session;
    uint32_t vocab;
    void *rounded[WEIGHTS_MAX];
    uint32_t n_rounded;
};

struct setup {
    const char *model;
    const char *recipe;
    uint32_t rows; /* device_rows: tokens of a tile */
    bool there;    /* the model; with cache_there also its sequence */
    bool cache_there;
    hr_dtype_t dtype;
    double moved;
};

/* -- weights as the device has them -- */

static inline void weight_round(struct side *side, struct hre_weight *w)
{
    if (!w->data)
        return;
    uint16_t *to = malloc((size_t)w->rows * w->cols * sizeof *to);
    float *row = malloc(w->cols * sizeof *row);
    unsigned char *packed = malloc(w->row_bytes);
    assert_true(to && row && packed && side->n_rounded < WEIGHTS_MAX);
    for (uint32_t r = 0; r < w->rows; r++) {
        side->model->ops->dequantise[w->type](hre_weight_row(w, r, packed), w->cols, row);
        for (uint32_t i = 0; i < w->cols; i++)
            to[(size_t)r * w->cols + i] = hri_bf16_from_f32(row[i]);
    }
    free(row);
    free(packed);
    side->rounded[side->n_rounded++] = to;
    w->data = to;
    w->type = HRE_WEIGHT_BF16;
    w->row_bytes = w->cols * sizeof *to;
    w->packed_rows = 0;
}

static inline void weights_round(struct side *side)
{
    hre_model_t *m = side->model;
    const bool tied = m->embedding.data == m->output.data;
    weight_round(side, &m->embedding);
    if (tied)
        m->output = m->embedding;
    else
        weight_round(side, &m->output);
    for (uint32_t i = 0; i < m->info.n_layers; i++) {
        struct hre_layer *l = &m->layers[i];
        struct hre_weight *all[] = {&l->q, &l->k, &l->v, &l->output, &l->gate, &l->up, &l->down};
        for (size_t w = 0; w < sizeof all / sizeof *all; w++)
            weight_round(side, all[w]);
    }
}

static inline hr_status_t model_open(const char *path, const struct setup *t,
                                     hre_model_t **model_out)
{
    struct hre_model_options o;
    hre_model_options_init(&o);
    o.n_threads = 1;
    o.device = t->there ? device_emu_ops()->name : NULL;
    o.device_rows = t->rows;
    return hre_model_open_on(path, &o, device_emu_ops(), model_out);
}

static inline void sequence_options(const struct side *side, const struct setup *t,
                                    struct hr_sequence_options *o)
{
    hr_sequence_options_init(o);
    hre_model_sequence_options(side->model, o);
    o->tokens_max = TOKENS_MAX;
    o->recipe = t->recipe;
    o->dtype = t->dtype;
    o->moved = t->moved > 0 ? t->moved : 0.2;
}

static inline void session_open(struct side *side, uint32_t last_id)
{
    struct hre_session_options o;
    hre_session_options_init(&o);
    o.sequences = &side->sequence;
    o.n_sequences = 1;
    o.tokens_max = TOKENS_MAX;
    o.resume = hr_sequence_length(side->sequence, 0) > 0;
    o.last_id = last_id;
    must(hre_session_create(side->model, &o, &side->session));
}

static inline void side_open(struct side *side, const struct setup *t)
{
    struct hr_runtime_options ro;
    struct hr_sequence_options so;
    memset(side, 0, sizeof *side);
    must(model_open(t->model ? t->model : "tiny", t, &side->model));
    if (!t->there)
        weights_round(side);
    hr_runtime_options_init(&ro);
    ro.n_threads = 1;
    ro.host_bytes = 32u << 20;
    ro.device_bytes = 64u << 20;
    ro.device = t->cache_there ? device_emu_ops()->name : NULL;
    must(hri_runtime_create_on(&ro, hri_io_real(), device_emu_ops(), &side->runtime));
    side->runtime->index_on_host = true; /* test_device_index has that */
    sequence_options(side, t, &so);
    must(hr_sequence_create(side->runtime, &so, &side->sequence));
    side->vocab = hre_model_info(side->model)->vocab;
    session_open(side, 0);
}

static inline void side_close(struct side *side)
{
    hre_session_destroy(side->session);
    hr_sequence_destroy(side->sequence);
    must(hr_runtime_destroy(side->runtime));
    hre_model_close(side->model);
    while (side->n_rounded > 0)
        free(side->rounded[--side->n_rounded]);
}

/* -- comparing -- */

static inline double spread_of(const float *logits, uint32_t n)
{
    double sum = 0, squares = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += (double)logits[i];
        squares += (double)logits[i] * (double)logits[i];
    }
    return sqrt(squares / n - sum / n * (sum / n));
}

static inline uint32_t best_of(const float *logits, uint32_t n, float *ahead_out)
{
    uint32_t best = 0;
    float second = -INFINITY;
    for (uint32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    for (uint32_t i = 0; i < n; i++)
        second = i != best && logits[i] > second ? logits[i] : second;
    *ahead_out = logits[best] - second;
    return best;
}

static double worst; /* difference so far, of the spread */

static inline void compare(const float *got, const float *want, uint32_t n, const char *what,
                           double tolerance)
{
    const double spread = spread_of(want, n);
    double most = 0;
    float ahead, unused;
    for (uint32_t i = 0; i < n; i++) {
        const double d = fabs((double)got[i] - (double)want[i]);
        most = d > most || d != d ? d : most;
    }
    worst = most / spread > worst ? most / spread : worst;
    if (!(most <= tolerance * spread))
        fail_msg("%s: logits differ by %g of their spread", what, most / spread);
    const uint32_t best = best_of(want, n, &ahead);
    if ((double)ahead > 2 * most)
        assert_int_equal(best_of(got, n, &unused), best);
}

#endif
