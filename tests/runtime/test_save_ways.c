/* A save's ways to the disk: rings, threads, one write after the other; past the page cache or not; with transfers that are short, late, out of
 * order, refused or never answered. Whatever the way, the file is the same, or the save fails and the old one is left. */
#include "tests/test.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "runtime/sequence.h"
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_no_rings),
        cmocka_unit_test(test_failing_write),
        cmocka_unit_test(test_silent_disk),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
