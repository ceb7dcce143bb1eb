/* A step of a head with sketches: what its rows are worth, and which of them are refined (docs/algorithm.md, level 1). */
#include "index/ladder_state.h"

#include "index/passes.h"

#include <math.h>
#include <string.h>

/* Sketches are read in rounds: each leaves of the expected squared error of what is unread this part at most, ... */
#define ROUND_PART 0.02
/* ... until that is at most so much of what is left after refining. */
#define UNREAD_LAST 0.10
#define ROUNDS_MAX  16
/* With a tolerance they may leave this part of it: the rows that were read are to leave less than the rest. */
#define UNREAD_OF_TOLERANCE 0.7
#define LIGHT_OF_TOLERANCE  0.2
/* Sketches that are moved to be read may take this part of a budget. */
#define CODES_PART 0.5
/* Deviations of what is missed by which a row may be better than its sketch: for ranking those that are missed most. */
#define LONE_REACH    1.4f
#define LONE_TAIL_MAX 20.0f
/* Within a budget, rows are looked at singly at first where those of their block leave more than this part of a mean block's. */
#define SINGLE_PART 1e-2
/* With a tolerance, blocks are left as they are that together leave this part of what it allows. */
#define SINGLE_OF_TOLERANCE 0.1

/* ---------------------------------------------------------------------------------- what is left */

/* What a squared weight of a row of block b contributes to the relative squared error, per query head. Returns
 * what of all rows' contributions is their values'. */
static float block_factors(struct hri_ladder *l, uint32_t b, uint32_t basis)
{
    uint32_t n_g = l->head->options.g;
    float miss = hri_sketch_miss(l->head, b), values = 0;
    float value = hri_sketch_value_miss(l->head, b) * l->head->sketch->bases[basis].value_rest;
    for (uint32_t g = 0; g < n_g; g++) {
        size_t at = g * l->step->stride + b;
        float variance = hri_smaller(miss * l->rest[basis * n_g + g], 1);
        float excess = variance * (1 + variance * (0.5f + variance * (1.0f / 6)));
        float of_value = (1 + excess) * value;
        l->variance[at] = variance;
        l->drift[g] += variance * l->step->weight[at];
        l->factor[at] = (excess * l->far[g] + of_value) * l->scale[g];
        values += of_value * l->scale[g] * l->square[at];
    }
    return values;
}

/* What part of a row's worth its rest is. */
static float value_part_of(const struct hri_ladder *l, uint32_t b, float values, float worth)
{
    bool kept = l->rest_bytes > 0 && b >= l->head->sketch->rests.first_block;
    return kept && worth > 0 ? (1 - HRI_REST_LEFT) * values / worth : 0;
}

/* Of a block that has been read: factors, worth, what it adds to left; light or not. */
static void block_value(struct hri_ladder *l, uint32_t b, uint32_t basis)
{
    const struct hri_step *step = l->step;
    float light = 0, worth = 0, values = block_factors(l, b, basis);
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        size_t at = g * step->stride + b;
        float factor = l->factor[at], part = factor * l->square[at];
        worth += part;
        light += factor * step->weight[at] * step->weight[at];
        l->left[g] += (double)part;
    }
    l->block_worth[b] = l->promise[b] = worth;
    l->value_part[b] = value_part_of(l, b, values, worth);
    bool is_light = light * (float)l->head->n_blocks < l->light;
    l->state[b] = is_light && !l->everything ? HRI_LIGHT : HRI_READ;
}

static void rows_worth(struct hri_ladder *l, uint32_t b)
{
    uint32_t lane = l->head->sketch->first_lane[b], n_g = l->head->options.g;
    float factor[HR_GROUP_MAX];
    for (uint32_t g = 0; g < n_g; g++)
        factor[g] = l->factor[g * l->step->stride + b];
    hri_pass_worth(l->weight + lane, l->stride, n_g, factor, l->worth + lane,
                   l->head->block_rows[b]);
    l->promise[b] = hri_pass_most(l->worth + lane, l->head->block_rows[b]);
    memset(l->taken + lane, HRI_TAKEN_NOT, l->head->block_rows[b]);
    l->state[b] = HRI_ROWS;
}

/* Rows that their sketch says least of are worth as much as they may turn out to be. For the ranking only. */
static float lone_worth(const struct hri_ladder *l, uint32_t i, uint32_t b, uint32_t basis)
{
    const struct hri_sketch *s = l->head->sketch;
    uint32_t n_g = l->head->options.g;
    float miss = hri_sketch_lone_miss(l->head, i), worth = 0;
    for (uint32_t g = 0; g < n_g; g++) {
        float reach = LONE_REACH * sqrtf(miss * l->rest[basis * n_g + g]);
        float w = l->weight[g * l->stride + s->lone_lane[i]];
        w *= expf(hri_smaller(reach, LONE_TAIL_MAX));
        worth += l->factor[g * l->step->stride + b] * w * w;
    }
    return worth;
}

/* The first lone row from the i-th on that lies in `lane` or after it: they ascend, and it is rarely far. */
static uint32_t lone_from(const struct hri_sketch *s, uint32_t i, uint32_t lane)
{
    uint32_t step = 1, end;
    while (i + step < s->n_lone && s->lone_lane[i + step] < lane) {
        i += step;
        step *= 2;
    }
    end = i + step < s->n_lone ? i + step : s->n_lone;
    while (i < end) {
        uint32_t middle = i + (end - i) / 2;
        if (s->lone_lane[middle] < lane)
            i = middle + 1;
        else
            end = middle;
    }
    return i;
}

/* What they promise, and with it their blocks. */
static void lone_lift(struct hri_ladder *l)
{
    const struct hri_index_head *head = l->head;
    const struct hri_sketch *s = head->sketch;
    l->n_lone = 0;
    for (uint32_t b = hri_ladder_next(l, 0), basis = 0, i = 0; b < head->n_blocks;
         b = hri_ladder_next(l, b + 1)) {
        uint32_t end = s->first_lane[b] + head->block_rows[b];
        while (b >= hri_basis_end(head, basis))
            basis++;
        for (i = lone_from(s, i, s->first_lane[b]); i < s->n_lone && s->lone_lane[i] < end; i++) {
            float worth = lone_worth(l, i, b, basis);
            if (l->state[b] == HRI_LIGHT && worth * (float)head->n_blocks >= l->light)
                l->state[b] = HRI_READ;
            l->promise[b] = hri_larger(l->promise[b], worth);
            l->lone[l->n_lone++] = (struct hri_lone){s->lone_lane[i], b, worth};
        }
    }
}

/* Of the lone rows from the i-th on those of block b, which is looked at singly. Returns the first that comes after it. */
static uint32_t lone_apply(struct hri_ladder *l, uint32_t i, uint32_t b)
{
    while (i < l->n_lone && l->lone[i].block < b)
        i++;
    for (; i < l->n_lone && l->lone[i].block == b; i++) {
        const struct hri_lone *lone = &l->lone[i];
        l->worth[lone->lane] = hri_larger(l->worth[lone->lane], lone->worth);
        l->promise[b] = hri_larger(l->promise[b], lone->worth);
    }
    return i;
}

/* Looks at the rows singly of blocks that promise at least `single` and were not looked at yet. Returns what those together are worth that
 * stay as they are. */
static double singles_fill(struct hri_ladder *l, double single)
{
    double others = 0;
    uint32_t lone = 0;
    for (uint32_t b = hri_ladder_next(l, 0); b < l->head->n_blocks; b = hri_ladder_next(l, b + 1)) {
        if (l->state[b] == HRI_READ && (double)l->promise[b] >= single) {
            rows_worth(l, b);
            lone = lone_apply(l, lone, b);
            hri_ladder_bins_add(l, b);
        } else if (l->state[b] == HRI_READ || l->state[b] == HRI_LIGHT) {
            others += (double)l->block_worth[b];
        }
    }
    return others;
}

/* What a block has to be worth so that those worth less leave no more than `most` together. */
static double single_least(struct hri_ladder *l, double most)
{
    const struct hri_index_head *head = l->head;
    memset(l->bin_sum, 0, HRI_BINS * sizeof *l->bin_sum);
    for (uint32_t b = hri_ladder_next(l, 0); b < head->n_blocks; b = hri_ladder_next(l, b + 1))
        l->bin_sum[hri_bin_of(l->block_worth[b])] += l->block_worth[b];
    uint32_t bin = hri_ladder_bin_below(l, 0, most);
    return bin < HRI_BINS ? (double)hri_bin_edge(bin) : HUGE_VAL;
}

/* What all rows that are read are worth, singly where that may matter; adds what they leave to left, where hri_ladder_unread put the
 * others'. */
static void worth_fill(struct hri_ladder *l)
{
    const struct hri_index_head *head = l->head;
    double all = 0;
    for (uint32_t g = 0; g < head->options.g; g++) {
        float total = l->step->total[g];
        l->inverse[g] = 1 / total;
        l->scale[g] = l->size[g] > 0 ? 1 / (l->size[g] * total * total) : 0;
        l->codes_key[g] = l->q_square[g] * l->far[g] * l->scale[g] / 12;
        l->codes_value[g] = (float)head->options.v_dim * l->scale[g] / 12;
        l->drift[g] = 0;
    }
    for (uint32_t b = hri_ladder_next(l, 0), basis = 0; b < head->n_blocks;
         b = hri_ladder_next(l, b + 1)) {
        while (b >= hri_basis_end(head, basis))
            basis++;
        block_value(l, b, basis);
        all += (double)l->block_worth[b];
    }
    double tolerance = l->in->tolerance,
           most = SINGLE_OF_TOLERANCE * tolerance * tolerance * head->options.g;
    double single = l->by_budget    ? SINGLE_PART * all / head->n_blocks
                    : tolerance > 0 ? single_least(l, most)
                                    : 0;
    lone_lift(l);
    hri_ladder_bins_clear(l);
    l->others = singles_fill(l, single);
}

/* What rows that are not refined leave, squared: each by itself, and all their weights together. */
static float rows_left(const struct hri_ladder *l, uint32_t g)
{
    float drift = HRI_DRIFT_SKETCH * hri_larger(l->drift[g], 0);
    float common = drift * drift * l->common[g] * l->scale[g];
    return hri_larger((float)l->left[g], 0) + hri_larger(common, 0);
}

static float predicted(const struct hri_ladder *l, uint32_t g)
{
    return sqrtf(rows_left(l, g) + (float)l->codes_left[g]);
}

/* What codes leave no refining mends: where they leave most of a tolerance, half of it is what the rest has to keep. */
#define TOLERANCE_AT_LEAST 0.5

bool hri_ladder_tolerance_reached(const struct hri_ladder *l)
{
    double all = 0, rest = 0, tolerance = l->in->tolerance * l->head->options.g;
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        all += (double)predicted(l, g);
        rest += sqrt((double)rows_left(l, g));
    }
    return l->in->tolerance > 0 && (all <= tolerance || rest <= TOLERANCE_AT_LEAST * tolerance);
}

static bool all_by_rows(const struct hri_ladder *l)
{
    uint32_t n = l->head->n_blocks * l->head->parts;
    for (uint32_t i = 0; l->in->place != NULL && i < n; i++)
        if (l->in->place[i] != HRI_PLACE_HOST)
            return false;
    return true;
}

/* ---------------------------------------------------------------------------------------- select */

/* What refining within the budget of `want` bytes will leave at least: the worth of what is beyond it. No row of a block that together is
 * worth less than the last piece within the budget is among those; all others are looked at. */
static double left_after(struct hri_ladder *l, uint64_t want)
{
    double up = l->rest_bytes > 0 ? (double)l->in->row_bytes / l->rest_bytes : 1;
    if (l->by_budget)
        l->others = singles_fill(l, (double)hri_bin_edge(hri_ladder_bytes_bin(l, want)) / up);
    return l->others + hri_ladder_bins_beyond(l, want);
}

static void begin(struct hri_ladder *l)
{
    const struct hri_index_head *head = l->head;
    memset(l->state, HRI_UNREAD, head->n_blocks);
    memset(l->turned, 0, head->sketch->n_bases);
    for (uint32_t g = 0; g < head->options.g; g++) {
        const float *q = l->in->q + (size_t)g * head->options.k_dim;
        l->best[g] = -INFINITY;
        l->q_square[g] = 0;
        l->codes_left[g] = 0;
        for (uint32_t j = 0; j < head->options.k_dim; j++)
            l->q_square[g] += q[j] * q[j];
        l->corrected[g] = 1;
        l->level0->rates(head, l->step, g, l->rate + g * l->step->stride,
                         l->lifted + g * l->step->stride);
    }
}

/* Squared error, summed over the group, that unread blocks may leave whatever the others do. */
static double unread_enough(const struct hri_ladder *l)
{
    double error = fmax(HRI_UNREAD_FLOOR, UNREAD_OF_TOLERANCE * l->in->tolerance);
    return error * error * l->head->options.g;
}

/* Sketches that lie in host memory are moved when they are read. */
static void sketches_pay(struct hri_ladder *l, uint64_t bytes, struct hri_select_out *out)
{
    out->bytes_sketched += bytes;
    if (!l->codes_move)
        return;
    out->bytes_sketched_host += bytes;
    out->bytes += bytes;
    l->codes_budget = bytes < l->codes_budget ? l->codes_budget - bytes : 0;
}

/* A sample of blocks shows how far level 0 is off. Where it has to be moved it may take a quarter of what there is for sketches. */
static bool audits_paid(const struct hri_ladder *l)
{
    uint64_t audits = hri_ladder_audits_max(&l->head->options), blocks = l->head->n_blocks;
    return !l->codes_move || 4 * audits * hri_sketch_code_bytes(l->head) <=
                                 l->codes_budget * (blocks > 0 ? blocks : 1);
}

/* As hri_ladder_strays_mark, but that of blocks whose reading moves them only those are new that can be paid for. */
static uint32_t strays_mark(struct hri_ladder *l)
{
    uint32_t fresh = hri_ladder_strays_mark(l);
    return l->codes_move ? hri_ladder_pending_pay(l) : fresh;
}

/* Blocks that are to be read whatever level 0 says of them. Where reading moves them, only those with strays, of which it knows nothing;
 * what it cannot say of others is among what the step leaves, and the prediction has it. */
static uint32_t always_mark(struct hri_ladder *l)
{
    uint32_t clamped = l->codes_move ? 0 : hri_ladder_mark_clamped(l);
    return clamped + strays_mark(l);
}

static uint64_t budget_left(const struct hri_ladder *l, const struct hri_select_out *out)
{
    uint64_t paid = out->bytes_sketched_host, budget = l->in->budget_bytes;
    return budget > paid ? budget - paid : 0;
}

/* What of the budget is left for rows, of which without rests only whole ones can be had. */
static uint64_t rows_want(const struct hri_ladder *l, const struct hri_select_out *out)
{
    uint64_t left = budget_left(l, out);
    return l->rest_bytes > 0      ? left
           : l->in->row_bytes > 0 ? left / l->in->row_bytes * l->in->row_bytes
                                  : 0;
}

/* What level 0 thinks of a block's share is relative to a total that it may have far too low or too high. Therefore in rounds: the
 * blocks that matter most show what the total is, and most others turn out not to matter. */
static void sketches_read(struct hri_ladder *l, struct hri_select_out *out)
{
    double enough = unread_enough(l);
    hri_ladder_strays_score(l);
    uint32_t fresh = always_mark(l);
    if (!l->everything && audits_paid(l))
        sketches_pay(l, hri_ladder_audit(l), out);
    double unread = hri_ladder_unread(l);
    bool worth_known = false;
    for (int round = 0; round < ROUNDS_MAX; round++) {
        double part = l->everything ? -1 : fmax(ROUND_PART, 0.5 * enough / unread);
        if (l->everything || unread > enough)
            fresh += hri_ladder_mark(l, (float)part);
        if (fresh == 0)
            break;
        sketches_pay(l, hri_ladder_read(l), out);
        unread = hri_ladder_unread(l);
        fresh = strays_mark(l);
        worth_known = false;
        if (fresh > 0)
            continue;
        if (unread <= enough)
            break;
        worth_known = true;
        worth_fill(l);
        if (unread <= UNREAD_LAST * left_after(l, rows_want(l, out)))
            break;
    }
    if (worth_known)
        return;
    worth_fill(l);
    left_after(l, rows_want(l, out));
}

/* The bins by powers of two, as rows. */
static void worth_tell(const struct hri_ladder *l, uint32_t *worth)
{
    uint32_t each = HRI_BINS / HRI_WORTH_BINS, row = l->in->row_bytes;
    for (uint32_t i = 0; i < HRI_WORTH_BINS; i++) {
        uint64_t bytes = 0;
        for (uint32_t j = 0; j < each; j++)
            bytes += l->bins[i * each + j];
        worth[i] = row > 0 ? (uint32_t)((bytes + row / 2) / row) : 0;
    }
}

hr_status_t hri_ladder_select(struct hri_index_head *head, const struct hri_ladder_in *ladder,
                              struct hri_select_out *out)
{
    struct hri_ladder l = hri_ladder_at(head, ladder->in, ladder->step);
    const struct hri_select_in *in = ladder->in;
    l.level0 = ladder;
    l.rows_too = out->rows != NULL;
    uint64_t rows = in->row_bytes ? in->budget_bytes / in->row_bytes : 0;
    l.codes_move = hri_sketch_in_host(&head->options);
    uint64_t codes = l.codes_move ? hri_sketch_code_bytes(head) : 0;
    l.everything = in->tolerance <= 0 && rows >= head->n_rows &&
                   in->budget_bytes - (uint64_t)head->n_rows * in->row_bytes >= codes;
    l.codes_budget = l.everything ? codes : (uint64_t)(CODES_PART * (double)in->budget_bytes);
    l.by_budget = in->tolerance <= 0 && l.rows_too && all_by_rows(&l);
    double light = fmax(HRI_UNREAD_FLOOR, LIGHT_OF_TOLERANCE * in->tolerance);
    l.light = (float)(light * light);
    begin(&l);
    sketches_read(&l, out);
    if (out->worth != NULL)
        worth_tell(&l, out->worth);
    for (uint32_t b = hri_ladder_next(&l, 0); b < head->n_blocks; b = hri_ladder_next(&l, b + 1))
        out->rows_sketched += head->block_rows[b];
    bool reached = hri_ladder_tolerance_reached(&l);
    if (l.by_budget) {
        hri_ladder_pieces_take(&l, rows_want(&l, out), out);
    } else if (!reached) {
        double reuse = hri_recipe_value(&head->options.recipe, "reuse");
        struct hri_purse purse = {budget_left(&l, out),
                                  (uint64_t)(reuse * (double)in->budget_bytes)};
        hri_ladder_candidates_choose(&l, &purse, out);
        /* Or it ended the reading. */
        out->capped |= l.codes_move && in->tolerance > 0 && !hri_ladder_tolerance_reached(&l);
    }
    for (uint32_t g = 0; g < head->options.g; g++)
        out->predicted[g] = predicted(&l, g);
    return HR_OK;
}
