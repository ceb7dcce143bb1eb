/* Exact attention through the public API, from every mix of tiers, against attention in double over all rows. */
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

struct tiers {
    const char *name;
    uint64_t host_bytes;
    bool file;
    hr_io_mode_t io;
};
static const struct tiers mixes[] = {
    {"host", 256u << 20, false, HR_IO_AUTO},
    {"file, small host", 1u << 20, true, HR_IO_AUTO},
    {"file, large host", 64u << 20, true, HR_IO_AUTO},
    {"file, no host", 0, true, HR_IO_AUTO},
    {"file, threads", 1u << 20, true, HR_IO_THREADS},
};

static double tolerance(hr_dtype_t dtype)
{
    (void)
        dtype; /* the naive rows are rounded as the library's are, so what is left is float32 arithmetic */
    return 1e-5;
}

struct run {
    struct naive *naive; /* [n_layers] */
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    struct shape shape;
    struct random random;
};

static void run_begin(struct run *run, const struct shape *shape, const struct tiers *tiers,
                      uint32_t tokens_max, const char *recipe, uint64_t seed)
{
    run->shape = *shape;
    run->random.state = seed;
    run->runtime = runtime_make(64u << 20, tiers->host_bytes, tiers->file ? disk_dir() : NULL,
                                512u << 20, tiers->io);
    if (run->runtime == NULL) {
        fail_msg("%s: %s", tiers->name, hr_last_error());
    }
    struct hr_sequence_options o;
    options_for(shape, tokens_max, recipe, 0.01, &o);
    if (hr_sequence_create(run->runtime, &o, &run->sequence) != HR_OK) {
        fail_msg("%s: %s", tiers->name, hr_last_error());
    }
    run->naive = calloc(shape->n_layers, sizeof *run->naive);
    assert_non_null(run->naive);
    for (uint32_t i = 0; i < shape->n_layers; i++) {
        naive_init(&run->naive[i], shape, tokens_max);
    }
}

static void run_end(struct run *run)
{
    struct hr_runtime_stats st = {.struct_size = sizeof st};
    assert_int_equal(hr_runtime_stats_get(run->runtime, &st), HR_OK);
    for (int t = 0; t < HR_TIERS; t++) {
        assert_true(st.tier[t].bytes_peak <= st.tier[t].bytes_cap);
    }
    hr_sequence_destroy(run->sequence);
    assert_int_equal(hr_runtime_destroy(run->runtime), HR_OK);
    for (uint32_t i = 0; i < run->shape.n_layers; i++) {
        naive_fini(&run->naive[i]);
    }
    free(run->naive);
}

/* Appends n tokens to every layer and attends with all of them; the worst error over layers. */
static double run_chunk(struct run *run, uint32_t n)
{
    const struct shape *s = &run->shape;
    size_t nk = (size_t)n * s->n_kv * s->dk, nv = (size_t)n * s->n_kv * s->dv,
           nq = (size_t)n * s->n_q * s->dk;
    size_t no = (size_t)n * s->n_q * s->dv;
    float *k = malloc(nk * 4), *v = malloc(nv * 4), *q = malloc(nq * 4), *out = malloc(no * 4);
    double *want = malloc(no * 8), worst = 0.0;
    assert_true(k && v && q && out && want);
    for (uint32_t layer = 0; layer < s->n_layers; layer++) {
        rows_make(&run->random, s, n, k, v);
        queries_make(&run->random, s, n, q);
        struct hr_tensor tk = hr_tensor_make(k, HR_DTYPE_F32, n, s->n_kv, s->dk),
                         tv = hr_tensor_make(v, HR_DTYPE_F32, n, s->n_kv, s->dv);
        struct hr_tensor tq = hr_tensor_make(q, HR_DTYPE_F32, n, s->n_q, s->dk),
                         to = hr_tensor_make(out, HR_DTYPE_F32, n, s->n_q, s->dv);
        struct hr_attend_options o;
        struct hr_attend_report report;
        hr_attend_options_init(&o);
        o.mode = HR_ATTEND_EXACT;
        if (hr_sequence_append(run->sequence, layer, &tk, &tv, NULL) != HR_OK ||
            hr_sequence_attend(run->sequence, layer, &tq, &o, &to, &report, NULL) != HR_OK) {
            fail_msg("layer %u: %s", layer, hr_last_error());
        }
        naive_append(&run->naive[layer], k, v, n);
        naive_attend(&run->naive[layer], layer, q, n, want);
        double e = error_max(out, want, n * s->n_q, s->dv);
        worst = e > worst || e != e ? e : worst;
        assert_int_equal(hr_sequence_length(run->sequence, layer), run->naive[layer].n);
    }
    free(k);
    free(v);
    free(q);
    free(out);
    free(want);
    return worst;
}

static void check_chunks(const struct shape *shape, const struct tiers *tiers,
                         const uint32_t *chunks, uint32_t n_chunks, uint64_t seed)
{
    struct run run;
    uint32_t total = 0;
    for (uint32_t i = 0; i < n_chunks; i++) {
        total += chunks[i];
    }
    run_begin(&run, shape, tiers, total, "full", seed);
    for (uint32_t i = 0; i < n_chunks; i++) {
        double e = run_chunk(&run, chunks[i]);
        if (!(e <= tolerance(shape->dtype))) {
            fail_msg(
                "%s, %s rows, %ux%u heads, dims %u/%u, chunk %u of %u tokens, seed %llu: error %g",
                tiers->name, hr_dtype_name(shape->dtype), shape->n_q, shape->n_kv, shape->dk,
                shape->dv, i, chunks[i], (unsigned long long)seed, e);
        }
    }
    run_end(&run);
}

static void test_full_from_every_tier_mix(void **state)
{
    (void)state;
    const uint32_t chunks[] = {1, 1, 62, 1, 1, 63, 130, 1, 140, 1, 1};
    struct shape s = {
        .n_layers = 2, .n_q = 6, .n_kv = 2, .dk = 64, .dv = 64, .dtype = HR_DTYPE_F32};
    for (size_t m = 0; m < sizeof mixes / sizeof *mixes; m++) {
        for (int d = 0; d < 3; d++) {
            s.dtype = (hr_dtype_t)d;
            check_chunks(&s, &mixes[m], chunks, sizeof chunks / sizeof *chunks, 100 + m);
        }
    }
}

/* More rows than the two buffers of a stream hold: single queries see long runs of those in host memory, and those in the file as room is. */
static void test_full_of_many_pages(void **state)
{
    (void)state;
    const uint32_t chunks[] = {500, 524, 1, 62, 1, 1, 200, 1};
    struct shape s = {
        .n_layers = 1, .n_q = 8, .n_kv = 8, .dk = 128, .dv = 128, .dtype = HR_DTYPE_F32};
    const struct tiers some = {"file, half in the host", 5u << 20, true, HR_IO_AUTO};
    check_chunks(&s, &some, chunks, sizeof chunks / sizeof *chunks, 77);
    for (size_t m = 0; m < sizeof mixes / sizeof *mixes; m++) {
        check_chunks(&s, &mixes[m], chunks, sizeof chunks / sizeof *chunks, 70 + m);
    }
}

static void test_full_shapes(void **state)
{
    (void)state;
    const uint32_t dims[] = {32, 64, 80, 96, 128, 256}, groups[] = {1, 2, 3, 4, 5, 6, 7, 8};
    const uint32_t chunks[] = {65, 1, 80, 1};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        for (size_t j = 0; j < sizeof groups / sizeof *groups; j++) {
            struct shape s = {.n_layers = 1,
                              .n_q = 2 * groups[j],
                              .n_kv = 2,
                              .dk = dims[i],
                              .dv = dims[(i + j) % 6],
                              .dtype = (hr_dtype_t)((i + j) % 3)};
            check_chunks(&s, &mixes[(i + j) % 3], chunks, 4, 1000 + i * 10 + j);
        }
    }
}

static void test_full_sliding_cap_log_n(void **state)
{
    (void)state;
    const uint32_t chunks[] = {1, 15, 1, 16, 1, 200, 1, 400, 1};
    struct shape s = {.n_layers = 2,
                      .n_q = 4,
                      .n_kv = 1,
                      .dk = 64,
                      .dv = 64,
                      .dtype = HR_DTYPE_F32,
                      .sliding = 16};
    check_chunks(&s, &mixes[1], chunks, 9, 5);
    s.sliding = 200;
    s.soft_cap = 5.0f;
    check_chunks(&s, &mixes[1], chunks, 9, 6);
    s.log_n = 0.2f;
    check_chunks(&s, &mixes[0], chunks, 9, 7);
}

/* The same rows in one chunk or many, or without any attention between, give the same answer. */
static void test_chunking_does_not_matter(void **state)
{
    (void)state;
    enum { N = 900 };
    struct shape s = {
        .n_layers = 1, .n_q = 4, .n_kv = 2, .dk = 64, .dv = 64, .dtype = HR_DTYPE_BF16};
    struct random r = {.state = 3};
    float *k = malloc(sizeof(float) * N * 128), *v = malloc(sizeof(float) * N * 128),
          *q = malloc(sizeof(float) * N * 256);
    float *out[3];
    assert_true(k && v && q);
    rows_make(&r, &s, N, k, v);
    queries_make(&r, &s, N, q);
    const uint32_t steps[3] = {N, 100, 1};
    for (int c = 0; c < 3; c++) {
        out[c] = calloc(N * 256, sizeof(float));
        assert_non_null(out[c]);
        hr_runtime_t *rt = runtime_make(16u << 20, 1u << 20, disk_dir(), 64u << 20, HR_IO_AUTO);
        assert_non_null(rt);
        struct hr_sequence_options o;
        hr_sequence_t *seq;
        options_for(&s, N, c == 1 ? "headrace" : "full", 0.01, &o);
        assert_int_equal(hr_sequence_create(rt, &o, &seq), HR_OK);
        for (uint32_t t = 0; t < N; t += steps[c]) {
            struct hr_tensor tk = hr_tensor_make(k + t * 128, HR_DTYPE_F32, steps[c], 2, 64);
            struct hr_tensor tv = hr_tensor_make(v + t * 128, HR_DTYPE_F32, steps[c], 2, 64);
            assert_int_equal(hr_sequence_append(seq, 0, &tk, &tv, NULL), HR_OK);
            if (c != 2) {
                struct hr_tensor tq = hr_tensor_make(q + t * 256, HR_DTYPE_F32, steps[c], 4, 64);
                struct hr_tensor to =
                    hr_tensor_make(out[c] + t * 256, HR_DTYPE_F32, steps[c], 4, 64);
                assert_int_equal(hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL), HR_OK);
            }
        }
        if (c == 2) {
            struct hr_tensor tq = hr_tensor_make(q, HR_DTYPE_F32, N, 4, 64),
                             to = hr_tensor_make(out[c], HR_DTYPE_F32, N, 4, 64);
            assert_int_equal(hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL), HR_OK);
        }
        hr_sequence_destroy(seq);
        assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    }
    for (int c = 1; c < 3; c++) {
        for (uint32_t i = 0; i < N * 256; i++) {
            if (fabsf(out[c][i] - out[0][i]) > 2e-5f) {
                fail_msg("chunks of %u: output %u is %g, in one chunk %g", steps[c], i,
                         (double)out[c][i], (double)out[0][i]);
            }
        }
        free(out[c]);
    }
    free(out[0]);
    free(k);
    free(v);
    free(q);
}

/* Strided views and half types in and out. */
static void test_strided_tensors(void **state)
{
    (void)state;
    enum { N = 70, D = 32 };
    struct shape s = {.n_layers = 1, .n_q = 2, .n_kv = 2, .dk = D, .dv = D, .dtype = HR_DTYPE_F32};
    struct naive a;
    naive_init(&a, &s, N);
    struct random r = {.state = 9};
    float k[N * 2 * D], v[N * 2 * D], q[2 * D], kh[2 * N * D], out[2 * D];
    double want[2 * D];
    rows_make(&r, &s, N, k, v);
    queries_make(&r, &s, 1, q);
    naive_append(&a, k, v, N);
    naive_attend(&a, 0, q, 1, want);
    for (uint32_t t = 0; t < N; t++) {
        for (uint32_t h = 0; h < 2; h++) {
            memcpy(kh + (h * N + t) * D, k + (t * 2 + h) * D, D * sizeof(float)); /* head-major */
        }
    }
    hr_runtime_t *rt = runtime_make(8u << 20, 8u << 20, NULL, 0, HR_IO_AUTO);
    struct hr_sequence_options o;
    hr_sequence_t *seq;
    options_for(&s, N, "full", 0.01, &o);
    assert_int_equal(hr_sequence_create(rt, &o, &seq), HR_OK);
    struct hr_tensor tk = hr_tensor_make(kh, HR_DTYPE_F32, N, 2, D),
                     tv = hr_tensor_make(v, HR_DTYPE_F32, N, 2, D);
    tk.strides[0] = D;
    tk.strides[1] = N * D;
    tk.strides[2] = 1;
    assert_int_equal(hr_sequence_append(seq, 0, &tk, &tv, NULL), HR_OK);
    struct hr_tensor tq = hr_tensor_make(q, HR_DTYPE_F32, 1, 2, D),
                     to = hr_tensor_make(out, HR_DTYPE_F32, 1, 2, D);
    assert_int_equal(hr_sequence_attend(seq, 0, &tq, NULL, &to, NULL, NULL), HR_OK);
    assert_true(error_max(out, want, 2, D) < 1e-5);
    hr_sequence_destroy(seq);
    assert_int_equal(hr_runtime_destroy(rt), HR_OK);
    naive_fini(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_from_every_tier_mix),
        cmocka_unit_test(test_full_of_many_pages),
        cmocka_unit_test(test_full_shapes),
        cmocka_unit_test(test_full_sliding_cap_log_n),
        cmocka_unit_test(test_chunking_does_not_matter),
        cmocka_unit_test(test_strided_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
