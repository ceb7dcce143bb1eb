/* What the tests of the CUDA kernels share. Buffers are the emulator's device memory, which ends at
 * its last byte; every case runs in three orders of threads and blocks. */
#ifndef EMU_TEST_H
#define EMU_TEST_H

#include "tests/kernels/kernel_test.h"

#include "kernels/cuda/launch.h"
#include "kernels/emu/emu_api.h"

static void *device_list[128];
static unsigned device_count;

static inline void *device_alloc(size_t bytes)
{
    assert_true(device_count < sizeof device_list / sizeof *device_list);
    return device_list[device_count++] = hri_emu_alloc(bytes);
}
static inline void *device_zero(size_t bytes)
{
    return memset(device_alloc(bytes), 0, bytes);
}
static inline void *device_copy(const void *from, size_t bytes)
{
    void *to = device_alloc(bytes);
    return bytes ? memcpy(to, from, bytes) : to;
}
static inline float *device_normal(struct hri_rng *rng, size_t n, double deviation)
{
    float *x = device_alloc(n * sizeof *x);
    fill_normal(rng, x, n, deviation);
    return x;
}
static inline int8_t *device_codes(struct hri_rng *rng, size_t n)
{
    int8_t *codes = device_alloc(n);
    for (size_t i = 0; i < n; i++)
        codes[i] = (int8_t)((int)hri_rng_below(rng, 255) - 127);
    return codes;
}
static inline void device_free_all(void)
{
    while (device_count > 0)
        hri_emu_free(device_list[--device_count]);
}

/* A launch must not report anything. */
#define RUN(launch)                                                                                \
    do {                                                                                           \
        int run_status = (launch);                                                                 \
        if (run_status || hri_emu_error())                                                         \
            fail_msg("%s: %s: %s", case_text, #launch,                                             \
                     hri_emu_error() ? hri_emu_error() : "failed");                                \
    } while (0)

#define FOR_EACH_ORDER(order) for (int order = HRI_EMU_FORWARD; order <= HRI_EMU_SHUFFLED; order++)

static inline void set_order(int order)
{
    hri_emu_set_order((enum hri_emu_order)order, 1234567);
}

/* Head dimensions of the CUDA kernels, and query heads per kv-head. */
static const uint32_t cuda_dims[][2] = {{16, 16},   {64, 64},   {80, 80},  {96, 96},
                                        {128, 128}, {192, 128}, {256, 256}};
static const uint32_t cuda_groups[] = {1, 2, 3, 4, 5, 7, 8, 9, 16};

/* Small grids, so that strides over the data are walked more than once. */
static inline int small_machine(void **state)
{
    (void)state;
    if (!hri_emu_available()) {
        printf("skipped: no CUDA device\n");
        exit(77);
    }
    hri_cuda_set_machine((struct hri_cuda_machine){2, hri_emu_arch()});
    return 0;
}

static inline int clean_up(void **state)
{
    (void)state;
    device_free_all();
    hri_emu_error_clear();
    return 0;
}

#define EMU_TEST(name) cmocka_unit_test_teardown(name, clean_up)

#endif
