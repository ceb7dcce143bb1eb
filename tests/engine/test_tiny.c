/* The embedded model: its texts and logits against tests/reference/tiny_reference.py, and its
 * answers. */
#include "tests/test.h"

#include <math.h>
#include <unistd.h>

#include "tests/engine/run_model.h"

#define TOKENS 600
#define KEYS   48
#define SCRIPT HR_SOURCE_DIR "/tests/reference/tiny_reference.py"
#define MODEL  HR_SOURCE_DIR "/engine/models/tiny.gguf"

static const char *python;
static uint32_t ids[4096], answers[64];

static struct run_options options_of(uint32_t n_tokens, const char *recipe)
{
    return (struct run_options){.model = "tiny",
                                .recipe = recipe,
                                .tokens_max = n_tokens,
                                .n_threads = 2,
                                .dtype = HR_DTYPE_F32};
}

static void test_info(void **state)
{
    hre_model_t *model;
    struct hr_sequence_options sequence;

    (void)state;
    assert_int_equal(hre_model_open("tiny", NULL, &model), HR_OK);
    const struct hre_model_info *info = hre_model_info(model);
    assert_string_equal(info->architecture, "headrace-tiny");
    assert_int_equal(info->n_layers, 4);
    assert_int_equal(info->vocab, 192);
    assert_int_equal(info->context_length, 65536);
    assert_int_equal(info->sliding_windows[0], 16);
    assert_int_equal(info->sliding_windows[1], 0);
    assert_true(info->rope_bases[0] == 1e4f && info->rope_bases[3] == 1e6f);
    hr_sequence_options_init(&sequence);
    hre_model_sequence_options(model, &sequence);
    assert_int_equal(sequence.n_layers, 4);
    assert_int_equal(sequence.n_q_heads, 4);
    assert_int_equal(sequence.n_kv_heads, 1);
    assert_int_equal(sequence.k_dim, 64);
    assert_int_equal(sequence.sliding_window[2], 16);
    assert_int_equal(sequence.rope[1].layout, HR_ROPE_HALF);
    assert_true(sequence.rope[1].frequencies[0] == 1.0f);
    assert_true(fabsf(sequence.rope[1].frequencies[16] - 1e-3f) < 1e-8f);
    assert_true(sequence.log_n[0] == 0.0f && sequence.log_n[4] > 0.0f);
    struct hre_gguf_string kind;
    assert_int_equal(hre_gguf_get_string(hre_model_gguf(model), "tokenizer.ggml.model", &kind),
                     HR_OK);
    assert_int_equal(kind.length, strlen("headrace-words"));
    hre_model_close(model);
}

static void test_text(void **state)
{
    char words[RUN_PATH_BYTES], wanted[RUN_PATH_BYTES], letter;
    unsigned number;
    int n = 0;

    (void)state;
    assert_int_equal(hre_tiny_text(600, 0, 1, ids, answers), HR_ERR_INVALID);
    assert_int_equal(hre_tiny_text(600, 65, 1, ids, answers), HR_ERR_INVALID);
    assert_int_equal(hre_tiny_text(10, 3, 1, ids, answers), HR_ERR_INVALID);
    assert_int_equal(hre_tiny_text(14, 3, 1, ids, answers), HR_OK);
    assert_int_equal(hre_tiny_text(TOKENS, KEYS, 7, ids, answers), HR_OK);
    for (uint32_t i = 0; i < KEYS; i++) {
        assert_int_equal(ids[TOKENS - 2 * KEYS + 2 * i + 1], answers[i]);
    }
    if (!python) {
        skip();
    }
    run_temp_path(words, "words.txt");
    run_temp_path(wanted, "answers.txt");
    assert_int_equal(
        run_command(
            "'%s' '%s' make-text --tokens %d --keys %d --seed 7 --output '%s' --answers '%s'",
            python, SCRIPT, TOKENS, KEYS, words, wanted),
        0);
    FILE *file = fopen(words, "r");
    for (; fscanf(file, " %c%u", &letter, &number) == 2; n++) {
        assert_int_equal(ids[n], number + (letter == 'k' ? 0 : letter == 'v' ? 64 : 128));
    }
    assert_int_equal(n, TOKENS);
    fclose(file);
    file = fopen(wanted, "r");
    for (n = 0; fscanf(file, " %c%u", &letter, &number) == 2; n++) {
        assert_int_equal(answers[n], number + 64);
    }
    assert_int_equal(n, KEYS);
    fclose(file);
    unlink(words);
    unlink(wanted);
}

static void test_logits(void **state)
{
    char tokens[RUN_PATH_BYTES], npy[RUN_PATH_BYTES];
    float logits[192];
    size_t count = 0;
    struct run run;

    (void)state;
    if (!python) {
        skip();
    }
    run_temp_path(tokens, "ids.txt");
    run_temp_path(npy, "logits.npy");
    assert_int_equal(hre_tiny_text(TOKENS, KEYS, 3, ids, answers), HR_OK);
    assert_int_equal(run_write_ids(tokens, ids, TOKENS), 0);
    assert_int_equal(run_command("'%s' '%s' '%s' '%s' --last 50 --output '%s'", python, SCRIPT,
                                 MODEL, tokens, npy),
                     0);
    float *expected = run_read_npy(npy, &count);
    assert_non_null(expected);
    assert_int_equal(count, 50 * 192);
    struct run_options options = options_of(TOKENS, "full");
    options.chunk_tokens = 100;
    run_open(&run, &options);
    assert_int_equal(hre_session_prefill(run.session, ids, TOKENS - 50, NULL, NULL), HR_OK);
    for (int t = 0; t < 50; t++) {
        assert_int_equal(
            hre_session_decode(run.session, 0, ids[TOKENS - 50 + t], NULL, logits, NULL), HR_OK);
        for (int i = 0; i < 192; i++) {
            if (!(fabsf(logits[i] - expected[t * 192 + i]) < 2e-2f)) {
                fail_msg("step %d logit %d: %g, not %g", t, i, (double)logits[i],
                         (double)expected[t * 192 + i]);
            }
        }
    }
    free(expected);
    run_close(&run);
    unlink(tokens);
    unlink(npy);
}

struct answered {
    uint32_t right;
    double predicted, actual, moved; /* means over the questions, where they are checked */
};

/* How many of the keys hidden in a text of n tokens are answered. */
static struct answered ask(const struct run_options *options, uint32_t n, int check)
{
    float logits[192];
    struct answered a = {0};
    struct run run;
    struct hre_prefill_options prefill;
    struct hre_decode_options decode;
    struct hre_step_report report;

    run_open(&run, options);
    hre_prefill_options_init(&prefill);
    prefill.settle = 1;
    hre_decode_options_init(&decode);
    decode.check_exact = check;
    assert_int_equal(hre_tiny_text(n, KEYS, 21, ids, answers), HR_OK);
    assert_int_equal(hre_session_prefill(run.session, ids, n - 2 * KEYS, &prefill, NULL), HR_OK);
    for (uint32_t i = 0; i < KEYS; i++) {
        const uint32_t *question = ids + n - 2 * KEYS + 2 * i;

        if (hre_session_decode(run.session, 0, question[0], &decode, logits, &report) != HR_OK ||
            hre_session_decode(run.session, 0, question[1], NULL, NULL, NULL) != HR_OK) {
            fail_msg("%s", hre_last_error());
        }
        a.right += run_best(logits, run.vocab) == answers[i];
        a.predicted += report.sum.predicted_error / KEYS;
        a.actual += report.sum.true_error / KEYS;
        uint64_t moved = report.sum.bytes_from_host + report.sum.bytes_from_file;
        a.moved += (double)moved / (double)(report.sum.body_bytes + 1) / KEYS;
    }
    run_close(&run);
    return a;
}

static void test_answers(void **state)
{
    struct run_options options = options_of(4096, "full");

    (void)state;
    assert_int_equal(ask(&options, 4096, 0).right, KEYS);
    options.recipe = "window";
    assert_true(ask(&options, 4096, 0).right < KEYS / 4);
    options.recipe = "headrace";
    options.moved = 0.02;
    struct answered a = ask(&options, 4096, 1);
    printf("headrace: %u right, moved %.4f, error %.3f predicted %.3f\n", a.right, a.moved,
           a.actual, a.predicted);
    assert_true(a.right >= KEYS - 2);
    assert_true(a.moved > 0.0 && a.moved <= 0.021);
    assert_true(a.actual > 0.0 && a.predicted > 0.0);
}

/* Of the sequences that get a prompt one is attended; the others' recipes learn from its queries all the same. */
static void test_recipes_learn_alike(void **state)
{
    enum { N = 2048 };
    float first[192], second[192];
    struct run run;
    struct run_options options = options_of(N, "headrace");
    struct hre_prefill_options prefill;

    (void)state;
    options.moved = 0.02;
    options.n_sequences = 2;
    run_open(&run, &options);
    hre_prefill_options_init(&prefill);
    prefill.settle = 1;
    assert_int_equal(hre_tiny_text(N, KEYS, 5, ids, answers), HR_OK);
    assert_int_equal(hre_session_prefill(run.session, ids, N - 2 * KEYS, &prefill, NULL), HR_OK);
    for (uint32_t t = N - 2 * KEYS; t < N; t++) {
        assert_int_equal(hre_session_decode(run.session, 0, ids[t], NULL, first, NULL), HR_OK);
        assert_int_equal(hre_session_decode(run.session, 1, ids[t], NULL, second, NULL), HR_OK);
        assert_memory_equal(first, second, sizeof first);
    }
    run_close(&run);
}

/* Whose threads do the library's work changes nothing. */
static void test_shared_threads(void **state)
{
    enum { N = 2048 };
    float logits[2][192];

    (void)state;
    for (int shared = 0; shared < 2; shared++) {
        struct run run;
        struct run_options options = options_of(N, "headrace");
        struct hre_prefill_options prefill;

        options.moved = 0.02;
        options.share_threads = shared;
        run_open(&run, &options);
        hre_prefill_options_init(&prefill);
        assert_int_equal(hre_tiny_text(N, KEYS, 7, ids, answers), HR_OK);
        assert_int_equal(hre_session_prefill(run.session, ids, N - 40, &prefill, NULL), HR_OK);
        for (uint32_t t = N - 40; t < N; t++) {
            assert_int_equal(hre_session_decode(run.session, 0, ids[t], NULL, logits[shared], NULL),
                             HR_OK);
        }
        run_close(&run);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_recipes_learn_alike),
        cmocka_unit_test(test_shared_threads),
    };

    python = run_python();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
