/* Which rows of a step with sketches are refined: within a budget, or until a tolerance is reached (docs/algorithm.md, level 1). */
#include "index/ladder_state.h"

#include "index/passes.h"

#include <string.h>

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

/* Rows of block b are refined: their weight leaves their block's, and what they left of the error goes, but for what their codes leave.
 * Codes are off by a twelfth of their step, squared, in every dimension; that counts as a sketched row's factor does, and less in the keys the
 * larger the row's share of the output is, which then lies near its value. */
static void rows_take(struct hri_ladder *l, uint32_t b, const uint8_t *rows, uint32_t n)
{
    struct hri_step *step = l->step;
    float k = l->head->k_step[b], v = l->head->v_step[b];
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float *weight = l->weight + g * l->stride + l->head->sketch->first_lane[b];
        float *mass = step->weight + g * step->stride + b;
        float factor = l->factor[g * step->stride + b], of_key = k * k * l->codes_key[g],
              of_value = v * v * l->codes_value[g], gone = 0, squares = 0;
        double codes = 0;
        for (uint32_t i = 0; i < n; i++) {
            float w = weight[rows[i]], others = 1 - w * l->inverse[g];
            codes += (double)(hri_smaller(of_key * others * others + of_value, factor) * w * w);
            squares += w * w;
            gone += w;
            weight[rows[i]] = 0;
        }
        l->left[g] -= (double)(factor * squares);
        l->drift[g] -= l->variance[g * step->stride + b] * gone;
        l->codes_left[g] += codes;
        *mass = *mass - gone > WEIGHT_LEFT_MIN * *mass ? *mass - gone
                                                       : hri_sum(weight, l->head->block_rows[b]);
    }
}

static void rows_choose(struct hri_ladder *l, uint32_t b, const uint8_t *rows, uint32_t n,
                        struct hri_select_out *out)
{
    rows_take(l, b, rows, n);
    for (uint32_t i = 0; i < n; i++) {
        l->taken[l->head->sketch->first_lane[b] + rows[i]] = HRI_TAKEN_ROW;
        out->rows[out->n_rows++] = (struct hri_row_ref){b, rows[i]};
    }
    out->bytes += (uint64_t)n * l->in->row_bytes;
}

static void part_take(struct hri_ladder *l, uint32_t item)
{
    uint8_t rows[HRI_BLOCK_ROWS_LIMIT];
    uint32_t first = item % l->head->parts * l->head->part_rows;
    uint32_t n = hri_index_item_rows(l->head, item);
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (uint8_t)(first + i);
    rows_take(l, item / l->head->parts, rows, n);
}

/* -- a budget -- */

void hri_ladder_bins_clear(struct hri_ladder *l)
{
    memset(l->bins, 0, HRI_BINS * sizeof *l->bins);
    l->bin_top = 0;
    l->bin_bytes = 0;
}

static void bins_add(struct hri_ladder *l, const float *worth, uint32_t n, float factor,
                     uint32_t bytes)
{
    uint16_t bin[HRI_BLOCK_ROWS_LIMIT];
    hri_pass_bins(worth, factor, bin, n);
    for (uint32_t i = 0; i < n; i++)
        l->bins[bin[i]] += bytes;
    l->bin_bytes += (uint64_t)n * bytes;
}

void hri_ladder_bins_add(struct hri_ladder *l, uint32_t b)
{
    const float *worth = l->worth + l->head->sketch->first_lane[b];
    struct pieces p = pieces_of(l, b);
    uint32_t n = l->head->block_rows[b], rest = p.rest > 0 ? l->rest_bytes : 0;
    uint32_t top = hri_bin_of(hri_larger(p.rest, p.row) * l->promise[b]);
    l->bin_top = top > l->bin_top ? top : l->bin_top;
    bins_add(l, worth, n, p.row, l->in->row_bytes - rest);
    if (rest > 0)
        bins_add(l, worth, n, p.rest, rest);
}

uint32_t hri_ladder_bytes_bin(const struct hri_ladder *l, uint64_t want)
{
    uint64_t n = 0;
    if (want > l->bin_bytes)
        return 0;
    for (uint32_t bin = l->bin_top; bin > 0; bin--) {
        n += l->bins[bin];
        if (n >= want)
            return bin;
    }
    return 0;
}

/* A piece removes its key times its share of a row's bytes, and keys of one bin are nearly alike. */
double hri_ladder_bins_beyond(const struct hri_ladder *l, uint64_t want)
{
    uint64_t n = 0;
    double left = 0;
    for (uint32_t bin = l->bin_top; bin > 0 && n < l->bin_bytes; bin--) {
        if (n >= want && l->bins[bin] > 0)
            left += (double)(hri_bin_edge(bin) + hri_bin_edge(bin + 1)) / 2 * l->bins[bin];
        n += l->bins[bin];
    }
    return l->in->row_bytes > 0 ? left / l->in->row_bytes : 0;
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

/* Its rows of which some may: more are listed rather than fewer. */
static uint32_t rows_reach(const struct hri_ladder *l, uint32_t b, uint32_t bin, uint8_t *rows)
{
    const float *worth = l->worth + l->head->sketch->first_lane[b];
    struct pieces p = pieces_of(l, b);
    float least = hri_bin_edge(bin) / hri_larger(p.rest, p.row) * (1 - 1e-6f);
    uint32_t n = 0;
    for (uint32_t i = 0; i < l->head->block_rows[b]; i++) {
        rows[n] = (uint8_t)i;
        n += worth[i] >= least;
    }
    return n;
}

/* What lies in bins above is taken; what lies in it is listed. */
static void pieces_split(struct hri_ladder *l, uint32_t b, uint32_t bin, struct edge *edge)
{
    uint8_t rows[HRI_BLOCK_ROWS_LIMIT];
    uint32_t first = l->head->sketch->first_lane[b], n = rows_reach(l, b, bin, rows);
    struct pieces p = pieces_of(l, b);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t lane = first + rows[i];
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
static void pieces_choose(struct hri_ladder *l, uint32_t b, uint32_t bin,
                          struct hri_select_out *out)
{
    uint8_t rows[HRI_BLOCK_ROWS_LIMIT], whole[HRI_BLOCK_ROWS_LIMIT];
    uint32_t lane = l->head->sketch->first_lane[b], n_rows = rows_reach(l, b, bin, rows);
    uint32_t n_whole = 0, n = 0, n_g = l->head->options.g;
    float squares[HR_GROUP_MAX] = {0};
    for (uint32_t i = 0; i < n_rows; i++) {
        uint8_t taken = l->taken[lane + rows[i]];
        if (taken == HRI_TAKEN_ROW && out->n_rows + n_whole < out->rows_max)
            whole[n_whole++] = rows[i];
        if (taken == HRI_TAKEN_REST)
            rows[n++] = rows[i];
    }
    for (uint32_t g = 0; g < n_g; g++) {
        const float *weight = l->weight + g * l->stride + lane;
        for (uint32_t i = 0; i < n; i++)
            squares[g] += weight[rows[i]] * weight[rows[i]];
    }
    if (n_whole > 0)
        rows_choose(l, b, whole, n_whole, out);
    if (n == 0)
        return;
    rests_change(l, b, squares, -1);
    rests_pay(l, n, out);
}

/* Where all rows lie in host memory: pieces of rows within the budget and in the order of the blocks: those above the bin at which it ends,
 * and of that bin as many as fit, best first. */
void hri_ladder_pieces_take(struct hri_ladder *l, uint64_t want, struct hri_select_out *out)
{
    const struct hri_index_head *head = l->head;
    struct edge edge = {.rests = l->ranked + l->stride, .rows = l->ranked};
    uint64_t above = 0;
    if (want == 0)
        return;
    uint32_t bin = hri_ladder_bytes_bin(l, want);
    bin = bin > 0 ? bin : 1;
    for (uint32_t i = bin + 1; i <= l->bin_top; i++)
        above += l->bins[i];
    for (uint32_t b = hri_ladder_next(l, 0); b < head->n_blocks; b = hri_ladder_next(l, b + 1))
        if (pieces_reach(l, b, bin))
            pieces_split(l, b, bin, &edge);
    edge_take(l, &edge, want > above ? want - above : 0);
    for (uint32_t b = hri_ladder_next(l, 0); b < head->n_blocks; b = hri_ladder_next(l, b + 1))
        if (pieces_reach(l, b, bin))
            pieces_choose(l, b, bin, out);
}

/* -- a tolerance, or parts -- */

/* An item is not a part but a lane, of which the row or its rest is meant. */
#define IS_ROW  0x80000000u
#define IS_REST 0x40000000u

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
        uint8_t row = (uint8_t)(lane - l->head->sketch->first_lane[b]);
        rows_choose(l, b, &row, 1, out);
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
void hri_ladder_candidates_choose(struct hri_ladder *l, struct hri_purse *purse,
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
                reached = hri_ladder_tolerance_reached(l);
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
