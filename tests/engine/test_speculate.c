/* Draft and verify: the text is that of greedy decoding with exact attention, token by token, whatever the draft is worth. */
#include "tests/test.h"

#include "engine/sample.h"
#include "tests/engine/run_model.h"

enum { TEXT = 1500, KEYS = 24, WRITE = 60, VOCAB = 192, DRAFT_MAX = 12 };

static uint32_t ids[TEXT], answers[64];

static void open_at(struct run *run, const char *recipe, double moved, uint32_t prompt,
                    float *logits)
{
    struct run_options options = {.model = "tiny",
                                  .recipe = recipe,
                                  .moved = moved,
                                  .tokens_max = TEXT + WRITE,
                                  .n_threads = 2,
                                  .dtype = HR_DTYPE_F32};
    run_open(run, &options);
    assert_int_equal(hre_session_prefill(run->session, ids, prompt, NULL, logits), HR_OK);
}

static hr_status_t choose(void *context, const float *logits, uint32_t *id_out)
{
    unsigned *calls = context;
    (*calls)++;
    return hre_sample_greedy(logits, VOCAB, id_out);
}

/* The tokens that dense greedy decoding writes. */
static void write_dense(uint32_t prompt, uint32_t *out)
{
    struct run run;
    float logits[VOCAB];
    open_at(&run, "full", 0, prompt, logits);
    for (int i = 0; i < WRITE; i++) {
        out[i] = run_best(logits, VOCAB);
        assert_int_equal(hre_session_decode(run.session, 0, out[i], NULL, logits, NULL), HR_OK);
    }
    run_close(&run);
}

static struct hre_speculation_report write_drafted(uint32_t prompt, const char *recipe,
                                                   double moved, uint32_t draft, uint32_t *out)
{
    static float logits[(DRAFT_MAX + 1) * VOCAB];
    struct run run;
    unsigned calls = 0;
    uint32_t n = 1, got = 0, round[DRAFT_MAX + 1];
    struct hre_step_report steps[DRAFT_MAX];
    struct hre_speculation how = {.struct_size = sizeof how,
                                  .draft_tokens = draft,
                                  .logits = logits,
                                  .steps = steps,
                                  .choose = choose,
                                  .choose_context = &calls};
    struct hre_speculation_report report, sum = {0};
    open_at(&run, recipe, moved, prompt, logits);
    out[0] = run_best(logits, VOCAB);
    while (n < WRITE) {
        assert_int_equal(
            hre_session_speculate(run.session, 0, out[n - 1], &how, round, &got, &report), HR_OK);
        assert_true(got >= 1 && got <= draft + 1);
        assert_int_equal(report.accepted, got - 1);
        for (uint32_t i = 0; i < got && n < WRITE; i++) {
            out[n++] = round[i];
        }
        sum.drafted += report.drafted;
        sum.accepted += report.accepted;
    }
    assert_true(hre_session_length(run.session, 0) >= prompt + WRITE - 1);
    assert_int_equal(hre_session_length(run.session, 0), prompt + calls);
    run_close(&run);
    return sum;
}

static void compare(uint32_t prompt, const char *recipe, double moved, uint32_t draft)
{
    uint32_t want[WRITE], got[WRITE];
    write_dense(prompt, want);
    struct hre_speculation_report sum = write_drafted(prompt, recipe, moved, draft, got);
    for (int i = 0; i < WRITE; i++) {
        if (got[i] != want[i]) {
            fail_msg("%s, %u tokens drafted: token %d is %u, not %u", recipe, draft, i, got[i],
                     want[i]);
        }
    }
    printf("%s, %u at a time: %u of %u accepted\n", recipe, draft, sum.accepted, sum.drafted);
}

static void test_same_text(void **state)
{
    (void)state;
    assert_int_equal(hre_tiny_text(TEXT, KEYS, 5, ids, answers), HR_OK);
    compare(TEXT - 2 * KEYS + 1, "triforce", 0.05, 6);
    compare(TEXT - 2 * KEYS, "triforce", 0.05, 1);
    compare(TEXT - 2 * KEYS, "triforce", 0.2, 12);
    compare(TEXT - 2 * KEYS, "triforce:draft=0.1", 1, 4);
    compare(40, "triforce", 0.05, 6); /* all in the window */
    compare(300, "window", 0.05, 5);  /* a draft that knows next to nothing */
    compare(300, "headrace", 0.05, 5);
    compare(300, "full", 1, 7);
    compare(300, "triforce", 0.05, 0);
}

static void test_arguments(void **state)
{
    struct run run;
    float logits[2 * VOCAB];
    uint32_t out[2], n;
    unsigned calls = 0;
    struct hre_speculation how = {.struct_size = sizeof how,
                                  .draft_tokens = 1,
                                  .logits = logits,
                                  .choose = choose,
                                  .choose_context = &calls};
    (void)state;
    open_at(&run, "triforce", 0.05, 100, logits);
    assert_int_equal(hre_session_speculate(run.session, 1, 0, &how, out, &n, NULL), HR_ERR_INVALID);
    assert_int_equal(hre_session_speculate(run.session, 0, VOCAB, &how, out, &n, NULL),
                     HR_ERR_INVALID);
    how.draft_tokens = 512;
    assert_int_equal(hre_session_speculate(run.session, 0, 0, &how, out, &n, NULL), HR_ERR_INVALID);
    how.choose = NULL;
    assert_int_equal(hre_session_speculate(run.session, 0, 0, &how, out, &n, NULL), HR_ERR_INVALID);
    assert_int_equal(hre_session_truncate(run.session, 0, 101, 0), HR_ERR_INVALID);
    assert_int_equal(hre_session_truncate(run.session, 0, 50, ids[49]), HR_OK);
    assert_int_equal(hre_session_length(run.session, 0), 50);
    how.choose = choose;
    how.draft_tokens = 1;
    assert_int_equal(hre_session_speculate(run.session, 0, ids[50], &how, out, &n, NULL), HR_OK);
    run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_text),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
