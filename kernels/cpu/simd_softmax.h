/* The nonlinear part of attention over a run of logits. Include after a simd_*.h. */
#ifndef HRI_SIMD_SOFTMAX_H
#define HRI_SIMD_SOFTMAX_H

/* tanh as a ratio of polynomials, within 4e-7 relative; it reaches 1 at the cut. */
HRI_INLINE vf vf_tanh(vf x)
{
    x = vf_min(vf_max(x, vf_set(-7.90531110763549805f)), vf_set(7.90531110763549805f));
    vf x2 = vf_mul(x, x);
    vf p = vf_fma(x2, vf_set(-2.76076847742355e-16f), vf_set(2.00018790482477e-13f));
    p = vf_fma(x2, p, vf_set(-8.60467152213735e-11f));
    p = vf_fma(x2, p, vf_set(5.12229709037114e-08f));
    p = vf_fma(x2, p, vf_set(1.48572235717979e-05f));
    p = vf_fma(x2, p, vf_set(6.37261928875436e-04f));
    p = vf_fma(x2, p, vf_set(4.89352455891786e-03f));
    vf q = vf_fma(x2, vf_set(1.19825839466702e-06f), vf_set(1.18534705686654e-04f));
    q = vf_fma(x2, q, vf_set(2.26843463243900e-03f));
    q = vf_fma(x2, q, vf_set(4.89352518554385e-03f));
    return vf_div(vf_mul(x, p), q);
}

HRI_INLINE vf vf_cut(vf x)
{
    return vf_min(vf_max(x, vf_set(-HRI_LOGIT_MAX)), vf_set(HRI_LOGIT_MAX));
}

HRI_INLINE void cap_logits(float *x, uint32_t n, float soft_cap)
{
    const vf inverse = vf_set(1.0f / soft_cap), cap = vf_set(soft_cap);

    for (uint32_t j = 0; j < n; j += VN)
        vf_store(x + j, vf_mul(cap, vf_tanh(vf_mul(vf_load(x + j), inverse))));
}

/* x[0..n) in whole vectors: soft-capped where asked, cut so that nothing is infinite or NaN.
 * Returns the largest, or m. */
HRI_INLINE float cut_logits(float *x, uint32_t n, float soft_cap, float m)
{
    vf largest = vf_set(m);

    if (soft_cap > 0.0f)
        cap_logits(x, n, soft_cap);
    for (uint32_t j = 0; j < n; j += VN) {
        const vf logit = vf_cut(vf_load(x + j));
        vf_store(x + j, logit);
        largest = vf_max(logit, largest);
    }
    return vf_largest(largest);
}

/* The largest of logits x[0..n), whole vectors, and m. */
HRI_INLINE float largest_logit(const float *x, uint32_t n, float m)
{
    vf largest = vf_set(m);

    for (uint32_t j = 0; j < n; j += VN)
        largest = vf_max(vf_load(x + j), largest);
    return vf_largest(largest);
}

/* Logits x[0..n), whole vectors, become weights relative to m; their sum is returned. */
HRI_INLINE float weigh_logits(float *x, uint32_t n, float m)
{
    const vf shift = vf_set(m);
    vf sum = vf_zero();

    for (uint32_t j = 0; j < n; j += VN) {
        const vf weight = vf_exp(vf_sub(vf_load(x + j), shift));
        vf_store(x + j, weight);
        sum = vf_add(sum, weight);
    }
    return vf_sum(sum);
}

/* What sums relative to old_m[0..n) must be multiplied with where the largest logit is now new_m, n
 * <= HR_GROUP_MAX; 1 where nothing changed, also where there still is none. Arrays have whole
 * vectors. */
HRI_INLINE void shrink_factors(const float *old_m, const float *new_m, uint32_t n, float *factors)
{
    for (uint32_t i = 0; i < n; i += VN)
        vf_store(factors + i, vf_exp(vf_sub(vf_load(old_m + i), vf_load(new_m + i))));
    for (uint32_t i = 0; i < n; i++)
        factors[i] = new_m[i] > old_m[i] ? factors[i] : 1.0f;
}

/* o[0..d), d a multiple of 8, times factor. */
HRI_INLINE void scale_row(float *o, uint32_t d, float factor)
{
    uint32_t j = 0;

    for (; j + VN <= d; j += VN)
        vf_store(o + j, vf_mul(vf_load(o + j), vf_set(factor)));
    if (j < d)
        vf_store_n(o + j, vf_mul(vf_load_n(o + j, d - j), vf_set(factor)), d - j);
}

#endif
