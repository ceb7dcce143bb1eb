/* The estimate of blocks from their summaries: mass and value at level 0 (docs/algorithm.md). */
#include "base/half.h"
#include "index/head.h"
#include "index/passes.h"

#include <math.h>
#include <string.h>

float hri_block_spread(const struct hri_index_head *head, uint32_t b)
{
    return head->shape.spread ? hri_f32_from_bf16(head->shape.spread[b]) : 0;
}

float hri_step_log_mass(const struct hri_index_head *head, const struct hri_step *step, uint32_t g,
                        uint32_t b)
{
    float logit = step->dots[g * step->stride + b], cap = head->options.soft_cap;
    float variance = step->variance[g] * hri_block_spread(head, b);
    if (cap > 0) { /* the cap bends the logits: their spread shrinks with its slope */
        float bent = tanhf(logit / cap), slope = 1 - bent * bent;
        logit = cap * bent;
        variance *= slope * slope;
    }
    return logit + fminf(0.5f * variance, HRI_HALF_VARIANCE_MAX) +
           head->log_rows[head->block_rows[b]];
}

float hri_error_factor(const struct hri_index_head *head, const float *output, float *common_out)
{
    double square = 0, far = 0;
    for (uint32_t j = 0; j < head->options.v_dim; j++) {
        double x = (double)output[j] - head->shape.v_mean[j];
        far += x * x;
        square += (double)output[j] * output[j];
    }
    *common_out = square > 0 ? (float)(far / square) : 0;
    return square > 0 ? (float)((far + head->shape.v_variance) / square) : 0;
}

/* x[b] = logit at the centre plus half the variance, for all blocks. */
static void log_weights(const struct hri_index_head *head, const struct hri_step *step, uint32_t g,
                        float *x)
{
    const uint16_t *spread = head->shape.spread;
    const float *dots = step->dots + g * step->stride;
    float half = 0.5f * step->variance[g];
    if (head->options.soft_cap > 0) {
        for (uint32_t b = 0; b < head->n_blocks; b++)
            x[b] = hri_step_log_mass(head, step, g, b) - head->log_rows[head->block_rows[b]];
        return;
    }
    if (spread)
        hri_pass_log_weights(dots, spread, half, HRI_HALF_VARIANCE_MAX, x, head->n_blocks);
    else
        memcpy(x, dots, head->n_blocks * sizeof *x);
}

void hri_step_weigh(const struct hri_index_head *head, const struct hri_select_in *in,
                    struct hri_step *step)
{
    const struct hri_kernels *kernels = head->options.kernels;
    for (uint32_t g = 0; g < head->options.g; g++) {
        float *weight = step->weight + g * step->stride;
        log_weights(head, step, g, weight);
        bool near = in->near && in->near->l[g] > 0;
        step->top[g] = kernels->max(weight, head->n_blocks);
        if (near && in->near->m[g] > step->top[g])
            step->top[g] = in->near->m[g]; /* else its mass could overflow */
        kernels->exp_sum(weight, step->top[g], weight, head->n_blocks);
        for (uint32_t b = 0; b < head->n_blocks; b++)
            weight[b] *= (float)head->block_rows[b];
        step->total[g] = hri_pass_sum(weight, head->n_blocks);
        if (near)
            step->total[g] += in->near->l[g] * expf(in->near->m[g] - step->top[g]);
    }
}

void hri_step_first_order(const struct hri_index_head *head, struct hri_step *step)
{
    memset(step->variance, 0, head->options.g * sizeof(float));
    memset(step->shift, 0, (size_t)head->options.g * head->options.v_dim * sizeof(float));
}

/* One partial over blocks: m = top, l and o as given. */
static void merge_sum(const struct hri_index_head *head, struct hri_step *step, float *mass,
                      struct hri_partial *part)
{
    struct hri_partial sum = {.m = step->top, .l = mass, .o = step->sum};
    hri_partial_merge(part, &sum, head->options.g, head->options.v_dim);
}

uint32_t hri_step_estimate_marked(const struct hri_index_head *head, struct hri_step *step,
                                  struct hri_partial *part)
{
    const struct hri_index_options *o = &head->options;
    uint32_t n = head->n_blocks, dv = o->v_dim, n_marked = 0;
    const uint16_t *spread = head->shape.spread;
    float mass[HR_GROUP_MAX], lean[HR_GROUP_MAX];
    for (uint32_t b = 0; b < n; b++)
        n_marked += step->mark[b];
    if (n_marked == 0)
        return 0;
    for (uint32_t g = 0; g < o->g; g++) {
        float *weight = step->weight + g * step->stride;
        for (uint32_t b = 0; b < n; b++)
            weight[b] *= (float)step->mark[b];
        mass[g] = hri_pass_sum(weight, n);
        lean[g] = spread ? hri_pass_lean(weight, spread, step->mark, 2, n) : 0;
    }
    memset(step->sum, 0, (size_t)o->g * dv * sizeof(float));
    o->kernels->weighted_sum_i8(step->weight, step->stride, o->g, n, dv, head->summary.v_codes,
                                head->summary.v_scale, step->sum);
    for (uint32_t g = 0; g < o->g; g++)
        for (uint32_t j = 0; j < dv; j++)
            step->sum[(size_t)g * dv + j] += lean[g] * step->shift[(size_t)g * dv + j];
    merge_sum(head, step, mass, part);
    return n_marked;
}

void hri_step_estimate_listed(const struct hri_index_head *head, struct hri_step *step,
                              const uint32_t *items, uint32_t n, struct hri_partial *part)
{
    uint32_t dv = head->options.v_dim;
    float mass[HR_GROUP_MAX], top[HR_GROUP_MAX];
    if (n == 0)
        return;
    memset(step->sum, 0, (size_t)head->options.g * dv * sizeof(float));
    for (uint32_t g = 0; g < head->options.g; g++) {
        float *sum = step->sum + (size_t)g * dv;
        mass[g] = 0;
        /* Of these blocks: sketches may have shown that all rows lie far below, and moved the step's. */
        top[g] = -INFINITY;
        for (uint32_t i = 0; i < n; i++)
            top[g] = fmaxf(top[g], hri_step_log_mass(head, step, g, items[i] / head->parts));
        for (uint32_t i = 0; i < n; i++) {
            uint32_t b = items[i] / head->parts;
            float part_of = (float)hri_index_item_rows(head, items[i]) / head->block_rows[b];
            float weight = part_of * expf(hri_step_log_mass(head, step, g, b) - top[g]),
                  spread = hri_block_spread(head, b);
            const int8_t *codes = head->summary.v_codes + (size_t)b * dv;
            mass[g] += weight;
            for (uint32_t j = 0; j < dv; j++)
                sum[j] += weight * (head->summary.v_scale[b] * codes[j] +
                                    spread * step->shift[(size_t)g * dv + j]);
        }
    }
    struct hri_partial parts = {.m = top, .l = mass, .o = step->sum};
    hri_partial_merge(part, &parts, head->options.g, dv);
}
