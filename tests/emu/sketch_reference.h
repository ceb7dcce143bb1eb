/* What a step with sketches should choose, put out and foretell, in double from the head's own tables (docs/algorithm.md,
 * level 1). */
#ifndef SKETCH_REFERENCE_H
#define SKETCH_REFERENCE_H

#include "tests/emu/device_bed.h"

#include "index/head.h"
#include "index/ladder_state.h"

enum { G_MOST = 4, BLOCKS_MOST = ITEMS_MOST / 2, LANES_MOST = 3000 };

struct reference { /* of one kv-head */
    const struct bed *b;
    const struct hri_index_head *head;
    uint32_t layer, h, g, position;
    float q[G_MOST * D];
    double near_mass[G_MOST], near_sum[G_MOST][D]; /* over exp(top) */
    double top[G_MOST], total[G_MOST];             /* as the sketches have it */
    double x[G_MOST][LANES_MOST],
        value[LANES_MOST][D]; /* logits and values of rows, by their sketches */
    double rest[G_MOST][HRI_SKETCH_BASES_MAX];
    double far[G_MOST], size[G_MOST];
    double key[ITEMS_MOST], out[G_MOST][D], predicted[G_MOST], late[G_MOST];
};

static inline double element(const hr_sequence_t *s, const unsigned char *row, uint32_t j)
{
    float x;
    s->runtime->kernels->to_f32(&x, row + j * hr_dtype_bytes(s->dtype), s->dtype, 1);
    return (double)x;
}

static inline double capped(const hr_sequence_t *s, double x)
{
    return s->soft_cap > 0 ? (double)s->soft_cap * tanh(x / (double)s->soft_cap) : x;
}

static inline uint32_t basis_of(const struct hri_index_head *head, uint32_t block)
{
    uint32_t i = 0;
    while (block >= hri_basis_end(head, i))
        i++;
    return i;
}

/* Logits of sink and window: the rows of the exact tail. */
static inline uint32_t near_logits(const struct reference *r, uint32_t g, double *x,
                                   const unsigned char **rows)
{
    const hr_sequence_t *s = r->b->seq;
    const struct hri_layer *l = &s->layers[r->layer];
    uint32_t n = 0;
    for (uint32_t t = 0; t < r->b->n; t++) {
        if (t >= s->n_sink && t < l->body_end)
            continue;
        rows[n] = t < s->n_sink ? l->sink + ((size_t)r->h * s->n_sink + t) * s->row_bytes
                                : hri_tail_row(s, l, r->h, t);
        x[n] = 0;
        for (uint32_t j = 0; j < D; j++)
            x[n] += (double)r->q[g * D + j] * element(s, rows[n], j);
        x[n] = capped(s, x[n]);
        n++;
    }
    return n;
}

static inline void block_dots(const struct reference *r, uint32_t block, double *dots)
{
    float k[D], v[D];
    hri_index_centers(r->head, block, k, v);
    for (uint32_t g = 0; g < r->g; g++) {
        dots[g] = 0;
        for (uint32_t j = 0; j < D; j++)
            dots[g] += (double)r->q[g * D + j] * (double)k[j];
    }
}

/* What a stray's own key adds to its block's dot; `else_score` for other rows. */
static double stray_score(const struct reference *r, uint32_t g, uint32_t block, uint32_t row,
                          double else_score)
{
    const struct hri_strays *s = &r->head->sketch->strays;
    for (uint32_t i = 0; i < s->n; i++) {
        double sum = 0;
        if (s->block[i] != block || s->row[i] != row)
            continue;
        for (uint32_t j = 0; j < D; j++)
            sum += (double)r->q[g * D + j] * (double)s->step[i] * s->key[(size_t)i * D + j];
        return sum;
    }
    return else_score;
}

/* Queries in a basis, as bytes: what sketches are scored with. */
static inline void basis_rows(struct reference *r, uint32_t basis)
{
    const struct hri_sketch *sketch = r->head->sketch;
    const struct hri_basis *k = &sketch->bases[basis];
    static struct hri_sketch_query query;
    float turned[G_MOST * D], x[G_MOST * D], rest[G_MOST];
    hri_sketch_turn(r->head, k, r->q, turned, x, rest);
    hri_sketch_query_make(&query, x, r->g, k->n4, k->n2);
    for (uint32_t b = k->first_block; b < hri_basis_end(r->head, basis); b++) {
        double dots[G_MOST], miss = exp2((sketch->miss[b] - 128.0) / 16);
        float center[D];
        block_dots(r, b, dots);
        hri_index_centers(r->head, b, NULL, center);
        for (uint32_t i = 0; i < r->head->block_rows[b]; i++) {
            const uint32_t lane = sketch->first_lane[b] + i;
            float codes[D];
            hri_sketch_unpack(sketch->codes, k->n4, k->n2, lane, codes);
            for (uint32_t g = 0; g < r->g; g++) {
                double sum = 0;
                for (uint32_t c = 0; c < k->n; c++)
                    sum += (double)codes[c] *
                           (c < k->n4 ? (double)query.scale4[g] * query.q4[g][c]
                                      : (double)query.scale2[g] * query.q2[g][c - k->n4]);
                r->x[g][lane] = stray_score(r, g, b, i, sum * sketch->gain[b] / 128);
                r->rest[g][basis] = (double)rest[g];
            }
            for (uint32_t j = 0; j < D; j++) {
                r->value[lane][j] = (double)center[j];
                for (uint32_t c = 0; c < k->n; c++)
                    r->value[lane][j] +=
                        (double)codes[c] * (double)k->value_scale[c] * k->value[(size_t)c * D + j];
            }
        }
        for (uint32_t g = 0; g < r->g; g++) {
            uint32_t n = r->head->block_rows[b], first = sketch->first_lane[b];
            double *score = r->x[g] + first, sum = 0, others = 0;
            for (uint32_t i = 0; i < n; i++) {
                sum += score[i];
                others += isnan(stray_score(r, g, b, i, NAN));
            }
            for (uint32_t i = 0; i < n; i++)
                score[i] = capped(r->b->seq, dots[g] + score[i] - (others > 0 ? sum / others : 0)) +
                           fmin(0.5 * miss * (double)rest[g], 1);
        }
    }
}

static inline void stray_rows(struct reference *r)
{
    const struct hri_strays *s = &r->head->sketch->strays;
    for (uint32_t i = 0; i < s->n; i++) {
        double dots[G_MOST];
        block_dots(r, s->block[i], dots);
        for (uint32_t g = 0; g < r->g; g++) {
            double sum = dots[g];
            for (uint32_t j = 0; j < D; j++)
                sum += (double)r->q[g * D + j] * (double)s->step[i] * s->key[(size_t)i * D + j];
            r->x[g][r->head->sketch->first_lane[s->block[i]] + s->row[i]] = capped(r->b->seq, sum);
        }
    }
}

/* What all weigh, by sink, window and sketches, and the output as far as heavy blocks make it. */
static inline void totals(struct reference *r)
{
    const struct hri_sketch *sketch = r->head->sketch;
    const uint32_t n_blocks = r->head->n_blocks;
    static const unsigned char *rows[TOKENS];
    static double x[TOKENS];
    for (uint32_t g = 0; g < r->g; g++) {
        double mass[BLOCKS_MOST] = {0}, output[D] = {0}, rest, far = 0;
        const uint32_t n = near_logits(r, g, x, rows);
        r->top[g] = x[0];
        for (uint32_t i = 0; i < n; i++)
            r->top[g] = fmax(r->top[g], x[i]);
        for (uint32_t b = 0; b < n_blocks; b++)
            for (uint32_t i = 0; i < r->head->block_rows[b]; i++)
                r->top[g] = fmax(r->top[g], r->x[g][sketch->first_lane[b] + i]);
        r->near_mass[g] = 0;
        memset(r->near_sum[g], 0, sizeof r->near_sum[g]);
        for (uint32_t i = 0; i < n; i++) {
            double w = exp(x[i] - r->top[g]);
            r->near_mass[g] += w;
            for (uint32_t j = 0; j < D; j++)
                r->near_sum[g][j] += w * element(r->b->seq, rows[i], D + j);
        }
        r->total[g] = r->near_mass[g];
        for (uint32_t b = 0; b < n_blocks; b++) {
            for (uint32_t i = 0; i < r->head->block_rows[b]; i++)
                mass[b] += exp(r->x[g][sketch->first_lane[b] + i] - r->top[g]);
            r->total[g] += mass[b];
        }
        rest = r->total[g] - r->near_mass[g];
        for (uint32_t b = 0; b < n_blocks; b++)
            for (uint32_t i = 0; mass[b] > 0.002 * r->total[g] && i < r->head->block_rows[b]; i++) {
                double w = exp(r->x[g][sketch->first_lane[b] + i] - r->top[g]);
                rest -= w;
                for (uint32_t j = 0; j < D; j++)
                    output[j] += w * r->value[sketch->first_lane[b] + i][j];
            }
        r->size[g] = 0;
        for (uint32_t j = 0; j < D; j++) {
            const double mean = (double)r->head->shape.v_mean[j];
            output[j] = (output[j] + r->near_sum[g][j] + rest * mean) / r->total[g];
            far += (output[j] - mean) * (output[j] - mean);
            r->size[g] += output[j] * output[j];
        }
        r->far[g] = far + r->head->shape.v_variance;
    }
}

/* Squared relative error that the sketch of a row leaves. */
static inline double row_error(const struct reference *r, uint32_t g, uint32_t block, uint32_t lane,
                               double lone)
{
    const struct hri_sketch *sketch = r->head->sketch;
    const uint32_t basis = basis_of(r->head, block);
    const double miss = exp2((sketch->miss[block] - 128.0) / 16);
    const double share = exp(r->x[g][lane] - r->top[g]) / r->total[g];
    const double v = fmin(miss * r->rest[g][basis], 1), excess = v + v * v / 2 + v * v * v / 6;
    const double value =
        exp2((sketch->value_miss[block] - 128.0) / 16) * (double)sketch->bases[basis].value_rest;
    const double factor = (excess * r->far[g] + (1 + excess) * value) / r->size[g];
    return factor * share * share * exp(2 * fmin(1.4 * sqrt(lone * r->rest[g][basis]), 20));
}

static inline void worths(struct reference *r)
{
    const struct hri_sketch *sketch = r->head->sketch;
    const hr_sequence_t *s = r->b->seq;
    memset(r->key, 0, sizeof r->key);
    for (uint32_t b = 0, l = 0; b < r->head->n_blocks; b++)
        for (uint32_t i = 0; i < r->head->block_rows[b]; i++) {
            const uint32_t lane = sketch->first_lane[b] + i, item = b * s->parts + i / s->part_rows;
            double worth = 0, lifted = 0;
            while (l < sketch->n_lone && sketch->lone_lane[l] < lane)
                l++;
            const bool is_lone = l < sketch->n_lone && sketch->lone_lane[l] == lane;
            for (uint32_t g = 0; g < r->g; g++) {
                worth += row_error(r, g, b, lane, 0);
                lifted += row_error(r, g, b, lane,
                                    is_lone ? exp2((sketch->lone_miss[l] - 128.0) / 16) : 0);
            }
            r->key[item] +=
                fmax(worth, lifted) / ((double)hri_index_item_rows(r->head, item) * s->code_bytes);
        }
}

/* The output where these parts came, and what the others leave. */
static inline void outputs(struct reference *r, const struct choice *c)
{
    const hr_sequence_t *s = r->b->seq;
    const struct hri_sketch *sketch = r->head->sketch;
    double sum[G_MOST][D], mass[G_MOST], left[G_MOST] = {0}, late[G_MOST] = {0};
    memcpy(sum, r->near_sum, sizeof sum);
    memcpy(mass, r->near_mass, sizeof mass);
    for (uint32_t item = 0; item < r->head->n_blocks * s->parts; item++) {
        const uint32_t n = hri_index_item_rows(r->head, item), b = item / s->parts;
        const uint32_t lane = sketch->first_lane[b] + item % s->parts * s->part_rows;
        int8_t *codes = c->came[item] ? codes_read(s, r->layer, r->h, item) : NULL;
        double dots[G_MOST];
        float center[D];
        block_dots(r, b, dots);
        hri_index_centers(r->head, b, NULL, center);
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t g = 0; g < r->g; g++) {
                double x = dots[g], w = exp(r->x[g][lane + i] - r->top[g]);
                for (uint32_t j = 0; codes != NULL && j < D; j++)
                    x += (double)r->q[g * D + j] * (double)r->head->k_step[b] *
                         codes[(size_t)i * 2 * D + j];
                w = codes != NULL ? exp(capped(s, x) - r->top[g]) : w;
                mass[g] += w;
                for (uint32_t j = 0; j < D; j++)
                    sum[g][j] += w * (codes == NULL ? r->value[lane + i][j]
                                                    : (double)center[j] +
                                                          (double)r->head->v_step[b] *
                                                              codes[(size_t)i * 2 * D + D + j]);
                double error = codes == NULL ? row_error(r, g, b, lane + i, 0) : 0;
                left[g] += error;
                late[g] += c->chosen[item] ? error : 0;
            }
        free(codes);
    }
    for (uint32_t g = 0; g < r->g; g++) {
        for (uint32_t j = 0; j < D; j++)
            r->out[g][j] = sum[g][j] / mass[g];
        r->predicted[g] = sqrt(left[g]);
        r->late[g] = sqrt(late[g]);
    }
}

static inline struct reference *reference_of(const struct bed *b, uint32_t layer, uint32_t h,
                                             const struct choice *c)
{
    struct reference *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->b = b;
    r->layer = layer;
    r->h = h;
    r->g = b->shape.n_q / KV;
    r->head = b->seq->layers[layer].heads[h];
    assert_true(r->head->sketch->lanes_max <= LANES_MOST);
    for (uint32_t i = 0; i < r->g * D; i++)
        r->q[i] = b->q[((size_t)(b->n - 1) * b->shape.n_q + h * r->g) * D + i] * b->seq->scale;
    for (uint32_t i = 0; i < r->head->sketch->n_bases; i++)
        basis_rows(r, i);
    stray_rows(r);
    totals(r);
    worths(r);
    outputs(r, c);
    return r;
}

#endif
