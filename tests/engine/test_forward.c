/*
 * The forward pass against tools/reference_llama.py, on small models with random weights of every
 * type, with and without biases, tied outputs and RoPE scaling; and against itself: chunks,
 * decoding and several sequences give the same numbers.
 */
#include "tests/test.h"

#include <math.h>
#include <unistd.h>

#include "engine/ops.h"
#include "tests/engine/gguf_make.h"
#include "tests/engine/run_model.h"

#define TOKENS 70

static const struct gguf_shape shapes[] = {
    {"llama",
     2,
     256,
     512,
     4,
     2,
     64,
     300,
     64,
     {HRE_WEIGHT_Q4_1, HRE_WEIGHT_Q8_0, HRE_WEIGHT_F16, HRE_WEIGHT_Q4_0},
     1,
     0,
     NULL},
    {"llama",
     2,
     256,
     256,
     8,
     8,
     32,
     300,
     32,
     {HRE_WEIGHT_Q4_K, HRE_WEIGHT_Q6_K, HRE_WEIGHT_BF16, HRE_WEIGHT_Q4_K},
     0,
     0,
     "llama3"},
    {"llama",
     1,
     96,
     160,
     3,
     1,
     32,
     101,
     16,
     {HRE_WEIGHT_F32, HRE_WEIGHT_F32, HRE_WEIGHT_F16, HRE_WEIGHT_F32},
     1,
     1,
     "linear"},
    {"qwen2",
     2,
     256,
     288,
     4,
     1,
     64,
     200,
     64,
     {HRE_WEIGHT_Q8_0, HRE_WEIGHT_Q4_1, HRE_WEIGHT_Q8_0, HRE_WEIGHT_F32},
     1,
     1,
     NULL},
    {"qwen2",
     3,
     512,
     512,
     8,
     2,
     64,
     333,
     64,
     {HRE_WEIGHT_Q6_K, HRE_WEIGHT_Q4_K, HRE_WEIGHT_Q6_K, HRE_WEIGHT_BF16},
     0,
     1,
     "yarn"},
};
#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static const char *python;

static void make_ids(uint32_t *ids, uint32_t n, uint32_t vocab, uint64_t seed)
{
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = gguf_random(&seed) % vocab;
    }
}

static void make_model(const struct gguf_shape *shape, char path[RUN_PATH_BYTES])
{
    struct gguf_bytes file = gguf_model(shape, 11);

    run_temp_path(path, "model.gguf");
    assert_int_equal(run_write_file(path, file.data, file.count), 0);
    free(file.data);
}

struct collected {
    float *logits; /* [n][vocab] */
    uint32_t vocab, next;
};

static void collect(void *context, uint32_t first, uint32_t n, const float *logits)
{
    struct collected *c = context;

    assert_int_equal(first, c->next);
    memcpy(c->logits + (size_t)first * c->vocab, logits, (size_t)n * c->vocab * sizeof(float));
    c->next += n;
}

/* All logits of a prefill. The caller frees. */
static float *prefill_all(struct run *run, const uint32_t *ids, uint32_t n)
{
    struct collected c = {malloc((size_t)n * run->vocab * sizeof(float)), run->vocab, 0};
    struct hre_prefill_options options;

    hre_prefill_options_init(&options);
    options.all_logits = collect;
    options.all_logits_context = &c;
    if (hre_session_prefill(run->session, ids, n, &options, NULL) != HR_OK) {
        fail_msg("prefill: %s", hre_last_error());
    }
    assert_int_equal(c.next, n);
    return c.logits;
}

static void assert_logits(const char *what, const float *got, const float *expected, size_t n,
                          float tolerance)
{
    for (size_t i = 0; i < n; i++) {
        if (!(fabsf(got[i] - expected[i]) <= tolerance)) {
            fail_msg("%s: logit %zu is %g, not %g", what, i, (double)got[i], (double)expected[i]);
        }
    }
}

static struct run_options options_for(const char *path)
{
    return (struct run_options){.model = path,
                                .tokens_max = 256,
                                .n_threads = 2,
                                .dtype = HR_DTYPE_F32,
                                .chunk_tokens = 512};
}

static void test_against_reference(void **state)
{
    char model[RUN_PATH_BYTES], tokens[RUN_PATH_BYTES], npy[RUN_PATH_BYTES];
    static const char *const levels[] = {"ref", "avx2", "avx512"};

    (void)state;
    if (!python) {
        skip();
    }
    run_temp_path(tokens, "ids.txt");
    run_temp_path(npy, "logits.npy");
    for (size_t i = 0; i < SHAPES; i++) {
        uint32_t ids[TOKENS];
        size_t count = 0;

        make_model(&shapes[i], model);
        make_ids(ids, TOKENS, shapes[i].vocab, 5 + i);
        assert_int_equal(run_write_ids(tokens, ids, TOKENS), 0);
        assert_int_equal(
            run_command("'%s' '%s/tools/reference_llama.py' '%s' '%s' --last 0 --output '%s'",
                        python, HR_SOURCE_DIR, model, tokens, npy),
            0);
        float *expected = run_read_npy(npy, &count);
        assert_non_null(expected);
        assert_int_equal(count, (size_t)TOKENS * shapes[i].vocab);
        for (size_t l = 0; l < 3; l++) {
            struct run_options options = options_for(model);
            const struct hre_ops *ops;
            struct run run;

            if (hre_ops_choose(levels[l], &ops) != HR_OK) {
                continue;
            }
            options.cpu_level = levels[l];
            run_open(&run, &options);
            float *got = prefill_all(&run, ids, TOKENS);
            assert_logits(shapes[i].architecture, got, expected, count, 2e-3f);
            free(got);
            run_close(&run);
        }
        free(expected);
    }
    unlink(model);
    unlink(tokens);
    unlink(npy);
}

/* Chunks of any length, and decoding one by one, are the same computation. */
static void test_chunks(void **state)
{
    static const uint32_t chunks[] = {1, 7, 33, 64};
    char model[RUN_PATH_BYTES];
    uint32_t ids[TOKENS];
    struct run run;

    (void)state;
    make_model(&shapes[0], model);
    make_ids(ids, TOKENS, shapes[0].vocab, 9);
    struct run_options options = options_for(model);
    run_open(&run, &options);
    float *expected = prefill_all(&run, ids, TOKENS);
    run_close(&run);
    for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
        float last[300];

        options.chunk_tokens = chunks[i];
        run_open(&run, &options);
        float *got = prefill_all(&run, ids, TOKENS);
        assert_logits("chunks", got, expected, (size_t)TOKENS * run.vocab, 1e-3f);
        free(got);
        run_close(&run);
        /* Without the other logits the last layer is cut short. */
        run_open(&run, &options);
        assert_int_equal(hre_session_prefill(run.session, ids, 50, NULL, last), HR_OK);
        assert_logits("last", last, expected + 49 * (size_t)run.vocab, run.vocab, 1e-3f);
        assert_int_equal(hre_session_prefill(run.session, ids + 50, 10, NULL, NULL), HR_OK);
        for (uint32_t t = 60; t < TOKENS; t++) {
            assert_int_equal(hre_session_decode(run.session, 0, ids[t], NULL, last, NULL), HR_OK);
            assert_logits("decode", last, expected + t * (size_t)run.vocab, run.vocab, 1e-3f);
        }
        assert_int_equal(hre_session_length(run.session, 0), TOKENS);
        run_close(&run);
    }
    free(expected);
    unlink(model);
}

/* Sequences of one session share the prefill and then go their own ways. */
static void test_sequences(void **state)
{
    char model[RUN_PATH_BYTES];
    uint32_t ids[TOKENS];
    float a[300], b[300];
    struct run run;
    struct hre_decode_options exact;

    (void)state;
    make_model(&shapes[0], model);
    make_ids(ids, TOKENS, shapes[0].vocab, 10);
    struct run_options options = options_for(model);
    options.n_sequences = 3;
    run_open(&run, &options);
    hre_decode_options_init(&exact);
    exact.mode = HR_ATTEND_EXACT;
    assert_int_equal(hre_session_prefill(run.session, ids, TOKENS - 2, NULL, NULL), HR_OK);
    for (uint32_t t = TOKENS - 2; t < TOKENS; t++) {
        struct hre_step_report report;

        assert_int_equal(hre_session_decode(run.session, 0, ids[t], &exact, a, &report), HR_OK);
        assert_int_equal(report.n_layers, 2);
        assert_true(report.total_ns >= report.attend_ns + report.append_ns);
        assert_true(report.sum.true_error < 0.0);
        assert_int_equal(hre_session_decode(run.session, 2, ids[t], NULL, b, NULL), HR_OK);
        assert_logits("third sequence", b, a, run.vocab, 1e-4f);
    }
    assert_int_equal(hre_session_length(run.session, 1), TOKENS - 2);
    assert_int_equal(hre_session_prefill(run.session, ids, 3, NULL, NULL), HR_ERR_STATE);
    assert_int_equal(hre_session_decode(run.session, 1, ids[5], NULL, b, NULL), HR_OK);
    run_close(&run);
    unlink(model);
}

static int cancel_at_once(void *context, uint32_t done, uint32_t total)
{
    *(uint32_t *)context = done;
    return total > 0;
}

static void test_refusals(void **state)
{
    char model[RUN_PATH_BYTES];
    uint32_t ids[TOKENS], done = 0;
    struct run run;
    struct hre_prefill_options prefill;
    struct hre_session_options session;
    hre_session_t *none = NULL;

    (void)state;
    make_model(&shapes[0], model);
    make_ids(ids, TOKENS, shapes[0].vocab, 12);
    struct run_options options = options_for(model);
    options.tokens_max = 40;
    options.chunk_tokens = 16;
    run_open(&run, &options);
    hre_prefill_options_init(&prefill);
    assert_int_equal(hre_session_prefill(run.session, ids, 41, NULL, NULL), HR_ERR_FULL);
    assert_int_equal(hre_session_prefill(run.session, ids, 0, NULL, NULL), HR_ERR_INVALID);
    ids[3] = 300;
    assert_int_equal(hre_session_prefill(run.session, ids, 10, NULL, NULL), HR_ERR_INVALID);
    assert_non_null(strstr(hre_last_error(), "300"));
    ids[3] = 3;
    prefill.struct_size = 4;
    assert_int_equal(hre_session_prefill(run.session, ids, 10, &prefill, NULL), HR_ERR_INVALID);
    assert_int_equal(hre_session_decode(run.session, 1, 0, NULL, NULL, NULL), HR_ERR_INVALID);
    hre_prefill_options_init(&prefill);
    prefill.progress = cancel_at_once;
    prefill.progress_context = &done;
    assert_int_equal(hre_session_prefill(run.session, ids, 40, &prefill, NULL), HR_ERR_CANCELED);
    assert_int_equal(done, 16);
    assert_int_equal(hre_session_decode(run.session, 0, 0, NULL, NULL, NULL), HR_ERR_STATE);
    hre_session_options_init(&session);
    assert_int_equal(hre_session_create(run.model, &session, &none), HR_ERR_INVALID);
    session.sequences = run.sequences;
    session.n_sequences = 1;
    session.tokens_max = 10;
    assert_int_equal(hre_session_create(run.model, &session, &none), HR_ERR_STATE);
    assert_non_null(strstr(hre_last_error(), "not empty"));
    assert_null(none);
    hre_session_destroy(NULL);
    run_close(&run);
    unlink(model);
}

static void refuse_model(const struct gguf_shape *shape, const char *find, const char *replace,
                         hr_status_t expected, const char *words)
{
    struct gguf_bytes file = gguf_model(shape, 1);
    char path[RUN_PATH_BYTES];
    hre_model_t *model = NULL;
    size_t n = strlen(find);

    for (size_t i = 0; i + n <= file.count; i++) {
        if (memcmp(file.data + i, find, n) == 0) {
            memcpy(file.data + i, replace, n);
        }
    }
    run_temp_path(path, "bad.gguf");
    assert_int_equal(run_write_file(path, file.data, file.count), 0);
    hr_status_t status = hre_model_open(path, NULL, &model);
    if (status != expected || !strstr(hre_last_error(), words) || !strstr(hre_last_error(), path)) {
        fail_msg("'%s' for '%s': %s: %s", replace, find, hr_status_name(status), hre_last_error());
    }
    assert_null(model);
    unlink(path);
    free(file.data);
}

static void test_bad_models(void **state)
{
    struct hre_model_options options;
    hre_model_t *model = NULL;
    struct gguf_shape narrow = shapes[0];

    (void)state;
    refuse_model(&shapes[0], "llama", "lambs", HR_ERR_UNSUPPORTED,
                 "'lambs' is not supported; llama, qwen2");
    refuse_model(&shapes[0], "general.architecture", "general.architectura", HR_ERR_CORRUPT,
                 "general.architecture");
    refuse_model(&shapes[0], "llama.block_count", "llama.block_cound", HR_ERR_CORRUPT,
                 "llama.block_count");
    refuse_model(&shapes[0], "blk.1.ffn_up.weight", "blk.1.ffn_vp.weight", HR_ERR_CORRUPT,
                 "'blk.1.ffn_up.weight' is missing");
    refuse_model(&shapes[0], "token_embd", "taken_embd", HR_ERR_CORRUPT, "token_embd.weight");
    refuse_model(&shapes[2], "linear", "longer", HR_ERR_UNSUPPORTED, "'longer'");
    narrow.kv_heads = 3;
    refuse_model(&narrow, "llama", "llama", HR_ERR_CORRUPT, "kv-heads");
    narrow = shapes[0];
    narrow.head_dim = 512;
    narrow.n_rot = 512;
    refuse_model(&narrow, "llama", "llama", HR_ERR_CORRUPT, "key_length");
    assert_int_equal(hre_model_open("/nowhere/model.gguf", NULL, &model), HR_ERR_NOTFOUND);
    assert_int_equal(hre_model_open(NULL, NULL, &model), HR_ERR_INVALID);
    hre_model_options_init(&options);
    options.struct_size = 1;
    assert_int_equal(hre_model_open("tiny", &options, &model), HR_ERR_INVALID);
    hre_model_options_init(&options);
    options.cpu_level = "none";
    assert_int_equal(hre_model_open("tiny", &options, &model), HR_ERR_INVALID);
    hre_model_options_init(&options);
    options.n_threads = 100000;
    assert_int_equal(hre_model_open("tiny", &options, &model), HR_ERR_INVALID);
    assert_null(model);
    hre_model_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_sequences),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_bad_models),
        cmocka_unit_test(test_against_reference),
    };

    python = run_python();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
