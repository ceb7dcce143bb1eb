#include "index/means.h"

#include "base/half.h"
#include "index/head.h"
#include "index/image.h"

#include <math.h>

#define HALF_MAX 65504.0f

uint16_t hri_half_clamped(float x)
{
    return hri_f16_from_f32(fminf(fmaxf(x, -HALF_MAX), HALF_MAX));
}

uint64_t hri_means_bytes(const struct hri_index_options *o, uint32_t n, bool with_v)
{
    return (uint64_t)n * (o->k_dim + (with_v ? o->v_dim : 0)) * sizeof(uint16_t);
}

hr_status_t hri_means_create(struct hri_means *means, const struct hri_index_options *o,
                             uint32_t n_max, bool with_v)
{
    means->k = hri_aligned(o->device, 64, (size_t)n_max * o->k_dim * sizeof *means->k);
    if (with_v)
        means->v = hri_aligned(o->device, 64, (size_t)n_max * o->v_dim * sizeof *means->v);
    if (!means->k || (with_v && !means->v)) {
        hri_means_destroy(means, o);
        return hri_alloc_status();
    }
    return HR_OK;
}

void hri_means_destroy(struct hri_means *means, const struct hri_index_options *o)
{
    hri_free(o->device, means->k);
    hri_free(o->device, means->v);
    *means = (struct hri_means){0};
}

static void write_mean(const float *x, uint32_t d, const uint32_t *rows, uint32_t n, uint16_t *out)
{
    double sum[HR_HEAD_DIM_MAX] = {0};
    for (uint32_t i = 0; i < n; i++) {
        const float *row = x + (size_t)(rows ? rows[i] : i) * d;
        for (uint32_t j = 0; j < d; j++)
            sum[j] += row[j];
    }
    for (uint32_t j = 0; j < d; j++)
        out[j] = hri_half_clamped((float)(sum[j] / n));
}

void hri_means_write(struct hri_means *means, const struct hri_index_options *o, uint32_t i,
                     const float *k, const float *v, const uint32_t *rows, uint32_t n)
{
    write_mean(k, o->k_dim, rows, n, means->k + (size_t)i * o->k_dim);
    if (means->v)
        write_mean(v, o->v_dim, rows, n, means->v + (size_t)i * o->v_dim);
}

void hri_means_dots(const struct hri_means *means, const struct hri_index_options *o,
                    const float *q, uint32_t n, float *dots, size_t stride)
{
    struct hri_rows rows = {.base = means->k,
                            .stride_bytes = o->k_dim * sizeof *means->k,
                            .n = n,
                            .dtype = HR_DTYPE_F16};
    o->kernels->score_rows(q, o->g, o->k_dim, rows, o->soft_cap, dots, stride);
}

void hri_means_read(const struct hri_means *means, const struct hri_index_options *o, uint32_t i,
                    float *k, float *v)
{
    if (k)
        o->kernels->to_f32(k, means->k + (size_t)i * o->k_dim, HR_DTYPE_F16, o->k_dim);
    if (v && means->v)
        o->kernels->to_f32(v, means->v + (size_t)i * o->v_dim, HR_DTYPE_F16, o->v_dim);
}

void hri_softmax(const struct hri_kernels *kernels, const float *x, float *y, uint32_t n)
{
    float total = kernels->exp_sum(x, kernels->max(x, n), y, n);
    for (uint32_t i = 0; i < n; i++)
        y[i] /= total;
}

void hri_means_image(struct hri_means *means, const struct hri_index_options *o, uint32_t n,
                     struct hri_image *im)
{
    hri_image_halfs(im, means->k, (size_t)n * o->k_dim);
    if (means->v)
        hri_image_halfs(im, means->v, (size_t)n * o->v_dim);
}
