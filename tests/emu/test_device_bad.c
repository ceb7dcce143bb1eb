/* What can be missing or break, as a caller of the library meets it: no GPU that can be used, too little of its memory, a GPU that is
 * lost at any moment. Whatever happens there, the rows are the host's: they are attended, appended to and saved. */
#include "tests/emu/device_bed.h"

#include "offload/store.h"

#define RECIPE "headrace:sketch=0,block=12,decode_segment=64,window=32"
#define N      160u /* tokens */
#define STEPS  2u

static const struct shape shape = {
    .n_layers = LAYERS, .n_q = 2 * KV, .n_kv = KV, .dk = D, .dv = D, .dtype = HR_DTYPE_BF16};
static const struct plan plain = {.recipe = RECIPE,
                                  .moved = 0.1,
                                  .device_bytes = 16u << 20,
                                  .host_bytes = 16u << 20,
                                  .dtype = HR_DTYPE_BF16};

static void test_absent(void **state)
{
    (void)state;
    const struct {
        struct device_emu_faults faults;
        const char *text;
        hr_status_t status;
    } cases[] = {{{.no_driver = true}, "no driver is installed", HR_ERR_UNSUPPORTED},
                 {{.count_error = DEVICE_EMU_OLD_DRIVER},
                  "the driver is too old: it is for CUDA 11.4, this build needs 13.0",
                  HR_ERR_UNSUPPORTED},
                 {{.no_device = true}, "no device", HR_ERR_UNSUPPORTED},
                 {{.no_code = true}, "no code for its architecture (", HR_ERR_UNSUPPORTED},
                 {{.memory_bytes = 1 << 20},
                  "16777216 bytes are wanted (device_bytes), 1048576 of 1048576 are free",
                  HR_ERR_NOMEM}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hr_runtime_t *rt = NULL;
        device_emu_faults = cases[i].faults;
        assert_fails(runtime_open(&plain, &rt), cases[i].status, cases[i].text);
        assert_null(rt);
        calm(NULL);
    }
}

/* Another program takes the memory between the two creates: the message has what is needed and for what, nothing stays behind, and the
 * runtime is as good as before. */
static void test_no_memory(void **state)
{
    (void)state;
    struct bed b = {.shape = shape};
    hr_sequence_t *seq = NULL;
    assert_ok(runtime_open(&plain, &b.rt));
    size_t most = 0;
    for (size_t bytes = 4096; seq == NULL; bytes += bytes / 2) {
        device_emu_faults.memory_bytes = bytes;
        const hr_status_t status = sequence_open(&b, &plain, &seq);
        if (status != HR_OK) {
            assert_int_equal(status, HR_ERR_NOMEM);
            assert_non_null(strstr(hr_last_error(), "out of memory: "));
            assert_non_null(strstr(hr_last_error(), " needs "));
            assert_int_equal(device_emu_counts().device_bytes, 0);
            most = bytes;
        }
    }
    assert_true(most > 4096);
    hr_sequence_destroy(seq);
    assert_ok(hr_runtime_destroy(b.rt));
}

/* ------------------------------------------------------------------------------------------- a loss */

static void text_make(struct bed *b)
{
    struct random r = {.state = 11};
    memset(b, 0, sizeof *b);
    b->shape = shape;
    b->k = malloc(sizeof(float) * TOKENS * KV * D);
    b->v = malloc(sizeof(float) * TOKENS * KV * D);
    b->q = malloc(sizeof(float) * TOKENS * shape.n_q * D);
    b->out = malloc(sizeof(float) * shape.n_q * D);
    assert_true(b->k && b->v && b->q && b->out);
    rows_make(&r, &b->shape, TOKENS, b->k, b->v);
    queries_make(&r, &b->shape, TOKENS, b->q);
}

static void text_free(struct bed *b)
{
    free(b->k);
    free(b->v);
    free(b->q);
    free(b->out);
}

/* The host's side goes on, and what is saved is whole. */
static void host_check(struct bed *b, const float *exact)
{
    char dir[] = "/tmp/device_bad_XXXXXX", home[64];
    float out[2 * KV * D];
    struct hr_attend_options options;
    assert_non_null(mkdtemp(dir));
    snprintf(home, sizeof home, "%s/s", dir);
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    assert_ok(attend_with(b, b->seq, 0, &options, out, NULL));
    if (log_lines > 0)
        assert_memory_equal(out, exact, sizeof out);
    for (size_t i = 0; i < sizeof out / sizeof *out; i++) /* else they may be the device's sums */
        assert_true(fabsf(out[i] - exact[i]) <= 1e-3f);
    append(b, 3);
    assert_ok(hr_sequence_save(b->seq, home, NULL));
    struct hr_session_info info = {.struct_size = sizeof info};
    assert_ok(hr_session_info_get(home, &info));
    assert_int_equal(info.n_tokens, N + 3);
    assert_ok(hr_session_remove(home));
    assert_int_equal(rmdir(dir), 0);
}

static void exact_make(struct bed *b, float *exact)
{
    struct plan p = plain;
    struct hr_attend_options options;
    p.device = "cpu";
    assert_ok(runtime_open(&p, &b->rt));
    assert_ok(sequence_open(b, &p, &b->seq));
    b->n = 0;
    append(b, N);
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    assert_ok(attend_with(b, b->seq, 0, &options, exact, NULL));
    hr_sequence_destroy(b->seq);
    assert_ok(hr_runtime_destroy(b->rt));
    calm(NULL);
}

/* Steps until one fails; then all do, with the same message. */
static bool steps_lost(struct bed *b)
{
    bool lost = false;
    for (uint32_t i = 0; i < STEPS * LAYERS; i++) {
        const hr_status_t status = attend_with(b, b->seq, i % LAYERS, NULL, b->out, NULL);
        assert_true(status == HR_ERR_DEVICE || (status == HR_OK && !lost));
        assert_true(status == HR_OK || strstr(hr_last_error(), "is lost") != NULL);
        lost = status != HR_OK;
    }
    return lost;
}

/* At every wait from the first one of the create to the last one of the last step. */
static void test_lost_anywhere(void **state)
{
    (void)state;
    struct bed b;
    float exact[2 * KV * D];
    bool lost = true;
    uint32_t at = 0, at_create = 0, at_steps = 0;
    text_make(&b);
    exact_make(&b, exact);
    for (; lost; at++) {
        calm(NULL);
        device_emu_faults.loss = true;
        device_emu_faults.waits_before_loss = at;
        hr_status_t status = runtime_open(&plain, &b.rt);
        if (status == HR_OK) {
            status = sequence_open(&b, &plain, &b.seq);
            if (status != HR_OK)
                assert_ok(hr_runtime_destroy(b.rt));
        }
        if (status != HR_OK) {
            assert_int_equal(status, HR_ERR_DEVICE);
            assert_non_null(strstr(hr_last_error(), "is lost"));
            at_create++;
            continue;
        }
        b.n = 0;
        append(&b, N);
        lost = steps_lost(&b);
        at_steps += lost;
        assert_int_equal(log_lines, lost);
        host_check(&b, exact); /* its exact attention may be what meets the loss */
        assert_true(log_lines == 1 || (!lost && log_lines == 0));
        lost = log_lines > 0;
        hr_sequence_destroy(b.seq);
        assert_ok(hr_runtime_destroy(b.rt));
        assert_int_equal(device_emu_counts().device_bytes, 0);
        assert_int_equal(device_emu_counts().pinned_bytes, 0);
    }
    assert_true(at_create > 0 && at_steps >= STEPS * LAYERS);
    text_free(&b);
}

/* While the host looks whether a step that may ask it for blocks has ended. */
static void test_lost_in_mail(void **state)
{
    (void)state;
    struct fault_io io;
    struct plan p = plain;
    struct bed b;
    float exact[2 * KV * D];
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    options.deadline_ns = 50000000; /* as long as the emulated kernels go on waiting */
    fault_io_init(&io);
    text_make(&b);
    exact_make(&b, exact);
    p.io = &io.ops;
    p.host_bytes = 128u << 10;
    assert_ok(runtime_open(&p, &b.rt));
    assert_ok(sequence_open(&b, &p, &b.seq));
    b.n = 0;
    append(&b, N);
    assert_true(b.seq->part->mailed);
    log_lines = 0; /* one line said where the file is */
    device_emu_faults.loss_asked = true;
    for (uint32_t i = 0; i < LAYERS; i++) {
        assert_int_equal(attend_with(&b, b.seq, i, &options, b.out, NULL), HR_ERR_DEVICE);
        assert_non_null(strstr(hr_last_error(), "is lost"));
    }
    assert_int_equal(log_lines, 1);
    host_check(&b, exact);
    hr_sequence_destroy(b.seq);
    assert_ok(hr_runtime_destroy(b.rt));
    text_free(&b);
}

int main(void)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup(test_absent, calm),
                                       cmocka_unit_test_setup(test_no_memory, calm),
                                       cmocka_unit_test_setup(test_lost_anywhere, calm),
                                       cmocka_unit_test_setup(test_lost_in_mail, calm)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
