#include "tests/offload/lanes.h"

#include <pthread.h>
#include <unistd.h>

#include "base/clock.h"
#include "offload/store_impl.h"

#define KIB 1024u
#define MIB (1024u * KIB)

static const hr_io_mode_t modes[] = {HR_IO_AUTO, HR_IO_URING, HR_IO_URING_PLAIN, HR_IO_THREADS};
static const char *const mode_names[] = {NULL, "uring", "uring-plain", "threads"};

static struct hri_store *make_store(const struct hri_store_options *options)
{
    struct hri_store *store = NULL;
    hr_status_t status = hri_store_create(options, &store);
    if (status == HR_ERR_UNSUPPORTED && options->io_mode != HR_IO_THREADS)
        return NULL; /* no io_uring in this build or kernel */
    if (status != HR_OK)
        fail_msg("hri_store_create: %s", hr_last_error());
    return store;
}

static void check_caps(struct hri_store *store)
{
    struct hri_store_stats stats;
    hri_store_stats(store, &stats);
    assert_true(stats.host.bytes_held <= stats.host.bytes_peak);
    assert_true(stats.host.bytes_peak <= stats.host.bytes_cap);
    assert_true(stats.file.bytes_held <= stats.file.bytes_cap);
    if (store->file.fd < 0)
        return;
    struct hri_io_stat info;
    assert_int_equal(store->io->stat_file(store->io->ctx, store->file.fd, &info), 0);
    assert_true(info.physical_bytes <= stats.file.bytes_cap);
    assert_true(stats.file.bytes_peak <= stats.file.bytes_cap);
}

/* ---------------------------------------------------------------------------------- round trips */

static void round_trip(hr_io_mode_t mode, bool shm, uint64_t host_bytes)
{
    struct hri_store_options options = {
        .host_bytes = host_bytes,
        .file_dir = model_dir(shm),
        .file_bytes = 32 * MIB,
        .io_mode = mode,
    };
    struct hri_store *store = make_store(&options);
    if (store == NULL)
        return;
    static const uint32_t cells[] = {4 * KIB, 20 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB};
    struct model_lane lanes[5];
    struct hri_rng rng;
    hri_rng_seed(&rng, test_seed(1));
    for (int i = 0; i < 5; i++) {
        model_create(store, &lanes[i], cells[i], i % 2, 100 + (uint64_t)i);
        assert_ok(model_append(&lanes[i], &rng, 1));
        assert_ok(model_append(&lanes[i], &rng, 2 * MIB / cells[i] < 70 ? 2 * MIB / cells[i] : 70));
    }
    for (int i = 0; i < 5; i++)
        assert_int_equal(model_verify(store, &lanes[i]), 0);
    assert_ok(hri_store_flush(store));
    for (int i = 0; i < 5; i++)
        assert_int_equal(model_verify(store, &lanes[i]), 0);
    check_caps(store);
    struct hri_store_stats stats;
    hri_store_stats(store, &stats);
    if (mode_names[mode] != NULL)
        assert_string_equal(stats.io_mode, mode_names[mode]);
    if (host_bytes == 0)
        assert_true(stats.file_bytes_read > 0);
    assert_int_equal(stats.crc_failures, 0);
    hri_store_destroy(store);
}

static void test_round_trips(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        round_trip(modes[m], false, 0);
        round_trip(modes[m], true, 0);
        round_trip(modes[m], false, 3 * MIB);
    }
}

/* ----------------------------------------------------------------------------- random histories */

struct history {
    struct hri_store *store;
    struct model_lane lanes[12];
    struct model_batch batches[2];
    bool open[2];
    struct hri_rng rng;
    bool may_fill; /* appends may be refused for lack of room */
};

#define HISTORY_LANES 12u

static void close_batch(struct history *h, uint32_t i)
{
    uint32_t n_failed;
    if (!h->open[i])
        return;
    h->open[i] = false;
    if (hri_rng_below(&h->rng, 8) == 0) {
        hri_store_read_cancel(h->store, &h->batches[i].batch);
        model_batch_check(&h->batches[i]);
        return;
    }
    hr_status_t status;
    do {
        status = hri_store_read_wait(h->store, &h->batches[i].batch, hri_now_ns() + 100000);
    } while (status == HR_ERR_TIMEOUT);
    assert_ok(status);
    assert_ok(model_batch_end(h->store, &h->batches[i], &n_failed));
}

static void close_batches(struct history *h)
{
    close_batch(h, 0);
    close_batch(h, 1);
}

static void history_append(struct history *h, struct model_lane *lane)
{
    static const uint32_t pages[] = {1, 1, 3, 8, 16, 17, 40};
    if (lane->lane == NULL)
        model_create(h->store, lane, 4096 * pages[hri_rng_below(&h->rng, 7)],
                     hri_rng_below(&h->rng, 2), hri_rng_u64(&h->rng) >> 40);
    uint32_t room = MODEL_CELLS_MAX - lane->n_cells;
    uint32_t n = (uint32_t)hri_rng_below(&h->rng, 30);
    if (n > room) {
        assert_int_equal(model_append(lane, &h->rng, n), HR_ERR_FULL);
        return;
    }
    hr_status_t status = model_append(lane, &h->rng, n);
    if (status != HR_OK && !(h->may_fill && status == HR_ERR_BUDGET))
        fail_msg("append: %s", hr_last_error());
}

static void history_peek(struct history *h, struct model_lane *lane)
{
    if (lane->lane == NULL || lane->n_cells == 0)
        return;
    uint32_t cell = (uint32_t)hri_rng_below(&h->rng, lane->n_cells);
    const void *bytes = hri_lane_peek(lane->lane, cell);
    assert_int_equal(hri_lane_where(lane->lane, cell), bytes ? HR_TIER_HOST : HR_TIER_FILE);
    if (bytes != NULL)
        assert_true(model_equal(lane->seeds[cell], 0, bytes, lane->cell_bytes));
}

static void history_step(struct history *h)
{
    struct model_lane *lane = &h->lanes[hri_rng_below(&h->rng, HISTORY_LANES)];
    uint32_t i = (uint32_t)hri_rng_below(&h->rng, 2);
    switch (hri_rng_below(&h->rng, 10)) {
    case 0:
    case 1:
    case 2:
        history_append(h, lane);
        return;
    case 3:
        close_batches(h);
        if (lane->lane != NULL)
            model_truncate(lane, (uint32_t)hri_rng_below(&h->rng, lane->n_cells + 1));
        return;
    case 4:
        close_batches(h);
        if (hri_rng_below(&h->rng, 3) == 0)
            model_destroy(lane);
        return;
    case 5:
        history_peek(h, lane);
        return;
    case 6:
        if (hri_rng_below(&h->rng, 4) == 0)
            assert_ok(hri_store_flush(h->store));
        return;
    default:
        close_batch(h, i);
        h->open[i] = true;
        model_batch_begin(h->store, &h->batches[i], h->lanes, HISTORY_LANES, &h->rng,
                          1 + (uint32_t)hri_rng_below(&h->rng, 20));
        hri_store_read_poll(h->store, &h->batches[i].batch);
    }
}

static void run_history(const struct hri_store_options *options, uint64_t seed, bool may_fill)
{
    struct history *h = calloc(1, sizeof *h);
    h->store = make_store(options);
    h->may_fill = may_fill;
    hri_rng_seed(&h->rng, seed);
    for (int step = 0; h->store != NULL && step < 200; step++) {
        history_step(h);
        if (step % 50 == 0)
            check_caps(h->store);
    }
    if (h->store != NULL) {
        close_batches(h);
        for (uint32_t i = 0; i < HISTORY_LANES; i++)
            if (h->lanes[i].lane != NULL)
                assert_int_equal(model_verify(h->store, &h->lanes[i]), 0);
        check_caps(h->store);
        hri_store_destroy(h->store);
    }
    free(h);
}

static void test_histories(void **state)
{
    (void)state;
    uint64_t seed = test_seed(2);
    static const uint64_t hosts[] = {0, 64 * KIB, 700 * KIB, 4 * MIB};
    for (size_t m = 1; m < sizeof modes / sizeof modes[0]; m++)
        for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; i++) {
            print_message("mode %s, host %u KiB, seed %llu\n", mode_names[m],
                          (unsigned)(hosts[i] / KIB), (unsigned long long)seed);
            struct hri_store_options options = {
                .host_bytes = hosts[i],
                .file_dir = model_dir(i == 1),
                .file_bytes = i == 2 ? 9 * MIB : 256 * MIB,
                .io_mode = modes[m],
                .queue_depth = i == 1 ? 2 : 0,
            };
            run_history(&options, seed++, i == 2);
        }
}

static void test_host_only(void **state)
{
    (void)state;
    struct hri_store_options options = {.host_bytes = 6 * MIB};
    for (uint64_t seed = test_seed(20); seed < test_seed(20) + 4; seed++)
        run_history(&options, seed, true);
}

/* -------------------------------------------------------------------------------------- budgets */

static void test_host_budget(void **state)
{
    (void)state;
    struct hri_store_options options = {.host_bytes = 1 * MIB};
    struct hri_store *store = make_store(&options);
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 3);
    model_create(store, &lane, 64 * KIB, HRI_LANE_LOG, 0x77);
    assert_ok(model_append(&lane, &rng, 10));
    assert_fails(model_append(&lane, &rng, 7), HR_ERR_BUDGET, "host tier");
    assert_fails(model_append(&lane, &rng, 7), HR_ERR_BUDGET, "lane 77");
    assert_ok(model_append(&lane, &rng, 6));
    assert_int_equal(model_verify(store, &lane), 0);
    struct hri_store_stats stats;
    hri_store_stats(store, &stats);
    assert_int_equal(stats.host.bytes_held, 1 * MIB);
    assert_string_equal(stats.io_mode, "none");
    struct hri_lane_options big = {.cell_bytes = 512 * KIB, .cells_max = 1};
    struct hri_lane *none;
    assert_fails(hri_lane_create(store, &big, &none), HR_ERR_BUDGET, "at least");
    big.cell_bytes = 5000;
    assert_fails(hri_lane_create(store, &big, &none), HR_ERR_INVALID, "5000");
    hri_store_destroy(store);
}

static void test_file_cap(void **state)
{
    (void)state;
    struct hri_store_options options = {.file_dir = model_dir(false), .file_bytes = 2 * MIB};
    struct hri_store *store = make_store(&options);
    struct model_lane lane, other;
    struct hri_rng rng;
    hri_rng_seed(&rng, 4);
    model_create(store, &lane, 32 * KIB, HRI_LANE_LOG, 1);
    model_create(store, &other, 64 * KIB, HRI_LANE_LOG, 2);
    hr_status_t status;
    while ((status = model_append(&lane, &rng, 1)) == HR_OK)
        check_caps(store);
    assert_int_equal(status, HR_ERR_BUDGET);
    assert_non_null(strstr(hr_last_error(), "file tier"));
    assert_true(lane.n_cells >= 56);
    assert_int_equal(model_append(&other, &rng, 1), HR_ERR_BUDGET);
    model_truncate(&lane, lane.n_cells - 10);
    assert_ok(model_append(&other, &rng, 4));
    assert_int_equal(model_verify(store, &lane), 0);
    assert_int_equal(model_verify(store, &other), 0);
    check_caps(store);
    hri_store_destroy(store);

    options.file_bytes = 100 * KIB;
    assert_fails(hri_store_create(&options, &store), HR_ERR_BUDGET, "least");
    options.file_bytes = (uint64_t)1 << 53;
    assert_int_not_equal(hri_store_create(&options, &store), HR_OK);
    options.file_bytes = (uint64_t)1 << 46;
    assert_fails(hri_store_create(&options, &store), HR_ERR_BUDGET, "free");
    options.file_bytes = 2 * MIB;
    options.file_dir = "/proc/nowhere";
    assert_fails(hri_store_create(&options, &store), HR_ERR_IO, "/proc/nowhere");
    options.file_dir = "/proc/self/cmdline";
    assert_fails(hri_store_create(&options, &store), HR_ERR_IO, "/proc/self/cmdline");
}

static void test_bad_reads(void **state)
{
    (void)state;
    struct hri_store_options options = {.host_bytes = 1 * MIB};
    struct hri_store *store = make_store(&options);
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 5);
    model_create(store, &lane, 4 * KIB, HRI_LANE_LOG, 9);
    assert_ok(model_append(&lane, &rng, 3));
    static unsigned char memory[16 * KIB];
    struct hri_read bad[] = {
        {.lane = NULL, .n_cells = 1, .dst = memory},
        {.lane = lane.lane, .n_cells = 1},
        {.lane = lane.lane, .n_cells = 0, .dst = memory},
        {.lane = lane.lane, .cell = 3, .n_cells = 1, .dst = memory},
        {.lane = lane.lane, .cell = 1, .n_cells = 3, .dst = memory},
        {.lane = lane.lane, .cell = 1, .n_cells = UINT32_MAX, .dst = memory},
        {.lane = lane.lane, .n_cells = 1, .offset = 4 * KIB, .dst = memory},
        {.lane = lane.lane, .n_cells = 1, .offset = 4000, .bytes = 200, .dst = memory},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct hri_read_batch batch = {.reads = &bad[i], .n_reads = 1};
        assert_int_equal(hri_store_read_begin(store, &batch), HR_ERR_INVALID);
    }
    assert_int_equal(hri_lane_truncate(lane.lane, 4), HR_ERR_INVALID);
    hri_lane_destroy(NULL);
    hri_store_destroy(NULL);
    hri_store_destroy(store);
}

/* ------------------------------------------------------------------------------------ the paths */

/* Doubles are read once, neighbours in one go. */
static void test_joining(void **state)
{
    (void)state;
    struct hri_store_options options = {.file_dir = model_dir(false), .file_bytes = 16 * MIB};
    struct hri_store *store = make_store(&options);
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 6);
    model_create(store, &lane, 4 * KIB, HRI_LANE_LOG, 9);
    assert_ok(model_append(&lane, &rng, 16));
    assert_ok(hri_store_flush(store));
    static unsigned char memory[12][4 * KIB];
    static const uint32_t cells[12] = {3, 4, 5, 3, 9, 8, 7, 3, 15, 5, 4, 10};
    struct hri_read reads[12];
    for (int i = 0; i < 12; i++)
        reads[i] = (struct hri_read){.lane = lane.lane,
                                     .cell = cells[i],
                                     .n_cells = 1,
                                     .offset = 8,
                                     .bytes = 64,
                                     .dst = memory[i]};
    struct hri_read_batch batch = {.reads = reads, .n_reads = 12};
    assert_ok(hri_store_read_begin(store, &batch));
    assert_ok(hri_store_read_wait(store, &batch, 0));
    for (int i = 0; i < 12; i++) {
        assert_int_equal(reads[i].tier, HR_TIER_FILE);
        assert_true(model_equal(lane.seeds[cells[i]], 8, memory[i], 64));
    }
    assert_int_equal(batch.ios, 3); /* 3-5, 7-10, 15 */
    assert_int_equal(batch.bytes_from_file, 8 * 4 * KIB);
    assert_int_equal(batch.bytes_from_host, 0);
    hri_store_destroy(store);
}

/* Blocks push logs out of the host tier, never the other way round; `cache` brings cells back. */
static void test_priorities(void **state)
{
    (void)state;
    struct hri_store_options options = {
        .host_bytes = 512 * KIB, .file_dir = model_dir(false), .file_bytes = 32 * MIB};
    struct hri_store *store = make_store(&options);
    struct model_lane log, blocks;
    struct hri_rng rng;
    hri_rng_seed(&rng, 7);
    model_create(store, &log, 16 * KIB, HRI_LANE_LOG, 1);
    model_create(store, &blocks, 32 * KIB, HRI_LANE_BLOCKS, 2);
    assert_ok(model_append(&log, &rng, 32));
    assert_ok(hri_store_flush(store));
    assert_int_equal(hri_lane_where(log.lane, 0), HR_TIER_HOST);
    assert_ok(model_append(&blocks, &rng, 16));
    assert_ok(hri_store_flush(store));
    for (uint32_t i = 0; i < 16; i++)
        assert_int_equal(hri_lane_where(blocks.lane, i), HR_TIER_HOST);
    for (uint32_t i = 0; i < 32; i++)
        assert_int_equal(hri_lane_where(log.lane, i), HR_TIER_FILE);
    assert_ok(model_append(&log, &rng, 8));
    assert_ok(hri_store_flush(store));
    for (uint32_t i = 0; i < 16; i++)
        assert_int_equal(hri_lane_where(blocks.lane, i), HR_TIER_HOST);
    model_truncate(&blocks, 8);
    static unsigned char memory[16 * KIB];
    struct hri_read read = {.lane = log.lane, .cell = 5, .n_cells = 1, .dst = memory};
    struct hri_read_batch batch = {.reads = &read, .n_reads = 1, .cache = true};
    assert_ok(hri_store_read_begin(store, &batch));
    assert_ok(hri_store_read_wait(store, &batch, 0));
    assert_int_equal(hri_lane_where(log.lane, 5), HR_TIER_HOST);
    assert_int_equal(model_verify(store, &log), 0);
    hri_store_destroy(store);
}

static void test_deadline(void **state)
{
    (void)state;
    struct hri_store_options options = {.file_dir = model_dir(false), .file_bytes = 64 * MIB};
    struct hri_store *store = make_store(&options);
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 8);
    model_create(store, &lane, 64 * KIB, HRI_LANE_LOG, 1);
    assert_ok(model_append(&lane, &rng, 400));
    assert_ok(hri_store_flush(store));
    for (int turn = 0; turn < 20; turn++) {
        struct model_batch batch;
        model_batch_begin(store, &batch, &lane, 1, &rng, 64);
        hr_status_t status = hri_store_read_wait(store, &batch.batch, 1);
        assert_true(status == HR_ERR_TIMEOUT || status == HR_OK);
        hri_store_read_cancel(store, &batch.batch);
        assert_int_equal(batch.batch.n_pending, 0);
        model_batch_check(&batch);
    }
    assert_int_equal(model_verify(store, &lane), 0);
    hri_store_destroy(store);
}

/* -------------------------------------------------------------------------------------- threads */

struct mover {
    struct hri_store *store;
    struct model_lane *lane;
};

static void *use_elsewhere(void *ctx)
{
    struct mover *mover = ctx;
    struct hri_rng rng;
    hri_rng_seed(&rng, 10);
    if (model_append(mover->lane, &rng, 20) != HR_OK)
        return NULL;
    return model_verify(mover->store, mover->lane) == 0 ? mover : NULL;
}

/* A store may move from thread to thread, also while writes and cancelled reads are under way. */
static void test_thread_moves(void **state)
{
    (void)state;
    for (size_t m = 1; m < sizeof modes / sizeof modes[0]; m++) {
        struct hri_store_options options = {
            .file_dir = model_dir(false), .file_bytes = 64 * MIB, .io_mode = modes[m]};
        struct hri_store *store = make_store(&options);
        if (store == NULL)
            continue;
        struct model_lane lane;
        struct hri_rng rng;
        hri_rng_seed(&rng, 9);
        model_create(store, &lane, 32 * KIB, HRI_LANE_LOG, 1);
        for (int turn = 0; turn < 4; turn++) {
            assert_ok(model_append(&lane, &rng, 40));
            struct model_batch batch;
            model_batch_begin(store, &batch, &lane, 1, &rng, 20);
            hri_store_read_cancel(store, &batch.batch);
            model_batch_check(&batch);
            assert_ok(model_append(&lane, &rng, 20));
            struct mover mover = {store, &lane};
            pthread_t thread;
            void *good;
            assert_int_equal(pthread_create(&thread, NULL, use_elsewhere, &mover), 0);
            pthread_join(thread, &good);
            assert_non_null(good);
            assert_int_equal(model_verify(store, &lane), 0);
        }
        hri_store_destroy(store);
    }
}

/* ------------------------------------------------------------------------------------- the rest */

/* After create and the appends nothing is allocated; with all cells in the host tier nothing
 * reaches the disk either. */
static void test_no_allocation(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "test", 0, NULL);
    struct hri_store_options options = {.host_bytes = 1 * MIB,
                                        .file_dir = model_dir(false),
                                        .file_bytes = 64 * MIB,
                                        .alloc = &alloc};
    struct hri_store *store = make_store(&options);
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 11);
    model_create(store, &lane, 16 * KIB, HRI_LANE_LOG, 1);
    uint64_t before = alloc.alloc_count;
    assert_ok(model_append(&lane, &rng, 300));
    for (int i = 0; i < 20; i++) {
        struct model_batch batch;
        uint32_t n_failed;
        model_batch_begin(store, &batch, &lane, 1, &rng, 30);
        assert_ok(model_batch_end(store, &batch, &n_failed));
    }
    assert_int_equal(alloc.alloc_count, before);
    model_truncate(&lane, 0);
    assert_ok(model_append(&lane, &rng, 40));
    struct hri_store_stats stats[2];
    hri_store_stats(store, &stats[0]);
    assert_int_equal(model_verify(store, &lane), 0);
    hri_store_stats(store, &stats[1]);
    assert_int_equal(stats[0].file_reads, stats[1].file_reads);
    hri_store_destroy(store);
    assert_int_equal(alloc.live_bytes, 0);
}

/* Every allocation of create fails once; nothing leaks (the sanitizer looks). */
static void test_allocation_failures(void **state)
{
    (void)state;
    struct hri_alloc alloc;
    hri_alloc_init(&alloc, "test", 0, NULL);
    struct hri_store_options options = {.host_bytes = 1 * MIB,
                                        .file_dir = model_dir(false),
                                        .file_bytes = 4 * MIB,
                                        .alloc = &alloc};
    for (int64_t n = 0; n < 200; n++) {
        struct hri_store *store;
        struct hri_lane *lane = NULL;
        struct hri_lane_options lane_options = {.cell_bytes = 4 * KIB, .cells_max = 10};
        hri_alloc_fail_after(&alloc, n);
        hr_status_t status = hri_store_create(&options, &store);
        if (status == HR_OK) {
            status = hri_lane_create(store, &lane_options, &lane);
            hri_alloc_fail_after(&alloc, -1);
            hri_store_destroy(store);
            if (status == HR_OK)
                return;
        }
        assert_int_equal(status, HR_ERR_NOMEM);
        hri_alloc_fail_after(&alloc, -1);
        assert_int_equal(alloc.live_bytes, 0);
    }
    fail_msg("create never succeeded");
}

static void test_probe(void **state)
{
    (void)state;
    char text[2048];
    assert_ok(hri_store_probe_json(model_dir(false), text, sizeof text));
    print_message("%s\n", text);
    assert_non_null(strstr(text, "\"io_uring\""));
    assert_non_null(strstr(text, "\"io_mode\""));
    assert_ok(hri_store_probe_json("/nowhere\"x", text, sizeof text));
    assert_non_null(strstr(text, "\"usable\": false, \"reason\""));
    assert_ok(hri_store_probe_json(NULL, text, 16));
    assert_true(strlen(text) < 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),   cmocka_unit_test(test_histories),
        cmocka_unit_test(test_host_only),     cmocka_unit_test(test_host_budget),
        cmocka_unit_test(test_file_cap),      cmocka_unit_test(test_bad_reads),
        cmocka_unit_test(test_joining),       cmocka_unit_test(test_priorities),
        cmocka_unit_test(test_deadline),      cmocka_unit_test(test_thread_moves),
        cmocka_unit_test(test_no_allocation), cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_probe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
