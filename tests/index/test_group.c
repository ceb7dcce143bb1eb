/* Grouping: every row in exactly one block, caps and bounds kept, whatever the data; and the order
 * functions beneath. */
#include "index/group.h"
#include "index_test.h"

static const uint32_t lengths[] = {1,  2,  15, 16, 17,  18,  19,  31,  32,
                                   33, 35, 36, 37, 255, 256, 257, 1000};

static void check_partition(uint32_t n, uint32_t cap, uint32_t blocks_max, const uint32_t *order,
                            const uint32_t *block_rows, uint32_t n_blocks)
{
    uint8_t *seen = calloc(n + 1, 1);
    uint32_t sum = 0;
    assert_in_range(n_blocks, 1, blocks_max);
    for (uint32_t b = 0; b < n_blocks; b++) {
        assert_in_range(block_rows[b], 1, cap);
        sum += block_rows[b];
    }
    assert_int_equal(sum, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_in_range(order[i], 0, n - 1);
        assert_int_equal(seen[order[i]]++, 0);
    }
    free(seen);
}

static void group_and_check(const float *y, uint32_t n, uint32_t d, uint32_t target, uint32_t cap,
                            bool spherical)
{
    struct hri_group_in in = {.kernels = hri_kernels_get(hri_kernels_best()),
                              .y = y,
                              .n = n,
                              .d = d,
                              .target = target,
                              .cap = cap,
                              .iterations = 4,
                              .spherical = spherical};
    uint32_t blocks_max = hri_group_blocks_max(n, target);
    uint32_t *order = malloc(n * sizeof *order),
             *block_rows = malloc(blocks_max * sizeof *block_rows);
    void *work = NULL;
    assert_int_equal(posix_memalign(&work, 64, hri_group_kmeans_work_bytes(n, d, target)), 0);
    uint32_t n_blocks = hri_group_kmeans(&in, work, order, block_rows);
    check_partition(n, cap, blocks_max, order, block_rows, n_blocks);
    n_blocks = hri_group_consecutive(n, target, order, block_rows);
    check_partition(n, target, blocks_max, order, block_rows, n_blocks);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(order[i], i);
    free(order);
    free(block_rows);
    free(work);
}

static void test_random_rows(void **state)
{
    struct hri_rng rng;
    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        hri_rng_seed(&rng, i);
        float *y = synth_normal(&rng, (size_t)lengths[i] * 24, 1);
        for (uint32_t target = 4; target <= 32; target += 7) {
            group_and_check(y, lengths[i], 24, target, 2 * target, false);
            group_and_check(y, lengths[i], 24, target, 2 * target, true);
            group_and_check(y, lengths[i], 24, target, 7 * target / 4 + 1, false);
        }
        free(y);
    }
}

/* All rows equal; rows on a line; one huge cluster beside many lonely rows; huge numbers. */
static void test_hard_rows(void **state)
{
    enum { N = 700, D = 8 };
    struct hri_rng rng;
    (void)state;
    hri_rng_seed(&rng, 5);
    float *y = calloc(N * D, sizeof *y);
    group_and_check(y, N, D, 18, 36, false);
    group_and_check(y, N, D, 18, 36, true);
    for (uint32_t i = 0; i < N; i++)
        y[i * D] = (float)i;
    group_and_check(y, N, D, 18, 32, false);
    memset(y, 0, N * D * sizeof *y);
    for (uint32_t i = 0; i < N; i += 9)
        for (uint32_t j = 0; j < D; j++)
            y[i * D + j] = (float)(100 * hri_rng_normal(&rng));
    group_and_check(y, N, D, 18, 32, false);
    group_and_check(y, N, D, 18, 32, true);
    for (uint32_t i = 0; i < N * D; i++)
        y[i] *= 1e15f;
    group_and_check(y, N, D, 18, 32, false);
    free(y);
}

/* Rows around well separated centres of 16 rows, a third more blocks than centres: blocks must
 * follow them. */
static void test_finds_clusters(void **state)
{
    enum { CENTERS = 20, EACH = 16, D = 16, N = CENTERS * EACH };
    struct hri_rng rng;
    (void)state;
    hri_rng_seed(&rng, 11);
    float *centers = synth_normal(&rng, CENTERS * D, 10), *y = synth_array(N * D);
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t j = 0; j < D; j++)
            y[i * D + j] = centers[i % CENTERS * D + j] + (float)(0.01 * hri_rng_normal(&rng));
    struct hri_group_in in = {.kernels = hri_kernels_get(HRI_KERNEL_REF),
                              .y = y,
                              .n = N,
                              .d = D,
                              .target = 12,
                              .cap = 32,
                              .iterations = 10};
    uint32_t order[N], block_rows[N / 12 + 1];
    void *work = NULL;
    assert_int_equal(posix_memalign(&work, 64, hri_group_kmeans_work_bytes(N, D, 12)), 0);
    uint32_t n_blocks = hri_group_kmeans(&in, work, order, block_rows), mixed = 0;
    for (uint32_t b = 0, first = 0; b < n_blocks; first += block_rows[b++])
        for (uint32_t i = 1; i < block_rows[b]; i++)
            mixed += order[first + i] % CENTERS != order[first] % CENTERS;
    assert_true(mixed <= N / 10);
    free(work);
    free(centers);
    free(y);
}

/* The bounds the runtime budgets with, for every selector. */
static void test_bounds(void **state)
{
    static const uint32_t dims[] = {32, 64, 80, 96, 128, 256};
    static const char *const recipes[] = {"headrace", "headrace:block=32", "retroinfer", "quest",
                                          "full",     "exact-topk"};
    (void)state;
    for (size_t r = 0; r < 6; r++)
        for (size_t d = 0; d < 6; d++) {
            struct hri_recipe recipe;
            assert_int_equal(hri_recipe_parse(recipes[r], &recipe), HR_OK);
            uint32_t target = hri_index_target_rows(&recipe),
                     least = hri_index_target_rows_least(&recipe),
                     cap = hri_index_block_rows_max(&recipe, dims[d], dims[d]);
            assert_int_equal(least, r == 0 ? target / 3 : target);
            assert_in_range(cap, target, 2 * target);
            assert_in_range(cap, 1, HRI_BLOCK_ROWS_LIMIT);
            assert_int_equal(hri_index_blocks_bound(&recipe, dims[d], dims[d], 0, 0), 0);
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                uint32_t n = lengths[i],
                         bound = hri_index_blocks_bound(&recipe, dims[d], dims[d], n, 1);
                assert_true(bound >= hri_group_blocks_max(n, n <= 1024 ? least : target));
                uint32_t cuts = recipe.selector->splits_clusters ? n / cap : 0;
                uint32_t small = n / target + (n < 1024 ? n : 1024) / target + 2;
                assert_true(bound <= n / target + 1 + cuts + (least < target ? small : 0));
            }
        }
}

static int by_rank(const void *a, const void *b)
{
    const struct hri_ranked *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return x->item < y->item ? -1 : x->item > y->item;
}

static void test_ranking(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct hri_rng rng;
        hri_rng_seed(&rng, seed);
        uint32_t n = (uint32_t)hri_rng_below(&rng, 200),
                 distinct = 1 + (uint32_t)hri_rng_below(&rng, 300);
        struct hri_ranked a[200] = {{0}}, b[200], truth[200];
        for (uint32_t i = 0; i < n; i++)
            a[i] = (struct hri_ranked){(float)hri_rng_below(&rng, distinct), i};
        memcpy(b, a, sizeof a);
        memcpy(truth, a, sizeof a);
        qsort(truth, n, sizeof *truth, by_rank);
        hri_rank_sort(a, n);
        assert_memory_equal(a, truth, n * sizeof *a);
        uint32_t best = n ? (uint32_t)hri_rng_below(&rng, n + 1) : 0;
        hri_rank_select(b, n, best);
        qsort(b, best, sizeof *b, by_rank);
        assert_memory_equal(b, truth, best * sizeof *b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_rows),    cmocka_unit_test(test_hard_rows),
        cmocka_unit_test(test_finds_clusters), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_ranking),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
