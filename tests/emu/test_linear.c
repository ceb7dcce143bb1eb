/* Products with bfloat16 matrices against sums in double: of few rows of activations, which are float32, and of many, which are
 * bfloat16. Both only differ from those in the rounding of sums: 2e-6 of the product of the norms, which is what an element may
 * be made of. */
#include "tests/emu/emu_test.h"

struct matrix {
    float *wide; /* as rounded, on the host */
    uint16_t *w;
    float *bias;
    uint32_t rows, cols;
};

static struct matrix matrix_make(struct hri_rng *rng, uint32_t rows, uint32_t cols, bool biased)
{
    const size_t n = (size_t)rows * cols;
    struct matrix m = {.wide = malloc(n * 4), .w = device_alloc(n * 2), .rows = rows, .cols = cols};
    assert_non_null(m.wide);
    fill_normal(rng, m.wide, n, 1);
    to_dtype(m.w, m.wide, HR_DTYPE_BF16, n);
    m.bias = biased ? device_normal(rng, rows, 3) : NULL;
    return m;
}

static double norm_of(const float *x, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sqrt(sum);
}

static void check(const struct matrix *m, const float *x, const float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const float *from = x + (size_t)i * m->cols;
        const double size = norm_of(from, m->cols);
        for (uint32_t r = 0; r < m->rows; r++) {
            const float *w = m->wide + (size_t)r * m->cols;
            double want = m->bias ? m->bias[r] : 0;
            for (uint32_t j = 0; j < m->cols; j++)
                want += (double)w[j] * from[j];
            CHECK_BELOW(fabs((double)y[(size_t)i * m->rows + r] - want),
                        2e-6 * (size * norm_of(w, m->cols) + fabs(want)));
        }
    }
}

static void linear_case(uint32_t m, uint32_t cols, const uint32_t *rows, uint32_t n, int order)
{
    struct hri_rng rng;
    struct matrix matrices[HRI_CUDA_PRODUCTS_MAX];
    CASE("linear: %u rows of %u, %u matrices, the first of %u", m, cols, n, rows[0]);
    hri_rng_seed(&rng, 7 + m + cols);
    struct hri_cuda_linear_args a = {
        .x = device_normal(&rng, (size_t)m * cols, 1), .m = m, .cols = cols, .n_products = n};
    for (uint32_t i = 0; i < n; i++) {
        matrices[i] = matrix_make(&rng, rows[i], cols, i % 2 == 0);
        a.products[i] = (struct hri_cuda_product){matrices[i].w, matrices[i].bias,
                                                  device_alloc((size_t)m * rows[i] * 4), rows[i]};
    }
    a.work = device_alloc(hri_cuda_linear_work(m) * 4);
    const size_t counters = hri_cuda_linear_counters();
    a.arrived = device_zero(counters * 4);
    set_order(order);
    for (int again = 0; again < 2; again++) /* the counters are left as they were */
        RUN(hri_cuda_linear(&a, NULL));
    for (size_t i = 0; i < counters; i++)
        assert_int_equal(a.arrived[i], 0);
    for (uint32_t i = 0; i < n; i++) {
        check(&matrices[i], a.x, a.products[i].y, m);
        free(matrices[i].wide);
    }
    device_free_all();
}

static void test_few_rows(void **state)
{
    (void)state;
    const uint32_t cols[] = {8, 64, 248, 256, 264, 576, 1536};
    const uint32_t rows[] = {1, 3, 16, 17, 40};
    FOR_EACH(c, cols)
    FOR_EACH(r, rows)
    linear_case(1, cols[c], &rows[r], 1, (int)((c + r) % 3));
}

static void test_rows_of_activations(void **state)
{
    (void)state;
    const uint32_t rows[] = {19};
    for (uint32_t m = 1; m <= HRI_CUDA_LINEAR_ROWS_MAX; m++)
        linear_case(m, 1100 - 4 * (m % 2 ? 1 : 3), rows, 1, (int)(m % 3));
}

static void test_several_matrices(void **state)
{
    (void)state;
    const uint32_t rows[][3] = {{16, 16, 16}, {33, 1, 15}, {64, 16, 16}, {5, 90, 7}};
    FOR_EACH(i, rows)
    for (uint32_t n = 2; n <= 3; n++)
        linear_case(1 + (uint32_t)i, 512 + 8 * (uint32_t)i, rows[i], n, (int)(i % 3));
}

/* Many blocks, so that there is nothing to split; and a machine for which there is. */
static void test_splits(void **state)
{
    (void)state;
    const uint32_t rows[] = {300};
    linear_case(2, 1024, rows, 1, HRI_EMU_SHUFFLED);
    hri_cuda_set_machine((struct hri_cuda_machine){132, hri_emu_arch()});
    FOR_EACH_ORDER(order)
    {
        const uint32_t few[] = {20, 4};
        linear_case(1, 9000, few, 2, order);
        linear_case(3, 4096, few, 2, order);
    }
    hri_cuda_set_machine((struct hri_cuda_machine){2, hri_emu_arch()});
}

static void matmul_case(uint32_t m, uint32_t cols, uint32_t rows, int order)
{
    struct hri_rng rng;
    CASE("matmul: %u rows of %u, a matrix of %u", m, cols, rows);
    hri_rng_seed(&rng, 1 + m + cols);
    const size_t n = (size_t)m * cols;
    struct matrix w = matrix_make(&rng, rows, cols, rows % 2);
    float *x = malloc(n * 4);
    uint16_t *half = device_alloc(n * 2);
    assert_non_null(x);
    fill_normal(&rng, x, n, 1);
    to_dtype(half, x, HR_DTYPE_BF16, n);
    struct hri_cuda_matmul_args a = {
        .x = half,
        .m = m,
        .cols = cols,
        .product = {w.w, w.bias, device_alloc((size_t)m * rows * 4), rows}};
    set_order(order);
    RUN(hri_cuda_matmul(&a, NULL));
    check(&w, x, a.product.y, m);
    free(x);
    free(w.wide);
    device_free_all();
}

static void test_many_rows(void **state)
{
    (void)state;
    const uint32_t cols[] = {8, 24, 32, 40, 64, 72, 96, 136};
    FOR_EACH(c, cols)
    matmul_case(17 + (uint32_t)c, cols[c], 20 + (uint32_t)c, (int)(c % 3));
    const uint32_t counts[] = {1, 16, 31, 32, 33, 63, 65, 127, 129};
    FOR_EACH(m, counts)
    matmul_case(counts[m], 64, 129 + (uint32_t)m, (int)(m % 3));
}

/* Tiles of 64 and of 128 rows. */
static void test_large_tiles(void **state)
{
    (void)state;
    matmul_case(70, 80, 300, HRI_EMU_SHUFFLED);
    matmul_case(200, 48, 130, HRI_EMU_BACKWARD);
    matmul_case(130, 40, 257, HRI_EMU_FORWARD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EMU_TEST(test_few_rows),         EMU_TEST(test_rows_of_activations),
        EMU_TEST(test_several_matrices), EMU_TEST(test_splits),
        EMU_TEST(test_many_rows),        EMU_TEST(test_large_tiles)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
