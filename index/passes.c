#include "index/passes.h"

#include <string.h>

#include "base/half.h"
#include "index/sort.h"

/* Sanitizers run before the loader could resolve such functions, and clang before 17 gives them names of its own, which callers in other
 * files do not know. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(HR_SANITIZE) &&                          \
    (!defined(__clang__) || __clang_major__ >= 17)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

/* Sums run in many chains, since additions of one chain wait for each other and compilers do not reorder them. Vectors of the compiler's
 * own: it lowers them to whatever there is. */
#define LANES 16u
typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));

static inline float lanes_sum(const vf *sum)
{
    float all = 0;
    for (uint32_t i = 0; i < LANES; i += 4)
        all += ((*sum)[i] + (*sum)[i + 1]) + ((*sum)[i + 2] + (*sum)[i + 3]);
    return all;
}

static inline int32_t lanes_sum_i(const vi *sum)
{
    int32_t all = 0;
    for (uint32_t i = 0; i < LANES; i++)
        all += (*sum)[i];
    return all;
}

WIDE float hri_pass_sum(const float *x, uint32_t n)
{
    vf sum = {0}, other = {0};
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        sum += *(const vf *)(x + i);
        other += *(const vf *)(x + i + LANES);
    }
    sum += other;
    for (; i < n; i++)
        sum[i % LANES] += x[i];
    return lanes_sum(&sum);
}

WIDE struct hri_unread_sums hri_pass_unread(const float *weight, const float *rate, uint32_t n)
{
    vf doubt = {0}, sum = {0}, square = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf r = *(const vf *)(rate + i), w = *(const vf *)(weight + i);
        w = (vf)((vi)w & (r > 0));
        sum += w;
        square += w * w;
        doubt += w * w * r;
    }
    for (; i < n; i++) {
        float w = rate[i] > 0 ? weight[i] : 0;
        sum[i % LANES] += w;
        square[i % LANES] += w * w;
        doubt[i % LANES] += w * w * rate[i];
    }
    return (struct hri_unread_sums){lanes_sum(&doubt), lanes_sum(&sum), lanes_sum(&square)};
}

WIDE void hri_pass_scale_unread(float *restrict weight, const float *restrict rate, float factor,
                                uint32_t n)
{
    for (size_t b = 0; b < n; b++)
        weight[b] *= rate[b] > 0 ? factor : 1;
}

WIDE void hri_pass_doubt_add(const float *restrict weight, const float *restrict rate, float scale,
                             float *restrict doubt, uint32_t n)
{
    for (size_t b = 0; b < n; b++) {
        float share = weight[b] * scale, x = share * share * rate[b];
        doubt[b] += x < 1 ? x : 1;
    }
}

WIDE void hri_pass_rates(const uint16_t *restrict spread, const uint8_t *restrict rows,
                         float variance, float *restrict rate, uint32_t n)
{
    for (size_t b = 0; b < n; b++)
        rate[b] = hri_doubt_rate(variance * hri_f32_from_bf16(spread[b]), rows[b]);
}

WIDE void hri_pass_family_rates(const uint16_t *restrict spread, const uint16_t *restrict within,
                                const float *restrict per_block, const float *restrict per_row,
                                float between, float variance, float *restrict rate, uint32_t n)
{
    for (size_t f = 0; f < n; f++) {
        float of_blocks = hri_doubt_excess(between * hri_f32_from_bf16(spread[f])),
              of_rows = hri_doubt_excess(variance * hri_f32_from_bf16(within[f]));
        rate[f] = of_blocks * per_block[f] + (of_rows + HRI_DOUBT_FLOOR) * per_row[f];
    }
}

WIDE float hri_pass_lean(const float *weight, const uint16_t *spread, const uint8_t *state,
                         uint8_t below, uint32_t n)
{
    vf sum = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        float part[LANES];
        for (size_t j = 0; j < LANES; j++)
            part[j] = hri_f32_from_bf16(spread[i + j]);
        vi in;
        for (size_t j = 0; j < LANES; j++)
            in[j] = -(state[i + j] < below);
        sum += (vf)((vi) * (const vf *)part & in) * *(const vf *)(weight + i);
    }
    for (; i < n; i++)
        sum[i % LANES] += state[i] < below ? weight[i] * hri_f32_from_bf16(spread[i]) : 0;
    return lanes_sum(&sum);
}

WIDE float hri_pass_drift(const float *restrict weight, const uint16_t *restrict spread,
                          float variance, float most, uint32_t n)
{
    vf sum = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        float part[LANES];
        for (size_t j = 0; j < LANES; j++) {
            float x = variance * hri_f32_from_bf16(spread[i + j]);
            part[j] = x < most ? x : most;
        }
        sum += *(const vf *)part * *(const vf *)(weight + i);
    }
    for (; i < n; i++) {
        float x = variance * hri_f32_from_bf16(spread[i]);
        sum[i % LANES] += weight[i] * (x < most ? x : most);
    }
    return lanes_sum(&sum);
}

WIDE void hri_pass_log_weights(const float *restrict dots, const uint16_t *restrict spread,
                               float half, float most, float *restrict x, uint32_t n)
{
    for (size_t b = 0; b < n; b++) {
        float add = half * hri_f32_from_bf16(spread[b]);
        x[b] = dots[b] + (add < most ? add : most);
    }
}

/* Nearly all are small: 64 at a time are looked at for one that is not. */
WIDE float hri_pass_split(const float *x, float least, uint32_t *list, uint32_t *n_out, uint32_t n)
{
    vf sum = {0};
    uint32_t found = 0;
    size_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        vi large = {0};
        for (size_t j = i; j < i + 4 * LANES; j += LANES) {
            vf value = *(const vf *)(x + j);
            large |= value >= least;
            sum += (vf)((vi)value & (value < least));
        }
        if (lanes_sum_i(&large) == 0)
            continue;
        for (size_t j = i; j < i + 4 * LANES; j++)
            if (x[j] >= least)
                list[found++] = (uint32_t)j;
    }
    for (; i < n; i++) {
        sum[i % LANES] += x[i] < least ? x[i] : 0;
        if (x[i] >= least)
            list[found++] = (uint32_t)i;
    }
    *n_out = found;
    return lanes_sum(&sum);
}

WIDE float hri_pass_keep(const float *weight, float least, float *kept, uint32_t n)
{
    vf sum = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf w = *(const vf *)(weight + i);
        sum += (vf)((vi)w & (w < least));
        *(vf *)(kept + i) = (vf)((vi)w & (w >= least));
    }
    for (; i < n; i++) {
        sum[i % LANES] += weight[i] < least ? weight[i] : 0;
        kept[i] = weight[i] < least ? 0 : weight[i];
    }
    return lanes_sum(&sum);
}

WIDE void hri_pass_value_add(const int8_t *restrict codes, float weight, float *restrict output,
                             uint32_t n)
{
    for (size_t j = 0; j < n; j++)
        output[j] += weight * (float)codes[j];
}

WIDE void hri_pass_worth(const float *restrict weight, size_t stride, uint32_t g,
                         const float *restrict factor, float *restrict worth, uint32_t n)
{
    for (size_t i = 0; i < n; i++)
        worth[i] = factor[0] * weight[i] * weight[i];
    for (size_t j = 1; j < g; j++) {
        const float *restrict w = weight + j * stride;
        for (size_t i = 0; i < n; i++)
            worth[i] += factor[j] * w[i] * w[i];
    }
}

WIDE void hri_pass_bins(const float *restrict x, float factor, uint16_t *restrict bin, uint32_t n)
{
    for (size_t i = 0; i < n; i++)
        bin[i] = (uint16_t)hri_bin_of(factor * x[i]);
}

/* Of a block's rows, which are few: what is left over of a long vector would take longer than all the others. */
typedef float v4f __attribute__((vector_size(16), aligned(4), may_alias));

static inline float four_sum(v4f x)
{
    return (x[0] + x[1]) + (x[2] + x[3]);
}

float hri_pass_scale(float *x, float factor, uint32_t n)
{
    v4f sum = {0}, other = {0};
    float rest = 0;
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        v4f *at = (v4f *)(x + i), low = at[0] * factor, high = at[1] * factor;
        at[0] = low;
        at[1] = high;
        sum += low;
        other += high;
    }
    for (; i < n; i++) {
        x[i] *= factor;
        rest += x[i];
    }
    return four_sum(sum + other) + rest;
}

float hri_pass_most(const float *x, uint32_t n)
{
    typedef int32_t v4i __attribute__((vector_size(16)));
    v4f four = {0};
    float most = 0;
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        v4f at = *(const v4f *)(x + i);
        v4i larger = at > four;
        four = (v4f)(((v4i)at & larger) | ((v4i)four & ~larger));
    }
    for (; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (uint32_t j = 0; j < 4; j++)
        most = four[j] > most ? four[j] : most;
    return most;
}

WIDE void hri_pass_quarters_code(const float *restrict x, float inverse, uint32_t quarter,
                                 uint8_t *restrict codes)
{
    for (uint32_t j = 0; j < quarter; j++) {
        uint32_t code = 0;
        for (uint32_t i = 0; i < 4; i++) {
            float level = x[j + i * quarter] * inverse + 2;
            level = level > 0 ? level : 0; /* a NaN becomes 0 */
            level = level < 3 ? level : 3;
            code |= (uint32_t)(int32_t)level << 2 * i;
        }
        codes[j] = (uint8_t)code;
    }
}

/* Eight bytes at a time, whatever the processor: rows are short. 2 c - 3 of each, with a bit set on the way so that none borrows. */
void hri_pass_quarters_widen(const uint8_t *restrict codes, uint32_t quarter, int8_t *restrict wide)
{
    const uint64_t each = 0x0101010101010101u;
    uint32_t j = 0;
    for (; j + 8 <= quarter; j += 8) {
        uint64_t eight, x;
        memcpy(&eight, codes + j, sizeof eight);
        for (uint32_t i = 0; i < 4; i++) {
            x = ((eight >> 2 * i & 3 * each) * 2 + 0x7d * each) ^ 0x80 * each;
            memcpy(wide + i * quarter + j, &x, sizeof x);
        }
    }
    for (; j < quarter; j++)
        for (uint32_t i = 0; i < 4; i++)
            wide[i * quarter + j] = (int8_t)((codes[j] >> 2 * i & 3) * 2 - 3);
}
