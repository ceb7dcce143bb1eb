/* nearest, matmul_nt, second_moment.
 *
 *   operation       tolerance
 *   nearest         the chosen centre's true distance is at most 1e-5 (|x|^2 + |c|^2) above
 *                   the least; distance_out 1e-5 relative
 *   matmul_nt       3e-6 relative to sum |x w|
 *   second_moment   3e-6 relative to sum |x x'|; exactly symmetric */
#include "kernel_test.h"

#define TOLERANCE_NEAREST 1e-5
#define TOLERANCE_SUM     3e-6

static double distance(const float *x, const float *c, uint32_t d, double *size_out)
{
    double sum = 0.0, size = 0.0;

    for (uint32_t j = 0; j < d; j++) {
        sum += ((double)x[j] - (double)c[j]) * ((double)x[j] - (double)c[j]);
        size += (double)x[j] * (double)x[j] + (double)c[j] * (double)c[j];
    }
    *size_out = size;
    return sum;
}

static void check_nearest(uint32_t n, uint32_t k, uint32_t d, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    float *x = guarded_floats((size_t)n * d), *c = guarded_floats((size_t)k * d);

    hri_rng_seed(&rng, seed);
    fill_normal(&rng, x, (size_t)n * d, 1.0);
    fill_normal(&rng, c, (size_t)k * d, 1.0);
    for (unsigned level = 0; level < n_levels; level++) {
        uint32_t *index = guarded_alloc(n * sizeof *index),
                 *index_alone = guarded_alloc(n * sizeof *index);
        float *distances = guarded_floats(n);
        CASE("%s nearest n %u k %u d %u seed %llu", levels[level]->name, n, k, d,
             (unsigned long long)seed);
        levels[level]->nearest(x, n, c, k, d, index, distances);
        levels[level]->nearest(x, n, c, k, d, index_alone, NULL);
        if (n)
            assert_memory_equal(index, index_alone, n * sizeof *index);
        for (uint32_t i = 0; i < n; i++) {
            double least = INFINITY, size, chosen;
            for (uint32_t j = 0; j < k; j++)
                least = fmin(least, distance(x + (size_t)i * d, c + (size_t)j * d, d, &size));
            assert_true(index[i] < k);
            chosen = distance(x + (size_t)i * d, c + (size_t)index[i] * d, d, &size);
            CHECK_BELOW(chosen - least, TOLERANCE_NEAREST * size);
            CHECK_BELOW(fabs((double)distances[i] - chosen), 1e-5 * chosen);
        }
    }
    guarded_free_all();
}

static void test_nearest(void **state)
{
    static const uint32_t centre_counts[] = {1, 2, 16, 31, 32, 33, 65};
    uint64_t seed = 1;

    (void)state;
    FOR_EACH(d, dims)
    {
        FOR_EACH(k, centre_counts)
        {
            seed++;
            check_nearest(lengths[seed % COUNT_OF(lengths)], centre_counts[k], dims[d][0], seed);
        }
    }
    check_nearest(500, 40, 64, 999);
}

/* Equal centres: the first wins, wherever the copies lie. */
static void test_nearest_ties(void **state)
{
    enum { N = 50, K = 100, D = 64 };
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    float *x = guarded_floats(N * D), *c = guarded_floats(K * D);
    uint32_t index[N];

    (void)state;
    hri_rng_seed(&rng, 3);
    fill_normal(&rng, x, N * D, 1.0);
    fill_normal(&rng, c, K * D, 1.0);
    for (int j = 20; j < K; j++) /* centres 20.. repeat the first twenty */
        memcpy(c + j * D, c + (j % 20) * D, D * sizeof *c);
    for (unsigned level = 0; level < n_levels; level++) {
        levels[level]->nearest(x, N, c, K, D, index, NULL);
        for (int i = 0; i < N; i++)
            assert_true(index[i] < 20);
    }
    guarded_free_all();
}

static void check_matmul(uint32_t n, uint32_t d_in, uint32_t d_out, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    float *x = guarded_floats((size_t)n * d_in), *w = guarded_floats((size_t)d_out * d_in);

    hri_rng_seed(&rng, seed);
    fill_normal(&rng, x, (size_t)n * d_in, 1.0);
    fill_normal(&rng, w, (size_t)d_out * d_in, 1.0);
    for (unsigned level = 0; level < n_levels; level++) {
        float *y = guarded_floats((size_t)n * d_out);
        CASE("%s matmul_nt n %u d_in %u d_out %u seed %llu", levels[level]->name, n, d_in, d_out,
             (unsigned long long)seed);
        levels[level]->matmul_nt(x, n, d_in, w, d_out, y);
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t j = 0; j < d_out; j++) {
                double sum = 0.0, size = 0.0;
                for (uint32_t l = 0; l < d_in; l++) {
                    double term = (double)x[(size_t)i * d_in + l] * (double)w[(size_t)j * d_in + l];
                    sum += term;
                    size += fabs(term);
                }
                CHECK_BELOW(fabs((double)y[(size_t)i * d_out + j] - sum), TOLERANCE_SUM * size);
            }
        }
    }
    guarded_free_all();
}

static void test_matmul_nt(void **state)
{
    uint64_t seed = 60;

    (void)state;
    FOR_EACH(d, dims)
    {
        FOR_EACH(b, lengths)
        check_matmul(lengths[b], dims[d][0], dims[d][1], ++seed);
    }
    check_matmul(7, 600, 40, 1);
    check_matmul(20, 64, 1, 2);
}

static void check_moment(uint32_t n, uint32_t d, uint64_t seed)
{
    const struct hri_kernels *levels[LEVELS_MAX];
    const unsigned n_levels = levels_here(levels);
    struct hri_rng rng;
    float *x = guarded_floats((size_t)n * d), *start = guarded_floats((size_t)d * d);

    hri_rng_seed(&rng, seed);
    fill_normal(&rng, x, (size_t)n * d, 1.0);
    for (uint32_t a = 0; a < d; a++) {
        for (uint32_t b = 0; b <= a; b++)
            start[a * d + b] = start[b * d + a] = hri_rng_f32(&rng);
    }
    for (unsigned level = 0; level < n_levels; level++) {
        float *s = guarded_floats((size_t)d * d);
        memcpy(s, start, (size_t)d * d * sizeof *s);
        CASE("%s second_moment n %u d %u seed %llu", levels[level]->name, n, d,
             (unsigned long long)seed);
        levels[level]->second_moment(x, n, d, s);
        for (uint32_t a = 0; a < d; a++) {
            for (uint32_t b = a; b < d; b++) {
                double sum = (double)start[a * d + b], size = fabs(sum);
                for (uint32_t i = 0; i < n; i++) {
                    double term = (double)x[(size_t)i * d + a] * (double)x[(size_t)i * d + b];
                    sum += term;
                    size += fabs(term);
                }
                CHECK_BELOW(fabs((double)s[a * d + b] - sum), TOLERANCE_SUM * size);
                assert_true(s[a * d + b] == s[b * d + a]);
            }
        }
    }
    guarded_free_all();
}

static void test_second_moment(void **state)
{
    uint64_t seed = 80;

    (void)state;
    FOR_EACH(d, dims)
    {
        seed++;
        check_moment(lengths[seed % COUNT_OF(lengths)], dims[d][0], seed);
        check_moment(40, dims[d][0], seed);
    }
    check_moment(800, 40, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_nearest_ties),
        cmocka_unit_test(test_matmul_nt),
        cmocka_unit_test(test_second_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
