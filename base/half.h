/*
 * 16-bit floating point, one number at a time: the definition the vector kernels are held to.
 * Round to nearest, ties to even.
 */
#ifndef HRI_BASE_HALF_H
#define HRI_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t hri_f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float hri_f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float hri_f32_from_bf16(uint16_t half)
{
    return hri_f32_from_bits((uint32_t)half << 16);
}

static inline uint16_t hri_bf16_from_f32(float value)
{
    uint32_t bits = hri_f32_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u); /* keep a NaN a NaN, quiet */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float hri_f32_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) /* infinity; a NaN becomes quiet, as the hardware does it */
        return hri_f32_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 |
                                 (magnitude > 0x7c00u ? 0x400000u : 0));
    if (magnitude >= 0x400u)
        return hri_f32_from_bits(sign | ((magnitude << 13) + 0x38000000u));
    /* Subnormal: an integer multiple of 2^-24, exact in f32. */
    float value = (float)magnitude * 0x1.0p-24f;
    return hri_f32_from_bits(sign | hri_f32_bits(value));
}

static inline uint16_t hri_f16_from_f32(float value)
{
    uint32_t bits = hri_f32_bits(value);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude <
        0x38800000u) { /* below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the low bits */
        float shifted = hri_f32_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (hri_f32_bits(shifted) - 0x3f000000u));
    }
    uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | (rounded >> 13));
}

#endif
