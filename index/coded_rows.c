#include "index/coded_rows.h"

#include "index/means.h"
#include "index/rows.h"
#include "index/image.h"

#include <string.h>

/* -- k-means -- */

static void centroids_move(const float *x, uint32_t n, uint32_t d, uint32_t k, float *centroids,
                           const uint32_t *nearest, uint32_t *counts)
{
    memset(counts, 0, k * sizeof *counts);
    for (uint32_t i = 0; i < n; i++)
        counts[nearest[i]]++;
    for (uint32_t c = 0; c < k; c++)
        if (counts[c])
            memset(centroids + (size_t)c * d, 0, d * sizeof *centroids);
    for (uint32_t i = 0; i < n; i++) {
        float *c = centroids + (size_t)nearest[i] * d, share = 1.0f / (float)counts[nearest[i]];
        for (uint32_t j = 0; j < d; j++)
            c[j] += share * x[(size_t)i * d + j];
    }
}

/* Each centroid that lost all its points goes to the point that is worst represented. */
static void centroids_revive(const float *x, uint32_t n, uint32_t d, uint32_t k, float *centroids,
                             float *distance, const uint32_t *counts)
{
    for (uint32_t c = 0; c < k; c++) {
        uint32_t far = 0;
        if (counts[c])
            continue;
        for (uint32_t i = 1; i < n; i++)
            far = distance[i] > distance[far] ? i : far;
        memcpy(centroids + (size_t)c * d, x + (size_t)far * d, d * sizeof *centroids);
        distance[far] = -1;
    }
}

void hri_kmeans(const struct hri_kernels *kernels, const float *x, uint32_t n, uint32_t d,
                uint32_t k, uint32_t iterations, float *centroids, uint32_t *nearest,
                float *distance, uint32_t *counts)
{
    for (uint32_t c = 0; c < k; c++) {
        uint32_t row = (uint32_t)(((uint64_t)c * n + n / 2) / k);
        memcpy(centroids + (size_t)c * d, x + (size_t)row * d, d * sizeof *centroids);
    }
    for (uint32_t i = 0; i < iterations; i++) {
        kernels->nearest(x, n, centroids, k, d, nearest, distance);
        centroids_move(x, n, d, k, centroids, nearest, counts);
        centroids_revive(x, n, d, k, centroids, distance, counts);
    }
    kernels->nearest(x, n, centroids, k, d, nearest, distance);
}

/* -- life -- */

static uint32_t parts_for(uint32_t d, uint32_t parts)
{
    while (parts > 1 && (d % parts || d / parts % 8))
        parts--;
    return parts;
}

static uint32_t code_bytes_for(uint32_t codes_max)
{
    return codes_max <= 256 ? 1 : 2;
}

uint64_t hri_coded_rows_bytes(const struct hri_index_options *o, uint32_t parts, uint32_t codes_max,
                              uint32_t n_rows)
{
    parts = parts_for(o->k_dim, parts);
    return (uint64_t)codes_max * o->k_dim * sizeof(uint16_t) +
           (uint64_t)n_rows * parts * code_bytes_for(codes_max);
}

uint64_t hri_coded_rows_held(const struct hri_coded_rows *r, uint32_t n_rows)
{
    return n_rows ? (uint64_t)r->n_codes * r->d * sizeof(uint16_t) +
                        (uint64_t)n_rows * r->parts * r->code_bytes
                  : 0;
}

hr_status_t hri_coded_rows_create(struct hri_coded_rows *r, const struct hri_index_options *o,
                                  uint32_t parts, uint32_t codes_max, uint32_t iterations,
                                  uint32_t train_rows)
{
    *r = (struct hri_coded_rows){.d = o->k_dim,
                                 .parts = parts_for(o->k_dim, parts),
                                 .codes_max = codes_max,
                                 .code_bytes = code_bytes_for(codes_max),
                                 .iterations = iterations,
                                 .train_rows = train_rows};
    r->part_d = r->d / r->parts;
    r->centroid = hri_aligned(o->device, 64, (size_t)codes_max * r->d * sizeof *r->centroid);
    r->code = hri_aligned(o->device, 64, (size_t)o->rows_max * r->parts * r->code_bytes);
    r->table = hri_array(o->scratch, (size_t)o->g * r->parts * codes_max, sizeof *r->table);
    if (r->centroid && r->code && r->table)
        return HR_OK;
    hri_coded_rows_destroy(r, o);
    return hri_alloc_status();
}

void hri_coded_rows_destroy(struct hri_coded_rows *r, const struct hri_index_options *o)
{
    hri_free(o->device, r->centroid);
    hri_free(o->device, r->code);
    hri_free(o->scratch, r->table);
    hri_free(o->scratch, r->kept);
    *r = (struct hri_coded_rows){0};
}

void hri_coded_rows_truncate(struct hri_coded_rows *r, uint32_t n_rows)
{
    r->n_kept = n_rows < r->n_kept ? n_rows : r->n_kept;
    if (!r->frozen && r->n_trained > n_rows)
        r->n_trained = n_rows;
}

/* -- training and coding -- */

struct work {
    float *y;       /* [n][d] rows in the metric */
    float *sub;     /* [n][part_d] of a part */
    float *centres; /* [codes_max][part_d] */
    float *turned;  /* [codes_max][d] centroids in the metric */
    float *distance;
    uint32_t *nearest, *counts;
};

static void work_free(struct work *w, struct hri_alloc *alloc)
{
    hri_free(alloc, w->y);
    hri_free(alloc, w->sub);
    hri_free(alloc, w->centres);
    hri_free(alloc, w->turned);
    hri_free(alloc, w->distance);
    hri_free(alloc, w->nearest);
    hri_free(alloc, w->counts);
}

static hr_status_t work_make(const struct hri_coded_rows *r, uint32_t n, struct hri_alloc *alloc,
                             struct work *w)
{
    *w = (struct work){0};
    w->y = r->metric ? hri_aligned(alloc, 64, (size_t)n * r->d * sizeof(float)) : NULL;
    w->sub = hri_aligned(alloc, 64, (size_t)n * r->part_d * sizeof(float));
    w->centres = hri_aligned(alloc, 64, (size_t)r->codes_max * r->part_d * sizeof(float));
    w->turned = hri_aligned(alloc, 64, (size_t)r->codes_max * r->part_d * sizeof(float));
    w->distance = hri_array(alloc, n, sizeof *w->distance);
    w->nearest = hri_array(alloc, n, sizeof *w->nearest);
    w->counts = hri_array(alloc, r->codes_max, sizeof *w->counts);
    if (w->sub && w->centres && w->turned && w->distance && w->nearest && w->counts &&
        (w->y || !r->metric))
        return HR_OK;
    work_free(w, alloc);
    return hri_alloc_status();
}

static void part_copy(const struct hri_coded_rows *r, const float *x, uint32_t n, uint32_t part,
                      float *sub)
{
    for (uint32_t i = 0; i < n; i++)
        memcpy(sub + (size_t)i * r->part_d, x + (size_t)i * r->d + (size_t)part * r->part_d,
               r->part_d * sizeof *sub);
}

/* Centroids are means of rows, in the rows' own coordinates whatever the metric. */
static void part_means(const float *x, uint32_t n, uint32_t d, uint32_t k, struct work *w)
{
    memset(w->counts, 0, k * sizeof *w->counts);
    memset(w->centres, 0, (size_t)k * d * sizeof *w->centres);
    for (uint32_t i = 0; i < n; i++) {
        w->counts[w->nearest[i]]++;
        for (uint32_t j = 0; j < d; j++)
            w->centres[(size_t)w->nearest[i] * d + j] += x[(size_t)i * d + j];
    }
    for (uint32_t c = 0; c < k; c++)
        for (uint32_t j = 0; j < d && w->counts[c]; j++)
            w->centres[(size_t)c * d + j] /= (float)w->counts[c];
}

static void train(struct hri_coded_rows *r, const struct hri_kernels *kernels, const float *x,
                  uint32_t n, struct work *w)
{
    const float *y = r->metric ? w->y : x;
    r->n_codes = n < r->codes_max ? n : r->codes_max;
    if (r->metric)
        kernels->matmul_nt(x, n, r->d, r->metric, r->d, w->y);
    for (uint32_t p = 0; p < r->parts; p++) {
        uint16_t *out = r->centroid + (size_t)p * r->codes_max * r->part_d;
        part_copy(r, y, n, p, w->sub);
        hri_kmeans(kernels, w->sub, n, r->part_d, r->n_codes, r->iterations, w->centres, w->nearest,
                   w->distance, w->counts);
        part_copy(r, x, n, p, w->sub);
        part_means(w->sub, n, r->part_d, r->n_codes, w);
        for (size_t i = 0; i < (size_t)r->n_codes * r->part_d; i++)
            out[i] = hri_half_clamped(w->centres[i]);
    }
    r->n_trained = n;
}

static void code_set(struct hri_coded_rows *r, size_t i, uint32_t code)
{
    if (r->code_bytes == 1)
        r->code[i] = (unsigned char)code;
    else
        ((uint16_t *)(void *)r->code)[i] = (uint16_t)code;
}

/* Codes of rows x, numbers first_row on, by the nearest centroid as it is kept. */
static void encode(struct hri_coded_rows *r, const struct hri_kernels *kernels, const float *x,
                   uint32_t n, uint32_t first_row, struct work *w)
{
    const float *y = r->metric ? w->y : x;
    if (r->metric)
        kernels->matmul_nt(x, n, r->d, r->metric, r->d, w->y);
    for (uint32_t p = 0; p < r->parts; p++) {
        const float *c = w->centres;
        kernels->to_f32(w->centres, r->centroid + (size_t)p * r->codes_max * r->part_d,
                        HR_DTYPE_F16, (size_t)r->n_codes * r->part_d);
        if (r->metric) {
            kernels->matmul_nt(w->centres, r->n_codes, r->d, r->metric, r->d, w->turned);
            c = w->turned;
        }
        part_copy(r, y, n, p, w->sub);
        kernels->nearest(w->sub, n, c, r->n_codes, r->part_d, w->nearest, NULL);
        for (uint32_t i = 0; i < n; i++)
            code_set(r, ((size_t)first_row + i) * r->parts + p, w->nearest[i]);
    }
}

bool hri_coded_rows_trains(const struct hri_coded_rows *r, uint32_t first_row, uint32_t n)
{
    return !r->frozen && (uint64_t)first_row + n >= 2 * (uint64_t)r->n_trained;
}

/* The rows of the first adds, as long as they are few. */
static hr_status_t keep(struct hri_coded_rows *r, struct hri_alloc *alloc, const float *x,
                        uint32_t n, uint32_t first_row)
{
    size_t all = (size_t)first_row + n;
    float *kept = hri_aligned(alloc, 64, all * r->d * sizeof *kept);
    if (!kept)
        return hri_alloc_status();
    if (first_row)
        memcpy(kept, r->kept, (size_t)first_row * r->d * sizeof *kept);
    memcpy(kept + (size_t)first_row * r->d, x, (size_t)n * r->d * sizeof *kept);
    hri_free(alloc, r->kept);
    r->kept = kept;
    r->n_kept = (uint32_t)all;
    return HR_OK;
}

hr_status_t hri_coded_rows_add(struct hri_coded_rows *r, const struct hri_index_options *o,
                               const float *x, uint32_t n, uint32_t first_row)
{
    struct work w;
    bool trains = hri_coded_rows_trains(r, first_row, n);
    hr_status_t status = r->frozen ? HR_OK : keep(r, o->scratch, x, n, first_row);
    if (status == HR_OK)
        status = work_make(r, trains ? r->n_kept : n, o->scratch, &w);
    if (status != HR_OK)
        return status;
    if (trains) {
        train(r, o->kernels, r->kept, r->n_kept, &w);
        encode(r, o->kernels, r->kept, r->n_kept, 0, &w);
    } else {
        encode(r, o->kernels, x, n, first_row, &w);
    }
    if (!r->frozen && r->n_kept >= r->train_rows) {
        r->frozen = true;
        hri_free(o->scratch, r->kept);
        r->kept = NULL;
    }
    work_free(&w, o->scratch);
    return HR_OK;
}

/* -- a step -- */

static void table_fill(struct hri_coded_rows *r, const struct hri_index_options *o, const float *q)
{
    float c[HR_HEAD_DIM_MAX];
    for (uint32_t p = 0; p < r->parts; p++) {
        const uint16_t *at = r->centroid + (size_t)p * r->codes_max * r->part_d;
        for (uint32_t i = 0; i < r->n_codes; i++, at += r->part_d) {
            o->kernels->to_f32(c, at, HR_DTYPE_F16, r->part_d);
            for (uint32_t g = 0; g < o->g; g++)
                r->table[((size_t)g * r->parts + p) * r->codes_max + i] =
                    hri_dot(q + (size_t)g * r->d + p * r->part_d, c, r->part_d);
        }
    }
}

void hri_coded_rows_score(struct hri_coded_rows *r, const struct hri_index_options *o,
                          const float *q, uint32_t n, float *logits, size_t stride)
{
    table_fill(r, o, q);
    for (uint32_t g = 0; g < o->g; g++) {
        float *out = logits + g * stride;
        memset(out, 0, n * sizeof *out);
        for (uint32_t p = 0; p < r->parts; p++) {
            const float *table = r->table + ((size_t)g * r->parts + p) * r->codes_max;
            const uint16_t *wide = (const uint16_t *)(const void *)r->code + p;
            const unsigned char *narrow = r->code + p;
            for (uint32_t i = 0; i < n && r->code_bytes == 1; i++)
                out[i] += table[narrow[(size_t)i * r->parts]];
            for (uint32_t i = 0; i < n && r->code_bytes == 2; i++)
                out[i] += table[wide[(size_t)i * r->parts]];
        }
    }
}

static void codes_image(struct hri_coded_rows *r, uint32_t n_rows, struct hri_image *im)
{
    size_t n = (size_t)n_rows * r->parts;
    hri_image_bytes(im, r->code, n * r->code_bytes);
    for (size_t i = 0; im->loads && hri_image_ok(im) && i < n; i++) {
        uint32_t code = r->code_bytes == 1 ? r->code[i] : ((uint16_t *)(void *)r->code)[i];
        hri_image_check(im, code < r->n_codes, "a row is coded by a centroid that is not there");
    }
}

void hri_coded_rows_image(struct hri_coded_rows *r, const struct hri_index_options *o,
                          uint32_t n_rows, struct hri_image *im)
{
    hri_image_flag(im, &r->frozen);
    hri_image_u32(im, &r->n_codes, r->codes_max, "too many centroids");
    hri_image_u32(im, &r->n_trained, o->rows_max, "centroids of more rows than there are");
    for (uint32_t p = 0; p < r->parts && hri_image_ok(im); p++)
        hri_image_halfs(im, r->centroid + (size_t)p * r->codes_max * r->part_d,
                        (size_t)r->n_codes * r->part_d);
    codes_image(r, n_rows, im);
    if (r->frozen || !hri_image_ok(im))
        return;
    hri_image_u32(im, &r->n_kept, n_rows, "more rows kept than there are");
    hri_image_check(im, r->n_kept == n_rows, "fewer rows kept than there are");
    if (im->loads && hri_image_ok(im) && n_rows) {
        r->kept = hri_aligned(o->scratch, 64, (size_t)n_rows * r->d * sizeof *r->kept);
        if (!r->kept)
            im->status = hri_alloc_status();
    }
    hri_image_floats(im, r->kept, (size_t)n_rows * r->d);
}
