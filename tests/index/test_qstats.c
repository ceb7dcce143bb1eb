/* Query statistics: the closed form of the average over positions against adding the positions up,
 * one by one. */
#include "index_test.h"

#define D 16

static void rotate(const struct hr_rope *rope, const double *q, double position, double *out)
{
    memcpy(out, q, D * sizeof *out);
    if (rope->layout == HR_ROPE_NONE)
        return;
    for (uint32_t i = 0; i < rope->n_rot / 2; i++) {
        uint32_t x = rope->layout == HR_ROPE_HALF ? i : 2 * i,
                 y = rope->layout == HR_ROPE_HALF ? i + rope->n_rot / 2 : 2 * i + 1;
        double c = cos(position * rope->frequencies[i]), s = sin(position * rope->frequencies[i]);
        out[x] = c * q[x] - s * q[y];
        out[y] = s * q[x] + c * q[y];
    }
}

/* The horizons the metric averages over: H, H/4, H/16, H/64, and of a long one on to the last that has 128 positions; each as often. */
static void brute_force(const struct hr_rope *rope, const double *queries, uint32_t n,
                        uint32_t first, uint32_t last, double *s)
{
    int horizons = 4;
    while ((last - first) >> (2 * horizons) >= 128)
        horizons++;
    memset(s, 0, D * D * sizeof *s);
    for (int h = 0; h < horizons; h++) {
        uint32_t span = (last - first) >> (2 * h);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t p = first; p <= first + span; p++) {
                double q[D];
                rotate(rope, queries + i * D, p, q);
                for (int a = 0; a < D; a++)
                    for (int b = 0; b < D; b++)
                        s[a * D + b] += q[a] * q[b] / n / (span + 1) / horizons;
            }
    }
}

static void check_rope(enum hr_rope_layout layout, uint32_t n_rot, uint32_t first, uint32_t last,
                       uint64_t seed)
{
    enum { N = 12, G = 3 };
    float frequencies[D / 2];
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    for (uint32_t i = 0; i < D / 2; i++)
        frequencies[i] = (float)pow(50.0, -2.0 * i / D);
    struct hr_rope rope = {layout, n_rot, frequencies};
    struct hri_qstats stats;
    assert_int_equal(hri_qstats_init(&stats, hri_kernels_get(hri_kernels_best()), NULL, D, &rope),
                     HR_OK);
    /* Every query is what it is at position 0, seen at the position where it stood. Fewer than a
     * batch: no decay. */
    double queries[N * G * D];
    float seen[N * G * D];
    for (uint32_t i = 0; i < N * G; i++) {
        double turned[D];
        for (int j = 0; j < D; j++)
            queries[i * D + j] = hri_rng_normal(&rng) + (j == 2);
        rotate(&rope, queries + i * D, 1000.0 + i / G * 8, turned);
        for (int j = 0; j < D; j++)
            seen[i * D + j] = (float)turned[j];
    }
    for (uint32_t i = 0; i < N; i++)
        hri_qstats_observe(&stats, seen + (size_t)i * G * D, 1, G, 1000 + i * 8);
    double truth[D * D], s[D * D];
    brute_force(&rope, queries, N * G, first, last, truth);
    assert_true(hri_qstats_moment(&stats, first, last, s));
    for (int i = 0; i < D * D; i++)
        CHECK_NEAR(s[i], truth[i], 2e-4);
    for (int i = 0; i < D; i++)
        for (int j = 0; j < i; j++)
            CHECK_NEAR(s[i * D + j], s[j * D + i], 1e-9);
    hri_qstats_fini(&stats);
}

static void test_closed_form(void **state)
{
    (void)state;
    check_rope(HR_ROPE_HALF, D, 1100, 1100 + 300, 1);
    check_rope(HR_ROPE_INTERLEAVED, D, 1100, 1100 + 300, 2);
    check_rope(HR_ROPE_HALF, D / 2, 2000, 2000 + 77, 3);
    check_rope(HR_ROPE_INTERLEAVED, D - 2, 0, 500, 4);
    check_rope(HR_ROPE_HALF, D, 5, 5, 5);
    check_rope(HR_ROPE_NONE, 0, 7, 9000, 6);
    check_rope(HR_ROPE_HALF, D, 1000, 1000 + 32767, 7); /* four horizons, just */
    check_rope(HR_ROPE_HALF, D, 3, 3 + 32768, 8);
}

/* P'P is the moment plus the ridge; without queries it is the identity. */
static void test_metric(void **state)
{
    struct hri_rng rng;
    struct hr_rope rope = {HR_ROPE_NONE, 0, NULL};
    struct hri_qstats stats;
    float p[D * D];
    void *work = NULL;
    (void)state;
    hri_rng_seed(&rng, 3);
    assert_int_equal(posix_memalign(&work, 64, hri_qstats_metric_work_bytes(D)), 0);
    assert_int_equal(hri_qstats_init(&stats, hri_kernels_get(HRI_KERNEL_REF), NULL, D, &rope),
                     HR_OK);
    assert_int_equal(hri_qstats_metric(&stats, 0, 100, 0.2, work, p), HR_OK);
    for (int i = 0; i < D * D; i++)
        assert_true(p[i] == (i % (D + 1) == 0));
    float *q = synth_normal(&rng, 40 * D, 2);
    hri_qstats_observe(&stats, q, 40, 1, 0);
    double s[D * D], trace = 0;
    assert_true(hri_qstats_moment(&stats, 0, 100, s));
    for (int i = 0; i < D; i++)
        trace += s[i * D + i];
    assert_int_equal(hri_qstats_metric(&stats, 0, 100, 0.2, work, p), HR_OK);
    for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++) {
            double sum = 0;
            for (int r = 0; r < D; r++)
                sum += (double)p[r * D + i] * p[r * D + j];
            CHECK_NEAR(sum, s[i * D + j] + (i == j ? 0.2 * trace / D : 0), 1e-4);
        }
    hri_qstats_fini(&stats);
    free(q);
    free(work);
}

/* Old queries fade, so that the metric follows a change of subject. */
static void test_forgets(void **state)
{
    struct hr_rope rope = {HR_ROPE_NONE, 0, NULL};
    struct hri_qstats stats;
    float q[32 * D] = {0};
    double s[D * D];
    (void)state;
    assert_int_equal(hri_qstats_init(&stats, hri_kernels_get(HRI_KERNEL_REF), NULL, D, &rope),
                     HR_OK);
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < 32; i++) {
            q[i * D + turn] = 1;
            q[i * D + 1 - turn] = 0;
        }
        for (uint32_t i = 0; i < 400; i++)
            hri_qstats_observe(&stats, q, 32, 1, i * 32);
    }
    assert_true(hri_qstats_moment(&stats, 0, 10, s));
    assert_true(s[D + 1] > 10 * s[0]);
    CHECK_NEAR(s[0] + s[D + 1], 1, 1e-4);
    hri_qstats_fini(&stats);
}

static void test_bad_rope(void **state)
{
    float frequencies[D] = {0};
    struct hr_rope too_many = {HR_ROPE_HALF, D + 2, frequencies},
                   odd = {HR_ROPE_HALF, 3, frequencies};
    struct hr_rope missing = {HR_ROPE_HALF, D, NULL};
    struct hri_qstats stats;
    (void)state;
    assert_int_equal(hri_qstats_init(&stats, hri_kernels_get(HRI_KERNEL_REF), NULL, D, &too_many),
                     HR_ERR_INVALID);
    assert_int_equal(hri_qstats_init(&stats, hri_kernels_get(HRI_KERNEL_REF), NULL, D, &odd),
                     HR_ERR_INVALID);
    assert_int_equal(hri_qstats_init(&stats, hri_kernels_get(HRI_KERNEL_REF), NULL, D, &missing),
                     HR_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_closed_form),
        cmocka_unit_test(test_metric),
        cmocka_unit_test(test_forgets),
        cmocka_unit_test(test_bad_rope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
