/* A save's ways to the disk, and an open's from it: rings, threads, one transfer after the other; past the page cache or not; with transfers
 * that are short, late, out of order, refused or never answered. Whatever the way, the file is the same, or the save fails and the old one is left;
 * what is opened is what was saved, or the open fails, and the next one finds all there is. */
#include "tests/test.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "runtime/saved.h"
#include "tests/offload/fault_io.h"
#include "tests/runtime/naive.h"

enum { KV = 8, D = 64, TOKENS = 9000 }; /* five groups of blocks */

static const struct shape shape = {
    .n_layers = 1, .n_q = KV, .n_kv = KV, .dk = D, .dv = D, .dtype = HR_DTYPE_BF16};
static const hr_io_mode_t modes[] = {HR_IO_URING, HR_IO_URING_PLAIN, HR_IO_THREADS};
enum { MODES = sizeof modes / sizeof *modes };

struct bed {
    struct fault_io *io;
    hr_runtime_t *rt;
    hr_sequence_t *seq;
    char dir[512];
};

static float *k_rows, *v_rows;

static void bed_make(struct bed *bed, hr_io_mode_t mode, uint64_t io_timeout_ns, bool in_file)
{
    struct hr_runtime_options o;
    struct hr_sequence_options so;
    bed->io = fault_io_make();
    hr_runtime_options_init(&o);
    o.device_bytes = 16u << 20;
    o.host_bytes = in_file ? 1u << 20 : 64u << 20;
    o.file_dir = in_file ? disk_dir() : NULL;
    o.file_bytes = 64u << 20;
    o.io_mode = mode;
    o.io_timeout_ns = io_timeout_ns;
    o.n_threads = 2;
    assert_ok(hri_runtime_create(&o, &bed->io->ops, &bed->rt));
    options_for(&shape, TOKENS, "full", 0.1, &so);
    assert_ok(hr_sequence_create(bed->rt, &so, &bed->seq));
    assert_ok(rows_append(bed->seq, &shape, 0, k_rows, v_rows, 0, TOKENS));
    snprintf(bed->dir, sizeof bed->dir, "%s/test-save-ways-%d", disk_dir(), (int)getpid());
    (void)hr_session_remove(bed->dir);
}

static void bed_free(struct bed *bed)
{
    (void)hr_session_remove(bed->dir);
    hr_sequence_destroy(bed->seq);
    assert_ok(hr_runtime_destroy(bed->rt));
}

static hr_status_t save(struct bed *bed, hr_durability_t durability)
{
    struct hr_save_options o;
    hr_save_options_init(&o);
    o.durability = durability;
    return hr_sequence_save(bed->seq, bed->dir, &o);
}

/* What is the same in all saves of the same number: all but the time. */
static unsigned char *bytes_of(const struct bed *bed, size_t *n_out)
{
    char path[600];
    snprintf(path, sizeof path, "%s/session", bed->dir);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    *n_out = (size_t)ftell(file) - 8192;
    unsigned char *bytes = malloc(*n_out);
    assert_non_null(bytes);
    assert_int_equal(fseek(file, 8192, SEEK_SET), 0);
    assert_int_equal(fread(bytes, 1, *n_out, file), *n_out);
    fclose(file);
    return bytes;
}

static unsigned char *want;
static size_t want_bytes;

static void check_saved(const struct bed *bed)
{
    struct hr_session_check check = {.struct_size = sizeof check};
    size_t n;
    assert_ok(hr_session_verify(bed->dir, &check));
    unsigned char *got = bytes_of(bed, &n);
    assert_int_equal(n, want_bytes);
    assert_int_equal(memcmp(got, want, n), 0);
    free(got);
}

static int group_setup(void **state)
{
    struct random r = {.state = 11};
    struct bed bed;
    (void)state;
    k_rows = malloc(sizeof(float) * TOKENS * KV * D);
    v_rows = malloc(sizeof(float) * TOKENS * KV * D);
    assert_true(k_rows && v_rows);
    rows_make(&r, &shape, TOKENS, k_rows, v_rows);
    bed_make(&bed, HR_IO_AUTO, 0, false);
    assert_ok(save(&bed, HR_DURABILITY_NONE)); /* one write after the other */
    want = bytes_of(&bed, &want_bytes);
    assert_true(want_bytes > 4 * (4u << 20));
    bed_free(&bed);
    return 0;
}

static int group_teardown(void **state)
{
    (void)state;
    free(k_rows);
    free(v_rows);
    free(want);
    return 0;
}

/* The machine has the way: a sequence with rows in the file needs it, one without does not. */
static bool has(hr_io_mode_t mode)
{
    hr_runtime_t *rt;
    struct hr_runtime_options o;
    hr_runtime_options_init(&o);
    o.device_bytes = o.host_bytes = 1u << 20;
    o.file_dir = disk_dir();
    o.file_bytes = 64u << 20;
    o.io_mode = mode;
    hr_status_t status = hr_runtime_create(&o, &rt);
    if (status == HR_OK)
        (void)hr_runtime_destroy(rt);
    return status == HR_OK;
}

static void test_same_bytes(void **state)
{
    (void)state;
    for (int m = 0; m < MODES; m++)
        for (int kind = 0; kind < 6; kind++) {
            struct bed bed;
            if (!has(modes[m]))
                continue;
            bed_make(&bed, modes[m], 0, kind == 5);
            bed.io->no_direct = kind == 1;
            bed.io->refuse_direct_io = kind == 2;
            bed.io->shuffle = kind == 3;
            if (kind == 4)
                fault_io_arm(bed.io, true, FAULT_SHORT, 0, 0, 3);
            if (kind == 3)
                fault_io_arm(bed.io, true, FAULT_ERROR, EINTR, 1, 2);
            long before = bed.io->n_writes;
            assert_ok(save(&bed, HR_DURABILITY_STRICT));
            assert_true(bed.io->n_writes - before >= 6); /* groups, index, superblocks */
            fault_io_disarm(bed.io);
            check_saved(&bed);
            bed_free(&bed);
        }
}

/* Without rings AUTO takes threads; a refused ring is no error either. */
static void test_no_rings(void **state)
{
    struct bed bed;
    (void)state;
    bed_make(&bed, HR_IO_AUTO, 0, false);
    bed.io->ring_create_error = ENOSYS;
    assert_ok(save(&bed, HR_DURABILITY_RELAXED));
    check_saved(&bed);
    bed_free(&bed);
}

static int files_in(const char *dir)
{
    DIR *folder = opendir(dir);
    int n = 0;
    assert_non_null(folder);
    for (const struct dirent *e = readdir(folder); e != NULL; e = readdir(folder))
        n += e->d_name[0] != '.';
    closedir(folder);
    return n;
}

/* Each write that fails is a save that fails, and the old session stays. */
static void test_failing_write(void **state)
{
    (void)state;
    for (int m = 0; m < MODES; m++) {
        struct bed bed;
        if (!has(modes[m]))
            continue;
        bed_make(&bed, modes[m], 0, false);
        assert_ok(save(&bed, HR_DURABILITY_STRICT));
        int n_files = files_in(bed.dir);
        for (int n = 0; n < 6; n++) {
            fault_io_arm(bed.io, true, FAULT_ERROR, ENOSPC, n, 1);
            assert_fails(save(&bed, HR_DURABILITY_STRICT), HR_ERR_IO, "No space left");
            assert_int_equal(files_in(bed.dir), n_files);
            check_saved(&bed);
        }
        fault_io_disarm(bed.io);
        assert_ok(save(&bed, HR_DURABILITY_STRICT));
        bed_free(&bed);
    }
}

/* A disk that gives no answer ends the save with a time-out; the process goes on, and so does the next save. */
static void test_silent_disk(void **state)
{
    (void)state;
    for (int m = 0; m < MODES; m++) {
        struct bed bed;
        if (!has(modes[m]))
            continue;
        bed_make(&bed, modes[m], 100000000, false);
        assert_ok(save(&bed, HR_DURABILITY_STRICT));
        fault_io_arm(bed.io, true, FAULT_LOST, 0, 1, 1);
        uint64_t begin_ns = hri_now_ns();
        assert_fails(save(&bed, HR_DURABILITY_STRICT), HR_ERR_TIMEOUT, "writing");
        assert_true(hri_now_ns() - begin_ns >= 200000000);
        check_saved(&bed);
        fault_io_disarm(bed.io);
        assert_ok(save(&bed, HR_DURABILITY_STRICT));
        bed_free(&bed);
    }
}

/* -- opening -- */

static hr_status_t open_saved(const struct bed *bed, hr_sequence_t **opened_out)
{
    struct hr_sequence_options o;
    options_for(&shape, TOKENS, "full", 0.1, &o);
    return hr_sequence_open(bed->rt, bed->dir, &o, NULL, opened_out);
}

/* Opened and saved again it is the same session. */
static void check_opened(struct bed *bed)
{
    struct bed copy = *bed;
    assert_ok(open_saved(bed, &copy.seq));
    snprintf(copy.dir, sizeof copy.dir, "%.500s-copy", bed->dir);
    (void)hr_session_remove(copy.dir);
    assert_ok(save(&copy, HR_DURABILITY_NONE));
    check_saved(&copy);
    assert_ok(hr_session_remove(copy.dir));
    hr_sequence_destroy(copy.seq);
}

static int open_files(void)
{
    return files_in("/proc/self/fd");
}

static uint64_t bytes_held(const struct bed *bed)
{
    struct hr_runtime_stats s = {.struct_size = sizeof s};
    assert_ok(hr_runtime_stats_get(bed->rt, &s));
    return s.tier[HR_TIER_DEVICE].bytes_held + s.tier[HR_TIER_HOST].bytes_held;
}

static void test_open_same(void **state)
{
    (void)state;
    for (int m = 0; m < MODES + 1; m++)
        for (int kind = 0; kind < 4; kind++) {
            struct bed bed;
            if (m < MODES && !has(modes[m]))
                continue;
            bed_make(&bed, m < MODES ? modes[m] : HR_IO_AUTO, 0, false);
            assert_ok(save(&bed, HR_DURABILITY_NONE));
            bed.io->ring_create_error = m < MODES ? 0 : ENOSYS;
            bed.io->shuffle = kind == 1;
            if (kind == 1)
                fault_io_arm(bed.io, false, FAULT_ERROR, EINTR, 1, 2);
            if (kind == 2)
                fault_io_arm(bed.io, false, FAULT_SHORT, 0, 0, 5);
            if (kind == 3) /* read once more */
                fault_io_arm(bed.io, false, FAULT_FLIP, 0, 4, 1);
            long before = bed.io->n_reads;
            check_opened(&bed);
            assert_true(bed.io->n_reads - before > (long)(want_bytes >> 20));
            bed_free(&bed);
        }
}

/* Each read that fails is an open that fails, and says which tokens that costs where it costs any. */
static void test_open_failing_read(void **state)
{
    (void)state;
    for (int m = 0; m < MODES; m++) {
        struct bed bed;
        int n_lost = 0;
        if (!has(modes[m]))
            continue;
        bed_make(&bed, modes[m], 0, false);
        assert_ok(save(&bed, HR_DURABILITY_NONE));
        int n_files = open_files();
        uint64_t held = bytes_held(&bed);
        for (int n = 0; n < 12; n++) {
            hr_sequence_t *opened = NULL;
            fault_io_arm(bed.io, false, FAULT_ERROR, EIO, n, 1);
            assert_fails(open_saved(&bed, &opened), HR_ERR_IO, "reading: Input/output error");
            n_lost += strstr(hr_last_error(), "layer 0: tokens ") != NULL &&
                      strstr(hr_last_error(), " are lost") != NULL;
            assert_null(opened);
            assert_int_equal(open_files(), n_files);
            assert_true(bytes_held(&bed) == held);
        }
        assert_true(n_lost >= 8); /* the others are superblocks, index, description */
        fault_io_disarm(bed.io);
        check_opened(&bed);
        bed_free(&bed);
    }
}

/* A read that gets no answer ends the open with a time-out, which gives back all but the memory that the disk may still write into and, where a
 * thread is stuck in it, its file. */
static void test_open_silent_disk(void **state)
{
    static const int reads[] = {0, 1, 2, 3, 7, 15};
    (void)state;
    for (int m = 0; m < MODES; m++) {
        struct bed bed;
        if (!has(modes[m]))
            continue;
        bed_make(&bed, modes[m], 100000000, false);
        assert_ok(save(&bed, HR_DURABILITY_NONE));
        uint64_t held = bytes_held(&bed);
        for (size_t i = 0; i < sizeof reads / sizeof *reads; i++) {
            hr_sequence_t *opened = NULL;
            int n_files = open_files();
            fault_io_arm(bed.io, false, FAULT_LOST, 0, reads[i], 1);
            uint64_t begin_ns = hri_now_ns();
            assert_fails(open_saved(&bed, &opened), HR_ERR_TIMEOUT,
                         "reading: the disk gives no answer");
            assert_true(hri_now_ns() - begin_ns >= 200000000);
            assert_true(hri_now_ns() - begin_ns < 30000000000u);
            assert_null(opened);
            assert_int_equal(open_files(), n_files + (modes[m] == HR_IO_THREADS));
            assert_true(bytes_held(&bed) == held);
        }
        fault_io_disarm(bed.io);
        check_opened(&bed);
        bed_free(&bed);
    }
}

/* Looking at a session ends as well. */
static void test_looks_silent_disk(void **state)
{
    struct bed bed;
    struct hr_session_info info = {.struct_size = sizeof info};
    struct hr_session_check check = {.struct_size = sizeof check};
    (void)state;
    bed_make(&bed, HR_IO_AUTO, 0, false);
    assert_ok(save(&bed, HR_DURABILITY_NONE));
    for (int no_rings = 0; no_rings < 2; no_rings++) {
        bed.io->ring_create_error = no_rings ? ENOSYS : 0;
        bed.io->ops.timeout_ns = 100000000;
        for (int n = 0; n < 3; n++) {
            fault_io_arm(bed.io, false, FAULT_LOST, 0, n, 1);
            assert_fails(hri_session_info_get(&bed.io->ops, bed.dir, &info), HR_ERR_TIMEOUT,
                         "no answer");
        }
        for (int n = 0; n < 16; n += 5) {
            fault_io_arm(bed.io, false, FAULT_LOST, 0, n, 1);
            assert_fails(hri_session_verify(&bed.io->ops, bed.dir, &check), HR_ERR_TIMEOUT,
                         "no answer");
        }
        fault_io_disarm(bed.io);
        bed.io->ops.timeout_ns = 0;
        assert_ok(hri_session_info_get(&bed.io->ops, bed.dir, &info));
        assert_int_equal(info.n_tokens, TOKENS);
        assert_ok(hri_session_verify(&bed.io->ops, bed.dir, &check));
        assert_true(check.bytes_read == want_bytes + 8192);
    }
    bed_free(&bed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),       cmocka_unit_test(test_no_rings),
        cmocka_unit_test(test_failing_write),    cmocka_unit_test(test_silent_disk),
        cmocka_unit_test(test_open_same),        cmocka_unit_test(test_open_failing_read),
        cmocka_unit_test(test_open_silent_disk), cmocka_unit_test(test_looks_silent_disk),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
