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
/* Deviations of what is missed by which a row may be better than its sketch: for ranking those that are missed most. */
#define LONE_REACH    1.4f
#define LONE_TAIL_MAX 20.0f
/* Within a budget, rows are looked at singly at first where those of their block leave more than this part of a mean block's. */
#define SINGLE_PART 1e-2

/* ---------------------------------------------------------------------------------- what is left */

/* What a squared weight of a row of block b contributes to the relative squared error, per query head; scale: 1 / (size total^2). */
static void block_factors(struct hri_ladder *l, uint32_t b, uint32_t basis, const float *scale)
{
    uint32_t n_g = l->head->options.g;
    float miss = hri_sketch_miss(l->head, b);
    float value = hri_sketch_value_miss(l->head, b) * l->head->sketch->bases[basis].value_rest;
    for (uint32_t g = 0; g < n_g; g++) {
        float variance = hri_smaller(miss * l->rest[basis * n_g + g], 1);
        float excess = variance * (1 + variance * (0.5f + variance * (1.0f / 6)));
        l->factor[g * l->step->stride + b] = (excess * l->far[g] + (1 + excess) * value) * scale[g];
    }
}

/* Of a block that has been read: factors, worth, what it adds to left; light or not. */
static void block_value(struct hri_ladder *l, uint32_t b, uint32_t basis, const float *scale)
{
    const struct hri_step *step = l->step;
    float light = 0, worth = 0;
    block_factors(l, b, basis, scale);
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        size_t at = g * step->stride + b;
        float factor = l->factor[at], part = factor * l->square[at];
        worth += part;
        light += factor * step->weight[at] * step->weight[at];
        l->left[g] += (double)part;
    }
    l->block_worth[b] = l->promise[b] = worth;
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
    l->state[b] = HRI_ROWS;
}

static uint32_t block_of_lane(const struct hri_index_head *head, uint32_t lane)
{
    uint32_t low = 0, high = head->n_blocks - 1;
    while (low < high) {
        uint32_t middle = (low + high + 1) / 2;
        if (head->sketch->first_lane[middle] <= lane)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
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

/* The rows of blocks that are looked at singly. */
static void lone_apply(struct hri_ladder *l)
{
    for (uint32_t i = 0; i < l->n_lone; i++) {
        const struct hri_lone *lone = &l->lone[i];
        if (l->state[lone->block] == HRI_ROWS)
            l->worth[lone->lane] = hri_larger(l->worth[lone->lane], lone->worth);
    }
}

/* Looks at the rows singly of blocks that promise at least `single`. Returns how many blocks that are that were not looked at yet. */
static uint32_t singles_fill(struct hri_ladder *l, double single)
{
    uint32_t fresh = 0;
    for (uint32_t b = hri_ladder_next(l, 0); b < l->head->n_blocks; b = hri_ladder_next(l, b + 1))
        if (l->state[b] == HRI_READ && (double)l->promise[b] >= single) {
            rows_worth(l, b);
            fresh++;
        }
    if (fresh > 0)
        lone_apply(l);
    return fresh;
}

/* What all rows that are read are worth, singly where that may matter; adds what they leave to left, where hri_ladder_unread put the
 * others'. */
static void worth_fill(struct hri_ladder *l)
{
    const struct hri_index_head *head = l->head;
    float scale[HR_GROUP_MAX];
    double all = 0;
    for (uint32_t g = 0; g < head->options.g; g++) {
        float total = l->step->total[g];
        scale[g] = l->size[g] > 0 ? 1 / (l->size[g] * total * total) : 0;
    }
    for (uint32_t b = hri_ladder_next(l, 0), basis = 0; b < head->n_blocks;
         b = hri_ladder_next(l, b + 1)) {
        while (b >= hri_basis_end(head, basis))
            basis++;
        block_value(l, b, basis, scale);
        all += (double)l->block_worth[b];
    }
    double single = l->by_budget ? SINGLE_PART * all / head->n_blocks : 0;
    lone_lift(l);
    singles_fill(l, single);
}

static float predicted(const struct hri_ladder *l, uint32_t g)
{
    return sqrtf(hri_larger((float)l->left[g], 0));
}

static float predicted_mean(const struct hri_ladder *l)
{
    float sum = 0;
    for (uint32_t g = 0; g < l->head->options.g; g++)
        sum += predicted(l, g);
    return sum / (float)l->head->options.g;
}

/* -------------------------------------------------------------------------------------- refining */

/* Rows of a part that lies in host memory are refined singly, others with their part. */
static bool by_rows(const struct hri_ladder *l, uint32_t b, uint32_t row)
{
    const struct hri_index_head *head = l->head;
    return l->in->place == NULL ||
           l->in->place[b * head->parts + row / head->part_rows] == HRI_PLACE_HOST;
}

/* Below such a part of it, what is left of a block's weight is summed anew: a difference would be mostly rounding. */
#define WEIGHT_LEFT_MIN 1e-3f

/* A row is refined: its weight leaves its block's, and what it left of the error goes. */
static void row_take(struct hri_ladder *l, uint32_t b, uint32_t row)
{
    struct hri_step *step = l->step;
    uint32_t lane = l->head->sketch->first_lane[b];
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float *weight = l->weight + g * l->stride + lane, w = weight[row];
        float *mass = step->weight + g * step->stride + b;
        l->left[g] -= (double)(l->factor[g * step->stride + b] * w * w);
        weight[row] = 0;
        *mass = *mass - w > WEIGHT_LEFT_MIN * *mass ? *mass - w
                                                    : hri_sum(weight, l->head->block_rows[b]);
    }
}

static void row_choose(struct hri_ladder *l, uint32_t b, uint32_t row, struct hri_select_out *out)
{
    row_take(l, b, row);
    out->rows[out->n_rows++] = (struct hri_row_ref){b, row};
    out->bytes += l->in->row_bytes;
}

static void part_take(struct hri_ladder *l, uint32_t item)
{
    uint32_t first = item % l->head->parts * l->head->part_rows;
    uint32_t n = hri_index_item_rows(l->head, item);
    for (uint32_t i = 0; i < n; i++)
        row_take(l, item / l->head->parts, first + i);
}

/* The bin in which the want-th row lies, 0 if there are not so many. */
static uint32_t rows_bin(const struct hri_ladder *l, uint64_t want)
{
    uint64_t n = 0;
    for (uint32_t bin = HRI_BINS; bin-- > 1;) {
        n += l->bins[bin];
        if (n >= want)
            return bin;
    }
    return 0;
}

/* Where all rows lie in host memory: rows within the budget and in the order of the blocks: those above the bin at which it ends, and of that
 * bin as many as fit, best first. */
static void rows_choose(struct hri_ladder *l, uint64_t want, struct hri_select_out *out)
{
    const struct hri_index_head *head = l->head;
    want = want < out->rows_max ? want : out->rows_max;
    if (want == 0)
        return;
    uint32_t bin = rows_bin(l, want), n_edge = 0, above = 0;
    bin = bin > 0 ? bin : 1;
    for (uint32_t i = bin + 1; i < HRI_BINS; i++)
        above += l->bins[i];
    for (uint32_t b = hri_ladder_next(l, 0); b < head->n_blocks; b = hri_ladder_next(l, b + 1)) {
        uint32_t lane = head->sketch->first_lane[b];
        if (l->state[b] == HRI_ROWS)
            for (uint32_t i = 0; i < head->block_rows[b]; i++)
                if (hri_bin_of(l->worth[lane + i]) == bin)
                    l->ranked[n_edge++] = (struct hri_ranked){l->worth[lane + i], lane + i};
    }
    uint32_t of_edge = want > above ? (uint32_t)want - above : 0;
    of_edge = of_edge < n_edge ? of_edge : n_edge;
    hri_rank_select(l->ranked, n_edge, of_edge);
    for (uint32_t i = of_edge; i < n_edge; i++)
        l->worth[l->ranked[i].item] = 0;
    for (uint32_t b = hri_ladder_next(l, 0); b < head->n_blocks; b = hri_ladder_next(l, b + 1)) {
        uint32_t lane = head->sketch->first_lane[b];
        if (l->state[b] != HRI_ROWS)
            continue;
        for (uint32_t i = 0; i < head->block_rows[b] && out->n_rows < want; i++)
            if (hri_bin_of(l->worth[lane + i]) >= bin)
                row_choose(l, b, i, out);
    }
}

#define IS_ROW 0x80000000u /* an item is a lane, not a block */

/* Candidates of one part: its rows where it lies in host memory, else the whole of it. */
static uint32_t part_list(struct hri_ladder *l, uint32_t b, uint32_t lane, uint32_t first,
                          uint32_t n)
{
    const struct hri_index_head *head = l->head;
    const struct hri_select_in *in = l->in;
    uint32_t item = b * head->parts + first / head->part_rows;
    uint32_t rows = hri_index_item_rows(head, item);
    bool single = l->rows_too && by_rows(l, b, first);
    float sum = 0;
    for (uint32_t i = first; i < first + rows; i++) {
        float worth = l->worth[lane + i];
        sum += worth;
        if (single && worth > 0)
            l->ranked[n++] = (struct hri_ranked){worth / (float)in->row_bytes, (lane + i) | IS_ROW};
    }
    if (!single && sum > 0) {
        bool file = in->place != NULL && in->place[item] == HRI_PLACE_FILE;
        float cost = (float)(file ? in->cell_bytes : rows * in->row_bytes);
        l->ranked[n++] = (struct hri_ranked){sum / cost, item};
    }
    return n;
}

/* Candidates by worth per byte: rows of parts in host memory, whole parts elsewhere. */
static uint32_t candidates_list(struct hri_ladder *l)
{
    const struct hri_index_head *head = l->head;
    uint32_t n = 0;
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        uint32_t lane = head->sketch->first_lane[b], rows = head->block_rows[b];
        if (l->state[b] != HRI_ROWS)
            continue;
        for (uint32_t i = 0; i < rows; i += head->part_rows)
            n = part_list(l, b, lane, i, n);
    }
    return n;
}

static bool candidate_take(struct hri_ladder *l, uint32_t item, struct hri_purse *purse,
                           struct hri_select_out *out)
{
    if (item & IS_ROW) {
        uint32_t lane = item & ~IS_ROW, b = block_of_lane(l->head, lane);
        if (purse->move_bytes < l->in->row_bytes || out->n_rows == out->rows_max)
            return false;
        purse->move_bytes -= l->in->row_bytes;
        row_choose(l, b, lane - l->head->sketch->first_lane[b], out);
        return true;
    }
    if (out->n_items == out->items_max || !hri_take_one(l->head, l->in, item, purse, out))
        return false;
    part_take(l, item);
    return true;
}

#define PASSED_OVER_MAX 64u

static bool can_pay(const struct hri_ladder *l, uint32_t item, const struct hri_purse *purse,
                    const struct hri_select_out *out)
{
    const struct hri_select_in *in = l->in;
    if (item & IS_ROW)
        return purse->move_bytes >= in->row_bytes && out->n_rows < out->rows_max;
    uint64_t bytes = (uint64_t)hri_index_item_rows(l->head, item) * in->row_bytes;
    uint8_t place = in->place ? in->place[item] : HRI_PLACE_HOST;
    if (place == HRI_PLACE_FRAME && bytes <= purse->reuse_bytes)
        return true;
    return (place == HRI_PLACE_FILE ? in->cell_bytes : bytes) <= purse->move_bytes;
}

/* Leaves of ranked[begin..n) what may still be taken, so that thousands of rows that nothing is left for do not hide the parts in
 * frames that have a purse of their own. Returns the new n. */
static uint32_t candidates_keep(struct hri_ladder *l, uint32_t begin, uint32_t n,
                                const struct hri_purse *purse, const struct hri_select_out *out)
{
    uint32_t kept = begin;
    for (uint32_t i = begin; i < n; i++)
        if (can_pay(l, l->ranked[i].item, purse, out))
            l->ranked[kept++] = l->ranked[i];
    return kept;
}

/* One by one, best first. */
static void candidates_choose(struct hri_ladder *l, struct hri_purse *purse,
                              struct hri_select_out *out)
{
    uint32_t n = candidates_list(l), passed_over = 0;
    bool reached = false;
    for (uint32_t begin = 0, end; begin < n && !reached && passed_over < PASSED_OVER_MAX;
         begin = end) {
        end = n - begin > 512 ? begin + 512 : n;
        hri_rank_select(l->ranked + begin, n - begin, end - begin);
        hri_rank_sort(l->ranked + begin, end - begin);
        for (uint32_t i = begin; i < end && !reached && passed_over < PASSED_OVER_MAX; i++) {
            if (candidate_take(l, l->ranked[i].item, purse, out)) {
                reached = l->in->tolerance > 0 && predicted_mean(l) <= (float)l->in->tolerance;
                continue;
            }
            passed_over++;
            n = candidates_keep(l, i + 1, n, purse, out);
            end = i + 1;
        }
    }
    hri_ladder_rows_sort(out->rows, out->n_rows);
    out->capped = l->in->tolerance > 0 && !reached && passed_over > 0;
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

/* Sorts the rows that are looked at singly into bins. Returns what the other rows that are read leave. */
static double bins_fill(struct hri_ladder *l)
{
    double others = 0;
    memset(l->bins, 0, HRI_BINS * sizeof *l->bins);
    memset(l->bin_sum, 0, HRI_BINS * sizeof *l->bin_sum);
    for (uint32_t b = hri_ladder_next(l, 0); b < l->head->n_blocks; b = hri_ladder_next(l, b + 1)) {
        const float *worth = l->worth + l->head->sketch->first_lane[b];
        if (l->state[b] == HRI_READ || l->state[b] == HRI_LIGHT)
            others += (double)l->block_worth[b];
        if (l->state[b] != HRI_ROWS)
            continue;
        for (uint32_t i = 0; i < l->head->block_rows[b]; i++) {
            uint32_t bin = hri_bin_of(worth[i]);
            l->bins[bin]++;
            l->bin_sum[bin] += worth[i];
        }
    }
    return others;
}

/* What refining within the budget will leave at least: the worth of the rows beyond it. No row of a block that together is worth less
 * than the last row within the budget is among those; all others are looked at. */
static double left_after(struct hri_ladder *l, uint64_t want)
{
    double left = bins_fill(l);
    if (l->by_budget && singles_fill(l, (double)hri_bin_edge(rows_bin(l, want))) > 0)
        left = bins_fill(l);
    uint64_t n = 0;
    for (uint32_t bin = HRI_BINS; bin-- > 0;) {
        if (n >= want)
            left += (double)l->bin_sum[bin];
        n += l->bins[bin];
    }
    return left;
}

static void begin(struct hri_ladder *l)
{
    const struct hri_index_head *head = l->head;
    memset(l->state, HRI_UNREAD, head->n_blocks);
    memset(l->turned, 0, head->sketch->n_bases);
    for (uint32_t g = 0; g < head->options.g; g++) {
        l->best[g] = -INFINITY;
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

/* What level 0 thinks of a block's share is relative to a total that it may have far too low or too high. Therefore in rounds: the
 * blocks that matter most show what the total is, and most others turn out not to matter. */
static void sketches_read(struct hri_ladder *l, uint64_t want, struct hri_select_out *out)
{
    double enough = unread_enough(l);
    hri_ladder_strays_score(l);
    uint32_t fresh = hri_ladder_mark_clamped(l) + hri_ladder_strays_mark(l);
    if (!l->everything)
        out->bytes_sketched += hri_ladder_audit(l);
    double unread = hri_ladder_unread(l);
    bool worth_known = false;
    for (int round = 0; round < ROUNDS_MAX; round++) {
        double part = l->everything ? -1 : fmax(ROUND_PART, 0.5 * enough / unread);
        if (l->everything || unread > enough)
            fresh += hri_ladder_mark(l, (float)part);
        if (fresh == 0)
            break;
        out->bytes_sketched += hri_ladder_read(l);
        unread = hri_ladder_unread(l);
        fresh = hri_ladder_strays_mark(l);
        worth_known = false;
        if (fresh > 0)
            continue;
        if (unread <= enough)
            break;
        worth_known = true;
        worth_fill(l);
        if (unread <= UNREAD_LAST * left_after(l, want))
            break;
    }
    if (worth_known)
        return;
    worth_fill(l);
    left_after(l, want);
}

/* The bins by powers of two. */
static void worth_tell(const struct hri_ladder *l, uint32_t *worth)
{
    uint32_t each = HRI_BINS / HRI_WORTH_BINS;
    for (uint32_t i = 0; i < HRI_WORTH_BINS; i++) {
        worth[i] = 0;
        for (uint32_t j = 0; j < each; j++)
            worth[i] += l->bins[i * each + j];
    }
}

hr_status_t hri_ladder_select(struct hri_index_head *head, const struct hri_ladder_in *ladder,
                              struct hri_select_out *out)
{
    struct hri_ladder l = hri_ladder_at(head, ladder->in, ladder->step);
    const struct hri_select_in *in = ladder->in;
    l.level0 = ladder;
    l.rows_too = out->rows != NULL;
    uint64_t want = in->row_bytes ? in->budget_bytes / in->row_bytes : 0;
    l.everything = in->tolerance <= 0 && want >= head->n_rows;
    l.by_budget = in->tolerance <= 0 && l.rows_too && all_by_rows(&l);
    double light = fmax(HRI_UNREAD_FLOOR, LIGHT_OF_TOLERANCE * in->tolerance);
    l.light = (float)(light * light);
    begin(&l);
    sketches_read(&l, want, out);
    if (out->worth != NULL)
        worth_tell(&l, out->worth);
    for (uint32_t b = hri_ladder_next(&l, 0); b < head->n_blocks; b = hri_ladder_next(&l, b + 1))
        out->rows_sketched += head->block_rows[b];
    bool reached = in->tolerance > 0 && predicted_mean(&l) <= (float)in->tolerance;
    if (l.by_budget) {
        rows_choose(&l, want, out);
    } else if (!reached) {
        double reuse = hri_recipe_value(&head->options.recipe, "reuse");
        struct hri_purse purse = {in->budget_bytes, (uint64_t)(reuse * (double)in->budget_bytes)};
        candidates_choose(&l, &purse, out);
    }
    for (uint32_t g = 0; g < head->options.g; g++)
        out->predicted[g] = predicted(&l, g);
    return HR_OK;
}
