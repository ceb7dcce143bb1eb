/* A token of all layers as one graph, on the emulated device: what a sequence gets that appends and attends layer by
 * layer, bit for bit; with the caller's own launches between the layers; misuse. */
#include "tests/emu/device_runtime.h"

#include "runtime/device_part.h"
#include "runtime/device_rows.h"

#include <math.h>

enum { HEADS = 4, KV = 2, D = 64, TOKENS = 400, LAYERS = 3 };
#define RECIPE   "headrace:sketch=0,block=12,decode_segment=32,window=32"
#define SKETCHED "headrace:block=24,decode_segment=32,window=32"

static const struct shape shape = {.n_layers = LAYERS,
                                   .n_q = HEADS,
                                   .n_kv = KV,
                                   .dk = D,
                                   .dv = D,
                                   .dtype = HR_DTYPE_BF16,
                                   .log_n = 0.1f,
                                   .rope = HR_ROPE_HALF};

struct text {
    float *k, *v, *q; /* the same of every layer, but for a factor */
};

static hr_runtime_t *runtime_open(const char *device, bool file)
{
    return runtime_on(device, file ? 96u << 10 : 32u << 20, file);
}

static hr_sequence_t *sequence_open(hr_runtime_t *rt, const char *recipe)
{
    struct hr_sequence_options so;
    hr_sequence_t *s = NULL;
    options_for(&shape, TOKENS, recipe, 0.15, &so);
    assert_ok(hr_sequence_create(rt, &so, &s));
    return s;
}

static void text_make(struct text *t)
{
    struct random r = {.state = 5};
    t->k = malloc(sizeof(float) * TOKENS * KV * D);
    t->v = malloc(sizeof(float) * TOKENS * KV * D);
    t->q = malloc(sizeof(float) * TOKENS * HEADS * D);
    assert_true(t->k && t->v && t->q);
    rows_make(&r, &shape, TOKENS, t->k, t->v);
    queries_make(&r, &shape, TOKENS, t->q);
}

static void text_free(struct text *t)
{
    free(t->k);
    free(t->v);
    free(t->q);
}

/* Layer i's query of a token: another one's, so that layers differ. */
static const float *query_of(const struct text *t, uint32_t token, uint32_t layer)
{
    return t->q + (size_t)((token + 7 * layer) % TOKENS) * HEADS * D;
}

/* Into device memory, in the stream's order. */
static void put(float *to, const float *from, size_t n)
{
    assert_ok(hri_device_copy(the_device, to, from, n * sizeof *from));
}

static void token_put(const hr_step_graph_t *g, const struct text *t, uint32_t token)
{
    for (uint32_t i = 0; i < LAYERS; i++) {
        struct hr_step_buffers b;
        assert_ok(hr_step_graph_buffers(g, i, &b));
        put(b.q, query_of(t, token, i), HEADS * D);
        put(b.k, t->k + (size_t)token * KV * D, KV * D);
        put(b.v, t->v + (size_t)token * KV * D, KV * D);
    }
}

static void append_all(hr_sequence_t *s, const struct text *t, uint32_t first, uint32_t n)
{
    for (uint32_t i = 0; i < LAYERS; i++)
        assert_ok(rows_append(s, &shape, i, t->k, t->v, first, n));
}

static void equal(const char *recipe, bool file)
{
    struct text t;
    text_make(&t);
    hr_runtime_t *rt = runtime_open(device_emu_ops()->name, file);
    hr_sequence_t *s = sequence_open(rt, recipe), *twin = sequence_open(rt, recipe);
    struct hr_step_graph_options o;
    hr_step_graph_t *g = NULL;
    uint64_t fetched = 0, hits = 0, from_file = 0;
    hr_step_graph_options_init(&o);
    assert_ok(hr_step_graph_create(s, &o, &g));
    const uint32_t first = 200, end = 212; /* over the end of a segment */
    append_all(s, &t, 0, first);
    append_all(twin, &t, 0, first);
    assert_int_equal(s->part->mailed, file);
    if (file)
        assert_ok(hri_store_flush(rt->store));
    const uint64_t launches = device_emu_counts().graph_launches;
    for (uint32_t n = first; n < end; n++) {
        struct hr_attend_report report, sum = {0};
        float out[HEADS * D], got[HEADS * D];
        token_put(g, &t, n);
        assert_ok(hr_step_graph_run(g, &report));
        hits += report.blocks_hit;
        fetched += report.blocks_fetched;
        from_file += report.bytes_from_file;
        assert_int_equal(report.blocks_late, 0);
        for (uint32_t i = 0; i < LAYERS; i++) {
            struct hr_attend_report one;
            struct hr_step_buffers b;
            assert_int_equal(hr_sequence_length(s, i), n + 1);
            /* The graph settles before the token is there: so must this one. */
            assert_ok(hr_sequence_settle(twin, i));
            assert_ok(rows_append(twin, &shape, i, t.k, t.v, n, 1));
            struct hr_tensor q =
                hr_tensor_make((float *)(uintptr_t)query_of(&t, n, i), HR_DTYPE_F32, 1, HEADS, D);
            struct hr_tensor to = hr_tensor_make(out, HR_DTYPE_F32, 1, HEADS, D);
            assert_ok(hr_sequence_attend(twin, i, &q, NULL, &to, &one, NULL));
            assert_ok(hr_step_graph_buffers(g, i, &b));
            device_emu_read(got, b.out, sizeof got);
            if (n % 32 !=
                4) /* there the twin settles with the token, the graph with the next one */
                assert_memory_equal(got, out, sizeof got);
            sum.blocks_hit += one.blocks_hit;
            sum.blocks_fetched += one.blocks_fetched;
            sum.bytes_selected += one.bytes_selected;
            sum.body_bytes += one.body_bytes;
            sum.predicted_error += one.predicted_error / LAYERS;
        }
        if (n % 32 == 4)
            continue;
        assert_int_equal(report.blocks_hit, sum.blocks_hit);
        assert_int_equal(report.blocks_fetched, sum.blocks_fetched);
        assert_int_equal(report.bytes_selected, sum.bytes_selected);
        assert_int_equal(report.body_bytes, sum.body_bytes);
        assert_true(fabs(report.predicted_error - sum.predicted_error) < 1e-9);
    }
    assert_true(hits > 0 && fetched > 0 && (from_file > 0) == file);
    /* One graph per token here, one per token and layer there. */
    assert_int_equal(device_emu_counts().graph_launches - launches, (end - first) * (1 + LAYERS));
    hr_step_graph_destroy(g);
    hr_sequence_destroy(s);
    hr_sequence_destroy(twin);
    assert_ok(hr_runtime_destroy(rt));
    text_free(&t);
}

static void test_equal(void **state)
{
    (void)state;
    equal(RECIPE, false);
    equal(SKETCHED, false);
    equal(RECIPE, true);
    equal(SKETCHED, true); /* the device asks for blocks while the graph runs */
}

/* -- launches of the caller -- */

struct model {
    const float *ones; /* [HEADS] on the device: its launches are hri_cuda_scale */
    unsigned calls;
    hr_status_t fails_at_1;
};

/* The next layer's query is the output of the one before. */
static hr_status_t between(void *context, uint32_t layer, const struct hr_step_buffers *buffers,
                           hr_stream_t stream)
{
    struct model *m = context;
    assert_int_equal(layer, m->calls++);
    if (layer == 1 && m->fails_at_1 != HR_OK)
        return m->fails_at_1;
    if (layer == 0 || layer == LAYERS)
        return HR_OK;
    return hri_cuda_scale(buffers[layer - 1].out, m->ones, HEADS, D, buffers[layer].q, stream) == 0
               ? HR_OK
               : HR_ERR_DEVICE;
}

static void test_between(void **state)
{
    (void)state;
    struct text t;
    text_make(&t);
    hr_runtime_t *rt = runtime_open(device_emu_ops()->name, false);
    hr_sequence_t *s = sequence_open(rt, RECIPE);
    struct hri_device_memory memory = {0};
    const float ones[HEADS] = {1, 1, 1, 1};
    assert_ok(hri_device_alloc(rt->gpu, "a test", sizeof ones, &memory));
    assert_ok(hri_device_copy(rt->gpu, memory.base, ones, sizeof ones));
    struct model m = {.ones = memory.base, .fails_at_1 = HR_ERR_CANCELED};
    struct hr_step_graph_options o;
    hr_step_graph_t *g = NULL;
    hr_step_graph_options_init(&o);
    o.between = between;
    o.context = &m;
    assert_int_equal(hr_step_graph_create(s, &o, &g), HR_ERR_CANCELED);
    assert_null(g);
    m = (struct model){.ones = memory.base};
    assert_ok(hr_step_graph_create(s, &o, &g));
    assert_int_equal(m.calls, LAYERS + 1);
    append_all(s, &t, 0, 120);
    for (uint32_t n = 120; n < 123; n++) {
        struct hr_step_buffers b[LAYERS];
        float q[HEADS * D], before[HEADS * D];
        token_put(g, &t, n);
        assert_ok(hr_step_graph_run(g, NULL));
        for (uint32_t i = 0; i < LAYERS; i++)
            assert_ok(hr_step_graph_buffers(g, i, &b[i]));
        for (uint32_t i = 1; i < LAYERS; i++) {
            device_emu_read(q, b[i].q, sizeof q);
            device_emu_read(before, b[i - 1].out, sizeof before);
            assert_memory_equal(q, before, sizeof q);
        }
        assert_int_equal(m.calls, LAYERS + 1); /* not again */
    }
    hr_step_graph_destroy(g);
    hri_device_free(rt->gpu, &memory);
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
    text_free(&t);
}

/* -- layers that attend everything, from rows on the device -- */

static hr_sequence_t *exact_open(hr_runtime_t *rt, const char *recipe, uint32_t sliding)
{
    struct hr_sequence_options so;
    struct shape with_window = shape;
    hr_sequence_t *s = NULL;
    with_window.sliding = sliding; /* of layer 0 */
    options_for(&with_window, TOKENS, recipe, 0.15, &so);
    assert_ok(hr_sequence_create(rt, &so, &s));
    return s;
}

static void layer_attend(hr_sequence_t *s, const struct text *t, uint32_t token, uint32_t layer,
                         float *out)
{
    struct hr_tensor q =
        hr_tensor_make((float *)(uintptr_t)query_of(t, token, layer), HR_DTYPE_F32, 1, HEADS, D);
    struct hr_tensor to = hr_tensor_make(out, HR_DTYPE_F32, 1, HEADS, D);
    assert_ok(hr_sequence_attend(s, layer, &q, NULL, &to, NULL, NULL));
}

/* Tokens [first, end) by the graph and layer by layer; a twin on the CPU for layers that attend everything. */
static void exact_tokens(hr_step_graph_t *g, hr_sequence_t *s, hr_sequence_t *twin,
                         hr_sequence_t *cpu, const struct text *t, uint32_t first, uint32_t end)
{
    for (uint32_t n = first; n < end; n++) {
        struct hr_attend_report report;
        token_put(g, t, n);
        assert_ok(hr_step_graph_run(g, &report));
        assert_true(report.rows_device > 0);
        append_all(cpu, t, n, 1);
        for (uint32_t i = 0; i < LAYERS; i++) {
            struct hr_step_buffers b;
            float got[HEADS * D], out[HEADS * D], here[HEADS * D];
            assert_int_equal(hr_sequence_length(s, i), n + 1);
            assert_ok(hr_sequence_settle(twin, i));
            assert_ok(rows_append(twin, &shape, i, t->k, t->v, n, 1));
            layer_attend(twin, t, n, i, out);
            assert_ok(hr_step_graph_buffers(g, i, &b));
            device_emu_read(got, b.out, sizeof got);
            if (s->layers[i].exact) {
                layer_attend(cpu, t, n, i, here);
                assert_true(apart(got, here, HEADS * D) <= 5e-4);
                assert_true(apart(got, out, HEADS * D) <= 1e-6);
            } else if (n % 32 != 4) { /* as above */
                assert_memory_equal(got, out, sizeof got);
            }
        }
    }
}

static void exact_equal(const char *recipe, uint32_t sliding, bool file)
{
    struct text t;
    text_make(&t);
    hr_runtime_t *rt = runtime_open(device_emu_ops()->name, file),
                 *cpu = runtime_open("cpu", false);
    hr_sequence_t *s = exact_open(rt, recipe, sliding), *twin = exact_open(rt, recipe, sliding),
                  *here = exact_open(cpu, recipe, sliding);
    hr_sequence_t *all[] = {s, twin, here};
    struct hr_step_graph_options o;
    hr_step_graph_t *g = NULL;
    hr_step_graph_options_init(&o);
    assert_ok(hr_step_graph_create(s, &o, &g));
    if (strncmp(recipe, "full", 4) == 0)
        exact_tokens(g, s, twin, here, &t, 0, 2); /* from nothing */
    const uint32_t begun = hr_sequence_length(s, 0);
    for (int i = 0; i < 3; i++)
        append_all(all[i], &t, begun, 190 - begun);
    exact_tokens(g, s, twin, here, &t, 190, 199);
    /* A token that is refused leaves nothing; a window whose oldest row it replaced needs that row after a cut. */
    struct hr_step_buffers b;
    token_put(g, &t, 199);
    assert_ok(hr_step_graph_buffers(g, 0, &b));
    put(b.k, (float[]){NAN}, 1);
    assert_fails(hr_step_graph_run(g, NULL), HR_ERR_NONFINITE, "is not finite");
    for (int i = 0; i < 3; i++)
        assert_ok(hr_sequence_truncate(all[i], 198));
    exact_tokens(g, s, twin, here, &t, 198, 201);
    for (int i = 0; i < 3; i++)
        assert_ok(hr_sequence_truncate(all[i], 195));
    exact_tokens(g, s, twin, here, &t, 195, 200);
    /* Rows that made room: the graph says so, and the token goes layer by layer. */
    assert_true(hri_held_give_way(rt));
    token_put(g, &t, 200);
    assert_fails(hr_step_graph_run(g, NULL), HR_ERR_UNSUPPORTED, "no longer on the GPU");
    for (uint32_t i = 0; i < LAYERS; i++)
        assert_int_equal(hr_sequence_length(s, i), 200);
    hr_step_graph_destroy(g);
    for (int i = 0; i < 3; i++)
        hr_sequence_destroy(all[i]);
    assert_ok(hr_runtime_destroy(rt));
    assert_ok(hr_runtime_destroy(cpu));
    text_free(&t);
}

static void test_exact(void **state)
{
    (void)state;
    exact_equal("full", 0, false);
    exact_equal("full", 64, false);
    exact_equal("full", 50, true);
    exact_equal(RECIPE ",dense=1", 0, false);
    exact_equal(RECIPE ",dense=2", 50, true);
}

static void test_misuse(void **state)
{
    (void)state;
    struct text t;
    text_make(&t);
    struct hr_step_graph_options o;
    hr_step_graph_t *g = NULL;
    struct hr_step_buffers b;
    hr_step_graph_options_init(&o);
    hr_runtime_t *cpu = runtime_open("cpu", false),
                 *rt = runtime_open(device_emu_ops()->name, false);
    hr_sequence_t *on_cpu = sequence_open(cpu, RECIPE), *s = sequence_open(rt, RECIPE),
                  *full = sequence_open(rt, "full"), *window = sequence_open(rt, "window");
    assert_fails(hr_step_graph_create(NULL, &o, &g), HR_ERR_INVALID, "no sequence");
    assert_fails(hr_step_graph_create(on_cpu, &o, &g), HR_ERR_UNSUPPORTED, "not run on a GPU");
    assert_fails(hr_step_graph_create(window, &o, &g), HR_ERR_UNSUPPORTED, "not run on a GPU");
    assert_true(hri_held_give_way(rt));
    assert_fails(hr_step_graph_create(full, &o, &g), HR_ERR_UNSUPPORTED, "not all on a GPU");
    o.struct_size = 3;
    assert_fails(hr_step_graph_create(s, &o, &g), HR_ERR_VERSION, "struct_size 3");
    hr_step_graph_options_init(&o);
    assert_ok(hr_step_graph_create(s, &o, &g));
    assert_fails(hr_step_graph_buffers(g, LAYERS, &b), HR_ERR_INVALID, "no such layer");
    assert_fails(hr_step_graph_run(NULL, NULL), HR_ERR_INVALID, "no graph");
    append_all(s, &t, 0, 100);
    assert_ok(rows_append(s, &shape, 1, t.k, t.v, 100, 1));
    assert_fails(hr_step_graph_run(g, NULL), HR_ERR_STATE, "layer 1 has 101 tokens");
    assert_ok(hr_sequence_truncate(s, 100));
    /* A row that is not finite: the token is taken back. */
    float bad[KV * D] = {0};
    bad[70] = NAN;
    token_put(g, &t, 100);
    assert_ok(hr_step_graph_buffers(g, 2, &b));
    put(b.k, bad, KV * D);
    assert_fails(hr_step_graph_run(g, NULL), HR_ERR_NONFINITE, "head 1, dimension 6");
    for (uint32_t i = 0; i < LAYERS; i++)
        assert_int_equal(hr_sequence_length(s, i), 100);
    token_put(g, &t, 100);
    put(b.q, (float[]){INFINITY}, 1);
    assert_fails(hr_step_graph_run(g, NULL), HR_ERR_NONFINITE, "q: layer 2");
    token_put(g, &t, 100);
    assert_ok(hr_step_graph_run(g, NULL));
    append_all(s, &t, 101, TOKENS - 101);
    assert_fails(hr_step_graph_run(g, NULL), HR_ERR_FULL, "tokens_max 400");
    device_emu_faults.loss = true;
    assert_ok(hr_sequence_truncate(s, 150));
    assert_int_equal(hr_step_graph_run(g, NULL), HR_ERR_DEVICE);
    assert_int_equal(hr_sequence_length(s, 0), 150);
    hr_step_graph_destroy(g);
    hr_step_graph_destroy(NULL);
    hr_sequence_destroy(s);
    hr_sequence_destroy(full);
    hr_sequence_destroy(window);
    hr_sequence_destroy(on_cpu);
    assert_ok(hr_runtime_destroy(rt));
    assert_ok(hr_runtime_destroy(cpu));
    device_emu_faults = (struct device_emu_faults){.no_pinning = true};
    rt = runtime_open(device_emu_ops()->name, false);
    s = sequence_open(rt, RECIPE);
    assert_fails(hr_step_graph_create(s, &o, &g), HR_ERR_UNSUPPORTED, "could not be pinned");
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
    device_emu_faults = (struct device_emu_faults){0};
    text_free(&t);
}

int main(void)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_equal), cmocka_unit_test(test_between),
                                       cmocka_unit_test(test_exact), cmocka_unit_test(test_misuse)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
