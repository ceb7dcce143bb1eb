/* Points of rows, and k-means of them, against sums in double and the reference's `nearest`.
 *
 * Tolerance: points to 1e-5 of what their products add up to; a point's centre may be another than the nearest only where their squared
 * distances differ by less than 1e-5 of both's; counts are exact, centres to 1e-5 of their points. */
#include "tests/emu/emu_test.h"

#include "index/group.h"

enum { DIMS = HRI_CUDA_POINT_DIMS };

static const double tolerance = 1e-5;

/* ------------------------------------------------------------------------------------------ points */
struct points_case {
    uint32_t heads, dk, dv, n, n_k;
    hr_dtype_t dtype;
};

static void check_points(const struct points_case *c, const struct hri_cuda_points_args *p,
                         const float *wide)
{
    const size_t width = c->dk + c->dv;
    for (size_t row = 0; row < (size_t)c->heads * c->n; row++) {
        const size_t h = row / c->n;
        for (uint32_t r = 0; r < DIMS; r++) {
            const float *axis = p->axes + (h * DIMS + r) * width, *x = wide + row * width;
            double sum = 0, size = 0;
            for (size_t j = 0; j < width; j++) {
                sum += (double)axis[j] * (double)x[j];
                size += fabs((double)axis[j] * (double)x[j]);
            }
            CHECK_BELOW(fabs((double)p->y[row * DIMS + r] - sum), tolerance * size);
        }
    }
}

static void run_points(const struct points_case *c, int order)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, c->n * 3 + c->dk);
    const size_t width = c->dk + c->dv, rows = (size_t)c->heads * c->n;
    float *wide = malloc(rows * width * sizeof *wide);
    float *axes = device_normal(&rng, c->heads * DIMS * width, 1);
    uint32_t *n_k = device_alloc(c->heads * sizeof *n_k);
    void *device_rows = device_alloc(rows * width * 2);
    assert_non_null(wide);
    fill_normal(&rng, wide, rows * width, 2);
    to_dtype(device_rows, wide, c->dtype, rows * width);
    for (uint32_t h = 0; h < c->heads; h++) {
        n_k[h] = h == 0 ? c->n_k : DIMS - c->n_k;
        for (uint32_t r = 0; r < DIMS; r++) {
            float *axis = axes + (h * DIMS + r) * width;
            memset(r < n_k[h] ? axis + c->dk : axis, 0,
                   (r < n_k[h] ? c->dv : c->dk) * sizeof *axis);
        }
    }
    const struct hri_cuda_points_args p = {device_rows, c->dtype, c->n,
                                           axes,        n_k,      device_alloc(rows * DIMS * 4)};
    set_order(order);
    RUN(hri_cuda_group_points(&p, (struct hri_cuda_heads){c->heads, 1, c->dk, c->dv}, NULL));
    check_points(c, &p, wide);
    free(wide);
    device_free_all();
}

static void test_points(void **state)
{
    (void)state;
    const uint32_t counts[] = {1, 127, 128, 130}, shares[] = {0, 15, 16, 32};
    FOR_EACH(d, cuda_dims)
    FOR_EACH(i, counts)
    {
        struct points_case c = {1 + (uint32_t)d % 2, cuda_dims[d][0], cuda_dims[d][1],
                                counts[i],           shares[i],       dtypes[1 + d % 2]};
        CASE("points %u+%u, %u rows, %u axes of keys, dtype %d", c.dk, c.dv, c.n, c.n_k, c.dtype);
        run_points(&c, (int)((d + i) % 3));
    }
}

/* ---------------------------------------------------------------------------------------- clusters */
struct setup {
    uint32_t heads, n, k_max;
    struct hri_cuda_clusters c;
    float *y;
    uint32_t *k, *counts, *nearest;
    float *centres; /* before the move */
};

static void make(struct setup *t, double mean)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, t->n * 3 + t->k_max);
    t->y = device_normal(&rng, (size_t)t->heads * t->n * DIMS, 1);
    for (size_t i = 0; i < (size_t)t->heads * t->n * DIMS; i++)
        t->y[i] += (float)mean;
    t->k = device_alloc(t->heads * sizeof *t->k);
    for (uint32_t h = 0; h < t->heads; h++)
        t->k[h] = h == 0 ? t->k_max : t->k_max / 2 + 1;
    t->c = (struct hri_cuda_clusters){.y = t->y, .n = t->n, .k_max = t->k_max, .k = t->k};
    t->c.centres = device_zero((size_t)t->heads * t->k_max * DIMS * sizeof(float));
    t->c.nearest = device_zero((size_t)t->heads * t->n * sizeof(uint32_t));
    t->c.counts = device_zero((size_t)t->heads * t->k_max * sizeof(uint32_t));
    t->centres = malloc((size_t)t->heads * t->k_max * DIMS * sizeof(float));
    assert_non_null(t->centres);
}

static void check_begin(const struct setup *t, uint32_t h)
{
    for (uint32_t i = 0; i < t->k[h]; i++) {
        const size_t row = (size_t)h * t->n + hri_group_first_row(t->n, t->k[h], i);
        assert_memory_equal(t->c.centres + ((size_t)h * t->k_max + i) * DIMS, t->y + row * DIMS,
                            DIMS * sizeof(float));
    }
}

static void check_assigned(const struct setup *t, uint32_t h)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const float *centres = t->centres + (size_t)h * t->k_max * DIMS;
    for (uint32_t i = 0; i < t->n; i++) {
        const float *x = t->y + ((size_t)h * t->n + i) * DIMS;
        const uint32_t got = t->c.nearest[(size_t)h * t->n + i];
        uint32_t best;
        float distance, chosen;
        assert_true(got < t->k[h]);
        ref->nearest(x, 1, centres, t->k[h], DIMS, &best, &distance);
        ref->nearest(x, 1, centres + (size_t)got * DIMS, 1, DIMS, &(uint32_t){0}, &chosen);
        CHECK_BELOW((double)(chosen - distance), tolerance * (double)(chosen + distance));
    }
}

static void check_moved(const struct setup *t, uint32_t h)
{
    for (uint32_t i = 0; i < t->k[h]; i++) {
        const size_t at = (size_t)h * t->k_max + i;
        double sum[DIMS] = {0}, size = 0;
        uint32_t count = 0;
        for (uint32_t row = 0; row < t->n; row++) {
            const float *x = t->y + ((size_t)h * t->n + row) * DIMS;
            if (t->c.nearest[(size_t)h * t->n + row] != i)
                continue;
            count++;
            for (uint32_t j = 0; j < DIMS; j++) {
                sum[j] += (double)x[j];
                size = fmax(size, fabs((double)x[j]));
            }
        }
        assert_int_equal(t->c.counts[at], count);
        for (uint32_t j = 0; j < DIMS; j++) {
            double want = count ? sum[j] / count : (double)t->centres[at * DIMS + j];
            CHECK_BELOW(fabs((double)t->c.centres[at * DIMS + j] - want), tolerance * size);
        }
    }
}

static void run_clusters(struct setup *t, double mean, int order)
{
    make(t, mean);
    set_order(order);
    RUN(hri_cuda_group_begin(&t->c, t->heads, NULL));
    for (uint32_t h = 0; h < t->heads; h++)
        check_begin(t, h);
    for (int iteration = 0; iteration < 3; iteration++) {
        memcpy(t->centres, t->c.centres, (size_t)t->heads * t->k_max * DIMS * sizeof(float));
        RUN(hri_cuda_group_assign(&t->c, t->heads, NULL));
        for (uint32_t h = 0; h < t->heads; h++)
            check_assigned(t, h);
        RUN(hri_cuda_group_move(&t->c, t->heads, NULL));
        for (uint32_t h = 0; h < t->heads; h++)
            check_moved(t, h);
    }
    free(t->centres);
    device_free_all();
}

static void test_clusters(void **state)
{
    (void)state;
    const uint32_t sizes[][2] = {{1, 1},   {15, 2},   {32, 7},    {33, 31}, {255, 32},
                                 {256, 3}, {257, 33}, {300, 100}, {600, 12}};
    FOR_EACH(i, sizes)
    {
        struct setup t = {.heads = 2, .n = sizes[i][0], .k_max = sizes[i][1]};
        CASE("clusters of %u points, %u centres", t.n, t.k_max);
        run_clusters(&t, i % 2 ? 100 : 0, (int)(i % 3)); /* far from zero nothing is lost */
    }
}

/* Equal centres: the first; a point that is no number: the first of all. */
static void test_ties(void **state)
{
    (void)state;
    struct setup t = {.heads = 1, .n = 40, .k_max = 5};
    CASE("ties");
    make(&t, 0);
    for (uint32_t j = 0; j < DIMS; j++)
        t.y[7 * DIMS + j] = NAN;
    for (uint32_t i = 0; i < 5 * DIMS; i++)
        t.c.centres[i] = i / DIMS < 2 ? 50.0f : 0.5f;
    RUN(hri_cuda_group_assign(&t.c, 1, NULL));
    for (uint32_t i = 0; i < t.n; i++)
        assert_int_equal(t.c.nearest[i], i == 7 ? 0 : 2);
    free(t.centres);
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_points), EMU_TEST(test_clusters),
                                       EMU_TEST(test_ties)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
