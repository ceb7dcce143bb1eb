#include "index/simhash.h"
#include "index/image.h"

#include "base/rng.h"

#include <math.h>
#include <string.h>

#define ROWS_PER_PASS 64u

hr_status_t hri_simhash_create(struct hri_simhash *h, const struct hri_index_options *o,
                               uint32_t bits, uint32_t tables, uint64_t seed)
{
    struct hri_rng rng;
    size_t n_planes = (size_t)tables * bits, n_buckets = (size_t)tables << bits;
    *h = (struct hri_simhash){.d = o->k_dim, .bits = bits, .tables = tables};
    h->planes = hri_aligned(o->scratch, 64, n_planes * h->d * sizeof *h->planes);
    h->bucket = hri_array(o->scratch, n_buckets, sizeof *h->bucket);
    h->projected = hri_aligned(o->scratch, 64, o->g * n_planes * sizeof *h->projected);
    if (!h->planes || !h->bucket || !h->projected) {
        hri_simhash_destroy(h, o);
        return hri_alloc_status();
    }
    hri_rng_seed(&rng, seed);
    for (size_t i = 0; i < n_planes * h->d; i++)
        h->planes[i] = (float)hri_rng_normal(&rng);
    for (size_t i = 0; i < n_buckets; i++)
        h->bucket[i] = HRI_SIMHASH_END;
    return HR_OK;
}

void hri_simhash_destroy(struct hri_simhash *h, const struct hri_index_options *o)
{
    hri_free(o->scratch, h->planes);
    hri_free(o->scratch, h->bucket);
    hri_free(o->scratch, h->next);
    hri_free(o->scratch, h->projected);
    *h = (struct hri_simhash){0};
}

uint64_t hri_simhash_bytes(const struct hri_simhash *h)
{
    return ((uint64_t)h->tables * h->bits * h->d * sizeof *h->planes) +
           (((uint64_t)h->tables << h->bits) + (uint64_t)h->capacity * h->tables) * sizeof *h->next;
}

static uint32_t bucket_of(const struct hri_simhash *h, const float *projected, uint32_t table)
{
    uint32_t code = 0;
    for (uint32_t b = 0; b < h->bits; b++)
        code |= (uint32_t)(projected[table * h->bits + b] > 0) << b;
    return code;
}

static hr_status_t grow(struct hri_simhash *h, const struct hri_index_options *o, uint32_t rows)
{
    uint64_t capacity = h->capacity + (uint64_t)h->capacity / 2;
    capacity = capacity < rows ? rows : capacity;
    if (rows <= h->capacity)
        return HR_OK;
    uint32_t *next = hri_array(o->scratch, capacity * h->tables, sizeof *next);
    if (!next)
        return hri_alloc_status();
    if (h->capacity)
        memcpy(next, h->next, (size_t)h->capacity * h->tables * sizeof *next);
    hri_free(o->scratch, h->next);
    h->next = next;
    h->capacity = (uint32_t)capacity;
    return HR_OK;
}

hr_status_t hri_simhash_add(struct hri_simhash *h, const struct hri_index_options *o,
                            const float *x, uint32_t n, uint32_t first_row)
{
    uint32_t n_planes = h->tables * h->bits;
    hr_status_t status = grow(h, o, first_row + n);
    float *y = hri_aligned(o->scratch, 64, (size_t)ROWS_PER_PASS * n_planes * sizeof *y);
    if (status != HR_OK || !y) {
        hri_free(o->scratch, y);
        return status == HR_OK ? hri_alloc_status() : status;
    }
    for (uint32_t i = 0; i < n; i += ROWS_PER_PASS) {
        uint32_t now = n - i < ROWS_PER_PASS ? n - i : ROWS_PER_PASS;
        o->kernels->matmul_nt(x + (size_t)i * h->d, now, h->d, h->planes, n_planes, y);
        for (uint32_t r = 0; r < now; r++) {
            uint32_t row = first_row + i + r;
            for (uint32_t t = 0; t < h->tables; t++) {
                uint32_t *bucket =
                    &h->bucket[((size_t)t << h->bits) + bucket_of(h, y + (size_t)r * n_planes, t)];
                h->next[(size_t)row * h->tables + t] = *bucket;
                *bucket = row;
            }
        }
    }
    hri_free(o->scratch, y);
    return HR_OK;
}

void hri_simhash_truncate(struct hri_simhash *h, uint32_t n_rows)
{
    for (uint32_t t = 0; t < h->tables; t++)
        for (uint32_t b = 0; b < 1u << h->bits; b++) {
            uint32_t *bucket = &h->bucket[((size_t)t << h->bits) + b];
            while (*bucket != HRI_SIMHASH_END && *bucket >= n_rows)
                *bucket = h->next[(size_t)*bucket * h->tables + t];
        }
}

void hri_simhash_query(struct hri_simhash *h, const struct hri_kernels *kernels, const float *q,
                       uint32_t g, uint32_t *buckets)
{
    uint32_t n_planes = h->tables * h->bits;
    kernels->matmul_nt(q, g, h->d, h->planes, n_planes, h->projected);
    for (uint32_t i = 0; i < g; i++)
        for (uint32_t t = 0; t < h->tables; t++)
            buckets[i * h->tables + t] = bucket_of(h, h->projected + (size_t)i * n_planes, t);
}

/* The upper tail of a binomial distribution, summed from its first term: no cancellation where it is small. */
double hri_simhash_probability(const struct hri_simhash *h, double cosine, uint32_t least)
{
    double p = pow(1 - acos(fmin(fmax(cosine, -1), 1)) / M_PI, h->bits), sum = 0, term = 1;
    if (p >= 1)
        return 1;
    if (p <= 0)
        return 0;
    for (uint32_t j = 0; j < least; j++)
        term *= (double)(h->tables - j) / (j + 1) * p;
    term *= pow(1 - p, (double)h->tables - least);
    for (uint32_t j = least; j <= h->tables && term > 1e-18 * sum; j++) {
        sum += term;
        term *= (double)(h->tables - j) / (j + 1) * p / (1 - p);
    }
    return sum < 1 ? sum : 1;
}

/* Chains lead to older rows, so that they end. The planes follow from the seed. */
void hri_simhash_image(struct hri_simhash *h, const struct hri_index_options *o, uint32_t n_rows,
                       struct hri_image *im)
{
    size_t n_buckets = (size_t)h->tables << h->bits, n = (size_t)n_rows * h->tables;
    if (im->loads && hri_image_ok(im))
        im->status = grow(h, o, n_rows);
    hri_image_bytes(im, h->bucket, n_buckets * sizeof *h->bucket);
    hri_image_bytes(im, h->next, n * sizeof *h->next);
    for (size_t i = 0; im->loads && hri_image_ok(im) && i < n_buckets; i++)
        hri_image_check(im, h->bucket[i] == HRI_SIMHASH_END || h->bucket[i] < n_rows,
                        "a bucket holds a row that is not there");
    for (size_t i = 0; im->loads && hri_image_ok(im) && i < n; i++)
        hri_image_check(im, h->next[i] == HRI_SIMHASH_END || h->next[i] < i / h->tables,
                        "a bucket's rows are not in order");
}
