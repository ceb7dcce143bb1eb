/*
 * SmolLM2-135M-Instruct against tools/reference_llama.py: logits within 2e-2, the same greedy
 * tokens, dense negative log-likelihood equal to 1e-3. Wants the 98 MB model and Python with NumPy;
 * counts as skipped without them.
 */
#include "tests/test.h"

#include <math.h>
#include <unistd.h>

#include "tests/engine/run_model.h"

#define TOKENS 160
#define GREEDY 12

static char model[RUN_PATH_BYTES], tokens[RUN_PATH_BYTES], output[RUN_PATH_BYTES];
static const char *python;
static uint32_t ids[TOKENS];

/* Ids of words are ordinary text to nobody, but they repeat, so that the model has something to
 * predict. */
static void make_ids(void)
{
    uint64_t x = 12345;

    for (uint32_t i = 0; i < TOKENS; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        ids[i] = i >= 40 && i % 40 < 30 ? ids[i - 40] : 300 + (uint32_t)(x >> 40) % 8000;
    }
}

static struct run_options options_of(uint32_t chunk)
{
    return (struct run_options){.model = model,
                                .tokens_max = TOKENS + GREEDY,
                                .n_threads = 2,
                                .dtype = HR_DTYPE_F32,
                                .chunk_tokens = chunk};
}

struct nll {
    double sum;
    uint32_t vocab;
};

static void add_nll(void *context, uint32_t first, uint32_t n, const float *logits)
{
    struct nll *nll = context;

    for (uint32_t i = 0; i < n && first + i + 1 < TOKENS; i++) {
        nll->sum += run_nll(logits + (size_t)i * nll->vocab, nll->vocab, ids[first + i + 1]);
    }
}

static void test_logits(void **state)
{
    struct run run;
    size_t count = 0;

    (void)state;
    assert_int_equal(run_command("'%s' '%s/tools/reference_llama.py' '%s' '%s' --output '%s'",
                                 python, HR_SOURCE_DIR, model, tokens, output),
                     0);
    float *expected = run_read_npy(output, &count);
    assert_non_null(expected);
    struct run_options options = options_of(64);
    run_open(&run, &options);
    assert_int_equal(count, run.vocab);
    float *logits = malloc(count * sizeof(float)), largest = 0.0f;
    assert_int_equal(hre_session_prefill(run.session, ids, TOKENS, NULL, logits), HR_OK);
    for (size_t i = 0; i < count; i++) {
        largest = fmaxf(largest, fabsf(logits[i] - expected[i]));
    }
    printf("largest difference of a logit: %.2g\n", (double)largest);
    assert_true(largest < 2e-2f);
    free(logits);
    free(expected);
    run_close(&run);
}

static void test_greedy(void **state)
{
    struct run run;

    (void)state;
    assert_int_equal(run_command("'%s' '%s/tools/reference_llama.py' '%s' '%s' --greedy %d > '%s'",
                                 python, HR_SOURCE_DIR, model, tokens, GREEDY, output),
                     0);
    FILE *file = fopen(output, "r");
    assert_non_null(file);
    struct run_options options = options_of(512);
    run_open(&run, &options);
    float *logits = malloc(run.vocab * sizeof(float));
    assert_int_equal(hre_session_prefill(run.session, ids, TOKENS, NULL, logits), HR_OK);
    for (uint32_t i = 0; i < GREEDY; i++) {
        unsigned expected;
        uint32_t best = run_best(logits, run.vocab);

        assert_int_equal(fscanf(file, "%u", &expected), 1);
        assert_int_equal(best, expected);
        assert_int_equal(hre_session_decode(run.session, 0, best, NULL, logits, NULL), HR_OK);
    }
    fclose(file);
    free(logits);
    run_close(&run);
}

static void test_nll(void **state)
{
    struct run run;
    struct hre_prefill_options prefill;
    double expected;

    (void)state;
    assert_int_equal(run_command("'%s' '%s/tools/reference_llama.py' '%s' '%s' --nll > '%s'",
                                 python, HR_SOURCE_DIR, model, tokens, output),
                     0);
    FILE *file = fopen(output, "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lf", &expected), 1);
    fclose(file);
    struct run_options options = options_of(100);
    run_open(&run, &options);
    struct nll nll = {0.0, run.vocab};
    hre_prefill_options_init(&prefill);
    prefill.all_logits = add_nll;
    prefill.all_logits_context = &nll;
    assert_int_equal(hre_session_prefill(run.session, ids, TOKENS, &prefill, NULL), HR_OK);
    printf("negative log-likelihood: %.6f, reference %.6f\n", nll.sum / (TOKENS - 1), expected);
    assert_true(fabs(nll.sum / (TOKENS - 1) - expected) < 1e-3);
    run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_nll),
    };

    python = run_python();
    if (!python || !run_find_model(model)) {
        return RUN_SKIPPED;
    }
    make_ids();
    run_temp_path(tokens, "ids.txt");
    run_temp_path(output, "output.npy");
    if (run_write_ids(tokens, ids, TOKENS) != 0) {
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(tokens);
    unlink(output);
    return failed;
}
