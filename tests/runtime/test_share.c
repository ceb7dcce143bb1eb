/* One budget shared between heads: against a search for the common worth in small steps. */
#include "runtime/share.h"
#include "base/rng.h"
#include "tests/test.h"

#include <math.h>

enum { HEADS_MAX = 12 };

static double bounded(double part)
{
    return fmin(fmax(part, (double)HRI_SHARE_LEAST), (double)HRI_SHARE_MOST);
}

/* Rows worth at least bin + 1 - in_bin, where the rows of a bin count as spread evenly over it. */
static double rows_above(const uint32_t *worth, uint32_t bin, double in_bin)
{
    double n = in_bin * worth[bin];
    for (uint32_t i = bin + 1; i < HRI_WORTH_BINS; i++)
        n += worth[i];
    return n;
}

static void check(struct hri_share *share, uint32_t layer, uint32_t first, uint32_t n, double rows)
{
    const float *part = hri_share_parts(share, layer, 7, rows) - (size_t)layer * share->n_kv;
    double sum = 0;
    for (uint32_t h = first; h < first + n; h++) {
        assert_true(part[h] >= HRI_SHARE_LEAST * 0.999f && part[h] <= HRI_SHARE_MOST * 1.001f);
        sum += (double)part[h];
    }
    assert_true(fabs(sum / n - 1) < 1e-4);
    /* The common worth, by steps of a hundredth of a bin. */
    for (uint32_t bin = HRI_WORTH_BINS; bin-- > 1;)
        for (int step = 1; step <= 100; step++) {
            double all = 0;
            for (uint32_t h = first; h < first + n; h++)
                all += bounded(
                    rows_above(share->worth + (size_t)h * HRI_WORTH_BINS, bin, step / 100.0) /
                    rows);
            if (all < n)
                continue;
            for (uint32_t h = first; h < first + n; h++) {
                /* Within the bin the mean is met, not the bound of each: nothing beyond the bin's own rows may be off. */
                const uint32_t *worth = share->worth + (size_t)h * HRI_WORTH_BINS;
                double least = bounded(rows_above(worth, bin, 0) / rows),
                       most = bounded(rows_above(worth, bin, 1) / rows);
                assert_true((double)part[h] >= least - 1e-3 && (double)part[h] <= most + 1e-3);
            }
            return;
        }
}

static void fill(struct hri_rng *rng, uint32_t *worth, uint32_t middle, uint32_t rows)
{
    for (uint32_t i = 0; i < rows; i++)
        worth[middle + hri_rng_below(rng, 20)]++;
}

static void test_random(void **state)
{
    struct hri_rng rng;
    (void)state;
    hri_rng_seed(&rng, 5);
    for (int i = 0; i < 300; i++) {
        struct hri_alloc alloc;
        struct hri_share share;
        bool layers = i % 2;
        uint32_t n_layers = 1 + i % 4, n_kv = 1 + i % 3;
        hri_alloc_init(&alloc, "test", 0, NULL);
        assert_int_equal(hri_share_create(&share, &alloc, n_layers, n_kv, layers), HR_OK);
        for (uint32_t l = 0; l < n_layers; l++)
            for (uint32_t h = 0; h < n_kv; h++)
                fill(&rng, hri_share_worth_set(&share, l, h), 40 + hri_rng_below(&rng, 30),
                     1 + hri_rng_below(&rng, 400));
        double rows = 1 + hri_rng_below(&rng, 150);
        if (layers)
            check(&share, n_layers - 1, 0, n_layers * n_kv, rows);
        for (uint32_t l = 0; !layers && l < n_layers; l++)
            check(&share, l, l * n_kv, n_kv, rows);
        hri_share_destroy(&share, &alloc);
        assert_int_equal(alloc.live_bytes, 0);
    }
}

/* Until every head has spoken, and where no row is worth anything, shares are equal. */
static void test_equal(void **state)
{
    struct hri_alloc alloc;
    struct hri_share share, copy;
    (void)state;
    hri_alloc_init(&alloc, "test", 0, NULL);
    assert_int_equal(hri_share_create(&share, &alloc, 2, 2, true), HR_OK);
    assert_false(hri_share_known(&share, 0));
    hri_share_worth_set(&share, 0, 0)[90] = 100;
    hri_share_worth_set(&share, 0, 1);
    assert_true(hri_share_known(&share, 0) && !hri_share_known(&share, 1));
    for (int h = 0; h < 2; h++)
        assert_true(hri_share_parts(&share, 1, 1, 10)[h] == 1);
    hri_share_worth_set(&share, 1, 0);
    hri_share_worth_set(&share, 1, 1);
    assert_true(hri_share_parts(&share, 0, 2, 10)[0] > 1);
    assert_true(hri_share_parts(&share, 0, 2, 10)[0] == hri_share_parts(&share, 0, 2, 99)[0]);
    assert_int_equal(hri_share_create(&copy, &alloc, 2, 2, true), HR_OK);
    hri_share_copy(&share, &copy);
    assert_true(hri_share_parts(&copy, 0, 3, 10)[0] == hri_share_parts(&share, 0, 3, 10)[0]);
    share.worth[90] = 0;
    for (int h = 0; h < 2; h++)
        assert_true(fabsf(hri_share_parts(&share, 0, 4, 10)[h] - 1) < 1e-5f);
    assert_true(hri_share_parts(&share, 0, 5, 0)[0] == 1); /* no budget to share */
    hri_share_destroy(&share, &alloc);
    hri_share_destroy(&copy, &alloc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random), cmocka_unit_test(test_equal)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
