/* The GGUF reader: what it returns for a good file, and one clear error for everything that can be
 * wrong with one. */
#include "tests/test.h"

#include <unistd.h>

#include "engine/fail.h"
#include "engine/gguf.h"
#include "tests/engine/gguf_make.h"

#define assert_done(expr)                                                                          \
    do {                                                                                           \
        hr_status_t done_status = (expr);                                                          \
        if (done_status != HR_OK)                                                                  \
            fail_msg("%s gave %s: %s", #expr, hr_status_name(done_status), hre_last_error());      \
    } while (0)

#define assert_refused(file, expected, words)                                                      \
    do {                                                                                           \
        hre_gguf_t *refused_gguf = NULL;                                                           \
        hr_status_t refused_status =                                                               \
            hre_gguf_open_memory((file).data, (file).count, "m.gguf", &refused_gguf);              \
        if (refused_status != (expected) || !strstr(hre_last_error(), (words)))                    \
            fail_msg("gave %s: %s", hr_status_name(refused_status), hre_last_error());             \
        assert_non_null(strstr(hre_last_error(), "m.gguf"));                                       \
        assert_null(refused_gguf);                                                                 \
    } while (0)

static struct gguf_bytes small_file(void)
{
    struct gguf_maker m;
    static const char strings[] = "\3\0\0\0\0\0\0\0one\0\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0three";
    unsigned char array[12 + sizeof(strings) - 1];
    uint32_t type = HRE_GGUF_STRING;
    uint64_t count = 3;
    int32_t negative = -7;
    uint8_t yes = 1;
    double third = 1.0 / 3.0;
    int16_t shorts[6] = {HRE_GGUF_I16, 0, 0, 0, 0, 0};
    unsigned char short_array[12 + 4];

    memcpy(array, &type, 4);
    memcpy(array + 4, &count, 8);
    memcpy(array + 12, strings, sizeof(strings) - 1);
    type = HRE_GGUF_I16;
    count = 2;
    shorts[0] = -3;
    shorts[1] = 300;
    memcpy(short_array, &type, 4);
    memcpy(short_array + 4, &count, 8);
    memcpy(short_array + 12, shorts, 4);
    gguf_begin(&m, 1);
    gguf_key_string(&m, "general.architecture", "llama");
    gguf_key_u32(&m, "a.u32", 4000000000u);
    gguf_key_f32(&m, "a.f32", 0.5f);
    gguf_key_raw(&m, "a.i32", HRE_GGUF_I32, &negative, 4);
    gguf_key_raw(&m, "a.bool", HRE_GGUF_BOOL, &yes, 1);
    gguf_key_raw(&m, "a.f64", HRE_GGUF_F64, &third, 8);
    gguf_key_raw(&m, "a.strings", HRE_GGUF_ARRAY, array, sizeof(array));
    gguf_key_raw(&m, "a.shorts", HRE_GGUF_ARRAY, short_array, sizeof(short_array));
    gguf_tensor(&m, "norm", HRE_WEIGHT_F32, 32, 0, 1.0f, 0.0f);
    gguf_tensor(&m, "matrix", HRE_WEIGHT_Q4_1, 64, 5, 1.0f, 0.0f);
    return gguf_finish(&m);
}

static void test_values(void **state)
{
    struct gguf_bytes file = small_file();
    hre_gguf_t *g;
    uint64_t u;
    double d;
    struct hre_gguf_string s;
    struct hre_gguf_array a;
    size_t offset = 0;

    (void)state;
    assert_done(hre_gguf_open_memory(file.data, file.count, "m.gguf", &g));
    assert_done(hre_gguf_get_u64(g, "a.u32", &u));
    assert_int_equal(u, 4000000000u);
    assert_done(hre_gguf_get_u64(g, "a.bool", &u));
    assert_int_equal(u, 1);
    assert_done(hre_gguf_get_f64(g, "a.f32", &d));
    assert_true(d == 0.5);
    assert_done(hre_gguf_get_f64(g, "a.f64", &d));
    assert_true(d == 1.0 / 3.0);
    assert_done(hre_gguf_get_f64(g, "a.i32", &d));
    assert_true(d == -7.0);
    assert_done(hre_gguf_get_string(g, "general.architecture", &s));
    assert_int_equal(s.length, 5);
    assert_memory_equal(s.data, "llama", 5);
    assert_done(hre_gguf_get_array(g, "a.strings", &a));
    assert_int_equal(a.count, 3);
    s = hre_gguf_array_string_next(&a, &offset);
    assert_memory_equal(s.data, "one", 3);
    s = hre_gguf_array_string_next(&a, &offset);
    assert_int_equal(s.length, 0);
    s = hre_gguf_array_string_next(&a, &offset);
    assert_memory_equal(s.data, "three", 5);
    assert_done(hre_gguf_get_array(g, "a.shorts", &a));
    assert_true(hre_gguf_array_f64(&a, 0) == -3.0);
    assert_int_equal(hre_gguf_array_u64(&a, 1), 300);
    assert_int_equal(hre_gguf_get_u64(g, "a.i32", &u), HR_ERR_DTYPE);
    assert_int_equal(hre_gguf_get_u64(g, "a.f32", &u), HR_ERR_DTYPE);
    assert_int_equal(hre_gguf_get_string(g, "a.u32", &s), HR_ERR_DTYPE);
    assert_int_equal(hre_gguf_get_array(g, "a.u32", &a), HR_ERR_DTYPE);
    assert_int_equal(hre_gguf_get_u64(g, "a.none", &u), HR_ERR_NOTFOUND);
    assert_non_null(strstr(hre_last_error(), "a.none"));
    hre_gguf_close(g);
    free(file.data);
}

static void test_tensors(void **state)
{
    struct gguf_bytes file = small_file();
    hre_gguf_t *g;

    (void)state;
    assert_done(hre_gguf_open_memory(file.data, file.count, "m.gguf", &g));
    assert_int_equal(hre_gguf_tensor_count(g), 2);
    const struct hre_gguf_tensor *t = hre_gguf_tensor_find(g, "matrix");
    assert_non_null(t);
    assert_int_equal(t->type, HRE_WEIGHT_Q4_1);
    assert_int_equal(t->n_elements, 320);
    assert_int_equal(t->n_bytes, 200);
    assert_int_equal(t->dims[0], 64);
    assert_int_equal(t->dims[1], 5);
    assert_true((const unsigned char *)t->data + 200 <= file.data + file.count);
    assert_null(hre_gguf_tensor_find(g, "matri"));
    assert_null(hre_gguf_tensor_find(g, "matrix2"));
    assert_null(hre_gguf_tensor_at(g, 2));
    hre_gguf_close(g);
    free(file.data);
}

/* A prefix of a file is never a file; the copy is exact in length so that ASan sees reads beyond
 * it. */
static void test_truncated(void **state)
{
    struct gguf_bytes file = small_file();
    size_t kept = file.count - 24; /* the last tensor's padding may be missing */

    (void)state;
    for (size_t n = 0; n < kept; n++) {
        struct gguf_bytes part = {malloc(n ? n : 1), n, n};

        memcpy(part.data, file.data, n);
        assert_refused(part, HR_ERR_CORRUPT, "");
        free(part.data);
    }
    free(file.data);
}

/* Reads everything an open file offers. */
static uint64_t touch(const hre_gguf_t *g)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < hre_gguf_tensor_count(g); i++) {
        const struct hre_gguf_tensor *t = hre_gguf_tensor_at(g, i);

        for (uint64_t j = 0; j < t->n_bytes; j++) {
            sum += ((const unsigned char *)t->data)[j];
        }
    }
    return sum;
}

static void test_flipped(void **state)
{
    struct gguf_bytes file = small_file();
    unsigned opened = 0;

    (void)state;
    for (size_t bit = 0; bit < 8 * file.count; bit++) {
        hre_gguf_t *g = NULL;

        file.data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        if (hre_gguf_open_memory(file.data, file.count, "m.gguf", &g) == HR_OK) {
            opened += touch(g) != 1;
            hre_gguf_close(g);
        } else {
            assert_non_null(strstr(hre_last_error(), "m.gguf"));
        }
        file.data[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    assert_true(opened > 0); /* bits of the tensors themselves are anybody's */
    free(file.data);
}

static void test_head(void **state)
{
    struct gguf_bytes file = small_file();
    uint64_t huge = UINT64_MAX / 2;
    uint32_t version;

    (void)state;
    file.data[0] = 'X';
    assert_refused(file, HR_ERR_CORRUPT, "not a GGUF file");
    file.data[0] = 'G';
    for (version = 0; version < 6; version++) {
        hre_gguf_t *g = NULL;

        memcpy(file.data + 4, &version, 4);
        if (version == 2 || version == 3) {
            assert_done(hre_gguf_open_memory(file.data, file.count, "m.gguf", &g));
            hre_gguf_close(g);
        } else {
            assert_refused(file, HR_ERR_VERSION, "version");
        }
    }
    version = 3;
    memcpy(file.data + 4, &version, 4);
    memcpy(file.data + 8, &huge, 8);
    assert_refused(file, HR_ERR_CORRUPT, "tensors");
    huge = 2;
    memcpy(file.data + 8, &huge, 8);
    huge = 1u << 30;
    memcpy(file.data + 16, &huge, 8);
    assert_refused(file, HR_ERR_CORRUPT, "metadata entries");
    free(file.data);
}

static void refuse_key(uint32_t type, const void *value, size_t bytes, hr_status_t expected,
                       const char *words)
{
    struct gguf_maker m;

    gguf_begin(&m, 1);
    gguf_key_raw(&m, "key", type, value, bytes);
    struct gguf_bytes file = gguf_finish(&m);
    assert_refused(file, expected, words);
    free(file.data);
}

static void test_keys(void **state)
{
    struct gguf_maker m;
    unsigned char array[64] = {HRE_GGUF_U32, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127};
    unsigned char nested[5][12];
    uint64_t length = 1u << 31;
    uint32_t alignment = 24;

    (void)state;
    refuse_key(13, array, 8, HR_ERR_CORRUPT, "value type 13");
    refuse_key(HRE_GGUF_ARRAY, array, sizeof(array), HR_ERR_CORRUPT, "array of");
    refuse_key(HRE_GGUF_STRING, &length, 8, HR_ERR_CORRUPT, "2147483648");
    memset(nested, 0, sizeof(nested));
    for (int i = 0; i < 5; i++) {
        nested[i][0] = i < 4 ? HRE_GGUF_ARRAY : HRE_GGUF_U8;
        nested[i][4] = i < 4;
    }
    refuse_key(HRE_GGUF_ARRAY, nested, sizeof(nested), HR_ERR_CORRUPT, "nested");
    gguf_begin(&m, 1);
    gguf_key_u32(&m, "general.alignment", alignment);
    struct gguf_bytes file = gguf_finish(&m);
    assert_refused(file, HR_ERR_CORRUPT, "alignment");
    free(file.data);
    gguf_begin(&m, 1);
    gguf_key_u32(&m, "twice", 1);
    gguf_key_u32(&m, "once", 1);
    gguf_key_u32(&m, "twice", 1);
    file = gguf_finish(&m);
    assert_refused(file, HR_ERR_CORRUPT, "'twice' occurs twice");
    free(file.data);
}

/* One tensor whose description is then changed in place. */
static void refuse_tensor(size_t at, const void *bytes, size_t n, hr_status_t expected,
                          const char *words)
{
    struct gguf_maker m;

    gguf_begin(&m, 1);
    gguf_tensor(&m, "t", HRE_WEIGHT_Q8_0, 64, 2, 1.0f, 0.0f);
    struct gguf_bytes file = gguf_finish(&m);
    memcpy(file.data + 24 + at, bytes, n);
    assert_refused(file, expected, words);
    free(file.data);
}

static void test_tensor_descriptions(void **state)
{
    /* "t" is 8 + 1 bytes, the number of dimensions 4, two dimensions 16, type 4, offset 8. */
    const uint64_t huge = UINT64_C(1) << 61, zero = 0, odd = 65, far = 4096, one = 1;
    const uint32_t none = 0, five = 5, unknown = 200, hole = 4;

    (void)state;
    refuse_tensor(9, &none, 4, HR_ERR_CORRUPT, "0 dimensions");
    refuse_tensor(9, &five, 4, HR_ERR_CORRUPT, "5 dimensions");
    refuse_tensor(13, &zero, 8, HR_ERR_CORRUPT, "dimension 0");
    refuse_tensor(21, &huge, 8, HR_ERR_CORRUPT, "dimension 1");
    refuse_tensor(13, &odd, 8, HR_ERR_CORRUPT, "no whole Q8_0 blocks");
    refuse_tensor(21, &far, 8, HR_ERR_CORRUPT, "larger than the file");
    refuse_tensor(29, &unknown, 4, HR_ERR_UNSUPPORTED, "unknown type 200");
    refuse_tensor(29, &hole, 4, HR_ERR_UNSUPPORTED, "unknown type 4");
    refuse_tensor(33, &one, 8, HR_ERR_CORRUPT, "not aligned");
    refuse_tensor(33, &far, 8, HR_ERR_CORRUPT, "needs");
}

static void test_names(void **state)
{
    struct gguf_maker m;

    (void)state;
    gguf_begin(&m, 1);
    gguf_tensor(&m, "same", HRE_WEIGHT_F32, 8, 0, 1.0f, 0.0f);
    gguf_tensor(&m, "same", HRE_WEIGHT_F32, 8, 0, 1.0f, 0.0f);
    struct gguf_bytes file = gguf_finish(&m);
    assert_refused(file, HR_ERR_CORRUPT, "'same' occurs twice");
    free(file.data);
}

static void test_files(void **state)
{
    char path[] = "/tmp/headrace-test-XXXXXX";
    struct gguf_bytes file = small_file();
    hre_gguf_t *g = NULL;
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(hre_gguf_open(path, &g), HR_ERR_CORRUPT);
    assert_non_null(strstr(hre_last_error(), "empty"));
    assert_int_equal(write(fd, file.data, file.count), (ssize_t)file.count);
    close(fd);
    assert_done(hre_gguf_open(path, &g));
    assert_string_equal(hre_gguf_name(g), path);
    assert_int_equal(hre_gguf_file_bytes(g), file.count);
    hre_gguf_close(g);
    unlink(path);
    g = NULL;
    assert_int_equal(hre_gguf_open(path, &g), HR_ERR_NOTFOUND);
    assert_int_equal(hre_gguf_open("/tmp", &g), HR_ERR_IO);
    assert_int_equal(hre_gguf_open(NULL, &g), HR_ERR_INVALID);
    assert_null(g);
    hre_gguf_close(NULL);
    free(file.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_tensor_descriptions),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
