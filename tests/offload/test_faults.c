/* Every way the disk can fail: the bytes are exact, or an error names the lane and its cells; never
 * wrong bytes, never a hang. */
#include "tests/offload/fault_io.h"
#include "tests/offload/lanes.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "offload/store_impl.h"

#define KIB   1024u
#define MIB   (1024u * KIB)
#define CELLS 40u

static const hr_io_mode_t modes[] = {HR_IO_URING, HR_IO_URING_PLAIN, HR_IO_THREADS};

struct bed {
    struct fault_io *io;
    struct hri_store *store;
    struct model_lane lane;
    struct hri_rng rng;
};

/* A store on the faulty table, with nothing armed yet. False where the mode is not to be had here.
 */
static bool bed_make_for(struct bed *bed, hr_io_mode_t mode, uint64_t host_bytes,
                         uint64_t timeout_ns)
{
    memset(bed, 0, sizeof *bed);
    bed->io = fault_io_make();
    bed->io->ops.timeout_ns = timeout_ns;
    hri_rng_seed(&bed->rng, test_seed(5));
    struct hri_store_options options = {
        .host_bytes = host_bytes,
        .file_dir = model_dir(false),
        .file_bytes = 16 * MIB,
        .io_mode = mode,
        .io = &bed->io->ops,
    };
    hr_status_t status = hri_store_create(&options, &bed->store);
    if (status == HR_ERR_UNSUPPORTED)
        return false;
    if (status != HR_OK)
        fail_msg("create: %s", hr_last_error());
    model_create(bed->store, &bed->lane, 16 * KIB, HRI_LANE_LOG, 0xabc);
    return true;
}

/* What gets no answer in time on a busy machine is not the disk's fault, so the hard time-out is far away ... */
static bool bed_make(struct bed *bed, hr_io_mode_t mode, uint64_t host_bytes)
{
    return bed_make_for(bed, mode, host_bytes, 60000000000u);
}

/* ... but where it is what is tested. */
static bool bed_make_impatient(struct bed *bed, hr_io_mode_t mode, uint64_t host_bytes)
{
    return bed_make_for(bed, mode, host_bytes, 1000000000);
}

static void bed_fill(struct bed *bed)
{
    assert_ok(model_append(&bed->lane, &bed->rng, CELLS));
    assert_ok(hri_store_flush(bed->store));
}

/* --------------------------------------------------------------------------------- fault tables */

enum outcome { RIGHT, LOST };

struct fault_case {
    const char *name;
    int kind, error;
    long count;
    enum outcome outcome;
};

static const struct fault_case read_cases[] = {
    {"eintr", FAULT_ERROR, EINTR, 3, RIGHT},
    {"eagain", FAULT_ERROR, EAGAIN, 3, RIGHT},
    {"eagain for ever", FAULT_ERROR, EAGAIN, 1000000, LOST},
    {"eio once", FAULT_ERROR, EIO, 1, RIGHT},
    {"eio for ever", FAULT_ERROR, EIO, 1000000, LOST},
    {"short once", FAULT_SHORT, 0, 1, RIGHT},
    {"short again and again", FAULT_SHORT, 0, 1000000, RIGHT},
    {"odd count", FAULT_ODD, 0, 5, RIGHT},
    {"zero once", FAULT_ZERO, 0, 1, RIGHT},
    {"zero for ever", FAULT_ZERO, 0, 1000000, LOST},
    {"more than asked", FAULT_LONG, 0, 1000000, LOST},
    {"bit flip once", FAULT_FLIP, 0, 1, RIGHT},
    {"bit flips for ever", FAULT_FLIP, 0, 1000000, LOST},
};

static void check_lost_message(void)
{
    const char *text = hr_last_error();
    if (strstr(text, "lane abc") == NULL || strstr(text, "cell") == NULL)
        fail_msg("the message \"%s\" does not name the lane and the cell", text);
}

static void run_read_case(const struct fault_case *test, hr_io_mode_t mode)
{
    struct bed bed;
    if (!bed_make(&bed, mode, 0))
        return;
    bed_fill(&bed);
    fault_io_arm(bed.io, false, test->kind, test->error, 2, test->count);
    uint32_t n_failed = 0;
    for (int i = 0; i < 3; i++) {
        struct model_batch batch;
        uint32_t n;
        model_batch_begin(bed.store, &batch, &bed.lane, 1, &bed.rng, 12);
        if (model_batch_end(bed.store, &batch, &n) != HR_OK)
            check_lost_message();
        n_failed += n;
    }
    if (bed.io->n_faults == 0)
        fail_msg("%s: no fault happened", test->name);
    if ((n_failed > 0) != (test->outcome == LOST))
        fail_msg("%s: %u reads failed", test->name, n_failed);
    fault_io_disarm(bed.io);
    assert_int_equal(model_verify(bed.store, &bed.lane), 0);
    hri_store_destroy(bed.store);
}

static void test_read_faults(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++)
        for (size_t i = 0; i < sizeof read_cases / sizeof read_cases[0]; i++)
            run_read_case(&read_cases[i], modes[m]);
}

static const struct fault_case write_cases[] = {
    {"eintr", FAULT_ERROR, EINTR, 3, RIGHT},
    {"eagain", FAULT_ERROR, EAGAIN, 3, RIGHT},
    {"short", FAULT_SHORT, 0, 1000000, RIGHT},
    {"odd count", FAULT_ODD, 0, 3, RIGHT},
    {"zero for ever", FAULT_ZERO, 0, 1000000, LOST},
    {"disk full", FAULT_ERROR, ENOSPC, 1000000, LOST},
    {"eio", FAULT_ERROR, EIO, 1000000, LOST},
};

/* Cells whose write failed stay readable from memory; appends and flushes say so; when the disk
 * recovers all is written. */
static void run_write_case(const struct fault_case *test, hr_io_mode_t mode, uint64_t host_bytes)
{
    struct bed bed;
    if (!bed_make(&bed, mode, host_bytes))
        return;
    bed_fill(&bed);
    fault_io_arm(bed.io, true, test->kind, test->error, 1, test->count);
    hr_status_t status = HR_OK;
    for (int i = 0; i < 6 && status == HR_OK; i++)
        status = model_append(&bed.lane, &bed.rng, 5);
    if (status == HR_OK)
        status = hri_store_flush(bed.store);
    if ((status != HR_OK) != (test->outcome == LOST))
        fail_msg("%s: %s %s", test->name, hr_status_name(status), hr_last_error());
    if (status != HR_OK) {
        assert_int_equal(status, HR_ERR_IO);
        check_lost_message();
        assert_int_equal(hri_store_flush(bed.store), HR_ERR_IO);
    }
    assert_int_equal(model_verify(bed.store, &bed.lane), 0);
    model_truncate(&bed.lane, bed.lane.n_cells - 3);
    fault_io_disarm(bed.io);
    assert_ok(hri_store_flush(bed.store));
    assert_ok(model_append(&bed.lane, &bed.rng, 5));
    assert_int_equal(model_verify(bed.store, &bed.lane), 0);
    hri_store_destroy(bed.store);
}

static void test_write_faults(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++)
        for (size_t i = 0; i < sizeof write_cases / sizeof write_cases[0]; i++) {
            run_write_case(&write_cases[i], modes[m], 0);
            run_write_case(&write_cases[i], modes[m], 256 * KIB);
        }
}

/* A lane may go while its writes have failed. */
static void test_destroy_after_failed_writes(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        struct bed bed;
        if (!bed_make(&bed, modes[m], 64 * KIB))
            continue;
        fault_io_arm(bed.io, true, FAULT_ERROR, EIO, 0, 1000000);
        assert_ok(model_append(&bed.lane, &bed.rng, 20));
        assert_int_equal(hri_store_flush(bed.store), HR_ERR_IO);
        struct model_lane other;
        model_create(bed.store, &other, 16 * KIB, HRI_LANE_LOG, 0xdef);
        assert_fails(model_append(&other, &bed.rng, 1), HR_ERR_IO, "lane abc");
        model_destroy(&bed.lane);
        fault_io_disarm(bed.io);
        assert_ok(model_append(&other, &bed.rng, 30));
        assert_int_equal(model_verify(bed.store, &other), 0);
        hri_store_destroy(bed.store);
    }
}

/* Late, reordered and doubled completions. */
static void test_shuffled_completions(void **state)
{
    (void)state;
    uint32_t n_modes = 0;
    for (size_t m = 0; m < 2; m++) {
        struct bed bed;
        if (!bed_make(&bed, modes[m], 0))
            continue;
        n_modes++;
        bed.io->shuffle = true;
        for (int turn = 0; turn < 12; turn++) {
            assert_ok(model_append(&bed.lane, &bed.rng, 20));
            struct model_batch batch;
            uint32_t n_failed;
            model_batch_begin(bed.store, &batch, &bed.lane, 1, &bed.rng, 30);
            if (turn % 4 == 3) {
                hri_store_read_cancel(bed.store, &batch.batch);
                model_batch_check(&batch);
            } else {
                assert_ok(model_batch_end(bed.store, &batch, &n_failed));
            }
            if (turn % 3 == 0)
                model_truncate(&bed.lane, bed.lane.n_cells / 2);
        }
        assert_ok(hri_store_flush(bed.store));
        assert_int_equal(model_verify(bed.store, &bed.lane), 0);
        struct hri_disk_stats stats;
        hri_disk_stats(bed.store->read_disk, &stats);
        assert_true(stats.stray_completions > 0);
        hri_store_destroy(bed.store);
    }
    if (n_modes == 0) /* completions of threads are neither shuffled nor doubled */
        skip();
}

/* A thread that is stuck in an I/O outlives its store and goes on to use the table of operations.
 */
static struct bed stuck_beds[6];
static uint32_t n_stuck_beds;

/* A completion that never comes ends in an error after the hard timeout, and everything after it
 * fails at once. */
static void test_lost_completion(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        struct bed *bed = &stuck_beds[n_stuck_beds++];
        if (!bed_make_impatient(bed, modes[m], 0))
            continue;
        bed_fill(bed);
        fault_io_arm(bed->io, false, FAULT_LOST, 0, 0, 1);
        static _Alignas(4096) unsigned char memory[16 * KIB];
        struct hri_read read = {.lane = bed->lane.lane,
                                .cell = 7,
                                .n_cells = 1,
                                .offset = 64,
                                .bytes = 64,
                                .dst = memory};
        struct hri_read_batch batch = {.reads = &read, .n_reads = 1};
        assert_ok(hri_store_read_begin(bed->store, &batch));
        assert_fails(hri_store_read_wait(bed->store, &batch, 0), HR_ERR_IO, "cell 7");
        assert_ok(hri_store_read_begin(bed->store, &batch));
        assert_fails(hri_store_read_wait(bed->store, &batch, 0), HR_ERR_IO, "timed out");
        hri_store_destroy(bed->store);
    }
}

/* A caller that was busy for longer than the hard timeout is no reason to give the disk up. */
static void test_busy_caller(void **state)
{
    (void)state;
    for (size_t m = 0; m < 2; m++) {
        struct bed bed;
        if (!bed_make_impatient(&bed, modes[m], 0))
            continue;
        bed_fill(&bed);
        struct model_batch batch;
        uint32_t n_failed;
        model_batch_begin(bed.store, &batch, &bed.lane, 1, &bed.rng, 5);
        assert_int_equal(usleep(999999), 0);
        assert_int_equal(usleep(400000), 0);
        bed.io->hide_reaps = 2;
        hri_store_read_poll(bed.store, &batch.batch);
        assert_ok(model_batch_end(bed.store, &batch, &n_failed));
        hri_store_destroy(bed.store);
    }
}

static void test_lost_write(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        struct bed *bed = &stuck_beds[n_stuck_beds++];
        if (!bed_make_impatient(bed, modes[m], 0))
            continue;
        bed_fill(bed);
        fault_io_arm(bed->io, true, FAULT_LOST, 0, 0, 1);
        assert_ok(model_append(&bed->lane, &bed->rng, 3));
        assert_fails(hri_store_flush(bed->store), HR_ERR_IO, "cells 40 to 42");
        assert_int_equal(model_append(&bed->lane, &bed->rng, 1), HR_ERR_IO);
        assert_int_equal(model_verify(bed->store, &bed->lane), 0);
        hri_store_destroy(bed->store);
    }
}

/* --------------------------------------------------------------------------------------- create */

static hr_status_t create_with(struct fault_io *io, hr_io_mode_t mode, struct hri_store **store_out)
{
    struct hri_store_options options = {
        .file_dir = model_dir(false),
        .file_bytes = 4 * MIB,
        .io_mode = mode,
        .io = &io->ops,
    };
    io->ops.timeout_ns = 300000000;
    return hri_store_create(&options, store_out);
}

static void check_works(struct hri_store *store)
{
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 1);
    model_create(store, &lane, 8 * KIB, HRI_LANE_LOG, 1);
    assert_ok(model_append(&lane, &rng, 50));
    assert_ok(hri_store_flush(store));
    assert_int_equal(model_verify(store, &lane), 0);
}

static void test_create_faults(void **state)
{
    (void)state;
    struct fault_io io;
    struct hri_store *store;
    fault_io_init(&io);
    io.open_error = EROFS;
    assert_fails(create_with(&io, HR_IO_AUTO, &store), HR_ERR_IO, "Read-only");
    fault_io_init(&io);
    io.open_error = EACCES;
    assert_fails(create_with(&io, HR_IO_AUTO, &store), HR_ERR_IO, "Permission");
    fault_io_init(&io);
    io.stat_error = EIO;
    assert_fails(create_with(&io, HR_IO_AUTO, &store), HR_ERR_IO, "stat");
    fault_io_init(&io);
    io.free_bytes = 1 * MIB;
    assert_fails(create_with(&io, HR_IO_AUTO, &store), HR_ERR_BUDGET, "free");
    fault_io_init(&io);
    fault_io_arm(&io, true, FAULT_ERROR, ENOSPC, 0, 1000000);
    assert_fails(create_with(&io, HR_IO_AUTO, &store), HR_ERR_IO, "No space");
    fault_io_init(&io);
    fault_io_arm(&io, false, FAULT_FLIP, 0, 0, 1000000);
    assert_int_equal(create_with(&io, HR_IO_AUTO, &store), HR_ERR_IO);
}

/* What is missing is done without: rings, registered buffers, direct I/O. */
static void test_create_fallbacks(void **state)
{
    (void)state;
    static const int refusals[] = {EPERM, ENOSYS, ENOMEM, EINVAL};
    struct fault_io io;
    struct hri_store *store;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        fault_io_init(&io);
        io.ring_create_error = refusals[i];
        assert_int_equal(create_with(&io, HR_IO_URING, &store), HR_ERR_UNSUPPORTED);
        assert_ok(create_with(&io, HR_IO_AUTO, &store));
        struct hri_store_stats stats;
        hri_store_stats(store, &stats);
        assert_string_equal(stats.io_mode, "threads");
        assert_true(store->file.direct);
        check_works(store);
        hri_store_destroy(store);
    }
    fault_io_init(&io);
    io.ring_register_error = ENOMEM;
    assert_ok(create_with(&io, HR_IO_AUTO, &store));
    check_works(store);
    hri_store_destroy(store);
    for (int late = 0; late < 2; late++) {
        fault_io_init(&io);
        io.no_direct = late == 0;
        io.refuse_direct_io = late == 1;
        assert_ok(create_with(&io, HR_IO_AUTO, &store));
        assert_false(store->file.direct);
        check_works(store);
        hri_store_destroy(store);
    }
}

/* The file cannot grow: refused, and nothing changed. Without fallocate it grows by being written.
 */
static void test_allocate_faults(void **state)
{
    (void)state;
    static const int errors[] = {ENOSPC, EIO, EFBIG, EDQUOT};
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        struct bed bed;
        bed_make(&bed, HR_IO_AUTO, 128 * KIB);
        bed.io->allocate_error = errors[i];
        bed.io->allocate_after = 1;
        assert_ok(model_append(&bed.lane, &bed.rng, 10));
        hr_status_t status = HR_OK;
        for (int turn = 0; turn < 50 && status == HR_OK; turn++)
            status = model_append(&bed.lane, &bed.rng, 10);
        assert_int_equal(status, HR_ERR_IO);
        assert_non_null(strstr(hr_last_error(), strerror(errors[i])));
        assert_int_equal(model_verify(bed.store, &bed.lane), 0);
        bed.io->allocate_error = 0;
        assert_ok(model_append(&bed.lane, &bed.rng, 10));
        assert_int_equal(model_verify(bed.store, &bed.lane), 0);
        hri_store_destroy(bed.store);
    }
    struct bed bed;
    bed_make(&bed, HR_IO_AUTO, 0);
    bed.io->allocate_error = EOPNOTSUPP;
    bed_fill(&bed);
    assert_int_equal(model_verify(bed.store, &bed.lane), 0);
    hri_store_destroy(bed.store);
}

/* ----------------------------------------------------------------------------------- corruption */

/* The bytes of the file change behind the store's back; the tier's descriptor is known from the
 * open. */
static void flip_in_file(const struct bed *bed, uint32_t cell, uint32_t at)
{
    uint64_t position = hri_lane_position(bed->lane.lane, cell) + at;
    static _Alignas(4096) unsigned char page[4096];
    off_t base = (off_t)(position / 4096 * 4096);
    assert_int_equal(pread(bed->io->fd, page, 4096, base), 4096);
    page[position % 4096] ^= 0x10;
    assert_int_equal(pwrite(bed->io->fd, page, 4096, base), 4096);
}

static void test_corruption(void **state)
{
    (void)state;
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        struct bed bed;
        if (!bed_make(&bed, modes[m], 0))
            continue;
        bed_fill(&bed);
        flip_in_file(&bed, 11, 0);
        flip_in_file(&bed, 23, 16 * KIB - 1);
        assert_int_equal(model_verify(bed.store, &bed.lane), 2);
        static unsigned char memory[CELLS * 16 * KIB];
        struct hri_read reads[] = {
            {.lane = bed.lane.lane, .cell = 8, .n_cells = 3, .dst = memory},
            {.lane = bed.lane.lane, .cell = 10, .n_cells = 20, .dst = memory + 3 * 16 * KIB},
            {.lane = bed.lane.lane,
             .cell = 23,
             .n_cells = 1,
             .bytes = 64,
             .dst = memory + 30 * 16 * KIB},
        };
        struct hri_read_batch batch = {.reads = reads, .n_reads = 3, .cache = true};
        assert_ok(hri_store_read_begin(bed.store, &batch));
        assert_fails(hri_store_read_wait(bed.store, &batch, 0), HR_ERR_CORRUPT,
                     "lane abc: cell 11");
        assert_int_equal(reads[0].status, HR_OK);
        assert_int_equal(reads[1].status, HR_ERR_CORRUPT);
        assert_int_equal(reads[1].bad_cell, 11);
        assert_int_equal(reads[2].status, HR_ERR_CORRUPT);
        assert_int_equal(reads[2].bad_cell, 23);
        for (uint32_t i = 0; i < 3; i++)
            assert_true(model_equal(bed.lane.seeds[8 + i], 0, memory + i * 16 * KIB, 16 * KIB));
        struct hri_store_stats stats;
        hri_store_stats(bed.store, &stats);
        assert_true(stats.crc_failures >= 4);
        hri_store_destroy(bed.store);
    }
}

/* 2,000 random changes of the file: a bit, or two sectors of 4 KiB that change places. Every read of every cell is right or says that it is not. */
static void test_random_damage(void **state)
{
    (void)state;
    static _Alignas(4096) unsigned char a[4096], b[4096];
    struct bed bed;
    uint32_t n_lost = 0;
    bed_make(&bed, HR_IO_AUTO, 0);
    bed_fill(&bed);
    for (int i = 0; i < 2000; i++) {
        uint32_t cells[2] = {(uint32_t)hri_rng_below(&bed.rng, CELLS),
                             (uint32_t)hri_rng_below(&bed.rng, CELLS)};
        off_t at[2];
        for (int j = 0; j < 2; j++)
            at[j] = (off_t)(hri_lane_position(bed.lane.lane, cells[j]) +
                            4096 * hri_rng_below(&bed.rng, 4));
        if (at[0] == at[1])
            continue;
        assert_int_equal(pread(bed.io->fd, a, 4096, at[0]), 4096);
        assert_int_equal(pread(bed.io->fd, b, 4096, at[1]), 4096);
        unsigned char *wrong = i % 4 == 0 ? b : a;
        uint32_t byte = (uint32_t)hri_rng_below(&bed.rng, 4096), bit = 1u << (i & 7);
        a[byte] ^= (unsigned char)(i % 4 == 0 ? 0 : bit);
        assert_int_equal(pwrite(bed.io->fd, wrong, 4096, at[0]), 4096);
        for (int j = 0; j < 2; j++) {
            static _Alignas(4096) unsigned char memory[16 * KIB];
            struct hri_read read = {
                .lane = bed.lane.lane, .cell = cells[j], .n_cells = 1, .dst = memory};
            struct hri_read_batch batch = {.reads = &read, .n_reads = 1};
            assert_ok(hri_store_read_begin(bed.store, &batch));
            hr_status_t status = hri_store_read_wait(bed.store, &batch, 0);
            n_lost += status == HR_ERR_CORRUPT;
            assert_int_equal(status, cells[j] == cells[0] ? HR_ERR_CORRUPT : HR_OK);
            assert_true(status != HR_OK ||
                        model_equal(bed.lane.seeds[cells[j]], 0, memory, sizeof memory));
        }
        a[byte] ^= (unsigned char)(i % 4 == 0 ? 0 : bit);
        assert_int_equal(pwrite(bed.io->fd, a, 4096, at[0]), 4096);
    }
    assert_true(n_lost >= 1900);
    assert_int_equal(model_verify(bed.store, &bed.lane), 0);
    hri_store_destroy(bed.store);
}

/* A long history on a disk that fails now and then in every way but silence. */
static void run_chaos(hr_io_mode_t mode, uint64_t host_bytes, uint64_t seed)
{
    static const int kinds[] = {FAULT_ERROR, FAULT_SHORT, FAULT_ODD, FAULT_ZERO, FAULT_FLIP};
    static const int errors[] = {EIO, EINTR, EAGAIN, ENOSPC};
    struct bed bed;
    if (!bed_make(&bed, mode, host_bytes))
        return;
    hri_rng_seed(&bed.rng, seed);
    bed.io->shuffle = true;
    for (int step = 0; step < 80; step++) {
        bool write = hri_rng_below(&bed.rng, 2) == 0;
        fault_io_arm(bed.io, write, kinds[hri_rng_below(&bed.rng, write ? 4 : 5)],
                     errors[hri_rng_below(&bed.rng, 4)], (long)hri_rng_below(&bed.rng, 10),
                     1 + (long)hri_rng_below(&bed.rng, 3));
        if (bed.lane.n_cells > 300)
            model_truncate(&bed.lane, (uint32_t)hri_rng_below(&bed.rng, 300));
        (void)model_append(&bed.lane, &bed.rng, (uint32_t)hri_rng_below(&bed.rng, 20));
        struct model_batch batch;
        uint32_t n_failed;
        model_batch_begin(bed.store, &batch, &bed.lane, 1, &bed.rng, 15);
        if (step % 5 == 0) {
            hri_store_read_cancel(bed.store, &batch.batch);
            model_batch_check(&batch);
        } else {
            (void)model_batch_end(bed.store, &batch, &n_failed);
        }
    }
    assert_true(bed.io->n_faults > 10);
    fault_io_disarm(bed.io);
    assert_ok(hri_store_flush(bed.store));
    assert_int_equal(model_verify(bed.store, &bed.lane), 0);
    hri_store_destroy(bed.store);
}

static void test_chaos(void **state)
{
    (void)state;
    uint64_t seed = test_seed(40);
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++)
        for (uint64_t host_bytes = 0; host_bytes <= 512 * KIB; host_bytes += 256 * KIB) {
            print_message("mode %zu, host %u KiB, seed %llu\n", m, (unsigned)(host_bytes / KIB),
                          (unsigned long long)seed);
            run_chaos(modes[m], host_bytes, seed++);
        }
}

/* ------------------------------------------------------------------------------- out of service */

static char log_lines[8][256];
static int n_log_lines;

static void log_line(void *ctx, int level, const char *message)
{
    (void)ctx;
    if (level <= HRI_LOG_WARN && n_log_lines < 8)
        snprintf(log_lines[n_log_lines++], sizeof log_lines[0], "%s", message);
}

/* A tier that fails goes out of service with one line, rows stay in host memory, and all is written when it is back. */
static void run_out_of_service(hr_io_mode_t mode, int error, bool allocate)
{
    struct bed bed;
    static struct hri_log log = {.fn = log_line, .level_max = HRI_LOG_DEBUG};
    if (!bed_make(&bed, mode, 8 * MIB))
        return;
    bed.store->log = &log;
    n_log_lines = 0;
    bed_fill(&bed);
    if (allocate)
        bed.io->allocate_error = error;
    else
        fault_io_arm(bed.io, true, FAULT_ERROR, error, 0, 1000000);
    for (int i = 0; i < 40; i++) {
        assert_ok(model_append(&bed.lane, &bed.rng, 8));
        if (i % 8 == 7)
            model_truncate(&bed.lane, bed.lane.n_cells - 5);
    }
    assert_true(bed.store->out);
    assert_int_equal(n_log_lines, 1);
    assert_non_null(strstr(log_lines[0], "out of service"));
    assert_non_null(strstr(log_lines[0], strerror(error)));
    assert_int_equal(model_verify(bed.store, &bed.lane), 0);
    struct model_lane other;
    model_create(bed.store, &other, 8 * KIB, HRI_LANE_BLOCKS, 0xdef);
    assert_ok(model_append(&other, &bed.rng, 30));
    model_destroy(&other);
    model_create(bed.store, &other, 8 * KIB, HRI_LANE_BLOCKS, 0xdef);
    assert_ok(model_append(&other, &bed.rng, 30));
    assert_int_equal(hri_store_flush(bed.store), HR_ERR_IO);
    bed.io->allocate_error = 0;
    fault_io_disarm(bed.io);
    bed.store->retry_ns = 0; /* a second has passed */
    for (int i = 0; i < 20 && bed.store->out; i++) {
        assert_ok(model_append(&bed.lane, &bed.rng, 1));
        usleep(10000);
    }
    assert_false(bed.store->out);
    assert_int_equal(n_log_lines, 2);
    assert_non_null(strstr(log_lines[1], "in service again"));
    assert_ok(hri_store_flush(bed.store));
    assert_int_equal(bed.store->n_unwritten, 0);
    assert_int_equal(model_verify(bed.store, &bed.lane), 0);
    assert_int_equal(model_verify(bed.store, &other), 0);
    hri_store_destroy(bed.store);
}

static void test_out_of_service(void **state)
{
    (void)state;
    static const int errors[] = {EIO, ENOSPC, EDQUOT};
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++)
        for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
            for (int allocate = 0; allocate < 2; allocate++)
                run_out_of_service(modes[m], errors[i], allocate != 0);
}

/* A file that gives no answer is dead: what the host tier has is served on, the rest is lost by name. */
static void test_dead_file(void **state)
{
    (void)state;
    for (size_t m = 0; m < 2; m++) {
        struct bed bed;
        if (!bed_make_impatient(&bed, modes[m], 256 * KIB))
            continue;
        bed_fill(&bed);
        uint32_t in_memory = 0;
        for (uint32_t i = 0; i < CELLS; i++)
            in_memory += hri_lane_run_of(bed.lane.lane, i).in_memory[i];
        assert_true(in_memory > 0 && in_memory < CELLS);
        fault_io_arm(bed.io, false, FAULT_LOST, 0, 0, 1000000);
        assert_int_equal(model_verify(bed.store, &bed.lane), CELLS - in_memory);
        assert_non_null(strstr(hr_last_error(), "lane abc"));
        for (int i = 0; i < 20 && model_append(&bed.lane, &bed.rng, 1) == HR_OK; i++)
            continue;
        assert_int_equal(model_verify(bed.store, &bed.lane),
                         CELLS - in_memory); /* nothing was evicted for what is new */
        hri_store_destroy(bed.store);
    }
}

/* --------------------------------------------------------------------------------------- wiping */

static void test_wipe(void **state)
{
    (void)state;
    static _Alignas(4096) unsigned char page[4096], zeros[4096];
    for (int wipe = 0; wipe < 2; wipe++) {
        struct bed bed;
        bed_make(&bed, HR_IO_AUTO, 0);
        bed.store->file.wipe = wipe;
        bed_fill(&bed);
        int fd = dup(bed.io->fd);
        struct stat info;
        hri_store_destroy(bed.store);
        assert_int_equal(fstat(fd, &info), 0);
        assert_int_equal(info.st_mode & 0777, 0600);
        assert_int_equal(info.st_nlink, 0);
        uint32_t n_full = 0;
        for (off_t at = 0; at < info.st_size; at += 4096) {
            assert_int_equal(pread(fd, page, 4096, at), 4096);
            n_full += memcmp(page, zeros, 4096) != 0;
        }
        assert_int_equal(n_full, wipe ? 0 : CELLS * 4);
        close(fd);
    }
}

/* usage: test_offload_faults [TEST] */
int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_faults),
        cmocka_unit_test(test_write_faults),
        cmocka_unit_test(test_destroy_after_failed_writes),
        cmocka_unit_test(test_shuffled_completions),
        cmocka_unit_test(test_lost_completion),
        cmocka_unit_test(test_busy_caller),
        cmocka_unit_test(test_lost_write),
        cmocka_unit_test(test_create_faults),
        cmocka_unit_test(test_create_fallbacks),
        cmocka_unit_test(test_allocate_faults),
        cmocka_unit_test(test_corruption),
        cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_chaos),
        cmocka_unit_test(test_out_of_service),
        cmocka_unit_test(test_dead_file),
        cmocka_unit_test(test_wipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
