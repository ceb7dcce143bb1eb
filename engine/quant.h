/*
 * Block formats of GGUF weights, byte for byte, and the 16-bit floats they use. Blocks lie one
 * behind the other along a row; d is a scale, m a minimum.
 */
#ifndef HRE_QUANT_H
#define HRE_QUANT_H

#include <stdint.h>
#include <string.h>

#define QUANT_BLOCK       32
#define QUANT_SUPER_BLOCK 256

struct block_q4_0 { /* weight = d (q - 8); low nibbles are weights 0-15, high nibbles 16-31 */
    uint16_t d;
    uint8_t q[16];
};
struct block_q4_1 { /* weight = d q + m; nibbles as above */
    uint16_t d, m;
    uint8_t q[16];
};
struct block_q8_0 { /* weight = d q */
    uint16_t d;
    int8_t q[32];
};
/* Eight groups of 32: weight = d scale q - dmin min. A byte holds weights of two groups, 32 apart. */
struct block_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12]; /* six bits each of eight scales and eight minima */
    uint8_t q[128];
};
/* Sixteen groups of 16: weight = d scale (q - 32). */
struct block_q6_k {
    uint8_t ql[128]; /* low four bits */
    uint8_t qh[64];  /* high two bits */
    int8_t scales[16];
    uint16_t d;
};
_Static_assert(sizeof(struct block_q4_0) == 18, "as in the file");
_Static_assert(sizeof(struct block_q4_1) == 20, "as in the file");
_Static_assert(sizeof(struct block_q8_0) == 34, "as in the file");
_Static_assert(sizeof(struct block_q4_k) == 144, "as in the file");
_Static_assert(sizeof(struct block_q6_k) == 210, "as in the file");

static inline float float_of_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint32_t bits_of_float(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* Exact for every input, subnormals included, and free of branches so that it vectorises. */
static inline float float_of_f16(uint16_t h)
{
    uint32_t shifted = (uint32_t)h << 16, sign = shifted & 0x80000000u, twice = shifted + shifted;
    float normal = float_of_bits((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
    float subnormal = float_of_bits((twice >> 17) | (126u << 23)) - 0.5f;
    uint32_t magnitude = twice < (1u << 27) ? bits_of_float(subnormal) : bits_of_float(normal);

    return float_of_bits(sign | magnitude);
}

static inline float float_of_bf16(uint16_t h)
{
    return float_of_bits((uint32_t)h << 16);
}

/* Scale and minimum of group j of a Q4_K block. */
static inline void q4_k_scale(const uint8_t scales[12], unsigned j, uint8_t *scale, uint8_t *min)
{
    if (j < 4) {
        *scale = scales[j] & 63;
        *min = scales[j + 4] & 63;
    } else {
        *scale = (uint8_t)((scales[j + 4] & 15) | ((scales[j - 4] >> 6) << 4));
        *min = (uint8_t)((scales[j + 4] >> 4) | ((scales[j] >> 6) << 4));
    }
}

#endif
