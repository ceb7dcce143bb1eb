/* Session files that are damaged or lie: whatever is done to them or asked in vain, nothing but a clear error comes of it, and the files are as
 * they were. */
#include "tests/runtime/session_bed.h"

#include "base/checksum.h"
#include "offload/archive_impl.h"
#include "runtime/saved.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned char *file;
static size_t file_bytes;

static void file_path(char path[1200])
{
    snprintf(path, 1200, "%s/session", dir);
}

static void file_read(void)
{
    char path[1200];
    struct stat st;
    file_path(path);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    file_bytes = (size_t)st.st_size;
    file = realloc(file, file_bytes);
    assert_non_null(file);
    assert_int_equal(read(fd, file, file_bytes), file_bytes);
    close(fd);
}

static void file_write(const void *data, size_t bytes)
{
    char path[1200];
    file_path(path);
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, bytes), bytes);
    close(fd);
}

static void small_session(hr_runtime_t *rt, const char *recipe, uint32_t n)
{
    hr_sequence_t *s = sequence_make(rt, recipe);
    prompt(s, n);
    steps(s, n, 3, want);
    wipe(dir);
    save(s, HR_DURABILITY_NONE);
    static float exact[WIDTH];
    attend(s, 1, HR_ATTEND_EXACT, n + 2, 1, exact);
    memcpy(want, exact, sizeof exact);
    hr_sequence_destroy(s);
    file_read();
}

static hr_status_t try_open(hr_runtime_t *rt, const char *recipe, hr_sequence_t **s)
{
    struct hr_sequence_options o;
    options_of(&o, recipe);
    *s = NULL;
    return hr_sequence_open(rt, dir, &o, NULL, s);
}

/* Opened in spite of damage: then every exact row is what it was, and steps work. */
static void right_or_refused(hr_runtime_t *rt, const char *recipe, uint32_t n, const char *what)
{
    hr_sequence_t *s;
    static float exact[WIDTH], out[WIDTH];
    hr_status_t status = try_open(rt, recipe, &s);
    if (status == HR_OK) {
        attend(s, 1, HR_ATTEND_EXACT, n - 1, 1, exact);
        if (!(apart(exact, want, WIDTH) < 1e-5)) {
            fail_msg("%s: wrong rows", what);
        }
        append(s, 1, n, 1);
        attend(s, 1, HR_ATTEND_AUTO, n, 1, out);
        hr_sequence_destroy(s);
    } else if (hr_last_error()[0] == '\0' || status == HR_ERR_INTERNAL) {
        fail_msg("%s: %s, '%s'", what, hr_status_name(status), hr_last_error());
    }
}

static void test_every_flip_is_noticed(void **state)
{
    uint64_t seed = test_seed(11);
    struct random r = {.state = seed};
    char what[80];
    unsigned lost = 0;
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "headrace", 600);
    struct hr_session_check check = {.struct_size = sizeof check};
    assert_ok(hr_session_verify(dir, &check));
    assert_int_equal(check.bytes_read, file_bytes);
    assert_int_equal(check.blocks_bad, 0);
    for (int i = 0; i < 300; i++) {
        size_t at = i < 150 ? (size_t)(random_uniform(&r) * (double)file_bytes)
                    : i % 2 ? (size_t)(random_uniform(&r) * 8192)
                            : file_bytes - 1 - (size_t)(random_uniform(&r) * 4096);
        file[at] ^= (unsigned char)(1u << i % 8);
        file_write(file, file_bytes);
        snprintf(what, sizeof what, "seed %llu, flip at byte %zu", (unsigned long long)seed, at);
        check = (struct hr_session_check){.struct_size = sizeof check};
        if (hr_session_verify(dir, &check) == HR_OK) {
            fail_msg("%s: verify saw nothing", what);
        }
        lost += check.tokens_lost > 0;
        right_or_refused(rt, "headrace", 603, what);
        file[at] ^= (unsigned char)(1u << i % 8);
    }
    assert_true(lost > 20);
    assert_ok(hr_runtime_destroy(rt));
}

static void test_swapped_sectors(void **state)
{
    struct random r = {.state = test_seed(12)};
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "quest", 600);
    unsigned char page[4096];
    size_t pages = file_bytes / sizeof page;
    for (int i = 0; i < 100; i++) {
        size_t a = (size_t)(random_uniform(&r) * (double)pages) * sizeof page,
               b = (size_t)(random_uniform(&r) * (double)pages) * sizeof page;
        if (memcmp(file + a, file + b, sizeof page) == 0) {
            continue;
        }
        for (int twice = 0; twice < 2; twice++) {
            memcpy(page, file + a, sizeof page);
            memcpy(file + a, file + b, sizeof page);
            memcpy(file + b, page, sizeof page);
            if (twice == 0) {
                struct hr_session_check check = {.struct_size = sizeof check};
                file_write(file, file_bytes);
                assert_int_not_equal(hr_session_verify(dir, &check), HR_OK);
                right_or_refused(rt, "quest", 603, "swapped sectors");
            }
        }
    }
    assert_ok(hr_runtime_destroy(rt));
}

static void test_truncated_at_every_length(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "quest", 100);
    for (size_t n = 0; n < file_bytes; n += n < 9000 ? 97 : 1531) {
        hr_sequence_t *s;
        struct hr_session_check check = {.struct_size = sizeof check};
        file_write(file, n);
        hr_status_t status = try_open(rt, "quest", &s);
        assert_true(status == HR_ERR_CORRUPT || status == HR_ERR_INVALID);
        assert_int_not_equal(hr_session_verify(dir, &check), HR_OK);
    }
    file_write(file, file_bytes);
    hr_sequence_t *s;
    assert_ok(try_open(rt, "quest", &s));
    hr_sequence_destroy(s);
    unsigned char more[10] = {0};
    file = realloc(file, file_bytes + sizeof more);
    memcpy(file + file_bytes, more, sizeof more);
    file_write(file, file_bytes + sizeof more);
    assert_int_equal(try_open(rt, "quest", &s), HR_ERR_CORRUPT);
    assert_ok(hr_runtime_destroy(rt));
}

/* Layout of docs/format.md, by hand: offsets of the fields that are changed. */
enum { S_VERSION = 8, S_FILE = 24, S_INDEX = 32, S_BLOCKS = 40, S_INDEX_CRC = 56, S_CRC = 4092 };

static void put(size_t at, const void *value, size_t bytes)
{
    memcpy(file + at, value, bytes);
}
static uint64_t get_u64(size_t at)
{
    uint64_t x;
    memcpy(&x, file + at, sizeof x);
    return x;
}

/* Both superblocks get the change and a right checksum. */
static void super_change(size_t field, const void *value, size_t bytes)
{
    for (size_t at = 0; at < 8192; at += 4096) {
        put(at + field, value, bytes);
        uint32_t crc = hri_crc32c(0, file + at, S_CRC);
        put(at + S_CRC, &crc, sizeof crc);
    }
    file_write(file, file_bytes);
}

static void index_change(size_t entry, size_t field, uint64_t value, size_t bytes)
{
    uint64_t index = get_u64(S_INDEX), n = get_u64(S_BLOCKS);
    put(index + entry * 24 + field, &value, bytes);
    uint32_t crc = hri_crc32c(0, file + index, n * 24);
    super_change(S_INDEX_CRC, &crc, sizeof crc);
}

static void test_lies_with_right_checksums(void **state)
{
    static const uint64_t numbers[] = {
        0, 1, 4096, 8192, 1u << 20, 1u << 30, UINT32_MAX, UINT64_MAX, (uint64_t)1 << 63};
    (void)state;
    hr_sequence_t *s;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "headrace", 300);
    size_t bytes = file_bytes;
    unsigned char *right = malloc(bytes);
    memcpy(right, file, bytes);
    uint32_t version = 2;
    super_change(S_VERSION, &version, sizeof version);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_VERSION, "format version 2");
    memcpy(file, right, bytes);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        static const size_t fields[] = {S_FILE, S_INDEX, S_BLOCKS};
        for (size_t f = 0; f < 3; f++) {
            super_change(fields[f], &numbers[i], sizeof *numbers);
            if (memcmp(file, right, bytes) != 0) {
                assert_int_equal(try_open(rt, "headrace", &s), HR_ERR_CORRUPT);
            }
            memcpy(file, right, bytes);
        }
        static const size_t entry_fields[] = {0, 8, 16}, widths[] = {8, 8, 4};
        for (size_t entry = 0; entry < 6; entry++) {
            for (size_t f = 0; f < 3; f++) {
                index_change(entry, entry_fields[f], numbers[i], widths[f]);
                if (memcmp(file + 8192, right + 8192, bytes - 8192) != 0) {
                    right_or_refused(rt, "headrace", 303, "a lie in the index");
                }
                memcpy(file, right, bytes);
            }
        }
    }
    /* a block twice, and one that points to its neighbour */
    uint64_t index = get_u64(S_INDEX);
    index_change(3, 0, get_u64(index + 2 * 24), 8);
    assert_int_equal(try_open(rt, "headrace", &s), HR_ERR_CORRUPT);
    memcpy(file, right, bytes);
    index_change(3, 8, get_u64(index + 2 * 24 + 8), 8);
    assert_int_equal(try_open(rt, "headrace", &s), HR_ERR_CORRUPT);
    memcpy(file, right, bytes);
    file_write(file, bytes);
    assert_ok(try_open(rt, "headrace", &s));
    hr_sequence_destroy(s);
    free(right);
    assert_ok(hr_runtime_destroy(rt));
}

/* A NaN for the n-th number of the first block of a stream, under right checksums. */
static void nan_put(uint32_t layer, uint32_t kind, size_t n)
{
    uint64_t key = hri_archive_key(HRI_SAVED_LAYER, layer, kind, 0), index = get_u64(S_INDEX),
             i = 0;
    const uint16_t not_a_number = 0x7fc0;
    while (get_u64(index + i * 24) != key) {
        assert_true(++i < get_u64(S_BLOCKS));
    }
    struct hri_archive_header *h = (void *)(file + get_u64(index + i * 24 + 8));
    memcpy((unsigned char *)(h + 1) + n * 2, &not_a_number, 2);
    h->crc = hri_crc32c(0, h + 1, h->bytes);
    h->header_crc = hri_crc32c(0, h, offsetof(struct hri_archive_header, header_crc));
    index_change(i, 20, h->crc, 4);
}

static void test_rows_that_are_not_finite(void **state)
{
    (void)state;
    hr_sequence_t *s;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "headrace", 600);
    unsigned char *right = malloc(file_bytes);
    memcpy(right, file, file_bytes);
    nan_put(1, HRI_SAVED_NEAR, 5);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_CORRUPT, "a number is not finite");
    memcpy(file, right, file_bytes);
    nan_put(1, HRI_SAVED_LOG, (size_t)HRI_LOG_ROWS * KV * 2 * D);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_CORRUPT, "layer 1: tokens 64 to 127 are");
    free(right);
    assert_ok(hr_runtime_destroy(rt));
}

/* Whatever was asked that cannot be, of a session that is right: the file is byte for byte what it was, and opens. */
static void test_refusals_change_nothing(void **state)
{
    struct hr_sequence_options o;
    hr_sequence_t *s, *again;
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    small_session(rt, "headrace", 1500);
    size_t bytes = file_bytes;
    unsigned char *right = malloc(bytes);
    assert_non_null(right);
    memcpy(right, file, bytes);
    options_of(&o, "headrace");
    o.v_dim = 128;
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &s), HR_ERR_INVALID, "v_dim");
    options_of(&o, "headrace");
    o.tokens_max = 100;
    assert_fails(hr_sequence_open(rt, dir, &o, NULL, &s), HR_ERR_FULL, "tokens_max is 100");
    assert_ok(try_open(rt, "headrace", &s));
    assert_fails(try_open(rt, "headrace", &again), HR_ERR_BUSY, "in use by process");
    assert_fails(hr_sequence_truncate(s, 2000), HR_ERR_INVALID, "layer 0 has 1503");
    hr_sequence_destroy(s);
    assert_ok(hr_runtime_destroy(rt));
    /* caps: of the host tier, of the device, of the file */
    rt = runtime_make(64u << 20, 128u << 10, NULL, 0, HR_IO_AUTO);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_BUDGET, "host tier");
    assert_ok(hr_runtime_destroy(rt));
    rt = runtime_make(100u << 10, 64u << 20, NULL, 0, HR_IO_AUTO);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_BUDGET, "device tier");
    assert_ok(hr_runtime_destroy(rt));
    rt = runtime_make(64u << 20, 128u << 10, disk_dir(), 1u << 20, HR_IO_AUTO);
    assert_non_null(rt);
    assert_fails(try_open(rt, "headrace", &s), HR_ERR_BUDGET, "file tier");
    assert_ok(hr_runtime_destroy(rt));
    file_read();
    assert_int_equal(file_bytes, bytes);
    assert_memory_equal(file, right, bytes);
    rt = runtime_for(false);
    assert_ok(try_open(rt, "headrace", &s));
    hr_sequence_destroy(s);
    free(right);
    assert_ok(hr_runtime_destroy(rt));
}

/* A damaged block of rows: the message and the check name its tokens, and no others. */
static void test_lost_tokens_are_named(void **state)
{
    (void)state;
    hr_runtime_t *rt = runtime_for(false);
    hr_sequence_t *s;
    small_session(rt, "headrace", 1500);
    uint64_t index = get_u64(S_INDEX), n = get_u64(S_BLOCKS);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t key = get_u64(index + i * 24), address = get_u64(index + i * 24 + 8);
        if (key >> 40 != (2ull << 20 | 1 << 4 | 2)) { /* log of layer 1 */
            continue;
        }
        file[address + 1000] ^= 1;
        file_write(file, file_bytes);
        struct hr_session_check check = {.struct_size = sizeof check};
        assert_fails(hr_session_verify(dir, &check), HR_ERR_CORRUPT, "tokens are lost");
        assert_int_equal(check.blocks_bad, 1);
        assert_int_equal(check.tokens_lost, check.last_lost - check.first_lost + 1);
        char words[80];
        snprintf(words, sizeof words, "layer 1: tokens %u to %u are lost", check.first_lost,
                 check.last_lost);
        assert_fails(try_open(rt, "headrace", &s), HR_ERR_CORRUPT, words);
        assert_true(check.first_lost == 0 || (key & 0xffffff) > 0);
        file[address + 1000] ^= 1;
    }
    assert_ok(hr_runtime_destroy(rt));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_flip_is_noticed),
        cmocka_unit_test(test_swapped_sectors),
        cmocka_unit_test(test_truncated_at_every_length),
        cmocka_unit_test(test_refusals_change_nothing),
        cmocka_unit_test(test_lies_with_right_checksums),
        cmocka_unit_test(test_rows_that_are_not_finite),
        cmocka_unit_test(test_lost_tokens_are_named),
    };
    int result = cmocka_run_group_tests(tests, setup, teardown);
    free(file);
    return result;
}
