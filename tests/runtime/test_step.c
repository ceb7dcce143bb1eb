/* Steps by recipe: quality, budgets, counts, no allocation, and the same rows however they came. */
#include "tests/runtime/naive.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 4, KV = 2, D = 64, TOKENS = 3000 };

static const struct shape shape = {.n_layers = 2,
                                   .n_q = HEADS,
                                   .n_kv = KV,
                                   .dk = D,
                                   .dv = D,
                                   .dtype = HR_DTYPE_BF16,
                                   .rope = HR_ROPE_NONE};

struct text {
    float *k, *v, *q;
    struct naive naive;
};

static void text_make(struct text *t, const struct shape *s, uint32_t n, uint64_t seed)
{
    struct random r = {.state = seed};
    t->k = malloc((size_t)n * s->n_kv * s->dk * sizeof(float));
    t->v = malloc((size_t)n * s->n_kv * s->dv * sizeof(float));
    t->q = malloc((size_t)n * s->n_q * s->dk * sizeof(float));
    assert_true(t->k && t->v && t->q);
    rows_make(&r, s, n, t->k, t->v);
    queries_make(&r, s, n, t->q);
    naive_init(&t->naive, s, n);
}

static void text_free(struct text *t)
{
    free(t->k);
    free(t->v);
    free(t->q);
    naive_fini(&t->naive);
}

static void append(hr_sequence_t *seq, const struct text *t, const struct shape *s, uint32_t layer,
                   uint32_t first, uint32_t n)
{
    struct hr_tensor k =
        hr_tensor_make(t->k + (size_t)first * s->n_kv * s->dk, HR_DTYPE_F32, n, s->n_kv, s->dk);
    struct hr_tensor v =
        hr_tensor_make(t->v + (size_t)first * s->n_kv * s->dv, HR_DTYPE_F32, n, s->n_kv, s->dv);
    if (hr_sequence_append(seq, layer, &k, &v, NULL) != HR_OK) {
        fail_msg("append of %u at %u: %s", n, first, hr_last_error());
    }
}

static void attend(hr_sequence_t *seq, const struct text *t, const struct shape *s, uint32_t layer,
                   uint32_t first, uint32_t n, float *out, struct hr_attend_report *report)
{
    struct hr_tensor q =
        hr_tensor_make(t->q + (size_t)first * s->n_q * s->dk, HR_DTYPE_F32, n, s->n_q, s->dk);
    struct hr_tensor o = hr_tensor_make(out, HR_DTYPE_F32, n, s->n_q, s->dv);
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.check_exact = n == 1;
    if (hr_sequence_attend(seq, layer, &q, &options, &o, report, NULL) != HR_OK) {
        fail_msg("attend of %u at %u: %s", n, first, hr_last_error());
    }
}

static hr_sequence_t *sequence_make(hr_runtime_t *rt, const struct shape *s, uint32_t tokens_max,
                                    const char *recipe, double moved)
{
    struct hr_sequence_options o;
    hr_sequence_t *seq = NULL;
    options_for(s, tokens_max, recipe, moved, &o);
    if (hr_sequence_create(rt, &o, &seq) != HR_OK) {
        fail_msg("%s: %s", recipe, hr_last_error());
    }
    return seq;
}

/* Prefill of `first` tokens, then decode to `end`; the mean true error of the recipe over the last 30 tokens of layer 0. */
static double decode_error(const char *recipe, double moved, uint32_t prefill, uint32_t end,
                           bool file, struct hr_attend_report *sum)
{
    uint32_t scored = end - prefill < 30 ? end - prefill : 30; /* the last ones */
    struct text t;
    text_make(&t, &shape, end, 42);
    hr_runtime_t *rt = runtime_make(32u << 20, file ? 1u << 20 : 64u << 20,
                                    file ? disk_dir() : NULL, 64u << 20, HR_IO_AUTO);
    assert_non_null(rt);
    hr_sequence_t *seq = sequence_make(rt, &shape, end, recipe, moved);
    float *out = malloc((size_t)prefill * HEADS * D * sizeof(float));
    double error = 0.0;
    assert_non_null(out);
    for (uint32_t layer = 0; layer < shape.n_layers; layer++) {
        append(seq, &t, &shape, layer, 0, prefill);
        struct hr_attend_report report;
        attend(seq, &t, &shape, layer, 0, prefill, out, &report);
    }
    memset(sum, 0, sizeof *sum);
    for (uint32_t p = prefill; p < end; p++) {
        for (uint32_t layer = 0; layer < shape.n_layers; layer++) {
            struct hr_attend_report report;
            append(seq, &t, &shape, layer, p, 1);
            attend(seq, &t, &shape, layer, p, 1, out, &report);
            assert_true(report.true_error >= 0.0 && isfinite(report.true_error));
            assert_true(isfinite(report.predicted_error) && report.predicted_error >= 0.0);
            if (layer == 0 && p >= end - scored) {
                error += report.true_error / scored;
                sum->predicted_error += report.predicted_error / scored;
            }
            sum->bytes_selected += report.bytes_selected;
            sum->body_bytes += report.body_bytes;
            sum->bytes_from_file += report.bytes_from_file;
            sum->bytes_from_host += report.bytes_from_host;
            sum->blocks_hit += report.blocks_hit;
            sum->blocks_fetched += report.blocks_fetched;
            sum->ios += report.ios;
            sum->bytes_by_level[1] += report.bytes_by_level[1];
            /* Every row is accounted for at exactly one level. */
            uint64_t rows = 0;
            for (int l = 0; l < HR_LEVELS; l++) {
                rows += report.rows_by_level[l];
            }
            assert_true(rows <= (uint64_t)(p + 1) * KV);
            if (strncmp(recipe, "headrace", 8) == 0) {
                assert_int_equal(rows, (uint64_t)(p + 1) * KV);
                assert_int_equal(report.blocks_total, report.blocks_hit + report.blocks_fetched +
                                                          report.blocks_estimated +
                                                          report.blocks_late);
            }
        }
    }
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_int_equal(hr_runtime_stats_get(rt, &st), HR_OK);
    for (int i = 0; i < HR_TIERS; i++) {
        assert_true(st.tier[i].bytes_peak <= st.tier[i].bytes_cap);
    }
    hr_sequence_destroy(seq);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    free(out);
    text_free(&t);
    return error;
}

static void test_everything_refined_is_exact(void **state)
{
    (void)state;
    struct hr_attend_report r;
    double e = decode_error("headrace", 1.0, 700, 730, false, &r);
    print_message("headrace, all refined: error %.5f\n", e);
    assert_true(e < 0.01); /* int8 rows */
    e = decode_error("exact-topk", 1.0, 700, 710, false, &r);
    assert_true(e < 1e-4);
    e = decode_error("quest", 1.0, 700, 710, false, &r);
    assert_true(e < 1e-4);
    e = decode_error("retroinfer", 1.0, 700, 710, false, &r);
    assert_true(e < 1e-4);
}

static void test_more_bytes_less_error(void **state)
{
    (void)state;
    struct hr_attend_report r;
    double window = decode_error("window", 0.01, 1600, 1620, false, &r);
    double before = window;
    const double moved[] = {0.01, 0.05, 0.2};
    for (int i = 0; i < 3; i++) {
        double e = decode_error("headrace", moved[i], 1600, 1620, false, &r);
        print_message("headrace at %.0f %%: error %.4f, predicted %.4f; window %.4f\n",
                      100 * moved[i], e, r.predicted_error, window);
        assert_true(e < before);
        assert_true((double)r.bytes_selected <=
                    1.001 * (i == 0 ? 0.02 : 2 * moved[i]) * (double)r.body_bytes);
        before = e;
    }
    assert_true(before < 0.25 * window);
}

static void test_from_the_file(void **state)
{
    (void)state;
    struct hr_attend_report host, file;
    double a = decode_error("headrace:sketch=0", 0.05, 1600, 1630, false, &host);
    double b = decode_error("headrace:sketch=0", 0.05, 1600, 1630, true, &file);
    assert_true(fabs(a - b) < 1e-6);
    assert_int_equal(host.bytes_from_file, 0);
    assert_true(file.blocks_hit + file.blocks_fetched > 0);
    a = decode_error("headrace:rests=0", 0.05, 1600, 1630, false, &host);
    b = decode_error("headrace:rests=0", 0.05, 1600, 1630, true, &file);
    assert_true(fabs(a - b) < 1e-6);
    /* Rests are kept where all rows lie in host memory alone. */
    b = decode_error("headrace", 0.05, 1600, 1630, true, &file);
    assert_true(fabs(a - b) < 1e-6);
    b = decode_error("headrace", 0.05, 1600, 1630, false, &host);
    assert_true(b < a);
    /* Sketches in host memory: what is read of them comes from there, and is part of the budget. */
    for (int in_file = 0; in_file < 2; in_file++) {
        b = decode_error("headrace:sketch_host=1,reuse=0", 0.05, 1600, 1630, in_file != 0, &host);
        assert_true(b < 0.2 && host.bytes_by_level[1] > 0);
        assert_true(host.bytes_from_host >= host.bytes_by_level[1]);
        assert_true(host.bytes_selected <= host.body_bytes / 20 + 1);
    }
    assert_true(host.bytes_from_host > 0 && file.bytes_from_host + file.bytes_from_file > 0);
}

/* Rows that came by decoding are indexed in small segments; the quality is of the same kind. */
static void test_prefill_or_decode(void **state)
{
    (void)state;
    struct hr_attend_report r;
    double at_once = decode_error("headrace", 0.05, 2000, 2030, false, &r);
    double grown = decode_error("headrace:decode_segment=700", 0.05, 600, 2030, false, &r);
    print_message("error %.4f after prefill, %.4f grown by decoding\n", at_once, grown);
    assert_true(grown < 2.0 * at_once + 0.01);
}

static void test_window_is_window(void **state)
{
    (void)state;
    enum { N = 900, WINDOW = 64, SINK = 4 };
    struct text t;
    text_make(&t, &shape, N, 8);
    hr_runtime_t *rt = runtime_make(8u << 20, 16u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *seq = sequence_make(rt, &shape, N, "window:sink=4,window=64", 0.01);
    append(seq, &t, &shape, 0, 0, N);
    /* The reference: a sequence of sink and window rows alone, whose last row is the query's own. */
    struct naive small;
    naive_init(&small, &shape, SINK + WINDOW);
    naive_append(&small, t.k, t.v, SINK);
    naive_append(&small, t.k + (size_t)(N - WINDOW) * KV * D, t.v + (size_t)(N - WINDOW) * KV * D,
                 WINDOW);
    float out[HEADS * D];
    double want[HEADS * D];
    struct hr_attend_report r;
    attend(seq, &t, &shape, 0, N - 1, 1, out, &r);
    naive_attend(&small, 0, t.q + (size_t)(N - 1) * HEADS * D, 1, want);
    assert_true(error_max(out, want, HEADS, D) < 1e-5);
    assert_int_equal(r.bytes_from_host + r.bytes_from_file, 0);
    naive_fini(&small);
    hr_sequence_destroy(seq);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    text_free(&t);
}

/* Attention over the rows of a kv-head that are marked, in double. */
static void attend_marked(const struct text *t, const uint8_t *marked, uint32_t n, uint32_t head,
                          const float *q, double *out)
{
    const float *k = t->naive.k, *v = t->naive.v; /* rounded as the sequence has them */
    double total = 0.0;
    memset(out, 0, D * sizeof *out);
    for (uint32_t i = 0; i < n; i++) {
        size_t at = ((size_t)i * KV + head / (HEADS / KV)) * D;
        double logit = 0.0;
        for (uint32_t j = 0; j < D && marked[i]; j++) {
            logit += (double)q[j] * k[at + j];
        }
        double weight = marked[i] ? exp(logit / sqrt(D)) : 0.0;
        total += weight;
        for (uint32_t j = 0; j < D; j++) {
            out[j] += weight * v[at + j];
        }
    }
    for (uint32_t j = 0; j < D; j++) {
        out[j] /= total;
    }
}

/* Which rows were refined: for recipes that drop the rest, attention over them alone is the output. */
static void test_refined_rows_are_told(void **state)
{
    (void)state;
    const char *const recipes[] = {"exact-topk", "quest", "window", "full"};
    enum { N = 1500, PREFILL = 1100 };
    struct text t;
    text_make(&t, &shape, N, 21);
    naive_append(&t.naive, t.k, t.v, N);
    float *out = malloc((size_t)PREFILL * HEADS * D * sizeof(float)), predicted[HEADS];
    uint8_t *refined = malloc((size_t)KV * N);
    assert_true(out && refined);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        hr_runtime_t *rt = runtime_make(32u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
        struct hr_sequence_options so;
        hr_sequence_t *seq;
        options_for(&shape, N, recipes[i], 0.05, &so);
        so.keep_tokens = 1;
        assert_int_equal(hr_sequence_create(rt, &so, &seq), HR_OK);
        append(seq, &t, &shape, 0, 0, PREFILL);
        attend(seq, &t, &shape, 0, 0, PREFILL, out, NULL);
        for (uint32_t p = PREFILL; p < N; p++) {
            struct hr_attend_options o;
            struct hr_attend_report r;
            append(seq, &t, &shape, 0, p, 1);
            if (p % 7 != 0 && p != N - 1) {
                continue;
            }
            struct hr_tensor q =
                hr_tensor_make(t.q + (size_t)p * HEADS * D, HR_DTYPE_F32, 1, HEADS, D);
            struct hr_tensor to = hr_tensor_make(out, HR_DTYPE_F32, 1, HEADS, D);
            hr_attend_options_init(&o);
            o.predicted_out = predicted;
            o.refined_out = refined;
            assert_int_equal(hr_sequence_attend(seq, 0, &q, &o, &to, &r, NULL), HR_OK);
            assert_true(r.bytes_hit <= r.bytes_selected);
            uint64_t marked = 0;
            for (uint32_t row = 0; row < KV * (p + 1); row++) {
                marked += refined[row];
            }
            assert_int_equal(marked, r.rows_by_level[2] + r.rows_by_level[3]);
            for (uint32_t h = 0; h < HEADS; h++) {
                double want[D];
                attend_marked(&t, refined + (size_t)(h / (HEADS / KV)) * (p + 1), p + 1, h,
                              t.q + ((size_t)p * HEADS + h) * D, want);
                double e = error_max(out + (size_t)h * D, want, 1, D);
                if (!(e < 1e-4)) {
                    fail_msg("%s, token %u, head %u: error %g", recipes[i], p, h, e);
                }
                assert_true(predicted[h] == 0.0f);
            }
        }
        hr_sequence_destroy(seq);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
    free(out);
    free(refined);
    text_free(&t);
}

static void test_predicted_errors_are_told(void **state)
{
    (void)state;
    enum { N = 1200 };
    struct text t;
    text_make(&t, &shape, N, 22);
    hr_runtime_t *rt = runtime_make(32u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *seq = sequence_make(rt, &shape, N, "headrace", 0.02);
    float out[HEADS * D], predicted[HEADS];
    uint8_t refined[KV * N];
    struct hr_tensor q =
        hr_tensor_make(t.q + (size_t)(N - 1) * HEADS * D, HR_DTYPE_F32, 1, HEADS, D);
    struct hr_tensor to = hr_tensor_make(out, HR_DTYPE_F32, 1, HEADS, D);
    struct hr_attend_options o;
    struct hr_attend_report r;
    append(seq, &t, &shape, 0, 0, N);
    hr_attend_options_init(&o);
    o.predicted_out = predicted;
    assert_int_equal(hr_sequence_attend(seq, 0, &q, &o, &to, &r, NULL), HR_OK);
    double sum = 0.0;
    for (uint32_t h = 0; h < HEADS; h++) {
        assert_true(predicted[h] > 0.0f && predicted[h] <= (float)r.predicted_error_max);
        sum += predicted[h];
    }
    assert_true(fabs(sum / HEADS - r.predicted_error) < 1e-6);
    o.refined_out = refined;
    assert_int_equal(hr_sequence_attend(seq, 0, &q, &o, &to, &r, NULL), HR_ERR_INVALID);
    assert_non_null(strstr(hr_last_error(), "keep_tokens"));
    hr_sequence_destroy(seq);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    text_free(&t);
}

/* The near rows are the same for every recipe at every length, so that recipes can be compared. */
static void test_near_rows_are_everybodys(void **state)
{
    (void)state;
    const char *const recipes[] = {"headrace", "quest", "exact-topk", "window"};
    enum { N = 1500, PREFILL = 700 };
    struct text t;
    text_make(&t, &shape, N, 23);
    uint64_t *near = malloc(N * sizeof *near);
    float *out = malloc((size_t)PREFILL * HEADS * D * sizeof(float));
    assert_true(near && out);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        hr_runtime_t *rt = runtime_make(32u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
        hr_sequence_t *seq = sequence_make(rt, &shape, N, recipes[i], 0.02);
        append(seq, &t, &shape, 0, 0, PREFILL);
        attend(seq, &t, &shape, 0, 0, PREFILL, out, NULL);
        for (uint32_t p = PREFILL; p < N; p++) {
            struct hr_attend_report r;
            append(seq, &t, &shape, 0, p, 1);
            attend(seq, &t, &shape, 0, p, 1, out, &r);
            assert_true(i == 0 || near[p] == r.rows_device);
            near[p] = r.rows_device;
        }
        hr_sequence_destroy(seq);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
    free(near);
    free(out);
    text_free(&t);
}

/* One layer, and rows that lie alone: blocks of few rows, so that a step takes more of them than frames
 * of full blocks would hold. */
static void test_many_small_blocks(void **state)
{
    (void)state;
    enum { N = 4000 };
    struct shape one = shape;
    struct text t;
    struct random random = {.state = 77};
    one.n_layers = 1;
    text_make(&t, &one, N, 31);
    for (uint32_t i = 0; i < N; i += 9) { /* keys of their own, each liked by its query */
        for (uint32_t j = 0; j < KV * D; j++) {
            t.k[(size_t)i * KV * D + j] = (float)(4.0 * random_normal(&random));
        }
    }
    const double moved[] = {0.0025, 0.005, 0.01, 0.04};
    for (size_t m = 0; m < sizeof moved / sizeof *moved; m++) {
        hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
        hr_sequence_t *seq = sequence_make(rt, &one, N, "headrace:block=32", moved[m]);
        float out[HEADS * D];
        append(seq, &t, &one, 0, 0, N - 100);
        for (uint32_t p = N - 100; p < N; p++) {
            struct hr_attend_report r;
            append(seq, &t, &one, 0, p, 1);
            attend(seq, &t, &one, 0, p, 1, out, &r);
        }
        hr_sequence_destroy(seq);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
    text_free(&t);
}

/* In the steady state of decoding nothing is allocated; segments reuse their memory. */
static void test_steps_do_not_allocate(void **state)
{
    (void)state;
    const char *const recipes[] = {"headrace", "full",       "window",
                                   "quest",    "retroinfer", "exact-topk"};
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        struct text t;
        text_make(&t, &shape, 1400, 11);
        hr_runtime_t *rt = runtime_make(32u << 20, 1u << 20, disk_dir(), 64u << 20, HR_IO_AUTO);
        hr_sequence_t *seq = sequence_make(rt, &shape, 1400, recipes[i], 0.05);
        float out[HEADS * D];
        struct hr_attend_report r;
        for (uint32_t layer = 0; layer < 2; layer++) {
            append(seq, &t, &shape, layer, 0, 700);
            attend(seq, &t, &shape, layer, 699, 1, out, &r);
        }
        struct hr_runtime_stats before = {.struct_size = sizeof before},
                                after = {.struct_size = sizeof after};
        for (uint32_t p = 700; p < 1400; p++) {
            if (p == 1040) { /* every buffer has seen its largest use */
                assert_int_equal(hr_runtime_stats_get(rt, &before), HR_OK);
            }
            for (uint32_t layer = 0; layer < 2; layer++) {
                append(seq, &t, &shape, layer, p, 1);
                attend(seq, &t, &shape, layer, p, 1, out, &r);
            }
        }
        assert_int_equal(hr_runtime_stats_get(rt, &after), HR_OK);
        if (after.allocations != before.allocations) {
            fail_msg("%s: %llu allocations in 360 steps", recipes[i],
                     (unsigned long long)(after.allocations - before.allocations));
        }
        hr_sequence_destroy(seq);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
        text_free(&t);
    }
}

/* Lengths around every edge: sink, window, log page, segment. */
static void test_edges(void **state)
{
    (void)state;
    const uint32_t lengths[] = {1,   2,   3,   4,   5,   63,  64,  65,  67,  68,  69, 127,
                                128, 129, 323, 324, 325, 383, 384, 385, 511, 512, 513};
    const char *const recipes[] = {"headrace", "quest", "retroinfer", "exact-topk", "window"};
    struct text t;
    text_make(&t, &shape, 600, 12);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        for (size_t j = 0; j < sizeof lengths / sizeof *lengths; j++) {
            hr_runtime_t *rt = runtime_make(32u << 20, 16u << 20, NULL, 0, HR_IO_AUTO);
            hr_sequence_t *seq = sequence_make(rt, &shape, 600, recipes[i], 1.0);
            float *out = malloc((size_t)600 * HEADS * D * sizeof(float));
            struct hr_attend_report r;
            append(seq, &t, &shape, 0, 0, lengths[j]);
            attend(seq, &t, &shape, 0, 0, lengths[j], out, &r);
            for (uint32_t p = lengths[j]; p < lengths[j] + 3; p++) {
                append(seq, &t, &shape, 0, p, 1);
                attend(seq, &t, &shape, 0, p, 1, out, &r);
                if (strcmp(recipes[i], "window") != 0 && !(r.true_error < 0.01)) {
                    fail_msg("%s, prefill of %u, token %u: error %g", recipes[i], lengths[j], p,
                             r.true_error);
                }
            }
            free(out);
            hr_sequence_destroy(seq);
            assert_int_equal(hr_runtime_destroy(rt), HR_OK);
        }
    }
    text_free(&t);
}

static void test_tolerance(void **state)
{
    (void)state;
    struct text t;
    text_make(&t, &shape, 1500, 13);
    hr_runtime_t *rt = runtime_make(32u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    uint64_t spent[2];
    const double tolerance[2] = {0.3, 0.01};
    for (int i = 0; i < 2; i++) {
        struct hr_sequence_options o;
        hr_sequence_t *seq;
        options_for(&shape, 1500, "headrace", 0.5, &o);
        o.tolerance = tolerance[i];
        assert_int_equal(hr_sequence_create(rt, &o, &seq), HR_OK);
        float out[HEADS * D];
        struct hr_attend_report r;
        append(seq, &t, &shape, 0, 0, 1500);
        attend(seq, &t, &shape, 0, 1499, 1, out, &r);
        spent[i] = r.bytes_selected;
        hr_sequence_destroy(seq);
    }
    assert_true(spent[0] < spent[1]);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    text_free(&t);
}

/* A tolerance set later chooses what one given from the start chooses; forks take it with them. */
static void test_tolerance_set_later(void **state)
{
    (void)state;
    struct text t;
    struct hr_sequence_options o;
    hr_sequence_t *given, *set, *fork, *none = NULL;
    float want[HEADS * D], out[HEADS * D];
    struct hr_attend_report r;
    text_make(&t, &shape, 1500, 13);
    hr_runtime_t *rt = runtime_make(64u << 20, 128u << 20, NULL, 0, HR_IO_AUTO);
    options_for(&shape, 1500, "headrace", 0.5, &o);
    assert_int_equal(hr_sequence_create(rt, &o, &none), HR_OK);
    o.tolerance = 0.05;
    assert_int_equal(hr_sequence_create(rt, &o, &given), HR_OK);
    o.tolerance = 0.4;
    assert_int_equal(hr_sequence_create(rt, &o, &set), HR_OK);
    append(given, &t, &shape, 0, 0, 1500);
    append(set, &t, &shape, 0, 0, 1500);
    assert_int_equal(hr_sequence_set_tolerance(set, 0.05), HR_OK);
    assert_int_equal(hr_sequence_fork(set, &fork), HR_OK);
    attend(given, &t, &shape, 0, 1499, 1, want, &r);
    attend(set, &t, &shape, 0, 1499, 1, out, &r);
    assert_memory_equal(out, want, sizeof out);
    attend(fork, &t, &shape, 0, 1499, 1, out, &r);
    assert_memory_equal(out, want, sizeof out);
    assert_int_equal(hr_sequence_set_tolerance(NULL, 0.1), HR_ERR_INVALID);
    assert_int_equal(hr_sequence_set_tolerance(none, 0.1), HR_ERR_STATE);
    for (int i = 0; i < 4; i++) {
        const double bad[4] = {0.0, 1.0, -0.1, (double)NAN};
        assert_int_equal(hr_sequence_set_tolerance(set, bad[i]), HR_ERR_INVALID);
    }
    hr_sequence_destroy(fork);
    hr_sequence_destroy(set);
    hr_sequence_destroy(given);
    hr_sequence_destroy(none);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    text_free(&t);
}

/* One step after a prompt, with the options as they are. */
static void one_step(const struct hr_sequence_options *o, struct text *t,
                     struct hr_attend_report *report, float *out)
{
    hr_runtime_t *rt = runtime_make(32u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    hr_sequence_t *seq = NULL;
    if (hr_sequence_create(rt, o, &seq) != HR_OK) {
        fail_msg("%s: %s", o->recipe, hr_last_error());
    }
    append(seq, t, &shape, 0, 0, TOKENS);
    attend(seq, t, &shape, 0, TOKENS - 64, 64, out, NULL);
    attend(seq, t, &shape, 0, TOKENS - 1, 1, out, report);
    hr_sequence_destroy(seq);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
}

/* A step that ends for want of budget says so, one that its tolerance ended does not, nor one without. */
static void test_capped_steps_say_so(void **state)
{
    (void)state;
    const char *recipes[] = {"headrace", "headrace:sketch=0", "headrace:sketch=1,sketch_host=1"};
    const struct {
        double moved, tolerance;
        uint64_t capped;
    } want[] = {{0.001, 0.005, KV}, {1, 0.3, 0}, {0.001, 0, 0}};
    struct text t;
    float *out = malloc((size_t)64 * HEADS * D * sizeof(float));
    assert_non_null(out);
    text_make(&t, &shape, TOKENS, 12);
    for (size_t i = 0; i < 3; i++) {
        for (size_t j = 0; j < 3; j++) {
            struct hr_sequence_options o;
            struct hr_attend_report report;
            options_for(&shape, TOKENS, recipes[i], want[j].moved, &o);
            o.tolerance = want[j].tolerance;
            one_step(&o, &t, &report, out);
            if (report.heads_capped != want[j].capped) {
                fail_msg("%s at %g, tolerance %g: %d heads capped, predicted %g", recipes[i],
                         want[j].moved, want[j].tolerance, (int)report.heads_capped,
                         report.predicted_error);
            }
        }
    }
    text_free(&t);
    free(out);
}

/* A budget in bytes is the share that it is of the body, and the same bytes in a longer text. */
static void test_budget_in_bytes(void **state)
{
    (void)state;
    const char *recipes[] = {"headrace", "headrace:sketch=0", "quest", "retroinfer", "exact-topk"};
    const uint32_t row_bytes = 2 * D * 2;
    struct text t;
    float *out = malloc((size_t)64 * HEADS * D * sizeof(float));
    assert_non_null(out);
    text_make(&t, &shape, TOKENS, 13);
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++) {
        struct hr_sequence_options o;
        struct hr_attend_report bytes, share, large;
        options_for(&shape, TOKENS, recipes[i], 0.5, &o);
        o.moved_bytes = 100 * row_bytes;
        one_step(&o, &t, &bytes, out);
        assert_true(bytes.bytes_selected <= (uint64_t)KV * 100 * row_bytes);
        assert_true(bytes.bytes_selected > (uint64_t)KV * 30 * row_bytes);
        o.moved_bytes = 0;
        o.moved = 100.0 * row_bytes * KV / (double)bytes.body_bytes * (1 + 1e-9);
        one_step(&o, &t, &share, out);
        assert_int_equal(bytes.bytes_selected, share.bytes_selected);
        assert_true(bytes.true_error == share.true_error);
        o.moved_bytes = UINT64_MAX; /* all there is */
        one_step(&o, &t, &large, out);
        assert_true(large.bytes_selected <= large.body_bytes);
        assert_true(large.true_error <= bytes.true_error);
    }
    text_free(&t);
    free(out);
}

/* Finite queries of which squares overflow: estimates cannot be made, the output is that of exact attention. */
static void test_queries_too_large_for_estimates(void **state)
{
    (void)state;
    const char *recipes[] = {"headrace", "headrace:sketch=0", "headrace:sketch=1,sketch_host=1"};
    struct text t;
    float *out = malloc((size_t)64 * HEADS * D * sizeof(float));
    assert_non_null(out);
    text_make(&t, &shape, TOKENS, 14);
    for (size_t j = 0; j < (size_t)HEADS * D; j++) {
        t.q[(size_t)(TOKENS - 1) * HEADS * D + j] *= 1e25f;
    }
    for (size_t i = 0; i < 3; i++) {
        struct hr_sequence_options o;
        struct hr_attend_report report;
        options_for(&shape, TOKENS, recipes[i], 0.01, &o);
        hr_runtime_t *rt = runtime_make(32u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
        hr_sequence_t *seq = sequence_make(rt, &shape, TOKENS, recipes[i], 0.01);
        append(seq, &t, &shape, 0, 0, TOKENS);
        attend(seq, &t, &shape, 0, TOKENS - 65, 64, out, NULL);
        attend(seq, &t, &shape, 0, TOKENS - 1, 1, out, &report);
        for (size_t j = 0; j < (size_t)HEADS * D; j++) {
            assert_true(isfinite(out[j]));
        }
        assert_true(report.true_error < 1e-4 && report.predicted_error == 0);
        hr_sequence_destroy(seq);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
    text_free(&t);
    free(out);
}

static void test_batch_of_ragged_lengths(void **state)
{
    (void)state;
    enum { N = 3 };
    const uint32_t lengths[N] = {1, 200, 1000};
    struct text t;
    text_make(&t, &shape, 1000, 14);
    hr_runtime_t *rt = runtime_make(64u << 20, 64u << 20, NULL, 0, HR_IO_AUTO);
    struct hr_batch_item items[N] = {0};
    float out[N][HEADS * D], alone[HEADS * D];
    for (int i = 0; i < N; i++) {
        items[i].sequence = sequence_make(rt, &shape, 1000, "full", 0.1);
        append(items[i].sequence, &t, &shape, 0, 0, lengths[i]);
        items[i].q =
            hr_tensor_make(t.q + (size_t)(lengths[i] - 1) * HEADS * D, HR_DTYPE_F32, 1, HEADS, D);
        items[i].out = hr_tensor_make(out[i], HR_DTYPE_F32, 1, HEADS, D);
    }
    assert_int_equal(hr_batch_attend(items, N, 0, NULL, NULL), HR_OK);
    for (int i = 0; i < N; i++) {
        struct hr_attend_report r;
        attend(items[i].sequence, &t, &shape, 0, lengths[i] - 1, 1, alone, &r);
        assert_memory_equal(alone, out[i], sizeof alone);
    }
    items[1].q.shape[1] = 3;
    assert_int_equal(hr_batch_attend(items, N, 0, NULL, NULL), HR_ERR_SHAPE);
    assert_int_equal(items[0].status, HR_OK);
    assert_int_equal(items[1].status, HR_ERR_SHAPE);
    assert_int_equal(items[2].status, HR_OK);
    for (int i = 0; i < N; i++) {
        hr_sequence_destroy(items[i].sequence);
    }
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    text_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything_refined_is_exact),
        cmocka_unit_test(test_more_bytes_less_error),
        cmocka_unit_test(test_from_the_file),
        cmocka_unit_test(test_prefill_or_decode),
        cmocka_unit_test(test_window_is_window),
        cmocka_unit_test(test_refined_rows_are_told),
        cmocka_unit_test(test_predicted_errors_are_told),
        cmocka_unit_test(test_near_rows_are_everybodys),
        cmocka_unit_test(test_many_small_blocks),
        cmocka_unit_test(test_steps_do_not_allocate),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_tolerance),
        cmocka_unit_test(test_tolerance_set_later),
        cmocka_unit_test(test_capped_steps_say_so),
        cmocka_unit_test(test_budget_in_bytes),
        cmocka_unit_test(test_queries_too_large_for_estimates),
        cmocka_unit_test(test_batch_of_ragged_lengths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
