#include "index/points.h"

#include "base/arena.h"
#include "base/assert.h"
#include "index/linalg.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define SAMPLE_ROWS 2048u /* covariances are taken from about so many rows of a segment */
#define CHUNK_ROWS  256u
#define REFIT_ROWS  1024u /* a segment of so many rows always gets its own fit */
#define REFIT_SHARE 8u    /* a fit serves small segments for this part of the horizon, ... */
#define REFIT_LAST  1024u /* ... and for so many positions at most: what queries are alike changes */

uint32_t hri_points_dims(uint32_t k_dim, uint32_t v_dim)
{
    return k_dim + v_dim < HRI_POINT_DIMS ? k_dim + v_dim : HRI_POINT_DIMS;
}

hr_status_t hri_points_init(struct hri_points *points, struct hri_alloc *alloc, uint32_t k_dim,
                            uint32_t v_dim, double ridge)
{
    *points = (struct hri_points){
        .k_dim = k_dim, .v_dim = v_dim, .dims = hri_points_dims(k_dim, v_dim), .ridge = ridge};
    points->metric = hri_aligned(alloc, 64, (size_t)k_dim * k_dim * sizeof(float));
    points->k_axes = hri_aligned(alloc, 64, (size_t)points->dims * k_dim * sizeof(float));
    points->v_axes = hri_aligned(alloc, 64, (size_t)points->dims * v_dim * sizeof(float));
    if (points->metric && points->k_axes && points->v_axes)
        return HR_OK;
    hr_status_t status = hri_alloc_status();
    hri_points_fini(points, alloc);
    return status;
}

void hri_points_fini(struct hri_points *points, struct hri_alloc *alloc)
{
    hri_free(alloc, points->metric);
    hri_free(alloc, points->k_axes);
    hri_free(alloc, points->v_axes);
    *points = (struct hri_points){0};
}

struct work {
    double *k_cov, *v_cov; /* [d][d]; their eigenvectors after */
    double *k_values, *v_values;
    void *congruence;
    float *moment; /* [d][d] */
    float *chunk;  /* [CHUNK_ROWS][d] */
    void *metric;
    void *eigen;
};

static uint32_t wider(uint32_t k_dim, uint32_t v_dim)
{
    return k_dim > v_dim ? k_dim : v_dim;
}

size_t hri_points_work_bytes(uint32_t k_dim, uint32_t v_dim)
{
    size_t d = wider(k_dim, v_dim), k = k_dim, v = v_dim;
    return (k * k + v * v + k + v) * sizeof(double) + (d * d + CHUNK_ROWS * d) * sizeof(float) +
           hri_congruence_work_bytes(k_dim) + hri_qstats_metric_work_bytes(k_dim) +
           hri_eigen_work_bytes((uint32_t)d) + 10 * 64;
}

static struct work take_work(uint32_t k_dim, uint32_t v_dim, void *memory)
{
    struct hri_arena arena;
    size_t d = wider(k_dim, v_dim), k = k_dim, v = v_dim;
    struct work w;
    hri_arena_init_buffer(&arena, memory, hri_points_work_bytes(k_dim, v_dim));
    w.k_cov = hri_arena_array(&arena, k * k, sizeof(double));
    w.v_cov = hri_arena_array(&arena, v * v, sizeof(double));
    w.congruence = hri_arena_array(&arena, hri_congruence_work_bytes(k_dim), 1);
    w.k_values = hri_arena_array(&arena, k, sizeof(double));
    w.v_values = hri_arena_array(&arena, v, sizeof(double));
    w.moment = hri_arena_array(&arena, d * d, sizeof(float));
    w.chunk = hri_arena_array(&arena, CHUNK_ROWS * d, sizeof(float));
    w.metric = hri_arena_array(&arena, hri_qstats_metric_work_bytes(k_dim), 1);
    w.eigen = hri_arena_array(&arena, hri_eigen_work_bytes((uint32_t)d), 1);
    HRI_ASSERT(w.eigen != NULL);
    return w;
}

/* Covariance of every stride-th row of x [n][d]. */
static void covariance(const struct hri_kernels *kernels, const float *x, uint32_t n, uint32_t d,
                       struct work *w, double *cov)
{
    uint32_t stride = (n + SAMPLE_ROWS - 1) / SAMPLE_ROWS, count = (n + stride - 1) / stride,
             held = 0;
    double mean[HR_HEAD_DIM_MAX] = {0};
    for (uint32_t i = 0; i < n; i += stride)
        for (uint32_t j = 0; j < d; j++)
            mean[j] += x[(size_t)i * d + j] / count;
    memset(w->moment, 0, (size_t)d * d * sizeof(float));
    for (uint32_t i = 0; i < n; i += stride) {
        for (uint32_t j = 0; j < d; j++)
            w->chunk[(size_t)held * d + j] = x[(size_t)i * d + j] - (float)mean[j];
        if (++held == CHUNK_ROWS || i + stride >= n) {
            kernels->second_moment(w->chunk, held, d, w->moment);
            held = 0;
        }
    }
    for (size_t i = 0; i < (size_t)d * d; i++)
        cov[i] = (double)w->moment[i] / count;
}

/* The longest axes of keys and values together; both lists of values ascend. */
static void share_axes(struct hri_points *points, const struct work *w)
{
    uint32_t k = points->k_dim, v = points->v_dim;
    points->n_k = points->n_v = 0;
    while (points->n_k + points->n_v < points->dims) {
        bool key = points->n_v == v || (points->n_k < k && w->k_values[k - 1 - points->n_k] >=
                                                               w->v_values[v - 1 - points->n_v]);
        points->n_k += key;
        points->n_v += !key;
    }
}

static void write_axes(struct hri_points *points, const struct work *w, float value_scale)
{
    uint32_t dk = points->k_dim, dv = points->v_dim;
    for (uint32_t r = 0; r < points->n_k; r++) {
        const double *direction = w->k_cov + (size_t)(dk - 1 - r) * dk;
        float *axis = points->k_axes + (size_t)r * dk;
        memset(axis, 0, dk * sizeof *axis);
        for (uint32_t i = 0; i < dk; i++)
            for (uint32_t j = 0; j < dk; j++)
                axis[j] += (float)direction[i] * points->metric[(size_t)i * dk + j];
    }
    for (uint32_t r = 0; r < points->n_v; r++)
        for (uint32_t j = 0; j < dv; j++)
            points->v_axes[(size_t)r * dv + j] =
                value_scale * (float)w->v_cov[(size_t)(dv - 1 - r) * dv + j];
}

hr_status_t hri_points_fit(struct hri_points *points, struct hri_qstats *stats, const float *k,
                           const float *v, uint32_t n, uint32_t position, uint32_t horizon,
                           void *work)
{
    uint32_t dk = points->k_dim, dv = points->v_dim;
    uint32_t serves = horizon / REFIT_SHARE < REFIT_LAST ? horizon / REFIT_SHARE : REFIT_LAST;
    bool near_last = position >= points->position && position - points->position <= serves;
    if (points->rows && n < REFIT_ROWS && n <= points->rows && near_last)
        return HR_OK;
    struct work w = take_work(dk, dv, work);
    hr_status_t status = hri_qstats_metric(stats, position, position + horizon, points->ridge,
                                           w.metric, points->metric);
    if (status != HR_OK)
        return status;
    covariance(stats->kernels, k, n, dk, &w, w.k_cov);
    hri_congruence(points->metric, dk, w.k_cov, w.congruence);
    covariance(stats->kernels, v, n, dv, &w, w.v_cov);
    double total = 0;
    for (uint32_t j = 0; j < dv; j++)
        total += w.v_cov[(size_t)j * dv + j];
    double scale = total > 0 ? HRI_VALUE_WEIGHT / total : 0;
    for (size_t i = 0; i < (size_t)dv * dv; i++)
        w.v_cov[i] *= scale;
    status = hri_eigen(w.k_cov, dk, w.k_values, w.eigen);
    if (status == HR_OK)
        status = hri_eigen(w.v_cov, dv, w.v_values, w.eigen);
    if (status != HR_OK)
        return status;
    share_axes(points, &w);
    write_axes(points, &w, (float)sqrt(scale));
    points->position = position;
    points->rows = n;
    return HR_OK;
}

void hri_points_make(const struct hri_points *points, const struct hri_kernels *kernels,
                     const float *k, const float *v, uint32_t n, void *work, float *out)
{
    struct work w = take_work(points->k_dim, points->v_dim, work);
    uint32_t dims = points->dims, n_k = points->n_k, n_v = points->n_v;
    for (uint32_t first = 0; first < n; first += CHUNK_ROWS) {
        uint32_t rows = n - first < CHUNK_ROWS ? n - first : CHUNK_ROWS;
        if (n_k)
            kernels->matmul_nt(k + (size_t)first * points->k_dim, rows, points->k_dim,
                               points->k_axes, n_k, w.chunk);
        for (uint32_t i = 0; i < rows; i++)
            memcpy(out + (size_t)(first + i) * dims, w.chunk + (size_t)i * n_k,
                   n_k * sizeof(float));
        if (n_v)
            kernels->matmul_nt(v + (size_t)first * points->v_dim, rows, points->v_dim,
                               points->v_axes, n_v, w.chunk);
        for (uint32_t i = 0; i < rows; i++)
            memcpy(out + (size_t)(first + i) * dims + n_k, w.chunk + (size_t)i * n_v,
                   n_v * sizeof(float));
    }
}

void hri_points_image(struct hri_points *p, struct hri_image *im)
{
    hri_image_u32(im, &p->rows, UINT32_MAX, "");
    hri_image_u32(im, &p->position, UINT32_MAX, "");
    if (p->rows == 0 || !hri_image_ok(im))
        return;
    hri_image_u32(im, &p->n_k, p->dims, "too many axes");
    hri_image_u32(im, &p->n_v, p->dims - (im->loads ? p->n_k : 0), "too many axes");
    hri_image_floats(im, p->metric, (size_t)p->k_dim * p->k_dim);
    hri_image_floats(im, p->k_axes, (size_t)p->n_k * p->k_dim);
    hri_image_floats(im, p->v_axes, (size_t)p->n_v * p->v_dim);
}
