/* The tables that say where things are, and copies that the caller shares out: random histories, with
 * every entry compared with what the slow questions answer. */
#include "tests/offload/fault_io.h"
#include "tests/offload/lanes.h"

#include <errno.h>

#include "base/threads.h"
#include "offload/frames.h"

#define KIB         1024u
#define MIB         (1024u * KIB)
#define LANES       5u
#define CELL_BYTES  16384u
#define FRAME_BYTES 2048u
#define PER_CELL    (CELL_BYTES / FRAME_BYTES)
#define CELLS       12u
#define BLOCKS      (CELLS * PER_CELL)
#define FETCH_MAX   20u

/* ------------------------------------------------------------------------------- cells in memory */

static void check_lane(const struct model_lane *lane)
{
    if (lane->lane == NULL)
        return;
    const uint8_t *in_memory = hri_lane_run_of(lane->lane, 0).in_memory;
    for (uint32_t i = 0; i < lane->n_cells; i++) {
        bool host = hri_lane_where(lane->lane, i) == HR_TIER_HOST;
        if (in_memory[i] != host)
            fail_msg("cell %u of %u: table %u, is %u", i, lane->n_cells, in_memory[i], host);
    }
}

static void read_some(struct hri_store *store, const struct model_lane *lanes, struct hri_rng *rng)
{
    struct model_batch *batch = calloc(1, sizeof *batch);
    uint32_t n_failed;
    model_batch_begin(store, batch, lanes, LANES, rng, 1 + (uint32_t)hri_rng_below(rng, 20));
    (void)model_batch_end(store, batch, &n_failed);
    free(batch);
}

static void cells_step(struct hri_store *store, struct fault_io *io, struct model_lane *lanes,
                       struct hri_rng *rng)
{
    struct model_lane *lane = &lanes[hri_rng_below(rng, LANES)];
    if (lane->lane == NULL)
        model_create(store, lane, 4096u << hri_rng_below(rng, 4), hri_rng_below(rng, 2), 7);
    uint32_t room = MODEL_CELLS_MAX - lane->n_cells, n = (uint32_t)hri_rng_below(rng, 24);
    switch (hri_rng_below(rng, 8)) {
    case 0:
    case 1:
    case 2: /* may fail: the file is small, and writes are made to fail */
        (void)model_append(lane, rng, n < room ? n : room);
        return;
    case 3:
        model_truncate(lane, (uint32_t)hri_rng_below(rng, lane->n_cells + 1));
        return;
    case 4:
        (void)hri_store_flush(store);
        return;
    case 5:
        if (hri_rng_below(rng, 4) == 0)
            model_destroy(lane);
        return;
    case 6:
        fault_io_arm(io, true, FAULT_ERROR, EIO, hri_rng_below(rng, 3), hri_rng_below(rng, 3));
        return;
    default:
        read_some(store, lanes, rng);
    }
}

static void test_cells(void **state)
{
    (void)state;
    static const uint32_t hosts[] = {0, 64 * KIB, 400 * KIB, 2 * MIB};
    uint64_t seed = test_seed(11);
    for (size_t i = 0; i < 4; i++) {
        print_message("host %u KiB, seed %llu\n", hosts[i] / KIB, (unsigned long long)seed);
        struct fault_io io;
        struct hri_rng rng;
        struct hri_store *store;
        struct model_lane lanes[LANES] = {0};
        fault_io_init(&io);
        hri_rng_seed(&rng, seed++);
        struct hri_store_options options = {.host_bytes = hosts[i],
                                            .file_dir = model_dir(false),
                                            .file_bytes = 12 * MIB,
                                            .io = &io.ops};
        assert_ok(hri_store_create(&options, &store));
        for (int step = 0; step < 300; step++) {
            cells_step(store, &io, lanes, &rng);
            for (uint32_t k = 0; k < LANES; k++)
                check_lane(&lanes[k]);
        }
        fault_io_disarm(&io);
        hri_store_destroy(store);
    }
}

/* Parts of cells that memory has are left there, everything else is brought as ever. */
static void test_left_in_host(void **state)
{
    (void)state;
    struct hri_store_options options = {
        .host_bytes = 256 * KIB, .file_dir = model_dir(false), .file_bytes = 32 * MIB};
    struct hri_store *store;
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, test_seed(12));
    assert_ok(hri_store_create(&options, &store));
    model_create(store, &lane, CELL_BYTES, HRI_LANE_BLOCKS, 1);
    assert_ok(model_append(&lane, &rng, 60));
    assert_ok(hri_store_flush(store));
    unsigned char *memory = aligned_alloc(4096, 64 * CELL_BYTES);
    struct hri_read reads[61];
    uint64_t host_bytes = 0, file_bytes = 0;
    for (uint32_t i = 0; i < 60; i++) {
        reads[i] = (struct hri_read){.lane = lane.lane,
                                     .cell = i,
                                     .n_cells = 1,
                                     .offset = 2048,
                                     .bytes = 4096 + 8 * i,
                                     .dst = memory + i * CELL_BYTES};
        bool host = hri_lane_where(lane.lane, i) == HR_TIER_HOST;
        host_bytes += host ? reads[i].bytes : 0;
        file_bytes += host ? 0 : CELL_BYTES;
    }
    assert_true(host_bytes > 0 && file_bytes > 0);
    uint32_t last = 1; /* of two neighbours in memory: copied all the same */
    while (hri_lane_where(lane.lane, last - 1) != HR_TIER_HOST ||
           hri_lane_where(lane.lane, last) != HR_TIER_HOST)
        assert_true(++last < 60);
    reads[60] = (struct hri_read){
        .lane = lane.lane, .cell = last - 1, .n_cells = 2, .dst = memory + 60 * CELL_BYTES};
    struct hri_read_batch batch = {.reads = reads, .n_reads = 61, .leave_host = true};
    assert_ok(hri_store_read_begin(store, &batch));
    assert_ok(hri_store_read_wait(store, &batch, 0));
    for (uint32_t i = 0; i < 60; i++) {
        bool host = hri_lane_where(lane.lane, i) == HR_TIER_HOST;
        assert_true((reads[i].from != NULL) == host);
        assert_int_equal(reads[i].tier, host ? HR_TIER_HOST : HR_TIER_FILE);
        assert_true(reads[i].done && reads[i].status == HR_OK);
        const void *bytes = host ? reads[i].from : reads[i].dst;
        assert_true(model_equal(lane.seeds[i], 2048, bytes, reads[i].bytes));
    }
    assert_null(reads[60].from);
    assert_true(model_equal(lane.seeds[last - 1], 0, reads[60].dst, CELL_BYTES));
    assert_true(
        model_equal(lane.seeds[last], 0, (unsigned char *)reads[60].dst + CELL_BYTES, CELL_BYTES));
    assert_int_equal(batch.bytes_from_host, host_bytes + 2 * CELL_BYTES);
    assert_int_equal(batch.bytes_from_file, file_bytes);
    free(memory);
    hri_store_destroy(store);
}

/* ------------------------------------------------------------------------------ blocks in frames */

struct one_fetch {
    struct hri_fetch fetch;
    struct hri_block_address blocks[FETCH_MAX];
    const void *where[FETCH_MAX];
    struct hri_read reads[FETCH_MAX];
    uint32_t read_block[FETCH_MAX];
};

struct bed {
    struct hri_alloc device;
    struct hri_store *store;
    struct hri_frames *frames;
    struct hri_pool *pool;
    struct model_lane lanes[LANES];
    struct hri_rng rng;
    struct one_fetch fetches[LANES];
    uint32_t n_fetches;
    uint64_t copied; /* by tasks */
};

static void bed_make(struct bed *bed, uint64_t host_bytes, uint32_t n_frames, uint32_t n_transit)
{
    memset(bed, 0, sizeof *bed);
    hri_alloc_init(&bed->device, "device tier", 0, NULL);
    hri_rng_seed(&bed->rng, test_seed(13));
    struct hri_store_options options = {.host_bytes = host_bytes,
                                        .file_dir = host_bytes > 4 * MIB ? NULL : model_dir(false),
                                        .file_bytes = 32 * MIB};
    assert_ok(hri_store_create(&options, &bed->store));
    assert_ok(hri_pool_create(NULL, 3, &bed->pool));
    uint32_t blocks_max[LANES];
    for (uint32_t i = 0; i < LANES; i++) {
        model_create(bed->store, &bed->lanes[i], CELL_BYTES, HRI_LANE_BLOCKS, i);
        assert_ok(model_append(&bed->lanes[i], &bed->rng, CELLS));
        blocks_max[i] = BLOCKS + i;
    }
    assert_ok(hri_store_flush(bed->store));
    struct hri_frames_options frames = {.frame_bytes = FRAME_BYTES,
                                        .n_frames = n_frames,
                                        .transit_frames = n_transit,
                                        .n_lanes = LANES,
                                        .blocks_max = blocks_max,
                                        .device = &bed->device,
                                        .store = bed->store};
    assert_ok(hri_frames_create(&frames, &bed->frames));
    assert_true(bed->device.live_bytes <= hri_frames_bytes(&frames));
}

static void bed_end(struct bed *bed)
{
    hri_frames_destroy(bed->frames);
    assert_int_equal(bed->device.live_bytes, 0);
    hri_pool_destroy(bed->pool);
    hri_store_destroy(bed->store);
}

static struct hri_block_address address_of(uint32_t block)
{
    return (struct hri_block_address){.block = block,
                                      .cell = block / PER_CELL,
                                      .offset = block % PER_CELL * FRAME_BYTES,
                                      .bytes = FRAME_BYTES - 8 * (block % 5)};
}

static bool block_equal(const struct bed *bed, uint32_t lane, uint32_t block, const void *bytes)
{
    struct hri_block_address at = address_of(block);
    return model_equal(bed->lanes[lane].seeds[at.cell], at.offset, bytes, at.bytes);
}

static void begin(struct bed *bed, uint32_t lane, uint32_t n, bool share)
{
    struct one_fetch *f = &bed->fetches[bed->n_fetches++];
    for (uint32_t i = 0; i < n; i++)
        f->blocks[i] = address_of((uint32_t)hri_rng_below(&bed->rng, BLOCKS));
    f->fetch = (struct hri_fetch){.lane_index = lane,
                                  .lane = bed->lanes[lane].lane,
                                  .blocks = f->blocks,
                                  .n_blocks = n,
                                  .share_copies = share,
                                  .where = f->where,
                                  .reads = f->reads,
                                  .read_block = f->read_block};
    assert_ok(hri_frames_fetch_begin(bed->frames, &f->fetch));
}

/* The copies of one fetch, some left to the wait. */
static void copy_task(void *context, unsigned task, unsigned worker)
{
    (void)worker;
    struct bed *bed = context;
    struct hri_fetch *fetch = &bed->fetches[task].fetch;
    for (uint32_t j = 0; j < fetch->n_misses; j++) {
        bool waits = fetch->reads[j].from != NULL;
        if ((j + task) % 4 == 0)
            continue;
        hri_fetch_copy(fetch, j);
        if (!waits)
            continue;
        __atomic_add_fetch(&bed->copied, 1, __ATOMIC_RELAXED);
        if (fetch->where[fetch->read_block[j]] != fetch->reads[j].dst ||
            fetch->reads[j].from != NULL)
            abort();
    }
}

/* resident[] against peek; before a step's end peek also knows frames that will not last. */
static void check_resident(const struct bed *bed, bool settled)
{
    for (uint32_t lane = 0; lane < LANES; lane++) {
        const uint8_t *resident = hri_frames_resident(bed->frames, lane);
        for (uint32_t b = 0; b < BLOCKS + lane; b++) {
            const void *bytes = hri_frames_peek(bed->frames, lane, b);
            assert_true(resident[b] <= 1);
            if (settled ? resident[b] != (bytes != NULL) : resident[b] && bytes == NULL)
                fail_msg("lane %u, block %u: table %u, bytes %p", lane, b, resident[b], bytes);
            if (bytes != NULL && !block_equal(bed, lane, b, bytes))
                fail_msg("lane %u, block %u: wrong bytes", lane, b);
        }
    }
}

static void random_step(struct bed *bed, uint32_t n_fetches, uint32_t n_max)
{
    bed->n_fetches = 0;
    hri_frames_step_begin(bed->frames);
    check_resident(bed, true);
    for (uint32_t k = 0; k < n_fetches; k++)
        begin(bed, (uint32_t)hri_rng_below(&bed->rng, LANES),
              (uint32_t)hri_rng_below(&bed->rng, n_max + 1), hri_rng_below(&bed->rng, 4) != 0);
    check_resident(bed, false);
    hri_pool_run(bed->pool, copy_task, bed, bed->n_fetches);
    for (uint32_t k = bed->n_fetches; k-- > 0;)
        assert_ok(hri_frames_fetch_wait(bed->frames, &bed->fetches[k].fetch, 0));
    for (uint32_t k = 0; k < bed->n_fetches; k++) {
        const struct one_fetch *f = &bed->fetches[k];
        for (uint32_t i = 0; i < f->fetch.n_blocks; i++)
            assert_true(
                block_equal(bed, f->fetch.lane_index, f->blocks[i].block, f->fetch.where[i]));
    }
    check_resident(bed, false);
    if (hri_rng_below(&bed->rng, 10) == 0) {
        hri_frames_truncate(bed->frames, (uint32_t)hri_rng_below(&bed->rng, LANES),
                            (uint32_t)hri_rng_below(&bed->rng, BLOCKS));
        check_resident(bed, false);
    }
}

static void test_frames(void **state)
{
    (void)state;
    static const struct {
        uint32_t host_kib, n_frames, n_transit;
    } beds[] = {{8192, 70, 0}, {8192, 30, 40}, {8192, 0, 60},
                {512, 300, 0}, {512, 20, 60},  {0, 64, 0}};
    struct bed *bed = malloc(sizeof *bed);
    for (size_t i = 0; i < sizeof beds / sizeof beds[0]; i++) {
        bed_make(bed, (uint64_t)beds[i].host_kib * KIB, beds[i].n_frames, beds[i].n_transit);
        for (int step = 0; step < 120; step++)
            random_step(bed, 3, FETCH_MAX);
        if (beds[i].host_kib > 0)
            assert_true(bed->copied > 0);
        else
            assert_int_equal(bed->copied, 0);
        bed_end(bed);
    }
    free(bed);
}

/* A frame that a truncate took away while its copy waited is nobody's any more: the copy must not
 * fall upon who has it now. */
static void test_truncate_between(void **state)
{
    (void)state;
    struct bed *bed = malloc(sizeof *bed);
    bed_make(bed, 8 * MIB, 4, 0);
    struct one_fetch *a = &bed->fetches[0], *b = &bed->fetches[1];
    hri_frames_step_begin(bed->frames);
    begin(bed, 0, 4, true);
    while (a->fetch.n_misses < 4) { /* four different ones */
        assert_ok(hri_frames_fetch_wait(bed->frames, &a->fetch, 0));
        hri_frames_truncate(bed->frames, 0, 0);
        hri_frames_step_begin(bed->frames);
        bed->n_fetches = 0;
        begin(bed, 0, 4, true);
    }
    for (uint32_t j = 0; j < 4; j++)
        assert_non_null(a->reads[j].from);
    hri_frames_truncate(bed->frames, 0, 0);
    begin(bed, 1, 1, true);
    hri_fetch_copy(&b->fetch, 0);
    for (uint32_t j = 0; j < 4; j++)
        hri_fetch_copy(&a->fetch, j);
    assert_fails(hri_frames_fetch_wait(bed->frames, &a->fetch, 0), HR_ERR_IO, "were lost");
    for (uint32_t i = 0; i < 4; i++)
        assert_null(a->where[i]);
    assert_ok(hri_frames_fetch_wait(bed->frames, &b->fetch, 0));
    assert_true(block_equal(bed, 1, b->blocks[0].block, b->where[0]));
    check_resident(bed, true);
    bed_end(bed);
    free(bed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cells),
        cmocka_unit_test(test_left_in_host),
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_truncate_between),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
