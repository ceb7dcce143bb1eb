/* A stand-in for cuBLAS, for tests alone: what kernels/cublas.c calls, by cuBLAS's own rules for matrices in columns, slow and plain.
 * Where the matrices lie in memory that the host cannot touch, a test says how they get here and back. */
#include "tests/emu/fake_cublas.h"

#include <stdlib.h>
#include <string.h>

#include "base/half.h"

#define EXPORT __attribute__((visibility("default")))

enum { INVALID = 7, MEMORY = 3 };

static struct fake_cublas fake;
static int the_handle;

EXPORT struct fake_cublas *fake_cublas_state(void);
EXPORT struct fake_cublas *fake_cublas_state(void)
{
    return &fake;
}

EXPORT int cublasCreate_v2(void **handle);
EXPORT int cublasCreate_v2(void **handle)
{
    *handle = &the_handle;
    return fake.create_status;
}

EXPORT int cublasDestroy_v2(void *handle);
EXPORT int cublasDestroy_v2(void *handle)
{
    return handle == &the_handle ? 0 : INVALID;
}

EXPORT int cublasGetVersion_v2(void *handle, int *version);
EXPORT int cublasGetVersion_v2(void *handle, int *version)
{
    *version = 990000;
    return handle == &the_handle ? 0 : INVALID;
}

EXPORT int cublasSetStream_v2(void *handle, void *stream);
EXPORT int cublasSetStream_v2(void *handle, void *stream)
{
    fake.stream = stream;
    return handle == &the_handle ? 0 : INVALID;
}

EXPORT int cublasSetWorkspace_v2(void *handle, void *memory, size_t bytes);
EXPORT int cublasSetWorkspace_v2(void *handle, void *memory, size_t bytes)
{
    fake.workspace = memory;
    fake.workspace_bytes = bytes;
    return handle == &the_handle ? 0 : INVALID;
}

static void *take(const void *from, size_t bytes)
{
    void *copy = malloc(bytes);
    if (copy != NULL && fake.get != NULL)
        fake.get(copy, from, bytes);
    else if (copy != NULL)
        memcpy(copy, from, bytes);
    return copy;
}

/* Element (i, j) of op(matrix), whose columns are ld apart. */
static double at(const uint16_t *matrix, int op, int ld, int i, int j)
{
    const size_t k = op ? (size_t)i * (size_t)ld + (size_t)j : (size_t)j * (size_t)ld + (size_t)i;
    return (double)hri_f32_from_bf16(matrix[k]);
}

EXPORT int cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha,
                        const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                        const void *beta, void *c, int c_type, int ldc, int compute_type,
                        int algorithm);
EXPORT int cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha,
                        const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                        const void *beta, void *c, int c_type, int ldc, int compute_type,
                        int algorithm)
{
    const int a_rows = op_a ? k : m, a_cols = op_a ? m : k;
    const int b_rows = op_b ? n : k, b_cols = op_b ? k : n;
    if (fake.gemm_status != 0)
        return fake.gemm_status;
    /* bfloat16 in, float32 out, summed in float32: 14, 0 and 68 in NVIDIA's headers. */
    if (handle != &the_handle || a_type != 14 || b_type != 14 || c_type != 0 ||
        compute_type != 68 || algorithm != -1 || m <= 0 || n <= 0 || k <= 0 || lda < a_rows ||
        ldb < b_rows || ldc < m)
        return INVALID;
    uint16_t *x = take(a, (size_t)lda * (size_t)a_cols * 2),
             *y = take(b, (size_t)ldb * (size_t)b_cols * 2);
    float *z = take(c, (size_t)ldc * (size_t)n * 4);
    if (x == NULL || y == NULL || z == NULL)
        return MEMORY;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            float *to = &z[(size_t)j * (size_t)ldc + (size_t)i];
            double sum = 0;
            for (int l = 0; l < k; l++)
                sum += at(x, op_a, lda, i, l) * at(y, op_b, ldb, l, j);
            /* With a beta of 0 what was there is not read: it may be no number. */
            sum *= (double)*(const float *)alpha;
            const double scale = (double)*(const float *)beta;
            *to = (float)(scale != 0 ? sum + scale * (double)*to : sum);
        }
    if (fake.put != NULL)
        fake.put(c, z, (size_t)ldc * (size_t)n * 4);
    else
        memcpy(c, z, (size_t)ldc * (size_t)n * 4);
    free(x);
    free(y);
    free(z);
    fake.products++;
    return 0;
}
