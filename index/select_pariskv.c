/* ParisKV (arXiv 2602.07721): keys on the unit sphere after a random rotation, cut into sub-spaces of 8 dimensions whose signs are
 * a byte: one of 256 centroids that need no training, so that nothing drifts while decoding. A step ranks the 256 patterns of each
 * sub-space by their product with the group's mean query; rows collect points for lying in the best patterns, more for the best few
 * (tiers by share of the rows). The rows with the most points are ranked again by 4-bit codes of all dimensions: a sign and one of 8
 * magnitudes, Lloyd-Max for a direction spread evenly in 8 dimensions, with a weight per sub-space that makes a code's product with
 * its own key exact. The best are read, the rest is dropped. */
#include "index/pariskv.h"

#include "base/half.h"
#include "base/rng.h"
#include "index/means.h"
#include "index/params.h"
#include "index/rows.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

/* Of the magnitudes |u_j| of a direction u that is spread evenly over the sphere in 8 dimensions: Lloyd-Max limits and centres, as
 * ParisKV publishes them. */
static const float magnitude_limit[] = {0.0843f, 0.1698f, 0.2578f, 0.3499f,
                                        0.4487f, 0.5585f, 0.6901f};
static const float magnitude[] = {0.0420f, 0.1266f, 0.2130f, 0.3025f,
                                  0.3973f, 0.5001f, 0.6169f, 0.7633f};
#define LIMITS (sizeof magnitude_limit / sizeof *magnitude_limit)

/* A pattern gets a point for every tier it is in: those that, best first, have less than this share of the rows that may collide
 * before them. As in the authors' code. */
static const double tier_share[] = {0.05, 0.15, 0.30, 0.50, 0.75, 1.0};
#define TIERS (sizeof tier_share / sizeof *tier_share)

/* Shares of the rows by their number, as the authors have them: candidates, and rows that may collide in a sub-space. */
static const struct {
    uint32_t rows;
    double candidates, collide;
} by_rows[] = {{5000, 0.5, 0.5}, {10000, 0.25, 0.3}, {30000, 0.2, 0.25}, {UINT32_MAX, 0.1, 0.2}};

static uint64_t row_bytes(const struct hri_index_options *o)
{
    return o->k_dim / HRI_PARIS_DIMS * (1 + sizeof(uint16_t)) + o->k_dim / 2;
}

static uint64_t fixed_bytes(const struct hri_index_options *o)
{
    return (uint64_t)o->k_dim * o->k_dim * sizeof(float) +
           (uint64_t)o->k_dim / HRI_PARIS_DIMS * HRI_PARIS_CODES * sizeof(uint32_t);
}

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return o->rows_max * row_bytes(o) + fixed_bytes(o);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    (void)n_blocks;
    return head->n_rows ? head->n_rows * row_bytes(&head->options) + fixed_bytes(&head->options)
                        : 0;
}

static void destroy(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_pariskv *s = head->state;
    hri_free(o->device, s->turn);
    hri_free(o->device, s->sign);
    hri_free(o->device, s->fine);
    hri_free(o->device, s->weight);
    hri_free(o->device, s->count);
    hri_free(o->scratch, s->q);
    hri_free(o->scratch, s);
}

/* Gram-Schmidt over normal rows: evenly distributed among all rotations. */
static void turn_make(float *turn, uint32_t d, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    for (uint32_t i = 0; i < d; i++) {
        float *row = turn + (size_t)i * d;
        for (uint32_t j = 0; j < d; j++)
            row[j] = (float)hri_rng_normal(&rng);
        for (int twice = 0; twice < 2; twice++) {
            for (uint32_t r = 0; r < i; r++) {
                const float *other = turn + (size_t)r * d;
                float along = hri_dot(row, other, d);
                for (uint32_t j = 0; j < d; j++)
                    row[j] -= along * other[j];
            }
            float length = sqrtf(hri_dot(row, row, d));
            for (uint32_t j = 0; j < d; j++)
                row[j] /= length;
        }
    }
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    size_t d = o->k_dim, rows = o->rows_max;
    struct hri_pariskv *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->turn = hri_aligned(o->device, 64, d * d * sizeof *s->turn);
    s->sign = hri_array(o->device, rows, d / HRI_PARIS_DIMS);
    s->fine = hri_array(o->device, rows, d / 2);
    s->weight = hri_array(o->device, rows * (d / HRI_PARIS_DIMS), sizeof *s->weight);
    s->count = hri_calloc(o->device, d / HRI_PARIS_DIMS * HRI_PARIS_CODES, sizeof *s->count);
    s->q = hri_aligned(o->scratch, 64, d * sizeof *s->q);
    if (!s->turn || !s->sign || !s->fine || !s->weight || !s->count || !s->q) {
        destroy(head);
        return hri_alloc_status();
    }
    turn_make(s->turn, o->k_dim, o->seed ^ (uint64_t)o->layer << 40 ^ (uint64_t)o->head << 20);
    return HR_OK;
}

static unsigned magnitude_code(float u)
{
    unsigned code = 0;
    for (size_t i = 0; i < LIMITS; i++)
        code += u > magnitude_limit[i];
    return code;
}

/* 8 numbers of a sub-space: their signs, their 4-bit codes, and the length over codes . direction. */
static float part_encode(const float *y, unsigned char *sign, unsigned char *fine)
{
    float radius = sqrtf(hri_dot(y, y, HRI_PARIS_DIMS)), along = 0;
    *sign = 0;
    memset(fine, 0, HRI_PARIS_DIMS / 2);
    for (uint32_t j = 0; j < HRI_PARIS_DIMS; j++) {
        float u = radius > 0 ? fabsf(y[j]) / radius : 0;
        unsigned code = magnitude_code(u), positive = y[j] >= 0;
        *sign |= (unsigned char)(positive << j);
        fine[j / 2] |= (unsigned char)((positive << 3 | code) << 4 * (j % 2));
        along += magnitude[code] * u;
    }
    return along > 0 ? radius / along : 0;
}

/* y: the key of length 1, turned. */
static void encode(struct hri_pariskv *s, uint32_t row, const float *y, float length, uint32_t d)
{
    uint32_t parts = d / HRI_PARIS_DIMS;
    for (uint32_t p = 0; p < parts; p++) {
        size_t i = (size_t)row * parts + p;
        float weight =
            part_encode(y + p * HRI_PARIS_DIMS, &s->sign[i], s->fine + i * (HRI_PARIS_DIMS / 2));
        s->weight[i] = hri_bf16_from_f32(weight * length);
        s->count[p * HRI_PARIS_CODES + s->sign[i]]++;
    }
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    const struct hri_index_options *o = &head->options;
    struct hri_pariskv *s = head->state;
    uint32_t d = o->k_dim;
    (void)v, (void)position_end;
    float *unit = hri_aligned(o->scratch, 64, 2 * (size_t)n * d * sizeof *unit);
    if (!unit)
        return hri_alloc_status();
    float *y = unit + (size_t)n * d;
    for (uint32_t i = 0; i < n; i++) {
        const float *x = k + (size_t)i * d;
        float length = sqrtf(hri_dot(x, x, d)), inverse = length > 0 ? 1 / length : 0;
        for (uint32_t j = 0; j < d; j++)
            unit[(size_t)i * d + j] = x[j] * inverse;
    }
    o->kernels->matmul_nt(unit, n, d, s->turn, d, y);
    for (uint32_t i = 0; i < n; i++) {
        const float *x = k + (size_t)i * d;
        encode(s, first_row + i, y + (size_t)i * d, sqrtf(hri_dot(x, x, d)), d);
    }
    hri_free(o->scratch, unit);
    return HR_OK;
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    struct hri_pariskv *s = head->state;
    uint32_t parts = head->options.k_dim / HRI_PARIS_DIMS;
    for (uint32_t i = n_rows; i < head->n_rows; i++)
        for (uint32_t p = 0; p < parts; p++)
            s->count[p * HRI_PARIS_CODES + s->sign[(size_t)i * parts + p]]--;
}

/* Scratch: of the rows step, then points [rows]. */
static size_t scratch_bytes(const struct hri_index_options *o)
{
    return hri_rows_step_bytes(o) + hri_lanes_up(o->rows_max) * sizeof(uint16_t);
}

/* Points of the 256 patterns of a sub-space for a query's 8 numbers; most: rows that may collide in the last tier. */
static void pattern_points(const uint32_t *count, const uint32_t *most, const float *q,
                           uint8_t *points)
{
    struct hri_ranked ranked[HRI_PARIS_CODES];
    uint32_t before = 0;
    for (uint32_t c = 0; c < HRI_PARIS_CODES; c++) {
        float score = 0;
        for (uint32_t i = 0; i < HRI_PARIS_DIMS; i++)
            score += c >> i & 1 ? q[i] : -q[i];
        ranked[c] = (struct hri_ranked){score, c};
    }
    hri_rank_sort(ranked, HRI_PARIS_CODES);
    for (uint32_t i = 0; i < HRI_PARIS_CODES; i++) {
        uint32_t c = ranked[i].item;
        points[c] = 0;
        for (size_t t = 0; t < TIERS; t++)
            points[c] += before < most[t];
        before += count[c];
    }
}

static void collide(const struct hri_index_head *head, double share, uint16_t *points)
{
    const struct hri_pariskv *s = head->state;
    uint32_t parts = head->options.k_dim / HRI_PARIS_DIMS, most[TIERS];
    uint8_t worth[HRI_PARIS_CODES];
    for (size_t t = 0; t < TIERS; t++)
        most[t] = (uint32_t)ceil(head->n_rows * share * tier_share[t]);
    for (uint32_t p = 0; p < parts; p++) {
        pattern_points(s->count + p * HRI_PARIS_CODES, most, s->q + p * HRI_PARIS_DIMS, worth);
        for (uint32_t i = 0; i < head->n_rows; i++)
            points[i] += worth[s->sign[(size_t)i * parts + p]];
    }
}

/* The mean query times a row, as its codes have it. */
static float fine_dot(const struct hri_pariskv *s, uint32_t row, uint32_t d)
{
    uint32_t parts = d / HRI_PARIS_DIMS;
    float sum = 0;
    for (uint32_t p = 0; p < parts; p++) {
        size_t i = (size_t)row * parts + p;
        const unsigned char *fine = s->fine + i * (HRI_PARIS_DIMS / 2);
        float part = 0;
        for (uint32_t j = 0; j < HRI_PARIS_DIMS; j++) {
            unsigned code = fine[j / 2] >> 4 * (j % 2) & 15;
            float q = s->q[p * HRI_PARIS_DIMS + j];
            part += magnitude[code & 7] * (code & 8 ? q : -q);
        }
        sum += hri_f32_from_bf16(s->weight[i]) * part;
    }
    return sum;
}

static void query_turn(const struct hri_index_head *head, const float *q)
{
    const struct hri_index_options *o = &head->options;
    const struct hri_pariskv *s = head->state;
    float mean[HR_HEAD_DIM_MAX] = {0};
    for (uint32_t g = 0; g < o->g; g++)
        for (uint32_t j = 0; j < o->k_dim; j++)
            mean[j] += q[(size_t)g * o->k_dim + j] / (float)o->g;
    o->kernels->matmul_nt(mean, 1, o->k_dim, s->turn, o->k_dim, s->q);
}

/* What the recipe says, or where it says 0 what the authors take for so many rows. */
static double share_of(const struct hri_index_head *head, const char *key, bool candidates)
{
    double share = hri_recipe_value(&head->options.recipe, key);
    size_t i = 0;
    while (by_rows[i].rows != UINT32_MAX && head->n_rows >= by_rows[i].rows)
        i++;
    return share > 0 ? share : candidates ? by_rows[i].candidates : by_rows[i].collide;
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    const struct hri_pariskv *s = head->state;
    struct hri_rows_step step = hri_rows_step_at(head, in);
    uint16_t *points = (uint16_t *)(void *)((char *)in->scratch + hri_rows_step_bytes(o));
    uint32_t n = head->n_rows, fit = hri_rows_fit(head, in, out);
    uint32_t candidates = (uint32_t)ceil(share_of(head, "candidates", true) * n);
    candidates = candidates > fit ? candidates : fit;
    if (fit == 0)
        return HR_OK;
    memset(points, 0, n * sizeof *points);
    query_turn(head, in->q);
    collide(head, share_of(head, "collide", false), points);
    for (uint32_t i = 0; i < n; i++)
        step.ranked[i] = (struct hri_ranked){points[i], i};
    hri_rank_select(step.ranked, n, candidates);
    for (uint32_t i = 0; i < candidates; i++)
        step.ranked[i].key = fine_dot(s, step.ranked[i].item, o->k_dim);
    hri_rows_take(step.ranked, candidates, fit, in, out);
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct hri_pariskv *s = head->state;
    size_t n = head->n_rows, parts = head->options.k_dim / HRI_PARIS_DIMS;
    hri_image_bytes(im, s->sign, n * parts);
    hri_image_bytes(im, s->fine, n * head->options.k_dim / 2);
    hri_image_halfs(im, s->weight, n * parts);
    for (size_t i = 0; im->loads && hri_image_ok(im) && i < n * parts; i++)
        s->count[i % parts * HRI_PARIS_CODES + s->sign[i]]++;
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .scratch_bytes = scratch_bytes,
    .select = select_rows,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
    .image = image,
};

static const struct hri_param params_pariskv[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"candidates", "share of the rows that are ranked again; 0: by their number, 50 % to 10 %",
     "ParisKV, its published code", 0, 0, 1},
    {"collide",
     "share of the rows that may collide in a sub-space; 0: by their number, 50 % to 20 %",
     "ParisKV, its published code", 0, 0, 1},
    PARAM_END};

const struct hri_selector hri_selector_pariskv = {
    .name = "pariskv",
    .summary = "rows by collisions of signs in rotated sub-spaces, ranked again by 4-bit codes",
    .source = "ParisKV, arXiv 2602.07721",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_pariskv,
    .ops = &ops,
};
