#include "index/linalg.h"

#include "base/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* LAPACK's Fortran entry; OpenBLAS has no C header for it that Debian ships. */
void dsyevd_(const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *w,
             double *work, const int *lwork, int *iwork, const int *liwork, int *info);

void dsyrk_(const char *uplo, const char *trans, const int *n, const int *k, const double *alpha,
            const double *a, const int *lda, const double *beta, double *c, const int *ldc);

void dgemm_(const char *op_a, const char *op_b, const int *m, const int *n, const int *k,
            const double *alpha, const double *a, const int *lda, const double *b, const int *ldb,
            const double *beta, double *c, const int *ldc);

void openblas_set_num_threads(int n);

void hri_linalg_start(void)
{
    const char *asked = getenv("OPENBLAS_NUM_THREADS");
    if (asked == NULL || *asked == '\0')
        openblas_set_num_threads(1);
}

#define GRAM_ROWS 128u

/* What dsyevd asks for: it takes half of dsyev's time at 128 x 128. */
static int reals_of(uint32_t d)
{
    return (int)(1 + 6 * d + 2 * d * d);
}

static int integers_of(uint32_t d)
{
    return (int)(3 + 5 * d);
}

size_t hri_eigen_work_bytes(uint32_t d)
{
    return (size_t)reals_of(d) * sizeof(double) + (size_t)integers_of(d) * sizeof(int) + 64;
}

hr_status_t hri_eigen(double *a, uint32_t d, double *values, void *work)
{
    double sum = 0;
    for (size_t i = 0; i < (size_t)d * d; i++)
        sum += fabs(a[i]);
    if (!isfinite(sum)) {
        memset(a, 0, (size_t)d * d * sizeof *a);
        memset(values, 0, d * sizeof *values);
        for (uint32_t i = 0; i < d; i++)
            a[(size_t)i * d + i] = 1;
        return HR_OK;
    }
    int n = (int)d, n_reals = reals_of(d), n_integers = integers_of(d), info = 0;
    double *reals = work;
    int *integers = (int *)(void *)(reals + n_reals);
    dsyevd_("V", "U", &n, a, &n, values, reals, &n_reals, integers, &n_integers, &info);
    if (info != 0)
        return hri_error_set(HR_ERR_INTERNAL, "eigenvectors of a %d x %d matrix: dsyevd says %d", n,
                             n, info);
    return HR_OK;
}

size_t hri_gram_work_bytes(uint32_t d)
{
    return (size_t)GRAM_ROWS * d * sizeof(double) + 64;
}

void hri_gram(const float *x, uint32_t n, uint32_t d, double *g, void *work)
{
    double *wide = work, one = 1;
    int dim = (int)d;
    memset(g, 0, (size_t)d * d * sizeof *g);
    for (uint32_t first = 0; first < n; first += GRAM_ROWS) {
        int rows = (int)(n - first < GRAM_ROWS ? n - first : GRAM_ROWS);
        for (size_t i = 0; i < (size_t)rows * d; i++)
            wide[i] = x[(size_t)first * d + i];
        dsyrk_("U", "N", &dim, &rows, &one, wide, &dim, &one, g, &dim);
    }
    for (uint32_t i = 0; i < d; i++) /* what Fortran calls the upper half is our lower one */
        for (uint32_t j = i + 1; j < d; j++)
            g[(size_t)i * d + j] = g[(size_t)j * d + i];
}

void hri_multiply(const double *a, uint32_t m, uint32_t k, const double *b, uint32_t n,
                  bool transposed, double *c)
{
    /* Rows of ours are columns of Fortran's, so that it sees c' = b' a'. */
    int rows = (int)n, columns = (int)m, inner = (int)k, lead = transposed ? inner : rows;
    double one = 1, zero = 0;
    dgemm_(transposed ? "T" : "N", "N", &rows, &columns, &inner, &one, b, &lead, a, &inner, &zero,
           c, &rows);
}

void hri_row_squares(const float *p, uint32_t d, double *square)
{
    for (uint32_t i = 0; i < d; i++) {
        square[i] = 0;
        for (uint32_t j = 0; j < d; j++)
            square[i] += (double)p[(size_t)i * d + j] * (double)p[(size_t)i * d + j];
    }
}

size_t hri_congruence_work_bytes(uint32_t d)
{
    return 2 * (size_t)d * d * sizeof(double);
}

void hri_congruence(const float *p, uint32_t d, double *a, void *work)
{
    double *wide = work, *half = wide + (size_t)d * d;
    for (size_t i = 0; i < (size_t)d * d; i++)
        wide[i] = p[i];
    hri_multiply(wide, d, d, a, d, false, half);
    hri_multiply(half, d, d, wide, d, true, a);
}

void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info);

bool hri_solve(double *a, uint32_t n, double *b, uint32_t width)
{
    int size = (int)n, info = 0;
    dpotrf_("U", &size, a, &size, &info); /* its upper half by columns is our lower half by rows */
    if (info != 0)
        return false;
    for (uint32_t i = 0; i < n; i++) { /* L y = b */
        const double *l = a + (size_t)i * n;
        for (uint32_t j = 0; j < i; j++)
            for (uint32_t c = 0; c < width; c++)
                b[(size_t)i * width + c] -= l[j] * b[(size_t)j * width + c];
        for (uint32_t c = 0; c < width; c++)
            b[(size_t)i * width + c] /= l[i];
    }
    for (uint32_t i = n; i-- > 0;) { /* L' x = y */
        for (uint32_t j = i + 1; j < n; j++)
            for (uint32_t c = 0; c < width; c++)
                b[(size_t)i * width + c] -= a[(size_t)j * n + i] * b[(size_t)j * width + c];
        for (uint32_t c = 0; c < width; c++)
            b[(size_t)i * width + c] /= a[(size_t)i * n + i];
    }
    return true;
}
