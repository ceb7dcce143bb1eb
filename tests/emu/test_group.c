/* k-means in a metric, against the reference's `nearest` on points that were turned by P.
 *
 * Tolerance: centres keep 16 bits (two terms), so a point's centre may be another than the nearest
 * only where their squared distances differ by less than 1e-3 of the point's and centre's size.
 * Counts are exact, sums to 1e-5. */
#include "tests/emu/emu_test.h"

struct setup {
    uint32_t heads, dk, dv, n, n_segments, k;
    hr_dtype_t dtype;
    float *p, *s; /* [heads][dk][dk], S = P'P */
    float *wide;  /* rows */
    struct hri_cuda_points points;
    struct hri_cuda_centres c;
};

static void make(struct setup *t)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, t->n * 3 + t->dk);
    const size_t d = t->dk, width = t->dk + t->dv, segments = (size_t)t->heads * t->n_segments,
                 rows = segments * t->n;
    t->p = malloc(t->heads * d * d * 4);
    t->s = device_alloc(t->heads * d * d * 4);
    t->wide = malloc((rows * width + 1) * 4);
    assert_true(t->p && t->wide);
    fill_normal(&rng, t->p, t->heads * d * d, 1 / sqrt((double)d));
    for (uint32_t h = 0; h < t->heads; h++)
        for (size_t a = 0; a < d; a++)
            for (size_t b = 0; b < d; b++) {
                double sum = 0;
                for (size_t i = 0; i < d; i++)
                    sum += (double)t->p[(h * d + i) * d + a] * (double)t->p[(h * d + i) * d + b];
                t->s[(h * d + a) * d + b] = (float)sum;
            }
    fill_normal(&rng, t->wide, rows * width, 2);
    void *device_rows = device_alloc(rows * width * 2);
    to_dtype(device_rows, t->wide, t->dtype, rows * width);
    t->points = (struct hri_cuda_points){device_rows, (size_t)t->n_segments * t->n * width * 2,
                                         t->dtype, t->n, device_alloc(rows * 4)};
    t->c = (struct hri_cuda_centres){.n_segments = t->n_segments, .k = t->k};
    t->c.centres = device_normal(&rng, segments * t->k * d, 2);
    t->c.turned = device_alloc(segments * t->k * 2 * d * 2);
    t->c.bias = device_alloc(segments * t->k * 4);
    t->c.sums = device_alloc(segments * t->k * d * 4);
    t->c.counts = device_alloc(segments * t->k * 4);
}

/* x turned by P, [n][d]. */
static float *turned(const struct setup *t, uint32_t h, const float *x, size_t stride, uint32_t n)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    float *y = malloc(((size_t)n * t->dk + 1) * 4);
    assert_non_null(y);
    for (uint32_t i = 0; i < n; i++)
        ref->matmul_nt(x + i * stride, 1, t->dk, t->p + (size_t)h * t->dk * t->dk, t->dk,
                       y + (size_t)i * t->dk);
    return y;
}

static void check_segment(const struct setup *t, uint32_t h, uint32_t segment)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const size_t at = (size_t)h * t->n_segments + segment, width = t->dk + t->dv, d = t->dk;
    const float *rows = t->wide + at * t->n * width;
    float *x = turned(t, h, rows, width, t->n),
          *c = turned(t, h, t->c.centres + at * t->k * d, d, t->k), distance, chosen;
    double *sums = calloc(t->k * d, sizeof *sums);
    uint32_t *counts = calloc(t->k, sizeof *counts), best;
    assert_true(sums && counts);
    for (uint32_t i = 0; i < t->n; i++) {
        const uint32_t got = t->points.nearest[at * t->n + i];
        assert_true(got < t->k);
        ref->nearest(x + i * d, 1, c, t->k, t->dk, &best, &distance);
        ref->nearest(x + i * d, 1, c + got * d, 1, t->dk, &(uint32_t){0}, &chosen);
        double size = 0;
        for (size_t j = 0; j < d; j++)
            size += (double)x[i * d + j] * (double)x[i * d + j] +
                    (double)c[got * d + j] * (double)c[got * d + j];
        CHECK_BELOW((double)(chosen - distance), 1e-3 * size);
        counts[got]++;
        for (size_t j = 0; j < d; j++)
            sums[got * d + j] += (double)rows[i * width + j];
    }
    assert_memory_equal(counts, t->c.counts + at * t->k, t->k * 4);
    for (size_t i = 0; i < t->k * d; i++)
        CHECK_BELOW(fabs((double)t->c.sums[at * t->k * d + i] - sums[i]),
                    1e-5 * (1 + 2 * counts[i / d]));
    free(x);
    free(c);
    free(sums);
    free(counts);
}

/* What the next turn makes of the sums. */
static void check_update(struct setup *t, int order)
{
    const size_t all = (size_t)t->heads * t->n_segments * t->k, d = t->dk;
    float *want = malloc(all * d * 4);
    assert_non_null(want);
    for (size_t i = 0; i < all * d; i++) {
        const uint32_t n = t->c.counts[i / d];
        want[i] = n ? t->c.sums[i] / (float)n : t->c.centres[i];
    }
    set_order(order);
    RUN(hri_cuda_group_turn(&t->c, t->s, t->dtype, 1,
                            (struct hri_cuda_heads){t->heads, 1, t->dk, t->dv}, NULL));
    assert_memory_equal(t->c.centres, want, all * d * 4);
    for (size_t i = 0; i < all * d; i++)
        assert_true(t->c.sums[i] == 0 && t->c.counts[i / d] == 0);
    free(want);
}

static void run(struct setup *t, int order)
{
    const struct hri_cuda_heads heads = {t->heads, 1, t->dk, t->dv};
    make(t);
    set_order(order);
    RUN(hri_cuda_group_turn(&t->c, t->s, t->dtype, 0, heads, NULL));
    for (int iteration = 0; iteration < (t->dk > 64 ? 1 : 2); iteration++) {
        RUN(hri_cuda_group_assign(&t->points, &t->c, heads, NULL));
        for (uint32_t h = 0; h < t->heads; h++)
            for (uint32_t s = 0; s < t->n_segments; s++)
                check_segment(t, h, s);
        check_update(t, order);
    }
    free(t->p);
    free(t->wide);
    device_free_all();
}

static void test_dims(void **state)
{
    (void)state;
    FOR_EACH(d, cuda_dims)
    for (int f16 = 0; f16 < 2; f16++) {
        struct setup t = {.heads = 1 + (uint32_t)f16,
                          .dk = cuda_dims[d][0],
                          .dv = cuda_dims[d][1],
                          .n = 50,
                          .n_segments = 1,
                          .k = 11,
                          .dtype = f16 ? HR_DTYPE_F16 : HR_DTYPE_BF16};
        CASE("group %u+%u, dtype %d", t.dk, t.dv, t.dtype);
        run(&t, (int)(d % 3));
    }
}

static void test_sizes(void **state)
{
    (void)state;
    const uint32_t sizes[][3] = {/* n, k, segments */
                                 {1, 1, 1},   {15, 2, 2},  {16, 7, 1},   {17, 8, 2},
                                 {255, 9, 1}, {256, 3, 1}, {257, 16, 1}, {300, 100, 2}};
    FOR_EACH(i, sizes)
    {
        struct setup t = {.heads = 2,
                          .dk = 64,
                          .dv = 64,
                          .n = sizes[i][0],
                          .n_segments = sizes[i][2],
                          .k = sizes[i][1],
                          .dtype = HR_DTYPE_BF16};
        CASE("group %u keys, %u centres, %u segments", t.n, t.k, t.n_segments);
        run(&t, (int)(i % 3));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_dims), EMU_TEST(test_sizes)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
