/* Whole steps of sequences whose device tier is on a device (the emulator), against the CPU.
 *
 * The choice: blocks' worth in double, from docs/algorithm.md; what was chosen of misses and of hits is the best of
 * each to within 1e-2 of the worth, and what is best of the rest did not fit. The output: that of the CPU's own
 * functions for the blocks that were chosen and came, to 1e-3. Where everything is refined: the CPU's step. */
#include "tests/emu/device_bed.h"

#include "base/half.h"
#include "index/view.h"

#include <errno.h>

enum { HEADS = 4, G = HEADS / KV };
#define RECIPE    "headrace:sketch=0,block=12,decode_segment=64,window=32"
#define TOLERANCE 1e-3
#define NEARLY    1e-2

static const struct shape shape = {.n_layers = LAYERS,
                                   .n_q = HEADS,
                                   .n_kv = KV,
                                   .dk = D,
                                   .dv = D,
                                   .dtype = HR_DTYPE_BF16,
                                   .rope = HR_ROPE_HALF};

static const struct plan plain = {.device = NULL, /* the one under test */
                                  .recipe = RECIPE,
                                  .moved = 0.1,
                                  .device_bytes = 64u << 20,
                                  .host_bytes = 32u << 20,
                                  .dtype = HR_DTYPE_BF16};

static void bed_make(struct bed *b, const struct plan *p)
{
    bed_make_of(b, p, &shape);
}

/* ------------------------------------------------------------------------------ the same step on the CPU */

struct reference {
    float q[G * D], out[G * D];
    float m[G], l[G], o[G * D], near_m[G], near_l[G], near_o[G * D];
    struct hri_partial part, near; /* near: of sink and tail alone, what in.near points to */
    struct hri_select_in in;
    struct hri_select_out select;
    uint32_t items[ITEMS_MOST];
    void *scratch;
};

static void near_of(const struct bed *b, uint32_t layer, uint32_t h, struct reference *r)
{
    const hr_sequence_t *s = b->seq;
    const struct hri_layer *l = &s->layers[layer];
    uint32_t first = l->body_end > s->n_sink ? l->body_end : s->n_sink;
    r->part = (struct hri_partial){r->m, r->l, r->o};
    for (uint32_t i = 0; i < G * D; i++)
        r->q[i] = b->q[((size_t)(b->n - 1) * HEADS + h * G) * D + i] * s->scale;
    hri_partial_clear(&r->part, G, D);
    struct hri_rows sink = {l->sink + (size_t)h * s->n_sink * s->row_bytes, s->row_bytes, s->n_sink,
                            s->dtype};
    struct hri_rows tail = {hri_tail_row(s, l, h, first), s->row_bytes, b->n - first, s->dtype};
    s->runtime->kernels->attend_rows(r->q, G, D, D, sink, s->soft_cap, &r->part);
    s->runtime->kernels->attend_rows(r->q, G, D, D, tail, s->soft_cap, &r->part);
}

static void block_attend(const hr_sequence_t *s, uint32_t layer, uint32_t h, uint32_t block,
                         struct reference *r)
{
    struct hri_index_head *head = s->layers[layer].heads[h];
    int8_t *codes = codes_read(s, layer, h, block);
    float dots[G], center[D];
    struct hri_block_i8 i8 = {
        .codes = codes, .k_dot = dots, .v_center = center, .n = hri_index_block_rows(head, block)};
    hri_index_block_dots(head, &r->in, block, dots);
    hri_index_centers(head, block, NULL, center);
    hri_index_steps(head, block, &i8.k_step, &i8.v_step);
    s->runtime->kernels->attend_block_i8(r->q, G, D, D, &i8, s->soft_cap, &r->part);
    free(codes);
}

/* The CPU's output when these blocks are refined. */
static void output_of(const struct bed *b, uint32_t layer, uint32_t h, const struct choice *c,
                      struct reference *r)
{
    struct hri_index_head *head = b->seq->layers[layer].heads[h];
    near_of(b, layer, h, r);
    r->near = (struct hri_partial){r->near_m, r->near_l, r->near_o};
    memcpy(r->near_m, r->m, sizeof r->m);
    memcpy(r->near_l, r->l, sizeof r->l);
    memcpy(r->near_o, r->o, sizeof r->o);
    r->in = (struct hri_select_in){.q = r->q,
                                   .near = &r->near,
                                   .budget_bytes = 1,
                                   .row_bytes = b->seq->code_bytes,
                                   .position = b->n - 1,
                                   .scratch = r->scratch};
    r->select = (struct hri_select_out){.items = r->items, .items_max = ITEMS_MOST};
    assert_ok(hri_index_select(head, &r->in, &r->select)); /* for its scores */
    memcpy(r->items, c->items, c->n_came * sizeof *c->items);
    r->select.n_items = c->n_came;
    hri_index_estimate(head, &r->in, &r->select, &r->part, NULL);
    for (uint32_t i = 0; i < c->n_came; i++)
        block_attend(b->seq, layer, h, c->items[i], r);
    hri_partial_finish(&r->part, G, D, r->out, NULL);
}

/* Worth of every block for ranking, in double. */
static void keys_of(const struct bed *b, uint32_t layer, uint32_t h, const struct reference *r,
                    double *key)
{
    const struct hri_index_view v = hri_index_view(b->seq->layers[layer].heads[h]);
    const double cap = b->seq->soft_cap;
    memset(key, 0, v.n_blocks * sizeof *key);
    for (uint32_t g = 0; g < G; g++) {
        const float *q = r->q + g * D;
        double variance = 0, mass[ITEMS_MOST], sum = r->in.near->l[g];
        for (uint32_t i = 0; i < v.rank_c; i++) {
            double x = 0;
            for (uint32_t j = 0; j < D; j++)
                x += (double)q[j] * v.f[i * D + j];
            variance += x * x * v.f_scale[i] * v.f_scale[i];
        }
        for (uint32_t i = 0; i < v.n_blocks; i++) {
            float centre[D];
            double dot = 0, x = variance * hri_f32_from_bf16(v.spread[i]);
            hri_centroid_unpack(v.k_codes, D, i, v.k_scale[i], centre);
            for (uint32_t j = 0; j < D; j++)
                dot += (double)q[j] * ((double)centre[j] + v.k_mean[j]);
            if (cap > 0) {
                double bent = tanh(dot / cap);
                dot = cap * bent;
                x *= (1 - bent * bent) * (1 - bent * bent);
            }
            mass[i] = exp(dot + fmin(x / 2, 3) - r->in.near->m[g]) * v.block_rows[i];
            sum += mass[i];
        }
        for (uint32_t i = 0; i < v.n_blocks; i++) {
            double n = v.block_rows[i], p = mass[i] / sum;
            double x = variance * hri_f32_from_bf16(v.spread[i]), t = fmin(x, 3);
            double doubt = p * p * (t + t * t / 2 + t * t * t / 6 + t * t * t * t / 24 + 0.3) / n;
            double extra = 1.4 * v.peak[i] / 16.0 * sqrt(x) - log(n) - fmin(x / 2, 3);
            key[i] += doubt * (extra > 0 ? exp(2 * fmin(extra, 40)) : 1) / n;
        }
    }
}

/* Of misses and of hits the best were chosen, and the next did not fit. */
static void check_choice(const struct bed *b, uint32_t layer, uint32_t h, const struct choice *c,
                         const struct reference *r)
{
    const hr_sequence_t *s = b->seq;
    struct hri_index_head *head = s->layers[layer].heads[h];
    const uint32_t n = hri_index_blocks(head);
    const uint64_t body = s->layers[layer].body_end - s->n_sink;
    const uint64_t budget = (uint64_t)(s->moved * (double)body * s->row_bytes);
    double key[ITEMS_MOST];
    keys_of(b, layer, h, r, key);
    for (int hit = 0; hit < 2; hit++) {
        double worst = INFINITY, best = 0;
        uint64_t spent = 0;
        uint32_t next = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (c->hit[i] != hit)
                continue;
            if (c->chosen[i]) {
                spent += (uint64_t)hri_index_block_rows(head, i) * s->code_bytes;
                worst = fmin(worst, key[i]);
            } else if (key[i] > best) {
                best = key[i];
                next = i;
            }
        }
        assert_true(spent <= budget);
        if (!(worst >= best * (1 - NEARLY)))
            fail_msg("layer %u head %u hit %d: chose worth %g, left %g", layer, h, hit, worst,
                     best);
        /* One that is as good as it may stand in its place. */
        const uint64_t most = (uint64_t)s->block_rows_max * s->code_bytes;
        if (s->tolerance == 0 && best > 0)
            assert_true(spent + hri_index_block_rows(head, next) * (uint64_t)s->code_bytes >
                            budget ||
                        (worst < best * (1 + NEARLY) && spent + most > budget));
    }
}

/* The step that was just made, of which the hits were read before. */
static void check_step(const struct bed *b, uint32_t layer, struct choice c[KV], bool best)
{
    struct reference *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->scratch = aligned_alloc(64, 1u << 20);
    assert_non_null(r->scratch);
    choice_read(b, c);
    check_report(b, layer, c);
    for (uint32_t h = 0; h < KV; h++) {
        output_of(b, layer, h, &c[h], r);
        for (uint32_t g = 0; g < G; g++) {
            double e = apart(b->out + (h * G + g) * D, r->out + g * D, D);
            if (!(e < TOLERANCE))
                fail_msg("token %u layer %u head %u.%u: apart by %g", b->n, layer, h, g, e);
        }
        if (best)
            check_choice(b, layer, h, &c[h], r);
    }
    free(r->scratch);
    free(r);
}

static void step(struct bed *b)
{
    static struct choice c[KV];
    append(b, 1);
    for (uint32_t i = 0; i < LAYERS; i++) {
        hri_settle(b->seq, &b->seq->layers[i], b->seq->decode_segment, true);
        hits_read(b, i, c);
        attend(b, i);
        check_step(b, i, c, true);
    }
}

/* ----------------------------------------------------------------------------------------------- tests */

static void steps(const struct plan *p, uint32_t prefill, uint32_t n, uint64_t *hits,
                  uint64_t *fetched, uint64_t *late)
{
    struct bed b;
    bed_make(&b, p);
    append(&b, prefill);
    const uint64_t before = device_emu_counts().graph_launches;
    for (uint32_t i = 0; i < n; i++) {
        step(&b);
        *hits += b.report.blocks_hit;
        *fetched += b.report.blocks_fetched;
        *late += b.report.blocks_late;
    }
    /* Recorded once, replayed for every token and layer. */
    assert_int_equal(device_emu_counts().graph_launches - before,
                     n * LAYERS * (b.seq->part->direct || b.seq->part->mailed ? 1u : 2u));
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_ok(hr_runtime_stats_get(b.rt, &st));
    for (int i = 0; i < HR_TIERS; i++)
        assert_true(st.tier[i].bytes_peak <= st.tier[i].bytes_cap);
    bed_free(&b);
}

/* Over the end of a segment: the window's ring wraps, blocks come to the index while steps go on. */
static void test_steps(void **state)
{
    (void)state;
    uint64_t hits = 0, fetched = 0, late = 0;
    steps(&plain, 500, 12, &hits, &fetched, &late);
    assert_true(hits > 0 && fetched > 0 && late == 0);
    hits = fetched = 0;
    steps(&plain, 90, 10, &hits, &fetched, &late); /* few blocks, all new */
}

static void test_kinds(void **state)
{
    (void)state;
    uint64_t hits = 0, fetched = 0, late = 0;
    struct plan p = plain;
    p.dtype = HR_DTYPE_F16;
    p.soft_cap = 5;
    steps(&p, 300, 3, &hits, &fetched, &late);
    p = plain;
    p.recipe = "headrace:sketch=0,block=12,sink=0,window=16,reuse=3";
    steps(&p, 300, 2, &hits, &fetched, &late);
}

/* Fewer tokens than the sink has, then than the window: nothing is in blocks. */
static void test_short(void **state)
{
    (void)state;
    struct bed b;
    bed_make(&b, &plain);
    for (uint32_t n = 1; n < 12; n++) {
        append(&b, 1);
        attend(&b, 0);
        assert_true(b.report.true_error < TOLERANCE);
        assert_int_equal(b.report.blocks_total, 0);
        assert_true(b.report.predicted_error == 0);
    }
    bed_free(&b);
}

/* The graph replays while the sequence grows far: ten segments, every token compared with exact attention, where
 * everything is refined. */
static void test_growth(void **state)
{
    (void)state;
    struct bed b;
    struct plan p = plain;
    p.moved = 1;
    bed_make(&b, &p);
    append(&b, 40);
    double most = 0;
    while (b.n < TOKENS) {
        uint32_t n = TOKENS - b.n < 43 ? TOKENS - b.n : 43; /* in runs: rows catch up */
        append(&b, n);
        attend(&b, 0);
        most = fmax(most, b.report.true_error_max);
        assert_int_equal(b.report.blocks_estimated, 0);
    }
    print_message("everything refined: error at most %.5f\n", most);
    assert_true(most < 0.02); /* int8 rows */
    bed_free(&b);
}

/* The same sequence on the CPU and on the device, everything refined: the same outputs. */
static void test_cpu(void **state)
{
    (void)state;
    struct bed b;
    struct plan p = plain;
    p.moved = 1;
    bed_make(&b, &p);
    hr_runtime_t *rt = runtime_make(64u << 20, 32u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *twin = NULL;
    struct hr_sequence_options so;
    float out[HEADS * D];
    assert_non_null(rt);
    options_for(&b.shape, TOKENS, p.recipe, p.moved, &so);
    assert_ok(hr_sequence_create(rt, &so, &twin));
    append_to(&b, twin, 400);
    append(&b, 400);
    for (uint32_t i = 0; i < 5; i++) {
        append_to(&b, twin, 1);
        append(&b, 1);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            struct hr_attend_report report;
            attend(&b, layer);
            assert_ok(attend_with(&b, twin, layer, NULL, out, &report));
            assert_true(apart(b.out, out, HEADS * D) < TOLERANCE);
            assert_int_equal(report.rows_by_level[2], b.report.rows_by_level[2]);
            assert_int_equal(report.bytes_selected, b.report.bytes_selected);
            assert_int_equal(report.body_bytes, b.report.body_bytes);
        }
    }
    hr_sequence_destroy(twin);
    assert_ok(hr_runtime_destroy(rt));
    bed_free(&b);
}

static void test_tolerance(void **state)
{
    (void)state;
    struct bed b;
    struct plan p = plain;
    uint64_t all = 0, some = 0;
    for (int with = 0; with < 2; with++) {
        p.tolerance = with ? 0.3 : 0;
        p.moved = 0.5;
        bed_make(&b, &p);
        append(&b, 500);
        for (uint32_t i = 0; i < 4; i++) {
            step(&b);
            *(with ? &some : &all) += b.report.bytes_selected;
            assert_true(!with || b.report.predicted_error <= 0.3 * 1.001 ||
                        b.report.blocks_estimated > 0);
            assert_true(with || b.report.heads_capped == 0);
        }
        bed_free(&b);
    }
    assert_true(some < all);
    p.tolerance = 0.001; /* that hardly any budget reaches */
    p.moved = 0.002;
    bed_make(&b, &p);
    append(&b, 500);
    step(&b);
    assert_int_equal(b.report.heads_capped, b.shape.n_kv);
    bed_free(&b);
}

/* As few frames as are let through: blocks replace each other, and some have no place. */
static void test_tiny(void **state)
{
    (void)state;
    struct plan p = plain;
    struct bed b;
    hr_runtime_t *rt = NULL;
    hr_sequence_t *seq = NULL;
    p.moved = 0.02;
    p.device_bytes = 100000;
    assert_ok(runtime_open(&p, &rt));
    memset(&b, 0, sizeof b);
    b.shape = shape;
    b.rt = rt;
    assert_fails(sequence_open(&b, &p, &seq), HR_ERR_BUDGET, "it needs at least");
    unsigned long long least = 0;
    assert_int_equal(sscanf(strstr(hr_last_error(), "at least "), "at least %llu", &least), 1);
    assert_ok(hr_runtime_destroy(rt));
    p.device_bytes = least;
    uint64_t hits = 0, fetched = 0, late = 0;
    steps(&p, 600, 8, &hits, &fetched, &late);
    assert_true(fetched > 0);
    p.device_bytes = least - 1;
    assert_ok(runtime_open(&p, &b.rt));
    assert_fails(sequence_open(&b, &p, &seq), HR_ERR_BUDGET, "it needs at least");
    assert_int_equal(device_emu_counts().device_bytes, 0);
    assert_ok(hr_runtime_destroy(b.rt));
}

/* Pinned memory is refused: the host copies the misses; said once. */
static void test_pageable(void **state)
{
    (void)state;
    device_emu_faults.no_pinning = true;
    uint64_t hits = 0, fetched = 0, late = 0;
    steps(&plain, 500, 6, &hits, &fetched, &late);
    assert_true(hits > 0 && fetched > 0 && late == 0);
    assert_int_equal(log_lines, 1);
    assert_non_null(strstr(log_text, "pinning"));
}

/* Blocks in the file: brought by the host; those that miss the deadline stay at their summary. */
static void file_steps(bool mailbox)
{
    struct fault_io io;
    struct plan p = plain;
    struct bed b;
    static struct choice c[KV];
    fault_io_init(&io);
    p.io = &io.ops;
    p.host_bytes = 128u << 10;
    device_emu_faults.no_pinning = !mailbox;
    bed_make(&b, &p);
    assert_int_equal(b.seq->part->mailed, mailbox);
    append(&b, 700);
    assert_ok(hr_sequence_settle(b.seq, 0));
    assert_ok(hr_sequence_settle(b.seq, 1));
    assert_ok(hri_store_flush(b.rt->store));
    uint64_t from_file = 0, late = 0;
    for (uint32_t i = 0; i < 6; i++) {
        step(&b);
        from_file += b.report.bytes_from_file;
    }
    assert_true(from_file > 0);
    for (uint32_t i = 0; i < 3; i++) {
        struct hr_attend_options options;
        hr_attend_options_init(&options);
        options.deadline_ns = 5000000;
        append(&b, 1);
        assert_ok(hri_device_tier_clear(b.seq->part->tier, 0)); /* so that much is missed */
        hits_read(&b, 0, c);
        io.stalled = 1;
        assert_ok(attend_with(&b, b.seq, 0, &options, b.out, &b.report));
        io.stalled = 0;
        check_step(&b, 0, c, false);
        late += b.report.blocks_late;
    }
    assert_true(late > 0);
    step(&b); /* late blocks left no trace */
    bed_free(&b);
}

static void test_file(void **state)
{
    (void)state;
    file_steps(true); /* the device asks while it runs */
    file_steps(false);
}

/* Blocks that cannot be read stay at their summary, or end a strict step; the next ones come. */
static void test_unreadable(void **state)
{
    (void)state;
    struct fault_io io;
    struct plan p = plain;
    struct bed b;
    struct hr_attend_options options;
    static struct choice c[KV];
    fault_io_init(&io);
    p.io = &io.ops;
    p.host_bytes = 128u << 10;
    bed_make(&b, &p);
    append(&b, 700);
    assert_ok(hr_sequence_settle(b.seq, 0));
    assert_ok(hri_store_flush(b.rt->store));
    fault_io_arm(&io, false, FAULT_ERROR, EIO, 0, 1000000);
    append(&b, 1);
    hr_attend_options_init(&options);
    hits_read(&b, 0, c);
    assert_ok(attend_with(&b, b.seq, 0, &options, b.out, &b.report));
    assert_true(b.report.blocks_lost > 0);
    assert_int_equal(b.report.blocks_lost, b.report.blocks_late);
    options.strict_exact = 1;
    assert_int_equal(attend_with(&b, b.seq, 0, &options, b.out, NULL), HR_ERR_IO);
    fault_io_disarm(&io);
    check_step(&b, 0, c, false);
    bed_free(&b);
}

static void test_truncate(void **state)
{
    (void)state;
    struct bed b;
    bed_make(&b, &plain);
    append(&b, 500);
    for (uint32_t i = 0; i < 4; i++)
        step(&b);
    for (uint32_t cut = 0; cut < 3; cut++) {
        const uint32_t n = b.n - (cut == 0 ? 1 : cut == 1 ? 90 : 300);
        assert_ok(hr_sequence_truncate(b.seq, n));
        b.n = n;
        append(&b, 70);
        step(&b);
        step(&b);
    }
    bed_free(&b);
}

/* A fork, and a session saved and opened, go on as the one they came from. */
static void test_copies(void **state)
{
    (void)state;
    struct bed b;
    hr_sequence_t *fork = NULL, *opened = NULL;
    float out[HEADS * D];
    char dir[] = "/tmp/device_step_XXXXXX", home[64];
    struct hr_sequence_options so;
    assert_non_null(mkdtemp(dir));
    snprintf(home, sizeof home, "%s/s", dir);
    bed_make(&b, &plain);
    append(&b, 500);
    step(&b);
    assert_ok(hr_sequence_fork(b.seq, &fork));
    assert_ok(hr_sequence_save(b.seq, home, NULL));
    options_for(&b.shape, TOKENS, plain.recipe, plain.moved, &so);
    so.keep_tokens = 1;
    assert_ok(hr_sequence_open(b.rt, home, &so, NULL, &opened));
    hr_sequence_t *copies[2] = {fork, opened}, *first = b.seq;
    for (uint32_t i = 0; i < 2; i++) {
        append_to(&b, fork, 1);
        append_to(&b, opened, 1);
        step(&b);
        attend(&b, 0);
        for (int j = 0; j < 2; j++) {
            struct hr_attend_report report;
            b.seq = copies[j];
            static struct choice c[KV];
            hits_read(&b, 0, c);
            assert_ok(attend_with(&b, b.seq, 0, NULL, out, &report));
            b.report = report;
            memcpy(b.out, out, sizeof out);
            check_step(&b, 0, c, true);
            b.seq = first;
        }
    }
    hr_sequence_destroy(fork);
    hr_sequence_destroy(opened);
    assert_ok(hr_session_remove(home));
    assert_int_equal(rmdir(dir), 0);
    bed_free(&b);
}

/* The device is lost in the middle: said once, and everything is still there. */
static void test_lost(void **state)
{
    (void)state;
    struct bed b;
    float exact[HEADS * D], out[HEADS * D];
    char dir[] = "/tmp/device_lost_XXXXXX", home[64];
    struct hr_attend_options options;
    assert_non_null(mkdtemp(dir));
    snprintf(home, sizeof home, "%s/s", dir);
    bed_make(&b, &plain);
    append(&b, 300);
    step(&b);
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    assert_ok(attend_with(&b, b.seq, 0, &options, exact, NULL));
    device_emu_faults.loss = true;
    device_emu_faults.waits_before_loss = 0;
    assert_int_equal(attend_with(&b, b.seq, 0, NULL, out, NULL), HR_ERR_DEVICE);
    assert_non_null(strstr(hr_last_error(), "is lost"));
    assert_int_equal(log_lines, 1);
    assert_int_equal(attend_with(&b, b.seq, 1, NULL, out, NULL), HR_ERR_DEVICE);
    assert_int_equal(log_lines, 1);
    assert_ok(attend_with(&b, b.seq, 0, &options, out, NULL)); /* there before, now here */
    assert_true(apart(out, exact, HEADS * D) <= 5e-4);
    append(&b, 5);
    assert_ok(hr_sequence_save(b.seq, home, NULL));
    hr_sequence_t *fork = NULL;
    assert_int_equal(hr_sequence_fork(b.seq, &fork), HR_ERR_DEVICE);
    assert_null(fork);
    bed_free(&b);
    struct hr_session_info info = {.struct_size = sizeof info};
    assert_ok(hr_session_info_get(home, &info));
    assert_int_equal(info.n_tokens, 306);
    assert_ok(hr_session_remove(home));
    assert_int_equal(rmdir(dir), 0);
}

/* Created, with one line about it. */
static void stays_on_host(const struct bed *b, const struct plan *p, const char *line)
{
    hr_sequence_t *seq = NULL;
    struct hr_sequence_stats st = {.struct_size = sizeof st};
    log_lines = 0;
    assert_ok(sequence_open(b, p, &seq));
    assert_int_equal(log_lines, 1);
    assert_non_null(strstr(log_text, line));
    assert_ok(hr_sequence_stats_get(seq, &st));
    assert_int_equal(st.layers_on_gpu, 0);
    hr_sequence_destroy(seq);
}

static void test_refused(void **state)
{
    (void)state;
    struct bed b = {.shape = shape};
    hr_sequence_t *seq = NULL;
    struct plan p = plain;
    char name[32];
    p.device = "gpu";
    assert_fails(runtime_open(&p, &b.rt), HR_ERR_INVALID, "none of cpu, ");
    snprintf(name, sizeof name, "%s:x", device_emu_ops()->name);
    p.device = name;
    assert_fails(runtime_open(&p, &b.rt), HR_ERR_INVALID, "none of cpu, ");
    snprintf(name, sizeof name, "%s:1", device_emu_ops()->name);
    assert_fails(runtime_open(&p, &b.rt), HR_ERR_UNSUPPORTED, "there are 1");
    device_emu_faults.memory_bytes = 1 << 20;
    snprintf(name, sizeof name, "%s:0", device_emu_ops()->name);
    assert_fails(runtime_open(&p, &b.rt), HR_ERR_NOMEM, "are wanted (device_bytes)");
    calm(NULL);
    assert_ok(runtime_open(&p, &b.rt));
    const char *recipes[] = {"quest", "retroinfer", "exact-topk"};
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        p.recipe = recipes[i];
        stays_on_host(&b, &p, "this recipe's steps run on the host");
    }
    p.recipe = RECIPE;
    b.shape.dtype = HR_DTYPE_F32;
    stays_on_host(&b, &p, "f32 run on the host");
    b.shape.dtype = HR_DTYPE_BF16;
    b.shape.dk = 72;
    stays_on_host(&b, &p, "no multiples of 16 run on the host");
    b.shape.dk = D;
    p.recipe = "headrace:sketch_host=1";
    stays_on_host(&b, &p, "(sketch_host=1) run on the host");
    p.recipe = "full";
    log_lines = 0;
    assert_ok(sequence_open(&b, &p, &seq));
    assert_int_equal(log_lines, 0);
    hr_sequence_destroy(seq);
    assert_ok(hr_runtime_destroy(b.rt));
}

/* A decode step allocates nothing, on the device least of all. */
static void test_allocations(void **state)
{
    (void)state;
    struct bed b;
    bed_make(&b, &plain);
    append(&b, 400);
    step(&b);
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_ok(hr_runtime_stats_get(b.rt, &st));
    const uint64_t before = st.allocations, held = st.tier[HR_TIER_DEVICE].bytes_held;
    for (uint32_t i = 0; i < 4; i++) {
        append(&b, 1);
        assert_ok(attend_with(&b, b.seq, 0, NULL, b.out, NULL));
    }
    assert_ok(hr_runtime_stats_get(b.rt, &st));
    assert_int_equal(st.allocations, before);
    assert_int_equal(st.tier[HR_TIER_DEVICE].bytes_held, held);
    bed_free(&b);
}

int main(void)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
#define TEST(name) cmocka_unit_test_setup(name, calm)
    const struct CMUnitTest tests[] = {
        TEST(test_steps), TEST(test_kinds),      TEST(test_short),      TEST(test_growth),
        TEST(test_cpu),   TEST(test_tolerance),  TEST(test_tiny),       TEST(test_pageable),
        TEST(test_file),  TEST(test_unreadable), TEST(test_truncate),   TEST(test_copies),
        TEST(test_lost),  TEST(test_refused),    TEST(test_allocations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
