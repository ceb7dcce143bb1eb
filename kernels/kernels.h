/* The arithmetic of a step: one table of operations, one implementation of it per instruction set.
 *
 * hri_kernels_get(level) returns a static table; every entry is set (a faster level falls back to
 * the level below it where it has nothing of its own). All functions are pure: no allocation, no
 * state, no threads; buffers never overlap; any alignment unless said otherwise. "ref" is plain C
 * with double accumulation and defines the result; the others agree with it to the tolerance stated
 * in tests/kernels.
 *
 * Letters: G query heads that share one kv-head (1..HR_GROUP_MAX), dk = k_dim, dv = v_dim (8..256,
 * multiples of 8), n rows, a = softmax scale. Queries passed here are float32 and already carry the
 * scale (and log-n factor): logit = q . k. */
#ifndef HRI_KERNELS_H
#define HRI_KERNELS_H

#include <headrace/headrace.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum hri_kernel_level {
    HRI_KERNEL_REF = 0,
    HRI_KERNEL_AVX2 = 1,
    HRI_KERNEL_AVX512 = 2,
    HRI_KERNEL_AMX = 3
};

/* A running softmax: the pair (output, log-sum-exp) before normalisation. For each of G (or nq)
 * queries: m = largest logit so far (-INFINITY: nothing yet), l = sum exp(logit - m), o[dv] = sum
 * exp(logit - m) v. */
struct hri_partial {
    float *m; /* [G] */
    float *l; /* [G] */
    float *o; /* [G][dv] */
};

/* Rows in memory: n rows, row i at base + i * stride_bytes, K (dk elements) then V (dv elements),
 * adjacent. */
struct hri_rows {
    const void *base;
    size_t stride_bytes;
    uint32_t n;
    hr_dtype_t dtype;
};

/* A block at level 2: int8 differences from the block's summary.
 * k_i = k_center + k_step * c_i, v_i = v_center + v_step * c_i; codes: [n][dk + dv] int8. */
struct hri_block_i8 {
    const int8_t *codes;
    const float *k_dot;    /* [G] q . k_center, known from scoring */
    const float *v_center; /* [dv] */
    float k_step, v_step;
    uint32_t n;
    /* Bytes that will be attended after this block, or NULL: asked for on the way, a few lines at a time, so that memory is never
     * idle; they are not read, and any address is fine. */
    const void *next;
    size_t next_bytes;
};

/* Summaries, level 0: centroids packed for scoring 16 blocks at a time.
 *   codes: [ceil(n/16)][dk/4][16][4] uint8, value = (code - 128) * step[block]; lanes of
 *          blocks not there yet hold 128.
 *   step:  [ceil(n/16)*16] float
 * One 64-byte line holds 4 dimensions of 16 blocks, so that vpdpbusd needs no horizontal sum. codes
 * are 64-byte aligned. */
struct hri_centroids {
    const uint8_t *codes;
    const float *step;
    uint32_t n;
};

/* Sketched rows, level 1: the first n4 rotated dimensions of a row's residual with 4 bits, the next
 * n2 with 2 bits, the others with none. n4: a multiple of 8, n2: a multiple of 16, n4 + n2 at most
 * HR_HEAD_DIM_MAX. Rows are interleaved by 16: group j holds rows 16j..16j+15.
 *   codes: [groups][lines][64], lines = n4/8 + n2/16, the 4-bit lines first; 64-byte aligned.
 *     4-bit line l: lane r (row r of the group) has bytes 4r..4r+3; byte t holds dimension
 *                   8l + t in its low nibble and 8l + 4 + t in its high nibble.
 *     2-bit line l: byte t of lane r holds in bits 2s..2s+1 dimension n4 + 16l + 4s + t, s = 0..3.
 * A shift and a mask of one line give 16 lanes x 4 dimensions, as vpdpbusd wants them.
 * A code c stands for (c - 7.5) * step (4 bits) or (c - 1.5) * step (2 bits); the steps, one per
 * dimension, are the caller's. Lanes of rows not there yet may hold any codes. */
struct hri_sketch_rows {
    const uint8_t *codes;
    uint32_t n4, n2;
};

static inline size_t hri_sketch_group_bytes(uint32_t n4, uint32_t n2)
{
    return ((size_t)n4 / 8 + n2 / 16) * 64;
}

/* A group of query heads prepared for the scores of sketched rows: what a row's codes add to its
 * logit is scale4 * sum c q4 + scale2 * sum c q2 + offset, where the offset takes the 7.5 and 1.5
 * out of the codes; it is made from the rounded query, so that the constants cancel exactly. */
struct hri_sketch_query {
    _Alignas(64) int8_t q4[HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    _Alignas(64) int8_t q2[HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    float scale4[HR_GROUP_MAX], scale2[HR_GROUP_MAX], offset[HR_GROUP_MAX];
};

struct hri_kernels {
    enum hri_kernel_level level;
    const char *name;

    /* -- conversion -- */
    void (*to_f32)(float *dst, const void *src, hr_dtype_t dtype, size_t n);
    /* Rounds to nearest even. */
    void (*from_f32)(void *dst, const float *src, hr_dtype_t dtype, size_t n);
    /* Index of the first NaN or infinity in src (also for f16/bf16), or n if all are finite. */
    size_t (*find_nonfinite)(const void *src, hr_dtype_t dtype, size_t n);

    /* -- attention over exact rows: decode; updates part. soft_cap 0: none -- */
    void (*attend_rows)(const float *q /* [G][dk] */, uint32_t g, uint32_t dk, uint32_t dv,
                        struct hri_rows rows, float soft_cap, struct hri_partial *part);
    /* The same over several runs of one dtype, one after the other: the beginning of each is asked for while the one before is worked on. */
    void (*attend_runs)(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                        const struct hri_rows *runs, uint32_t n_runs, float soft_cap,
                        struct hri_partial *part);
    /* The same over single rows at rows[i] (gathered; any order). scratch: none. */
    void (*attend_gather)(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                          const void *const *rows, uint32_t n, hr_dtype_t dtype, float soft_cap,
                          struct hri_partial *part);
    /* Logits only: out[g][i] = cap(q_g . k_i), out row stride out_stride. */
    void (*score_rows)(const float *q, uint32_t g, uint32_t dk, struct hri_rows rows,
                       float soft_cap, float *out, size_t out_stride);

    /* -- attention over exact rows: prefill tile -- */
    /* nq query vectors q[i] (stride dk); query i sees tile rows j with first[i] <= j < last[i]
     * (causality and sliding windows as half-open ranges inside the tile; empty allowed). part has
     * nq entries. scratch: hri_tile_scratch_bytes(nq, dk, dv, n) bytes, 64-byte aligned. */
    void (*attend_tile)(const float *q /* [nq][dk] */, uint32_t nq, uint32_t dk, uint32_t dv,
                        struct hri_rows rows, const uint32_t *first, const uint32_t *last,
                        float soft_cap, void *scratch, struct hri_partial *part);

    /* -- level 0 -- */
    /* out[g][b] = q_g . centroid_b for b < n rounded up to 16; out row stride out_stride (>= that,
     * multiple of 16). q is used at 15 bits or better (two int8 terms, or float): error at most
     * 2^-13 |q|_inf * sum|centroid|. */
    void (*score_centroids)(const float *q /* [G][dk] */, uint32_t g, uint32_t dk,
                            struct hri_centroids c, float *out, size_t out_stride);
    /* o[g][:] += sum_b w[g][b] * step[b] * codes[b][:], codes [n][dv] int8 row-major. Blocks whose
     * weights are all 0 cost nothing. */
    void (*weighted_sum_i8)(const float *w, size_t w_stride, uint32_t g, uint32_t n, uint32_t dv,
                            const int8_t *codes, const float *step, float *o /* [G][dv] */);

    /* -- level 2 -- */
    void (*attend_block_i8)(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                            const struct hri_block_i8 *block, float soft_cap,
                            struct hri_partial *part);
    /* codes[i][j] = round((x[i][j] - center[j]) / step) clamped to +-127, step = max|x - center| /
     * 127 (0 when all are equal); rows n, width d, source row stride x_stride, destination row
     * stride code_stride. Returns step. */
    float (*quantise_i8)(const float *x, size_t x_stride, uint32_t n, uint32_t d,
                         const float *center, int8_t *codes, size_t code_stride);

    /* -- linear algebra of the index -- */
    /* For each of n points x [n][d]: nearest of k centres c [k][d] by |x - c|^2 (ties: lowest
     * index); distance_out may be NULL. */
    void (*nearest)(const float *x, uint32_t n, const float *c, uint32_t k, uint32_t d,
                    uint32_t *nearest_out, float *distance_out);
    /* y[n][d_out] = x[n][d_in] times w[d_out][d_in] transposed. */
    void (*matmul_nt)(const float *x, uint32_t n, uint32_t d_in, const float *w, uint32_t d_out,
                      float *y);
    /* s[d][d] += sum x x' (symmetric, both halves written). */
    void (*second_moment)(const float *x, uint32_t n, uint32_t d, float *s);
    /* min[d], max[d] over n rows of x. */
    void (*min_max)(const float *x, uint32_t n, uint32_t d, float *min, float *max);
    /* out[g][b] = sum_i max(q_i min_bi, q_i max_bi); min/max: [n][d] float16 bit patterns. (Quest,
     * arXiv 2406.10774 section 3.2) */
    void (*score_bounds)(const float *q, uint32_t g, uint32_t d, const uint16_t *min,
                         const uint16_t *max, uint32_t n, float *out, size_t out_stride);

    /* -- softmax helpers -- */
    /* y[i] = exp(x[i] - shift), returns the sum; x may equal y. Relative error <= 1e-6. */
    float (*exp_sum)(const float *x, float shift, float *y, uint32_t n);
    float (*max)(const float *x, uint32_t n); /* -INFINITY for n = 0 */
    /* G runs of n logits: y[gh][i] = exp(x[gh][i] - shift[gh]), and of each run the sum of y, the sum of its squares, and the largest
     * x (-INFINITY for n = 0). Row strides in floats; x may equal y; nothing beyond n is read or written. Relative error of y and of
     * the sums <= 1e-6. */
    void (*weigh_rows)(const float *x, size_t x_stride, const float *shift, uint32_t g, uint32_t n,
                       float *y, size_t y_stride, float *sum, float *square, float *most);

    /* -- level 1 -- */
    /* out[gh][16 j + r] = what row r of group groups[j] adds to the logit of query head gh, all 16
     * lanes, j < n_groups. The list goes on to n_listed >= n_groups: those that follow are asked
     * for early. */
    void (*score_sketch)(const struct hri_sketch_query *q, uint32_t g, struct hri_sketch_rows s,
                         const uint32_t *groups, uint32_t n_groups, uint32_t n_listed, float *out,
                         size_t out_stride);
    /* acc[gh][i] += sum over the listed groups' rows of w[gh][row] * (c_i - 7.5 or 1.5), i < n4 +
     * n2; w is indexed by row. The caller multiplies by the steps. Groups whose
     * weights are all 0 cost nothing; lanes without a row must weigh 0. */
    void (*sum_sketch)(struct hri_sketch_rows s, uint32_t g, const uint32_t *groups,
                       uint32_t n_groups, const float *w, size_t w_stride,
                       float *acc /* [G][n4+n2] */);
    /* Writes rows first_row..first_row + n - 1 into their lanes, the other lanes stay:
     * c = fma(z, inv_step, 7.5 or 1.5), to nearest even, cut to 0..15 (or 3). z: rotated residuals,
     * row stride z_stride >= n4 + n2 floats; a NaN becomes 0. */
    void (*pack_sketch)(const float *z, size_t z_stride, uint32_t n,
                        const float *inv_step /* [n4+n2] */, uint32_t n4, uint32_t n2,
                        uint8_t *codes, uint32_t first_row);

    /* -- level 2, rows from anywhere: codes[i] -> int8 [dk + dv] -- */
    /* out[gh][i] = k_step[i] * (q_gh . c_i[0..dk)) */
    void (*score_gather_i8)(const float *q /* [G][dk] */, uint32_t g, uint32_t dk,
                            const int8_t *const *codes, const float *k_step, uint32_t n, float *out,
                            size_t out_stride);
    /* o[gh][j] += sum_i w[gh][i] * v_step[i] * c_i[dk + j], j < dv */
    void (*sum_gather_i8)(const float *w, size_t w_stride, uint32_t g, uint32_t dk, uint32_t dv,
                          const int8_t *const *codes, const float *v_step, uint32_t n,
                          float *o /* [G][dv] */);
};

/* The table of a level, or of the best this CPU has when it lacks that level. Never NULL. */
const struct hri_kernels *hri_kernels_get(enum hri_kernel_level level);
enum hri_kernel_level hri_kernels_best(void);
/* "ref" | "avx2" | "avx512" | "amx" -> level; false if the word is unknown. */
bool hri_kernels_parse(const char *name, enum hri_kernel_level *level_out);

size_t hri_tile_scratch_bytes(uint32_t nq, uint32_t dk, uint32_t dv, uint32_t n);

/* Partials (plain C, exact and associative up to rounding). */
void hri_partial_clear(struct hri_partial *part, uint32_t g, uint32_t dv);
/* into += from. */
void hri_partial_merge(struct hri_partial *into, const struct hri_partial *from, uint32_t g,
                       uint32_t dv);
/* Adds mass w = exp(log_weight[g]) with the mean value o_mean[g][dv] (an estimate or a remote
 * (output, lse) pair). */
void hri_partial_add(struct hri_partial *part, uint32_t g, uint32_t dv, const float *log_weight,
                     const float *o_mean);
/* out[g][dv] = o / l, lse[g] = m + log l (lse may be NULL). A query that saw nothing gives 0 and
 * -INFINITY. */
void hri_partial_finish(const struct hri_partial *part, uint32_t g, uint32_t dv, float *out,
                        float *lse);

/* Writes one centroid (d floats) into lane b of the packed centroids; returns the step used. */
float hri_centroid_pack(uint8_t *codes, uint32_t dk, uint32_t b, const float *centroid);
/* Reads it back as floats. */
void hri_centroid_unpack(const uint8_t *codes, uint32_t dk, uint32_t b, float step,
                         float *centroid_out);
/* Block b becomes what block from_b of other packed centroids is. */
void hri_centroid_move(uint8_t *to, uint32_t b, const uint8_t *from, uint32_t from_b, uint32_t dk);
/* Bytes of packed centroids for n blocks. */
size_t hri_centroids_bytes(uint32_t n, uint32_t dk);

/* Prepares g queries: x[gh][i] = rotated query_i * step_i, i < n4 + n2, so that the row's part of
 * the logit is sum x_i (c_i - 7.5 or 1.5). */
void hri_sketch_query_make(struct hri_sketch_query *q, const float *x, uint32_t g, uint32_t n4,
                           uint32_t n2);
/* Reads row `row` back: out[i] = c_i - 7.5 or c_i - 1.5, i < n4 + n2. */
void hri_sketch_unpack(const uint8_t *codes, uint32_t n4, uint32_t n2, uint32_t row, float *out);

#endif
