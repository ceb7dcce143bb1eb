/* attend_tile: every level against one call of the reference's attend_rows per query, with causal,
 * sliding, random and empty masks. Tolerance 1e-5 relative to the output's length, and of the lse.
 */
#include "kernel_test.h"

#define TOLERANCE_TILE 1e-5

enum mask { MASK_FULL, MASK_CAUSAL, MASK_SLIDING, MASK_RANDOM, MASK_EMPTY, MASKS };
static const char *const mask_names[MASKS] = {"full", "causal", "sliding", "random", "empty"};

struct shape {
    uint32_t nq, group, dk, dv, n;
    hr_dtype_t dtype;
    float soft_cap;
    enum mask mask;
    uint64_t seed;
};

static void mask_fill(struct hri_rng *rng, const struct shape *s, uint32_t *first, uint32_t *last)
{
    const uint32_t start = s->n > 8 ? s->n / 3 : 0;

    for (uint32_t i = 0; i < s->nq; i++) {
        const uint32_t visible = start + i / s->group + 1;
        first[i] = 0;
        last[i] = s->n;
        if (s->mask == MASK_CAUSAL || s->mask == MASK_SLIDING)
            last[i] = visible < s->n ? visible : s->n;
        if (s->mask == MASK_SLIDING)
            first[i] = last[i] > 10 ? last[i] - 10 : 0;
        if (s->mask == MASK_RANDOM) {
            first[i] = (uint32_t)hri_rng_below(rng, s->n + 1);
            last[i] = (uint32_t)hri_rng_below(rng, s->n + 1);
        }
        if (s->mask == MASK_EMPTY)
            last[i] = first[i] = s->n / 2;
    }
}

static void check_tile(const struct shape *s)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    const size_t width = s->dk + s->dv, element = dtype_bytes(s->dtype);

    hri_rng_seed(&rng, s->seed);
    float *q = guarded_floats((size_t)s->nq * s->dk), *values = guarded_floats(s->n * width);
    uint32_t *first = guarded_alloc(s->nq * sizeof *first),
             *last = guarded_alloc(s->nq * sizeof *last);
    void *base = guarded_alloc(s->n * width * element);
    const size_t scratch_bytes = hri_tile_scratch_bytes(s->nq, s->dk, s->dv, s->n);
    void *scratch = guarded_alloc((scratch_bytes + 63) / 64 * 64);
    fill_normal(&rng, q, (size_t)s->nq * s->dk, (0.3 + 6.0 * hri_rng_f64(&rng)) / sqrt(s->dk));
    fill_normal(&rng, values, s->n * width, 1.0);
    to_dtype(base, values, s->dtype, s->n * width);
    mask_fill(&rng, s, first, last);
    const struct hri_rows rows = {
        .base = base, .stride_bytes = width * element, .n = s->n, .dtype = s->dtype};
    struct hri_partial start = partial_make(s->nq, s->dv);
    for (uint32_t i = 0; i < s->nq; i += 2) { /* every second query has seen something */
        start.m[i] = (float)hri_rng_normal(&rng) * 4.0f;
        start.l[i] = 1.0f + hri_rng_f32(&rng);
        fill_normal(&rng, start.o + (size_t)i * s->dv, s->dv, 1.0);
    }

    struct hri_partial want = partial_copy(&start, s->nq, s->dv);
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    for (uint32_t i = 0; i < s->nq; i++) {
        struct hri_partial one = {want.m + i, want.l + i, want.o + (size_t)i * s->dv};
        struct hri_rows seen = rows;
        seen.base = (const char *)base + (first[i] < last[i] ? first[i] : 0) * rows.stride_bytes;
        seen.n = first[i] < last[i] ? last[i] - first[i] : 0;
        ref->attend_rows(q + (size_t)i * s->dk, 1, s->dk, s->dv, seen, s->soft_cap, &one);
    }
    for (unsigned level = 0; level < n_levels; level++) {
        struct hri_partial part = partial_copy(&start, s->nq, s->dv);
        CASE("%s attend_tile %s dtype %d nq %u dk %u dv %u n %u cap %g seed %llu",
             levels[level]->name, mask_names[s->mask], (int)s->dtype, s->nq, s->dk, s->dv, s->n,
             (double)s->soft_cap, (unsigned long long)s->seed);
        memset(scratch, 0xff, scratch_bytes);
        levels[level]->attend_tile(q, s->nq, s->dk, s->dv, rows, first, last, s->soft_cap, scratch,
                                   &part);
        check_partials(&part, &want, s->nq, s->dv, TOLERANCE_TILE);
        if (s->mask == MASK_EMPTY || s->n == 0)
            assert_memory_equal(part.o, start.o, (size_t)s->nq * s->dv * sizeof(float));
    }
    guarded_free_all();
}

static void test_tile_shapes(void **state)
{
    static const uint32_t query_counts[] = {1, 2, 5, 6, 7, 11, 12, 13, 24, 25};
    uint64_t seed = 100;

    (void)state;
    FOR_EACH(t, dtypes)
    {
        FOR_EACH(d, dims)
        {
            FOR_EACH(b, lengths)
            {
                seed++;
                struct shape s = {query_counts[seed % 10],
                                  1 + (uint32_t)(seed % 4),
                                  dims[d][0],
                                  dims[d][1],
                                  lengths[b],
                                  dtypes[t],
                                  seed % 5 ? 0.0f : 4.0f,
                                  (enum mask)(seed / 3 % MASKS),
                                  seed};
                check_tile(&s);
            }
        }
    }
}

static void test_tile_long(void **state)
{
    static const uint32_t long_lengths[] = {64, 100, 511, 512, 513, 700, 1025};
    uint64_t seed = 3000;

    (void)state;
    FOR_EACH(b, long_lengths)
    {
        for (int mask = 0; mask < MASKS; mask++) {
            seed++;
            struct shape s = {30,
                              3,
                              dims[seed % 12][0],
                              dims[seed % 12][1],
                              long_lengths[b],
                              dtypes[seed % 3],
                              0.0f,
                              (enum mask)mask,
                              seed};
            check_tile(&s);
        }
    }
}

/* Tiles in sequence are one attention over all rows. */
static void test_tiles_chain(void **state)
{
    enum { NQ = 9, D = 64, N = 200 };
    struct hri_rng rng;
    float *q = guarded_floats(NQ * D), *values = guarded_floats(N * 2 * D);
    uint32_t first[NQ], last[NQ];
    void *scratch = guarded_alloc(hri_tile_scratch_bytes(NQ, D, D, 64));

    (void)state;
    hri_rng_seed(&rng, 77);
    fill_normal(&rng, q, NQ * D, 0.2);
    fill_normal(&rng, values, N * 2 * D, 1.0);
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rows all = {
        .base = values, .stride_bytes = 2 * D * sizeof(float), .n = N, .dtype = HR_DTYPE_F32};
    struct hri_partial want = partial_make(NQ, D);
    hri_kernels_get(HRI_KERNEL_REF)->attend_rows(q, NQ, D, D, all, 0.0f, &want);
    for (unsigned level = 0; level < n_levels; level++) {
        struct hri_partial part = partial_make(NQ, D);
        CASE("%s chained tiles", levels[level]->name);
        for (uint32_t at = 0; at < N; at += 64) {
            struct hri_rows tile = all;
            tile.base = values + at * 2 * D;
            tile.n = N - at < 64 ? N - at : 64;
            for (int i = 0; i < NQ; i++) {
                first[i] = 0;
                last[i] = tile.n;
            }
            levels[level]->attend_tile(q, NQ, D, D, tile, first, last, 0.0f, scratch, &part);
        }
        check_partials(&part, &want, NQ, D, TOLERANCE_TILE);
    }
    guarded_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tile_shapes),
        cmocka_unit_test(test_tile_long),
        cmocka_unit_test(test_tiles_chain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
