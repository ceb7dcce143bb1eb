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
        if (l->state[lone->block] != HRI_ROWS)
            continue;
        l->worth[lone->lane] = hri_larger(l->worth[lone->lane], lone->worth);
        l->promise[lone->block] = hri_larger(l->promise[lone->block], lone->worth);
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
    singles_fill(l, single);
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

static bool tolerance_reached(const struct hri_ladder *l)
{
    double all = 0, rest = 0, tolerance = l->in->tolerance * l->head->options.g;
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        all += (double)predicted(l, g);
        rest += sqrt((double)rows_left(l, g));
    }
    return l->in->tolerance > 0 && (all <= tolerance || rest <= TOLERANCE_AT_LEAST * tolerance);
}

/* -------------------------------------------------------------------------------------- refining */

/* Rows of a part that lies in host memory are refined singly, others with their part. */
static bool by_rows(const struct hri_ladder *l, uint32_t b, uint32_t row)
{
    const struct hri_index_head *head = l->head;
    return l->in->place == NULL ||
           l->in->place[b * head->parts + row / head->part_rows] == HRI_PLACE_HOST;
}

/* A row can be had in two pieces: its rest, then all of it, which makes the rest needless. By what the row's worth is to be multiplied for
 * what each removes per as many bytes as a row has. Where the second is worth more than the first nobody would take that alone: rest 0. */
struct pieces {
    float rest, row;
};

static struct pieces pieces_of(const struct hri_ladder *l, uint32_t b)
{
    float bytes = (float)l->in->row_bytes, part = l->value_part[b];
    if (!(part > 0))
        return (struct pieces){0, 1};
    struct pieces p = {part * bytes / (float)l->rest_bytes,
                       (1 - part) * bytes / (bytes - (float)l->rest_bytes)};
    return p.rest > p.row ? p : (struct pieces){0, 1};
}

/* What all of a row costs beside what was taken of it. */
static uint32_t row_cost(const struct hri_ladder *l, uint32_t lane)
{
    return l->in->row_bytes - (l->taken[lane] == HRI_TAKEN_REST ? l->rest_bytes : 0);
}

/* What rests of rows of block b mend, squares [G] being sums of their squared weights: it goes, or comes back. */
static void rests_change(struct hri_ladder *l, uint32_t b, const float *squares, float sign)
{
    float part = sign * l->value_part[b];
    for (uint32_t g = 0; g < l->head->options.g; g++)
        l->left[g] += (double)(part * l->factor[g * l->step->stride + b] * squares[g]);
}

static void rest_change(struct hri_ladder *l, uint32_t b, uint32_t lane, float sign)
{
    float squares[HR_GROUP_MAX];
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float w = l->weight[g * l->stride + lane];
        squares[g] = w * w;
    }
    rests_change(l, b, squares, sign);
}

static void rests_pay(const struct hri_ladder *l, uint32_t n, struct hri_select_out *out)
{
    out->n_rests += n;
    out->bytes_rests += (uint64_t)n * l->rest_bytes;
    out->bytes += (uint64_t)n * l->rest_bytes;
}

static void rest_choose(struct hri_ladder *l, uint32_t b, uint32_t lane, struct hri_select_out *out)
{
    rest_change(l, b, lane, -1);
    l->taken[lane] = HRI_TAKEN_REST;
    rests_pay(l, 1, out);
}

/* The row is taken as a whole after all. */
static void rest_return(struct hri_ladder *l, uint32_t b, uint32_t lane, struct hri_select_out *out)
{
    rest_change(l, b, lane, 1);
    out->n_rests--;
    out->bytes_rests -= l->rest_bytes;
    out->bytes -= l->rest_bytes;
}

/* Below such a part of it, what is left of a block's weight is summed anew: a difference would be mostly rounding. */
#define WEIGHT_LEFT_MIN 1e-3f

/* What int8 codes leave of a row of block b that is refined, as its factor is of a sketched one: codes are off by a twelfth of their step,
 * squared, in every dimension. The output lies as near to a row's value as the row's share of it is large. */
static float codes_factor(const struct hri_ladder *l, uint32_t b, uint32_t g, float weight)
{
    float k = l->head->k_step[b], v = l->head->v_step[b], others = 1 - weight * l->inverse[g];
    return k * k * others * others * l->codes_key[g] + v * v * l->codes_value[g];
}

/* A row is refined: its weight leaves its block's, and what it left of the error goes, but for what its codes leave. */
static void row_take(struct hri_ladder *l, uint32_t b, uint32_t row)
{
    struct hri_step *step = l->step;
    uint32_t lane = l->head->sketch->first_lane[b];
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float *weight = l->weight + g * l->stride + lane, w = weight[row];
        float *mass = step->weight + g * step->stride + b;
        float factor = l->factor[g * step->stride + b];
        l->left[g] -= (double)(factor * w * w);
        l->drift[g] -= l->variance[g * step->stride + b] * w;
        l->codes_left[g] += (double)(hri_smaller(codes_factor(l, b, g, w), factor) * w * w);
        weight[row] = 0;
        *mass = *mass - w > WEIGHT_LEFT_MIN * *mass ? *mass - w
                                                    : hri_sum(weight, l->head->block_rows[b]);
    }
}

static void row_choose(struct hri_ladder *l, uint32_t b, uint32_t row, struct hri_select_out *out)
{
    row_take(l, b, row);
    l->taken[l->head->sketch->first_lane[b] + row] = HRI_TAKEN_ROW;
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

/* The bin in which the want-th byte lies, 0 if there are not so many. */
static uint32_t bytes_bin(const struct hri_ladder *l, uint64_t want)
{
    uint64_t n = 0;
    for (uint32_t bin = HRI_BINS; bin-- > 1;) {
        n += l->bins[bin];
        if (n >= want)
            return bin;
    }
    return 0;
}

/* Pieces in the bin at which the budget ends. */
struct edge {
    struct hri_ranked *rests, *rows;
    uint32_t n_rests, n_rows;
};

/* Whether a piece of block b lies in that bin or above. Of most blocks none does. */
static bool pieces_reach(const struct hri_ladder *l, uint32_t b, uint32_t bin)
{
    struct pieces p = pieces_of(l, b);
    return l->state[b] == HRI_ROWS && hri_bin_of(hri_larger(p.rest, p.row) * l->promise[b]) >= bin;
}

/* What lies in bins above is taken; what lies in it is listed. */
static void pieces_split(struct hri_ladder *l, uint32_t b, uint32_t bin, struct edge *edge)
{
    uint32_t lane = l->head->sketch->first_lane[b], end = lane + l->head->block_rows[b];
    struct pieces p = pieces_of(l, b);
    for (; lane < end; lane++) {
        float rest = p.rest * l->worth[lane], row = p.row * l->worth[lane];
        uint32_t rest_bin = hri_bin_of(rest), row_bin = hri_bin_of(row);
        l->taken[lane] = row_bin > bin    ? HRI_TAKEN_ROW
                         : rest_bin > bin ? HRI_TAKEN_REST
                                          : HRI_TAKEN_NOT;
        if (rest_bin == bin)
            edge->rests[edge->n_rests++] = (struct hri_ranked){rest, lane};
        if (row_bin == bin)
            edge->rows[edge->n_rows++] = (struct hri_ranked){row, lane};
    }
}

/* Of the edge as much as `left` bytes pay for, best first, rests before rows. */
static void edge_take(struct hri_ladder *l, const struct edge *edge, uint64_t left)
{
    uint64_t n = l->rest_bytes > 0 ? left / l->rest_bytes : 0;
    n = n < edge->n_rests ? n : edge->n_rests;
    hri_rank_select(edge->rests, edge->n_rests, n);
    for (uint32_t i = 0; i < n; i++)
        l->taken[edge->rests[i].item] = HRI_TAKEN_REST;
    left -= n * l->rest_bytes;
    n = left / (l->in->row_bytes - l->rest_bytes);
    n = n < edge->n_rows ? n : edge->n_rows;
    hri_rank_select(edge->rows, edge->n_rows, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t lane = edge->rows[i].item, cost = row_cost(l, lane);
        if (cost > left)
            continue;
        l->taken[lane] = HRI_TAKEN_ROW;
        left -= cost;
    }
}

/* The rows of a block of which something was marked as taken. */
static void pieces_choose(struct hri_ladder *l, uint32_t b, struct hri_select_out *out)
{
    uint32_t lane = l->head->sketch->first_lane[b], rows = l->head->block_rows[b], n = 0;
    uint32_t n_g = l->head->options.g;
    float squares[HR_GROUP_MAX] = {0};
    for (uint32_t i = 0; i < rows; i++) {
        if (l->taken[lane + i] == HRI_TAKEN_ROW && out->n_rows < out->rows_max)
            row_choose(l, b, i, out);
        if (l->taken[lane + i] != HRI_TAKEN_REST)
            continue;
        n++;
        for (uint32_t g = 0; g < n_g; g++) {
            float w = l->weight[g * l->stride + lane + i];
            squares[g] += w * w;
        }
    }
    if (n == 0)
        return;
    rests_change(l, b, squares, -1);
    rests_pay(l, n, out);
}

/* Where all rows lie in host memory: pieces of rows within the budget and in the order of the blocks: those above the bin at which it ends,
 * and of that bin as many as fit, best first. */
static void pieces_take(struct hri_ladder *l, uint64_t want, struct hri_select_out *out)
{
    const struct hri_index_head *head = l->head;
    struct edge edge = {.rests = l->ranked + l->stride, .rows = l->ranked};
    uint64_t above = 0;
    if (want == 0)
        return;
    uint32_t bin = bytes_bin(l, want);
    bin = bin > 0 ? bin : 1;
    for (uint32_t i = bin + 1; i < HRI_BINS; i++)
        above += l->bins[i];
    for (uint32_t b = hri_ladder_next(l, 0); b < head->n_blocks; b = hri_ladder_next(l, b + 1))
        if (pieces_reach(l, b, bin))
            pieces_split(l, b, bin, &edge);
    edge_take(l, &edge, want > above ? want - above : 0);
    for (uint32_t b = hri_ladder_next(l, 0); b < head->n_blocks; b = hri_ladder_next(l, b + 1))
        if (pieces_reach(l, b, bin))
            pieces_choose(l, b, out);
}

/* An item is not a part but a lane, of which the row or its rest is meant. */
#define IS_ROW  0x80000000u
#define IS_REST 0x40000000u

/* Candidates of one part: its rows where it lies in host memory, else the whole of it. */
static uint32_t part_list(struct hri_ladder *l, uint32_t b, uint32_t lane, uint32_t first,
                          uint32_t n)
{
    const struct hri_index_head *head = l->head;
    const struct hri_select_in *in = l->in;
    uint32_t item = b * head->parts + first / head->part_rows;
    uint32_t rows = hri_index_item_rows(head, item);
    bool single = l->rows_too && by_rows(l, b, first);
    struct pieces p = pieces_of(l, b);
    float sum = 0;
    for (uint32_t i = first; i < first + rows; i++) {
        float worth = l->worth[lane + i];
        sum += worth;
        worth /= (float)in->row_bytes;
        if (single && worth > 0 && p.rest > 0)
            l->ranked[n++] = (struct hri_ranked){p.rest * worth, (lane + i) | IS_REST};
        if (single && worth > 0)
            l->ranked[n++] = (struct hri_ranked){p.row * worth, (lane + i) | IS_ROW};
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

#define PASSED_OVER_MAX 64u

static bool can_pay(const struct hri_ladder *l, uint32_t item, const struct hri_purse *purse,
                    const struct hri_select_out *out)
{
    const struct hri_select_in *in = l->in;
    if (item & IS_REST)
        return purse->move_bytes >= l->rest_bytes;
    if (item & IS_ROW)
        return purse->move_bytes >= row_cost(l, item & ~IS_ROW) && out->n_rows < out->rows_max;
    uint64_t bytes = (uint64_t)hri_index_item_rows(l->head, item) * in->row_bytes;
    uint8_t place = in->place ? in->place[item] : HRI_PLACE_HOST;
    if (place == HRI_PLACE_FRAME && bytes <= purse->reuse_bytes)
        return true;
    return (place == HRI_PLACE_FILE ? in->cell_bytes : bytes) <= purse->move_bytes;
}

static bool candidate_take(struct hri_ladder *l, uint32_t item, struct hri_purse *purse,
                           struct hri_select_out *out)
{
    uint32_t lane = item & ~(IS_ROW | IS_REST);
    if (item & (IS_ROW | IS_REST) && !can_pay(l, item, purse, out))
        return false;
    if (item & IS_REST) {
        purse->move_bytes -= l->rest_bytes;
        rest_choose(l, block_of_lane(l->head, lane), lane, out);
        return true;
    }
    if (item & IS_ROW) {
        uint32_t b = block_of_lane(l->head, lane);
        purse->move_bytes -= row_cost(l, lane);
        if (l->taken[lane] == HRI_TAKEN_REST)
            rest_return(l, b, lane, out);
        row_choose(l, b, lane - l->head->sketch->first_lane[b], out);
        return true;
    }
    if (out->n_items == out->items_max || !hri_take_one(l->head, l->in, item, purse, out))
        return false;
    part_take(l, item);
    return true;
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
                reached = tolerance_reached(l);
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

static void bin_add(struct hri_ladder *l, float key, uint32_t bytes, float worth)
{
    uint32_t bin = hri_bin_of(key);
    l->bins[bin] += bytes;
    l->bin_sum[bin] += worth;
}

static void block_bins_fill(struct hri_ladder *l, uint32_t b)
{
    const float *worth = l->worth + l->head->sketch->first_lane[b];
    struct pieces p = pieces_of(l, b);
    uint32_t row = l->in->row_bytes, rest = p.rest > 0 ? l->rest_bytes : 0;
    float part = p.rest > 0 ? l->value_part[b] : 0;
    for (uint32_t i = 0; i < l->head->block_rows[b]; i++) {
        bin_add(l, p.row * worth[i], row - rest, (1 - part) * worth[i]);
        if (rest > 0)
            bin_add(l, p.rest * worth[i], rest, part * worth[i]);
    }
}

/* Sorts the pieces of rows that are looked at singly into bins, by bytes. Returns what the other rows that are read leave. */
static double bins_fill(struct hri_ladder *l)
{
    double others = 0;
    memset(l->bins, 0, HRI_BINS * sizeof *l->bins);
    memset(l->bin_sum, 0, HRI_BINS * sizeof *l->bin_sum);
    for (uint32_t b = hri_ladder_next(l, 0); b < l->head->n_blocks; b = hri_ladder_next(l, b + 1)) {
        if (l->state[b] == HRI_READ || l->state[b] == HRI_LIGHT)
            others += (double)l->block_worth[b];
        else if (l->state[b] == HRI_ROWS)
            block_bins_fill(l, b);
    }
    return others;
}

/* What refining within the budget of `want` bytes will leave at least: the worth of what is beyond it. No row of a block that together is
 * worth less than the last piece within the budget is among those; all others are looked at. */
static double left_after(struct hri_ladder *l, uint64_t want)
{
    double left = bins_fill(l);
    double up = l->rest_bytes > 0 ? (double)l->in->row_bytes / l->rest_bytes : 1;
    if (l->by_budget && singles_fill(l, (double)hri_bin_edge(bytes_bin(l, want)) / up) > 0)
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
    bool reached = tolerance_reached(&l);
    if (l.by_budget) {
        pieces_take(&l, rows_want(&l, out), out);
    } else if (!reached) {
        double reuse = hri_recipe_value(&head->options.recipe, "reuse");
        struct hri_purse purse = {budget_left(&l, out),
                                  (uint64_t)(reuse * (double)in->budget_bytes)};
        candidates_choose(&l, &purse, out);
        /* Or it ended the reading. */
        out->capped |= l.codes_move && in->tolerance > 0 && !tolerance_reached(&l);
    }
    for (uint32_t g = 0; g < head->options.g; g++)
        out->predicted[g] = predicted(&l, g);
    return HR_OK;
}
