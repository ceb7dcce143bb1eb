/* The best of long lists, and their order, against qsort: keys of all magnitudes, many equal ones, none but equal ones. */
#include "tests/test.h"

#include <math.h>

#include "base/rng.h"
#include "index/sort.h"

static int by_rank(const void *a, const void *b)
{
    const struct hri_ranked *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return x->item < y->item ? -1 : x->item > y->item;
}

static float random_key(struct hri_rng *rng, unsigned kind)
{
    switch (kind) {
    case 0:
        return (float)hri_rng_normal(rng);
    case 1: /* all magnitudes, as shares of attention have */
        return (float)exp(40 * hri_rng_normal(rng));
    case 2:
        return (float)hri_rng_below(rng, 3) - 1;
    case 3: /* both zeros are one */
        return hri_rng_below(rng, 2) ? 0.0f : -0.0f;
    case 4: {
        static const float odd[] = {INFINITY, -INFINITY, 0, -0.0f, 1e-42f, -1e-42f, 3e38f, -3e38f};
        return odd[hri_rng_below(rng, 8)];
    }
    default: /* within one bin */
        return 1 + 1e-6f * (float)hri_rng_below(rng, 1000);
    }
}

static void check_select(uint64_t seed, unsigned kind, uint32_t n, uint32_t best)
{
    struct hri_rng rng;
    struct hri_ranked *a = malloc((n + 1) * sizeof *a), *truth = malloc((n + 1) * sizeof *a);
    hri_rng_seed(&rng, seed);
    for (uint32_t i = 0; i < n; i++)
        a[i] = (struct hri_ranked){random_key(&rng, kind), i};
    if (kind == 6) /* every so many are unlike the others: samples may be of those only */
        for (uint32_t i = 0; i < n; i += n >= 512 ? n / 512 : 1)
            a[i].key = seed % 2 ? 9 : 0;
    memcpy(truth, a, n * sizeof *a);
    qsort(truth, n, sizeof *truth, by_rank);
    hri_rank_select(a, n, best);
    uint32_t shown = best < n ? best : n;
    qsort(a, shown, sizeof *a, by_rank);
    for (uint32_t i = 0; i < shown; i++)
        if (a[i].item != truth[i].item)
            fail_msg("seed %llu, kind %u, n %u, best %u: place %u has %u, not %u",
                     (unsigned long long)seed, kind, n, best, i, a[i].item, truth[i].item);
    qsort(a + shown, n - shown, sizeof *a, by_rank); /* and nothing is lost */
    for (uint32_t i = shown; i < n; i++)
        assert_int_equal(a[i].item, truth[i].item);
    for (uint32_t i = n; i-- > 1;) { /* from any order */
        uint32_t j = (uint32_t)hri_rng_below(&rng, i + 1);
        struct hri_ranked x = a[i];
        a[i] = a[j];
        a[j] = x;
    }
    hri_rank_sort(a, n);
    for (uint32_t i = 0; i < n; i++)
        if (a[i].item != truth[i].item || a[i].key != truth[i].key)
            fail_msg("seed %llu, kind %u, n %u: sorted, place %u has %u, not %u",
                     (unsigned long long)seed, kind, n, i, a[i].item, truth[i].item);
    free(a);
    free(truth);
}

static void test_select(void **state)
{
    (void)state;
    uint64_t seed = test_seed(21);
    static const uint32_t lengths[] = {1, 2, 24, 25, 511, 512, 513, 700, 4096, 9001, 20000};
    for (unsigned kind = 0; kind < 7; kind++)
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            uint32_t n = lengths[i];
            const uint32_t best[] = {0, 1, 2, n / 50, n / 9, n / 3, n / 2, n - 1, n, n + 1};
            for (size_t j = 0; j < sizeof best / sizeof best[0]; j++)
                check_select(seed++, kind, n, best[j]);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_select)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
