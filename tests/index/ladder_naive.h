/* A head with sketches, and what a step of it should see, read one by one in double: for test_ladder.c. */
#ifndef TESTS_INDEX_LADDER_NAIVE_H
#define TESTS_INDEX_LADDER_NAIVE_H

#include "index/ladder.h"
#include "tests/index/index_test.h"
#include "tests/test.h"

enum { ROWS_MAX = 3000, NEAR = 7 };

struct world {
    struct synth rows;
    struct bench_head b;
    float *q; /* [g][k_dim] of the step */
    uint64_t seed;
    const char *recipe;
    uint8_t place[ROWS_MAX * 4];
};

static struct world world; /* large */

/* Worlds of odd seeds keep the rests of their rows' values. */
static void world_make(const char *recipe, uint32_t n, uint32_t g, uint32_t dk, uint32_t dv,
                       uint32_t segment, float soft_cap, double query_size, uint64_t seed)
{
    struct hri_rng rng;
    struct world *w = &world;
    memset(w, 0, sizeof *w);
    hri_rng_seed(&rng, w->seed = seed);
    w->recipe = recipe;
    w->rows = synth_make(&rng, n, dk, dv);
    float *seen = synth_queries(&rng, &w->rows, 24, g);
    w->q = synth_queries(&rng, &w->rows, 1, g);
    for (uint32_t i = 0; i < g * dk; i++)
        w->q[i] *= (float)query_size;
    struct bench_geometry geometry = {.recipe = recipe,
                                      .g = g,
                                      .k_dim = dk,
                                      .v_dim = dv,
                                      .soft_cap = soft_cap,
                                      .rows_in_host = seed % 2,
                                      .horizon_tokens = 64};
    bench_head_init(&w->b, &geometry, w->rows.k, w->rows.v, n, seen, 24, 0, n, segment);
    free(seen);
}

static void world_free(void)
{
    bench_head_fini(&world.b);
    synth_free(&world.rows);
    free(world.q);
}

/* ------------------------------------------------------------------------ the same, one by one */

struct naive {
    double dot[ROWS_MAX], spread[ROWS_MAX]; /* of a block */
    double sketch[HR_GROUP_MAX][ROWS_MAX];  /* of a row in block order: its logit */
    uint8_t stray[ROWS_MAX];
    double mass[HR_GROUP_MAX][ROWS_MAX]; /* of a block at level 0, logarithm */
    double rest[HRI_SKETCH_BASES_MAX][HR_GROUP_MAX];
    double value[ROWS_MAX][HR_HEAD_DIM_MAX];      /* of a row as its sketch has it */
    double rest_value[ROWS_MAX][HR_HEAD_DIM_MAX]; /* what its rest adds to that */
    double value_part[ROWS_MAX]; /* of a block: of what its rows are worth, that of their rests */
    double worth[ROWS_MAX], lone_worth[ROWS_MAX], plain_worth[ROWS_MAX];
    double top[HR_GROUP_MAX], total[HR_GROUP_MAX];
    double output[HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    float shift[HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    double corrected[HR_GROUP_MAX]; /* what audits found level 0 off by */
    uint8_t known[ROWS_MAX], refined[ROWS_MAX], rested[ROWS_MAX];
    struct test_part near;
};

static struct naive naive;

static double bend(double x)
{
    double cap = (double)world.b.options.soft_cap;
    return cap > 0 ? cap * tanh(x / cap) : x;
}

static double code_of(const struct hri_sketch *s, const struct hri_basis *basis, uint32_t lane,
                      uint32_t i)
{
    const uint8_t *group = s->codes + (size_t)(lane / 16) * (basis->n4 / 8 + basis->n2 / 16) * 64;
    const uint8_t *at = group + lane % 16 * 4;
    if (i < basis->n4)
        return (at[i / 8 * 64 + i % 4] >> (i / 4 % 2 * 4) & 15) - 7.5;
    i -= basis->n4;
    at += basis->n4 / 8 * 64;
    return (at[i / 16 * 64 + i % 4] >> (i / 4 % 4 * 2) & 3) - 1.5;
}

/* The query in a basis as the bytes that meet the codes, times their scale. The library's floats are used once they are found to
 * be right, since a byte is rounded one way or the other by their last bit. */
static void turn(const struct hri_basis *basis, double rounded[HR_GROUP_MAX][HR_HEAD_DIM_MAX],
                 double *rest)
{
    const struct hri_index_options *o = &world.b.options;
    static float x[HR_GROUP_MAX * HR_HEAD_DIM_MAX], turned[HR_GROUP_MAX * HR_HEAD_DIM_MAX];
    static float rest_f[HR_GROUP_MAX];
    static struct hri_sketch_query query;
    hri_sketch_turn(world.b.head, basis, world.q, turned, x, rest_f);
    for (uint32_t g = 0; g < o->g; g++) {
        rest[g] = 0;
        for (uint32_t c = 0; c < o->k_dim; c++) {
            double sum = 0, size = 0;
            for (uint32_t j = 0; j < o->k_dim; j++) {
                double term = (double)basis->query[(size_t)c * o->k_dim + j] *
                              (double)world.q[(size_t)g * o->k_dim + j];
                sum += term;
                size += fabs(term);
            }
            sum *= (double)basis->query_scale[c];
            size *= (double)basis->query_scale[c];
            rest[g] += sum * sum * (double)basis->missed[c];
            if (c < basis->n)
                CHECK_NEAR(x[(size_t)g * basis->n + c], sum * (double)basis->step[c],
                           1e-5 * size * (double)basis->step[c]);
        }
        CHECK_NEAR(rest_f[g], rest[g], 1e-3 * rest[g] + 1e-30);
    }
    hri_sketch_query_make(&query, x, o->g, basis->n4, basis->n2);
    for (uint32_t g = 0; g < o->g; g++)
        for (uint32_t c = 0; c < basis->n; c++)
            rounded[g][c] = c < basis->n4 ? (double)query.scale4[g] * query.q4[g][c]
                                          : (double)query.scale2[g] * query.q2[g][c - basis->n4];
}

static uint32_t basis_at(const struct hri_sketch *s, uint32_t block)
{
    uint32_t i = 0;
    while (i + 1 < s->n_bases && s->bases[i + 1].first_block <= block)
        i++;
    return i;
}

static double half_missed(uint32_t g, uint32_t b)
{
    const struct hri_sketch *s = world.b.head->sketch;
    double miss = exp2((s->miss[b] - 128.0) / 16);
    return fmin(0.5 * miss * naive.rest[basis_at(s, b)][g], 1);
}

/* Of rows whose keys are kept the scores are these keys'. */
static void naive_strays(void)
{
    const struct hri_strays *s = &world.b.head->sketch->strays;
    const struct hri_index_options *o = &world.b.options;
    memset(naive.stray, 0, sizeof naive.stray);
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t row = world.b.first[s->block[i]] + s->row[i];
        naive.stray[row] = 1;
        for (uint32_t g = 0; g < o->g; g++) {
            double sum = 0;
            for (uint32_t j = 0; j < o->k_dim; j++)
                sum += (double)world.q[(size_t)g * o->k_dim + j] * (double)s->step[i] *
                       s->key[(size_t)i * o->k_dim + j];
            naive.sketch[g][row] = sum;
        }
    }
}

/* Scores become logits: of the rows of a block they add up to nothing, which those of sketches are shifted for. */
static void naive_logits(const struct hri_select_in *in)
{
    const struct hri_index_head *head = world.b.head;
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        float dots[HR_GROUP_MAX];
        uint32_t first = world.b.first[b], end = first + head->block_rows[b];
        hri_index_block_dots(head, in, b, dots);
        for (uint32_t g = 0; g < head->options.g; g++) {
            double *x = naive.sketch[g], sum = 0, n = 0;
            for (uint32_t i = first; i < end; i++) {
                sum += x[i];
                n += !naive.stray[i];
            }
            for (uint32_t i = first; i < end; i++)
                x[i] = naive.stray[i] ? bend((double)dots[g] + x[i])
                                      : bend((double)dots[g] + x[i] - sum / n) + half_missed(g, b);
        }
    }
}

/* The rest of a row's value; and that it mends what four levels can. */
static void naive_rest(const struct hri_basis *basis, uint32_t b, uint32_t row, uint32_t lane)
{
    const struct hri_index_options *o = &world.b.options;
    const struct hri_rests *r = &world.b.head->sketch->rests;
    uint32_t dv = o->v_dim;
    const float *v = world.rows.v + (size_t)world.b.order[row] * dv;
    memset(naive.rest_value[row], 0, sizeof naive.rest_value[row]);
    if (r->codes == NULL || b < r->first_block)
        return;
    double mean = (double)basis->value_rest / dv, square = 0;
    double step = sqrt(mean * exp2((r->step[lane] - 128.0) / 16));
    for (uint32_t j = 0; j < dv; j++) {
        uint8_t four = r->codes[(size_t)lane * dv / 4 + j % (dv / 4)];
        naive.rest_value[row][j] = step * ((four >> j / (dv / 4) * 2 & 3) - 1.5);
        square += pow((double)v[j] - naive.value[row][j], 2);
    }
    if (r->step[lane] > 0 && r->step[lane] < 255)
        CHECK_NEAR(step, sqrt(0.99 * square / dv), 0.025 * step);
    for (uint32_t j = 0; j < dv; j++) {
        double x = (double)v[j] - naive.value[row][j], far = fmax(fabs(x) - 2 * step, 0);
        CHECK_NEAR(naive.rest_value[row][j], x, (0.5 + 1e-4) * step + far + 1e-5);
    }
}

/* Logits and values of every row by its sketch, and level 0 of every block. */
static void naive_read(const struct hri_select_in *in)
{
    const struct hri_index_head *head = world.b.head;
    const struct hri_index_options *o = &head->options;
    const struct hri_sketch *s = head->sketch;
    static double x[HRI_SKETCH_BASES_MAX][HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    float dots[HR_GROUP_MAX], center[HR_HEAD_DIM_MAX];
    for (uint32_t i = 0; i < s->n_bases; i++)
        turn(&s->bases[i], x[i], naive.rest[i]);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        uint32_t at = basis_at(s, b);
        const struct hri_basis *basis = &s->bases[at];
        hri_index_block_dots(head, in, b, dots);
        hri_index_centers(world.b.head, b, NULL, center);
        naive.spread[b] = (double)hri_block_spread(head, b);
        for (uint32_t i = 0; i < head->block_rows[b]; i++) {
            uint32_t row = world.b.first[b] + i, lane = s->first_lane[b] + i;
            for (uint32_t j = 0; j < o->v_dim; j++)
                naive.value[row][j] = (double)center[j];
            for (uint32_t c = 0; c < basis->n; c++)
                for (uint32_t j = 0; j < o->v_dim; j++)
                    naive.value[row][j] += code_of(s, basis, lane, c) *
                                           (double)basis->value_scale[c] *
                                           basis->value[(size_t)c * o->v_dim + j];
            naive_rest(basis, b, row, lane);
            for (uint32_t g = 0; g < o->g; g++) {
                double sum = 0;
                for (uint32_t c = 0; c < basis->n; c++)
                    sum += x[at][g][c] * code_of(s, basis, lane, c);
                naive.sketch[g][row] = sum * s->gain[b] / 128;
            }
        }
        for (uint32_t g = 0; g < o->g; g++) {
            float variance, shift[HR_HEAD_DIM_MAX];
            hri_shape_query(head, world.q + (size_t)g * o->k_dim, 1, &variance, shift);
            double slope =
                o->soft_cap > 0 ? 1 - pow(tanh((double)dots[g] / (double)o->soft_cap), 2) : 1;
            naive.mass[g][b] = bend((double)dots[g]) + log(head->block_rows[b]) +
                               fmin(0.5 * (double)variance * naive.spread[b] * slope * slope, 3);
        }
    }
    naive_strays();
    naive_logits(in);
}

static uint32_t first_of(uint32_t block)
{
    return world.b.first[block];
}

/* Tops and totals before anything is refined. */
static void naive_total(void)
{
    const struct hri_index_head *head = world.b.head;
    for (uint32_t g = 0; g < head->options.g; g++) {
        double top = (double)naive.near.m[g], total = 0;
        float variance;
        hri_shape_query(head, world.q + (size_t)g * head->options.k_dim, 1, &variance,
                        naive.shift[g]);
        for (int pass = 0; pass < 2; pass++) {
            for (uint32_t b = 0; b < head->n_blocks; b++) {
                bool rows = naive.known[b] != HRI_KNOWN_SUMMARY;
                for (uint32_t i = first_of(b); rows && i < first_of(b + 1); i++) {
                    top = fmax(top, naive.sketch[g][i]);
                    total += pass ? exp(naive.sketch[g][i] - top) : 0;
                }
                top = rows ? top : fmax(top, naive.mass[g][b]);
                total += pass && !rows ? naive.corrected[g] * exp(naive.mass[g][b] - top) : 0;
            }
        }
        naive.top[g] = top;
        naive.total[g] = total;
        if (naive.near.l[g] > 0)
            naive.total[g] += (double)naive.near.l[g] * exp((double)naive.near.m[g] - top);
    }
}

static const int8_t *codes_of(uint32_t row)
{
    const struct hri_index_options *o = &world.b.options;
    return world.b.codes + (size_t)row * (o->k_dim + o->v_dim);
}

/* Adds a row to the sums of query head g: its int8 form, or as its sketch has it. */
static void add_row(uint32_t g, uint32_t b, uint32_t row, double *sum, double *total)
{
    const struct hri_index_head *head = world.b.head;
    const struct hri_index_options *o = &head->options;
    float k[HR_HEAD_DIM_MAX], v[HR_HEAD_DIM_MAX];
    hri_summary_centers(head, b, k, v);
    double logit = naive.sketch[g][row];
    if (naive.refined[row]) {
        logit = 0;
        for (uint32_t j = 0; j < o->k_dim; j++)
            logit += ((double)k[j] + (double)head->k_step[b] * codes_of(row)[j]) *
                     (double)world.q[(size_t)g * o->k_dim + j];
        logit = bend(logit);
    }
    double w = exp(logit - naive.top[g]);
    *total += w;
    for (uint32_t j = 0; j < o->v_dim; j++)
        sum[j] +=
            w * (naive.refined[row]
                     ? (double)v[j] + (double)head->v_step[b] * codes_of(row)[o->k_dim + j]
                 : naive.known[b] == HRI_KNOWN_LIGHT
                     ? (double)v[j] + naive.spread[b] * (double)naive.shift[g][j]
                     : naive.value[row][j] + (naive.rested[row] ? naive.rest_value[row][j] : 0));
}

static void naive_output(void)
{
    const struct hri_index_head *head = world.b.head;
    const struct hri_index_options *o = &head->options;
    for (uint32_t g = 0; g < o->g; g++) {
        double *sum = naive.output[g], total = 0;
        float variance, shift[HR_HEAD_DIM_MAX], v[HR_HEAD_DIM_MAX];
        double near = naive.near.l[g] > 0 ? exp((double)naive.near.m[g] - naive.top[g]) : 0;
        hri_shape_query(head, world.q + (size_t)g * o->k_dim, 1, &variance, shift);
        total = near * (double)naive.near.l[g];
        for (uint32_t j = 0; j < o->v_dim; j++)
            sum[j] = near > 0 ? near * (double)naive.near.o[(size_t)g * o->v_dim + j] : 0;
        for (uint32_t b = 0; b < head->n_blocks; b++) {
            if (naive.known[b] != HRI_KNOWN_SUMMARY) {
                for (uint32_t i = first_of(b); i < first_of(b + 1); i++)
                    add_row(g, b, i, sum, &total);
                continue;
            }
            double w = naive.corrected[g] * exp(naive.mass[g][b] - naive.top[g]);
            hri_summary_centers(head, b, NULL, v);
            total += w;
            for (uint32_t j = 0; j < o->v_dim; j++)
                sum[j] += w * ((double)v[j] + naive.spread[b] * (double)shift[j]);
        }
        for (uint32_t j = 0; j < o->v_dim; j++)
            sum[j] /= total;
    }
}

static uint32_t lane_of(uint32_t b, uint32_t row)
{
    return world.b.head->sketch->first_lane[b] + row - first_of(b);
}

/* Groups of 16 lanes with rows of blocks that are heavy for some query head: in them, rows count with their own values. */
static void heavy_mark(bool *lanes)
{
    const struct hri_index_head *head = world.b.head;
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        bool heavy = false;
        for (uint32_t g = 0; g < head->options.g && naive.known[b] != HRI_KNOWN_SUMMARY; g++) {
            double w = 0;
            for (uint32_t i = first_of(b); i < first_of(b + 1); i++)
                w += exp(naive.sketch[g][i] - naive.top[g]);
            heavy |= w > 0.002 * naive.total[g];
        }
        for (uint32_t i = first_of(b); heavy && i < first_of(b + 1); i++)
            lanes[lane_of(b, i) / 16] = true;
    }
}

/* |o|^2 of the output as far as near and heavy blocks make it, and the mean square of the values' distance to it. */
static void far_and_size(uint32_t g, double *far, double *size)
{
    const struct hri_index_head *head = world.b.head;
    uint32_t dv = head->options.v_dim;
    double out[HR_HEAD_DIM_MAX] = {0}, rest = 0;
    double near = naive.near.l[g] > 0 ? exp((double)naive.near.m[g] - naive.top[g]) : 0;
    float v[HR_HEAD_DIM_MAX];
    for (uint32_t j = 0; j < dv && near > 0; j++)
        out[j] = near * (double)naive.near.o[(size_t)g * dv + j];
    static bool heavy_lanes[ROWS_MAX / 16 + 2 * HRI_SKETCH_BASES_MAX];
    memset(heavy_lanes, 0, sizeof heavy_lanes);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        double w = naive.known[b] == HRI_KNOWN_SUMMARY
                       ? naive.corrected[g] * exp(naive.mass[g][b] - naive.top[g])
                       : 0;
        for (uint32_t i = first_of(b); naive.known[b] && i < first_of(b + 1); i++)
            w += exp(naive.sketch[g][i] - naive.top[g]);
        hri_summary_centers(head, b, NULL, v);
        rest += w < 0.002 * naive.total[g] ? w : 0;
        for (uint32_t j = 0; j < dv && w >= 0.002 * naive.total[g]; j++)
            out[j] += w * (double)v[j];
    }
    heavy_mark(heavy_lanes);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        hri_summary_centers(head, b, NULL, v);
        for (uint32_t i = first_of(b); naive.known[b] && i < first_of(b + 1); i++)
            for (uint32_t j = 0; j < dv && heavy_lanes[lane_of(b, i) / 16]; j++)
                out[j] +=
                    exp(naive.sketch[g][i] - naive.top[g]) * (naive.value[i][j] - (double)v[j]);
    }
    *far = head->shape.v_variance;
    *size = 0;
    for (uint32_t j = 0; j < dv; j++) {
        double x = (out[j] + rest * (double)head->shape.v_mean[j]) / naive.total[g];
        *size += x * x;
        *far += (x - (double)head->shape.v_mean[j]) * (x - (double)head->shape.v_mean[j]);
    }
}

/* Expected squared error that refining a row removes, relative to the output, summed over the group. */
static void naive_worth(void)
{
    const struct hri_index_head *head = world.b.head;
    const struct hri_sketch *s = head->sketch;
    static double of_block[ROWS_MAX];
    memset(of_block, 0, sizeof of_block);
    memset(naive.value_part, 0, sizeof naive.value_part);
    memset(naive.worth, 0, sizeof naive.worth);
    memset(naive.lone_worth, 0, sizeof naive.lone_worth);
    memset(naive.plain_worth, 0, sizeof naive.plain_worth);
    for (uint32_t g = 0; g < head->options.g; g++) {
        double far, size;
        far_and_size(g, &far, &size);
        for (uint32_t b = 0; b < head->n_blocks; b++) {
            uint32_t at = basis_at(s, b);
            double rest = naive.rest[at][g], variance = exp2((s->miss[b] - 128.0) / 16) * rest;
            double value = exp2((s->value_miss[b] - 128.0) / 16) * (double)s->bases[at].value_rest;
            double v = fmin(variance, 1), excess = v + v * v / 2 + v * v * v / 6;
            double factor = excess * far + (1 + excess) * value;
            factor /= size * naive.total[g] * naive.total[g];
            double of_value = (1 + excess) * value / (size * naive.total[g] * naive.total[g]);
            for (uint32_t i = first_of(b); i < first_of(b + 1); i++) {
                double w = exp(naive.sketch[g][i] - naive.top[g]);
                naive.value_part[b] += of_value * w * w;
                of_block[b] += factor * w * w;
                naive.worth[i] += factor * w * w;
                naive.plain_worth[i] += factor * w * w;
                uint32_t lane = s->first_lane[b] + i - first_of(b);
                for (uint32_t l = 0; l < s->n_lone; l++)
                    if (s->lone_lane[l] == lane) {
                        double miss = exp2((s->lone_miss[l] - 128.0) / 16);
                        double far_w = w * exp(fmin(1.4 * sqrt(miss * rest), 20));
                        naive.lone_worth[i] += factor * far_w * far_w;
                    }
            }
        }
    }
    for (uint32_t i = 0; i < world.b.n; i++)
        naive.worth[i] = fmax(naive.worth[i], naive.lone_worth[i]);
    for (uint32_t b = 0; b < head->n_blocks; b++)
        naive.value_part[b] = s->rests.codes != NULL && b >= s->rests.first_block && of_block[b] > 0
                                  ? (1 - (double)HRI_REST_LEFT) * naive.value_part[b] / of_block[b]
                                  : 0;
}

#endif
