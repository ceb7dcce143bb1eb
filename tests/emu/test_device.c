/* The device layer on the emulated device: order of the stream, graphs, budgets, and everything that can be
 * missing or go wrong. */
#include "tests/emu/device_emu.h"
#include "tests/test.h"

#include "base/half.h"
#include <headrace/headrace.h>
#include <sys/wait.h>
#include <unistd.h>

static char log_text[4096];
static unsigned log_lines;

static void log_keep(void *context, int level, const char *message)
{
    (void)context, (void)level;
    snprintf(log_text, sizeof log_text, "%s", message);
    log_lines++;
}

static struct hri_log the_log = {.fn = log_keep, .level_max = HRI_LOG_DEBUG};

static hr_status_t open_with(uint32_t ordinal, uint64_t budget, struct hri_device **device_out)
{
    const struct hri_device_options o = {
        .ops = device_emu_ops(), .ordinal = ordinal, .budget_bytes = budget, .log = &the_log};
    return hri_device_open(&o, device_out);
}

static struct hri_device *open_device(uint64_t budget)
{
    struct hri_device *device = NULL;
    assert_ok(open_with(0, budget, &device));
    return device;
}

static int calm(void **state)
{
    (void)state;
    device_emu_faults = (struct device_emu_faults){0};
    log_text[0] = 0;
    log_lines = 0;
    return 0;
}

static void test_missing(void **state)
{
    (void)state;
    struct hri_device *device = NULL;
    device_emu_faults.no_driver = true;
    assert_fails(open_with(0, 1 << 20, &device), HR_ERR_UNSUPPORTED, "no driver");
    device_emu_faults = (struct device_emu_faults){.count_error = DEVICE_EMU_OLD_DRIVER};
    assert_fails(open_with(0, 1 << 20, &device), HR_ERR_UNSUPPORTED,
                 "too old: it is for CUDA 11.4, this build needs 13.0");
    device_emu_faults = (struct device_emu_faults){.no_device = true};
    assert_fails(open_with(0, 1 << 20, &device), HR_ERR_UNSUPPORTED, "no device");
    device_emu_faults = (struct device_emu_faults){0};
    assert_fails(open_with(1, 1 << 20, &device), HR_ERR_UNSUPPORTED, "there are 1");
    device_emu_faults.no_code = true;
    assert_fails(open_with(0, 1 << 20, &device), HR_ERR_UNSUPPORTED,
                 "no code for its architecture");
    device_emu_faults = (struct device_emu_faults){.memory_bytes = 1 << 20};
    assert_fails(open_with(0, 2 << 20, &device), HR_ERR_NOMEM, "2097152 bytes are wanted");
    assert_null(device);
}

static void test_memory(void **state)
{
    (void)state;
    struct hri_device *device = open_device(1 << 20);
    struct hri_device_memory a = {0}, b = {0};
    assert_ok(hri_device_alloc(device, "summaries", 700000, &a));
    assert_int_equal((uintptr_t)a.base % 256, 0);
    assert_fails(hri_device_alloc(device, "frames", 700000, &b), HR_ERR_BUDGET,
                 "frames needs 700000, 700000 are in use");
    assert_null(b.base);
    assert_int_equal(hri_device_stats(device).bytes_held, 700000);
    hri_device_free(device, &a);
    device_emu_faults.memory_bytes = 500000; /* another program took it since */
    assert_fails(hri_device_alloc(device, "frames", 700000, &b), HR_ERR_NOMEM,
                 "frames needs 700000");
    device_emu_faults.memory_bytes = 0;
    assert_ok(hri_device_alloc(device, "frames", 1 << 20, &b));
    hri_device_free(device, &b);
    assert_int_equal(hri_device_stats(device).bytes_held, 0);
    assert_int_equal(hri_device_stats(device).bytes_peak, 1 << 20);
    hri_device_close(device);
}

/* Copies come in the stream's order; a pageable source may change after the call, a pinned one not before the wait. */
static void test_order(void **state)
{
    (void)state;
    struct hri_device *device = open_device(1 << 20);
    struct hri_device_memory memory = {0};
    struct hri_device_buffer buffer = {0};
    unsigned char pageable[64], back[64];
    assert_ok(hri_device_alloc(device, "a test", 256, &memory));
    assert_ok(hri_device_buffer_create(device, 64, &buffer));
    assert_true(buffer.pinned);
    memset(pageable, 1, sizeof pageable);
    assert_ok(hri_device_copy(device, memory.base, pageable, 64));
    memset(pageable, 2, sizeof pageable);
    assert_ok(hri_device_copy(device, buffer.base, memory.base, 64));
    assert_ok(hri_device_fill(device, memory.base, 3, 32));
    assert_int_equal(*(unsigned char *)buffer.base, 0);        /* not yet */
    assert_ok(hri_device_copy(device, back, memory.base, 64)); /* into pageable memory: now */
    assert_int_equal(back[0], 3);
    assert_int_equal(back[32], 1);
    assert_ok(hri_device_wait(device));
    assert_int_equal(*(unsigned char *)buffer.base, 1);
    const unsigned char rows[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    assert_ok(hri_device_copy_rows(device, memory.base, 8, rows, 4, 2, 3));
    assert_ok(hri_device_copy(device, back, memory.base, 24));
    assert_int_equal(back[8], 4);
    assert_int_equal(back[17], 9);
    assert_int_equal(back[10], 3); /* between rows */
    hri_device_buffer_destroy(device, &buffer);
    hri_device_free(device, &memory);
    hri_device_close(device);
}

/* A recorded launch runs with what lies in memory when it is replayed. */
static void test_graph(void **state)
{
    (void)state;
    struct hri_device *device = open_device(1 << 20);
    const struct hri_device_ops *ops = hri_device_ops(device);
    void *stream = hri_device_stream(device), *graph = NULL;
    struct hri_device_memory memory = {0};
    assert_ok(hri_device_alloc(device, "a test", 4096, &memory));
    struct hri_device_carve c = {memory.base, 0};
    float *k = hri_device_carve(&c, 16, 4), *v = hri_device_carve(&c, 16, 4);
    uint16_t *tail = hri_device_carve(&c, 4 * 32, 2);
    uint32_t *length = hri_device_carve(&c, 1, 4), *bad = hri_device_carve(&c, 1, 4);
    const struct hri_cuda_heads heads = {1, 1, 16, 16};
    const struct hri_cuda_append_args append = {.k = k,
                                                .v = v,
                                                .k_token_stride = 16,
                                                .k_head_stride = 16,
                                                .v_token_stride = 16,
                                                .v_head_stride = 16,
                                                .from = HR_DTYPE_F32,
                                                .to = HR_DTYPE_BF16,
                                                .tail = tail,
                                                .capacity = 4,
                                                .length = length,
                                                .bad = bad,
                                                .advance = 1};
    assert_ok(hri_device_fill(device, memory.base, 0, 4096));
    assert_ok(hri_device_check(device, ops->capture_begin(stream), "recording"));
    assert_int_equal(ops->launch->append(&append, heads, 1, stream), 0);
    assert_ok(hri_device_check(device, ops->capture_end(stream, &graph), "recording"));
    for (uint32_t t = 0; t < 3; t++) {
        float row[16];
        for (uint32_t j = 0; j < 16; j++)
            row[j] = (float)(t + 1);
        assert_ok(hri_device_copy(device, k, row, sizeof row));
        assert_ok(hri_device_check(device, ops->graph_launch(graph, stream), "a graph"));
    }
    uint16_t rows[4 * 32];
    uint32_t n = 0;
    assert_ok(hri_device_copy(device, rows, tail, sizeof rows));
    assert_ok(hri_device_copy(device, &n, length, 4));
    assert_int_equal(n, 3);
    for (uint32_t t = 0; t < 3; t++)
        assert_true(hri_f32_from_bf16(rows[t * 32]) == (float)(t + 1));
    ops->graph_destroy(graph);
    hri_device_free(device, &memory);
    hri_device_close(device);
}

static void test_pinning(void **state)
{
    (void)state;
    struct hri_device *device = open_device(1 << 20);
    const size_t bytes = 5u << 20; /* three chunks */
    void *memory = aligned_alloc(4096, bytes);
    assert_non_null(memory);
    assert_true(hri_device_pin(device, memory, bytes));
    assert_int_equal(device_emu_counts().pinned_bytes, bytes);
    hri_device_unpin(device, memory, bytes);
    assert_int_equal(device_emu_counts().pinned_bytes, 0);
    device_emu_faults = (struct device_emu_faults){.pins_end = true, .pins_before = 5};
    assert_int_equal(log_lines, 0);
    assert_false(hri_device_pin(device, memory, bytes)); /* the third chunk is refused */
    assert_int_equal(device_emu_counts().pinned_bytes, 0);
    assert_non_null(strstr(log_text, "pinning"));
    struct hri_device_buffer buffer = {0};
    assert_ok(hri_device_buffer_create(device, 100, &buffer));
    assert_false(buffer.pinned);
    assert_int_equal(log_lines, 1); /* said once */
    hri_device_buffer_destroy(device, &buffer);
    free(memory);
    hri_device_close(device);
}

static void test_lost(void **state)
{
    (void)state;
    struct hri_device *device = open_device(1 << 20);
    struct hri_device_memory memory = {0}, more = {0};
    assert_ok(hri_device_alloc(device, "a test", 256, &memory));
    device_emu_faults = (struct device_emu_faults){.loss = true};
    assert_fails(hri_device_wait(device), HR_ERR_DEVICE, "is lost");
    assert_true(hri_device_is_lost(device));
    assert_int_equal(log_lines, 1);
    assert_fails(hri_device_wait(device), HR_ERR_DEVICE, "is lost");
    assert_fails(hri_device_alloc(device, "more", 16, &more), HR_ERR_DEVICE, "is lost");
    assert_fails(hri_device_fill(device, memory.base, 0, 16), HR_ERR_DEVICE, "is lost");
    assert_int_equal(log_lines, 1);
    hri_device_free(device, &memory);
    hri_device_close(device);
}

/* The host must not touch device memory: here that is a fault, as it is on a GPU. */
static void test_not_the_hosts(void **state)
{
    (void)state;
    struct hri_device *device = open_device(1 << 20);
    struct hri_device_memory memory = {0};
    assert_ok(hri_device_alloc(device, "a test", 256, &memory));
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile unsigned char *)memory.base = 1;
        _exit(0);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGSEGV);
    hri_device_free(device, &memory);
    hri_device_close(device);
}

int main(void)
{
    if (!device_emu_available()) {
        printf("skipped: no CUDA device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_missing, calm),       cmocka_unit_test_setup(test_memory, calm),
        cmocka_unit_test_setup(test_order, calm),         cmocka_unit_test_setup(test_graph, calm),
        cmocka_unit_test_setup(test_pinning, calm),       cmocka_unit_test_setup(test_lost, calm),
        cmocka_unit_test_setup(test_not_the_hosts, calm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
