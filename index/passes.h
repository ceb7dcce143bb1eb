/* Loops over all blocks of a head: what a step does to every block, whatever it reads. They are compiled for several instruction sets,
 * and the loader takes what the processor has. Arrays do not overlap; n blocks. */
#ifndef HRI_INDEX_PASSES_H
#define HRI_INDEX_PASSES_H

#include <stddef.h>
#include <stdint.h>

/* The variance beyond which the doubt of level 0 does not grow any more, and what a block of no variance keeps of it: its int8 codes and
 * the shape's own error. */
#define HRI_DOUBT_VARIANCE_MAX 3.0f
#define HRI_DOUBT_FLOOR        0.3f

/* Expected squared error of a block's weight, relative and per row: exp(min(variance, 3)) - 1 to within 15 %, from four terms of its
 * series, since a ranking needs no more; and the floor. */
static inline float hri_doubt_excess(float variance)
{
    float v = variance < HRI_DOUBT_VARIANCE_MAX ? variance : HRI_DOUBT_VARIANCE_MAX;
    return v * (1 + v * (0.5f + v * (1.0f / 6 + v * (1.0f / 24))));
}

static inline float hri_doubt_rate(float variance, float rows)
{
    return (hri_doubt_excess(variance) + HRI_DOUBT_FLOOR) / rows;
}

float hri_pass_sum(const float *x, uint32_t n);

/* Of blocks that are not read, which are those with a rate: sums of weight^2 rate, weight, weight^2. */
struct hri_unread_sums {
    float doubt, weight, square;
};
struct hri_unread_sums hri_pass_unread(const float *weight, const float *rate, uint32_t n);

/* Multiplies the weights of blocks with a rate. */
void hri_pass_scale_unread(float *weight, const float *rate, float factor, uint32_t n);

/* doubt[b] += min((weight[b] scale)^2 rate[b], 1). */
void hri_pass_doubt_add(const float *weight, const float *rate, float scale, float *doubt,
                        uint32_t n);

/* rate[b] = hri_doubt_rate at this variance times the block's spread (bfloat16). */
void hri_pass_rates(const uint16_t *spread, const uint8_t *rows, float variance, float *rate,
                    uint32_t n);

/* The same of families of blocks: between their blocks, per block, and within them, per row. */
void hri_pass_family_rates(const uint16_t *spread, const uint16_t *within, const float *per_block,
                           const float *per_row, float between, float variance, float *rate,
                           uint32_t n);

/* Sum of weight[b] spread[b] over blocks with state[b] < below. */
float hri_pass_lean(const float *weight, const uint16_t *spread, const uint8_t *state,
                    uint8_t below, uint32_t n);

/* Sum of weight[b] min(variance spread[b], most). */
float hri_pass_drift(const float *weight, const uint16_t *spread, float variance, float most,
                     uint32_t n);

/* x[b] = dots[b] + min(half spread[b], most). */
void hri_pass_log_weights(const float *dots, const uint16_t *spread, float half, float most,
                          float *x, uint32_t n);

/* Sum of the small ones, below `least`; the others' places into list, ascending, how many into *n_out. */
float hri_pass_split(const float *x, float least, uint32_t *list, uint32_t *n_out, uint32_t n);

/* kept[b] = weight[b], or 0 if that is below `least`. Returns the sum of those below. */
float hri_pass_keep(const float *weight, float least, float *kept, uint32_t n);

/* output[j] += weight codes[j]. */
void hri_pass_value_add(const int8_t *codes, float weight, float *output, uint32_t n);

/* worth[i] = sum over g of factor[g] weight[g stride + i]^2. */
void hri_pass_worth(const float *weight, size_t stride, uint32_t g, const float *factor,
                    float *worth, uint32_t n);

/* bin[i] = hri_bin_of(factor x[i]) (index/sort.h). */
void hri_pass_bins(const float *x, float factor, uint16_t *bin, uint32_t n);

/* The largest; 0 where none is larger. */
float hri_pass_most(const float *x, uint32_t n);

/* x[i] *= factor; returns their sum. */
float hri_pass_scale(float *x, float factor, uint32_t n);

/* Four levels, at half a step and one and a half to both sides, four dimensions a byte: x [4 quarter], j, j + quarter and so on from the
 * lowest bits on. inverse: 1 / step. And back, as odd numbers of half steps. */
void hri_pass_quarters_code(const float *x, float inverse, uint32_t quarter, uint8_t *codes);
void hri_pass_quarters_widen(const uint8_t *codes, uint32_t quarter, int8_t *wide);

#endif
