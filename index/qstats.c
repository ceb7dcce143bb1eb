#include "index/qstats.h"

#include "base/error.h"
#include "index/linalg.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

/* H, H/4, H/16, H/64: by measurement. Of a long one as many as end with a hundred positions or so. */
#define HORIZONS_LEAST 4
#define HORIZON_LEAST  128u
#define HORIZON_SHIFT  2

static void set_pairs(struct hri_qstats *stats, const struct hr_rope *rope)
{
    uint32_t n_rot = stats->rotates ? rope->n_rot : 0, half = n_rot / 2;
    for (uint32_t i = 0; i < stats->n_pairs; i++) {
        bool by_half = i < half && rope->layout == HR_ROPE_HALF;
        stats->theta[i] = i < half ? (double)rope->frequencies[i] : 0;
        stats->first[i] = (uint16_t)(by_half ? i : 2 * i);
        stats->second[i] = (uint16_t)(by_half ? i + half : 2 * i + 1);
    }
}

hr_status_t hri_qstats_init(struct hri_qstats *stats, const struct hri_kernels *kernels,
                            struct hri_alloc *alloc, uint32_t d, const struct hr_rope *rope)
{
    *stats = (struct hri_qstats){.d = d, .n_pairs = d / 2, .kernels = kernels, .alloc = alloc};
    stats->rotates = rope && rope->layout != HR_ROPE_NONE && rope->n_rot > 0;
    if (stats->rotates && (rope->n_rot > d || rope->n_rot % 2 || !rope->frequencies))
        return hri_error_set(
            HR_ERR_INVALID,
            "rope: n_rot is %u, allowed are even numbers up to the head dimension %u", rope->n_rot,
            d);
    stats->theta = hri_array(alloc, stats->n_pairs, sizeof *stats->theta);
    stats->first = hri_array(alloc, stats->n_pairs, sizeof *stats->first);
    stats->second = hri_array(alloc, stats->n_pairs, sizeof *stats->second);
    stats->moment = hri_aligned_zero(alloc, 64, (size_t)d * d * sizeof *stats->moment);
    stats->batch = hri_aligned_zero(alloc, 64, (size_t)HRI_QSTATS_BATCH * d * sizeof *stats->batch);
    stats->recent =
        hri_aligned_zero(alloc, 64, (size_t)HRI_QSTATS_RECENT * d * sizeof *stats->recent);
    if (!stats->recent || !stats->theta || !stats->first || !stats->second || !stats->moment ||
        !stats->batch) {
        hri_qstats_fini(stats);
        return hri_alloc_status();
    }
    set_pairs(stats, rope);
    return HR_OK;
}

/* What is in use of the bytes that there are. */
static void *copy_of(struct hri_alloc *alloc, const void *from, size_t used, size_t bytes)
{
    void *to = hri_aligned(alloc, 64, bytes);
    if (to != NULL)
        memcpy(to, from, used);
    return to;
}

hr_status_t hri_qstats_copy(const struct hri_qstats *from, struct hri_qstats *to)
{
    size_t d = from->d, pairs = from->n_pairs, row = d * sizeof *to->batch;
    *to = *from;
    to->theta =
        copy_of(from->alloc, from->theta, pairs * sizeof *to->theta, pairs * sizeof *to->theta);
    to->first =
        copy_of(from->alloc, from->first, pairs * sizeof *to->first, pairs * sizeof *to->first);
    to->second =
        copy_of(from->alloc, from->second, pairs * sizeof *to->second, pairs * sizeof *to->second);
    to->moment = copy_of(from->alloc, from->moment, d * row, d * row);
    to->batch = copy_of(from->alloc, from->batch, from->n_batch * row, HRI_QSTATS_BATCH * row);
    to->recent = copy_of(from->alloc, from->recent, from->n_recent * row, HRI_QSTATS_RECENT * row);
    if (to->theta && to->first && to->second && to->moment && to->batch && to->recent)
        return HR_OK;
    hri_qstats_fini(to);
    return hri_alloc_status();
}

void hri_qstats_fini(struct hri_qstats *stats)
{
    hri_free(stats->alloc, stats->theta);
    hri_free(stats->alloc, stats->first);
    hri_free(stats->alloc, stats->second);
    hri_free(stats->alloc, stats->moment);
    hri_free(stats->alloc, stats->batch);
    hri_free(stats->alloc, stats->recent);
    *stats = (struct hri_qstats){0};
}

static void flush(struct hri_qstats *stats)
{
    if (stats->n_batch == 0)
        return;
    size_t n = (size_t)stats->d * stats->d;
    for (size_t i = 0; i < n; i++)
        stats->moment[i] *= (float)HRI_QSTATS_DECAY;
    stats->kernels->second_moment(stats->batch, stats->n_batch, stats->d, stats->moment);
    stats->weight = stats->weight * HRI_QSTATS_DECAY + stats->n_batch;
    stats->n_batch = 0;
}

/* Turns one query by `positions`, which may be negative. */
static void rotate(const struct hri_qstats *stats, const float *q, double positions, float *out)
{
    if (!stats->rotates) {
        memcpy(out, q, stats->d * sizeof *out);
        return;
    }
    for (uint32_t i = 0; i < stats->n_pairs; i++) {
        double angle = stats->theta[i] * positions;
        float c = (float)cos(angle), s = (float)sin(angle);
        float x = q[stats->first[i]], y = q[stats->second[i]];
        out[stats->first[i]] = c * x - s * y;
        out[stats->second[i]] = c * y + s * x;
    }
}

static void sample(struct hri_qstats *stats, const float *q, uint32_t g, uint32_t position)
{
    for (uint32_t h = 0; h < g; h++) {
        if (stats->n_batch == HRI_QSTATS_BATCH)
            flush(stats);
        float *sampled = stats->batch + (size_t)stats->n_batch++ * stats->d;
        rotate(stats, q + (size_t)h * stats->d, -(double)position, sampled);
        memcpy(stats->recent + (size_t)stats->next_recent * stats->d, sampled,
               stats->d * sizeof *sampled);
        stats->next_recent = (stats->next_recent + 1) % HRI_QSTATS_RECENT;
        if (stats->n_recent < HRI_QSTATS_RECENT)
            stats->n_recent++;
    }
}

void hri_qstats_observe(struct hri_qstats *stats, const float *q, uint32_t n, uint32_t g,
                        uint32_t first_position)
{
    if (n == 0)
        return;
    /* Many queries: evenly spread samples that end with the newest. Few: those whose position is a
     * multiple of the stride. */
    uint32_t stride = n >= HRI_QSTATS_STRIDE * 2
                          ? (n + HRI_QSTATS_PER_CALL - 1) / HRI_QSTATS_PER_CALL
                          : HRI_QSTATS_STRIDE;
    uint32_t phase =
        n >= HRI_QSTATS_STRIDE * 2 ? (n - 1) % stride : (stride - first_position % stride) % stride;
    if (stats->weight == 0 && stats->n_batch == 0 && phase >= n)
        phase = 0; /* something is better than nothing */
    for (uint32_t i = phase; i < n; i += stride)
        sample(stats, q + (size_t)i * g * stats->d, g, first_position + i);
    stats->position = first_position + n;
}

struct complex_mean {
    double re, im;
};

/* Mean of exp(i p phi) for p = first..last. */
static struct complex_mean mean_rotation(double phi, uint32_t first, uint32_t last)
{
    double n = (double)last - first + 1, half = 0.5 * phi, s = sin(half);
    double middle = phi * (0.5 * ((double)first + last));
    double size = fabs(s) < 1e-9 ? 1 : sin(n * half) / (n * s);
    /* Where phi is a whole turn every p gives 1. */
    if (fabs(s) < 1e-9)
        middle = 0;
    return (struct complex_mean){size * cos(middle), size * sin(middle)};
}

static uint32_t horizons(uint32_t span)
{
    uint32_t n = HORIZONS_LEAST;
    while (span >> (HORIZON_SHIFT * n) >= HORIZON_LEAST)
        n++;
    return n;
}

/* Positions soon to come are certain to be asked from, far ones are not: averaged over horizons
 * that grow by a factor. */
static struct complex_mean mean_over_horizons(double phi, uint32_t first, uint32_t last)
{
    struct complex_mean mean = {0, 0};
    uint32_t n = horizons(last - first);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t span = (last - first) >> (HORIZON_SHIFT * i);
        struct complex_mean one = mean_rotation(phi, first, first + span);
        mean.re += one.re / n;
        mean.im += one.im / n;
    }
    return mean;
}

/* The 2 x 2 part of two pairs a, b, as complex numbers: E[za conj zb] turns by theta_a - theta_b,
 * E[za zb] by their sum. */
static void average_pair(const struct hri_qstats *stats, uint32_t a, uint32_t b, uint32_t first,
                         uint32_t last, double *s)
{
    size_t d = stats->d, ax = stats->first[a], ay = stats->second[a], bx = stats->first[b],
           by = stats->second[b];
    double xx = s[ax * d + bx], xy = s[ax * d + by], yx = s[ay * d + bx], yy = s[ay * d + by];
    struct complex_mean minus = mean_over_horizons(stats->theta[a] - stats->theta[b], first, last);
    struct complex_mean plus = mean_over_horizons(stats->theta[a] + stats->theta[b], first, last);
    double p_re = xx + yy, p_im = yx - xy, q_re = xx - yy, q_im = yx + xy;
    double pr = p_re * minus.re - p_im * minus.im, pi = p_re * minus.im + p_im * minus.re;
    double qr = q_re * plus.re - q_im * plus.im, qi = q_re * plus.im + q_im * plus.re;
    s[ax * d + bx] = 0.5 * (pr + qr);
    s[ay * d + by] = 0.5 * (pr - qr);
    s[ay * d + bx] = 0.5 * (qi + pi);
    s[ax * d + by] = 0.5 * (qi - pi);
}

bool hri_qstats_moment(struct hri_qstats *stats, uint32_t first, uint32_t last, double *s_out)
{
    flush(stats);
    if (stats->weight <= 0)
        return false;
    size_t n = (size_t)stats->d * stats->d;
    for (size_t i = 0; i < n; i++)
        s_out[i] = stats->moment[i] / stats->weight;
    if (!stats->rotates)
        return true;
    for (uint32_t a = 0; a < stats->n_pairs; a++)
        for (uint32_t b = 0; b < stats->n_pairs; b++)
            average_pair(stats, a, b, first, last, s_out);
    return true;
}

uint32_t hri_qstats_recent(const struct hri_qstats *stats, uint32_t first, uint32_t last,
                           float *out)
{
    uint32_t n = horizons(last - first);
    for (uint32_t i = 0; i < stats->n_recent; i++) {
        uint32_t span = (last - first) >> (HORIZON_SHIFT * (i % n));
        /* Multiples of the golden ratio fill any span evenly. */
        double part = fmod(0.6180339887498949 * (i / n + 1), 1);
        rotate(stats, stats->recent + (size_t)i * stats->d, floor(first + part * span),
               out + (size_t)i * stats->d);
    }
    return stats->n_recent;
}

size_t hri_qstats_metric_work_bytes(uint32_t d)
{
    return ((size_t)d * d + d) * sizeof(double) + hri_eigen_work_bytes(d) + 64;
}

hr_status_t hri_qstats_metric(struct hri_qstats *stats, uint32_t first, uint32_t last, double ridge,
                              void *work, float *p_out)
{
    uint32_t d = stats->d;
    double *s = work, *values = s + (size_t)d * d, trace = 0;
    bool seen = hri_qstats_moment(stats, first, last, s);
    for (uint32_t i = 0; seen && i < d; i++)
        trace += s[(size_t)i * d + i];
    if (!seen || !(trace > 0)) {
        memset(p_out, 0, (size_t)d * d * sizeof *p_out);
        for (uint32_t i = 0; i < d; i++)
            p_out[(size_t)i * d + i] = 1;
        return HR_OK;
    }
    for (uint32_t i = 0; i < d; i++)
        s[(size_t)i * d + i] += ridge * trace / d;
    hr_status_t status = hri_eigen(s, d, values, values + d);
    if (status != HR_OK)
        return status;
    for (uint32_t i = 0; i < d; i++) {
        float root = (float)sqrt(fmax(values[i], 0));
        for (uint32_t j = 0; j < d; j++)
            p_out[(size_t)i * d + j] = root * (float)s[(size_t)i * d + j];
    }
    return HR_OK;
}

void hri_qstats_image(struct hri_qstats *s, struct hri_image *im)
{
    hri_image_u32(im, &s->n_batch, HRI_QSTATS_BATCH, "too many sampled queries");
    hri_image_u32(im, &s->n_recent, HRI_QSTATS_RECENT, "too many sampled queries");
    hri_image_u32(im, &s->next_recent, HRI_QSTATS_RECENT - 1, "no such sampled query");
    hri_image_u32(im, &s->position, UINT32_MAX, "");
    hri_image_doubles(im, &s->weight, 1);
    hri_image_floats(im, s->moment, (size_t)s->d * s->d);
    hri_image_floats(im, s->batch, (size_t)s->n_batch * s->d);
    hri_image_floats(im, s->recent, (size_t)s->n_recent * s->d);
}
