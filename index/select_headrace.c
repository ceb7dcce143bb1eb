/* Headrace, level 0 and level 2 (docs/algorithm.md): blocks in the metric of the queries,
 * second-order summaries of everything, int8 rows where they remove most expected error per byte.
 */
#include "base/half.h"
#include "index/families.h"
#include "index/group.h"
#include "index/head.h"
#include "index/job.h"
#include "index/ladder.h"
#include "index/params.h"
#include "index/passes.h"
#include "index/importance.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

/* Blocks with a larger share of some head's attention enter the output that errors are measured
 * against. */
#define OUTPUT_SHARE_MIN 0.002f

static uint64_t device_bytes(const struct hri_index_options *o)
{
    return hri_summary_bytes(o, o->blocks_max) + hri_shape_bytes(o, o->blocks_max) +
           hri_sketch_bytes(o) + hri_families_bytes(o);
}

static uint64_t held_bytes(const struct hri_index_head *head, uint32_t n_blocks)
{
    return hri_summary_bytes(&head->options, n_blocks) + hri_shape_bytes(&head->options, n_blocks) +
           hri_families_held(head);
}

static hr_status_t create(struct hri_index_head *head)
{
    hr_status_t status = hri_summary_create(head);
    if (status != HR_OK)
        return status;
    status = hri_shape_create(head);
    if (status != HR_OK)
        goto err_summary;
    status = hri_points_init(
        &head->points, head->options.scratch, head->options.k_dim, head->options.v_dim,
        hri_sketch_bits(&head->options) > 0 ? HRI_QSTATS_RIDGE_SKETCH : HRI_QSTATS_RIDGE);
    if (status != HR_OK)
        goto err_shape;
    status = hri_sketch_create(head);
    if (status != HR_OK)
        goto err_points;
    status = hri_families_create(head);
    if (status != HR_OK)
        goto err_sketch;
    return HR_OK;

err_sketch:
    hri_sketch_destroy(head);
err_points:
    hri_points_fini(&head->points, head->options.scratch);
err_shape:
    hri_shape_destroy(head);
err_summary:
    hri_summary_destroy(head);
    return status;
}

static void destroy(struct hri_index_head *head)
{
    hri_families_destroy(head);
    hri_sketch_destroy(head);
    hri_points_fini(&head->points, head->options.scratch);
    hri_shape_destroy(head);
    hri_summary_destroy(head);
}

/* Workspace: points + k-means while grouping, residuals while summarising. */
static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t points_bytes(const struct hri_index_options *o, uint32_t n)
{
    return hri_round_up((uint64_t)n * hri_points_dims(o->k_dim, o->v_dim) * sizeof(float), 64);
}

static size_t weights_bytes(uint32_t n)
{
    return hri_round_up((uint64_t)n * sizeof(float), 64);
}

static size_t workspace_bytes(const struct hri_index_options *o, uint32_t n)
{
    uint32_t dims = hri_points_dims(o->k_dim, o->v_dim);
    size_t grouping = hri_group_kmeans_work_bytes(n, dims, hri_index_target_rows_least(&o->recipe));
    size_t centers = (o->k_dim + o->v_dim) * sizeof(float);
    size_t fitting =
        larger(hri_points_work_bytes(o->k_dim, o->v_dim), hri_importance_work_bytes(o->k_dim, n));
    size_t segment =
        weights_bytes(n) + larger(points_bytes(o, n) + larger(grouping, fitting),
                                  larger(larger(hri_shape_work_bytes(o), centers),
                                         hri_sketch_bits(o) ? hri_sketch_work_bytes(o, n) : 0));
    return larger(segment, hri_families_wanted(o) ? hri_families_work_bytes(o) : 0);
}

/* The last position at which a query for rows that end at `position` is expected. */
static uint32_t last_position(const struct hri_index_options *o, uint32_t position)
{
    uint32_t last = position + o->horizon_tokens;
    if (o->positions_max > position && o->positions_max - 1 < last)
        last = o->positions_max - 1;
    return last;
}

/* Behind the weights and points. */
static void *rest_of(const struct hri_index_options *o, const struct hri_segment *segment)
{
    return (char *)segment->workspace + weights_bytes(segment->n) + points_bytes(o, segment->n);
}

static hr_status_t fit(struct hri_index_head *head, const struct hri_segment *segment)
{
    uint32_t position = segment->position_end, last = last_position(&head->options, position);
    return hri_points_fit(&head->points, &head->stats, segment->k, segment->v, segment->n, position,
                          last - position, rest_of(&head->options, segment));
}

static struct hri_group_in group_in(const struct hri_index_head *head,
                                    const struct hri_segment *segment)
{
    return (struct hri_group_in){
        .kernels = head->options.kernels,
        .y = (const float *)((const char *)segment->workspace + weights_bytes(segment->n)),
        .weight = segment->weight,
        .n = segment->n,
        .d = head->points.dims,
        .target = segment->target,
        .cap = segment->cap,
        .iterations = (uint32_t)hri_recipe_value(&head->options.recipe, "iterations")};
}

static hr_status_t group_begin(struct hri_index_head *head, struct hri_segment *segment)
{
    const struct hri_index_options *o = &head->options;
    float *weight = segment->workspace;
    uint32_t position = segment->position_end, last = last_position(o, position);
    hr_status_t status = hri_families_grow(head, segment->workspace); /* before it is used */
    if (status == HR_OK)
        status = fit(head, segment);
    if (status != HR_OK)
        return status;
    bool weighted = hri_importance(&head->stats, position, last, segment->k, segment->n,
                                   o->soft_cap, rest_of(o, segment), weight);
    segment->weight = weighted ? weight : NULL;
    return HR_OK;
}

/* Points and the tables of k-means; k centres. */
static void group_job(struct hri_index_head *head, const struct hri_segment *segment,
                      enum hri_index_job_kind kind, uint32_t k, struct hri_index_job *job)
{
    void *rest = rest_of(&head->options, segment);
    struct hri_group_in in = group_in(head, segment);
    struct hri_group_tables t = hri_group_tables(in.n, in.d, in.target, rest);
    job->kind = kind;
    job->points = &head->points;
    job->y = (float *)((char *)segment->workspace + weights_bytes(segment->n));
    job->centroids = t.centroids;
    job->counts = t.counts;
    job->nearest = t.nearest;
    job->k = k;
    job->iterations = in.iterations;
    job->work = rest;
}

static hr_status_t group_turn(struct hri_index_head *head, struct hri_segment *segment,
                              uint32_t turn, struct hri_index_job *job)
{
    void *rest = rest_of(&head->options, segment);
    struct hri_group_in in = group_in(head, segment);
    uint32_t k = hri_group_clusters_begin(in.n, in.target);
    if (turn == 0) {
        hr_status_t status = group_begin(head, segment);
        if (status == HR_OK && k > 0)
            group_job(head, segment, HRI_INDEX_JOB_CLUSTER, k, job);
        else if (status == HR_OK)
            segment->n_blocks =
                hri_group_consecutive(in.n, in.target, segment->order, segment->block_rows);
        return status;
    }
    segment->n_blocks = turn == 1 ? hri_group_cut(&in, k, rest, segment->order)
                                  : hri_group_move(&in, segment->n_blocks, rest, segment->order);
    if (turn > HRI_GROUP_MOVES) {
        hri_group_end(&in, segment->n_blocks, rest, segment->order, segment->block_rows);
        return HR_OK;
    }
    hri_group_centre(&in, segment->n_blocks, rest, segment->order);
    group_job(head, segment, HRI_INDEX_JOB_NEAREST, segment->n_blocks, job);
    return HR_OK;
}

/* Behind the weights, which stay. */
static void *behind_weights(const struct hri_segment *segment)
{
    return (char *)segment->workspace + weights_bytes(segment->n);
}

static hr_status_t summarise_turn(struct hri_index_head *head, struct hri_segment *segment,
                                  uint32_t turn, struct hri_index_job *job)
{
    if (turn > 0)
        return hri_shape_refresh(head, head->points.metric, behind_weights(segment));
    if (!head->summary.has_mean)
        hri_summary_set_mean(head, segment->k, segment->n);
    job->kind = HRI_INDEX_JOB_PACK;
    job->points = &head->points;
    return HR_OK;
}

static hr_status_t sketch_turn(struct hri_index_head *head, struct hri_segment *segment,
                               uint32_t turn, struct hri_index_job *job)
{
    struct hri_segment s = *segment;
    s.workspace = behind_weights(segment);
    if (!head->sketch)
        return HR_OK;
    if (turn == 0)
        return hri_sketch_begin(head, &s, job);
    hri_sketch_end(head, &s);
    return HR_OK;
}

static void job_run(const struct hri_index_job *job)
{
    struct hri_index_head *head = job->head;
    const struct hri_kernels *kernels = head->options.kernels;
    struct hri_segment s = *job->segment;
    struct hri_group_in in = group_in(head, &s);
    s.workspace = behind_weights(job->segment);
    switch (job->kind) {
    case HRI_INDEX_JOB_CLUSTER:
        hri_points_make(job->points, kernels, s.k, s.v, s.n, job->work, job->y);
        hri_group_cluster(&in, job->k, job->work);
        break;
    case HRI_INDEX_JOB_NEAREST:
        kernels->nearest(job->y, s.n, job->centroids, job->k, in.d, job->nearest, NULL);
        break;
    case HRI_INDEX_JOB_PACK:
        hri_summary_add(head, &s);
        hri_shape_take(head, s.k, s.v, s.order, s.block_rows, s.n_blocks, job->points->metric,
                       s.workspace);
        break;
    case HRI_INDEX_JOB_SKETCH:
        hri_sketch_encode(job, &s);
        break;
    case HRI_INDEX_JOB_NONE:
        break;
    }
}

void hri_index_job_packed(const struct hri_index_job *job, const struct hri_index_packed *p)
{
    hri_summary_take(job->head, job->segment->n_blocks, p->k_codes, p->k_scale, p->v_codes,
                     p->v_scale);
    hri_shape_take_sums(job->head, job->segment, p->square_sum, p->square_most, p->joint);
}

void hri_index_job_sketched(const struct hri_index_job *job,
                            const struct hri_index_sketched *sketched)
{
    struct hri_segment s = *job->segment;
    s.workspace = behind_weights(job->segment);
    hri_sketch_take(job, &s, sketched);
}

/* What is left of the expected squared error, and the blocks' parts of it, per query head. */
struct doubt {
    const struct hri_index_head *head;
    const struct hri_step *step;
    float left[HR_GROUP_MAX];   /* sum over unrefined blocks of p^2 (exp(variance) - 1) / n */
    float factor[HR_GROUP_MAX]; /* from that to the square of the relative error */
    float drift[HR_GROUP_MAX];  /* sum over unrefined blocks of p hri_drift(variance) */
    float common[HR_GROUP_MAX]; /* from its square to that of the relative error */
    double tolerance;
};

/* p^2 (exp(variance) - 1 + floor) / n */
static inline float doubt_of(float share, float variance, float rows)
{
    return share * share * hri_doubt_rate(variance, rows);
}

/* The block is refined: it leaves nothing. */
static void block_refine(struct doubt *d, uint32_t g, uint32_t b)
{
    const struct hri_step *step = d->step;
    float share = step->weight[g * step->stride + b] / step->total[g];
    float variance = step->variance[g] * hri_block_spread(d->head, b);
    d->left[g] -= doubt_of(share, variance, d->head->block_rows[b]);
    d->drift[g] -= share * hri_drift(variance);
}

static float predicted_error(const struct doubt *d, uint32_t g)
{
    float drift = hri_larger(d->drift[g], 0);
    return sqrtf(hri_larger(d->left[g], 0) * d->factor[g] +
                 hri_larger(drift * drift * d->common[g], 0));
}

static bool refined_enough(void *context, uint32_t block)
{
    struct doubt *d = context;
    float sum = 0;
    for (uint32_t g = 0; g < d->head->options.g; g++) {
        block_refine(d, g, block);
        sum += predicted_error(d, g);
    }
    return d->tolerance > 0 && sum / (float)d->head->options.g <= d->tolerance;
}

#define OUTPUT_CHUNK 64u

/* The output of query head g as far as near and the heavy blocks make it, [v_dim]; the rest is
 * taken at the mean value. */
static void rough_output(const struct hri_index_head *head, const struct hri_select_in *in,
                         const struct hri_step *step, uint32_t g, float *output)
{
    uint32_t dv = head->options.v_dim;
    const float *weight = step->weight + g * step->stride;
    float scale = in->near && in->near->l[g] > 0 ? expf(in->near->m[g] - step->top[g]) : 0;
    float least = OUTPUT_SHARE_MIN * step->total[g], rest;
    for (uint32_t j = 0; j < dv; j++)
        output[j] = scale > 0 ? scale * in->near->o[(size_t)g * dv + j] : 0;
    rest = hri_pass_sum(weight, head->n_blocks);
    for (uint32_t first = 0; first < head->n_blocks; first += OUTPUT_CHUNK) {
        uint32_t end =
            head->n_blocks - first < OUTPUT_CHUNK ? head->n_blocks : first + OUTPUT_CHUNK;
        if (head->options.kernels->max(weight + first, end - first) < least)
            continue;
        for (uint32_t b = first; b < end; b++)
            if (weight[b] >= least) {
                hri_pass_value_add(head->summary.v_codes + (size_t)b * dv,
                                   weight[b] * head->summary.v_scale[b], output, dv);
                rest -= weight[b];
            }
    }
    rest = hri_larger(rest, 0);
    for (uint32_t j = 0; j < dv; j++)
        output[j] = (output[j] + rest * head->shape.v_mean[j]) / step->total[g];
}

static void score(const struct hri_index_head *head, const struct hri_select_in *in,
                  struct hri_step *step)
{
    const struct hri_index_options *o = &head->options;
    hri_summary_dots(head, in->q, step->dots, step->stride);
    hri_shape_query(head, in->q, o->g, step->variance, step->shift);
}

static void lift_tail(const struct hri_index_head *head, struct hri_step *step, uint32_t b)
{
    uint8_t rows = head->block_rows[b];
    float peak = head->shape.peak[b] / 16.0f, log_rows = head->log_rows[rows];
    for (uint32_t g = 0; g < head->options.g; g++) {
        float share = step->weight[g * step->stride + b] * (1 / step->total[g]);
        float variance = step->variance[g] * hri_f32_from_bf16(head->shape.spread[b]);
        if (!hri_stands_out(variance, peak, log_rows))
            continue;
        float factor = hri_tail_factor(variance, peak, log_rows);
        if (factor > 1)
            step->ranked[b].key += (factor - 1) * doubt_of(share, variance, rows) / rows;
    }
}

/* Most blocks have no row that stands out so far, not even for the query that spreads logits most. */
static void lift_tails(const struct hri_index_head *head, struct hri_step *step)
{
    float largest = 0;
    for (uint32_t g = 0; g < head->options.g; g++)
        largest = hri_larger(largest, step->variance[g]);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        float variance = largest * hri_f32_from_bf16(head->shape.spread[b]);
        float peak = head->shape.peak[b] / 16.0f, log_rows = head->log_rows[head->block_rows[b]];
        if (hri_stands_out(variance, peak, log_rows))
            lift_tail(head, step, b);
    }
}

static void rank(const struct hri_index_head *head, struct hri_step *step, struct doubt *doubt)
{
    const uint16_t *spread = head->shape.spread;
    const uint8_t *rows = head->block_rows;
    uint32_t n = head->n_blocks;
    float before = 0;
    memset(step->work, 0, n * sizeof(float));
    for (uint32_t g = 0; g < head->options.g; g++) {
        const float *weight = step->weight + g * step->stride;
        float inverse = 1 / step->total[g], variance = step->variance[g];
        for (uint32_t b = 0; b < n; b++)
            step->work[b] +=
                doubt_of(weight[b] * inverse, variance * hri_f32_from_bf16(spread[b]), rows[b]);
        float after = hri_pass_sum(step->work, n);
        doubt->left[g] = after - before;
        doubt->drift[g] =
            HRI_DRIFT * inverse * hri_pass_drift(weight, spread, variance, HRI_VARIANCE_MAX, n);
        before = after;
    }
    for (uint32_t b = 0; b < n; b++)
        step->ranked[b] = (struct hri_ranked){step->work[b] / rows[b], b};
    lift_tails(head, step);
}

static void level0_rates(const struct hri_index_head *head, const struct hri_step *step, uint32_t g,
                         float *rate, float *lifted)
{
    const uint16_t *spread = head->shape.spread;
    const uint8_t *rows = head->block_rows;
    float variance = step->variance[g];
    hri_pass_rates(spread, rows, variance, rate, head->n_blocks);
    memcpy(lifted, rate, head->n_blocks * sizeof *lifted);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        float peak = head->shape.peak[b] / 16.0f, log_rows = head->log_rows[rows[b]];
        float along = variance * hri_f32_from_bf16(spread[b]);
        if (hri_stands_out(along, peak, log_rows))
            lifted[b] *= hri_tail_factor(along, peak, log_rows);
    }
}

static void output_measure(const struct hri_index_head *head, const struct hri_select_in *in,
                           const struct hri_step *step, uint32_t g, const float *shifted,
                           float *far_out, float *common_out, float *size_out)
{
    float output[HR_HEAD_DIM_MAX], scale = 1 / step->total[g];
    double size = 0;
    rough_output(head, in, step, g, output);
    for (uint32_t j = 0; j < head->options.v_dim; j++)
        output[j] += shifted[j] * scale;
    for (uint32_t j = 0; j < head->options.v_dim; j++)
        size += (double)output[j] * output[j];
    *size_out = (float)size;
    *far_out = hri_error_factor(head, output, common_out) * (float)size;
    *common_out *= (float)size;
}

/* With sketches level 0 only says which of them to read. */
static hr_status_t select_ladder(struct hri_index_head *head, const struct hri_select_in *in,
                                 struct hri_step *step, struct hri_select_out *out)
{
    struct hri_ladder_in ladder = {
        .in = in, .step = step, .rates = level0_rates, .output = output_measure};
    return hri_ladder_select(head, &ladder, out);
}

/* Blocks by their summaries, whose dots, variances and shifts the step has. left, drift [G]: doubts and drifts of what is not among them, or
 * NULL. */
static void choose(const struct hri_index_head *head, const struct hri_select_in *in,
                   struct hri_step step, const float *left, const float *drift,
                   struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct doubt doubt = {.head = head, .step = &step, .tolerance = in->tolerance};
    float output[HR_HEAD_DIM_MAX], mean = 0;
    hri_step_weigh(head, in, &step);
    rank(head, &step, &doubt);
    for (uint32_t g = 0; g < o->g; g++) {
        doubt.left[g] += left ? left[g] : 0;
        doubt.drift[g] += drift ? drift[g] : 0;
        rough_output(head, in, &step, g, output);
        doubt.factor[g] = hri_error_factor(head, output, &doubt.common[g]);
        mean += predicted_error(&doubt, g) / (float)o->g;
    }
    bool reached = in->tolerance > 0 && mean <= in->tolerance;
    if (!reached) {
        double reuse = hri_recipe_value(&o->recipe, "reuse");
        struct hri_take take = {.ranked = step.ranked,
                                .n = head->n_blocks,
                                .budget_bytes = in->budget_bytes,
                                .reuse_bytes = (uint64_t)(reuse * (double)in->budget_bytes),
                                .enough = refined_enough,
                                .context = &doubt};
        reached = hri_take_blocks(head, in, &take, out);
    }
    out->capped = in->tolerance > 0 && !reached && out->n_items < head->n_blocks;
    for (uint32_t g = 0; g < o->g; g++)
        out->predicted[g] = predicted_error(&doubt, g);
}

static hr_status_t select_blocks(struct hri_index_head *head, const struct hri_select_in *in,
                                 struct hri_select_out *out)
{
    struct hri_seen *seen = hri_families_look(head, in);
    if (seen) {
        choose(&seen->head, &seen->in, hri_step_at(&seen->head, &seen->in), seen->left, seen->drift,
               out);
        seen->n_chosen = out->n_items;
        out->bytes_summaries = hri_families_bytes_seen(seen);
        memcpy(seen->chosen, out->items, out->n_items * sizeof *out->items);
        for (uint32_t i = 0; i < out->n_items; i++)
            out->items[i] = seen->block[out->items[i]];
        return HR_OK;
    }
    struct hri_step step = hri_step_at(head, in);
    score(head, in, &step);
    if (head->sketch) {
        hri_step_weigh(head, in, &step);
        return select_ladder(head, in, &step, out);
    }
    choose(head, in, step, NULL, NULL, out);
    return HR_OK;
}

/* Of what was seen and not chosen; closed families are there already. */
static uint32_t estimate_seen(struct hri_seen *seen, struct hri_partial *part)
{
    struct hri_step step = hri_step_at(&seen->head, &seen->in);
    memset(step.mark, 1, seen->head.n_blocks);
    for (uint32_t i = 0; i < seen->n_chosen; i++)
        step.mark[seen->chosen[i]] = 0;
    hri_partial_merge(part, &seen->closed, seen->head.options.g, seen->head.options.v_dim);
    return hri_step_estimate_marked(&seen->head, &step, part) + seen->n_closed;
}

/* The step's numbers with dots by the blocks' own numbers, where only some were seen. */
static struct hri_step step_of(const struct hri_index_head *head, const struct hri_select_in *in)
{
    struct hri_seen *seen = hri_families_seen_last(head, in);
    if (!seen)
        return hri_step_at(head, in);
    struct hri_step step = hri_step_at(&seen->head, &seen->in);
    step.stride = hri_lanes_up(head->n_blocks);
    step.dots = in->scratch;
    return step;
}

static uint32_t estimate(struct hri_index_head *head, const struct hri_select_in *in,
                         const struct hri_select_out *out, const uint32_t *blocks, uint32_t n,
                         struct hri_partial *part)
{
    struct hri_seen *seen = hri_families_seen_last(head, in);
    struct hri_step step = step_of(head, in);
    if (!out) {
        hri_step_estimate_listed(head, &step, blocks, n, part);
        return n;
    }
    if (seen)
        return estimate_seen(seen, part);
    if (head->sketch)
        return hri_ladder_estimate(head, in, &step, out, part);
    memset(step.mark, 1, head->n_blocks);
    for (uint32_t i = 0; i < out->n_items; i++)
        step.mark[out->items[i]] = 0;
    return hri_step_estimate_marked(head, &step, part);
}

/* Without sketches: what level 0 leaves of these blocks, seen from the output as far as it is there. */
static void late(struct hri_index_head *head, const struct hri_select_in *in, const uint32_t *items,
                 uint32_t n, struct hri_partial *part, float *error_out)
{
    const struct hri_index_options *o = &head->options;
    struct hri_step step = step_of(head, in);
    if (head->sketch) {
        hri_ladder_late(head, in, &step, items, n, part, error_out);
        return;
    }
    hri_step_estimate_listed(head, &step, items, n, part);
    for (uint32_t g = 0; g < o->g; g++) {
        float output[HR_HEAD_DIM_MAX], left = 0, drift = 0, common;
        for (uint32_t j = 0; j < o->v_dim; j++)
            output[j] = part->o[(size_t)g * o->v_dim + j] / part->l[g];
        for (uint32_t i = 0; i < n; i++) {
            uint32_t b = items[i] / head->parts;
            float share = expf(hri_step_log_mass(head, &step, g, b) - step.top[g]) / step.total[g];
            float variance = step.variance[g] * hri_block_spread(head, b);
            left += doubt_of(share, variance, head->block_rows[b]);
            drift += share * hri_drift(variance);
        }
        left *= hri_error_factor(head, output, &common);
        error_out[g] = sqrtf(left + drift * drift * common);
    }
}

static size_t step_bytes(const struct hri_index_options *o)
{
    return hri_families_wanted(o) ? hri_families_step_bytes(o)
                                  : hri_round_up(hri_step_bytes(o), 64) + hri_ladder_bytes(o);
}

static uint64_t host_bytes(const struct hri_index_head *head)
{
    return head->sketch ? hri_rests_held(head) + hri_sketch_held_host(head) : 0;
}

/* Beside the head's own tables. */
static void image(struct hri_index_head *head, struct hri_image *im)
{
    hri_families_image(head, im);
}

static const struct hri_selector_ops ops = {
    .device_bytes = device_bytes,
    .held_bytes = held_bytes,
    .create = create,
    .destroy = destroy,
    .workspace_bytes = workspace_bytes,
    .fit = fit,
    .group_turn = group_turn,
    .summarise_turn = summarise_turn,
    .sketch_turn = sketch_turn,
    .job_run = job_run,
    .scratch_bytes = step_bytes,
    .select = select_blocks,
    .estimate = estimate,
    .image = image,
    .host_bytes = host_bytes,
    .late = late,
};

static const struct hri_param params_headrace[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"block", "mean tokens per block [with sketches 48, in small segments 16; without 36]",
     "docs/algorithm.md", 0, 4, 64},
    {"sketch", "mean bits per key dimension of the sketch; 0: summaries only", "docs/algorithm.md",
     2, 0, 3},
    {"iterations", "k-means iterations", "docs/algorithm.md", 3, 1, 50},
    {"reuse", "blocks that lie in frames and are refined beyond the budget, as a share of it",
     "docs/algorithm.md", 1, 0, 8},
    {"share",
     "with sketches, the budget is shared by what rows were worth to the last token: 0 equally, 1 "
     "between the heads of a "
     "layer, 2 between all heads",
     "docs/algorithm.md", 2, 0, 2},
    {"rests",
     "with sketches of 2 or 3 bits and all rows in host memory, 2 bits per dimension of what a "
     "row's "
     "sketch leaves of its value, read where they are worth more than the row: 0 no, 1 yes",
     "docs/algorithm.md", 1, 0, 1},
    {"sketch_host",
     "sketches' codes lie in host memory: what a step reads of them is moved, and is paid from its "
     "budget: 0 no, 1 yes",
     "docs/algorithm.md", 0, 0, 1},
    {"families",
     "without sketches, in long texts, families of blocks are scored first: 0 no, 1 yes",
     "docs/algorithm.md", 1, 0, 1},
    PARAM_END};

const struct hri_selector hri_selector_headrace = {
    .name = "headrace",
    .summary = "blocks in the metric of the queries, second-order summaries, int8 rows where they "
               "remove most error",
    .source = "docs/algorithm.md",
    .unit = HRI_UNIT_BLOCKS,
    .codec = HRI_CODEC_I8,
    .keeps_stats = true,
    .makes_ahead = true,
    .params = params_headrace,
    .ops = &ops,
};
