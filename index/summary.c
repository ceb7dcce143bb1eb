#include "index/summary.h"

#include "base/half.h"
#include "index/head.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

uint64_t hri_summary_bytes(const struct hri_index_options *options, uint32_t n_blocks)
{
    uint64_t per_block = options->v_dim + sizeof(float);
    return hri_centroids_bytes(n_blocks, options->k_dim) +
           (uint64_t)hri_lanes_up(n_blocks) * sizeof(float) + n_blocks * per_block +
           options->k_dim * sizeof(float);
}

hr_status_t hri_summary_create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_summary *s = &head->summary;
    size_t k_bytes = hri_centroids_bytes(o->blocks_max, o->k_dim);
    s->k_codes = hri_aligned(o->device, 64, k_bytes);
    s->k_scale = hri_aligned_zero(o->device, 64, hri_lanes_up(o->blocks_max) * sizeof(float));
    s->v_codes = hri_aligned(o->device, 64, (size_t)o->blocks_max * o->v_dim);
    s->v_scale = hri_aligned(o->device, 64, o->blocks_max * sizeof(float));
    s->k_mean = hri_calloc(o->device, o->k_dim, sizeof(float));
    if (!s->k_codes || !s->k_scale || !s->v_codes || !s->v_scale || !s->k_mean) {
        hri_summary_destroy(head);
        return hri_alloc_status();
    }
    memset(s->k_codes, 128, k_bytes); /* the code of zero */
    return HR_OK;
}

void hri_summary_destroy(struct hri_index_head *head)
{
    struct hri_summary *s = &head->summary;
    hri_free(head->options.device, s->k_codes);
    hri_free(head->options.device, s->k_scale);
    hri_free(head->options.device, s->v_codes);
    hri_free(head->options.device, s->v_scale);
    hri_free(head->options.device, s->k_mean);
    *s = (struct hri_summary){0};
}

/* Mean of some rows of x [..][d] (rows NULL: the first n), in double so that long segments lose
 * nothing. */
static void mean_rows(const float *x, uint32_t d, const uint32_t *rows, uint32_t n, float *mean)
{
    double sum[HR_HEAD_DIM_MAX] = {0};
    for (uint32_t i = 0; i < n; i++) {
        const float *row = x + (size_t)(rows ? rows[i] : i) * d;
        for (uint32_t j = 0; j < d; j++)
            sum[j] += row[j];
    }
    for (uint32_t j = 0; j < d; j++)
        mean[j] = (float)(sum[j] / n);
}

void hri_summary_set_mean(struct hri_index_head *head, const float *k, uint32_t n)
{
    mean_rows(k, head->options.k_dim, NULL, n, head->summary.k_mean);
    head->summary.has_mean = true;
}

void hri_summary_write(struct hri_index_head *head, uint32_t b, const float *k, const float *v,
                       const uint32_t *rows, uint32_t n, float *work)
{
    struct hri_summary *s = &head->summary;
    uint32_t dk = head->options.k_dim, dv = head->options.v_dim;
    float zero[HR_HEAD_DIM_MAX] = {0}, *k_center = work, *v_center = work + dk;
    mean_rows(k, dk, rows, n, k_center);
    mean_rows(v, dv, rows, n, v_center);
    for (uint32_t j = 0; j < dk; j++)
        k_center[j] -= s->k_mean[j];
    s->k_scale[b] = hri_centroid_pack(s->k_codes, dk, b, k_center);
    s->v_scale[b] = head->options.kernels->quantise_i8(v_center, dv, 1, dv, zero,
                                                       s->v_codes + (size_t)b * dv, dv);
}

void hri_summary_add(struct hri_index_head *head, const struct hri_segment *segment)
{
    uint32_t first = 0;
    for (uint32_t b = 0; b < segment->n_blocks; b++) {
        hri_summary_write(head, head->n_blocks + b, segment->k, segment->v, segment->order + first,
                          segment->block_rows[b], segment->workspace);
        first += segment->block_rows[b];
    }
}

void hri_summary_take(struct hri_index_head *head, uint32_t n_blocks, const uint8_t *k_codes,
                      const float *k_scale, const int8_t *v_codes, const float *v_scale)
{
    struct hri_summary *s = &head->summary;
    uint32_t dk = head->options.k_dim, dv = head->options.v_dim, first = head->n_blocks;
    for (uint32_t b = 0; b < n_blocks; b++)
        hri_centroid_move(s->k_codes, first + b, k_codes, b, dk);
    memcpy(s->k_scale + first, k_scale, n_blocks * sizeof *k_scale);
    memcpy(s->v_codes + (size_t)first * dv, v_codes, (size_t)n_blocks * dv);
    memcpy(s->v_scale + first, v_scale, n_blocks * sizeof *v_scale);
}

void hri_summary_centers(const struct hri_index_head *head, uint32_t b, float *k_center,
                         float *v_center)
{
    const struct hri_summary *s = &head->summary;
    uint32_t dk = head->options.k_dim, dv = head->options.v_dim;
    if (k_center != NULL) {
        hri_centroid_unpack(s->k_codes, dk, b, s->k_scale[b], k_center);
        for (uint32_t j = 0; j < dk; j++)
            k_center[j] += s->k_mean[j];
    }
    for (uint32_t j = 0; j < dv; j++)
        v_center[j] = s->v_scale[b] * s->v_codes[(size_t)b * dv + j];
}

void hri_summary_dots(const struct hri_index_head *head, const float *q, float *dots, size_t stride)
{
    const struct hri_index_options *o = &head->options;
    struct hri_centroids c = {head->summary.k_codes, head->summary.k_scale, head->n_blocks};
    o->kernels->score_centroids(q, o->g, o->k_dim, c, dots, stride);
    for (uint32_t g = 0; g < o->g; g++) {
        float common = 0;
        for (uint32_t j = 0; j < o->k_dim; j++)
            common += q[(size_t)g * o->k_dim + j] * head->summary.k_mean[j];
        for (uint32_t b = 0; b < head->n_blocks; b++)
            dots[g * stride + b] += common;
    }
}

uint64_t hri_bounds_bytes(const struct hri_index_options *options, uint32_t n_blocks)
{
    return 2 * (uint64_t)n_blocks * options->k_dim * sizeof(uint16_t);
}

hr_status_t hri_bounds_create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    size_t bytes = (size_t)o->blocks_max * o->k_dim * sizeof(uint16_t);
    head->bounds.min = hri_aligned(o->device, 64, bytes);
    head->bounds.max = hri_aligned(o->device, 64, bytes);
    if (!head->bounds.min || !head->bounds.max) {
        hri_bounds_destroy(head);
        return hri_alloc_status();
    }
    return HR_OK;
}

void hri_bounds_destroy(struct hri_index_head *head)
{
    hri_free(head->options.device, head->bounds.min);
    hri_free(head->options.device, head->bounds.max);
    head->bounds = (struct hri_bounds){0};
}

void hri_summary_image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    struct hri_summary *s = &head->summary;
    uint32_t n = head->n_blocks;
    hri_image_flag(im, &s->has_mean);
    hri_image_floats(im, s->k_mean, o->k_dim);
    hri_image_bytes(im, s->k_codes, hri_centroids_bytes(n, o->k_dim));
    hri_image_floats(im, s->k_scale, n);
    hri_image_bytes(im, s->v_codes, (size_t)n * o->v_dim);
    hri_image_floats(im, s->v_scale, n);
}

void hri_bounds_image(struct hri_index_head *head, struct hri_image *im)
{
    size_t n = (size_t)head->n_blocks * head->options.k_dim;
    hri_image_halfs(im, head->bounds.min, n);
    hri_image_halfs(im, head->bounds.max, n);
}
