#include "base/checksum.h"

#include "base/rng.h"
#include "tests/test.h"

/* By definition: one bit at a time. */
static uint32_t naive(uint32_t seed, const unsigned char *data, size_t bytes)
{
    uint32_t crc = ~seed;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

static void test_known_values(void **state)
{
    (void)state;
    unsigned char zeros[32] = {0}, ones[32];
    memset(ones, 0xff, sizeof ones);
    assert_int_equal(hri_crc32c(0, "123456789", 9), 0xe3069283u);
    assert_int_equal(hri_crc32c(0, zeros, 32), 0x8a9136aau); /* RFC 3720, B.4 */
    assert_int_equal(hri_crc32c(0, ones, 32), 0x62a8ab43u);
    assert_int_equal(hri_crc32c(0, NULL, 0), 0);
}

static void test_against_definition(void **state)
{
    (void)state;
    unsigned char data[5000];
    struct hri_rng rng;
    hri_rng_seed(&rng, 7);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)hri_rng_u64(&rng);
    for (size_t bytes = 0; bytes < 600; bytes++) {
        size_t offset = bytes % 17;
        uint32_t seed = (uint32_t)hri_rng_u64(&rng);
        uint32_t expected = naive(seed, data + offset, bytes);
        assert_int_equal(hri_crc32c(seed, data + offset, bytes), expected);
        assert_int_equal(hri_crc32c_table(seed, data + offset, bytes), expected);
    }
    assert_int_equal(hri_crc32c(0, data, sizeof data), naive(0, data, sizeof data));
}

static void test_continues(void **state)
{
    (void)state;
    const char text[] = "sinks, windows and the body between them";
    size_t bytes = strlen(text);
    uint32_t whole = hri_crc32c(0, text, bytes);
    for (size_t cut = 0; cut <= bytes; cut++)
        assert_int_equal(hri_crc32c(hri_crc32c(0, text, cut), text + cut, bytes - cut), whole);
}

int main(void)
{
    print_message("crc-32c by %s\n", hri_crc32c_backend());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_continues),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
