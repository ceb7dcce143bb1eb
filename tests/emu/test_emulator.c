/* The emulator itself: right kernels run clean in every order; each fault is reported with the
 * thread and the line. */
#include "tests/kernels/kernel_test.h"

#include <sys/wait.h>

#include "kernels/emu/emu_api.h"
#include "tests/emu/faulty.h"

#define N 64u

static float *x, *out;

static int setup(void **state)
{
    (void)state;
    hri_emu_set_order(HRI_EMU_FORWARD, 0);
    x = hri_emu_alloc(4 * N * sizeof *x);
    out = hri_emu_alloc(4 * N * sizeof *out);
    for (unsigned i = 0; i < 4 * N; i++)
        x[i] = (float)i;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    hri_emu_free(x);
    hri_emu_free(out);
    hri_emu_error_clear();
    return 0;
}

/* Whether accesses are watched by the emulator; otherwise AddressSanitizer does it. */
static bool hooked(void)
{
    return hri_emu_hooked() != 0;
}

/* What the hooks see is the sanitizer's where one is built in, and the other way round. */
static void needs_hooks(bool with)
{
    if (hooked() == with)
        return;
    print_message("skipped: this build checks accesses %s\n",
                  hooked() ? "by the emulator's hooks" : "by AddressSanitizer");
    skip();
}

/* The line of faulty.cu that carries a mark. */
static unsigned line_of(const char *mark)
{
    char text[256], want[64];
    unsigned line = 0, found = 0;
    FILE *file = fopen(HR_SOURCE_DIR "/tests/emu/faulty.cu", "r");
    assert_non_null(file);
    snprintf(want, sizeof want, "/* mark: %s */", mark);
    while (fgets(text, sizeof text, file)) {
        line++;
        if (strstr(text, want))
            found = line;
    }
    fclose(file);
    assert_true(found > 0);
    return found;
}

static void expect_text(const char *part)
{
    const char *error = hri_emu_error();
    if (!error || !strstr(error, part))
        fail_msg("expected '%s' in: %s", part, error ? error : "no report");
}

static void expect_line(const char *mark)
{
    char text[64];
    snprintf(text, sizeof text, "faulty.cu:%u", line_of(mark));
    expect_text(text);
}

static void test_right_kernels_run_clean(void **state)
{
    (void)state;
    for (int order = HRI_EMU_FORWARD; order <= HRI_EMU_SHUFFLED; order++) {
        hri_emu_set_order((enum hri_emu_order)order, 7);
        assert_int_equal(faulty_sum(x, out, N, FAULT_NONE), 0);
        assert_true(out[0] == 2016.0f);
        assert_int_equal(faulty_barrier(out, FAULT_NONE), 0);
        assert_int_equal(faulty_bounds(x, out, N, FAULT_NONE), 0);
        assert_true(out[63] == 63.0f);
        assert_int_equal(faulty_async(x, out, FAULT_NONE), 0);
        assert_true(out[0] == x[252] + x[253] + x[254] + x[255]);
        assert_int_equal(faulty_bulk(x, out, FAULT_NONE), 0);
        assert_true(out[0] == x[252] + 1 && out[1] == x[253]);
    }
    assert_null(hri_emu_error());
    struct hri_emu_counts counts = hri_emu_counts_take();
    assert_true(counts.launches == 15 && counts.blocks == 15);
    assert_true(counts.barriers > 0 && counts.warp_operations > 0);
    assert_int_equal(counts.shared_bytes_most, 64 * 16 + 8);
    assert_int_equal(counts.accesses > 0, hooked());
}

static void test_last_block(void **state)
{
    (void)state;
    float *parts = hri_emu_alloc(N * sizeof *parts);
    unsigned *arrived = hri_emu_alloc(sizeof *arrived);
    *arrived = 0;
    for (int order = HRI_EMU_FORWARD; order <= HRI_EMU_SHUFFLED; order++) {
        hri_emu_set_order((enum hri_emu_order)order, 3);
        assert_int_equal(faulty_last_block(x, parts, arrived, out, 33), 0);
        assert_true(out[0] == 528.0f);
        assert_int_equal(*arrived, 0);
    }
    hri_emu_free(parts);
    hri_emu_free(arrived);
}

static void test_divergent_barrier(void **state)
{
    (void)state;
    assert_int_not_equal(faulty_barrier(out, FAULT_DIVERGENT), 0);
    expect_text("divergent barrier");
    expect_text("threads 0-39 wait at");
    expect_text("threads 40-63 wait at");
    expect_line("barrier");
    expect_line("other barrier");
}

static void test_return_before_barrier(void **state)
{
    (void)state;
    assert_int_not_equal(faulty_barrier(out, FAULT_EARLY_RETURN), 0);
    expect_text("divergent barrier");
    expect_text("threads 40-63 returned");
    expect_line("barrier");
}

static void test_divergent_warp(void **state)
{
    (void)state;
    assert_int_not_equal(faulty_barrier(out, FAULT_SHUFFLE), 0);
    expect_text("divergent warp operation");
    expect_line("shuffle");
    expect_line("lonely");
}

static void test_sticky_until_cleared(void **state)
{
    (void)state;
    assert_int_not_equal(faulty_barrier(out, FAULT_EARLY_RETURN), 0);
    assert_int_not_equal(faulty_sum(x, out, N, FAULT_NONE), 0);
    expect_text("barrier_kernel");
    hri_emu_error_clear();
    assert_int_equal(faulty_sum(x, out, N, FAULT_NONE), 0);
}

static void test_unwritten_shared(void **state)
{
    (void)state;
    needs_hooks(true);
    assert_int_not_equal(faulty_sum(x, out, N, FAULT_UNWRITTEN), 0);
    expect_text("shared memory that nobody wrote");
    expect_text("thread 5 ");
    expect_line("read");
    /* and what it read was poison, with or without the hooks */
}

static void test_poison(void **state)
{
    (void)state;
    needs_hooks(false);
    assert_int_equal(faulty_sum(x, out, N, FAULT_UNWRITTEN), 0);
    assert_true(isnan(out[0]));
}

static void test_race(void **state)
{
    (void)state;
    needs_hooks(true);
    for (int order = HRI_EMU_FORWARD; order <= HRI_EMU_BACKWARD; order++) {
        hri_emu_error_clear();
        hri_emu_set_order((enum hri_emu_order)order, 0);
        assert_int_not_equal(faulty_sum(x, out, N, FAULT_NO_BARRIER), 0);
        expect_line("read");
        if (order ==
            HRI_EMU_BACKWARD) { /* the writers came first: seen although the sum is right */
            expect_text("race: read of shared byte");
            expect_line("write");
        } else {
            expect_text("nobody wrote");
        }
    }
}

static void test_out_of_bounds(void **state)
{
    (void)state;
    needs_hooks(true);
    struct {
        int fault;
        const char *text, *mark;
    } cases[] = {
        {FAULT_SHARED_BOUNDS, "out of bounds of shared memory", "shared write"},
        {FAULT_READ_BOUNDS, "read of 4 bytes out of bounds: 0 bytes past the end", "far read"},
        {FAULT_WRITE_BOUNDS, "write of 4 bytes out of bounds: 12 bytes past the end", "far write"},
    };
    FOR_EACH(i, cases)
    {
        hri_emu_error_clear();
        float *small_x = hri_emu_alloc(N * sizeof *x), *small_out = hri_emu_alloc(N * sizeof *x);
        memcpy(small_x, x, N * sizeof *x);
        assert_int_not_equal(faulty_bounds(small_x, small_out, N, cases[i].fault), 0);
        expect_text(cases[i].text);
        expect_text("thread 63 ");
        expect_line(cases[i].mark);
        hri_emu_free(small_x);
        hri_emu_free(small_out);
    }
}

static void test_host_memory(void **state)
{
    (void)state;
    needs_hooks(true);
    float *host = malloc(N * sizeof *host);
    assert_non_null(host);
    memcpy(host, x, N * sizeof *host);
    assert_int_not_equal(faulty_bounds(host, out, N, FAULT_NONE), 0);
    expect_text("thread 0 ");
    expect_line("far read");
    hri_emu_error_clear();
    hri_emu_register(host, N * sizeof *host);
    assert_int_equal(faulty_bounds(host, out, N, FAULT_NONE), 0);
    hri_emu_unregister(host);
    free(host);
}

static void test_alignment(void **state)
{
    (void)state;
    needs_hooks(true);
    assert_int_not_equal(faulty_bounds(x, out, N, FAULT_ALIGNMENT), 0);
    expect_text("not aligned");
    expect_line("misaligned");
}

static void test_copies_without_wait(void **state)
{
    (void)state;
    needs_hooks(true);
    assert_int_not_equal(faulty_async(x, out, FAULT_NO_WAIT), 0);
    expect_text("nobody wrote");
    expect_line("tile read");
    hri_emu_error_clear();
    assert_int_not_equal(faulty_bulk(x, out, FAULT_NO_WAIT), 0);
    expect_text("nobody wrote");
    expect_line("bulk read");
}

static void test_bulk_bytes(void **state)
{
    (void)state;
    assert_int_not_equal(faulty_bulk(x, out, FAULT_BULK_BYTES), 0);
    expect_text("expects 1040 bytes, 1024 are on their way");
}

static void test_bad_launch(void **state)
{
    (void)state;
    assert_int_not_equal(faulty_launch(1025, 0), 0);
    expect_text("1025 threads");
    hri_emu_error_clear();
    assert_int_not_equal(faulty_launch(32, 300000), 0);
    expect_text("300000 bytes");
}

static void test_graph(void **state)
{
    (void)state;
    hri_emu_capture_begin();
    assert_int_equal(faulty_sum(x, out, N, FAULT_NONE), 0);
    assert_int_equal(faulty_sum(x, out + 1, 1, FAULT_NONE), 0);
    struct hri_emu_graph *graph = hri_emu_capture_end();
    assert_int_equal(hri_emu_graph_launches(graph), 2);
    assert_true(isnan(out[0])); /* recorded, not run */
    if (hri_emu_graph_replay(graph))
        fail_msg("%s", hri_emu_error());
    assert_true(out[0] == 2016.0f && out[1] == 0.0f);
    x[0] = 5;
    assert_int_equal(hri_emu_graph_replay(graph), 0);
    assert_true(out[0] == 2021.0f && out[1] == 5.0f);
    hri_emu_graph_free(graph);
}

static void test_mma(void **state)
{
    (void)state;
    struct hri_rng rng;
    hri_rng_seed(&rng, 11);
    int8_t *a = hri_emu_alloc(16 * 32), *b = hri_emu_alloc(8 * 32);
    int *c = hri_emu_alloc(16 * 8 * sizeof *c);
    uint16_t *ha = hri_emu_alloc(16 * 16 * 2), *hb = hri_emu_alloc(8 * 16 * 2);
    float *hc = hri_emu_alloc(16 * 8 * sizeof *hc);
    for (int i = 0; i < 16 * 32; i++)
        a[i] = (int8_t)hri_rng_below(&rng, 256);
    for (int i = 0; i < 8 * 32; i++)
        b[i] = (int8_t)hri_rng_below(&rng, 256);
    assert_int_equal(faulty_mma_s8(a, b, c), 0);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            int sum = 0;
            for (int k = 0; k < 32; k++)
                sum += a[i * 32 + k] * b[j * 32 + k];
            assert_int_equal(c[i * 8 + j], sum);
        }
    for (int f16 = 0; f16 < 2; f16++) {
        float wide_a[16 * 16], wide_b[8 * 16];
        fill_normal(&rng, wide_a, 16 * 16, 1);
        fill_normal(&rng, wide_b, 8 * 16, 1);
        to_dtype(ha, wide_a, f16 ? HR_DTYPE_F16 : HR_DTYPE_BF16, 16 * 16);
        to_dtype(hb, wide_b, f16 ? HR_DTYPE_F16 : HR_DTYPE_BF16, 8 * 16);
        assert_int_equal(faulty_mma_16(ha, hb, hc, f16), 0);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                double sum = 0;
                for (int k = 0; k < 16; k++)
                    sum += (double)wide_a[i * 16 + k] * (double)wide_b[j * 16 + k];
                assert_true(fabs(sum - (double)hc[i * 8 + j]) < 1e-5);
            }
    }
    hri_emu_free(a);
    hri_emu_free(b);
    hri_emu_free(c);
    hri_emu_free(ha);
    hri_emu_free(hb);
    hri_emu_free(hc);
}

/* Under AddressSanitizer the program ends at the access: in a child, whose last words are read. */
static void test_sanitizer_names_the_thread(void **state)
{
    (void)state;
    needs_hooks(false);
    int fds[2];
    static char text[1 << 16];
    size_t n = 0;
    assert_int_equal(pipe(fds), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(fds[1], 2);
        close(fds[0]);
        float *small = hri_emu_alloc(N * sizeof *x);
        memcpy(small, x, N * sizeof *x);
        faulty_bounds(small, out, N, FAULT_READ_BOUNDS);
        _exit(0);
    }
    close(fds[1]);
    for (ssize_t got; (got = read(fds[0], text + n, sizeof text - 1 - n)) > 0;)
        n += (size_t)got;
    close(fds[0]);
    int status;
    waitpid(child, &status, 0);
    char line[64];
    snprintf(line, sizeof line, "faulty.cu:%u", line_of("far read"));
    if (!strstr(text, "AddressSanitizer") || !strstr(text, line) || !strstr(text, "thread 63"))
        fail_msg("the sanitizer said: %s", text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(test_right_kernels_run_clean),
        TEST(test_last_block),
        TEST(test_divergent_barrier),
        TEST(test_return_before_barrier),
        TEST(test_divergent_warp),
        TEST(test_sticky_until_cleared),
        TEST(test_unwritten_shared),
        TEST(test_poison),
        TEST(test_race),
        TEST(test_out_of_bounds),
        TEST(test_host_memory),
        TEST(test_alignment),
        TEST(test_copies_without_wait),
        TEST(test_bulk_bytes),
        TEST(test_bad_launch),
        TEST(test_graph),
        TEST(test_mma),
        TEST(test_sanitizer_names_the_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
