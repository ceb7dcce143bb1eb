#include "base/rng.h"

#include "tests/test.h"

static void test_known_sequence(void **state)
{
    (void)state;
    uint64_t seed = 1234567; /* published values of splitmix64 */
    assert_true(hri_splitmix64(&seed) == 6457827717110365317u);
    assert_true(hri_splitmix64(&seed) == 3203168211198807973u);
    struct hri_rng rng = {{1, 2, 3, 4}}; /* published values of xoshiro256** */
    assert_true(hri_rng_u64(&rng) == 11520u);
    assert_true(hri_rng_u64(&rng) == 0u);
    assert_true(hri_rng_u64(&rng) == 1509978240u);
    assert_true(hri_rng_u64(&rng) == 1215971899390074240u);
}

static void test_ranges(void **state)
{
    (void)state;
    struct hri_rng rng;
    hri_rng_seed(&rng, 3);
    int seen[7] = {0};
    double sum = 0, squares = 0;
    for (int i = 0; i < 70000; i++) {
        uint64_t value = hri_rng_below(&rng, 7);
        assert_true(value < 7);
        seen[value]++;
        double f64 = hri_rng_f64(&rng);
        float f32 = hri_rng_f32(&rng);
        assert_true(f64 >= 0 && f64 < 1 && f32 >= 0 && f32 < 1);
        double normal = hri_rng_normal(&rng);
        assert_true(isfinite(normal));
        sum += normal;
        squares += normal * normal;
    }
    for (int i = 0; i < 7; i++)
        assert_true(seen[i] > 9500 && seen[i] < 10500);
    assert_true(fabs(sum / 70000) < 0.02);
    assert_true(fabs(squares / 70000 - 1) < 0.03);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_sequence),
        cmocka_unit_test(test_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
