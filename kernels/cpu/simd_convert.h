/* Conversion, quantisation and the elementwise helpers. Include after a simd_*.h. */
#ifndef HRI_SIMD_CONVERT_H
#define HRI_SIMD_CONVERT_H

/* Asked for while converting: what follows, also beyond the page at which the processor itself stops. */
#define CONVERT_AHEAD 8192
/* Results of twice the size keep requests from being heard: so many bytes are read in order first. */
#define TOUCH_BYTES 16384u

HRI_INLINE void touch(const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        (void)*((const volatile char *)p + i);
}

void HRI_OP(to_f32)(float *dst, const void *src, hr_dtype_t dtype, size_t n)
{
    const uint16_t *half = src;
    size_t i = 0;

    if (dtype == HR_DTYPE_F32) {
        if (n)
            memcpy(dst, src, n * sizeof *dst);
    } else if (dtype == HR_DTYPE_F16) {
        for (; i + VN <= n; i += VN)
            vf_store(dst + i, vf_load_element(half, ELEMENT_F16, i));
        for (; i < n; i++)
            dst[i] = hri_f32_from_f16(half[i]);
    } else {
        for (; i + 2 * VN <= n; i += 2 * VN) {
            if (i % (TOUCH_BYTES / 2) == 0)
                touch(half + i, n - i < TOUCH_BYTES / 2 ? 2 * (n - i) : TOUCH_BYTES);
            vf_store(dst + i, vf_load_element(half, ELEMENT_BF16, i));
            vf_store(dst + i + VN, vf_load_element(half, ELEMENT_BF16, i + VN));
        }
        for (; i + VN <= n; i += VN)
            vf_store(dst + i, vf_load_element(half, ELEMENT_BF16, i));
        for (; i < n; i++)
            dst[i] = hri_f32_from_bf16(half[i]);
    }
}

void HRI_OP(from_f32)(void *dst, const float *src, hr_dtype_t dtype, size_t n)
{
    uint16_t *half = dst;
    size_t i = 0;

    if (dtype == HR_DTYPE_F32) {
        if (n)
            memcpy(dst, src, n * sizeof *src);
    } else if (dtype == HR_DTYPE_F16) {
        for (; i + VN <= n; i += VN)
            vf_store_f16(half + i, vf_load(src + i));
        for (; i < n; i++)
            half[i] = hri_f16_from_f32(src[i]);
    } else {
        for (; i + VN <= n; i += VN) {
            _mm_prefetch((const char *)(src + i) + CONVERT_AHEAD, _MM_HINT_T0);
            vf_store_bf16(half + i, vf_load(src + i));
        }
        for (; i < n; i++)
            half[i] = hri_bf16_from_f32(src[i]);
    }
}

/* Whether all exponents of a run are below the one of infinity; straight loops that the compiler
 * turns into vectors. */
HRI_INLINE bool finite_words(const uint32_t *x, size_t n)
{
    uint32_t bad = 0;

    for (size_t i = 0; i < n; i++)
        bad |= (x[i] & 0x7f800000u) == 0x7f800000u;
    return bad == 0;
}

HRI_INLINE bool finite_halves(const uint16_t *x, size_t n, uint16_t exponent)
{
    uint16_t bad = 0;

    for (size_t i = 0; i < n; i++)
        bad |= (uint16_t)((x[i] & exponent) == exponent);
    return bad == 0;
}

size_t HRI_OP(find_nonfinite)(const void *src, hr_dtype_t dtype, size_t n)
{
    const size_t run = 1024;

    for (size_t i = 0; i < n; i += run) {
        const size_t count = n - i < run ? n - i : run;
        const void *at = (const char *)src + i * hri_element_bytes(dtype);
        const uint16_t exponent = dtype == HR_DTYPE_F16 ? 0x7c00u : 0x7f80u;
        bool finite =
            dtype == HR_DTYPE_F32 ? finite_words(at, count) : finite_halves(at, count, exponent);
        if (!finite)
            return i + hri_ref_find_nonfinite(at, dtype, count);
    }
    return n;
}

HRI_INLINE float largest_difference(const float *x, const float *center, uint32_t d)
{
    vf largest = vf_zero();
    uint32_t j = 0;

    for (; j + VN <= d; j += VN) {
        _mm_prefetch((const char *)(x + j) + CONVERT_AHEAD, _MM_HINT_T0);
        largest = vf_max(vf_abs(vf_sub(vf_load(x + j), vf_load(center + j))), largest);
    }
    if (j < d)
        largest =
            vf_max(vf_abs(vf_sub(vf_load_n(x + j, d - j), vf_load_n(center + j, d - j))), largest);
    return vf_largest(largest);
}

HRI_INLINE void quantise_row(const float *x, const float *center, float inverse, uint32_t d,
                             int8_t *codes)
{
    uint32_t j = 0;

    for (; j + VN <= d; j += VN)
        vf_store_i8(codes + j,
                    vf_mul(vf_sub(vf_load(x + j), vf_load(center + j)), vf_set(inverse)));
    if (j < d) {
        int8_t tail[VN];
        vf difference = vf_sub(vf_load_n(x + j, d - j), vf_load_n(center + j, d - j));
        vf_store_i8(tail, vf_mul(difference, vf_set(inverse)));
        memcpy(codes + j, tail, d - j);
    }
}

float HRI_OP(quantise_i8)(const float *x, size_t x_stride, uint32_t n, uint32_t d,
                          const float *center, int8_t *codes, size_t code_stride)
{
    float largest = 0.0f;

    for (uint32_t i = 0; i < n; i++)
        largest = fmaxf(largest, largest_difference(x + i * x_stride, center, d));
    const float step = largest < HRI_STEP_MIN ? 0.0f : largest / 127.0f;
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    for (uint32_t i = 0; i < n; i++)
        quantise_row(x + i * x_stride, center, inverse, d, codes + i * code_stride);
    return step;
}

void HRI_OP(min_max)(const float *x, uint32_t n, uint32_t d, float *min, float *max)
{
    for (uint32_t j = 0; j < d; j += VN) {
        const uint32_t lanes = d - j < VN ? d - j : VN;
        vf low = vf_set(INFINITY), high = vf_set(-INFINITY);
        for (size_t i = 0; i < n; i++) {
            vf value = lanes < VN ? vf_load_n(x + i * d + j, lanes) : vf_load(x + i * d + j);
            low = vf_min(value, low);
            high = vf_max(value, high);
        }
        vf_store_n(min + j, low, lanes);
        vf_store_n(max + j, high, lanes);
    }
}

float HRI_OP(exp_sum)(const float *x, float shift, float *y, uint32_t n)
{
    const vf by = vf_set(shift), most = vf_set(100.0f);
    vf sum = vf_zero();
    uint32_t i = 0;

    for (; i + VN <= n; i += VN) {
        vf e = vf_exp(vf_min(vf_sub(vf_load(x + i), by), most));
        vf_store(y + i, e);
        sum = vf_add(sum, e);
    }
    float total = vf_sum(sum);
    if (i < n) {
        float tail[VN];
        vf_store(tail, vf_exp(vf_min(vf_sub(vf_load_n(x + i, n - i), by), most)));
        for (uint32_t j = 0; i + j < n; j++) {
            y[i + j] = tail[j];
            total += tail[j];
        }
    }
    return total;
}

float HRI_OP(max)(const float *x, uint32_t n)
{
    vf largest = vf_set(-INFINITY);
    uint32_t i = 0;

    for (; i + VN <= n; i += VN)
        largest = vf_max(vf_load(x + i), largest);
    float result = vf_largest(largest);
    for (; i < n; i++)
        result = fmaxf(result, x[i]);
    return result;
}

/* A run of logits: sums of its weights and of their squares, its largest logit, lane by lane. */
struct weighed {
    vf sum, square, largest;
};

HRI_INLINE vf weigh_vector(vf logit, vf shift, struct weighed *run)
{
    const vf e = vf_exp(vf_min(vf_sub(logit, shift), vf_set(100.0f)));
    run->largest = vf_max(logit, run->largest);
    run->sum = vf_add(run->sum, e);
    run->square = vf_fma(e, e, run->square);
    return e;
}

/* Up to four runs at once, a vector of each in turn: one alone would wait for itself. Runs are short, so that adding up their lanes,
 * four runs at once, is no small part of the work either. */
HRI_INLINE void weigh_runs(const int runs, const float *x, size_t x_stride, const float *shift,
                           uint32_t n, float *y, size_t y_stride, float *sum, float *square,
                           float *most)
{
    const uint32_t whole = n / VN * VN, rest = n - whole;
    struct weighed run[4];
    vf by[4];

    HRI_UNROLL
    for (int k = 0; k < 4; k++) {
        by[k] = vf_set(k < runs ? shift[k] : 0.0f);
        run[k] = (struct weighed){vf_zero(), vf_zero(), vf_set(-INFINITY)};
    }
    for (uint32_t i = 0; i < whole; i += VN) {
        HRI_UNROLL
        for (int k = 0; k < runs; k++)
            vf_store(y + k * y_stride + i,
                     weigh_vector(vf_load(x + k * x_stride + i), by[k], &run[k]));
    }
    if (rest > 0) {
        HRI_UNROLL
        for (int k = 0; k < runs; k++)
            vf_store_n(y + k * y_stride + whole,
                       weigh_vector(vf_load_logits(x + k * x_stride + whole, rest), by[k], &run[k]),
                       rest);
    }
    float sums[4], squares[4], largest[4];
    _mm_storeu_ps(sums, vf_sum4(run[0].sum, run[1].sum, run[2].sum, run[3].sum));
    _mm_storeu_ps(squares, vf_sum4(run[0].square, run[1].square, run[2].square, run[3].square));
    _mm_storeu_ps(largest,
                  vf_largest4(run[0].largest, run[1].largest, run[2].largest, run[3].largest));
    HRI_UNROLL
    for (int k = 0; k < runs; k++) {
        sum[k] = sums[k];
        square[k] = squares[k];
        most[k] = largest[k];
    }
}

void HRI_OP(weigh_rows)(const float *x, size_t x_stride, const float *shift, uint32_t g, uint32_t n,
                        float *y, size_t y_stride, float *sum, float *square, float *most)
{
    uint32_t i = 0;

    for (; i + 4 <= g; i += 4, x += 4 * x_stride, y += 4 * y_stride)
        weigh_runs(4, x, x_stride, shift + i, n, y, y_stride, sum + i, square + i, most + i);
    if (g - i == 3)
        weigh_runs(3, x, x_stride, shift + i, n, y, y_stride, sum + i, square + i, most + i);
    else if (g - i == 2)
        weigh_runs(2, x, x_stride, shift + i, n, y, y_stride, sum + i, square + i, most + i);
    else if (g - i == 1)
        weigh_runs(1, x, x_stride, shift + i, n, y, y_stride, sum + i, square + i, most + i);
}

#endif
