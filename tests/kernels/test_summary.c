/* Packed centroids, score_centroids, weighted_sum_i8, score_bounds, quantise_i8.
 *
 *   operation         tolerance
 *   score_centroids   2^-13 |q|_inf sum|centroid|, the bound the header promises
 *   weighted_sum_i8   3e-6 relative to sum |w step code|
 *   score_bounds      3e-6 relative to sum |q bound|
 *   quantise_i8       step and codes equal */
#include "kernel_test.h"

#define TOLERANCE_SUM 3e-6

static void test_pack_round_trip(void **state)
{
    struct hri_rng rng;

    (void)state;
    hri_rng_seed(&rng, 5);
    FOR_EACH(d, dims)
    {
        const uint32_t dk = dims[d][0], n = 37;
        const size_t bytes = hri_centroids_bytes(n, dk);
        uint8_t *codes = guarded_alloc(bytes);
        float *centroid = guarded_floats(dk), *back = guarded_floats(dk);
        assert_int_equal(bytes, 48 * dk);
        for (uint32_t b = 0; b < n; b++) {
            fill_normal(&rng, centroid, dk, b == 3 ? 0.0 : pow(10.0, (double)b - 18.0));
            float step = hri_centroid_pack(codes, dk, b, centroid);
            hri_centroid_unpack(codes, dk, b, step, back);
            CASE("centroid %u of width %u, step %g", b, dk, (double)step);
            CHECK_BELOW(absolute_error(back, centroid, dk), (double)step * 0.5001);
            /* Lane b of the documented layout. */
            for (uint32_t j = 0; j < dk; j++) {
                size_t at = (((size_t)(b / 16) * (dk / 4) + j / 4) * 16 + b % 16) * 4 + j % 4;
                assert_true((float)((int)codes[at] - 128) * step == back[j]);
            }
        }
        guarded_free_all();
    }
}

static void check_centroids(uint32_t g, uint32_t dk, uint32_t n, bool extreme, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    const uint32_t whole = (n + 15) / 16 * 16;
    uint8_t *codes = guarded_alloc(hri_centroids_bytes(n, dk));
    float *step = guarded_floats(whole), *q = guarded_floats((size_t)g * dk),
          *centroid = guarded_floats(dk);

    hri_rng_seed(&rng, seed);
    memset(codes, 128, hri_centroids_bytes(n, dk));
    memset(step, 0, whole * sizeof *step);
    fill_normal(&rng, q, (size_t)g * dk, 0.2);
    for (uint32_t b = 0; b < n; b++) {
        fill_normal(&rng, centroid, dk, 1.0);
        /* All codes and all query terms at their largest: sums that saturate would show. */
        for (uint32_t j = 0; j < dk && extreme; j++)
            centroid[j] = b % 3 == 0           ? 2.0f
                          : b % 3 == 1         ? -2.0f
                          : centroid[j] > 0.0f ? 2.0f
                                               : -2.0f;
        step[b] = hri_centroid_pack(codes, dk, b, centroid);
    }
    for (uint32_t j = 0; j < g * dk && extreme; j++)
        q[j] = q[j] > 0.0f || j % 2 ? 0.7f : -0.7f;
    const struct hri_centroids c = {.codes = codes, .step = step, .n = n};
    for (unsigned level = 0; level < n_levels; level++) {
        float *out = guarded_floats((size_t)g * whole);
        CASE("%s score_centroids g %u dk %u n %u extreme %d seed %llu", levels[level]->name, g, dk,
             n, extreme, (unsigned long long)seed);
        levels[level]->score_centroids(q, g, dk, c, out, whole);
        for (uint32_t i = 0; i < g; i++) {
            double q_largest = 0.0;
            for (uint32_t j = 0; j < dk; j++)
                q_largest = fmax(q_largest, fabs((double)q[(size_t)i * dk + j]));
            for (uint32_t b = 0; b < n; b++) {
                double dot = 0.0, size = 0.0;
                hri_centroid_unpack(codes, dk, b, step[b], centroid);
                for (uint32_t j = 0; j < dk; j++) {
                    dot += (double)q[(size_t)i * dk + j] * (double)centroid[j];
                    size += fabs((double)centroid[j]);
                }
                CHECK_BELOW(fabs((double)out[i * whole + b] - dot), 0x1p-13 * q_largest * size);
            }
            for (uint32_t b = n; b < whole; b++)
                CHECK_BELOW(fabs((double)out[i * whole + b]), 0.0);
        }
    }
    guarded_free_all();
}

static void test_score_centroids(void **state)
{
    uint64_t seed = 1;

    (void)state;
    FOR_EACH(a, group_sizes)
    {
        FOR_EACH(d, dims)
        {
            FOR_EACH(b, lengths)
            {
                seed++;
                check_centroids(group_sizes[a], dims[d][0], lengths[b] + (seed % 7 == 0 ? 64 : 0),
                                seed % 3 == 0, seed);
            }
        }
    }
}

static void check_weighted_sum(uint32_t g, uint32_t dv, uint32_t n, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    const size_t stride = n + 5;
    int8_t *codes = guarded_alloc((size_t)n * dv);
    float *step = guarded_floats(n), *w = guarded_floats(g * stride - 5),
          *start = guarded_floats((size_t)g * dv);

    hri_rng_seed(&rng, seed);
    fill_normal(&rng, start, (size_t)g * dv, 1.0);
    for (size_t j = 0; j < (size_t)n * dv; j++)
        codes[j] = (int8_t)((int)hri_rng_below(&rng, 255) - 127);
    for (uint32_t b = 0; b < n; b++) {
        step[b] = hri_rng_f32(&rng);
        bool unused = hri_rng_below(&rng, 3) == 0;
        for (uint32_t i = 0; i < g; i++)
            w[i * stride + b] = unused ? 0.0f : hri_rng_f32(&rng);
    }
    for (unsigned level = 0; level < n_levels; level++) {
        float *o = guarded_floats((size_t)g * dv);
        memcpy(o, start, (size_t)g * dv * sizeof *o);
        CASE("%s weighted_sum_i8 g %u dv %u n %u seed %llu", levels[level]->name, g, dv, n,
             (unsigned long long)seed);
        levels[level]->weighted_sum_i8(w, stride, g, n, dv, codes, step, o);
        for (uint32_t i = 0; i < g; i++) {
            for (uint32_t j = 0; j < dv; j++) {
                double sum = (double)start[(size_t)i * dv + j], size = fabs(sum);
                for (uint32_t b = 0; b < n; b++) {
                    double term =
                        (double)w[i * stride + b] * (double)step[b] * codes[(size_t)b * dv + j];
                    sum += term;
                    size += fabs(term);
                }
                CHECK_BELOW(fabs((double)o[(size_t)i * dv + j] - sum), TOLERANCE_SUM * size);
            }
        }
    }
    guarded_free_all();
}

static void test_weighted_sum_i8(void **state)
{
    uint64_t seed = 700;

    (void)state;
    FOR_EACH(a, group_sizes)
    {
        FOR_EACH(d, dims)
        {
            seed++;
            check_weighted_sum(group_sizes[a], dims[d][1], lengths[seed % COUNT_OF(lengths)], seed);
            check_weighted_sum(group_sizes[a], dims[d][1], 100 + (uint32_t)(seed % 200), seed);
        }
    }
}

static void check_bounds(uint32_t g, uint32_t d, uint32_t n, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    uint16_t *min = guarded_alloc((size_t)n * d * 2), *max = guarded_alloc((size_t)n * d * 2);
    float *q = guarded_floats((size_t)g * d);
    const size_t stride = n + 1;

    hri_rng_seed(&rng, seed);
    fill_normal(&rng, q, (size_t)g * d, 0.3);
    for (size_t j = 0; j < (size_t)n * d; j++) {
        float a = (float)hri_rng_normal(&rng), b = (float)hri_rng_normal(&rng);
        min[j] = hri_f16_from_f32(fminf(a, b));
        max[j] = hri_f16_from_f32(fmaxf(a, b));
    }
    for (unsigned level = 0; level < n_levels; level++) {
        float *out = guarded_floats(g * stride - 1);
        CASE("%s score_bounds g %u d %u n %u seed %llu", levels[level]->name, g, d, n,
             (unsigned long long)seed);
        levels[level]->score_bounds(q, g, d, min, max, n, out, stride);
        for (uint32_t i = 0; i < g; i++) {
            for (uint32_t b = 0; b < n; b++) {
                double sum = 0.0, size = 0.0;
                for (uint32_t j = 0; j < d; j++) {
                    double x = (double)q[(size_t)i * d + j];
                    double low = x * (double)hri_f32_from_f16(min[(size_t)b * d + j]);
                    double high = x * (double)hri_f32_from_f16(max[(size_t)b * d + j]);
                    sum += fmax(low, high);
                    size += fabs(fmax(low, high));
                }
                CHECK_BELOW(fabs((double)out[i * stride + b] - sum), TOLERANCE_SUM * size);
            }
        }
    }
    guarded_free_all();
}

static void test_score_bounds(void **state)
{
    uint64_t seed = 900;

    (void)state;
    FOR_EACH(a, group_sizes)
    {
        FOR_EACH(d, dims)
        {
            seed++;
            check_bounds(group_sizes[a], dims[d][0],
                         lengths[seed % COUNT_OF(lengths)] + (seed % 3 ? 0 : 120), seed);
        }
    }
}

static void check_quantise(uint32_t n, uint32_t d, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    const size_t x_stride = d + 3, code_stride = d + 8;
    float *x = guarded_floats(n ? n * x_stride - 3 : 0), *center = guarded_floats(d);
    int8_t *want = NULL;
    float want_step = 0.0f;

    hri_rng_seed(&rng, seed);
    fill_normal(&rng, center, d, 1.0);
    if (n)
        fill_normal(&rng, x, n * x_stride - 3, seed % 4 == 0 ? 1e-20 : 1.5);
    for (uint32_t i = 0; i < n && seed % 5 == 0; i++) /* all rows equal to the centre: step 0 */
        memcpy(x + i * x_stride, center, d * sizeof *x);
    for (unsigned level = 0; level < n_levels; level++) {
        int8_t *codes = guarded_alloc(n ? n * code_stride - 8 : 0);
        float step = levels[level]->quantise_i8(x, x_stride, n, d, center, codes, code_stride);
        CASE("%s quantise_i8 n %u d %u seed %llu", levels[level]->name, n, d,
             (unsigned long long)seed);
        if (level == 0) {
            want = codes;
            want_step = step;
        }
        CHECK_BELOW(fabs((double)step - (double)want_step), 0.0);
        for (uint32_t i = 0; i < n; i++) {
            assert_memory_equal(codes + i * code_stride, want + i * code_stride, d);
            for (uint32_t j = 0; j < d; j++) {
                double value = (double)center[j] + (double)step * codes[i * code_stride + j];
                assert_true(codes[i * code_stride + j] >= -127);
                CHECK_BELOW(fabs(value - (double)x[i * x_stride + j]),
                            (double)step * 0.501 + 1e-30);
            }
        }
    }
    guarded_free_all();
}

static void test_quantise_i8(void **state)
{
    uint64_t seed = 40;

    (void)state;
    FOR_EACH(d, dims)
    {
        FOR_EACH(b, lengths)
        check_quantise(lengths[b], dims[d][0], ++seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack_round_trip), cmocka_unit_test(test_score_centroids),
        cmocka_unit_test(test_weighted_sum_i8), cmocka_unit_test(test_score_bounds),
        cmocka_unit_test(test_quantise_i8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
