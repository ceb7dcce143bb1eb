/* A real file system that is full, and one whose device fails: a small ext4 image on a loop device, where we may mount one. A device that is
 * shorter than its file system answers every transfer behind its end with EIO, as dm-error does, and dm-error wants a kernel with a device mapper.
 * Exit code 77 (skipped) elsewhere. */
#include "tests/offload/lanes.h"
#include "tests/sim/history.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1u << 20)

static char image[512], mount_dir[512];

static int run(const char *command)
{
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool mount_image(const char *size, const char *mkfs_options)
{
    static int number;
    char command[4096];
    number++;
    snprintf(image, sizeof image, "%s/disk_full.%d.%d.img", HR_BINARY_DIR, (int)getpid(), number);
    snprintf(mount_dir, sizeof mount_dir, "%s/disk_full.%d.%d", HR_BINARY_DIR, (int)getpid(),
             number);
    if (geteuid() != 0 || mkdir(mount_dir, 0700) != 0)
        return false;
    snprintf(command, sizeof command,
             "truncate -s %s '%s' && mkfs.ext4 -q -F -m 0 %s '%s' >/dev/null 2>&1 && "
             "mount -o loop '%s' '%s' >/dev/null 2>&1",
             size, image, mkfs_options, image, image, mount_dir);
    if (run(command) == 0)
        return true;
    snprintf(command, sizeof command, "rmdir '%s' 2>/dev/null; rm -f '%s'", mount_dir, image);
    (void)run(command);
    return false;
}

static void unmount_image(void)
{
    char command[4096];
    /* The kernel lets go of a ring's file a moment after the ring is gone. */
    snprintf(command, sizeof command,
             "for i in $(seq 50); do umount '%s' && break; sleep 0.2; done >/dev/null 2>&1; "
             "rmdir '%s' 2>/dev/null; rm -f '%s'",
             mount_dir, mount_dir, image);
    (void)run(command);
}

/* Somebody else takes the space after the store was made; the append says so, nothing is lost, and
 * freed space is used again. */
static void test_disk_full(void **state)
{
    (void)state;
    struct hri_store_options options = {.file_dir = mount_dir, .file_bytes = 16 * MIB};
    struct hri_store *store;
    assert_ok(hri_store_create(&options, &store));
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 1);
    model_create(store, &lane, 65536, HRI_LANE_LOG, 0x5);
    assert_ok(model_append(&lane, &rng, 10));

    char path[600];
    snprintf(path, sizeof path, "%s/other", mount_dir);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    off_t bytes = 0;
    for (off_t step = MIB; step >= 4096; step /= 2)
        while (posix_fallocate(fd, bytes, step) == 0)
            bytes += step;
    hr_status_t status = HR_OK;
    for (int i = 0; i < 300 && status == HR_OK; i++)
        status = model_append(&lane, &rng, 1);
    assert_int_equal(status, HR_ERR_IO);
    assert_non_null(strstr(hr_last_error(), "No space"));
    assert_int_equal(model_verify(store, &lane), 0);

    assert_int_equal(ftruncate(fd, 0), 0);
    close(fd);
    assert_ok(model_append(&lane, &rng, 100));
    assert_ok(hri_store_flush(store));
    assert_int_equal(model_verify(store, &lane), 0);
    hri_store_destroy(store);

    options.file_bytes = 64 * MIB;
    assert_fails(hri_store_create(&options, &store), HR_ERR_BUDGET, "free");
}

/* A save that finds no room fails with the reason, and the session that was there stays whole. */
static void test_save_without_room(void **state)
{
    (void)state;
    static struct history h;
    struct hr_session_check check = {.struct_size = sizeof check};
    struct text text = {0};
    char dir[600], path[600];
    snprintf(dir, sizeof dir, "%s/session", mount_dir);
    snprintf(path, sizeof path, "%s/other", mount_dir);
    history_options(&h, hri_io_real(), "headrace");
    assert_ok(history_runtime(&h, &h.rt));
    assert_ok(history_create(&h, h.rt, &h.seq));
    for (; text.n < 100; text.n++)
        text.token[text.n] = text.n + 1;
    assert_ok(history_append(h.seq, text.token, 100));
    assert_ok(hr_sequence_save(h.seq, dir, NULL));
    struct text more = text;
    for (; more.n < 300; more.n++)
        more.token[more.n] = more.n + 1;
    assert_ok(history_append(h.seq, more.token + 100, 200));

    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    off_t bytes = 0;
    for (off_t step = MIB; step >= 1024; step /= 2)
        while (posix_fallocate(fd, bytes, step) == 0)
            bytes += step;
    assert_fails(hr_sequence_save(h.seq, dir, NULL), HR_ERR_IO, "No space");
    assert_ok(hr_session_verify(dir, &check));
    hr_sequence_t *opened;
    assert_ok(history_open(&h, h.rt, dir, &opened));
    assert_true(history_same(&h, opened, &text));
    hr_sequence_destroy(opened);

    assert_int_equal(ftruncate(fd, 0), 0);
    close(fd);
    assert_ok(hr_sequence_save(h.seq, dir, NULL));
    assert_ok(history_open(&h, h.rt, dir, &opened));
    assert_true(history_same(&h, opened, &more));
    hr_sequence_destroy(opened);
    hr_sequence_destroy(h.seq);
    assert_ok(hr_runtime_destroy(h.rt));
    assert_ok(hr_session_remove(dir));
}

/* The end of the device is gone, as its image was cut: the kernel answers reads there with EIO. When it is back there are zeros. Last of the
 * tests: the file system is not what it was. */
static void test_device_fails(void **state)
{
    enum { CELLS = 200 };
    (void)state;
    struct hri_store_options options = {.file_dir = mount_dir, .file_bytes = 14 * MIB};
    struct hri_store *store;
    struct model_lane lane;
    struct hri_rng rng;
    static unsigned char memory[65536];
    hri_rng_seed(&rng, 2);
    assert_ok(hri_store_create(&options, &store));
    model_create(store, &lane, sizeof memory, HRI_LANE_LOG, 0x5);
    assert_ok(model_append(&lane, &rng, CELLS));
    assert_ok(hri_store_flush(store));
    assert_int_equal(model_verify(store, &lane), 0);
    for (int back = 0; back < 2; back++) {
        uint32_t n_lost = 0;
        assert_int_equal(truncate(image, (back ? 24 : 10) * (off_t)MIB), 0);
        for (uint32_t cell = 0; cell < CELLS; cell++) {
            struct hri_read read = {.lane = lane.lane, .cell = cell, .n_cells = 1, .dst = memory};
            struct hri_read_batch batch = {.reads = &read, .n_reads = 1};
            assert_ok(hri_store_read_begin(store, &batch));
            hr_status_t status = hri_store_read_wait(store, &batch, 0);
            if (status == HR_OK) {
                assert_true(model_equal(lane.seeds[cell], 0, memory, sizeof memory));
                continue;
            }
            n_lost++;
            assert_int_equal(status, back ? HR_ERR_CORRUPT : HR_ERR_IO);
            assert_non_null(strstr(hr_last_error(), "lane 5: cell"));
            assert_true(back || strstr(hr_last_error(), strerror(EIO)) != NULL);
        }
        assert_in_range(n_lost, 1, CELLS - 1);
    }
    hri_store_destroy(store);
}

/* -- a device that is cut off, with all that is on it kept -- */

/* Of the device of the image; 0: all of it. While it is limited nothing may be freed on it: ext4 tries for ever to read bitmaps behind the
 * end of its device, in a thread that the whole kernel shares. */
static void limit_device(uint64_t bytes)
{
    char command[2048], name[64] = "";
    struct loop_info64 info;
    snprintf(command, sizeof command, "losetup -n -O NAME -j '%s'", image);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    assert_non_null(fgets(name, sizeof name, pipe));
    pclose(pipe);
    name[strcspn(name, " \n")] = '\0';
    int fd = open(name, O_RDWR | O_CLOEXEC), folder = open(mount_dir, O_RDONLY | O_CLOEXEC);
    int result = -1;
    assert_true(fd >= 0 && folder >= 0);
    (void)syncfs(
        folder); /* what was written before is there; nothing waits to be written behind the end */
    close(folder);
    assert_int_equal(ioctl(fd, LOOP_GET_STATUS64, &info), 0);
    info.lo_sizelimit = bytes;
    for (int i = 0; i < 50 && result != 0; i++) {
        result = ioctl(fd, LOOP_SET_STATUS64, &info); /* EAGAIN while pages are written back */
        if (result != 0)
            usleep(20000);
    }
    assert_int_equal(result, 0);
    close(fd);
}

#define LIMIT (8u * MIB) /* the file system's own blocks are before it, files behind it */

/* A tier whose writes end in EIO: appends go on in memory while it has room, then say why not; rows that were written are lost by name while the
 * device is away, and none is when it is back. */
static void test_tier_eio(void **state)
{
    enum { CELLS = 100 };
    static unsigned char memory[65536];
    (void)state;
    struct hri_store_options options = {.file_dir = mount_dir, .file_bytes = 32 * MIB};
    struct hri_store *store;
    struct model_lane lane;
    struct hri_rng rng;
    hri_rng_seed(&rng, 3);
    assert_ok(hri_store_create(&options, &store));
    model_create(store, &lane, sizeof memory, HRI_LANE_LOG, 0x5);
    assert_ok(model_append(&lane, &rng, CELLS));
    assert_ok(hri_store_flush(store));

    limit_device(LIMIT);
    hr_status_t status = HR_OK;
    while (status == HR_OK && lane.n_cells < MODEL_CELLS_MAX - CELLS)
        status = model_append(&lane, &rng, 1);
    assert_int_equal(status, HR_ERR_IO);
    assert_non_null(strstr(hr_last_error(), strerror(EIO)));
    uint32_t n_lost = 0;
    for (uint32_t cell = 0; cell < lane.n_cells; cell++) {
        struct hri_read read = {.lane = lane.lane, .cell = cell, .n_cells = 1, .dst = memory};
        struct hri_read_batch batch = {.reads = &read, .n_reads = 1};
        assert_ok(hri_store_read_begin(store, &batch));
        status = hri_store_read_wait(store, &batch, 0);
        if (status == HR_OK) {
            assert_true(model_equal(lane.seeds[cell], 0, memory, sizeof memory));
            continue;
        }
        n_lost++;
        assert_true(cell < CELLS);
        assert_int_equal(status, HR_ERR_IO);
        assert_non_null(strstr(hr_last_error(), "lane 5: cell"));
    }
    assert_in_range(n_lost, 1, CELLS);

    limit_device(0);
    assert_ok(model_append(&lane, &rng, CELLS));
    assert_ok(hri_store_flush(store));
    assert_int_equal(model_verify(store, &lane), 0);
    hri_store_destroy(store);
}

static void drop_cache(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
}

/* A save that meets EIO fails and the old session stays; an open that meets it fails and says what is lost. When the device is back both work. */
static void test_session_eio(void **state)
{
    (void)state;
    static struct history h;
    struct hr_session_check check = {.struct_size = sizeof check};
    struct hr_save_options save;
    struct text text = {0};
    hr_sequence_t *opened = NULL;
    char dir[600], path[700];
    snprintf(dir, sizeof dir, "%s/session", mount_dir);
    snprintf(path, sizeof path, "%s/session", dir);
    history_options(&h, hri_io_real(), "headrace");
    assert_ok(history_runtime(&h, &h.rt));
    assert_ok(history_create(&h, h.rt, &h.seq));
    for (; text.n < 300; text.n++)
        text.token[text.n] = text.n + 1;
    assert_ok(history_append(h.seq, text.token, 100));
    hr_save_options_init(&save);
    uint32_t n = 100;
    for (int mode = HR_DURABILITY_RELAXED; mode <= HR_DURABILITY_STRICT; mode++, n += 100) {
        struct text old = text;
        old.n = n;
        save.durability = (hr_durability_t)mode;
        assert_ok(hr_sequence_save(h.seq, dir, &save));
        assert_ok(history_append(h.seq, text.token + n, 100));
        drop_cache(path);
        limit_device(LIMIT);
        assert_fails(hr_sequence_save(h.seq, dir, &save), HR_ERR_IO, "Input/output error");
        assert_fails(history_open(&h, h.rt, dir, &opened), HR_ERR_IO, "Input/output error");
        assert_int_not_equal(hr_session_verify(dir, &check), HR_OK);
        limit_device(0);
        assert_ok(hr_session_verify(dir, &check));
        assert_ok(history_open(&h, h.rt, dir, &opened));
        assert_true(history_same(&h, opened, &old));
        hr_sequence_destroy(opened);
    }
    assert_ok(hr_sequence_save(h.seq, dir, &save));
    assert_ok(history_open(&h, h.rt, dir, &opened));
    text.n = n;
    assert_true(history_same(&h, opened, &text));
    hr_sequence_destroy(opened);
    hr_sequence_destroy(h.seq);
    assert_ok(hr_runtime_destroy(h.rt));
    assert_ok(hr_session_remove(dir));
}

/* Whatever became of a test. */
static int device_whole(void **state)
{
    (void)state;
    limit_device(0);
    return 0;
}

static int in_image(const struct CMUnitTest *tests, size_t n, const char *size,
                    const char *mkfs_options)
{
    if (!mount_image(size, mkfs_options))
        return 77;
    int n_failed = _cmocka_run_group_tests("disk_full", tests, n, NULL, NULL);
    unmount_image();
    return n_failed;
}

/* Each in an image of its own: the kernel lets go of a ring's files, and of their space, a moment after the ring is gone. */
int main(void)
{
    const char *options = "-E packed_meta_blocks=1 -J size=1";
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_disk_full),
                                       cmocka_unit_test(test_save_without_room),
                                       cmocka_unit_test(test_device_fails)};
    const struct CMUnitTest cut_off[] = {cmocka_unit_test_teardown(test_tier_eio, device_whole),
                                         cmocka_unit_test_teardown(test_session_eio, device_whole)};
    int n_failed = 0;
    for (size_t i = 0; i < 3 && n_failed == 0; i++)
        n_failed = in_image(tests + i, 1, "24M", "");
    for (size_t i = 0; i < 2 && n_failed == 0 && getenv("HEADRACE_LONG") != NULL; i++)
        n_failed = in_image(cut_off + i, 1, "48M", options);
    if (n_failed == 77)
        printf("skipped: no ext4 image can be mounted here (wants root and a loop device)\n");
    return n_failed;
}
