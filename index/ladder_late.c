/* Parts of blocks that were chosen and did not come (docs/algorithm.md, level 1): they count as their rows' sketches have them, like all
 * that was not chosen. Their weights left their blocks' when they were chosen, so their sketches are read once more; whatever else the step
 * knew of weights is used up by then. */
#include "index/ladder_state.h"

#include <math.h>
#include <string.h>

struct rows {
    uint32_t block, lane, n;
};

static struct rows rows_of_item(const struct hri_index_head *head, uint32_t item)
{
    uint32_t b = item / head->parts;
    return (struct rows){b, head->sketch->first_lane[b] + item % head->parts * head->part_rows,
                         hri_index_item_rows(head, item)};
}

static struct rows rows_of_block(const struct hri_index_head *head, uint32_t item)
{
    uint32_t b = item / head->parts;
    return (struct rows){b, head->sketch->first_lane[b], head->block_rows[b]};
}

/* Lanes of neighbours in the groups of 16 that are summed weigh nothing. */
static void groups_clear(struct hri_ladder *l, struct rows rows)
{
    hri_ladder_lanes_clear(l, rows.lane / HRI_LANES * HRI_LANES, hri_lanes_up(rows.lane + rows.n));
}

/* Late rows are told by their sign while the others of their blocks are taken out. */
static void weights_negate(struct hri_ladder *l, struct rows rows)
{
    for (uint32_t g = 0; g < l->head->options.g; g++)
        for (uint32_t i = 0; i < rows.n; i++)
            l->weight[g * l->stride + rows.lane + i] *= -1;
}

static void weights_keep_negative(struct hri_ladder *l, struct rows rows)
{
    for (uint32_t g = 0; g < l->head->options.g; g++)
        for (uint32_t i = 0; i < rows.n; i++) {
            float *w = l->weight + g * l->stride + rows.lane + i;
            *w = *w < 0 ? *w : 0;
        }
}

static void weights_read(struct hri_ladder *l, const uint32_t *items, uint32_t n)
{
    const struct hri_index_head *head = l->head;
    for (uint32_t i = 0; i < n; i++) {
        groups_clear(l, rows_of_block(head, items[i]));
        l->state[items[i] / head->parts] = HRI_PENDING;
    }
    hri_ladder_read_pending(l);
    for (uint32_t i = 0; i < n; i++)
        weights_negate(l, rows_of_item(head, items[i]));
    for (uint32_t i = 0; i < n; i++)
        weights_keep_negative(l, rows_of_block(head, items[i]));
    for (uint32_t i = 0; i < n; i++) {
        weights_negate(l, rows_of_item(head, items[i]));
        l->state[items[i] / head->parts] = HRI_PENDING; /* marks them for groups_list */
    }
}

/* Centres with the rows' weights, and the squares of what they leave. */
static void centres_add(const struct hri_ladder *l, struct rows rows, float *mass, double *left)
{
    const struct hri_index_options *o = &l->head->options;
    const int8_t *centre = l->head->summary.v_codes + (size_t)rows.block * o->v_dim;
    for (uint32_t g = 0; g < o->g; g++) {
        const float *w = l->weight + g * l->stride + rows.lane;
        float *sum = l->step->sum + (size_t)g * o->v_dim, all = hri_sum(w, rows.n);
        double squares = 0;
        for (uint32_t j = 0; j < o->v_dim; j++)
            sum[j] += all * l->head->summary.v_scale[rows.block] * centre[j];
        for (uint32_t i = 0; i < rows.n; i++)
            squares += (double)w[i] * (double)w[i];
        mass[g] += all;
        left[g] += (double)l->factor[g * l->step->stride + rows.block] * squares;
    }
}

static uint32_t groups_list(struct hri_ladder *l, uint32_t basis)
{
    const struct hri_sketch *s = l->head->sketch;
    uint32_t n = 0;
    for (uint32_t b = s->bases[basis].first_block; b < hri_basis_end(l->head, basis); b++) {
        if (l->state[b] != HRI_PENDING)
            continue;
        n = hri_ladder_groups_add(l, b, n);
    }
    return n;
}

void hri_ladder_late(const struct hri_index_head *head, const struct hri_select_in *in,
                     struct hri_step *step, const uint32_t *items, uint32_t n,
                     struct hri_partial *part, float *error_out)
{
    struct hri_ladder l = hri_ladder_at(head, in, step);
    float mass[HR_GROUP_MAX] = {0};
    double left[HR_GROUP_MAX] = {0};
    memset(step->sum, 0, (size_t)head->options.g * head->options.v_dim * sizeof(float));
    weights_read(&l, items, n);
    for (uint32_t i = 0; i < n; i++)
        centres_add(&l, rows_of_item(head, items[i]), mass, left);
    for (uint32_t i = 0; i < head->sketch->n_bases; i++)
        hri_ladder_values_add(&l, i, groups_list(&l, i), step->sum);
    for (uint32_t i = 0; i < n; i++)
        l.state[items[i] / head->parts] = HRI_ROWS; /* as they were: nothing else can be chosen */
    struct hri_partial sum = {.m = step->top, .l = mass, .o = step->sum};
    hri_partial_merge(part, &sum, head->options.g, head->options.v_dim);
    for (uint32_t g = 0; g < head->options.g; g++)
        error_out[g] = (float)sqrt(left[g]);
}
