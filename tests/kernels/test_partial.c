/* Running softmaxes, and the choice of a level. Merging is exact up to rounding: 1e-6 relative. */
#include "kernel_test.h"

#define TOLERANCE_MERGE 1e-6

enum { G = 3, D = 24 };

static void fill_partial(struct hri_rng *rng, struct hri_partial *part)
{
    for (int i = 0; i < G; i++) {
        part->m[i] = (float)hri_rng_normal(rng) * 20.0f;
        part->l[i] = 1.0f + 30.0f * hri_rng_f32(rng);
        fill_normal(rng, part->o + i * D, D, (double)part->l[i]);
    }
}

/* The merge in double, from the finished parts. */
static void check_merged(const struct hri_partial *merged, const struct hri_partial *a,
                         const struct hri_partial *b)
{
    for (int i = 0; i < G; i++) {
        double m = fmax((double)a->m[i], (double)b->m[i]);
        double wa = exp((double)a->m[i] - m), wb = exp((double)b->m[i] - m);
        double l = (double)a->l[i] * wa + (double)b->l[i] * wb;
        CHECK_BELOW(fabs((double)merged->l[i] - l), TOLERANCE_MERGE * l);
        for (int j = 0; j < D; j++) {
            double x = (double)a->o[i * D + j] * wa, y = (double)b->o[i * D + j] * wb;
            CHECK_BELOW(fabs((double)merged->o[i * D + j] - (x + y)),
                        TOLERANCE_MERGE * (fabs(x) + fabs(y)));
        }
    }
}

static void test_merge(void **state)
{
    struct hri_rng rng;

    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        hri_rng_seed(&rng, seed);
        struct hri_partial a = partial_make(G, D), b = partial_make(G, D), c = partial_make(G, D);
        fill_partial(&rng, &a);
        fill_partial(&rng, &b);
        fill_partial(&rng, &c);
        CASE("merge seed %llu", (unsigned long long)seed);
        struct hri_partial ab = partial_copy(&a, G, D), bc = partial_copy(&b, G, D), left, right;
        hri_partial_merge(&ab, &b, G, D);
        check_merged(&ab, &a, &b);
        left = partial_copy(&ab, G, D);
        hri_partial_merge(&left, &c, G, D);
        hri_partial_merge(&bc, &c, G, D);
        right = partial_copy(&a, G, D);
        hri_partial_merge(&right, &bc, G, D);
        check_partials(&left, &right, G, D, 4 * TOLERANCE_MERGE);
        guarded_free_all();
    }
}

static void test_merge_with_nothing(void **state)
{
    struct hri_rng rng;
    struct hri_partial a = partial_make(G, D), nothing = partial_make(G, D),
                       also = partial_make(G, D);
    float out[G * D], lse[G];

    (void)state;
    hri_rng_seed(&rng, 4);
    fill_partial(&rng, &a);
    struct hri_partial merged = partial_copy(&a, G, D);
    hri_partial_merge(&merged, &nothing, G, D);
    assert_memory_equal(merged.o, a.o, G * D * sizeof(float));
    merged = partial_copy(&nothing, G, D);
    hri_partial_merge(&merged, &a, G, D);
    assert_memory_equal(merged.o, a.o, G * D * sizeof(float));
    assert_memory_equal(merged.m, a.m, G * sizeof(float));
    hri_partial_merge(&nothing, &also, G, D);
    hri_partial_finish(&nothing, G, D, out, lse);
    for (int i = 0; i < G; i++)
        assert_true(isinf(lse[i]) && lse[i] < 0.0f);
    for (int j = 0; j < G * D; j++)
        assert_true(out[j] == 0.0f);
    hri_partial_finish(&a, G, D, out, NULL);
    guarded_free_all();
}

/* An (output, lse) pair that is added is the same as merging the partial it came from. */
static void test_add(void **state)
{
    struct hri_rng rng;

    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        float *out = guarded_floats(G * D), *lse = guarded_floats(G);
        struct hri_partial a = partial_make(G, D), b = partial_make(G, D);
        hri_rng_seed(&rng, seed);
        if (seed % 3)
            fill_partial(&rng, &a);
        fill_partial(&rng, &b);
        if (seed % 4 == 0) { /* one query of it saw nothing */
            b.m[1] = -INFINITY;
            b.l[1] = 0.0f;
            memset(b.o + D, 0, D * sizeof(float));
        }
        struct hri_partial merged = partial_copy(&a, G, D), added = partial_copy(&a, G, D);
        CASE("add seed %llu", (unsigned long long)seed);
        hri_partial_merge(&merged, &b, G, D);
        hri_partial_finish(&b, G, D, out, lse);
        hri_partial_add(&added, G, D, lse, out);
        check_partials(&added, &merged, G, D, 1e-5);
        guarded_free_all();
    }
}

static void test_levels(void **state)
{
    enum hri_kernel_level level = HRI_KERNEL_AVX2;

    (void)state;
    assert_true(hri_kernels_parse("ref", &level) && level == HRI_KERNEL_REF);
    assert_true(hri_kernels_parse("avx512", &level) && level == HRI_KERNEL_AVX512);
    assert_true(hri_kernels_parse("amx", &level) && level == HRI_KERNEL_AMX);
    assert_true(hri_kernels_parse("avx2", &level) && level == HRI_KERNEL_AVX2);
    assert_false(hri_kernels_parse("sse", &level));
    assert_false(hri_kernels_parse("", &level));
    assert_int_equal(level, HRI_KERNEL_AVX2);
    for (int i = HRI_KERNEL_REF; i <= HRI_KERNEL_AMX; i++) {
        const struct hri_kernels *k = hri_kernels_get((enum hri_kernel_level)i);
        assert_non_null(k);
        assert_true((int)k->level <= i && k->level <= hri_kernels_best());
        assert_true(hri_kernels_parse(k->name, &level) && level == k->level);
        /* Every entry is set. */
        const char *entries = (const char *)&k->to_f32;
        for (size_t at = 0; at + sizeof(void *) <= sizeof *k - offsetof(struct hri_kernels, to_f32);
             at += sizeof(void *)) {
            void *entry;
            memcpy(&entry, entries + at, sizeof entry);
            assert_non_null(entry);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_merge_with_nothing),
        cmocka_unit_test(test_add),
        cmocka_unit_test(test_levels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
