/*
 * Products of weights with activations, spread over the engine's threads. One row of activations:
 * straight on the quantised weights. Many rows: weights are dequantised tile by tile into a scratch
 * that fits a core's cache.
 */
#ifndef HRE_LINEAR_H
#define HRE_LINEAR_H

#include <stddef.h>
#include <stdint.h>

#include <headrace/headrace.h>

#include "engine/ops.h"
#include "engine/workers.h"

struct hre_weight {
    const void
        *data;     /* [rows][cols], as in the file but for packed_rows; NULL: the model has none */
    uint32_t type; /* hre_weight_type_t */
    uint32_t rows, cols;
    size_t row_bytes;
    const float *bias;    /* [rows] or NULL */
    uint32_t packed_rows; /* the first so many rows are repacked in groups (repack.h) */
};

/* y = W x (+ bias). Rows of y are w->rows floats, one behind the other. */
struct hre_product {
    const struct hre_weight *w;
    float *y;
};

struct hre_linear;

/* cols_max: the widest weight's. HR_ERR_NOMEM. */
hr_status_t hre_linear_create(const struct hre_ops *ops, struct hre_workers *workers,
                              uint32_t cols_max, struct hre_linear **linear_out);
void hre_linear_destroy(struct hre_linear *linear);
uint64_t hre_linear_bytes(const struct hre_linear *linear);

/* Several weights of equal cols on the same m rows of activations x: [m][cols]. */
void hre_linear_apply(struct hre_linear *linear, const float *x, uint32_t m,
                      const struct hre_product *products, uint32_t n_products);

#endif
