/* The engine on the emulated device beside the CPU's. Both have the same weights, those of the device: rounded to bfloat16. So what
 * differs is the order of sums, and of prompts the activations that a product reads as bfloat16, and queries and weights of rows
 * (prefill.cu).
 *
 * Tolerances, the largest difference of a logit over their spread (standard deviation over the vocabulary): see the cases. The next
 * token must be the same wherever the CPU's best is ahead of its second by more than twice that difference. */
#include "tests/emu/device_sides.h"
#include "tests/emu/fake_cublas.h"

#include "runtime/device_rows.h"
#include "tests/engine/gguf_make.h"

#include <dlfcn.h>
#include <unistd.h>

/* -- whole texts -- */

static void text_make(uint32_t n, uint32_t *ids, uint32_t *answers)
{
    must(hre_tiny_text(n, KEYS, 11, ids, answers));
}

/* Prefill of `first` tokens, then the rest one by one, on both sides. */
static uint32_t both(struct side *there, struct side *here, const uint32_t *ids, uint32_t first,
                     uint32_t n, const uint32_t *answers, double tolerance)
{
    float *got = malloc(there->vocab * sizeof *got), *want = malloc(there->vocab * sizeof *want);
    uint32_t answered = 0, asked = n - 2 * KEYS;
    float unused;
    assert_true(got && want);
    must(hre_session_prefill(there->session, ids, first, NULL, got));
    must(hre_session_prefill(here->session, ids, first, NULL, want));
    compare(got, want, there->vocab, "prefill", tolerance);
    for (uint32_t i = first; i < n; i++) {
        struct hre_step_report report;
        must(hre_session_decode(there->session, 0, ids[i], NULL, got, &report));
        must(hre_session_decode(here->session, 0, ids[i], NULL, want, NULL));
        compare(got, want, there->vocab, "decode", tolerance);
        assert_int_equal(report.n_layers, 4);
        if (i >= asked && (i - asked) % 2 == 0)
            answered += best_of(got, there->vocab, &unused) == answers[(i - asked) / 2];
    }
    free(got);
    free(want);
    return answered;
}

struct text {
    uint32_t first, n; /* tokens of the prompt; of all */
    double tolerance;
    uint32_t least_answers;
};

static void equal(const struct setup *t, const struct text *x)
{
    struct setup cpu = *t;
    struct side there, here;
    uint32_t ids[TOKENS_MAX], answers[KEYS];
    struct hre_session_stats stats;
    cpu.there = cpu.cache_there = false;
    text_make(x->n, ids, answers);
    side_open(&there, t);
    side_open(&here, &cpu);
    worst = 0;
    const uint32_t answered = both(&there, &here, ids, x->first, x->n, answers, x->tolerance);
    hre_session_stats(there.session, &stats);
    print_message("%s, %u + %u tokens: logits differ by %.2g of their spread, %u of %u answered, "
                  "%llu tokens as graphs\n",
                  t->recipe, x->first, x->n - x->first, worst, answered, KEYS,
                  (unsigned long long)stats.decode_graph_tokens);
    assert_true(answered >= x->least_answers);
    side_close(&there);
    side_close(&here);
}

/* Activations of few rows are float32: nothing but the order of sums is different. */
static void test_token_by_token(void **state)
{
    (void)state;
    const struct setup t = {.recipe = "full", .there = true, .dtype = HR_DTYPE_F32};
    equal(&t, &(struct text){1, 40, 1e-4, KEYS});
    equal(&t, &(struct text){16, 40, 1e-4, KEYS});
}

/* The tiny model looks things up: its softmaxes are sharp, and small differences of logits show. */
static void test_full(void **state)
{
    (void)state;
    const struct setup t = {
        .recipe = "full", .rows = 96, .there = true, .cache_there = true, .dtype = HR_DTYPE_BF16};
    equal(&t, &(struct text){204, 220, 0.05, KEYS}); /* several tiles, the last of 12 */
    struct setup host = t;
    host.cache_there = false; /* the CPU attends */
    equal(&host, &(struct text){60, 62, 0.05, 0});
}

/* -- other architectures -- */

static const struct gguf_shape families[] = {
    {"llama",
     2,
     64,
     96,
     4,
     2,
     32,
     120,
     32,
     {HRE_WEIGHT_BF16, HRE_WEIGHT_BF16, HRE_WEIGHT_BF16, HRE_WEIGHT_BF16},
     1,
     0,
     NULL},
    {"llama",
     1,
     96,
     160,
     3,
     1,
     32,
     101,
     16,
     {HRE_WEIGHT_Q8_0, HRE_WEIGHT_F32, HRE_WEIGHT_F16, HRE_WEIGHT_Q4_1},
     0,
     1,
     "linear"},
    {"qwen2",
     2,
     128,
     96,
     4,
     1,
     64,
     200,
     64,
     {HRE_WEIGHT_Q8_0, HRE_WEIGHT_Q4_1, HRE_WEIGHT_Q8_0, HRE_WEIGHT_F32},
     1,
     1,
     "yarn"},
    {"qwen2",
     2,
     64,
     64,
     8,
     8,
     8,
     90,
     8,
     {HRE_WEIGHT_BF16, HRE_WEIGHT_BF16, HRE_WEIGHT_BF16, HRE_WEIGHT_BF16},
     0,
     1,
     NULL},
};

struct collected {
    float *logits;
    uint32_t vocab, next;
};

static void collect(void *context, uint32_t first, uint32_t n, const float *logits)
{
    struct collected *c = context;
    assert_int_equal(first, c->next);
    memcpy(c->logits + (size_t)first * c->vocab, logits, (size_t)n * c->vocab * sizeof *logits);
    c->next += n;
}

static float *prefill_all(struct side *side, const uint32_t *ids, uint32_t n)
{
    struct collected c = {malloc((size_t)n * side->vocab * sizeof(float)), side->vocab, 0};
    struct hre_prefill_options o;
    assert_non_null(c.logits);
    hre_prefill_options_init(&o);
    o.all_logits = collect;
    o.all_logits_context = &c;
    must(hre_session_prefill(side->session, ids, n, &o, NULL));
    assert_int_equal(c.next, n);
    return c.logits;
}

static void family(const struct gguf_shape *shape, uint64_t seed)
{
    char path[RUN_PATH_BYTES];
    struct gguf_bytes file = gguf_model(shape, seed);
    run_temp_path(path, "device_model.gguf");
    assert_int_equal(run_write_file(path, file.data, file.count), 0);
    free(file.data);
    enum { TOKENS = 75 };
    const struct setup t = {.model = path,
                            .recipe = "full",
                            .rows = 70, /* logits of 64, then 6, then 5 rows */
                            .there = true,
                            .cache_there = true,
                            .dtype = HR_DTYPE_F16};
    struct setup cpu = t;
    struct side there, here;
    uint32_t ids[TOKENS + 2];
    for (uint32_t i = 0; i < TOKENS + 2; i++)
        ids[i] = gguf_random(&seed) % shape->vocab;
    cpu.there = cpu.cache_there = false;
    side_open(&there, &t);
    side_open(&here, &cpu);
    worst = 0;
    float *got = prefill_all(&there, ids, TOKENS), *want = prefill_all(&here, ids, TOKENS);
    for (uint32_t i = 0; i < TOKENS; i++)
        compare(got + (size_t)i * there.vocab, want + (size_t)i * there.vocab, there.vocab,
                shape->architecture, 0.04);
    for (uint32_t i = TOKENS; i < TOKENS + 2; i++) {
        must(hre_session_decode(there.session, 0, ids[i], NULL, got, NULL));
        must(hre_session_decode(here.session, 0, ids[i], NULL, want, NULL));
        compare(got, want, there.vocab, shape->architecture, 0.04);
    }
    print_message("%s, %u + %u heads of %u: logits differ by %.2g of their spread\n",
                  shape->architecture, shape->heads, shape->kv_heads, shape->head_dim, worst);
    free(got);
    free(want);
    side_close(&there);
    side_close(&here);
    unlink(path);
}

static void test_families(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        family(&families[i], 11 + i);
}

/* -- a prompt's products by a stand-in for cuBLAS -- */

#ifdef FAKE_CUBLAS
static void fake_get(void *to, const void *from, size_t bytes)
{
    device_emu_read(to, from, bytes);
}

static void fake_put(void *to, const void *from, size_t bytes)
{
    assert_int_equal(device_emu_ops()->copy(to, bytes, from, bytes, bytes, 1, NULL), 0);
}

static unsigned log_lines;

static void count_line(void *context, hr_log_level_t level, const char *line)
{
    (void)context;
    assert_int_equal(level, HR_LOG_WARN);
    assert_true(strstr(line, "cuBLAS") || strstr(line, "gave status 13"));
    log_lines++;
}

static void with_blas(const char *library, float *logits, const char *expected)
{
    const struct setup t = {.recipe = "full", .dtype = HR_DTYPE_BF16};
    struct hre_model_options o;
    struct side side;
    uint32_t ids[60], answers[KEYS];
    text_make(60, ids, answers);
    hre_model_options_init(&o);
    o.n_threads = 1;
    o.device = device_emu_ops()->name;
    o.blas = library;
    o.log = count_line;
    side_open(&side, &t);
    hre_session_destroy(side.session);
    hre_model_close(side.model);
    must(hre_model_open_on("tiny", &o, device_emu_ops(), &side.model));
    session_open(&side, 0);
    must(hre_session_prefill(side.session, ids, 60, NULL, logits));
    const char *name = hre_model_info(side.model)->device_blas;
    assert_true(expected ? name && strcmp(name, expected) == 0 : !name);
    side_close(&side);
}

static void test_blas(void **state)
{
    (void)state;
    struct fake_cublas *(*fake_state)(void);
    float own[256], fake[256];
    void *library = dlopen(FAKE_CUBLAS, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    *(void **)&fake_state = dlsym(library, "fake_cublas_state");
    assert_non_null(fake_state);
    *fake_state() = (struct fake_cublas){.get = fake_get, .put = fake_put};
    with_blas("", own, NULL);
    with_blas(FAKE_CUBLAS, fake, FAKE_CUBLAS);
    assert_int_equal(log_lines, 0);
    assert_true(fake_state()->products >= 4 * 3 + 3 * 3); /* the last layer's last row is alone */
    assert_true(fake_state()->workspace_bytes == 32u << 20);
    compare(fake, own, 192, "cuBLAS's stand-in", 1e-3);
    /* A failing one is given up, and said so once; a missing one, too. */
    fake_state()->gemm_status = 13;
    with_blas(FAKE_CUBLAS, fake, FAKE_CUBLAS);
    assert_memory_equal(fake, own, 192 * sizeof *own);
    assert_int_equal(log_lines, 1);
    with_blas("/nowhere/libcublas.so", fake, NULL);
    assert_memory_equal(fake, own, 192 * sizeof *own);
    assert_int_equal(log_lines, 2);
    *fake_state() = (struct fake_cublas){0};
    dlclose(library);
}
#endif

/* -- recipes with steps there -- */

static const struct gguf_shape stepper = {
    "llama", 3,  64,  96, 4,
    2,       32, 120, 32, {HRE_WEIGHT_BF16, HRE_WEIGHT_BF16, HRE_WEIGHT_BF16, HRE_WEIGHT_BF16},
    1,       0,  NULL};

static struct setup stepper_make(char path[RUN_PATH_BYTES], uint32_t rows)
{
    struct gguf_bytes file = gguf_model(&stepper, 5);
    run_temp_path(path, "device_model.gguf");
    assert_int_equal(run_write_file(path, file.data, file.count), 0);
    free(file.data);
    return (struct setup){.model = path,
                          .recipe = HEADRACE,
                          .rows = rows,
                          .there = true,
                          .cache_there = true,
                          .dtype = HR_DTYPE_BF16};
}

static void stepper_text(uint64_t seed, uint32_t n, uint32_t *ids)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = gguf_random(&seed) % stepper.vocab;
}

/* A token as one graph is the token layer by layer. */
static void test_graph(void **state)
{
    (void)state;
    char path[RUN_PATH_BYTES];
    const struct setup t = stepper_make(path, 128);
    enum { N = 240, FIRST = 230 };
    struct side graph, layers;
    struct hre_session_stats stats;
    struct hre_decode_options slow;
    uint32_t ids[N];
    float got[256], want[256];
    stepper_text(3, N, ids);
    side_open(&graph, &t);
    side_open(&layers, &t);
    hre_decode_options_init(&slow);
    slow.strict_exact = 1; /* which a graph does not do */
    worst = 0;
    const struct hre_prefill_options settles = {.struct_size = sizeof settles, .settle = 1};
    must(hre_session_prefill(graph.session, ids, FIRST, &settles, got));
    must(hre_session_prefill(layers.session, ids, FIRST, &settles, want));
    assert_memory_equal(got, want, graph.vocab * sizeof *got);
    for (uint32_t i = FIRST; i < N; i++) {
        struct hre_step_report a, b;
        must(hre_session_decode(graph.session, 0, ids[i], NULL, got, &a));
        must(hre_session_decode(layers.session, 0, ids[i], &slow, want, &b));
        compare(got, want, graph.vocab, "graph", 1e-4);
        assert_true(a.sum.blocks_total > 0);
        assert_int_equal(a.sum.blocks_total, b.sum.blocks_total);
        assert_int_equal(a.sum.blocks_hit + a.sum.blocks_fetched,
                         b.sum.blocks_hit + b.sum.blocks_fetched);
        assert_true(fabs(a.sum.predicted_error - b.sum.predicted_error) < 1e-4);
        assert_true(a.attend_ns > 0 && a.total_ns >= a.attend_ns);
    }
    hre_session_stats(graph.session, &stats);
    assert_int_equal(stats.decode_graph_tokens, N - FIRST);
    hre_session_stats(layers.session, &stats);
    assert_int_equal(stats.decode_graph_tokens, 0);
    print_message("graph: logits differ by %.2g of their spread\n", worst);
    side_close(&graph);
    side_close(&layers);
    unlink(path);
}

static void decode_some(hre_session_t *session, const uint32_t *ids, uint32_t n, bool exact,
                        float *logits)
{
    struct hre_decode_options o;
    hre_decode_options_init(&o);
    o.mode = exact ? HR_ATTEND_EXACT : HR_ATTEND_AUTO;
    for (uint32_t i = 0; i < n; i++)
        must(hre_session_decode(session, 0, ids[i], &o, logits, NULL));
}

/* What is truncated, forked, saved and opened goes on as if it had never been. Steps of a fork and of an opened one are bit for bit
 * those of the first; what a truncation leaves of the grouping is not the same, so that it is asked with exact attention. */
static void test_sessions(void **state)
{
    (void)state;
    char path[RUN_PATH_BYTES], dir[RUN_PATH_BYTES];
    const struct setup t = stepper_make(path, 64);
    enum { N = 136, FIRST = 130, STEPS = 3 };
    struct side side;
    hre_session_t *whole;
    hr_sequence_t *sequence, *fork = NULL, *opened = NULL;
    struct hr_sequence_options so;
    struct hre_session_stats stats;
    uint32_t ids[N];
    float exact[256], steps[256], got[256];
    stepper_text(9, N, ids);
    const uint32_t *next = ids + FIRST;
    const struct hre_prefill_options settles = {.struct_size = sizeof settles, .settle = 1};
    side_open(&side, &t);
    sequence = side.sequence;
    whole = side.session;
    must(hre_session_prefill(whole, ids, FIRST, &settles, NULL));
    must(hr_sequence_fork(sequence, &fork));
    run_temp_path(dir, "device_model.session");
    must(hr_sequence_save(sequence, dir, NULL));
    decode_some(whole, next, STEPS, true, exact);
    must(hre_session_truncate(whole, 0, FIRST, ids[FIRST - 1]));
    decode_some(whole, next, STEPS, true, got);
    compare(got, exact, side.vocab, "truncated", 1e-6);
    side.sequence = fork;
    session_open(&side, ids[FIRST - 1]);
    decode_some(side.session, next, STEPS, false, steps);
    hre_session_stats(side.session, &stats);
    assert_int_equal(stats.decode_graph_tokens, STEPS);
    hre_session_destroy(side.session);
    hr_sequence_destroy(fork);
    sequence_options(&side, &t, &so);
    must(hr_sequence_open(side.runtime, dir, &so, NULL, &opened));
    side.sequence = opened;
    session_open(&side, ids[FIRST - 1]);
    decode_some(side.session, next, STEPS, false, got);
    compare(got, steps, side.vocab, "opened", 1e-6);
    must(hre_session_truncate(side.session, 0, FIRST, ids[FIRST - 1]));
    decode_some(side.session, next, STEPS, true, got);
    compare(got, exact, side.vocab, "opened and truncated", 1e-6);
    hre_session_destroy(side.session);
    hr_sequence_destroy(opened);
    must(hr_session_remove(dir));
    side.session = whole;
    side.sequence = sequence;
    side_close(&side);
    unlink(path);
}

/* -- several sequences fed one text, as evaluations have them -- */

struct watched {
    uint64_t rows;
    double largest;
};

static void watch(void *context, uint32_t layer, uint32_t first, uint32_t n, const float *q,
                  const float *k, const float *v)
{
    struct watched *w = context;
    assert_true(layer < stepper.layers && first % 64 == 0);
    w->rows += n;
    for (uint32_t i = 0; i < n * stepper.kv_heads * stepper.head_dim; i++) {
        assert_true(isfinite(q[i]) && isfinite(k[i]) && isfinite(v[i]));
        w->largest = fmax(w->largest, fabs((double)k[i]));
    }
}

static void test_two_sequences(void **state)
{
    (void)state;
    char path[RUN_PATH_BYTES];
    const struct setup t = stepper_make(path, 64);
    enum { N = 134, FIRST = 130 };
    struct side one, two;
    struct hre_session_options o;
    struct hr_sequence_options so;
    struct watched seen = {0};
    hr_sequence_t *both_of[2] = {NULL, NULL};
    uint32_t ids[N];
    float want[256], got[256], dense[256];
    struct hre_prefill_options watched = {
        .struct_size = sizeof watched, .rows = watch, .rows_context = &seen, .settle = 1};
    stepper_text(21, N, ids);
    side_open(&one, &t);
    side_open(&two, &t);
    hre_session_destroy(two.session);
    sequence_options(&two, &t, &so);
    so.recipe = "full";
    must(hr_sequence_create(two.runtime, &so, &both_of[0]));
    both_of[1] = two.sequence;
    hre_session_options_init(&o);
    o.sequences = both_of;
    o.n_sequences = 2;
    o.tokens_max = TOKENS_MAX;
    must(hre_session_create(two.model, &o, &two.session));
    must(hre_session_prefill(one.session, ids, FIRST, &watched, want));
    assert_int_equal(seen.rows, FIRST * stepper.layers);
    assert_true(seen.largest > 0);
    must(hre_session_prefill(two.session, ids, FIRST, &watched, got));
    assert_memory_equal(got, want, two.vocab * sizeof *got);
    for (uint32_t i = FIRST; i < N; i++) {
        must(hre_session_decode(one.session, 0, ids[i], NULL, want, NULL));
        must(hre_session_decode(two.session, 1, ids[i], NULL, got, NULL));
        must(hre_session_decode(two.session, 0, ids[i], NULL, dense, NULL));
        assert_memory_equal(got, want, two.vocab * sizeof *got);
    }
    hre_session_destroy(two.session);
    two.session = NULL;
    hr_sequence_destroy(both_of[0]);
    side_close(&one);
    side_close(&two);
    unlink(path);
}

/* -- what goes wrong -- */

static void open_fails(const char *device, hr_status_t expected, const char *text)
{
    struct hre_model_options o;
    hre_model_t *model = NULL;
    hre_model_options_init(&o);
    o.n_threads = 1;
    o.device = device;
    assert_int_equal(hre_model_open_on("tiny", &o, device_emu_ops(), &model), expected);
    assert_null(model);
    if (!strstr(hre_last_error(), text))
        fail_msg("'%s' lacks '%s'", hre_last_error(), text);
}

static void test_refused(void **state)
{
    (void)state;
    char device[32];
    snprintf(device, sizeof device, "%s", device_emu_ops()->name);
    open_fails("gpu", HR_ERR_INVALID, "device \"gpu\" is none of cpu");
    device_emu_faults = (struct device_emu_faults){.memory_bytes = 1u << 20};
    open_fails(device, HR_ERR_NOMEM,
               "bytes are wanted (the model's weights in bfloat16 and its scratch), 1048576 of "
               "1048576 are free");
    device_emu_faults = (struct device_emu_faults){.no_driver = true};
    open_fails(device, HR_ERR_UNSUPPORTED, "no driver is installed");
    device_emu_faults = (struct device_emu_faults){.loss = true, .waits_before_loss = 3};
    open_fails(device, HR_ERR_DEVICE, "is lost");
    device_emu_faults = (struct device_emu_faults){0};
    assert_int_equal(device_emu_counts().device_bytes, 0);
    assert_int_equal(device_emu_counts().pinned_bytes, 0);
    assert_int_equal(device_emu_counts().ranges_open, 0);
    struct gguf_shape odd = families[0];
    odd.ffn = 90; /* no multiple of 8 */
    struct gguf_bytes file = gguf_model(&odd, 3);
    char path[RUN_PATH_BYTES];
    run_temp_path(path, "device_model.gguf");
    assert_int_equal(run_write_file(path, file.data, file.count), 0);
    free(file.data);
    hre_model_t *model = NULL;
    assert_int_equal(model_open(path, &(struct setup){.there = true}, &model), HR_ERR_UNSUPPORTED);
    assert_non_null(strstr(hre_last_error(), "feed-forward width of 90 is no multiple of 8"));
    unlink(path);
}

/* The device goes away: one error, and what the host has can be saved and goes on on the CPU. */
static void lost_after(const struct setup *t, bool by_layers, uint32_t waits)
{
    enum { N = 100, FIRST = 90 };
    const struct setup cpu = {.recipe = t->recipe, .dtype = t->dtype};
    char dir[RUN_PATH_BYTES];
    struct side side, here;
    uint32_t ids[N], answers[KEYS], at = FIRST;
    float got[256], want[256];
    text_make(N, ids, answers);
    side_open(&side, t);
    must(hre_session_prefill(side.session, ids, FIRST, NULL, got));
    if (by_layers) /* else a token is one graph, whose end is its second wait of three */
        assert_true(hri_held_give_way(side.runtime));
    device_emu_faults =
        (struct device_emu_faults){.loss = true, .waits_before_loss = device_emu_waits() + waits};
    hr_status_t status = HR_OK;
    while (status == HR_OK && at < N)
        status = hre_session_decode(side.session, 0, ids[at], NULL, got, NULL), at++;
    assert_int_equal(status, HR_ERR_DEVICE);
    assert_non_null(strstr(hre_last_error(), "is lost"));
    at--;
    assert_int_equal(hre_session_decode(side.session, 0, ids[at], NULL, got, NULL), HR_ERR_STATE);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(hr_sequence_length(side.sequence, i), at);
    assert_int_equal(hre_session_length(side.session, 0), at);
    run_temp_path(dir, "device_model.session");
    must(hr_sequence_save(side.sequence, dir, NULL));
    side_close(&side);
    device_emu_faults = (struct device_emu_faults){0};
    /* Goes on with exact attention; the same text read by the CPU alone is close. */
    struct hr_sequence_options so;
    hr_sequence_t *opened = NULL, *fresh;
    struct hre_decode_options exact;
    hre_decode_options_init(&exact);
    exact.mode = HR_ATTEND_EXACT;
    side_open(&here, &cpu);
    must(hre_session_prefill(here.session, ids, at, NULL, NULL));
    must(hre_session_decode(here.session, 0, ids[at], &exact, want, NULL));
    hre_session_destroy(here.session);
    sequence_options(&here, &cpu, &so);
    must(hr_sequence_open(here.runtime, dir, &so, NULL, &opened));
    fresh = here.sequence;
    here.sequence = opened;
    session_open(&here, ids[at - 1]);
    must(hre_session_decode(here.session, 0, ids[at], &exact, got, NULL));
    compare(got, want, here.vocab, "after a loss", 0.25);
    hr_sequence_destroy(fresh);
    side_close(&here);
    must(hr_session_remove(dir));
}

static void test_loss(void **state)
{
    (void)state;
    const struct setup t = {
        .recipe = HEADRACE, .rows = 64, .there = true, .cache_there = true, .dtype = HR_DTYPE_BF16};
    struct setup full = t;
    full.recipe = "full";
    lost_after(&t, false, 0);
    lost_after(&t, false, 4);
    lost_after(&full, false, 1);
    lost_after(&full, false, 4);
    lost_after(&full, true, 2); /* some layers have the token */
    lost_after(&full, true, 7);
}

/* -- the real model, by itself: the emulator takes its time -- */

static char smollm2[RUN_PATH_BYTES];

static void test_smollm2(void **state)
{
    (void)state;
    enum { FIRST = 12, STEPS = 3 };
    const struct setup t = {.model = smollm2,
                            .recipe = "headrace",
                            .rows = 64,
                            .there = true,
                            .cache_there = true,
                            .dtype = HR_DTYPE_BF16};
    struct setup cpu = t;
    struct side there, here;
    struct hre_session_stats stats;
    uint32_t ids[FIRST];
    for (uint32_t i = 0; i < FIRST; i++)
        ids[i] = 2000 + 37 * i; /* some words */
    device_emu_faults.memory_bytes = (size_t)2 << 30;
    cpu.there = cpu.cache_there = false;
    side_open(&there, &t);
    side_open(&here, &cpu);
    float *got = malloc(there.vocab * sizeof *got), *want = malloc(there.vocab * sizeof *want);
    assert_true(got && want);
    worst = 0;
    must(hre_session_prefill(there.session, ids, FIRST, NULL, got));
    must(hre_session_prefill(here.session, ids, FIRST, NULL, want));
    compare(got, want, there.vocab, "prefill", 0.05);
    for (uint32_t i = 0; i < STEPS; i++) {
        float unused;
        const uint32_t id = best_of(want, here.vocab, &unused);
        must(hre_session_decode(there.session, 0, id, NULL, got, NULL));
        must(hre_session_decode(here.session, 0, id, NULL, want, NULL));
        compare(got, want, there.vocab, "decode", 0.05);
    }
    hre_session_stats(there.session, &stats);
    assert_int_equal(stats.decode_graph_tokens, STEPS);
    print_message("SmolLM2-135M, %d + %d tokens: logits differ by %.2g of their spread\n", FIRST,
                  STEPS, worst);
    free(got);
    free(want);
    side_close(&there);
    side_close(&here);
    device_emu_faults = (struct device_emu_faults){0};
}

int main(int argc, char **argv)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    if (argc > 1 && strcmp(argv[1], "smollm2") == 0) {
        const struct CMUnitTest alone[] = {cmocka_unit_test(test_smollm2)};
        return run_find_model(smollm2) ? cmocka_run_group_tests(alone, NULL, NULL) : RUN_SKIPPED;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_token_by_token),
                                       cmocka_unit_test(test_full),
                                       cmocka_unit_test(test_families),
                                       cmocka_unit_test(test_graph),
                                       cmocka_unit_test(test_sessions),
                                       cmocka_unit_test(test_two_sequences),
                                       cmocka_unit_test(test_refused),

#ifdef FAKE_CUBLAS
                                       cmocka_unit_test(test_blas),
#endif
                                       cmocka_unit_test(test_loss)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
