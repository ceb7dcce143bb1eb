/* Dense linear algebra of the index: eigenvectors, by LAPACK. Sizes are head dimensions. */
#ifndef HRI_INDEX_LINALG_H
#define HRI_INDEX_LINALG_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

/* a [d][d] symmetric in; out: row i of a is the eigenvector of values[i], ascending.
 * work: hri_eigen_work_bytes(d), 8-byte aligned. HR_ERR_INTERNAL if it does not converge. */
size_t hri_eigen_work_bytes(uint32_t d);
hr_status_t hri_eigen(double *a, uint32_t d, double *values, void *work);

#endif
