/* The logits of a batch of rows become weights of a running softmax. Include after simd_softmax.h.
 * x[i][r]: row stride TAKE_ROWS floats, 64-byte aligned. */
#ifndef HRI_SIMD_TAKE_H
#define HRI_SIMD_TAKE_H

#define TAKE_ROWS 128u /* of a batch, at most */

/* x[i][n..] up to whole vectors = value. */
HRI_INLINE void fill_tails(float *x, uint32_t g, uint32_t n, float value)
{
    for (uint32_t i = 0; i < g; i++) {
        for (uint32_t j = n; j % VN != 0; j++)
            x[i * TAKE_ROWS + j] = value;
    }
}

/* Logits of a batch become weights, and part makes room for them. Tails hold anything. */
static void take_tile(float *x, uint32_t g, uint32_t n, uint32_t dv, float soft_cap,
                      struct hri_partial *part)
{
    const uint32_t whole = (n + VN - 1) / VN * VN;
    float old_m[HR_GROUP_MAX] = {0.0f}, new_m[HR_GROUP_MAX] = {0.0f}, shrink[HR_GROUP_MAX];

    fill_tails(x, g, n, -HRI_LOGIT_MAX);
    for (uint32_t i = 0; i < g; i++) {
        old_m[i] = part->m[i];
        new_m[i] = cut_logits(x + i * TAKE_ROWS, whole, soft_cap, old_m[i]);
    }
    fill_tails(x, g, n, -INFINITY);
    shrink_factors(old_m, new_m, g, shrink);
    for (uint32_t i = 0; i < g; i++) {
        part->m[i] = new_m[i];
        part->l[i] = part->l[i] * shrink[i] + weigh_logits(x + i * TAKE_ROWS, whole, new_m[i]);
        if (shrink[i] != 1.0f)
            scale_row(part->o + (size_t)i * dv, dv, shrink[i]);
    }
}

#endif
