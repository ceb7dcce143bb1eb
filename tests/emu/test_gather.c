/* Blocks from host memory into frames: every byte of every job, and no other, on both paths. */
#include "tests/emu/emu_test.h"

static void run(uint32_t n_jobs, uint32_t frame_bytes, bool sizes, uint32_t n_blocks,
                enum hri_cuda_path path, int order)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, n_jobs + frame_bytes);
    const uint32_t heads = 2, blocks = 64, n_frames = n_jobs + 3;
    const size_t host_bytes = (size_t)heads * blocks * frame_bytes;
    unsigned char *host = malloc(host_bytes), *want = malloc((size_t)n_frames * frame_bytes);
    uint64_t *offset = device_alloc(heads * blocks * 8);
    uint32_t *bytes = device_alloc(heads * blocks * 4);
    struct hri_cuda_job *jobs = device_alloc((n_jobs + 1) * sizeof *jobs);
    assert_true(host && want);
    for (size_t i = 0; i < host_bytes; i++)
        host[i] = (unsigned char)hri_rng_below(&rng, 256);
    for (uint32_t i = 0; i < heads * blocks; i++) {
        offset[i] = (uint64_t)(heads * blocks - 1 - i) * frame_bytes;
        bytes[i] = sizes ? (uint32_t)hri_rng_below(&rng, frame_bytes / 16 + 1) * 16 : frame_bytes;
    }
    memset(want, 0xff, (size_t)n_frames * frame_bytes);
    for (uint32_t j = 0; j < n_jobs; j++) {
        jobs[j] = (struct hri_cuda_job){j % heads, (j * 7 + 3) % blocks, n_frames - 1 - j, j};
        const uint32_t at = jobs[j].head * blocks + jobs[j].block;
        memcpy(want + (size_t)jobs[j].frame * frame_bytes, host + offset[at], bytes[at]);
    }
    hri_emu_register(host, host_bytes);
    struct hri_cuda_gather_args a = {.jobs = jobs,
                                     .n_jobs = device_copy(&n_jobs, 4),
                                     .host = host,
                                     .host_offset = offset,
                                     .bytes = sizes ? bytes : NULL,
                                     .blocks_max = blocks,
                                     .frames = device_alloc((size_t)n_frames * frame_bytes),
                                     .frame_bytes = frame_bytes};
    set_order(order);
    RUN(hri_cuda_gather(&a, n_blocks, path, NULL));
    if (memcmp(a.frames, want, (size_t)n_frames * frame_bytes) != 0)
        fail_msg("%s: bytes differ", case_text);
    hri_emu_unregister(host);
    free(host);
    free(want);
    device_free_all();
}

static void test_every_byte(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 2, 5, 40}, bytes[] = {16, 512, 4096, 8192, 8208, 32768};
    const enum hri_cuda_path last = hri_emu_arch() >= 90 ? HRI_CUDA_PATH_BULK : HRI_CUDA_PATH_LOADS;
    for (enum hri_cuda_path path = HRI_CUDA_PATH_LOADS; path <= last; path++)
        FOR_EACH(n, counts)
    FOR_EACH(b, bytes)
    {
        if (counts[n] * bytes[b] > 400000)
            continue;
        CASE("gather %u frames of %u bytes, path %d", counts[n], bytes[b], path);
        run(counts[n], bytes[b], b % 2, (uint32_t)(n % 4), path, (int)(b % 3));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_every_byte)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
