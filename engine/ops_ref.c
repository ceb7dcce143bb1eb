/* Plain C for every machine, and the measure for the other levels: dot products accumulate in
 * double. */
#define BODY_LANES 4
#include "engine/gguf.h"
#include "engine/ops_body.h"

#define PIECE 256 /* a multiple of every block's length */

static void dot_by(hre_dequantise_fn dequantise, size_t piece_bytes, const void *rows,
                   size_t row_bytes, uint32_t n_rows, uint32_t n,
                   const struct hre_activations *activations, float *y)
{
    float weights[PIECE];

    for (uint32_t r = 0; r < n_rows; r++) {
        const unsigned char *p = (const unsigned char *)rows + r * row_bytes;
        double sum = 0.0;

        for (uint32_t i = 0; i < n; i += PIECE, p += piece_bytes) {
            uint32_t length = n - i < PIECE ? n - i : PIECE;

            dequantise(p, length, weights);
            for (uint32_t j = 0; j < length; j++) {
                sum += (double)weights[j] * (double)activations->x[i + j];
            }
        }
        y[r] = (float)sum;
    }
}

#define DOT(type, piece_bytes)                                                                     \
    static void dot_##type(const void *rows, size_t row_bytes, uint32_t n_rows, uint32_t n,        \
                           const struct hre_activations *activations, float *y)                    \
    {                                                                                              \
        dot_by(dequantise_##type, piece_bytes, rows, row_bytes, n_rows, n, activations, y);        \
    }

DOT(f32, PIECE * 4)
DOT(f16, PIECE * 2)
DOT(bf16, PIECE * 2)
DOT(q4_0, PIECE / 32 * sizeof(struct block_q4_0))
DOT(q4_1, PIECE / 32 * sizeof(struct block_q4_1))
DOT(q8_0, PIECE / 32 * sizeof(struct block_q8_0))
DOT(q4_k, sizeof(struct block_q4_k))
DOT(q6_k, sizeof(struct block_q6_k))

#define TILE_ROWS 8

static void pack(const float *rows, uint32_t n_rows, uint32_t k, float *packed)
{
    for (uint32_t i = 0; i < k; i++) {
        for (uint32_t r = 0; r < TILE_ROWS; r++) {
            packed[(size_t)i * TILE_ROWS + r] = r < n_rows ? rows[(size_t)r * k + i] : 0.0f;
        }
    }
}

static void multiply(const float *x, size_t x_stride, uint32_t m, const float *packed, uint32_t k,
                     float *y, size_t y_stride, uint32_t n_rows)
{
    for (uint32_t i = 0; i < m; i++, x += x_stride, y += y_stride) {
        float sums[TILE_ROWS] = {0};

        for (uint32_t j = 0; j < k; j++) {
            for (int r = 0; r < TILE_ROWS; r++) {
                sums[r] += x[j] * packed[(size_t)j * TILE_ROWS + r];
            }
        }
        memcpy(y, sums, n_rows * sizeof(float));
    }
}

#define DOT_TABLE                                                                                  \
    {                                                                                              \
        [HRE_WEIGHT_F32] = dot_f32, [HRE_WEIGHT_F16] = dot_f16, [HRE_WEIGHT_BF16] = dot_bf16,      \
        [HRE_WEIGHT_Q4_0] = dot_q4_0, [HRE_WEIGHT_Q4_1] = dot_q4_1, [HRE_WEIGHT_Q8_0] = dot_q8_0,  \
        [HRE_WEIGHT_Q4_K] = dot_q4_k, [HRE_WEIGHT_Q6_K] = dot_q6_k,                                \
    }
BODY_TABLE(ref, DOT_TABLE);
