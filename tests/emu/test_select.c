/* Selection against a sort: the same items exactly, whatever the order of threads. */
#include "tests/emu/emu_test.h"

struct ranked {
    float key;
    uint32_t index;
};

static int by_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* What launch.h says, in its words. Errors are in whole parts of 2^-40, as the kernel has them. */
static uint32_t naive(const struct hri_cuda_select_args *a, uint32_t h, uint8_t *taken,
                      float *left_out)
{
    const uint32_t n = a->n[h];
    const size_t at = (size_t)h * a->stride;
    struct ranked *ranked = malloc((n + 1) * sizeof *ranked);
    assert_non_null(ranked);
    uint32_t m = 0, count = 0;
    for (uint32_t i = 0; i < n; i++)
        if (a->key[at + i] > 0)
            ranked[m++] = (struct ranked){a->key[at + i], i};
    qsort(ranked, m, sizeof *ranked, by_rank);
    uint64_t spent[2] = {0, 0}, removed = 0;
    bool ended[2] = {false, false}, tolerance = a->error && a->enough[h] > 0;
    float parts = a->error && a->left[h] > 0 ? 1099511627776.0f / a->left[h] : 0;
    float excess = tolerance ? (a->left[h] - a->enough[h]) * parts : 0;
    uint64_t must = excess > 0 ? (uint64_t)ceilf(excess) : 0;
    memset(taken, 0, n);
    for (uint32_t r = 0; r < m; r++) {
        uint32_t i = ranked[r].index, c = a->class_ ? a->class_[at + i] : 0;
        uint64_t cost = a->cost ? a->cost[at + i] : 1;
        if (ended[c] || spent[c] + cost > a->budget[h * 2 + c]) {
            ended[c] = true;
            continue;
        }
        spent[c] += cost;
        if (tolerance && removed >= must)
            continue;
        taken[i] = 1;
        count++;
        if (a->error)
            removed += (uint64_t)(a->error[at + i] * parts + 0.5f);
    }
    *left_out = a->error ? fmaxf(a->left[h] - (parts > 0 ? (float)removed / parts : 0), 0) : 0;
    free(ranked);
    return count;
}

enum keys { KEYS_WIDE, KEYS_CLOSE, KEYS_FEW, KEYS_EQUAL, KEYS_NONE, KEYS_KINDS };

static float key_of(struct hri_rng *rng, enum keys kind)
{
    switch (kind) {
    case KEYS_WIDE:
        return expf(8 * (float)hri_rng_normal(rng));
    case KEYS_CLOSE: /* differ in the last bits */
        return hri_f32_from_bits(0x3f800000u + (uint32_t)hri_rng_below(rng, 5000));
    case KEYS_FEW:
        return (float)hri_rng_below(rng, 4) - 1;
    case KEYS_EQUAL:
        return 0.25f;
    default:
        return hri_rng_below(rng, 2) ? 0.0f : -1.0f;
    }
}

static void run(uint32_t n, enum keys kind, bool costs, bool classes, double tolerance,
                double share, int order)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, n * 131 + (uint32_t)kind);
    const uint32_t heads = 2, stride = (n + 31) / 16 * 16, items_max = n + 1;
    float *key = device_alloc(heads * stride * 4), *error = device_alloc(heads * stride * 4),
          *left = device_zero(heads * 4), *enough = device_zero(heads * 4);
    uint32_t *cost = device_alloc(heads * stride * 4), *counts = device_alloc(heads * 4);
    uint8_t *class_ = device_alloc(heads * stride), *taken = malloc(n + 1);
    uint64_t *budget = device_zero(heads * 16);
    assert_non_null(taken);
    for (uint32_t h = 0; h < heads; h++) {
        counts[h] = h ? n - n / 3 : n;
        for (uint32_t i = 0; i < counts[h]; i++) {
            const size_t at = (size_t)h * stride + i;
            key[at] = key_of(&rng, kind);
            error[at] = fabsf(key[at]) * hri_rng_f32(&rng);
            cost[at] = (uint32_t)hri_rng_below(&rng, 3) * 512;
            class_[at] = (uint8_t)(hri_rng_below(&rng, 4) == 0);
            budget[h * 2 + class_[at] * classes] += costs ? cost[at] : 1;
            left[h] += error[at];
        }
        left[h] *= 1.01f;
        enough[h] = (float)tolerance * left[h];
        for (uint32_t c = 0; c < 2; c++)
            budget[h * 2 + c] = (uint64_t)((double)budget[h * 2 + c] * share);
    }
    struct hri_cuda_select_args a = {.key = key,
                                     .cost = costs ? cost : NULL,
                                     .class_ = classes ? class_ : NULL,
                                     .error = tolerance >= 0 ? error : NULL,
                                     .stride = stride,
                                     .n = counts,
                                     .budget = budget,
                                     .left = left,
                                     .enough = enough,
                                     .items_max = items_max};
    a.items = device_alloc(heads * items_max * 4);
    a.n_items = device_alloc(heads * 4);
    a.left_out = device_zero(heads * 4);
    set_order(order);
    RUN(hri_cuda_select(&a, heads, NULL));
    for (uint32_t h = 0; h < heads; h++) {
        float want_left;
        uint32_t want = naive(&a, h, taken, &want_left), j = 0;
        if (a.n_items[h] != want)
            fail_msg("%s: head %u took %u items, not %u", case_text, h, a.n_items[h], want);
        for (uint32_t i = 0; i < counts[h]; i++)
            if (taken[i] && a.items[(size_t)h * items_max + j++] != i)
                fail_msg("%s: head %u: item %u is %u, not %u", case_text, h, j - 1,
                         a.items[(size_t)h * items_max + j - 1], i);
        CHECK_BELOW(fabs((double)(a.left_out[h] - want_left)), 1e-6 * (double)left[h]);
    }
    free(taken);
    device_free_all();
}

static void test_sizes(void **state)
{
    (void)state;
    const uint32_t counts[] = {0, 1, 2, 31, 32, 33, 511, 512, 513, 1500};
    FOR_EACH(i, counts)
    {
        CASE("select %u items", counts[i]);
        run(counts[i], KEYS_WIDE, i % 2, i % 3, -1, 0.3, (int)(i % 3));
    }
}

static void test_kinds(void **state)
{
    (void)state;
    for (int kind = 0; kind < KEYS_KINDS; kind++)
        for (int classes = 0; classes < 2; classes++) {
            const bool costs = (kind + classes) % 2;
            CASE("select keys of kind %d, classes %d, costs %d", kind, classes, costs);
            run(700, (enum keys)kind, costs, classes, -1, 0.4, (kind + classes) % 3);
            run(700, (enum keys)kind, !costs, classes, 0.2, 0.7, (kind + classes + 1) % 3);
        }
}

/* More items of one key than are looked at one by one. */
static void test_many_ties(void **state)
{
    (void)state;
    CASE("select among 2,500 equal keys");
    run(2500, KEYS_EQUAL, true, true, -1, 0.5, HRI_EMU_BACKWARD);
    run(2500, KEYS_EQUAL, false, false, 0.3, 1, HRI_EMU_SHUFFLED);
}

static void test_budgets(void **state)
{
    (void)state;
    const double shares[] = {0, 0.002, 0.99, 1, 2}, tolerances[] = {-1, 0, 0.001, 0.9, 1.5};
    FOR_EACH(s, shares)
    FOR_EACH(t, tolerances)
    {
        CASE("select with %g of the budget, tolerance %g", shares[s], tolerances[t]);
        run(300, s % 2 ? KEYS_FEW : KEYS_WIDE, true, true, tolerances[t], shares[s], (int)(t % 3));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_sizes), EMU_TEST(test_kinds),
                                       EMU_TEST(test_many_ties), EMU_TEST(test_budgets)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
