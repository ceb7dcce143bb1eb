/* ParisKV (arXiv 2602.07721): keys on the unit sphere after a random rotation, cut into sub-spaces of 8 dimensions whose signs are
 * a byte: one of 256 centroids that need no training, so that nothing drifts while decoding. A step ranks the 256 patterns of each
 * sub-space by their product with the query; rows collect points for lying in the best patterns, more for the best few
 * (tiers by share of the rows). The rows with the most points are ranked again by 4-bit codes of all dimensions, scaled so that a
 * code's product with its own key is exact; the best are read, the rest is dropped. */
#include "index/pariskv.h"

#include "base/half.h"
#include "base/rng.h"
#include "index/means.h"
#include "index/params.h"
#include "index/rows.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define FINE_ZERO 7.5f

/* Points for patterns that, best first, hold less than this share of the rows before them. Ours: the paper has tiers, not these. */
static const struct {
    float share;
    uint8_t points;
} tiers[] = {{0.025f, 4}, {0.05f, 3}, {0.1f, 2}, {0.2f, 1}};
#define TIERS (sizeof tiers / sizeof *tiers)

static uint64_t row_bytes(const struct hri_index_options *o)
{
    return o->k_dim / HRI_PARIS_DIMS + o->k_dim / 2 + sizeof(uint16_t);
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
    hri_free(o->device, s->factor);
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
    s->factor = hri_array(o->device, rows, sizeof *s->factor);
    s->count = hri_calloc(o->device, d / HRI_PARIS_DIMS * HRI_PARIS_CODES, sizeof *s->count);
    s->q = hri_aligned(o->scratch, 64, o->g * d * sizeof *s->q);
    if (!s->turn || !s->sign || !s->fine || !s->factor || !s->count || !s->q) {
        destroy(head);
        return hri_alloc_status();
    }
    turn_make(s->turn, o->k_dim, o->seed ^ (uint64_t)o->layer << 40 ^ (uint64_t)o->head << 20);
    return HR_OK;
}

/* y: the key of length 1, turned. */
static void encode(struct hri_pariskv *s, uint32_t row, const float *y, float length, uint32_t d)
{
    unsigned char *sign = s->sign + (size_t)row * (d / HRI_PARIS_DIMS),
                  *fine = s->fine + (size_t)row * (d / 2);
    float largest = 0, along = 0;
    memset(sign, 0, d / HRI_PARIS_DIMS);
    memset(fine, 0, d / 2);
    for (uint32_t j = 0; j < d; j++)
        largest = fmaxf(largest, fabsf(y[j]));
    for (uint32_t j = 0; j < d; j++) {
        float code = largest > 0 ? rintf(y[j] / largest * FINE_ZERO + FINE_ZERO) : FINE_ZERO;
        unsigned c = (unsigned)fminf(fmaxf(code, 0), 15);
        sign[j / HRI_PARIS_DIMS] |= (unsigned char)((y[j] > 0) << j % HRI_PARIS_DIMS);
        fine[j / 2] |= (unsigned char)(c << 4 * (j % 2));
        along += ((float)c - FINE_ZERO) * y[j];
    }
    s->factor[row] = hri_half_clamped(along > 0 ? length / along : 0);
    for (uint32_t p = 0; p < d / HRI_PARIS_DIMS; p++)
        s->count[p * HRI_PARIS_CODES + sign[p]]++;
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

/* Points of the 256 patterns of a sub-space for a query's 8 numbers. */
static void pattern_points(const uint32_t *count, uint32_t n_rows, const float *q, uint8_t *points)
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
        for (size_t t = TIERS; t-- > 0;)
            if ((float)before < tiers[t].share * (float)n_rows)
                points[c] = tiers[t].points;
        before += count[c];
    }
}

static void collide(const struct hri_index_head *head, const float *q, uint16_t *points)
{
    const struct hri_pariskv *s = head->state;
    uint32_t parts = head->options.k_dim / HRI_PARIS_DIMS;
    uint8_t worth[HRI_PARIS_CODES];
    for (uint32_t p = 0; p < parts; p++) {
        pattern_points(s->count + p * HRI_PARIS_CODES, head->n_rows, q + p * HRI_PARIS_DIMS, worth);
        for (uint32_t i = 0; i < head->n_rows; i++)
            points[i] += worth[s->sign[(size_t)i * parts + p]];
    }
}

/* q . codes of a row. */
static float fine_dot(const unsigned char *fine, const float *q, uint32_t d)
{
    float sum = 0;
    for (uint32_t j = 0; j < d / 2; j++)
        sum += ((float)(fine[j] & 15) - FINE_ZERO) * q[2 * j] +
               ((float)(fine[j] >> 4) - FINE_ZERO) * q[2 * j + 1];
    return sum;
}

/* Ranks the candidates ranked[n] anew: softmax of the estimated logits per query head, summed over the group. */
static void rerank(const struct hri_index_head *head, struct hri_rows_step *step, uint32_t n)
{
    const struct hri_index_options *o = &head->options;
    const struct hri_pariskv *s = head->state;
    for (uint32_t i = 0; i < n; i++)
        step->ranked[i].key = 0;
    for (uint32_t g = 0; g < o->g; g++) {
        float *x = step->logits;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t row = step->ranked[i].item;
            x[i] =
                hri_f32_from_f16(s->factor[row]) * fine_dot(s->fine + (size_t)row * (o->k_dim / 2),
                                                            s->q + (size_t)g * o->k_dim, o->k_dim);
        }
        hri_soft_cap(x, n, o->soft_cap);
        hri_softmax(o->kernels, x, x, n);
        for (uint32_t i = 0; i < n; i++)
            step->ranked[i].key += x[i];
    }
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct hri_pariskv *s = head->state;
    struct hri_rows_step step = hri_rows_step_at(head, in);
    uint16_t *points = (uint16_t *)(void *)((char *)in->scratch + hri_rows_step_bytes(o));
    uint32_t n = head->n_rows, fit = hri_rows_fit(head, in, out);
    uint64_t wanted = (uint64_t)(hri_recipe_value(&o->recipe, "candidates") * fit);
    uint32_t candidates = wanted < n ? (uint32_t)wanted : n;
    if (fit == 0)
        return HR_OK;
    memset(points, 0, n * sizeof *points);
    o->kernels->matmul_nt(in->q, o->g, o->k_dim, s->turn, o->k_dim, s->q);
    for (uint32_t g = 0; g < o->g; g++)
        collide(head, s->q + (size_t)g * o->k_dim, points);
    for (uint32_t i = 0; i < n; i++)
        step.ranked[i] = (struct hri_ranked){points[i], i};
    hri_rank_select(step.ranked, n, candidates);
    rerank(head, &step, candidates);
    hri_rows_take(step.ranked, candidates, fit, in, out);
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    struct hri_pariskv *s = head->state;
    size_t n = head->n_rows, parts = head->options.k_dim / HRI_PARIS_DIMS;
    hri_image_bytes(im, s->sign, n * parts);
    hri_image_bytes(im, s->fine, n * head->options.k_dim / 2);
    hri_image_halfs(im, s->factor, n);
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
    PARAM_DECODE_SEGMENT(256),
    PARAM_DENSE(""),
    {"candidates", "rows ranked again per row that is read", "", 8, 1, 1000},
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
