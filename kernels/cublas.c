/* cuBLAS by dlopen. Its functions take matrices in columns; ours lie in rows: y [m][rows] is in columns a matrix of `rows` lines and m
 * columns, y = op(w) x with w [rows][cols] seen as cols x rows, and transposed, x [m][cols] seen as cols x m. */
#include "kernels/cublas.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

/* As cublas_api.h and library_types.h have them. */
enum {
    OP_N = 0,
    OP_T = 1,
    R_32F = 0,
    R_16BF = 14,
    COMPUTE_32F = 68,
    GEMM_DEFAULT = -1,
};

struct hri_cublas {
    void *library, *handle;
    const char *name;
    int version;
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*get_version)(void *handle, int *version);
    int (*set_stream)(void *handle, void *stream);
    int (*set_workspace)(void *handle, void *memory, size_t bytes);
    int (*gemm_ex)(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha,
                   const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                   const void *beta, void *c, int c_type, int ldc, int compute_type, int algorithm);
};

static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11",
                                    "libcublas.so"};

static void *library_open(const char *library, const char **name_out)
{
    void *handle = NULL;
    if (library != NULL) {
        *name_out = library;
        return dlopen(library, RTLD_NOW | RTLD_LOCAL);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names && handle == NULL; i++) {
        *name_out = names[i];
        handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    }
    return handle;
}

/* The symbol as a function pointer, which ISO C has no cast for. */
static bool find(struct hri_cublas *c, const char *symbol, void *function_out)
{
    void *address = dlsym(c->library, symbol);
    *(void **)function_out = address;
    return address != NULL;
}

static const char *functions_find(struct hri_cublas *c)
{
    const struct {
        const char *symbol;
        void *function;
    } wanted[] = {{"cublasCreate_v2", &c->create},
                  {"cublasDestroy_v2", &c->destroy},
                  {"cublasGetVersion_v2", &c->get_version},
                  {"cublasSetStream_v2", &c->set_stream},
                  {"cublasSetWorkspace_v2", &c->set_workspace},
                  {"cublasGemmEx", &c->gemm_ex}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!find(c, wanted[i].symbol, wanted[i].function))
            return wanted[i].symbol;
    return NULL;
}

struct hri_cublas *hri_cublas_open(const char *library, void *stream, char *why, size_t why_bytes)
{
    struct hri_cublas *c = calloc(1, sizeof *c);
    if (c == NULL) {
        snprintf(why, why_bytes, "out of memory");
        return NULL;
    }
    c->library = library_open(library, &c->name);
    if (c->library == NULL) {
        const char *text = dlerror();
        snprintf(why, why_bytes, "%s", text != NULL ? text : "not found");
        goto err_free;
    }
    const char *missing = functions_find(c);
    if (missing != NULL) {
        snprintf(why, why_bytes, "%s has no %s", c->name, missing);
        goto err_library;
    }
    int status = c->create(&c->handle);
    if (status != 0) {
        snprintf(why, why_bytes, "%s: cublasCreate gave status %d", c->name, status);
        goto err_library;
    }
    (void)c->get_version(c->handle, &c->version);
    status = c->set_stream(c->handle, stream);
    if (status != 0) {
        snprintf(why, why_bytes, "%s: cublasSetStream gave status %d", c->name, status);
        goto err_handle;
    }
    return c;

err_handle:
    (void)c->destroy(c->handle);
err_library:
    dlclose(c->library);
err_free:
    free(c);
    return NULL;
}

void hri_cublas_close(struct hri_cublas *c)
{
    if (c == NULL)
        return;
    (void)c->destroy(c->handle);
    dlclose(c->library);
    free(c);
}

const char *hri_cublas_name(const struct hri_cublas *c)
{
    return c->name;
}

int hri_cublas_version(const struct hri_cublas *c)
{
    return c->version;
}

int hri_cublas_workspace(struct hri_cublas *c, void *memory, size_t bytes)
{
    return c->set_workspace(c->handle, memory, bytes);
}

int hri_cublas_matmul(struct hri_cublas *c, const struct hri_cuda_matmul_args *a, int add)
{
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    const int m = (int)a->m, rows = (int)a->product.rows, cols = (int)a->cols;
    if (m == 0 || rows == 0)
        return 0;
    return c->gemm_ex(c->handle, OP_T, OP_N, rows, m, cols, &one, a->product.w, R_16BF, cols, a->x,
                      R_16BF, cols, &beta, a->product.y, R_32F, rows, COMPUTE_32F, GEMM_DEFAULT);
}
