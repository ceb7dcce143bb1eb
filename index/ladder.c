/* A step of a head with sketches (docs/algorithm.md, level 1). */
#include "index/ladder.h"

#include "base/arena.h"
#include "base/assert.h"

#include <math.h>
#include <string.h>

/* Sketches are read until level 0 leaves at most this part of the expected squared error: at first of what it leaves before
 * anything is read, then of what is left after refining. */
#define UNREAD_FIRST 0.02
#define UNREAD_FLOOR                                                                               \
    (0.0005 *                                                                                      \
     0.0005) /* relative, squared: a query head whose unread blocks leave less needs none of them */
#define UNREAD_LAST 0.10
#define LIGHT_SHARE                                                                                \
    (UNREAD_FLOOR / 32) /* of all light blocks together, as worth of single rows at most */
#define ROUNDS_MAX 8
/* Half the variance of what a sketch misses: clamped, since a row that it puts far off is rather an outlier of its own. */
#define HALF_MISSED_MAX 1.0f
#define EXPONENT_MAX    8.0f   /* weights and their squares stay well inside what a float holds */
#define EXPONENT_MIN    -20.0f /* and do not all vanish under one that nothing reaches any more */
/* Deviations of what is missed by which a row may be better than its sketch: for ranking those that are missed most. */
#define LONE_REACH    1.4f
#define LONE_TAIL_MAX 20.0f
/* Ranks by size without sorting: a bin for each power of two, in eighths. */
#define BIN_SHIFT 20
#define BINS      (1u << (31 - BIN_SHIFT))

/* Pending: to be read in this round. Light: read, and found to weigh so little that its rows need no look of their own; its weight counts
 * with the mean value. */
enum block_state { UNREAD, PENDING, READ, LIGHT };

struct ladder {
    const struct hri_index_head *head;
    const struct hri_select_in *in;
    struct hri_step *step;
    size_t stride;      /* lanes */
    float *score;       /* [g][stride] sketched part of the logits; later a copy of weights */
    float *weight;      /* [g][stride] of sketched rows, over exp(top); 0 once refined */
    float *worth;       /* [stride] expected squared error that refining removes, relative */
    float *rest;        /* [bases][g] variance that a sketch of miss 1 leaves */
    float *x;           /* [g][k_dim] queries in a basis */
    float *sum;         /* [g][k_dim] weighted codes */
    float *coefficient; /* [g] */
    uint32_t *groups;   /* [stride / 16] */
    uint32_t *bins;     /* [BINS] */
    float *bin_sum;     /* [BINS] */
    uint8_t *state;     /* [blocks] enum block_state */
    bool rows_too;      /* single rows may be chosen */
    bool everything;    /* the budget is enough for all rows: then none is passed over */
    struct hri_ranked *ranked; /* [blocks or rows] */
    struct hri_sketch_query *query;
    float *best;       /* [g] largest logit of the rows read */
    float *far, *size; /* [g] mean |v - o|^2 and |o|^2 */
    double *left;      /* [g] relative squared error that is left */
};

static size_t ranks_max(const struct hri_index_options *o)
{
    return hri_sketch_lanes_max(o);
}

static bool take(struct hri_arena *arena, const struct hri_index_options *o, struct ladder *l)
{
    size_t g = o->g, lanes = hri_sketch_lanes_max(o), blocks = hri_lanes_up(o->blocks_max);
    l->stride = lanes;
    l->score = hri_arena_array(arena, g * lanes, sizeof(float));
    l->weight = hri_arena_array(arena, g * lanes, sizeof(float));
    l->worth = hri_arena_array(arena, lanes, sizeof(float));
    l->rest = hri_arena_array(arena, HRI_SKETCH_BASES_MAX * g, sizeof(float));
    l->x = hri_arena_array(arena, g * o->k_dim, sizeof(float));
    l->sum = hri_arena_array(arena, g * o->k_dim, sizeof(float));
    l->coefficient = hri_arena_array(arena, g, sizeof(float));
    l->groups = hri_arena_array(arena, lanes / HRI_LANES, sizeof(uint32_t));
    l->bins = hri_arena_array(arena, BINS, sizeof(uint32_t));
    l->bin_sum = hri_arena_array(arena, BINS, sizeof(float));
    l->state = hri_arena_array(arena, blocks, 1);
    l->ranked = hri_arena_array(arena, ranks_max(o), sizeof(struct hri_ranked));
    l->query = hri_arena_array(arena, 1, sizeof(struct hri_sketch_query));
    l->best = hri_arena_array(arena, g, sizeof(float));
    l->far = hri_arena_array(arena, g, sizeof(float));
    l->size = hri_arena_array(arena, g, sizeof(float));
    l->left = hri_arena_array(arena, g, sizeof(double));
    return l->left != NULL;
}

size_t hri_ladder_bytes(const struct hri_index_options *o)
{
    size_t g = o->g, lanes = hri_sketch_lanes_max(o), blocks = hri_lanes_up(o->blocks_max);
    if (hri_sketch_bits(o) == 0)
        return 0;
    return ((2 * g + 1) * lanes + (HRI_SKETCH_BASES_MAX + 2 * (size_t)o->k_dim + 4) * g) *
               sizeof(float) +
           (lanes / HRI_LANES + 2 * BINS) * sizeof(uint32_t) + blocks +
           ranks_max(o) * sizeof(struct hri_ranked) + sizeof(struct hri_sketch_query) +
           g * sizeof(double) + 19 * 64;
}

static struct ladder ladder_at(const struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_step *step)
{
    const struct hri_index_options *o = &head->options;
    struct hri_arena arena;
    struct ladder l = {.head = head, .in = in, .step = step};
    size_t before = hri_round_up(hri_step_bytes(o), 64);
    hri_arena_init_buffer(&arena, (char *)in->scratch + before, hri_ladder_bytes(o));
    bool all = take(&arena, o, &l);
    HRI_ASSERT(all);
    (void)all;
    return l;
}

enum hri_ladder_known hri_ladder_known(const struct hri_index_head *head,
                                       const struct hri_select_in *in, uint32_t block)
{
    struct hri_step step = hri_step_at(head, in);
    uint8_t state = ladder_at(head, in, &step).state[block];
    return state == UNREAD ? HRI_KNOWN_SUMMARY : state == LIGHT ? HRI_KNOWN_LIGHT : HRI_KNOWN_ROWS;
}

/* ------------------------------------------------------------------------------ reading sketches */

static uint32_t bin_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x > 0 ? bits >> BIN_SHIFT : 0;
}

/* The largest bin such that what lies in and below it adds up to at most `most`; BINS if all does. */
static uint32_t bin_below(const struct ladder *l, double most)
{
    double sum = 0;
    for (uint32_t i = 0; i < BINS; i++) {
        sum += (double)l->bin_sum[i];
        if (sum > most)
            return i;
    }
    return BINS;
}

/* Marks the blocks to read: all but those whose doubts add up to `most`. Returns how many are new. */
static uint32_t blocks_mark(struct ladder *l, const float *doubt, double most)
{
    uint32_t n = l->head->n_blocks, fresh = 0;
    memset(l->bin_sum, 0, BINS * sizeof *l->bin_sum);
    for (uint32_t b = 0; b < n; b++)
        if (l->state[b] == UNREAD)
            l->bin_sum[bin_of(doubt[b])] += doubt[b];
    uint32_t first = bin_below(l, most);
    for (uint32_t b = 0; b < n; b++)
        if (l->state[b] == UNREAD && bin_of(doubt[b]) >= first) {
            l->state[b] = PENDING;
            fresh++;
        }
    return fresh;
}

/* Blocks that level 0 says nothing of, because its variance is cut off, are read whatever their doubt. */
static void blocks_mark_clamped(struct ladder *l)
{
    const struct hri_step *step = l->step;
    float variance = 0;
    for (uint32_t g = 0; g < l->head->options.g; g++)
        variance = fmaxf(variance, step->variance[g]);
    for (uint32_t b = 0; b < l->head->n_blocks; b++)
        if (variance * hri_block_spread(l->head, b) > 2 * HRI_HALF_VARIANCE_MAX)
            l->state[b] = PENDING;
}

static uint32_t basis_end(const struct hri_index_head *head, uint32_t basis)
{
    return basis + 1 < head->sketch->n_bases ? head->sketch->bases[basis + 1].first_block
                                             : head->n_blocks;
}

/* Groups of 16 lanes of the blocks of a basis in the given state, ascending, each once. */
static uint32_t groups_list(struct ladder *l, uint32_t basis, uint8_t state)
{
    const struct hri_sketch *s = l->head->sketch;
    uint32_t n = 0, next = 0;
    for (uint32_t b = s->bases[basis].first_block; b < basis_end(l->head, basis); b++) {
        if (l->state[b] != state)
            continue;
        uint32_t first = s->first_lane[b] / HRI_LANES;
        uint32_t last = (s->first_lane[b] + l->head->block_rows[b] - 1) / HRI_LANES;
        for (uint32_t j = first > next ? first : next; j <= last; j++)
            l->groups[n++] = j;
        next = last + 1 > next ? last + 1 : next;
    }
    return n;
}

/* What is added to the sketched part of the logits of block b: its centre's, and half the variance that is missed. */
static float block_base(const struct ladder *l, uint32_t g, uint32_t b, uint32_t basis)
{
    float half = 0.5f * hri_sketch_miss(l->head, b) * l->rest[basis * l->head->options.g + g];
    return l->step->dots[g * l->step->stride + b] + fminf(half, HALF_MISSED_MAX);
}

/* What with block_base makes logits of the rows of block b. With a soft cap the sum of centre and sketch is bent; that goes where
 * the weights will be, since scores are written again when a neighbour in a group of lanes is read later. */
static const float *block_scores(struct ladder *l, uint32_t g, uint32_t b)
{
    float cap = l->head->options.soft_cap, dot = l->step->dots[g * l->step->stride + b];
    size_t at = g * l->stride + l->head->sketch->first_lane[b];
    if (cap <= 0)
        return l->score + at;
    for (uint32_t i = 0; i < l->head->block_rows[b]; i++)
        l->weight[at + i] = cap * tanhf((dot + l->score[at + i]) / cap) - dot;
    return l->weight + at;
}

/* Raises top where a row read exceeds it by so much that its weight could overflow. */
static void top_raise(struct ladder *l, uint32_t g, float most)
{
    struct hri_step *step = l->step;
    if (most <= step->top[g] + EXPONENT_MAX)
        return;
    float factor = expf(step->top[g] - most);
    for (uint32_t b = 0; b < l->head->n_blocks; b++) {
        step->weight[g * step->stride + b] *= factor;
        if (l->state[b] >= READ)
            for (uint32_t i = 0; i < l->head->block_rows[b]; i++)
                l->weight[g * l->stride + l->head->sketch->first_lane[b] + i] *= factor;
    }
    step->top[g] = most;
}

static void block_weigh(struct ladder *l, uint32_t basis, uint32_t b)
{
    const struct hri_index_head *head = l->head;
    const struct hri_kernels *kernels = head->options.kernels;
    struct hri_step *step = l->step;
    uint32_t lane = head->sketch->first_lane[b], rows = head->block_rows[b];
    for (uint32_t g = 0; g < head->options.g; g++) {
        float *w = step->weight + g * step->stride + b;
        const float *score = block_scores(l, g, b);
        float base = block_base(l, g, b, basis), most = kernels->max(score, rows) + base;
        l->best[g] = fmaxf(l->best[g], most);
        top_raise(l, g, most);
        *w = kernels->exp_sum(score, step->top[g] - base, l->weight + g * l->stride + lane, rows);
    }
}

/* Level 0 may have put a block far above where its rows turn out to be: then top comes down to what there is, and all weights are
 * made anew, since they may have vanished. */
static void top_lower(struct ladder *l, uint32_t g)
{
    const struct hri_index_head *head = l->head;
    struct hri_step *step = l->step;
    float *weight = step->weight + g * step->stride;
    bool near = l->in->near && l->in->near->l[g] > 0;
    float top = near ? fmaxf(l->best[g], l->in->near->m[g]) : l->best[g];
    for (uint32_t b = 0; b < head->n_blocks; b++)
        if (l->state[b] == UNREAD)
            top = fmaxf(top, hri_step_log_mass(head, step, g, b));
    if (!(top < step->top[g] + EXPONENT_MIN))
        return;
    step->top[g] = top;
    for (uint32_t b = 0, basis = 0; b < head->n_blocks; b++) {
        while (b >= basis_end(head, basis))
            basis++;
        uint32_t lane = head->sketch->first_lane[b];
        if (l->state[b] == UNREAD)
            weight[b] = expf(hri_step_log_mass(head, step, g, b) - top);
        else
            weight[b] = head->options.kernels->exp_sum(
                block_scores(l, g, b), top - block_base(l, g, b, basis),
                l->weight + g * l->stride + lane, head->block_rows[b]);
    }
}

/* Totals are summed anew: what level 0 had put too high must leave no rounding of its own behind. */
static void tops_settle(struct ladder *l)
{
    const struct hri_step *step = l->step;
    const struct hri_partial *near = l->in->near;
    uint32_t n = l->head->n_blocks;
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        const float *weight = step->weight + g * step->stride;
        if (l->head->options.kernels->max(weight, n) < expf(EXPONENT_MIN))
            top_lower(l, g);
        step->total[g] = hri_sum(weight, n);
        if (near && near->l[g] > 0)
            step->total[g] += near->l[g] * expf(near->m[g] - step->top[g]);
    }
}

/* Reads the sketches of all marked blocks. Returns the bytes read. */
static uint64_t sketches_read(struct ladder *l)
{
    const struct hri_index_head *head = l->head;
    const struct hri_sketch *s = head->sketch;
    uint32_t g = head->options.g;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < s->n_bases; i++) {
        const struct hri_basis *basis = &s->bases[i];
        struct hri_sketch_rows rows = {s->codes, basis->n4, basis->n2};
        uint32_t n = groups_list(l, i, PENDING);
        if (n == 0)
            continue;
        hri_sketch_turn(head, basis, l->in->q, l->x, l->rest + i * g);
        hri_sketch_query_make(l->query, l->x, g, basis->n4, basis->n2);
        head->options.kernels->score_sketch(l->query, g, rows, l->groups, n, l->score, l->stride);
        bytes += n * hri_sketch_group_bytes(basis->n4, basis->n2);
        for (uint32_t b = basis->first_block; b < basis_end(head, i); b++)
            if (l->state[b] == PENDING) {
                block_weigh(l, i, b);
                l->state[b] = READ;
            }
    }
    tops_settle(l);
    return bytes;
}

/* ---------------------------------------------------------------------------------- what is left */

/* What a squared weight of a row of block b contributes to the relative squared error of query head g. */
static float row_factor(const struct ladder *l, uint32_t g, uint32_t b, uint32_t basis)
{
    uint32_t n_g = l->head->options.g;
    float total = l->step->total[g];
    float variance = hri_sketch_miss(l->head, b) * l->rest[basis * n_g + g];
    float far = fminf(variance, 1) * l->far[g] + l->head->sketch->bases[basis].value_rest;
    return l->size[g] > 0 ? far / (l->size[g] * total * total) : 0;
}

static double sum_squares(const float *x, uint32_t n)
{
    float sum[4] = {0};
    uint32_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (uint32_t j = 0; j < 4; j++)
            sum[j] += x[i + j] * x[i + j];
    for (; i < n; i++)
        sum[0] += x[i] * x[i];
    return (double)((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static bool block_is_light(const struct ladder *l, uint32_t b, uint32_t basis)
{
    const struct hri_step *step = l->step;
    float worth = 0;
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float w = step->weight[g * step->stride + b];
        worth += row_factor(l, g, b, basis) * w * w;
    }
    return worth * (float)l->head->n_blocks < (float)LIGHT_SHARE;
}

static void rows_worth(struct ladder *l, uint32_t b, uint32_t basis)
{
    uint32_t lane = l->head->sketch->first_lane[b], rows = l->head->block_rows[b];
    memset(l->worth + lane, 0, rows * sizeof(float));
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        const float *w = l->weight + g * l->stride + lane;
        float factor = row_factor(l, g, b, basis);
        for (uint32_t i = 0; i < rows; i++)
            l->worth[lane + i] += factor * w[i] * w[i];
        l->left[g] += (double)factor * sum_squares(w, rows);
    }
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
static void lone_lift(struct ladder *l)
{
    const struct hri_index_head *head = l->head;
    const struct hri_sketch *s = head->sketch;
    uint32_t n_g = head->options.g, last = head->n_blocks - 1;
    uint32_t next = s->first_lane[last] + head->block_rows[last];
    for (uint32_t i = 0; i < s->n_lone && s->lone_lane[i] < next; i++) {
        uint32_t lane = s->lone_lane[i], b = block_of_lane(head, lane);
        if (l->state[b] == UNREAD)
            continue;
        uint32_t basis = hri_sketch_basis_of(head, b);
        float miss = hri_sketch_lone_miss(head, i), worth = 0;
        for (uint32_t g = 0; g < n_g; g++) {
            float reach = LONE_REACH * sqrtf(miss * l->rest[basis * n_g + g]);
            float w = l->weight[g * l->stride + lane] * expf(fminf(reach, LONE_TAIL_MAX));
            worth += row_factor(l, g, b, basis) * w * w;
        }
        if (l->state[b] == LIGHT && worth * (float)head->n_blocks < (float)LIGHT_SHARE)
            continue;
        if (l->state[b] == LIGHT) {
            l->state[b] = READ;
            rows_worth(l, b, basis);
        }
        l->worth[lane] = fmaxf(l->worth[lane], worth);
    }
}

/* Worth of every sketched row; left = what all of them and the unread blocks leave. Returns the unread part, of the group. */
static double worth_fill(struct ladder *l, const struct hri_ladder_in *ladder)
{
    const struct hri_index_head *head = l->head;
    uint32_t n_g = head->options.g, basis = 0;
    double unread = 0;
    for (uint32_t g = 0; g < n_g; g++) {
        ladder->output(head, l->in, l->step, g, &l->far[g], &l->size[g]);
        l->left[g] = 0;
    }
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        while (b >= basis_end(head, basis))
            basis++;
        if (l->state[b] == UNREAD) {
            for (uint32_t g = 0; g < n_g; g++) {
                double part = (double)ladder->doubt_of(head, l->step, g, b) * (double)l->far[g];
                part = l->size[g] > 0 ? part / (double)l->size[g] : 0;
                l->left[g] += part;
                unread += part;
            }
            continue;
        }
        l->state[b] = !l->everything && block_is_light(l, b, basis) ? LIGHT : READ;
        if (l->state[b] == READ)
            rows_worth(l, b, basis);
    }
    lone_lift(l);
    return unread;
}

static float predicted(const struct ladder *l, uint32_t g)
{
    return sqrtf(fmaxf((float)l->left[g], 0));
}

static float predicted_mean(const struct ladder *l)
{
    float sum = 0;
    for (uint32_t g = 0; g < l->head->options.g; g++)
        sum += predicted(l, g);
    return sum / (float)l->head->options.g;
}

/* -------------------------------------------------------------------------------------- refining */

/* Rows of a part that lies in host memory are refined singly, others with their part. */
static bool by_rows(const struct ladder *l, uint32_t b, uint32_t row)
{
    const struct hri_index_head *head = l->head;
    return l->in->place == NULL ||
           l->in->place[b * head->parts + row / head->part_rows] == HRI_PLACE_HOST;
}

/* Below such a part of it, what is left of a block's weight is summed anew: a difference would be mostly rounding. */
#define WEIGHT_LEFT_MIN 1e-3f

/* A row is refined: its weight leaves its block's, and what it left of the error goes. */
static void row_take(struct ladder *l, uint32_t b, uint32_t row, uint32_t basis)
{
    struct hri_step *step = l->step;
    uint32_t lane = l->head->sketch->first_lane[b];
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float *weight = l->weight + g * l->stride + lane, w = weight[row];
        float *mass = step->weight + g * step->stride + b;
        l->left[g] -= (double)(row_factor(l, g, b, basis) * w * w);
        weight[row] = 0;
        *mass = *mass - w > WEIGHT_LEFT_MIN * *mass ? *mass - w
                                                    : hri_sum(weight, l->head->block_rows[b]);
    }
}

static void row_choose(struct ladder *l, uint32_t b, uint32_t row, uint32_t basis,
                       struct hri_select_out *out)
{
    row_take(l, b, row, basis);
    out->rows[out->n_rows++] = (struct hri_row_ref){b, row};
    out->bytes += l->in->row_bytes;
}

static void part_take(struct ladder *l, uint32_t item, uint32_t basis)
{
    uint32_t first = item % l->head->parts * l->head->part_rows;
    uint32_t n = hri_index_item_rows(l->head, item);
    for (uint32_t i = 0; i < n; i++)
        row_take(l, item / l->head->parts, first + i, basis);
}

/* The worth from which on about `want` rows lie, by the bins that left_after filled: they fill bins above it and part of it. */
static uint32_t rows_bin(const struct ladder *l, uint64_t want)
{
    uint64_t n = 0;
    for (uint32_t bin = BINS; bin-- > 1;) {
        n += l->bins[bin];
        if (n >= want)
            return bin;
    }
    return 1;
}

/* Where all rows lie in host memory: rows within the budget and in the order of the blocks: those above the bin at which it ends, and of that
 * bin as many as fit, best first. */
static void rows_choose(struct ladder *l, uint64_t want, struct hri_select_out *out)
{
    const struct hri_index_head *head = l->head;
    want = want < out->rows_max ? want : out->rows_max;
    if (want == 0)
        return;
    uint32_t bin = rows_bin(l, want), n_edge = 0, above = 0;
    for (uint32_t i = bin + 1; i < BINS; i++)
        above += l->bins[i];
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        uint32_t lane = head->sketch->first_lane[b];
        if (l->state[b] == READ)
            for (uint32_t i = 0; i < head->block_rows[b]; i++)
                if (bin_of(l->worth[lane + i]) == bin)
                    l->ranked[n_edge++] = (struct hri_ranked){l->worth[lane + i], lane + i};
    }
    uint32_t of_edge = want > above ? (uint32_t)want - above : 0;
    of_edge = of_edge < n_edge ? of_edge : n_edge;
    hri_rank_select(l->ranked, n_edge, of_edge);
    for (uint32_t i = of_edge; i < n_edge; i++)
        l->worth[l->ranked[i].item] = 0;
    uint32_t basis = 0;
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        while (b >= basis_end(head, basis))
            basis++;
        uint32_t lane = head->sketch->first_lane[b];
        if (l->state[b] != READ)
            continue;
        for (uint32_t i = 0; i < head->block_rows[b] && out->n_rows < want; i++)
            if (bin_of(l->worth[lane + i]) >= bin)
                row_choose(l, b, i, basis, out);
    }
}

#define IS_ROW 0x80000000u /* an item is a lane, not a block */

/* Candidates of one part: its rows where it lies in host memory, else the whole of it. */
static uint32_t part_list(struct ladder *l, uint32_t b, uint32_t lane, uint32_t first, uint32_t n)
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
static uint32_t candidates_list(struct ladder *l)
{
    const struct hri_index_head *head = l->head;
    uint32_t n = 0;
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        uint32_t lane = head->sketch->first_lane[b], rows = head->block_rows[b];
        if (l->state[b] != READ)
            continue;
        for (uint32_t i = 0; i < rows; i += head->part_rows)
            n = part_list(l, b, lane, i, n);
    }
    return n;
}

static bool candidate_take(struct ladder *l, uint32_t item, struct hri_purse *purse,
                           struct hri_select_out *out)
{
    if (item & IS_ROW) {
        uint32_t lane = item & ~IS_ROW, b = block_of_lane(l->head, lane);
        if (purse->move_bytes < l->in->row_bytes || out->n_rows == out->rows_max)
            return false;
        purse->move_bytes -= l->in->row_bytes;
        row_choose(l, b, lane - l->head->sketch->first_lane[b], hri_sketch_basis_of(l->head, b),
                   out);
        return true;
    }
    if (out->n_items == out->items_max || !hri_take_one(l->head, l->in, item, purse, out))
        return false;
    part_take(l, item, hri_sketch_basis_of(l->head, item / l->head->parts));
    return true;
}

#define PASSED_OVER_MAX 64u

static bool can_pay(const struct ladder *l, uint32_t item, const struct hri_purse *purse,
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
static uint32_t candidates_keep(struct ladder *l, uint32_t begin, uint32_t n,
                                const struct hri_purse *purse, const struct hri_select_out *out)
{
    uint32_t kept = begin;
    for (uint32_t i = begin; i < n; i++)
        if (can_pay(l, l->ranked[i].item, purse, out))
            l->ranked[kept++] = l->ranked[i];
    return kept;
}

/* One by one, best first. */
static void candidates_choose(struct ladder *l, struct hri_purse *purse, struct hri_select_out *out)
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

static bool all_by_rows(const struct ladder *l)
{
    uint32_t n = l->head->n_blocks * l->head->parts;
    for (uint32_t i = 0; l->in->place != NULL && i < n; i++)
        if (l->in->place[i] != HRI_PLACE_HOST)
            return false;
    return true;
}

/* ---------------------------------------------------------------------------------------- select */

/* What refining within the budget will leave at least: the worth of the rows beyond it. */
static double left_after(struct ladder *l, uint64_t want)
{
    double left = 0;
    memset(l->bins, 0, BINS * sizeof *l->bins);
    memset(l->bin_sum, 0, BINS * sizeof *l->bin_sum);
    for (uint32_t b = 0; b < l->head->n_blocks; b++) {
        uint32_t lane = l->head->sketch->first_lane[b];
        if (l->state[b] == READ)
            for (uint32_t i = 0; i < l->head->block_rows[b]; i++) {
                uint32_t bin = bin_of(l->worth[lane + i]);
                l->bins[bin]++;
                l->bin_sum[bin] += l->worth[lane + i];
            }
    }
    uint64_t n = 0;
    for (uint32_t bin = BINS; bin-- > 0;) {
        if (n >= want)
            left += (double)l->bin_sum[bin];
        n += l->bins[bin];
    }
    return left;
}

static double doubts_sum(const struct ladder *l, const float *doubt)
{
    double sum = 0;
    for (uint32_t b = 0; b < l->head->n_blocks; b++)
        if (l->state[b] == UNREAD)
            sum += (double)doubt[b];
    return sum;
}

hr_status_t hri_ladder_select(struct hri_index_head *head, const struct hri_ladder_in *ladder,
                              struct hri_select_out *out)
{
    struct ladder l = ladder_at(head, ladder->in, ladder->step);
    const struct hri_select_in *in = ladder->in;
    l.rows_too = out->rows != NULL;
    uint64_t want = in->row_bytes ? in->budget_bytes / in->row_bytes : 0;
    memset(l.state, UNREAD, head->n_blocks);
    for (uint32_t g = 0; g < head->options.g; g++)
        l.best[g] = -INFINITY;
    l.everything = in->tolerance <= 0 && want >= head->n_rows;
    blocks_mark_clamped(&l);
    double most = l.everything ? -1 : UNREAD_FIRST * doubts_sum(&l, ladder->doubt);
    for (int round = 0; round < ROUNDS_MAX; round++) {
        if (blocks_mark(&l, ladder->doubt, most) == 0 && round > 0)
            break;
        out->bytes_sketched += sketches_read(&l);
        double unread = worth_fill(&l, ladder), left = left_after(&l, want);
        double enough = fmax(UNREAD_LAST * left, UNREAD_FLOOR * head->options.g);
        if (unread <= enough)
            break;
        most = doubts_sum(&l, ladder->doubt) * 0.5 * enough / unread;
    }
    for (uint32_t b = 0; b < head->n_blocks; b++)
        out->rows_sketched += l.state[b] >= READ ? head->block_rows[b] : 0;
    bool reached = in->tolerance > 0 && predicted_mean(&l) <= (float)in->tolerance;
    if (!reached && in->tolerance <= 0 && out->rows != NULL && all_by_rows(&l)) {
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

/* -------------------------------------------------------------------------------------- estimate */

/* Weighted codes of the read blocks of a basis, as values. */
static void add_sketched(struct ladder *l, uint32_t i)
{
    const struct hri_index_head *head = l->head;
    const struct hri_sketch *s = head->sketch;
    const struct hri_basis *basis = &s->bases[i];
    uint32_t dv = head->options.v_dim, n_g = head->options.g, n = groups_list(l, i, READ);
    if (n == 0)
        return;
    /* Lanes of other blocks in the groups listed weigh nothing. */
    for (uint32_t g = 0; g < n_g; g++)
        for (uint32_t j = 0; j < n; j++)
            memset(l->score + g * l->stride + (size_t)l->groups[j] * HRI_LANES, 0,
                   HRI_LANES * sizeof(float));
    for (uint32_t b = basis->first_block; b < basis_end(head, i); b++)
        if (l->state[b] == READ)
            for (uint32_t g = 0; g < n_g; g++)
                memcpy(l->score + g * l->stride + s->first_lane[b],
                       l->weight + g * l->stride + s->first_lane[b],
                       head->block_rows[b] * sizeof(float));
    struct hri_sketch_rows rows = {s->codes, basis->n4, basis->n2};
    memset(l->sum, 0, (size_t)n_g * basis->n * sizeof(float));
    head->options.kernels->sum_sketch(rows, n_g, l->groups, n, l->score, l->stride, l->sum);
    for (uint32_t g = 0; g < n_g; g++)
        for (uint32_t c = 0; c < basis->n; c++) {
            float w = l->sum[g * basis->n + c] * basis->value_scale[c];
            const int8_t *value = basis->value + (size_t)c * dv;
            for (uint32_t j = 0; j < dv; j++)
                l->step->sum[(size_t)g * dv + j] += w * value[j];
        }
}

uint32_t hri_ladder_estimate(const struct hri_index_head *head, const struct hri_select_in *in,
                             struct hri_step *step, const struct hri_select_out *out,
                             struct hri_partial *part)
{
    struct ladder l = ladder_at(head, in, step);
    uint32_t dv = head->options.v_dim;
    float mass[HR_GROUP_MAX];
    memset(step->sum, 0, (size_t)head->options.g * dv * sizeof(float));
    head->options.kernels->weighted_sum_i8(step->weight, step->stride, head->options.g,
                                           head->n_blocks, dv, head->summary.v_codes,
                                           head->summary.v_scale, step->sum);
    for (uint32_t g = 0; g < head->options.g; g++) {
        const float *weight = step->weight + g * step->stride;
        float lean = 0;
        mass[g] = hri_sum(weight, head->n_blocks);
        for (uint32_t b = 0; b < head->n_blocks; b++)
            lean += l.state[b] == UNREAD ? weight[b] * hri_block_spread(head, b) : 0;
        for (uint32_t j = 0; j < dv; j++)
            step->sum[(size_t)g * dv + j] += lean * step->shift[(size_t)g * dv + j];
    }
    for (uint32_t i = 0; i < head->sketch->n_bases; i++)
        add_sketched(&l, i);
    struct hri_partial sum = {.m = step->top, .l = mass, .o = step->sum};
    hri_partial_merge(part, &sum, head->options.g, dv);
    return hri_index_items(head) - out->n_items;
}
