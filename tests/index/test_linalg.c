/* Products against sums added up one by one. */
#include "index_test.h"

#include <stdlib.h>

#include "index/linalg.h"

enum { M = 5, K = 7, N = 3 };

static void fill(struct hri_rng *rng, double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = hri_rng_normal(rng);
}

static void test_multiply(void **state)
{
    (void)state;
    double a[M * K], b[K * N], turned[N * K], c[M * N];
    struct hri_rng rng;
    hri_rng_seed(&rng, 1);
    fill(&rng, a, M * K);
    fill(&rng, b, K * N);
    for (int i = 0; i < K; i++)
        for (int j = 0; j < N; j++)
            turned[j * K + i] = b[i * N + j];
    for (int transposed = 0; transposed < 2; transposed++) {
        memset(c, 0xff, sizeof c); /* NaN: nothing of it may stay */
        hri_multiply(a, M, K, transposed ? turned : b, N, transposed, c);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0;
                for (int l = 0; l < K; l++)
                    sum += a[i * K + l] * b[l * N + j];
                assert_true(fabs(sum - c[i * N + j]) < 1e-12);
            }
    }
}

static void test_congruence(void **state)
{
    (void)state;
    double a[K * K], got[K * K], square[K];
    float p[K * K];
    struct hri_rng rng;
    hri_rng_seed(&rng, 2);
    fill(&rng, a, K * K);
    for (int i = 0; i < K * K; i++)
        p[i] = (float)hri_rng_normal(&rng);
    memcpy(got, a, sizeof a);
    void *work = malloc(hri_congruence_work_bytes(K));
    hri_congruence(p, K, got, work);
    free(work);
    hri_row_squares(p, K, square);
    for (int i = 0; i < K; i++) {
        double size = 0;
        for (int l = 0; l < K; l++)
            size += (double)p[i * K + l] * (double)p[i * K + l];
        assert_true(fabs(size - square[i]) < 1e-12);
        for (int j = 0; j < K; j++) {
            double sum = 0;
            for (int l = 0; l < K; l++)
                for (int m = 0; m < K; m++)
                    sum += (double)p[i * K + l] * a[l * K + m] * (double)p[j * K + m];
            assert_true(fabs(sum - got[i * K + j]) < 1e-12 * K * K);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_multiply),
        cmocka_unit_test(test_congruence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
