/* Dense linear algebra of the index: products and eigenvectors, by BLAS and LAPACK. Sizes are head dimensions. */
#ifndef HRI_INDEX_LINALG_H
#define HRI_INDEX_LINALG_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Sets OpenBLAS, of the whole process, to one thread a call, unless the environment names a number (OPENBLAS_NUM_THREADS): these
 * matrices are small, calls come from the pool's threads, and OpenBLAS's own would wait for work by spinning against them (grouping
 * 131,072 tokens of 8 heads: 21 s with its two threads, 4.6 s with one). */
void hri_linalg_start(void);

/* a [d][d] symmetric in; out: row i of a is the eigenvector of values[i], ascending.
 * Where a has an entry that is not finite (keys so large that their squares overflow), the unit
 * vectors with values 0: nothing is known, and the caller goes on without.
 * work: hri_eigen_work_bytes(d), 8-byte aligned. HR_ERR_INTERNAL if it does not converge. */
size_t hri_eigen_work_bytes(uint32_t d);
hr_status_t hri_eigen(double *a, uint32_t d, double *values, void *work);

/* g [d][d] = x'x of x [n][d], both halves. work: hri_gram_work_bytes(d), 8-byte aligned. */
size_t hri_gram_work_bytes(uint32_t d);
void hri_gram(const float *x, uint32_t n, uint32_t d, double *g, void *work);

/* c [m][n] = a [m][k] times b [k][n], or, transposed, times the transpose of b [n][k]. */
void hri_multiply(const double *a, uint32_t m, uint32_t k, const double *b, uint32_t n,
                  bool transposed, double *c);

/* square[i] = |p_i|^2 of the rows of p [d][d]. */
void hri_row_squares(const float *p, uint32_t d, double *square);

/* a [d][d] becomes p a p'. work: hri_congruence_work_bytes(d), 8-byte aligned. */
size_t hri_congruence_work_bytes(uint32_t d);
void hri_congruence(const float *p, uint32_t d, double *a, void *work);

/* Solves a x = b for a [n][n] symmetric and positive definite (only its lower half is read; overwritten), b [n][width] in, x out.
 * False if a is not positive definite: b is then as it was. */
bool hri_solve(double *a, uint32_t n, double *b, uint32_t width);

#endif
