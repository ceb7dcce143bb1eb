/* The estimate of a head with sketches: of everything that was not refined (docs/algorithm.md, level 1). */
#include "index/ladder_state.h"

#include "index/passes.h"

#include <string.h>

#define NEGLIGIBLE 1e-3f

/* Groups of 16 lanes of the blocks of a basis that count as their sketches have them, ascending, each once. */
static uint32_t groups_list(struct hri_ladder *l, uint32_t basis)
{
    const struct hri_sketch *s = l->head->sketch;
    uint32_t n = 0;
    uint32_t begin = s->bases[basis].first_block, end = hri_basis_end(l->head, basis);
    for (uint32_t b = hri_ladder_next(l, begin); b < end; b = hri_ladder_next(l, b + 1)) {
        if (l->state[b] < HRI_READ)
            continue;
        n = hri_ladder_groups_add(l, b, n);
    }
    return n;
}

/* Rows of light blocks count otherwise: in the groups of 16 that they share with blocks that are listed they weigh nothing. */
static void light_clear(struct hri_ladder *l, uint32_t basis)
{
    const struct hri_sketch *s = l->head->sketch;
    for (uint32_t b = s->bases[basis].first_block; b < hri_basis_end(l->head, basis); b++) {
        uint32_t first = s->first_lane[b], last = first + l->head->block_rows[b];
        if (l->state[b] != HRI_LIGHT)
            continue;
        uint32_t first_up = hri_lanes_up(first), last_down = last / HRI_LANES * HRI_LANES;
        hri_ladder_lanes_clear(l, first, first_up < last ? first_up : last);
        hri_ladder_lanes_clear(l, last_down > first ? last_down : first, last);
    }
}

/* Values of all blocks by their weights, and by their spread what the query makes of it. Blocks so light that all of them together are at
 * most NEGLIGIBLE of the mass count with the mean value: most are, where attention is sharp, and theirs need not be read. */
static void centres_add(struct hri_ladder *l, struct hri_step *step, float *mass)
{
    const struct hri_index_head *head = l->head;
    const struct hri_shape *shape = &head->shape;
    uint32_t n = head->n_blocks, n_g = head->options.g, dv = head->options.v_dim;
    float *kept = l->square; /* of no use any more */
    for (uint32_t g = 0; g < n_g; g++) {
        const float *weight = step->weight + g * step->stride;
        float *sum = step->sum + (size_t)g * dv;
        mass[g] = hri_pass_sum(weight, n);
        float rest =
            hri_pass_keep(weight, NEGLIGIBLE * mass[g] / (float)n, kept + g * step->stride, n);
        float lean = hri_pass_lean(weight, shape->spread, l->state, HRI_READ, n);
        for (uint32_t j = 0; j < dv; j++)
            sum[j] = lean * step->shift[(size_t)g * dv + j] + rest * shape->v_mean[j];
    }
    head->options.kernels->weighted_sum_i8(kept, step->stride, n_g, n, dv, head->summary.v_codes,
                                           head->summary.v_scale, step->sum);
}

/* The rests that were taken of the values of a basis's rows. */
static void rests_add(const struct hri_ladder *l, uint32_t basis, float *sum)
{
    const struct hri_index_head *head = l->head;
    const struct hri_basis *of = &head->sketch->bases[basis];
    uint32_t lane[HRI_RESTS_AT_ONCE], n = 0, end = hri_basis_end(head, basis);
    for (uint32_t b = hri_ladder_next(l, of->first_block); b < end; b = hri_ladder_next(l, b + 1)) {
        uint32_t first = head->sketch->first_lane[b];
        if (l->state[b] != HRI_ROWS)
            continue;
        for (uint32_t i = first; i < first + head->block_rows[b]; i++) {
            if (l->taken[i] != HRI_TAKEN_REST)
                continue;
            hri_rests_ahead(head, i);
            lane[n++] = i;
            if (n < HRI_RESTS_AT_ONCE)
                continue;
            hri_rests_sum(head, of, lane, n, l->weight, l->stride, sum);
            n = 0;
        }
    }
    hri_rests_sum(head, of, lane, n, l->weight, l->stride, sum);
}

uint32_t hri_ladder_estimate(const struct hri_index_head *head, const struct hri_select_in *in,
                             struct hri_step *step, const struct hri_select_out *out,
                             struct hri_partial *part)
{
    struct hri_ladder l = hri_ladder_at(head, in, step);
    float mass[HR_GROUP_MAX];
    centres_add(&l, step, mass);
    for (uint32_t i = 0; i < head->sketch->n_bases; i++) {
        uint32_t n = groups_list(&l, i);
        if (n > 0)
            light_clear(&l, i);
        hri_ladder_values_add(&l, i, n, step->sum);
        if (out->n_rests > 0)
            rests_add(&l, i, step->sum);
    }
    struct hri_partial sum = {.m = step->top, .l = mass, .o = step->sum};
    hri_partial_merge(part, &sum, head->options.g, head->options.v_dim);
    return hri_index_items(head) - out->n_items;
}
