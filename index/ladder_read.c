/* Which blocks' sketches a step reads, and what they say (docs/algorithm.md, level 1). */
#include "index/ladder_state.h"

#include "index/passes.h"

#include "base/arena.h"
#include "base/assert.h"

#include <math.h>
#include <string.h>

/* Half the variance of what a sketch misses: clamped, since a row that it puts far off is rather an outlier of its own. */
#define HALF_MISSED_MAX 1.0f
#define EXPONENT_MAX    8.0f   /* weights and their squares stay well inside what a float holds */
#define EXPONENT_MIN    -20.0f /* and do not all vanish under one that nothing reaches any more */

/* Blocks with a larger share of some query head's weight count with the values of their rows where errors are measured. */
#define HEAVY 0.002f

/* What may be ranked: every row, or its rest and all of it. */
static size_t ranked_max(size_t lanes, bool rests)
{
    return rests ? 2 * lanes : lanes;
}

static bool take(struct hri_arena *arena, const struct hri_index_options *o, struct hri_ladder *l)
{
    size_t g = o->g, lanes = hri_sketch_lanes_max(o), blocks = hri_lanes_up(o->blocks_max);
    size_t bases = hri_sketch_bases_max(o);
    l->stride = lanes;
    l->score = hri_arena_array(arena, g * HRI_LADDER_CHUNK, sizeof(float));
    l->weight = hri_arena_array(arena, g * lanes, sizeof(float));
    l->worth = hri_arena_array(arena, lanes, sizeof(float));
    l->square = hri_arena_array(arena, g * blocks, sizeof(float));
    l->factor = hri_arena_array(arena, g * blocks, sizeof(float));
    l->block_worth = hri_arena_array(arena, blocks, sizeof(float));
    l->promise = hri_arena_array(arena, blocks, sizeof(float));
    l->rate = hri_arena_array(arena, g * blocks, sizeof(float));
    l->lifted = hri_arena_array(arena, g * blocks, sizeof(float));
    l->rest = hri_arena_array(arena, bases * g, sizeof(float));
    l->x = hri_arena_array(arena, bases * g * o->k_dim, sizeof(float));
    l->sum = hri_arena_array(arena, g * HR_HEAD_DIM_MAX, sizeof(float));
    l->shifted = hri_arena_array(arena, g * o->v_dim, sizeof(float));
    l->groups = hri_arena_array(arena, lanes / HRI_LANES, sizeof(uint32_t));
    l->bins = hri_arena_array(arena, HRI_BINS, sizeof(uint32_t));
    l->bin_sum = hri_arena_array(arena, HRI_BINS, sizeof(float));
    l->state = hri_arena_array(arena, blocks, 1);
    l->turned = hri_arena_array(arena, bases, 1);
    l->ranked = hri_arena_array(arena, ranked_max(lanes, l->rest_bytes > 0), sizeof *l->ranked);
    l->taken = hri_arena_array(arena, lanes, 1);
    l->value_part = hri_arena_array(arena, blocks, sizeof(float));
    l->query = hri_arena_array(arena, 1, sizeof(struct hri_sketch_query));
    l->best = hri_arena_array(arena, g, sizeof(float));
    l->far = hri_arena_array(arena, g, sizeof(float));
    l->size = hri_arena_array(arena, g, sizeof(float));
    l->common = hri_arena_array(arena, g, sizeof(float));
    l->variance = hri_arena_array(arena, g * blocks, sizeof(float));
    l->drift = hri_arena_array(arena, g, sizeof(float));
    l->scale = hri_arena_array(arena, g, sizeof(float));
    l->inverse = hri_arena_array(arena, g, sizeof(float));
    l->q_square = hri_arena_array(arena, g, sizeof(float));
    l->codes_key = hri_arena_array(arena, g, sizeof(float));
    l->codes_value = hri_arena_array(arena, g, sizeof(float));
    l->audits = hri_arena_array(arena, hri_ladder_audits_max(o), sizeof(uint32_t));
    l->audit = hri_arena_array(arena, g * hri_ladder_audits_max(o), sizeof(struct hri_audit));
    l->lone = hri_arena_array(arena, hri_sketch_lone_max(o), sizeof(struct hri_lone));
    l->stray = hri_arena_array(arena, g * hri_strays_max(o), sizeof(float));
    l->corrected = hri_arena_array(arena, g, sizeof(float));
    l->left = hri_arena_array(arena, g, sizeof(double));
    l->codes_left = hri_arena_array(arena, g, sizeof(double));
    return l->codes_left != NULL;
}

size_t hri_ladder_bytes(const struct hri_index_options *o)
{
    size_t g = o->g, lanes = hri_sketch_lanes_max(o), blocks = hri_lanes_up(o->blocks_max);
    size_t bases = hri_sketch_bases_max(o);
    if (hri_sketch_bits(o) == 0)
        return 0;
    size_t floats = (g + 1) * lanes + (5 * g + 3) * blocks + g * HRI_LADDER_CHUNK +
                    (bases * (o->k_dim + 1) + HR_HEAD_DIM_MAX + o->v_dim + 11) * g;
    return floats * sizeof(float) + (lanes / HRI_LANES + 2 * HRI_BINS) * sizeof(uint32_t) + blocks +
           bases + ranked_max(lanes, hri_rests_wanted(o)) * sizeof(struct hri_ranked) + lanes +
           sizeof(struct hri_sketch_query) +
           hri_ladder_audits_max(o) * (sizeof(uint32_t) + g * sizeof(struct hri_audit)) +
           2 * g * sizeof(double) + hri_sketch_lone_max(o) * sizeof(struct hri_lone) +
           g * hri_strays_max(o) * sizeof(float) + 43 * 64;
}

struct hri_ladder hri_ladder_at(const struct hri_index_head *head, const struct hri_select_in *in,
                                struct hri_step *step)
{
    const struct hri_index_options *o = &head->options;
    struct hri_arena arena;
    struct hri_ladder l = {
        .head = head, .in = in, .step = step, .rest_bytes = head->sketch->rests.bytes};
    size_t before = hri_round_up(hri_step_bytes(o), 64);
    hri_arena_init_buffer(&arena, (char *)in->scratch + before, hri_ladder_bytes(o));
    bool all = take(&arena, o, &l);
    HRI_ASSERT(all);
    (void)all;
    return l;
}

float hri_ladder_corrected(const struct hri_index_head *head, const struct hri_select_in *in,
                           uint32_t g)
{
    struct hri_step step = hri_step_at(head, in);
    return hri_ladder_at(head, in, &step).corrected[g];
}

enum hri_ladder_known hri_ladder_known(const struct hri_index_head *head,
                                       const struct hri_select_in *in, uint32_t block)
{
    struct hri_step step = hri_step_at(head, in);
    uint8_t state = hri_ladder_at(head, in, &step).state[block];
    return state == HRI_UNREAD  ? HRI_KNOWN_SUMMARY
           : state == HRI_LIGHT ? HRI_KNOWN_LIGHT
                                : HRI_KNOWN_ROWS;
}

enum hri_taken hri_ladder_taken(const struct hri_index_head *head, const struct hri_select_in *in,
                                uint32_t block, uint32_t row)
{
    struct hri_step step = hri_step_at(head, in);
    struct hri_ladder l = hri_ladder_at(head, in, &step);
    return l.state[block] == HRI_ROWS ? l.taken[head->sketch->first_lane[block] + row]
                                      : HRI_TAKEN_NOT;
}

/* -------------------------------------------------------------------------------- what to read */

/* Squared error that the unread blocks of query head g leave, over (far / size): by the audits' scatter, if that is more than level 0
 * itself expects, and by what the audits leave open of the sum. */
static double unread_of(struct hri_ladder *l, uint32_t g)
{
    const struct hri_step *step = l->step;
    size_t at = g * step->stride;
    struct hri_unread_sums sums =
        hri_pass_unread(step->weight + at, l->rate + at, l->head->n_blocks);
    struct hri_audited audited = hri_ladder_correct(l, g, sums.weight);
    double factor = audited.factor, total = (double)step->total[g], left = (double)sums.doubt;
    left = fmax(left, audited.scatter * (double)sums.square) +
           audited.common * (double)sums.weight * (double)sums.weight;
    return left * factor * factor / (total * total);
}

uint32_t hri_ladder_groups_add(struct hri_ladder *l, uint32_t b, uint32_t n)
{
    uint32_t lane = l->head->sketch->first_lane[b], next = n > 0 ? l->groups[n - 1] + 1 : 0;
    uint32_t first = lane / HRI_LANES, last = (lane + l->head->block_rows[b] - 1) / HRI_LANES;
    for (uint32_t j = first > next ? first : next; j <= last; j++)
        l->groups[n++] = j;
    return n;
}

void hri_ladder_values_add(struct hri_ladder *l, uint32_t i, uint32_t n, float *sum)
{
    const struct hri_index_options *o = &l->head->options;
    const struct hri_basis *basis = &l->head->sketch->bases[i];
    struct hri_sketch_rows rows = {l->head->sketch->codes, basis->n4, basis->n2};
    const int8_t *value[HR_HEAD_DIM_MAX];
    if (n == 0)
        return;
    memset(l->sum, 0, (size_t)o->g * basis->n * sizeof(float));
    o->kernels->sum_sketch(rows, o->g, l->groups, n, l->weight, l->stride, l->sum);
    for (uint32_t c = 0; c < basis->n; c++)
        value[c] = basis->value + (size_t)c * o->v_dim;
    o->kernels->sum_gather_i8(l->sum, basis->n, o->g, 0, o->v_dim, value, basis->value_scale,
                              basis->n, sum);
}

/* Groups of the heavy blocks of a basis that have been read: with a larger share than HEAVY of some query head's weight. */
static uint32_t heavy_list(struct hri_ladder *l, uint32_t basis)
{
    const struct hri_sketch *s = l->head->sketch;
    const struct hri_step *step = l->step;
    uint32_t n = 0;
    uint32_t begin = s->bases[basis].first_block, end = hri_basis_end(l->head, basis);
    for (uint32_t b = hri_ladder_next(l, begin); b < end; b = hri_ladder_next(l, b + 1)) {
        bool heavy = false;
        for (uint32_t g = 0; g < l->head->options.g; g++)
            heavy |= step->weight[g * step->stride + b] > HEAVY * step->total[g];
        if (!heavy || l->state[b] < HRI_LIGHT)
            continue;
        n = hri_ladder_groups_add(l, b, n);
    }
    return n;
}

/* Rows of heavy blocks may be of two kinds, and the query looks for one. */
static void values_shift(struct hri_ladder *l)
{
    const struct hri_index_head *head = l->head;
    memset(l->shifted, 0, (size_t)head->options.g * head->options.v_dim * sizeof(float));
    for (uint32_t i = 0; i < head->sketch->n_bases; i++)
        hri_ladder_values_add(l, i, heavy_list(l, i), l->shifted);
}

/* far and size change with every round: what was read may show that the output lies elsewhere. */
double hri_ladder_unread(struct hri_ladder *l)
{
    uint32_t dv = l->head->options.v_dim;
    double unread = 0;
    values_shift(l);
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        double left = unread_of(l, g);
        l->level0->output(l->head, l->in, l->step, g, l->shifted + (size_t)g * dv, &l->far[g],
                          &l->common[g], &l->size[g]);
        l->left[g] = l->size[g] > 0 ? left * (double)l->far[g] / (double)l->size[g] : 0;
        unread += l->left[g];
    }
    return unread;
}

/* The same per block, with the tails lifted, into step->work: at most 1 each, as there is no larger error. */
static void doubts_fill(struct hri_ladder *l)
{
    const struct hri_step *step = l->step;
    uint32_t n = l->head->n_blocks;
    memset(step->work, 0, n * sizeof *step->work);
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float factor = l->size[g] > 0 ? sqrtf(l->far[g] / l->size[g]) : 0;
        size_t at = g * step->stride;
        hri_pass_doubt_add(step->weight + at, l->lifted + at, factor / step->total[g], step->work,
                           n);
    }
}

static uint32_t unread_mark(struct hri_ladder *l, const uint32_t *list, uint32_t n, uint32_t bin)
{
    const float *doubt = l->step->work;
    uint32_t fresh = 0;
    for (uint32_t i = 0; i < n; i++)
        if (l->state[list[i]] == HRI_UNREAD && hri_bin_of(doubt[list[i]]) >= bin) {
            l->state[list[i]] = HRI_PENDING;
            fresh++;
        }
    return fresh;
}

uint32_t hri_ladder_bin_below(const struct hri_ladder *l, double sum, double most)
{
    for (uint32_t i = 0; i < HRI_BINS; i++) {
        sum += (double)l->bin_sum[i];
        if (sum > most)
            return i;
    }
    return HRI_BINS;
}

static uint32_t all_mark(struct hri_ladder *l)
{
    uint32_t fresh = 0;
    for (uint32_t b = 0; b < l->head->n_blocks; b++)
        if (l->state[b] == HRI_UNREAD) {
            l->state[b] = HRI_PENDING;
            fresh++;
        }
    return fresh;
}

/* Of the groups that a block's lanes are in. */
static uint64_t block_bytes(const struct hri_ladder *l, uint32_t b)
{
    const struct hri_sketch *s = l->head->sketch;
    uint32_t lane = s->first_lane[b], last = lane + l->head->block_rows[b] - 1;
    return (uint64_t)(last / HRI_LANES - lane / HRI_LANES + 1) * s->lines * 64;
}

static uint64_t unread_bytes(const struct hri_ladder *l, const uint32_t *list, uint32_t n,
                             uint32_t bin)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        if (l->state[list[i]] == HRI_UNREAD && hri_bin_of(l->step->work[list[i]]) >= bin)
            bytes += block_bytes(l, list[i]);
    return bytes;
}

/* Where reading moves the sketches: the lowest bin, not below `bin`, from which on the blocks of the list can be paid for. */
static uint32_t bin_paid(const struct hri_ladder *l, const uint32_t *list, uint32_t n, uint32_t bin)
{
    uint32_t end = HRI_BINS;
    while (bin < end) {
        uint32_t middle = bin + (end - bin) / 2;
        if (unread_bytes(l, list, n, middle) > l->codes_budget)
            bin = middle + 1;
        else
            end = middle;
    }
    return bin;
}

uint32_t hri_ladder_pending_pay(struct hri_ladder *l)
{
    uint64_t bytes = 0;
    uint32_t kept = 0;
    for (uint32_t b = hri_ladder_next(l, 0); b < l->head->n_blocks; b = hri_ladder_next(l, b + 1)) {
        if (l->state[b] != HRI_PENDING)
            continue;
        bytes += block_bytes(l, b);
        if (bytes > l->codes_budget)
            l->state[b] = HRI_UNREAD;
        else
            kept++;
    }
    return kept;
}

uint32_t hri_ladder_mark(struct hri_ladder *l, float part)
{
    uint32_t n = l->head->n_blocks, n_large;
    uint32_t *large = (uint32_t *)(void *)l->ranked; /* nothing is ranked yet */
    const float *doubt = l->step->work;
    if (part < 0)
        return all_mark(l);
    doubts_fill(l);
    float most = hri_pass_sum(doubt, n) * part;
    if (!(most > 0))
        return 0;
    /* So small that all of them may stay. */
    float small = hri_bin_edge(hri_bin_of(most / (float)n));
    float below = hri_pass_split(doubt, small, large, &n_large, n);
    memset(l->bin_sum, 0, HRI_BINS * sizeof *l->bin_sum);
    for (uint32_t i = 0; i < n_large; i++)
        l->bin_sum[hri_bin_of(doubt[large[i]])] += doubt[large[i]];
    uint32_t bin = hri_ladder_bin_below(l, (double)below, (double)most);
    if (l->codes_move)
        bin = bin_paid(l, large, n_large, bin);
    return unread_mark(l, large, n_large, bin);
}

uint32_t hri_ladder_mark_clamped(struct hri_ladder *l)
{
    const struct hri_step *step = l->step;
    uint32_t fresh = 0;
    float variance = 0;
    for (uint32_t g = 0; g < l->head->options.g; g++)
        variance = hri_larger(variance, step->variance[g]);
    for (uint32_t b = 0; b < l->head->n_blocks; b++)
        if (variance * hri_block_spread(l->head, b) > 2 * HRI_HALF_VARIANCE_MAX) {
            l->state[b] = HRI_PENDING;
            fresh++;
        }
    return fresh;
}

/* ------------------------------------------------------------------------------ what it says */

/* What is added to the sketched part of the logits of block b beside its centre's: half the variance that is missed. */
static float half_missed(const struct hri_ladder *l, uint32_t g, uint32_t b, uint32_t basis)
{
    float half = 0.5f * hri_sketch_miss(l->head, b) * l->rest[basis * l->head->options.g + g];
    return hri_smaller(half, HALF_MISSED_MAX);
}

/* With a soft cap the sum of centre and sketch, less the sketches' mean, is bent. */
static void block_bend(const struct hri_ladder *l, uint32_t g, uint32_t b, float mean, float *score)
{
    float cap = l->head->options.soft_cap, dot = l->step->dots[g * l->step->stride + b];
    for (uint32_t i = 0; i < l->head->block_rows[b]; i++)
        score[i] = cap * tanhf((dot + score[i] - mean) / cap) - dot;
}

static bool has_weights(const struct hri_ladder *l, uint32_t b)
{
    return l->state[b] >= HRI_LIGHT;
}

/* Raises top where a row read exceeds it by so much that its weight could overflow. */
static bool top_raise(struct hri_ladder *l, uint32_t g, float most)
{
    struct hri_step *step = l->step;
    if (!(most > step->top[g] + EXPONENT_MAX))
        return false;
    float factor = expf(step->top[g] - most);
    for (uint32_t b = 0; b < l->head->n_blocks; b++) {
        step->weight[g * step->stride + b] *= factor;
        if (!has_weights(l, b))
            continue;
        l->square[g * step->stride + b] *= factor * factor;
        for (uint32_t i = 0; i < l->head->block_rows[b]; i++)
            l->weight[g * l->stride + l->head->sketch->first_lane[b] + i] *= factor;
    }
    step->top[g] = most;
    return true;
}

void hri_ladder_lanes_clear(struct hri_ladder *l, uint32_t first, uint32_t end)
{
    for (uint32_t g = 0; g < l->head->options.g && first < end; g++)
        memset(l->weight + g * l->stride + first, 0, (end - first) * sizeof(float));
}

/* Lanes that block b shares its first and last group with weigh nothing as long as their blocks are not read. */
static void neighbours_clear(struct hri_ladder *l, uint32_t b)
{
    const struct hri_sketch *s = l->head->sketch;
    const uint8_t *rows = l->head->block_rows;
    uint32_t first = s->first_lane[b] / HRI_LANES * HRI_LANES;
    uint32_t end = hri_lanes_up(s->first_lane[b] + rows[b]), at = s->first_lane[b];
    for (uint32_t i = b; i-- > 0 && at > first; at = s->first_lane[i])
        if (!has_weights(l, i))
            hri_ladder_lanes_clear(l, s->first_lane[i] > first ? s->first_lane[i] : first, at);
    at = s->first_lane[b] + rows[b];
    for (uint32_t i = b + 1; i < l->head->n_blocks && s->first_lane[i] < end; i++) {
        at = s->first_lane[i] + rows[i];
        if (!has_weights(l, i))
            hri_ladder_lanes_clear(l, s->first_lane[i], at < end ? at : end);
    }
    hri_ladder_lanes_clear(l, at, end); /* no rows at all */
}

/* Residuals of a block's rows add up to nothing, and so do their scores: the mean that those of the sketches have is an error that all
 * rows have in common. Rows that are nearly alike have no other, since no code stands for zero. score: of n_strays rows the true one, which
 * stays; sum[g]: of the scores where there is none. shift_out[g]: what is still to be taken off all scores, after which those of strays are
 * theirs. */
static void block_centre(struct hri_ladder *l, uint32_t b, uint32_t n_strays, const float *half,
                         const float *sums, float *score, float *shift_out)
{
    uint32_t rows = l->head->block_rows[b], n_g = l->head->options.g;
    float add[HR_GROUP_MAX];
    bool bent = l->head->options.soft_cap > 0;
    for (uint32_t g = 0; g < n_g; g++) {
        float sum = n_strays > 0 ? hri_sum(score + g * HRI_LADDER_CHUNK, rows) : sums[g];
        float mean = rows > n_strays ? sum / (float)(rows - n_strays) : 0;
        shift_out[g] = mean - half[g];
        add[g] = bent ? mean : mean - half[g];
    }
    if (n_strays > 0)
        hri_ladder_strays_lift(l, n_strays, add, score);
    for (uint32_t g = 0; bent && g < n_g; g++) {
        block_bend(l, g, b, shift_out[g] + half[g], score + g * HRI_LADDER_CHUNK);
        shift_out[g] = add[g] = -half[g];
    }
    if (bent && n_strays > 0)
        hri_ladder_strays_lift(l, n_strays, add, score);
}

/* What is known of a row is the gain times what its sketch says. sum_out[g]: of the scores. */
static void block_gain(const struct hri_ladder *l, uint32_t b, float *score, float *sum_out)
{
    float gain = hri_sketch_gain(l->head, b);
    for (uint32_t g = 0; g < l->head->options.g; g++)
        sum_out[g] = hri_pass_scale(score + g * HRI_LADDER_CHUNK, gain, l->head->block_rows[b]);
}

/* Weights of the rows of block b, whose scores are given. */
static void block_weigh(struct hri_ladder *l, uint32_t basis, uint32_t b, float *score)
{
    const struct hri_index_head *head = l->head;
    struct hri_step *step = l->step;
    uint32_t lane = head->sketch->first_lane[b], n_g = head->options.g;
    float shift[HR_GROUP_MAX] = {0}, sum[HR_GROUP_MAX], square[HR_GROUP_MAX], most[HR_GROUP_MAX];
    float half[HR_GROUP_MAX] = {0}, off[HR_GROUP_MAX] = {0};
    for (uint32_t g = 0; g < n_g; g++)
        half[g] = half_missed(l, g, b, basis);
    block_gain(l, b, score, sum);
    block_centre(l, b, hri_ladder_strays_put(l, b, score), half, sum, score, off);
    for (bool again = true; again;) {
        for (uint32_t g = 0; g < n_g; g++)
            shift[g] = step->top[g] - (step->dots[g * step->stride + b] - off[g]);
        head->options.kernels->weigh_rows(score, HRI_LADDER_CHUNK, shift, n_g, head->block_rows[b],
                                          l->weight + lane, l->stride, sum, square, most);
        again = false;
        for (uint32_t g = 0; g < n_g; g++) {
            most[g] += step->top[g] - shift[g];
            l->best[g] = hri_larger(l->best[g], most[g]);
            again |= top_raise(l, g, most[g]);
        }
    }
    for (uint32_t g = 0; g < n_g; g++) {
        size_t at = g * step->stride + b;
        step->weight[at] = sum[g];
        l->square[at] = square[g];
        l->rate[at] = l->lifted[at] = 0;
    }
    neighbours_clear(l, b);
    l->state[b] = HRI_READ;
}

/* The queries in a basis, once a step. */
static const float *basis_turn(struct hri_ladder *l, uint32_t i)
{
    const struct hri_index_head *head = l->head;
    uint32_t g = head->options.g;
    float *x = l->x + (size_t)i * g * head->options.k_dim;
    if (!l->turned[i])
        hri_sketch_turn(head, &head->sketch->bases[i], l->in->q, l->sum, x, l->rest + i * g);
    l->turned[i] = 1;
    return x;
}

static uint32_t pending_next(const struct hri_ladder *l, uint32_t b, uint32_t end)
{
    const uint8_t *at = b < end ? memchr(l->state + b, HRI_PENDING, end - b) : NULL;
    return at != NULL ? (uint32_t)(at - l->state) : end;
}

/* Lists the groups of 16 lanes of the pending blocks of a basis, the first of which is b. Returns how many there are. */
static uint32_t pending_list(struct hri_ladder *l, uint32_t b, uint32_t end)
{
    uint32_t n = 0;
    for (; b < end; b = pending_next(l, b + 1, end))
        n = hri_ladder_groups_add(l, b, n);
    return n;
}

/* The first groups of a list: those that follow are asked for while they are scored. */
#define FIRST_GROUPS 16u

static void codes_prefetch(const struct hri_ladder *l, uint32_t n, size_t group_bytes)
{
    for (uint32_t i = 0; i < n && i < FIRST_GROUPS; i++)
        for (size_t at = 0; at < group_bytes; at += 64)
            __builtin_prefetch(l->head->sketch->codes + l->groups[i] * group_bytes + at);
}

/* Of the list from its i-th group on as much as a chunk holds, scored for block b whose lanes begin there and for those that follow, as
 * long as theirs are scored, too. Returns the first that is not, or end; *i_out: the place of its first group. */
static uint32_t chunk_weigh(struct hri_ladder *l, uint32_t basis, uint32_t b, uint32_t end,
                            uint32_t *i_out, uint32_t n)
{
    const struct hri_index_head *head = l->head;
    const struct hri_sketch *s = head->sketch;
    struct hri_sketch_rows rows = {s->codes, s->bases[basis].n4, s->bases[basis].n2};
    uint32_t first = *i_out, i = first, left = n - first;
    uint32_t scored = left < HRI_LADDER_CHUNK / HRI_LANES ? left : HRI_LADDER_CHUNK / HRI_LANES;
    head->options.kernels->score_sketch(l->query, head->options.g, rows, l->groups + first, scored,
                                        left, l->score, HRI_LADDER_CHUNK);
    for (; b < end; b = pending_next(l, b + 1, end)) {
        uint32_t lane = s->first_lane[b], last = (lane + head->block_rows[b] - 1) / HRI_LANES;
        if (l->groups[i] != lane / HRI_LANES)
            i++; /* else it shares its first group with the last block */
        if (i + last - lane / HRI_LANES >= first + scored)
            break;
        block_weigh(l, basis, b, l->score + (i - first) * HRI_LANES + lane % HRI_LANES);
        i += last - lane / HRI_LANES;
    }
    *i_out = i;
    return b;
}

static uint64_t basis_read(struct hri_ladder *l, uint32_t i)
{
    const struct hri_index_head *head = l->head;
    const struct hri_basis *basis = &head->sketch->bases[i];
    uint32_t end = hri_basis_end(head, i), b = pending_next(l, basis->first_block, end);
    size_t group_bytes = hri_sketch_group_bytes(basis->n4, basis->n2);
    if (b == end)
        return 0;
    uint32_t n = pending_list(l, b, end);
    codes_prefetch(l, n, group_bytes);
    hri_sketch_query_make(l->query, basis_turn(l, i), head->options.g, basis->n4, basis->n2);
    for (uint32_t at = 0; b < end;)
        b = chunk_weigh(l, i, b, end, &at, n);
    return n * group_bytes;
}

uint64_t hri_ladder_read_pending(struct hri_ladder *l)
{
    uint64_t bytes = 0;
    l->stray_at = 0;
    for (uint32_t i = 0; i < l->head->sketch->n_bases; i++)
        bytes += basis_read(l, i);
    return bytes;
}

/* Level 0 may have put a block far above where its rows turn out to be: then top comes down to what there is, and the weights of unread
 * blocks are made anew, since they may have vanished. True if so: those of the others are to be made again, too. */
static bool top_lower(struct hri_ladder *l, uint32_t g)
{
    const struct hri_index_head *head = l->head;
    struct hri_step *step = l->step;
    float *weight = step->weight + g * step->stride;
    bool near = l->in->near && l->in->near->l[g] > 0;
    float top = near ? hri_larger(l->best[g], l->in->near->m[g]) : l->best[g];
    for (uint32_t b = 0; b < head->n_blocks; b++)
        if (!has_weights(l, b))
            top = hri_larger(top, hri_step_log_mass(head, step, g, b));
    if (!(top < step->top[g] + EXPONENT_MIN))
        return false;
    step->top[g] = top;
    for (uint32_t b = 0; b < head->n_blocks; b++)
        if (!has_weights(l, b))
            weight[b] = l->corrected[g] * expf(hri_step_log_mass(head, step, g, b) - top);
    return true;
}

static bool tops_lower(struct hri_ladder *l)
{
    const struct hri_step *step = l->step;
    bool lowered = false;
    for (uint32_t g = 0; g < l->head->options.g; g++)
        if (l->head->options.kernels->max(step->weight + g * step->stride, l->head->n_blocks) <
            expf(EXPONENT_MIN))
            lowered |= top_lower(l, g);
    for (uint32_t b = 0; lowered && b < l->head->n_blocks; b++)
        if (has_weights(l, b))
            l->state[b] = HRI_PENDING;
    return lowered;
}

uint64_t hri_ladder_read(struct hri_ladder *l)
{
    const struct hri_step *step = l->step;
    const struct hri_partial *near = l->in->near;
    uint64_t bytes = hri_ladder_read_pending(l);
    if (tops_lower(l))
        (void)hri_ladder_read_pending(l); /* the same ones again, which are at hand */
    /* Summed anew: what level 0 had put too high must leave no rounding of its own behind. */
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        step->total[g] = hri_pass_sum(step->weight + g * step->stride, l->head->n_blocks);
        if (near && near->l[g] > 0)
            step->total[g] += near->l[g] * expf(near->m[g] - step->top[g]);
    }
    return bytes;
}
