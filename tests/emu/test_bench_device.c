/* The benchmarks of a GPU on the emulated device, tiny: they check their own results; without a device they are skipped. */
#include "tests/emu/device_emu.h"
#include "tests/test.h"

#include "bench/bench.h"
#include "bench/bench_device.h"
#include "bench/subjects.h"

static void note(const char *format, ...)
{
    (void)format;
}

static bool stop(void)
{
    return false;
}

static const struct hrb_benchmark benchmarks[] = {
    {"gather 32 KiB", "", 1, hrb_device_gather, 32768},
    {"gather 512", "", 1, hrb_device_gather, 512},
    {"decode", "", 1, hrb_device_decode, 16384},
    {"sparse", "", 1, hrb_device_sparse, 0},
    {"choice", "", 1, hrb_device_choice, 128},
    {"sketch", "", 1, hrb_device_sketch, 128},
    {"token", "", 1, hrb_device_token, 128},
    {"token of summaries", "", 1, hrb_device_token_summaries, 128},
    {"token beside full attention", "", 1, hrb_device_token_full, 128},
    {"graph", "", 1, hrb_device_graph, 128},
    {"mover", "", 1, hrb_device_mover, 0},
    {"index", "", 1, hrb_device_index, 8192},
};

static void run_all(bool there)
{
    const struct hrb_options options = {.quick = true, .n_threads = 1, .note = note, .stop = stop};
    for (size_t i = 0; i < sizeof benchmarks / sizeof *benchmarks; i++) {
        const struct hrb_benchmark *b = &benchmarks[i];
        struct hrb_result result = {0};
        int code = b->run(b, &options, &result);
        if (code != 0 || result.skipped == there)
            fail_msg("%s: code %d, skipped %d: %s", b->name, code, result.skipped, result.reason);
        assert_true(!there || (result.value > 0 && result.limit > 0 && result.unit != NULL));
        cJSON_Delete(result.details);
    }
}

static void test_run(void **state)
{
    (void)state;
    run_all(true);
    assert_int_equal(device_emu_counts().device_bytes, 0);
    assert_int_equal(device_emu_counts().pinned_bytes, 0);
}

static void test_absent(void **state)
{
    (void)state;
    device_emu_faults.no_driver = true;
    run_all(false);
    device_emu_faults = (struct device_emu_faults){0};
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_run), cmocka_unit_test(test_absent)};
    hrb_device_ops = device_emu_ops();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
