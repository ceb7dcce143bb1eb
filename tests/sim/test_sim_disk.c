/* The rig itself: a disk that keeps what was synced, loses or tears the rest, and never mixes names up. */
#include "tests/test.h"

#include <errno.h>

#include "tests/sim/sim_disk.h"

static struct sim_disk disk;

static void put(int fd, int value, uint64_t offset, size_t bytes)
{
    static unsigned char data[65536];
    memset(data, value, bytes);
    struct iovec iov = {data, bytes};
    assert_int_equal(disk.ops.writev(&disk, fd, &iov, 1, offset), bytes);
}

static int folder_make(void)
{
    bool made;
    int folder = disk.ops.folder_open(&disk, "/a", true, &made), root;
    assert_true(folder >= 0 && made);
    root = disk.ops.folder_open(&disk, "/a/..", false, NULL);
    assert_int_equal(disk.ops.sync_file(&disk, root), 0);
    return folder;
}

static void test_synced_bytes_stay(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        uint64_t n;
        sim_init(&disk, seed);
        int folder = folder_make(), fd = disk.ops.file_open(&disk, folder, "x", true);
        put(fd, 1, 0, 20000);
        assert_int_equal(disk.ops.sync_file(&disk, fd), 0);
        assert_int_equal(disk.ops.sync_file(&disk, folder), 0);
        put(fd, 2, 4096, 8192);
        sim_power_cut(&disk);
        const unsigned char *bytes = sim_bytes(&disk, "/a", "x", &n);
        assert_non_null(bytes);
        assert_int_equal(n, 20000);
        for (uint64_t i = 0; i < n; i++) {
            bool touched = i >= 4096 && i < 4096 + 8192;
            assert_true(bytes[i] == 1 || (touched && bytes[i] == 2));
            assert_true(i % 512 == 0 || bytes[i] == bytes[i - 1]); /* torn between sectors only */
        }
        sim_fini(&disk);
    }
}

/* Every fate comes up: whole, lost, torn at 512 and at 4 KiB; a file without a sync may be empty. */
static void test_every_fate(void **state)
{
    (void)state;
    uint32_t whole = 0, lost = 0, fine = 0, coarse = 0, reordered = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        uint64_t n, changes = 0, odd = 0;
        sim_init(&disk, seed);
        int folder = folder_make(), fd = disk.ops.file_open(&disk, folder, "x", true);
        put(fd, 1, 0, 16384);
        assert_int_equal(disk.ops.sync_file(&disk, fd), 0);
        assert_int_equal(disk.ops.sync_file(&disk, folder), 0);
        put(fd, 2, 0, 16384);
        sim_power_cut(&disk);
        const unsigned char *bytes = sim_bytes(&disk, "/a", "x", &n);
        for (uint64_t i = 512; i < n; i += 512) {
            changes += bytes[i] != bytes[i - 512];
            odd += bytes[i] != bytes[i - 512] && i % 4096 != 0;
        }
        whole += changes == 0 && bytes[0] == 2;
        lost += changes == 0 && bytes[0] == 1;
        fine += odd > 0;
        coarse += changes > 0 && odd == 0;
        sim_fini(&disk);

        sim_init(&disk, seed);
        folder = folder_make();
        fd = disk.ops.file_open(&disk, folder, "x", true);
        assert_int_equal(disk.ops.sync_file(&disk, folder), 0);
        put(fd, 1, 0, 4096);
        put(fd, 2, 0, 4096);
        sim_power_cut(&disk);
        bytes = sim_bytes(&disk, "/a", "x", &n);
        assert_non_null(bytes);
        reordered += n == 4096 && bytes[0] == 1;
        sim_fini(&disk);
    }
    assert_true(whole > 0 && lost > 0 && fine > 0 && coarse > 0 && reordered > 0);
}

/* A rename is there or not; what was removed or renamed before it cannot come back after it. */
static void test_names(void **state)
{
    (void)state;
    uint32_t old = 0, new = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        uint64_t n;
        sim_init(&disk, seed);
        int folder = folder_make(), fd = disk.ops.file_open(&disk, folder, "x", true);
        put(fd, 1, 0, 100);
        assert_int_equal(disk.ops.sync_file(&disk, fd), 0);
        assert_int_equal(disk.ops.sync_file(&disk, folder), 0);
        fd = disk.ops.file_open(&disk, folder, "y", true);
        assert_int_equal(disk.ops.file_open(&disk, folder, "y", true), -EEXIST);
        put(fd, 2, 0, 100);
        assert_int_equal(disk.ops.sync_file(&disk, fd), 0);
        assert_int_equal(disk.ops.file_rename(&disk, folder, "y", "x"), 0);
        assert_null(sim_bytes(&disk, "/a", "y", &n));
        sim_power_cut(&disk);
        const unsigned char *bytes = sim_bytes(&disk, "/a", "x", &n);
        assert_non_null(bytes);
        old += bytes[0] == 1;
        new += bytes[0] == 2;
        assert_true(bytes[0] == 1 || sim_bytes(&disk, "/a", "y", &n) == NULL);
        sim_fini(&disk);
    }
    assert_true(old > 0 && new > 0);
}

static void test_faults_and_cuts(void **state)
{
    (void)state;
    static unsigned char data[1000];
    struct iovec iov = {data, sizeof data};
    sim_init(&disk, 1);
    int folder = folder_make(), fd = disk.ops.file_open(&disk, folder, "x", true), holder;
    disk.fault = SIM_SHORT;
    disk.fault_at = disk.n_calls + 1;
    disk.fault_count = 1;
    assert_int_equal(disk.ops.writev(&disk, fd, &iov, 1, 0), 500);
    assert_int_equal(disk.ops.writev(&disk, fd, &iov, 1, 0), 1000);
    disk.fault = SIM_ENOSPC;
    disk.fault_at = disk.n_calls + 1;
    assert_int_equal(disk.ops.writev(&disk, fd, &iov, 1, 0), -ENOSPC);
    assert_int_equal(disk.n_faults, 2);
    int lock = disk.ops.file_lock(&disk, folder, "lock", &holder);
    assert_true(lock >= 0);
    assert_int_equal(disk.ops.file_lock(&disk, folder, "lock", &holder), -EBUSY);
    disk.cut_at = disk.n_calls + 1;
    assert_int_equal(disk.ops.writev(&disk, fd, &iov, 1, 0), -EIO);
    assert_int_equal(disk.ops.readv(&disk, fd, &iov, 1, 0), -EIO);
    sim_power_cut(&disk);
    folder = disk.ops.folder_open(&disk, "/a", false, NULL);
    assert_true(folder >= 0 && disk.ops.file_lock(&disk, folder, "lock", &holder) >= 0);
    sim_fini(&disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_synced_bytes_stay),
        cmocka_unit_test(test_every_fate),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_faults_and_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
