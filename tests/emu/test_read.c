/* The read that other kernels are measured against: every word once, whatever the length. */
#include "tests/emu/emu_test.h"

static void test_sums(void **state)
{
    (void)state;
    const size_t words[] = {0, 4, 8, 1024, 4 * 256 * 8 + 4, 40000, 100004};
    FOR_EACH(i, words)
    FOR_EACH_ORDER(order)
    {
        struct hri_rng rng;
        uint32_t want = 5, *sum = device_copy(&want, 4), *x = device_alloc(words[i] * 4);
        CASE("read of %zu words", words[i]);
        hri_rng_seed(&rng, words[i] + 1);
        for (size_t j = 0; j < words[i]; j++)
            want += x[j] = (uint32_t)hri_rng_u64(&rng);
        set_order(order);
        RUN(hri_cuda_read(x, words[i] * 4, sum, NULL));
        assert_int_equal(*sum, want);
        device_free_all();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_sums)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
