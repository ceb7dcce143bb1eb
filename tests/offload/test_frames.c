/* Frames against a naive model that knows nothing of replacement: pointers hold the right bytes,
 * and nothing moves within a step. */
#include "tests/offload/fault_io.h"
#include "tests/offload/lanes.h"

#include <errno.h>

#include "base/clock.h"
#include "offload/frames.h"

#define LANES       6u
#define CELL_BYTES  32768u
#define FRAME_BYTES 2560u
#define PER_CELL    (CELL_BYTES / FRAME_BYTES)
#define CELLS       10u
#define BLOCKS      (CELLS * PER_CELL)
#define FETCH_MAX   24u
#define FETCHES     LANES

struct one_fetch {
    struct hri_fetch fetch;
    struct hri_block_address blocks[FETCH_MAX];
    const void *where[FETCH_MAX];
    struct hri_read reads[FETCH_MAX];
    uint32_t read_block[FETCH_MAX];
};

struct bed {
    struct hri_alloc device;
    struct fault_io io;
    struct hri_store *store;
    struct model_lane lanes[LANES];
    struct hri_frames *frames;
    struct hri_rng rng;
    struct one_fetch fetches[FETCHES];
};

static void bed_make(struct bed *bed, uint64_t host_bytes, uint32_t n_frames, uint32_t n_transit)
{
    memset(bed, 0, sizeof *bed);
    fault_io_init(&bed->io);
    bed->io.ops.timeout_ns = 300000000;
    hri_alloc_init(&bed->device, "device tier", 0, NULL);
    hri_rng_seed(&bed->rng, test_seed(3));
    struct hri_store_options options = {.host_bytes = host_bytes,
                                        .file_dir =
                                            host_bytes > (8u << 20) ? NULL : model_dir(false),
                                        .file_bytes = 32u << 20,
                                        .io = &bed->io.ops};
    assert_ok(hri_store_create(&options, &bed->store));
    uint32_t blocks_max[LANES];
    for (uint32_t i = 0; i < LANES; i++) {
        model_create(bed->store, &bed->lanes[i], CELL_BYTES, HRI_LANE_BLOCKS, 0x100 + i);
        assert_ok(model_append(&bed->lanes[i], &bed->rng, CELLS));
        blocks_max[i] = BLOCKS;
    }
    assert_ok(hri_store_flush(bed->store));
    struct hri_frames_options frames = {
        .frame_bytes = FRAME_BYTES,
        .n_frames = n_frames,
        .transit_frames = n_transit,
        .n_lanes = LANES,
        .blocks_max = blocks_max,
        .device = &bed->device,
        .store = bed->store,
    };
    assert_ok(hri_frames_create(&frames, &bed->frames));
    assert_true(bed->device.live_bytes <= hri_frames_bytes(&frames));
}

static void bed_end(struct bed *bed)
{
    hri_frames_destroy(bed->frames);
    assert_int_equal(bed->device.live_bytes, 0);
    hri_store_destroy(bed->store);
}

static struct hri_block_address address_of(uint32_t block)
{
    return (struct hri_block_address){
        .block = block,
        .cell = block / PER_CELL,
        .offset = block % PER_CELL * FRAME_BYTES,
        .bytes = FRAME_BYTES - 8 * (block % 7), /* blocks are not all full */
    };
}

static void check_block(const struct bed *bed, uint32_t lane, uint32_t block, const void *bytes)
{
    struct hri_block_address at = address_of(block);
    if (!model_equal(bed->lanes[lane].seeds[at.cell], at.offset, bytes, at.bytes))
        fail_msg("wrong bytes: lane %u block %u", lane, block);
}

static hr_status_t begin(struct bed *bed, struct one_fetch *f, uint32_t lane,
                         const uint32_t *blocks, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        f->blocks[i] = address_of(blocks[i]);
    f->fetch = (struct hri_fetch){
        .lane_index = lane,
        .lane = bed->lanes[lane].lane,
        .blocks = f->blocks,
        .n_blocks = n,
        .where = f->where,
        .reads = f->reads,
        .read_block = f->read_block,
    };
    hr_status_t status = hri_frames_fetch_begin(bed->frames, &f->fetch);
    if (status == HR_OK)
        assert_int_equal(f->fetch.n_hits + f->fetch.n_misses, n);
    for (uint32_t i = 0; i < n && status == HR_OK; i++)
        if (f->where[i] != NULL)
            check_block(bed, lane, blocks[i], f->where[i]);
    return status;
}

/* Everything the step has handed out is still there and right. */
static void check_step(const struct bed *bed, uint32_t n_fetches)
{
    for (uint32_t k = 0; k < n_fetches; k++) {
        const struct hri_fetch *fetch = &bed->fetches[k].fetch;
        for (uint32_t i = 0; i < fetch->n_blocks; i++) {
            assert_non_null(fetch->where[i]);
            check_block(bed, fetch->lane_index, fetch->blocks[i].block, fetch->where[i]);
            assert_ptr_equal(
                hri_frames_peek(bed->frames, fetch->lane_index, fetch->blocks[i].block),
                fetch->where[i]);
        }
    }
}

static void random_step(struct bed *bed, uint32_t n_lanes, uint32_t n_max)
{
    uint32_t n_fetches = 0;
    hri_frames_expect(bed->frames,
                      (uint32_t)hri_rng_below(&bed->rng, 6)); /* in time more than there are */
    hri_frames_step_begin(bed->frames);
    for (uint32_t k = 0; k < n_lanes; k++) {
        uint32_t blocks[FETCH_MAX], n = (uint32_t)hri_rng_below(&bed->rng, n_max + 1);
        for (uint32_t i = 0; i < n; i++)
            blocks[i] =
                (uint32_t)hri_rng_below(&bed->rng, hri_rng_below(&bed->rng, 2) ? 20 : BLOCKS);
        uint32_t lane = (uint32_t)hri_rng_below(&bed->rng, LANES);
        assert_ok(begin(bed, &bed->fetches[n_fetches++], lane, blocks, n));
    }
    /* In any order. */
    for (uint32_t k = n_fetches; k-- > 0;)
        assert_ok(hri_frames_fetch_wait(bed->frames, &bed->fetches[k].fetch, 0));
    check_step(bed, n_fetches);
    if (hri_rng_below(&bed->rng, 20) == 0)
        hri_frames_truncate(bed->frames, (uint32_t)hri_rng_below(&bed->rng, LANES),
                            (uint32_t)hri_rng_below(&bed->rng, BLOCKS));
}

static void run_steps(uint64_t host_bytes, uint32_t n_frames, uint32_t n_transit, uint32_t n_lanes,
                      uint32_t n_max)
{
    struct bed *bed = malloc(sizeof *bed);
    bed_make(bed, host_bytes, n_frames, n_transit);
    uint64_t before = bed->device.alloc_count;
    for (int step = 0; step < 200; step++)
        random_step(bed, n_lanes, n_max);
    assert_int_equal(bed->device.alloc_count, before);
    struct hri_frames_stats stats;
    hri_frames_stats(bed->frames, &stats);
    assert_true(stats.n_used <= stats.n_frames);
    if (n_frames == 0)
        assert_int_equal(stats.n_used, 0);
    bed_end(bed);
    free(bed);
}

static void test_random_steps(void **state)
{
    (void)state;
    run_steps(0, 64, 80, 3, FETCH_MAX);
    run_steps(0, 400, 0, 3, FETCH_MAX);
    run_steps(128 << 10, 30, 60, 2, FETCH_MAX);
    run_steps(0, 0, 72, 3, FETCH_MAX);         /* transit only */
    run_steps(16 << 20, 50, 30, 3, FETCH_MAX); /* host memory only */
    run_steps(16 << 20, 0, 24, 1, FETCH_MAX);
}

static void test_doubles(void **state)
{
    (void)state;
    struct bed *bed = malloc(sizeof *bed);
    bed_make(bed, 0, 4, 0);
    hri_frames_step_begin(bed->frames);
    uint32_t blocks[] = {7, 8, 7, 7, 9, 8};
    struct one_fetch *a = &bed->fetches[0], *b = &bed->fetches[1];
    assert_ok(begin(bed, a, 2, blocks, 6));
    assert_int_equal(a->fetch.n_misses, 3);
    assert_ok(begin(bed, b, 2, blocks, 2));
    assert_int_equal(b->fetch.n_misses, 0);
    assert_ok(hri_frames_fetch_wait(bed->frames, &b->fetch, 0));
    assert_ok(hri_frames_fetch_wait(bed->frames, &a->fetch, 0));
    check_step(bed, 2);
    assert_ptr_equal(a->where[0], a->where[2]);
    bed_end(bed);
    free(bed);
}

/* More than there is room for: nothing starts, and the step goes on. */
static void test_too_many(void **state)
{
    (void)state;
    struct bed *bed = malloc(sizeof *bed);
    bed_make(bed, 0, 6, 2);
    uint32_t blocks[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    struct one_fetch *f = &bed->fetches[0];
    hri_frames_step_begin(bed->frames);
    assert_int_equal(begin(bed, f, 0, blocks, 9), HR_ERR_FULL);
    hri_frames_step_begin(bed->frames);
    assert_ok(begin(bed, f, 0, blocks, 8));
    assert_ok(hri_frames_fetch_wait(bed->frames, &f->fetch, 0));
    check_step(bed, 1);
    assert_int_equal(begin(bed, &bed->fetches[1], 1, blocks, 1), HR_ERR_FULL);
    hri_frames_step_begin(bed->frames);
    assert_ok(begin(bed, f, 1, blocks, 8));
    assert_ok(hri_frames_fetch_wait(bed->frames, &f->fetch, 0));
    check_step(bed, 1);
    uint32_t bad[] = {BLOCKS};
    assert_int_equal(begin(bed, f, 1, bad, 1), HR_ERR_INVALID);
    assert_int_equal(begin(bed, f, LANES - 1, blocks, 0), HR_OK);
    bed_end(bed);
    free(bed);
}

/* LRU where the pool holds a turn of the layers; where it does not, a part of the loop stays. */
static void test_replacement(void **state)
{
    (void)state;
    struct bed *bed = malloc(sizeof *bed);
    uint32_t blocks[] = {0, 1, 2, 3};
    for (int small = 0; small < 2; small++) {
        bed_make(bed, 0, small ? 12 : 24, 0);
        struct hri_frames_stats stats;
        for (int turn = 0; turn < 10; turn++)
            for (uint32_t lane = 0; lane < LANES; lane++) {
                hri_frames_step_begin(bed->frames);
                assert_ok(begin(bed, &bed->fetches[0], lane, blocks, 4));
                assert_ok(hri_frames_fetch_wait(bed->frames, &bed->fetches[0].fetch, 0));
            }
        hri_frames_stats(bed->frames, &stats);
        double rate = (double)stats.hits / (double)(stats.hits + stats.misses);
        if (small)
            assert_true(rate > 0.25); /* LRU: 0 */
        else
            assert_true(rate == 0.9);
        bed_end(bed);
    }
    free(bed);
}

/* A late block and a failed block have no place and lose their frames; the next fetch gets them. */
static void test_late_and_failed(void **state)
{
    (void)state;
    struct bed *bed = malloc(sizeof *bed);
    uint32_t blocks[] = {0, 20, 40, 60, 80};
    bed_make(bed, 0, 40, 0);
    struct one_fetch *f = &bed->fetches[0];
    for (int turn = 0; turn < 20; turn++) {
        hri_frames_step_begin(bed->frames);
        assert_ok(begin(bed, f, 0, blocks, 5));
        hr_status_t status = hri_frames_fetch_wait(bed->frames, &f->fetch, hri_now_ns() + 1);
        assert_true(status == HR_OK || status == HR_ERR_TIMEOUT);
        for (uint32_t i = 0; i < 5; i++) {
            assert_ptr_equal(f->where[i], hri_frames_peek(bed->frames, 0, blocks[i]));
            if (f->where[i] != NULL)
                check_block(bed, 0, blocks[i], f->where[i]);
        }
        hri_frames_truncate(bed->frames, 0, 0);
    }
    fault_io_arm(&bed->io, false, FAULT_ERROR, EIO, 0, 1000000);
    hri_frames_step_begin(bed->frames);
    assert_ok(begin(bed, f, 1, blocks, 5));
    assert_fails(hri_frames_fetch_wait(bed->frames, &f->fetch, 0), HR_ERR_IO, "lane 101");
    for (uint32_t i = 0; i < 5; i++) {
        assert_null(f->where[i]);
        assert_null(hri_frames_peek(bed->frames, 1, blocks[i]));
    }
    fault_io_arm(&bed->io, false, FAULT_FLIP, 0, 0, 1000000);
    hri_frames_step_begin(bed->frames);
    assert_ok(begin(bed, f, 1, blocks, 5));
    assert_int_equal(hri_frames_fetch_wait(bed->frames, &f->fetch, 0), HR_ERR_CORRUPT);
    fault_io_disarm(&bed->io);
    hri_frames_step_begin(bed->frames);
    assert_ok(begin(bed, f, 1, blocks, 5));
    assert_ok(hri_frames_fetch_wait(bed->frames, &f->fetch, 0));
    check_step(bed, 1);
    bed_end(bed);
    free(bed);
}

static void test_create(void **state)
{
    (void)state;
    struct hri_alloc device;
    hri_alloc_init(&device, "device tier", 0, NULL);
    struct hri_store_options store_options = {.host_bytes = 1 << 20};
    struct hri_store *store;
    assert_ok(hri_store_create(&store_options, &store));
    uint32_t blocks_max[2] = {10, 0};
    struct hri_frames_options options = {.frame_bytes = 64,
                                         .n_frames = 3,
                                         .n_lanes = 2,
                                         .blocks_max = blocks_max,
                                         .device = &device,
                                         .store = store};
    struct hri_frames *frames;
    for (int64_t n = 0;; n++) {
        hri_alloc_fail_after(&device, n);
        hr_status_t status = hri_frames_create(&options, &frames);
        hri_alloc_fail_after(&device, -1);
        if (status == HR_OK)
            break;
        assert_int_equal(status, HR_ERR_NOMEM);
        assert_int_equal(device.live_bytes, 0);
    }
    assert_null(hri_frames_peek(frames, 1, 0));
    assert_null(hri_frames_peek(frames, 2, 0));
    hri_frames_destroy(frames);
    hri_frames_destroy(NULL);
    options.frame_bytes = 100;
    assert_int_equal(hri_frames_create(&options, &frames), HR_ERR_INVALID);
    hri_store_destroy(store);
    assert_int_equal(device.live_bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_steps),    cmocka_unit_test(test_doubles),
        cmocka_unit_test(test_too_many),        cmocka_unit_test(test_replacement),
        cmocka_unit_test(test_late_and_failed), cmocka_unit_test(test_create),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
