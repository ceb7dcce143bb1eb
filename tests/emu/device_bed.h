/* What the tests of steps on the device share: a sequence with its text on the device under test, and what a step chose. */
#ifndef DEVICE_BED_H
#define DEVICE_BED_H

#include "tests/emu/device_emu.h"
#include "tests/offload/fault_io.h"
#include "tests/runtime/naive.h"
#include "tests/test.h"

#include "offload/io_ops.h"
#include "runtime/device_part.h"

#include <math.h>
#include <stdbool.h>
#include <unistd.h>

enum { KV = 2, D = 64, TOKENS = 900, LAYERS = 2, ITEMS_MOST = 2400 };

struct bed {
    struct shape shape;
    hr_runtime_t *rt;
    hr_sequence_t *seq;
    float *k, *v, *q, *out;
    uint32_t n; /* tokens so far */
    struct hr_attend_report report;
};

static char log_text[1024];
static unsigned log_lines;

static inline void log_keep(void *context, hr_log_level_t level, const char *line)
{
    (void)context, (void)level;
    snprintf(log_text, sizeof log_text, "%s", line);
    log_lines++;
}

static inline int calm(void **state)
{
    (void)state;
    device_emu_faults = (struct device_emu_faults){0};
    log_text[0] = 0;
    log_lines = 0;
    return 0;
}

struct plan {
    const char *device, *recipe; /* NULL: the device under test */
    double moved, tolerance;
    uint64_t device_bytes, host_bytes;
    const struct hri_io_ops *io; /* with a file tier where set */
    hr_dtype_t dtype;
    float soft_cap;
    bool indexes; /* there, too: test_device_index has that, and the emulator takes its time */
};

static inline hr_status_t runtime_open(const struct plan *p, hr_runtime_t **rt_out)
{
    struct hr_runtime_options o;
    hr_runtime_options_init(&o);
    o.device = p->device != NULL ? p->device : device_emu_ops()->name;
    o.device_bytes = p->device_bytes;
    o.host_bytes = p->host_bytes;
    o.n_threads = 2;
    o.log = log_keep;
    if (p->io != NULL) {
        o.file_dir = access(disk_dir(), W_OK) == 0 ? disk_dir() : "/var/tmp"; /* in a bundle */
        o.file_bytes = 64u << 20;
        o.io_mode = HR_IO_THREADS;
    }
    hr_status_t status =
        hri_runtime_create_on(&o, p->io != NULL ? p->io : hri_io_real(), device_emu_ops(), rt_out);
    if (status == HR_OK)
        (*rt_out)->index_on_host = !p->indexes;
    return status;
}

static inline hr_status_t sequence_open(const struct bed *b, const struct plan *p,
                                        hr_sequence_t **seq_out)
{
    struct hr_sequence_options so;
    options_for(&b->shape, TOKENS, p->recipe, p->moved, &so);
    so.tolerance = p->tolerance;
    so.keep_tokens = 1;
    return hr_sequence_create(b->rt, &so, seq_out);
}

/* A sequence of `shape` on the device, and a text for it. */
static inline void bed_make_of(struct bed *b, const struct plan *p, const struct shape *shape)
{
    struct random r = {.state = 11};
    memset(b, 0, sizeof *b);
    b->shape = *shape;
    b->shape.dtype = p->dtype;
    b->shape.soft_cap = p->soft_cap;
    assert_ok(runtime_open(p, &b->rt));
    assert_ok(sequence_open(b, p, &b->seq));
    b->k = malloc(sizeof(float) * TOKENS * KV * D);
    b->v = malloc(sizeof(float) * TOKENS * KV * D);
    b->q = malloc(sizeof(float) * TOKENS * shape->n_q * D);
    b->out = malloc(sizeof(float) * shape->n_q * D);
    assert_true(b->k && b->v && b->q && b->out);
    rows_make(&r, &b->shape, TOKENS, b->k, b->v);
    queries_make(&r, &b->shape, TOKENS, b->q);
}

static inline void bed_free(struct bed *b)
{
    hr_sequence_destroy(b->seq);
    assert_ok(hr_runtime_destroy(b->rt));
    free(b->k);
    free(b->v);
    free(b->q);
    free(b->out);
    assert_int_equal(device_emu_counts().device_bytes, 0);
    assert_int_equal(device_emu_counts().pinned_bytes, 0);
}

static inline void append_to(struct bed *b, hr_sequence_t *seq, uint32_t n)
{
    for (uint32_t i = 0; i < LAYERS; i++)
        assert_ok(rows_append(seq, &b->shape, i, b->k, b->v, b->n, n));
}

static inline void append(struct bed *b, uint32_t n)
{
    append_to(b, b->seq, n);
    b->n += n;
}

static inline hr_status_t attend_with(const struct bed *b, hr_sequence_t *seq, uint32_t layer,
                                      const struct hr_attend_options *options, float *out,
                                      struct hr_attend_report *report)
{
    const uint32_t n_q = b->shape.n_q;
    struct hr_tensor q =
        hr_tensor_make(b->q + (size_t)(b->n - 1) * n_q * D, HR_DTYPE_F32, 1, n_q, D);
    struct hr_tensor o = hr_tensor_make(out, HR_DTYPE_F32, 1, n_q, D);
    return hr_sequence_attend(seq, layer, &q, options, &o, report, NULL);
}

static inline void attend(struct bed *b, uint32_t layer)
{
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.check_exact = 1;
    assert_ok(attend_with(b, b->seq, layer, &options, b->out, &b->report));
}

/* ------------------------------------------------------------------------------------ what a step chose */

struct choice { /* of one kv-head: blocks, or parts of them */
    uint32_t n, n_came, items[ITEMS_MOST];
    bool chosen[ITEMS_MOST], came[ITEMS_MOST], hit[ITEMS_MOST];
};

/* What is in frames now. */
static inline void hits_read(const struct bed *b, uint32_t layer, struct choice c[KV])
{
    const struct hri_device_part *p = b->seq->part;
    const struct hri_cuda_residency *t = hri_device_tier_table(p->tier, p->layers[layer].number);
    uint32_t frame_of[KV * ITEMS_MOST];
    assert_true(p->items <= ITEMS_MOST);
    device_emu_read(frame_of, t->frame_of, (size_t)KV * p->items * 4);
    for (uint32_t h = 0; h < KV; h++)
        for (uint32_t i = 0; i < p->items; i++)
            c[h].hit[i] = frame_of[h * p->items + i] != HRI_CUDA_NONE;
}

static inline void choice_read(const struct bed *b, struct choice c[KV])
{
    for (uint32_t h = 0; h < KV; h++) {
        const struct hri_head_step *hs = &b->seq->steps[h];
        memset(c[h].chosen, 0, sizeof c[h].chosen);
        memset(c[h].came, 0, sizeof c[h].came);
        c[h].n = hs->out.n_items;
        c[h].n_came = 0;
        for (uint32_t i = 0; i < c[h].n; i++) {
            c[h].chosen[hs->items[i]] = true;
            c[h].came[hs->items[i]] = hs->where[i] != NULL;
            if (hs->where[i] != NULL)
                c[h].items[c[h].n_came++] = hs->items[i];
        }
    }
}

/* The report adds up to what was chosen. */
static inline void check_report(const struct bed *b, uint32_t layer, const struct choice c[KV])
{
    const struct hr_attend_report *r = &b->report;
    const hr_sequence_t *s = b->seq;
    const struct hri_layer *l = &s->layers[layer];
    const uint32_t body = l->body_end - s->n_sink;
    uint64_t rows[3] = {0}, items[3] = {0}, all = 0, total = 0; /* hits, fetched, late */
    for (uint32_t h = 0; h < KV; h++) {
        total += hri_index_items(l->heads[h]);
        for (uint32_t i = 0; i < hri_index_blocks(l->heads[h]) * s->parts; i++) {
            if (!c[h].chosen[i])
                continue;
            int kind = !c[h].came[i] ? 2 : c[h].hit[i] ? 0 : 1;
            assert_true(hri_index_item_rows(l->heads[h], i) > 0);
            rows[kind] += hri_index_item_rows(l->heads[h], i);
            items[kind]++;
        }
    }
    for (int i = 0; i < HR_LEVELS; i++)
        all += r->rows_by_level[i];
    assert_int_equal(all, (uint64_t)b->n * KV);
    assert_int_equal(r->rows_by_level[2], rows[0] + rows[1]);
    assert_int_equal(r->body_bytes, (uint64_t)body * KV * s->row_bytes);
    assert_int_equal(r->blocks_hit, items[0]);
    assert_int_equal(r->blocks_fetched, items[1]);
    assert_int_equal(r->blocks_late, items[2]);
    assert_int_equal(r->blocks_total, total);
    assert_int_equal(r->blocks_estimated, total - items[0] - items[1] - items[2]);
    assert_int_equal(r->bytes_hit, rows[0] * s->code_bytes);
    assert_int_equal(r->bytes_selected, (rows[0] + rows[1] + rows[2]) * s->code_bytes);
    assert_true(r->predicted_error >= 0 && isfinite(r->predicted_error));
    assert_true(r->late_error <= r->predicted_error + 1e-6);
    assert_true((r->late_error > 0) == (items[2] > 0));
}

/* The codes of a block or part, as they lie in host memory or in the file; freed by the caller. */
static inline int8_t *codes_read(const hr_sequence_t *s, uint32_t layer, uint32_t h, uint32_t item)
{
    const struct hri_layer *l = &s->layers[layer];
    const struct hri_block_at *at = &l->places[h][item];
    const size_t bytes = (size_t)hri_index_item_rows(l->heads[h], item) * s->code_bytes;
    const unsigned char *cell = hri_lane_peek(l->block_lane, at->cell);
    unsigned char *copy = malloc(s->block_cell_bytes);
    int8_t *codes = malloc(bytes);
    assert_true(copy != NULL && codes != NULL);
    if (cell == NULL) { /* in the file alone */
        struct hri_read read = {.lane = l->block_lane, .cell = at->cell, .n_cells = 1, .dst = copy};
        struct hri_read_batch batch = {.reads = &read, .n_reads = 1};
        assert_ok(hri_store_read_begin(s->runtime->store, &batch));
        assert_ok(hri_store_read_wait(s->runtime->store, &batch, 0));
        cell = copy;
    }
    memcpy(codes, cell + at->offset, bytes);
    free(copy);
    return codes;
}

#endif
