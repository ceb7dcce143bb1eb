/*
 * The arithmetic of a decoder's linear parts, as a table per instruction set: ref (plain C), avx2,
 * avx512.
 *
 * Weights stay as the file has them. A dot product multiplies dequantised weights with float
 * activations, or with pairs of integers that stand for them: levels differ in rounding only.
 */
#ifndef HRE_OPS_H
#define HRE_OPS_H

#include <stddef.h>
#include <stdint.h>

#include <headrace/headrace.h>

#define HRE_WEIGHT_TYPES 31 /* hre_weight_type_t is below; entries of other types are NULL */
#define HRE_SUM_GROUP    32 /* activations per sum in struct hre_activations */

#define HRE_DIGITS 3

/* HRE_SUM_GROUP activations: x = step * (digit[0] + 256 digit[1] + 65536 digit[2]). */
struct hre_digits {
    int8_t digit[HRE_DIGITS][HRE_SUM_GROUP];
    int32_t sum[HRE_DIGITS]; /* of each digit over the group */
    float step;
};

/* One activation vector and what several dot products need of it. */
struct hre_activations {
    const float *x;    /* [n] */
    const float *sums; /* [n / HRE_SUM_GROUP] of consecutive activations; only for types with groups
                          of that many */
    /* x = step * (high + low / 32768), a step per HRE_SUM_GROUP; only for tables with halve */
    const int16_t *halves;           /* [n / HRE_SUM_GROUP][2][HRE_SUM_GROUP] high, low */
    const float *steps;              /* [n / HRE_SUM_GROUP] */
    const struct hre_digits *digits; /* [n / HRE_SUM_GROUP]; only for tables with digits */
};

/* y[r] = sum_i w[r][i] x[i] for n_rows rows of n weights, row_bytes apart. */
typedef void (*hre_dot_fn)(const void *rows, size_t row_bytes, uint32_t n_rows, uint32_t n,
                           const struct hre_activations *activations, float *y);
/* n weights, a whole number of blocks, to floats. */
typedef void (*hre_dequantise_fn)(const void *weights, uint32_t n, float *y);

struct hre_ops {
    const char *name;
    hre_dot_fn dot[HRE_WEIGHT_TYPES];
    /* The same of rows that were repacked, n_rows a multiple of HRE_GROUP_ROWS, bit for bit (repack.h); NULL: nothing is. */
    hre_dot_fn dot_groups[HRE_WEIGHT_TYPES];
    hre_dequantise_fn dequantise[HRE_WEIGHT_TYPES];
    /* sums[i] = sum of x[32 i .. 32 i + 31]; n a multiple of 32 */
    void (*sum_groups)(const float *x, uint32_t n, float *sums);
    /* steps are NaN where a group's sum is not finite. NULL: dot does not read them. */
    void (*halve)(const float *x, uint32_t n, const float *sums, int16_t *halves, float *steps);
    void (*digits)(const float *x, uint32_t n, const float *sums,
                   struct hre_digits *digits); /* the same */
    /* y = x / sqrt(mean x^2 + eps) * w;  y = (x - mean) / sqrt(var + eps) * w + b */
    void (*rms_norm)(const float *x, const float *w, float eps, uint32_t n, float *y);
    void (*layer_norm)(const float *x, const float *w, const float *b, float eps, uint32_t n,
                       float *y);
    /* gate = gate / (1 + exp(-gate)) * up;  x = gelu(x), tanh form */
    void (*swiglu)(float *gate, const float *up, uint32_t n);
    void (*gelu)(float *x, uint32_t n);
    void (*add)(float *y, const float *x, uint32_t n);
    /* Rotates n_heads heads of dim elements in place; pairs (i, i + n_rot/2) or (2i, 2i + 1).
     * cosine, sine: [n_rot/2] */
    void (*rope)(float *x, uint32_t n_heads, uint32_t dim, uint32_t n_rot, hr_rope_layout_t layout,
                 const float *cosine, const float *sine);
    /*
     * Matrix products, tile by tile. A tile is `tile_rows` rows of weights, packed so that element
     * k of all of them lie side by side: [k][tile_rows]. pack fills missing rows (n_rows <
     * tile_rows) with zeros. multiply computes y[i][r] = sum_k x[i][k] w[r][k] for m rows of x and
     * the first n_rows weights of the tile, strides in floats.
     */
    uint32_t tile_rows;
    void (*pack)(const float *rows, uint32_t n_rows, uint32_t k, float *packed);
    /* The same tile from repacked groups, tile_rows rows; NULL where dot_groups is. */
    void (*tile_groups[HRE_WEIGHT_TYPES])(const void *groups, size_t row_bytes, uint32_t k,
                                          float *packed);
    void (*multiply)(const float *x, size_t x_stride, uint32_t m, const float *packed, uint32_t k,
                     float *y, size_t y_stride, uint32_t n_rows);
};

/* level: "ref", "avx2", "avx512", "amx" (as avx512) or NULL for the best (HEADRACE_CPU overrides NULL).
 * HR_ERR_INVALID, HR_ERR_UNSUPPORTED. */
hr_status_t hre_ops_choose(const char *level, const struct hre_ops **ops_out);

extern const struct hre_ops hre_ops_ref;
#if defined(__x86_64__)
extern const struct hre_ops hre_ops_avx2;
extern const struct hre_ops hre_ops_avx512;
#endif

#endif
