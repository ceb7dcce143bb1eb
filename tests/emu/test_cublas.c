/* The calls of cuBLAS (kernels/cublas.c) on a stand-in that keeps to its rules for matrices in columns (fake_cublas.c), against a plain
 * product of matrices in rows. No cuBLAS is called here. */
#include "tests/emu/fake_cublas.h"
#include "tests/kernels/kernel_test.h"

#include "kernels/cublas.h"

#include <dlfcn.h>
#include <stdbool.h>

static struct fake_cublas *fake_open(void)
{
    struct fake_cublas *(*state)(void);
    void *library = dlopen(FAKE_CUBLAS, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    *(void **)&state = dlsym(library, "fake_cublas_state");
    assert_non_null(state);
    memset(state(), 0, sizeof *state());
    return state();
}

static void product_case(struct hri_cublas *cublas, uint32_t m, uint32_t rows, uint32_t cols,
                         bool add)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, m + rows + cols);
    const size_t n_x = (size_t)m * cols, n_w = (size_t)rows * cols, n_y = (size_t)m * rows;
    float *x = malloc(n_x * 4), *w = malloc(n_w * 4), *y = malloc(n_y * 4),
          *before = malloc(n_y * 4);
    uint16_t *half_x = guarded_alloc(n_x * 2), *half_w = guarded_alloc(n_w * 2);
    assert_true(x && w && y && before);
    fill_normal(&rng, x, n_x, 1);
    fill_normal(&rng, w, n_w, 1);
    fill_normal(&rng, before, n_y, 1);
    to_dtype(half_x, x, HR_DTYPE_BF16, n_x);
    to_dtype(half_w, w, HR_DTYPE_BF16, n_w);
    for (size_t i = 0; i < n_y; i++)
        y[i] = add ? before[i] : NAN;
    const struct hri_cuda_matmul_args a = {
        .x = half_x, .m = m, .cols = cols, .product = {half_w, NULL, y, rows}};
    assert_int_equal(hri_cublas_matmul(cublas, &a, add), 0);
    for (uint32_t i = 0; i < m; i++)
        for (uint32_t r = 0; r < rows; r++) {
            double want = add ? (double)before[(size_t)i * rows + r] : 0;
            for (uint32_t j = 0; j < cols; j++)
                want += (double)w[(size_t)r * cols + j] * (double)x[(size_t)i * cols + j];
            assert_true(fabs((double)y[(size_t)i * rows + r] - want) <= 1e-5 * (1 + fabs(want)));
        }
    free(x);
    free(w);
    free(y);
    free(before);
    guarded_free_all();
}

static void test_products(void **state)
{
    (void)state;
    struct fake_cublas *fake = fake_open();
    char why[256] = "";
    int stream, memory;
    struct hri_cublas *cublas = hri_cublas_open(FAKE_CUBLAS, &stream, why, sizeof why);
    assert_non_null(cublas);
    assert_ptr_equal(fake->stream, &stream);
    assert_int_equal(hri_cublas_version(cublas), 990000);
    assert_string_equal(hri_cublas_name(cublas), FAKE_CUBLAS);
    assert_int_equal(hri_cublas_workspace(cublas, &memory, 5), 0);
    assert_ptr_equal(fake->workspace, &memory);
    assert_int_equal(fake->workspace_bytes, 5);
    for (int add = 0; add < 2; add++) {
        product_case(cublas, 1, 1, 8, add);
        product_case(cublas, 3, 7, 16, add);
        product_case(cublas, 7, 3, 40, add);
        product_case(cublas, 20, 30, 8, add);
    }
    assert_int_equal(fake->products, 8);
    const struct hri_cuda_matmul_args none = {.m = 0, .cols = 8, .product = {.rows = 4}};
    assert_int_equal(hri_cublas_matmul(cublas, &none, 0), 0);
    fake->gemm_status = 13;
    const struct hri_cuda_matmul_args one = {.m = 1, .cols = 8, .product = {.rows = 1}};
    assert_int_equal(hri_cublas_matmul(cublas, &one, 0), 13);
    assert_int_equal(fake->products, 8);
    hri_cublas_close(cublas);
}

static void test_missing(void **state)
{
    (void)state;
    char why[256] = "";
    assert_null(hri_cublas_open("/nowhere/libcublas.so.13", NULL, why, sizeof why));
    assert_non_null(strstr(why, "/nowhere/libcublas.so.13"));
    assert_null(hri_cublas_open("libm.so.6", NULL, why, sizeof why));
    assert_string_equal(why, "libm.so.6 has no cublasCreate_v2");
    fake_open()->create_status = 1;
    assert_null(hri_cublas_open(FAKE_CUBLAS, NULL, why, sizeof why));
    assert_non_null(strstr(why, "cublasCreate gave status 1"));
    hri_cublas_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products),
                                       cmocka_unit_test(test_missing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
