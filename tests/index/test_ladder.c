/* A step with sketches (index/ladder.c) against loops in double that read every code one by one.
 *
 *   what                                     tolerance
 *   output, given which blocks were read     1e-3 of the output: weights are kept to 15 bits
 *   output against exact attention           int8 rows and what may stay unread, at full budget
 *   rows chosen                              the best by the documented worth, ties aside: 1e-3 of it
 */
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
    double value[ROWS_MAX][HR_HEAD_DIM_MAX]; /* of a row as its sketch has it */
    double worth[ROWS_MAX], lone_worth[ROWS_MAX], plain_worth[ROWS_MAX];
    double top[HR_GROUP_MAX], total[HR_GROUP_MAX];
    double output[HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    float shift[HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    double corrected[HR_GROUP_MAX]; /* what audits found level 0 off by */
    uint8_t known[ROWS_MAX], refined[ROWS_MAX];
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
            for (uint32_t g = 0; g < o->g; g++) {
                double sum = 0;
                for (uint32_t c = 0; c < basis->n; c++)
                    sum += x[at][g][c] * code_of(s, basis, lane, c);
                naive.sketch[g][row] = sum * s->gain[b] / 128;
            }
        }
        for (uint32_t g = 0; g < o->g; g++) {
            float variance, shift[HR_HEAD_DIM_MAX];
            hri_shape_query(head, world.q + (size_t)g * o->k_dim, &variance, shift);
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
        hri_shape_query(head, world.q + (size_t)g * head->options.k_dim, &variance, naive.shift[g]);
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
        sum[j] += w * (naive.refined[row]
                           ? (double)v[j] + (double)head->v_step[b] * codes_of(row)[o->k_dim + j]
                       : naive.known[b] == HRI_KNOWN_LIGHT
                           ? (double)v[j] + naive.spread[b] * (double)naive.shift[g][j]
                           : naive.value[row][j]);
}

static void naive_output(void)
{
    const struct hri_index_head *head = world.b.head;
    const struct hri_index_options *o = &head->options;
    for (uint32_t g = 0; g < o->g; g++) {
        double *sum = naive.output[g], total = 0;
        float variance, shift[HR_HEAD_DIM_MAX], v[HR_HEAD_DIM_MAX];
        double near = naive.near.l[g] > 0 ? exp((double)naive.near.m[g] - naive.top[g]) : 0;
        hri_shape_query(head, world.q + (size_t)g * o->k_dim, &variance, shift);
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
            for (uint32_t i = first_of(b); i < first_of(b + 1); i++) {
                double w = exp(naive.sketch[g][i] - naive.top[g]);
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
}

/* ------------------------------------------------------------------------------------ one step */

static struct test_part result;

static void say(const char *what)
{
    fail_msg("%s: recipe %s, %u rows, group %u, dims %u and %u, seed %llu", what, world.recipe,
             world.b.n, world.b.options.g, world.b.options.k_dim, world.b.options.v_dim,
             (unsigned long long)world.seed);
}

static struct hri_select_in question(void)
{
    const struct hri_index_options *o = &world.b.options;
    return (struct hri_select_in){
        .q = world.q, .scratch = world.b.scratch, .row_bytes = o->k_dim + o->v_dim};
}

static void near_attend(struct test_part *part, uint32_t n)
{
    const struct hri_index_options *o = &world.b.options;
    test_part_clear(part, o->g, o->v_dim);
    bench_attend(world.q, o->g, o->k_dim, o->v_dim, world.rows.k, world.rows.v,
                 n < world.b.n ? n : world.b.n, o->soft_cap, &part->part);
}

/* What was chosen, once: marks it in naive.refined. Returns the bytes that have to move for it. */
static uint64_t chosen_mark(const struct hri_select_out *out, const uint8_t *place)
{
    const struct hri_index_head *head = world.b.head;
    uint32_t bytes = world.b.options.k_dim + world.b.options.v_dim;
    uint64_t moved = 0, all = 0;
    memset(naive.refined, 0, sizeof naive.refined);
    for (uint32_t i = 0; i < out->n_rows; i++) {
        uint32_t row = first_of(out->rows[i].block) + out->rows[i].row;
        uint32_t item = out->rows[i].block * head->parts + out->rows[i].row / head->part_rows;
        if (out->rows[i].row >= head->block_rows[out->rows[i].block] || naive.refined[row]++)
            say("a row twice or one that is not there");
        if (place && place[item] != HRI_PLACE_HOST)
            say("a single row that is not in host memory");
        if (i > 0 && row <= first_of(out->rows[i - 1].block) + out->rows[i - 1].row)
            say("rows out of order");
        moved += bytes;
        all += bytes;
    }
    for (uint32_t i = 0; i < out->n_items; i++) {
        uint32_t item = out->items[i], n = hri_index_item_rows(head, item);
        uint32_t row = first_of(item / head->parts) + item % head->parts * head->part_rows;
        all += (uint64_t)n * bytes;
        moved += place && place[item] == HRI_PLACE_FRAME  ? 0
                 : place && place[item] == HRI_PLACE_FILE ? 4096
                                                          : (uint64_t)n * bytes;
        for (uint32_t j = 0; j < n; j++)
            if (naive.refined[row + j]++)
                say("a row in two items");
        if (n == 0)
            say("an item that is not there");
    }
    if (all != out->bytes)
        say("bytes do not add up");
    return moved;
}

static void corrections_get(const struct hri_select_in *in)
{
    for (uint32_t g = 0; g < world.b.options.g; g++) {
        naive.corrected[g] = (double)hri_ladder_corrected(world.b.head, in, g);
        if (!(naive.corrected[g] > 0) || !isfinite(naive.corrected[g]))
            say("a correction that is none");
    }
}

/* A step, and its output as the loops have it; returns what moved. */
static uint64_t step_both(uint64_t budget, double tolerance, const uint8_t *place,
                          struct hri_select_out *out)
{
    const struct hri_index_options *o = &world.b.options;
    near_attend(&naive.near, NEAR);
    near_attend(&result, NEAR);
    bench_head_step(&world.b, world.q, budget, tolerance, place, &result.part, out);
    struct hri_select_in in = question();
    uint64_t moved = chosen_mark(out, place);
    uint32_t read = 0;
    for (uint32_t b = 0; b < world.b.head->n_blocks; b++) {
        naive.known[b] = (uint8_t)hri_ladder_known(world.b.head, &in, b);
        read += naive.known[b] != HRI_KNOWN_SUMMARY ? world.b.head->block_rows[b] : 0;
        for (uint32_t i = first_of(b); i < first_of(b + 1); i++)
            if (naive.refined[i] && naive.known[b] == HRI_KNOWN_SUMMARY)
                say("a row refined whose sketch was not read");
    }
    if (read != out->rows_sketched)
        say("rows_sketched is wrong");
    for (uint32_t g = 0; g < o->g; g++)
        if (!(out->predicted[g] >= 0) || !isfinite(out->predicted[g]))
            say("a predicted error that is none");
    corrections_get(&in);
    naive_read(&in);
    naive_total();
    naive_output();
    test_part_finish(&result, o->g, o->v_dim);
    return moved;
}

static double output_error(void)
{
    const struct hri_index_options *o = &world.b.options;
    double worst = 0;
    for (uint32_t g = 0; g < o->g; g++) {
        double far = 0, size = 0;
        for (uint32_t j = 0; j < o->v_dim; j++) {
            double x = (double)result.out[(size_t)g * o->v_dim + j] - naive.output[g][j];
            far += x * x;
            size += naive.output[g][j] * naive.output[g][j];
        }
        double e = sqrt(far / (size + 1e-30));
        worst = e > worst || isnan(e) ? e : worst;
    }
    return worst;
}

static double exact_error(void)
{
    static struct test_part exact;
    const struct hri_index_options *o = &world.b.options;
    near_attend(&exact, NEAR);
    bench_attend(world.q, o->g, o->k_dim, o->v_dim, world.rows.k, world.rows.v, world.b.n,
                 o->soft_cap, &exact.part);
    test_part_finish(&exact, o->g, o->v_dim);
    return relative_error(result.out, exact.out, o->g * o->v_dim);
}

static void check_output(double tolerance)
{
    double e = output_error();
    if (!(e <= tolerance)) {
        print_error("output differs by %g, allowed are %g\n", e, tolerance);
        say("the output is not that of the loops");
    }
}

/* Rows within the budget: the best, ties aside, and as many as fit. */
static void check_rows(uint64_t budget, const struct hri_select_out *out)
{
    const struct hri_index_head *head = world.b.head;
    uint64_t want = budget / (world.b.options.k_dim + world.b.options.v_dim), can = 0;
    double least = INFINITY, most = 0;
    naive_worth();
    for (uint32_t b = 0; b < head->n_blocks; b++)
        for (uint32_t i = first_of(b); i < first_of(b + 1) && naive.known[b] == HRI_KNOWN_ROWS;
             i++) {
            can += naive.worth[i] > 1e-30;
            if (naive.refined[i])
                least = fmin(least, naive.worth[i]);
            else
                most = fmax(most, naive.worth[i]);
        }
    if (out->n_rows > want || (out->n_rows < want && out->n_rows < can))
        say("not as many rows as fit");
    if (out->n_rows > 0 && !(most <= least * (1 + 2e-3))) {
        print_error("left out %g, chose %g\n", most, least);
        say("a worse row was chosen");
    }
}

/* --------------------------------------------------------------------------------------- tests */

static const char *const recipes[] = {"headrace:sketch=1",          "headrace:sketch=2",
                                      "headrace:sketch=3",          "headrace:sketch=2,block=18",
                                      "headrace:sketch=1,block=64", "headrace:sketch=3,block=4"};
static const struct {
    uint32_t dk, dv;
} dims[] = {{64, 64}, {128, 128}, {8, 8},  {16, 16},  {24, 40},   {80, 64},
            {96, 96}, {64, 128},  {8, 32}, {256, 64}, {256, 256}, {128, 8}};

static void test_nothing_refined(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 24; i++) {
        uint32_t dk = dims[i % 12].dk, dv = dims[i % 12].dv;
        world_make(recipes[i % 6], dk > 128 ? 150 : 300 + 17 * i, 1 + i * 7 % 16, dk, dv,
                   i % 3 ? 0 : 211, 0, i % 4 ? 1 : 3, 100 + i);
        struct hri_select_out out;
        step_both(0, 0, NULL, &out);
        assert_int_equal(out.n_rows + out.n_items, 0);
        assert_int_equal(out.bytes, 0);
        assert_false(out.capped);
        check_output(2e-3);
        world_free();
    }
}

static void test_rows_within_budget(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 24; i++) {
        uint32_t dk = dims[i * 5 % 12].dk, dv = dims[i * 5 % 12].dv;
        world_make(recipes[i % 6], dk > 128 ? 200 : 300 + 13 * i, 1 + i * 3 % 16, dk, dv,
                   i % 3 ? 0 : 300, 0, i % 4 ? 1 : 4, 200 + i);
        for (uint32_t share = 1; share <= 64; share *= 16) {
            struct hri_select_out out;
            uint64_t budget = (uint64_t)world.b.n * (dk + dv) * share / 100 + share;
            uint64_t moved = step_both(budget, 0, NULL, &out);
            assert_true(moved <= budget && out.bytes == moved);
            check_output(2e-3);
            check_rows(budget, &out);
        }
        world_free();
    }
}

/* Everything refined: int8 rows, and blocks that may stay unread because they cannot matter. */
static void test_everything_refined(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        uint32_t dk = dims[i].dk, dv = dims[i].dv;
        world_make(recipes[i % 6], dk > 128 ? 200 : 300 + 17 * i, 1 + i % 4, dk, dv,
                   i % 2 ? 0 : 256, 0, i % 3 ? 1 : 2, 300 + i);
        struct hri_select_out out;
        step_both(UINT32_MAX, 0, NULL, &out);
        check_output(2e-3);
        double e = exact_error();
        if (!(e < 0.012)) {
            print_error("error %g\n", e);
            say("all rows refined are not exact");
        }
        world_free();
    }
}

/* Soft caps bend the sum of centre and sketch, whatever round a block is read in. */
static void test_soft_cap(void **state)
{
    (void)state;
    static const float caps[] = {50, 5, 1, 0.2f};
    for (uint32_t i = 0; i < 24; i++) {
        world_make(recipes[i % 6], 900, 1 + i % 5, 64, 64, i % 2 ? 0 : 200, caps[i % 4],
                   i % 3 ? 1 : 8, 400 + i);
        for (uint64_t budget = 0; budget < 40000; budget += 13000) {
            struct hri_select_out out;
            step_both(budget, 0, NULL, &out);
            check_output(2e-3);
        }
        world_free();
    }
}

/* Logits of hundreds, of both signs: the largest is far above or below what the summary says. */
static void test_peaked(void **state)
{
    (void)state;
    static const double sizes[] = {3, 8, 15, 30};
    for (uint32_t i = 0; i < 24; i++) {
        world_make(recipes[i % 6], 700, 1 + i % 3, 64, 64, i % 2 ? 0 : 100, 0, sizes[i % 4],
                   500 + i);
        for (uint64_t budget = 0; budget < 20000; budget += 6500) {
            struct hri_select_out out;
            step_both(budget, 0, NULL, &out);
            check_output(5e-3);
            check_rows(budget, &out);
        }
        world_free();
    }
}

static void places_fill(uint32_t kind, uint64_t seed)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, seed);
    uint32_t n = world.b.head->n_blocks * world.b.head->parts;
    assert_true(n <= sizeof world.place);
    for (uint32_t i = 0; i < n; i++)
        world.place[i] = kind < 3 ? (uint8_t)kind : (uint8_t)hri_rng_below(&rng, 3);
}

static void test_places(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 24; i++) {
        world_make(recipes[i % 6], 900, 1 + i % 4, dims[i % 3].dk, dims[i % 3].dv, i % 2 ? 0 : 256,
                   0, i % 3 ? 1 : 4, 600 + i);
        places_fill(i % 4, i);
        for (uint64_t budget = 0; budget < 100000; budget += 24000) {
            struct hri_select_out out;
            uint64_t moved = step_both(budget, 0, world.place, &out);
            uint64_t reused = 0;
            for (uint32_t j = 0; j < out.n_items; j++)
                if (world.place[out.items[j]] == HRI_PLACE_FRAME)
                    reused += (uint64_t)hri_index_item_rows(world.b.head, out.items[j]) *
                              (world.b.options.k_dim + world.b.options.v_dim);
            if (moved > budget || reused > 2 * budget)
                say("more than the budget");
            check_output(2e-3);
        }
        world_free();
    }
}

/* Parts in frames cost nothing that moves: rows that nothing is left for do not keep them from being used. */
static void test_frames_are_used(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 6; i++) {
        struct hri_select_out out;
        world_make(recipes[i], 2400, 2, 64, 64, 0, 0, 1, 700 + i);
        const struct hri_index_head *head = world.b.head;
        for (uint32_t item = 0; item < head->n_blocks * head->parts; item++)
            world.place[item] = item % 4 == 0 ? HRI_PLACE_FRAME : HRI_PLACE_HOST;
        uint64_t budget = 60 * 128;
        step_both(budget, 0, world.place, &out);
        uint64_t reused = 0;
        for (uint32_t j = 0; j < out.n_items; j++)
            reused += world.place[out.items[j]] == HRI_PLACE_FRAME
                          ? (uint64_t)hri_index_item_rows(head, out.items[j]) * 128
                          : 0;
        naive_worth();
        for (uint32_t item = 0; item < head->n_blocks * head->parts; item += 4) {
            uint32_t n = hri_index_item_rows(head, item);
            uint32_t row = first_of(item / head->parts) + item % head->parts * head->part_rows;
            if (n > 0 && naive.known[item / head->parts] == HRI_KNOWN_ROWS &&
                naive.worth[row] > 1e-30 && !naive.refined[row] && reused + n * 128 <= budget)
                say("a frame lies unused");
        }
        check_output(2e-3);
        world_free();
    }
}

static double predicted_mean(const struct hri_select_out *out)
{
    double sum = 0;
    for (uint32_t g = 0; g < world.b.options.g; g++)
        sum += (double)out->predicted[g];
    return sum / world.b.options.g;
}

static void test_tolerance(void **state)
{
    (void)state;
    static const double tolerances[] = {0.5, 0.05, 0.02, 0.005, 0.001};
    for (uint32_t i = 0; i < 12; i++) {
        uint64_t before = 0;
        world_make(recipes[i % 6], 1000, 1 + i % 3, 64, 64, 0, 0, i % 2 ? 1 : 3, 800 + i);
        if (i % 4 == 3)
            places_fill(3, i);
        const uint8_t *place = i % 4 == 3 ? world.place : NULL;
        for (uint32_t t = 0; t < 5; t++) {
            struct hri_select_out out;
            step_both(1000 * 4096, tolerances[t], place, &out);
            if (out.capped || (predicted_mean(&out) > tolerances[t] * 1.001 && t < 3))
                say("a tolerance was not reached though nothing was in the way");
            if (out.bytes < before)
                say("a smaller tolerance chose less");
            before = out.bytes;
            check_output(2e-3);
            step_both(256, tolerances[t], place, &out);
            if (out.bytes > 512)
                say("more than the budget");
            if (out.capped != (predicted_mean(&out) > tolerances[t]))
                say("capped is wrong");
            step_both(0, tolerances[t], place, &out);
            assert_int_equal(out.bytes, 0);
        }
        world_free();
    }
}

/* The output where all that was chosen is late: as if it had not been chosen. */
static void late_output(const struct hri_select_in *in, const struct hri_select_out *out)
{
    const struct hri_index_head *head = world.b.head;
    for (uint32_t b = 0; b < head->n_blocks; b++)
        naive.known[b] = (uint8_t)hri_ladder_known(head, in, b);
    corrections_get(in);
    memset(naive.refined, 0, sizeof naive.refined);
    naive_read(in);
    naive_total();
    naive_output();
    chosen_mark(out, in->place);
}

/* Chosen parts that never came stay at their rows' sketches: all rows are there once, and what they leave of the error is known. */
static void test_late(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        world_make(recipes[i % 6], 900, 1 + i % 3, 64, 64, 0, i % 4 == 3 ? 10 : 0, i % 3 ? 1 : 20,
                   900 + i);
        const struct hri_index_options *o = &world.b.options;
        places_fill(HRI_PLACE_FILE, 0);
        near_attend(&naive.near, NEAR);
        near_attend(&result, NEAR);
        struct hri_select_in in = question();
        in.near = &naive.near.part;
        in.place = world.place;
        in.cell_bytes = 4096;
        in.budget_bytes = 5 * 4096;
        struct hri_select_out out = {.items = world.b.items,
                                     .items_max = world.b.n,
                                     .rows = world.b.rows,
                                     .rows_max = world.b.n};
        uint32_t estimated;
        assert_ok(hri_index_select(world.b.head, &in, &out));
        assert_int_equal(out.n_rows, 0);
        assert_true(out.n_items > 0);
        hri_index_estimate(world.b.head, &in, &out, &result.part, &estimated);
        assert_int_equal(estimated, hri_index_items(world.b.head) - out.n_items);
        float error[HR_GROUP_MAX];
        hri_index_estimate_items(world.b.head, &in, out.items, out.n_items, &result.part, error);
        test_part_finish(&result, o->g, o->v_dim);
        for (uint32_t j = 0; j < o->g * o->v_dim; j++)
            if (!isfinite(result.out[j]))
                say("late parts spoil the output");
        late_output(&in, &out);
        check_output(i % 3 ? 2e-3 : 5e-3);
        double left = 0, naive_left = 0;
        naive_worth();
        for (uint32_t j = 0; j < world.b.n; j++)
            naive_left += naive.refined[j] ? naive.plain_worth[j] : 0;
        for (uint32_t g = 0; g < o->g; g++)
            left += (double)error[g] * (double)error[g];
        if (!(fabs(left - naive_left) <= 0.02 * naive_left))
            say("the error of late parts is wrong");
        world_free();
    }
}

/* Nothing may depend on what the scratch held before: not even in a head that lost blocks. */
/* Where blocks stay unread, audits bring the sum of their weights nearer to what their sketches would have said, or leave it near. */
static void test_audits(void **state)
{
    double before = 0, after = 0, share = 0;
    uint32_t n = 0;
    (void)state;
    for (uint32_t seed = 0; seed < 24; seed++) {
        struct hri_select_out out;
        world_make("headrace:sketch=2,block=4", 2800, 2, 64, 64, 700, 0, 1, 900 + seed);
        step_both(20 * 128, 0, NULL, &out);
        for (uint32_t g = 0; g < world.b.options.g; g++) {
            double level0 = 0, sketches = 0;
            for (uint32_t b = 0; b < world.b.head->n_blocks; b++) {
                if (naive.known[b] != HRI_KNOWN_SUMMARY)
                    continue;
                level0 += exp(naive.mass[g][b] - naive.top[g]);
                for (uint32_t i = first_of(b); i < first_of(b + 1); i++)
                    sketches += exp(naive.sketch[g][i] - naive.top[g]);
            }
            if (!(sketches > 0))
                continue;
            before += fabs(level0 - sketches) / naive.total[g];
            after += fabs(naive.corrected[g] * level0 - sketches) / naive.total[g];
            share += sketches / naive.total[g];
            n++;
        }
        world_free();
    }
    print_message("%u heads: %.4f unread on the mean, off by %.4f without audits, %.4f with them\n",
                  n, share / n, before / n, after / n);
    assert_true(n >= 12);
    assert_true(after <= before);
}

static void test_scratch(void **state)
{
    static struct test_part again;
    (void)state;
    for (uint32_t i = 0; i < 12; i++) {
        struct hri_select_out out;
        world_make(recipes[i % 6], 1500, 2, 64, 64, 500, i % 2 ? 20 : 0, 1, 1000 + i);
        for (uint32_t j = 0; j < 2; j++) {
            if (j == 1) {
                hri_index_truncate(world.b.head, world.b.head->n_blocks * (i % 3 + 1) / 4);
                world.b.n = hri_index_rows(world.b.head);
            }
            for (int fill = 0; fill < 5; fill++) {
                memset(world.b.scratch, fill < 4 ? fill : 255,
                       hri_index_step_scratch_bytes(&world.b.options));
                step_both(3000, 0, NULL, &out);
                check_output(2e-3);
                if (fill == 0)
                    memcpy(&again, &result, sizeof again);
                else if (memcmp(again.out, result.out, 2 * 64 * sizeof(float)) != 0)
                    say("the output depends on old scratch");
            }
        }
        world_free();
    }
}

/* Values and keys of extreme sizes, and rows that are all the same. */
static void test_absurd_rows(void **state)
{
    (void)state;
    static const float sizes[] = {0, 1e-20f, 1e-6f, 1e4f, 1e12f};
    for (uint32_t i = 0; i < 60; i++) {
        enum { N = 400, D = 32 };
        static struct test_part part;
        struct hri_rng rng;
        struct hri_select_out out;
        hri_rng_seed(&rng, i);
        struct synth rows = synth_make(&rng, N, D, D);
        float *q = synth_queries(&rng, &rows, 20, 2);
        for (uint32_t j = 0; j < N * D; j++) {
            rows.k[j] = i % 4 == 3 ? rows.k[j % D] : rows.k[j] * sizes[i % 5];
            rows.v[j] = i / 5 % 4 == 3 ? rows.v[j % D] : rows.v[j] * sizes[i / 5 % 4];
        }
        for (uint32_t j = 0; j < 40 * D; j++)
            q[j] /= sizes[i % 5] > 1 && i % 4 != 3 ? sizes[i % 5] : 1;
        struct bench_head b;
        struct bench_geometry geometry = {
            .recipe = recipes[i % 6], .g = 2, .k_dim = D, .v_dim = D, .horizon_tokens = 64};
        bench_head_init(&b, &geometry, rows.k, rows.v, N, q, 20, 0, N, i % 2 ? 0 : 90);
        for (uint64_t budget = 0; budget <= N * 64; budget += 8 * 64) {
            test_part_clear(&part, 2, D);
            bench_attend(q, 2, D, D, rows.k, rows.v, 3, 0, &part.part);
            bench_head_step(&b, q, budget, 0, NULL, &part.part, &out);
            test_part_finish(&part, 2, D);
            for (uint32_t j = 0; j < 2 * D; j++)
                if (!isfinite(part.out[j]))
                    fail_msg("case %u, budget %llu: not finite", i, (unsigned long long)budget);
            for (uint32_t g = 0; g < 2; g++)
                if (isnan(out.predicted[g]))
                    fail_msg("case %u: predicted error", i);
            assert_true(out.bytes <= budget);
        }
        bench_head_fini(&b);
        synth_free(&rows);
        free(q);
    }
}

/* Random shapes, recipes, places and budgets. HEADRACE_TEST_SEED repeats one. */
static void test_random(void **state)
{
    static const uint32_t blocks[] = {4, 7, 18, 36, 48, 64};
    static const double sizes[] = {0, 0.3, 1, 3, 10};
    uint64_t base = test_seed(0);
    (void)state;
    for (uint32_t i = 0; i < (base ? 1 : 40); i++) {
        struct hri_rng rng;
        uint64_t seed = base ? base : 77000 + i;
        hri_rng_seed(&rng, seed);
        char recipe[64];
        uint32_t dk = 8 * (1 + (uint32_t)hri_rng_below(&rng, 16)),
                 dv = 8 * (1 + (uint32_t)hri_rng_below(&rng, 16)),
                 n = 1 + (uint32_t)hri_rng_below(&rng, i % 8 ? 500 : 2500);
        snprintf(recipe, sizeof recipe, "headrace:sketch=%d,block=%u",
                 1 + (int)hri_rng_below(&rng, 3), blocks[hri_rng_below(&rng, 6)]);
        world_make(recipe, n, 1 + (uint32_t)hri_rng_below(&rng, 6), dk, dv,
                   hri_rng_below(&rng, 2) ? 0 : 1 + (uint32_t)hri_rng_below(&rng, n),
                   hri_rng_below(&rng, 3) ? 0 : 10, sizes[hri_rng_below(&rng, 5)], seed);
        for (int j = 0; j < 3; j++) {
            struct hri_select_out out;
            uint32_t kind = (uint32_t)hri_rng_below(&rng, 5);
            uint64_t budget = hri_rng_below(&rng, (uint64_t)n * (dk + dv) + 2);
            double tolerance = hri_rng_below(&rng, 4) ? 0 : 0.1 * hri_rng_f64(&rng);
            places_fill(kind, seed);
            if (step_both(budget, tolerance, kind == 4 ? NULL : world.place, &out) > budget)
                say("more than the budget");
            check_output(3e-3);
            if ((kind == 4 || kind == HRI_PLACE_HOST) && tolerance <= 0)
                check_rows(budget, &out);
        }
        world_free();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_refined),
        cmocka_unit_test(test_rows_within_budget),
        cmocka_unit_test(test_everything_refined),
        cmocka_unit_test(test_soft_cap),
        cmocka_unit_test(test_peaked),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_frames_are_used),
        cmocka_unit_test(test_tolerance),
        cmocka_unit_test(test_late),
        cmocka_unit_test(test_audits),
        cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_absurd_rows),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
