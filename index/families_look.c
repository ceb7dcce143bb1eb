/* A step's look at the families: which of them are opened (docs/algorithm.md, Families). */
#include "index/families.h"

#include "base/arena.h"
#include "base/assert.h"
#include "base/half.h"
#include "index/passes.h"
#include "index/rows.h"

#include <math.h>
#include <string.h>

/* What closed families may leave of the output, and of a tolerance. */
#define LEFT_MAX          0.003f
#define LEFT_OF_TOLERANCE 0.3f
/* Opening stops after so many rounds; what is left then counts as predicted error. Every round knows the total better. */
#define ROUNDS_MAX 4
/* Above such a share of all blocks looking at all of them is as fast. */
#define SEEN_MAX(n) ((n) / 4 * 3)
/* Families with a larger share of some head's attention enter the output that errors are measured against. */
#define OUTPUT_SHARE_MIN 0.002f
/* Lines of 16 blocks that are scored at a time. */
#define LINES 32u
/* How far ahead families' lines and blocks' values are asked for. */
#define LINES_AHEAD 4u
#define SEE_AHEAD   8u
/* Everything of one look. Weights are masses over exp(top). */
struct look {
    const struct hri_index_head *head;
    const struct hri_families *fs;
    const struct hri_select_in *in;
    struct hri_seen *seen;
    uint32_t n, n_blocks; /* families, and their blocks */
    size_t stride;        /* families up to 16 */
    size_t block_stride;  /* of dots */
    float *dots;          /* [G][block_stride] of blocks, the caller's */
    float *weight;        /* [G][stride] of families: by their blocks where they are open */
    float *rate;          /* [G][stride] 0: open */
    float *doubt;         /* [stride] */
    float *bins;          /* [HRI_BINS] */
    uint8_t *open;        /* [stride] */
    uint8_t *codes;       /* [LINES][16 k_dim] */
    float *scale;         /* [LINES * 16] */
    float *line;          /* [G][LINES * 16] */
    uint32_t n_open, n_seen;
    float top[HR_GROUP_MAX], near[HR_GROUP_MAX], loose[HR_GROUP_MAX], total[HR_GROUP_MAX];
    float variance[HR_GROUP_MAX], between[HR_GROUP_MAX]; /* q'Cq of rows and of blocks */
    float common[HR_GROUP_MAX];                          /* q . k_mean */
    float *shift, *between_shift;                        /* [G][v_dim] */
};

static size_t seen_blocks_max(const struct hri_index_options *o)
{
    return hri_lanes_up(SEEN_MAX(o->blocks_max) + HRI_BROOD_BLOCKS + HRI_LANES);
}

static size_t state_bytes(const struct hri_index_options *o)
{
    size_t families = hri_lanes_up(hri_families_max(o)), g = o->g, blocks = seen_blocks_max(o);
    return sizeof(struct hri_seen) + (2 * g + 1) * families * sizeof(float) + families +
           HRI_BINS * sizeof(float) + LINES * HRI_LANES * (o->k_dim + (g + 1) * sizeof(float)) +
           4 * g * o->v_dim * sizeof(float) + 4 * HR_GROUP_MAX * sizeof(float) +
           blocks * (2 * sizeof(uint32_t) + sizeof(uint16_t) + sizeof(float) + 3 + o->v_dim) +
           27 * 64;
}

/* The step of all blocks, of which the dots are needed in any case; what is seen; the step of that. */
size_t hri_families_step_bytes(const struct hri_index_options *o)
{
    return hri_round_up(hri_step_bytes(o), 64) + hri_round_up(state_bytes(o), 64) +
           hri_step_bytes(o);
}

static struct hri_seen *seen_at(const struct hri_index_head *head, const struct hri_select_in *in)
{
    return (struct hri_seen *)((char *)in->scratch +
                               hri_round_up(hri_step_bytes(&head->options), 64));
}

struct hri_seen *hri_families_seen_last(const struct hri_index_head *head,
                                        const struct hri_select_in *in)
{
    struct hri_seen *seen = head->families ? seen_at(head, in) : NULL;
    return seen && seen->some ? seen : NULL;
}

uint64_t hri_families_bytes_seen(const struct hri_seen *seen)
{
    const struct hri_index_options *o = &seen->head.options;
    uint64_t codes = o->k_dim + o->v_dim + 2 * sizeof(float), known = sizeof(uint16_t) + 1;
    uint64_t of_family = codes + known + sizeof(uint16_t) + 3 * sizeof(uint32_t);
    uint64_t of_block = codes + known + sizeof(uint32_t) + 1;
    return seen->n_families * of_family + seen->head.n_blocks * of_block;
}

/* The state's arrays; those of the view are as large as it may get. */
static void look_layout(struct look *l)
{
    const struct hri_index_options *o = &l->head->options;
    struct hri_seen *seen = l->seen;
    struct hri_arena arena;
    size_t blocks = seen_blocks_max(o), values = (size_t)o->g * o->v_dim;
    hri_arena_init_buffer(&arena, seen, state_bytes(o));
    (void)hri_arena_array(&arena, 1, sizeof *seen);
    seen->near = (struct hri_partial){.m = hri_arena_array(&arena, HR_GROUP_MAX, sizeof(float)),
                                      .l = hri_arena_array(&arena, HR_GROUP_MAX, sizeof(float)),
                                      .o = hri_arena_array(&arena, values, sizeof(float))};
    seen->closed = (struct hri_partial){.m = hri_arena_array(&arena, HR_GROUP_MAX, sizeof(float)),
                                        .l = hri_arena_array(&arena, HR_GROUP_MAX, sizeof(float)),
                                        .o = hri_arena_array(&arena, values, sizeof(float))};
    l->shift = hri_arena_array(&arena, values, sizeof(float));
    l->between_shift = hri_arena_array(&arena, values, sizeof(float));
    l->weight = hri_arena_array(&arena, o->g * l->stride, sizeof(float));
    l->rate = hri_arena_array(&arena, o->g * l->stride, sizeof(float));
    l->doubt = hri_arena_array(&arena, l->stride, sizeof(float));
    l->open = hri_arena_array(&arena, l->stride, 1);
    l->bins = hri_arena_array(&arena, HRI_BINS, sizeof(float));
    l->codes = hri_arena_array(&arena, LINES * HRI_LANES, o->k_dim);
    l->scale = hri_arena_array(&arena, LINES * HRI_LANES, sizeof(float));
    l->line = hri_arena_array(&arena, o->g * LINES * HRI_LANES, sizeof(float));
    seen->block = hri_arena_array(&arena, blocks, sizeof(uint32_t));
    seen->chosen = hri_arena_array(&arena, blocks, sizeof(uint32_t));
    seen->head.shape.spread = hri_arena_array(&arena, blocks, sizeof(uint16_t));
    seen->head.shape.peak = hri_arena_array(&arena, blocks, 1);
    seen->head.block_rows = hri_arena_array(&arena, blocks, 1);
    seen->in.place = hri_arena_array(&arena, blocks, 1);
    seen->head.summary.v_scale = hri_arena_array(&arena, blocks, sizeof(float));
    seen->head.summary.v_codes = hri_arena_array(&arena, blocks, o->v_dim);
    HRI_ASSERT(seen->head.summary.v_codes != NULL);
}

/* -- weights -- */

static float half_variance(float variance)
{
    float half = 0.5f * variance;
    return half < HRI_HALF_VARIANCE_MAX ? half : HRI_HALF_VARIANCE_MAX;
}

/* The largest logit becomes `top`; what is known so far is rescaled. */
static void top_raise(struct look *l, uint32_t g, float top)
{
    float factor = expf(l->top[g] - top), *weight = l->weight + g * l->stride;
    if (!(top > l->top[g]))
        return;
    for (uint32_t f = 0; f < l->n; f++)
        weight[f] *= factor;
    l->near[g] *= factor;
    l->loose[g] *= factor;
    l->top[g] = top;
}

static void total_sum(struct look *l, uint32_t g)
{
    l->total[g] = l->near[g] + l->loose[g] + hri_pass_sum(l->weight + g * l->stride, l->n);
}

/* Weights of all families as their summaries have them. */
static void families_weigh(struct look *l)
{
    const struct hri_kernels *kernels = l->head->options.kernels;
    const struct hri_partial *near = l->in->near;
    const struct hri_families *fs = l->fs;
    struct hri_centroids c = {fs->top.summary.k_codes, fs->top.summary.k_scale, l->n};
    kernels->score_centroids(l->in->q, l->head->options.g, l->head->options.k_dim, c, l->weight,
                             l->stride);
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float *weight = l->weight + g * l->stride;
        for (uint32_t f = 0; f < l->n; f++)
            weight[f] += l->common[g];
        hri_pass_log_weights(weight, fs->top.shape.spread, 0.5f * l->between[g],
                             HRI_HALF_VARIANCE_MAX, l->doubt, l->n);
        hri_pass_log_weights(l->doubt, fs->within, 0.5f * l->variance[g], HRI_HALF_VARIANCE_MAX,
                             weight, l->n);
        l->top[g] = kernels->max(weight, l->n);
        bool has_near = near && near->l[g] > 0;
        if (has_near && near->m[g] > l->top[g])
            l->top[g] = near->m[g];
        kernels->exp_sum(weight, l->top[g], weight, l->n);
        for (uint32_t f = 0; f < l->n; f++)
            weight[f] *= (float)l->fs->rows[f];
        l->near[g] = has_near ? near->l[g] * expf(near->m[g] - l->top[g]) : 0;
        l->loose[g] = 0;
    }
}

/* The mass of a run of scored blocks, whose dots become logits on the way. block NULL: they are numbered from `first` on. */
static float run_mass(struct look *l, uint32_t g, float *dots, const uint32_t *block,
                      uint32_t first, uint32_t n)
{
    const struct hri_kernels *kernels = l->head->options.kernels;
    float mass = 0, top;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t b = block ? block[i] : first + i;
        dots[i] += half_variance(l->variance[g] * hri_block_spread(l->head, b));
    }
    top = kernels->max(dots, n);
    top_raise(l, g, top);
    kernels->exp_sum(dots, l->top[g], dots, n);
    for (uint32_t i = 0; i < n; i++)
        mass += dots[i] * (float)l->head->block_rows[block ? block[i] : first + i];
    return mass;
}

/* Blocks of no brood yet: always looked at. */
static void loose_score(struct look *l)
{
    const struct hri_index_options *o = &l->head->options;
    const struct hri_summary *s = &l->head->summary;
    uint32_t first = l->n_blocks, n = l->head->n_blocks - first;
    struct hri_centroids c = {s->k_codes + (size_t)first * o->k_dim, s->k_scale + first, n};
    l->n_seen = n;
    if (n == 0)
        return;
    o->kernels->score_centroids(l->in->q, o->g, o->k_dim, c, l->dots + first, l->block_stride);
    for (uint32_t g = 0; g < o->g; g++) {
        float *dots = l->dots + g * l->block_stride + first;
        for (uint32_t i = 0; i < n; i++)
            dots[i] += l->common[g];
        for (uint32_t i = 0; i < n; i += LINES * HRI_LANES) {
            uint32_t part = n - i < LINES * HRI_LANES ? n - i : LINES * HRI_LANES;
            memcpy(l->line, dots + i, part * sizeof(float));
            float mass = run_mass(l, g, l->line, NULL, first + i, part);
            l->loose[g] += mass;
        }
    }
}

/* Scores of the families list[n], whose blocks fill at most LINES lines: dots of their blocks, and the families' weights by them. */
static void lines_score(struct look *l, const uint32_t *list, uint32_t n, uint32_t n_lines)
{
    const struct hri_index_options *o = &l->head->options;
    struct hri_centroids c = {l->codes, l->scale, n_lines * HRI_LANES};
    const uint32_t *first = l->fs->first;
    size_t stride = LINES * HRI_LANES;
    o->kernels->score_centroids(l->in->q, o->g, o->k_dim, c, l->line, stride);
    for (uint32_t g = 0; g < o->g; g++) {
        float *line = l->line + g * stride;
        uint32_t last_line = first[list[0]] / HRI_LANES, at = 0;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t begin = first[list[i]], size = first[list[i] + 1] - begin;
            const uint32_t *member = l->fs->member + begin;
            /* Lines were copied in order, each once: this family's first is the last one's last, or the one after it. */
            if (i > 0 && begin / HRI_LANES != last_line)
                at++;
            float *dots = line + (size_t)at * HRI_LANES + begin % HRI_LANES;
            for (uint32_t j = 0; j < size; j++) {
                dots[j] += l->common[g];
                l->dots[g * l->block_stride + member[j]] = dots[j];
            }
            l->weight[g * l->stride + list[i]] = run_mass(l, g, dots, member, 0, size);
            last_line = (begin + size - 1) / HRI_LANES;
            at += last_line - begin / HRI_LANES;
        }
    }
}

/* A family's summaries lie anywhere: they are asked for while others before them are copied. */
static void lines_ahead(const struct look *l, const uint32_t *list, uint32_t n, uint32_t i)
{
    const struct hri_families *fs = l->fs;
    if (i >= n)
        return;
    uint32_t first = fs->first[list[i]] / HRI_LANES,
             end = (fs->first[list[i] + 1] - 1) / HRI_LANES + 1;
    size_t line_bytes = (size_t)HRI_LANES * l->head->options.k_dim;
    for (size_t at = first * line_bytes; at < end * line_bytes; at += 64)
        __builtin_prefetch(fs->k_codes + at);
}

/* Opens the families list[n], ascending. */
static void families_open(struct look *l, const uint32_t *list, uint32_t n)
{
    const struct hri_families *fs = l->fs;
    size_t line_bytes = (size_t)HRI_LANES * l->head->options.k_dim;
    uint32_t n_lines = 0, begin = 0, copied = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t f = list[i], line = fs->first[f] / HRI_LANES,
                 last = (fs->first[f + 1] - 1) / HRI_LANES;
        if (n_lines + (last - line + 1) > LINES) {
            lines_score(l, list + begin, i - begin, n_lines);
            begin = i;
            n_lines = 0;
            copied = UINT32_MAX;
        }
        lines_ahead(l, list, n, i + LINES_AHEAD);
        for (; line <= last; line++) {
            if (line == copied)
                continue;
            memcpy(l->codes + n_lines * line_bytes, fs->k_codes + line * line_bytes, line_bytes);
            memcpy(l->scale + n_lines * HRI_LANES, fs->k_scale + (size_t)line * HRI_LANES,
                   HRI_LANES * sizeof(float));
            n_lines++;
            copied = line;
        }
        l->open[f] = 1;
        for (uint32_t g = 0; g < l->head->options.g; g++)
            l->rate[g * l->stride + f] = 0;
        l->n_seen += fs->first[f + 1] - fs->first[f];
    }
    if (n > begin)
        lines_score(l, list + begin, n - begin, n_lines);
    l->n_open += n;
}

/* -- which -- */

/* A family whose farthest block may be all that a query looks for is worth opening for that, as a block is for its rows; for choosing
 * only. */
static void family_lift(struct look *l, uint32_t f, float log_blocks)
{
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float x = l->between[g] * hri_f32_from_bf16(l->fs->top.shape.spread[f]);
        l->rate[g * l->stride + f] *=
            hri_tail_factor(x, l->fs->top.shape.peak[f] / 16.0f, log_blocks);
    }
}

/* rate[g][f]: expected squared error of a family's weight, relative, while it is closed. */
static void rates_fill(struct look *l)
{
    const struct hri_families *fs = l->fs;
    float largest = 0;
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        hri_pass_family_rates(fs->top.shape.spread, fs->within, fs->per_block, fs->per_row,
                              l->between[g], l->variance[g], l->rate + g * l->stride, l->n);
        largest = hri_larger(largest, l->between[g]);
    }
    for (uint32_t f = 0; f < l->n; f++) {
        float peak = fs->top.shape.peak[f] / 16.0f,
              log_blocks = l->head->log_rows[fs->first[f + 1] - fs->first[f]];
        float x = largest * hri_f32_from_bf16(fs->top.shape.spread[f]);
        if (hri_stands_out(x, peak, log_blocks))
            family_lift(l, f, log_blocks);
    }
}

/* From a doubt to the square of the relative error, by the output as far as heavy families make it. */
static float error_factor(const struct look *l, uint32_t g)
{
    const struct hri_index_head *head = l->head;
    const struct hri_summary *s = &l->fs->top.summary;
    const float *weight = l->weight + g * l->stride;
    uint32_t dv = head->options.v_dim;
    float output[HR_HEAD_DIM_MAX] = {0};
    uint32_t *heavy = l->seen->block, n_heavy; /* not needed for its own yet */
    float rest =
        l->loose[g] + hri_pass_split(weight, OUTPUT_SHARE_MIN * l->total[g], heavy, &n_heavy, l->n);
    for (uint32_t i = 0; i < n_heavy; i++)
        hri_pass_value_add(s->v_codes + (size_t)heavy[i] * dv,
                           weight[heavy[i]] * s->v_scale[heavy[i]], output, dv);
    float scale = l->near[g] > 0 ? l->near[g] / l->in->near->l[g] : 0;
    for (uint32_t j = 0; j < dv; j++) {
        output[j] += rest * head->shape.v_mean[j];
        if (scale > 0)
            output[j] += scale * l->in->near->o[(size_t)g * dv + j];
        output[j] /= l->total[g];
    }
    float common;
    return hri_error_factor(head, output, &common);
}

/* doubt[f]: what closed family f leaves of the squared relative error, summed over the group; returns their sum. */
static float doubts_fill(struct look *l)
{
    memset(l->doubt, 0, l->n * sizeof *l->doubt);
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        total_sum(l, g);
        hri_pass_doubt_add(l->weight + g * l->stride, l->rate + g * l->stride,
                           sqrtf(error_factor(l, g)) / l->total[g], l->doubt, l->n);
    }
    return hri_pass_sum(l->doubt, l->n);
}

/* The families with most doubt, so that the others leave at most `most` together. */
static uint32_t worst_list(struct look *l, float most, uint32_t *list)
{
    uint32_t n = 0, bin = 0;
    float sum = 0;
    memset(l->bins, 0, HRI_BINS * sizeof *l->bins);
    for (uint32_t f = 0; f < l->n; f++)
        l->bins[hri_bin_of(l->doubt[f])] += l->doubt[f];
    while (bin < HRI_BINS && sum + l->bins[bin] <= most)
        sum += l->bins[bin++];
    for (uint32_t f = 0; f < l->n; f++)
        if (!l->open[f] && hri_bin_of(l->doubt[f]) >= bin)
            list[n++] = f;
    return n;
}

/* False: so many matter that looking at all blocks is as fast. */
static bool families_choose(struct look *l)
{
    float error = l->in->tolerance > 0 ? LEFT_OF_TOLERANCE * (float)l->in->tolerance : LEFT_MAX;
    float most = error * error * (float)l->head->options.g;
    uint32_t *list =
        l->seen->chosen; /* not needed for its own yet, and as large as what may be seen */
    for (int round = 0; round < ROUNDS_MAX && doubts_fill(l) > most; round++) {
        uint32_t n = worst_list(l, 0.5f * most, list), n_blocks = 0;
        for (uint32_t i = 0; i < n; i++)
            n_blocks += l->fs->first[list[i] + 1] - l->fs->first[list[i]];
        if (l->n_seen + n_blocks > SEEN_MAX(l->head->n_blocks))
            return false;
        families_open(l, list, n);
    }
    return true;
}

/* -- the view -- */

static void block_ahead(const struct look *l, uint32_t b)
{
    const struct hri_index_options *o = &l->head->options;
    const int8_t *codes = l->head->summary.v_codes + (size_t)b * o->v_dim;
    for (uint32_t at = 0; at < o->v_dim; at += 64)
        __builtin_prefetch(codes + at);
}

static void block_see(struct look *l, uint32_t b)
{
    const struct hri_index_head *head = l->head;
    struct hri_seen *seen = l->seen;
    uint32_t at = seen->head.n_blocks++, dv = head->options.v_dim;
    uint8_t *place = (uint8_t *)seen->in.place;
    seen->block[at] = b;
    seen->head.block_rows[at] = head->block_rows[b];
    seen->head.shape.spread[at] = head->shape.spread[b];
    seen->head.shape.peak[at] = head->shape.peak[b];
    seen->head.summary.v_scale[at] = head->summary.v_scale[b];
    memcpy(seen->head.summary.v_codes + (size_t)at * dv, head->summary.v_codes + (size_t)b * dv,
           dv);
    place[at] = l->in->place ? l->in->place[b] : HRI_PLACE_HOST;
    seen->head.n_rows += head->block_rows[b];
}

/* The closed families' estimate: mass, values, what queries make of their spreads; and what they leave. */
static void closed_sum(struct look *l)
{
    const struct hri_index_options *o = &l->head->options;
    const struct hri_families *fs = l->fs;
    const struct hri_summary *s = &fs->top.summary;
    struct hri_partial *closed = &l->seen->closed;
    uint32_t dv = o->v_dim;
    memset(closed->o, 0, (size_t)o->g * dv * sizeof(float));
    for (uint32_t g = 0; g < o->g; g++) {
        float *weight = l->weight + g * l->stride, *rate = l->doubt;
        for (uint32_t f = 0; f < l->n; f++)
            weight[f] = l->open[f] ? 0 : weight[f];
        float mass = hri_pass_sum(weight, l->n),
              lean = hri_pass_lean(weight, fs->within, l->open, 1, l->n),
              between = hri_pass_lean(weight, fs->top.shape.spread, l->open, 1, l->n);
        hri_pass_family_rates(fs->top.shape.spread, fs->within, fs->per_block, fs->per_row,
                              l->between[g], l->variance[g], rate, l->n);
        l->seen->left[g] = hri_pass_unread(weight, rate, l->n).doubt / (l->total[g] * l->total[g]);
        l->seen->drift[g] =
            HRI_DRIFT * (l->variance[g] * lean + l->between[g] * between) / l->total[g];
        for (uint32_t j = 0; j < dv; j++)
            closed->o[(size_t)g * dv + j] = lean * l->shift[(size_t)g * dv + j] +
                                            between * l->between_shift[(size_t)g * dv + j];
        closed->m[g] = mass > 0 ? l->top[g] : -INFINITY;
        closed->l[g] = mass;
    }
    o->kernels->weighted_sum_i8(l->weight, l->stride, o->g, l->n, dv, s->v_codes, s->v_scale,
                                closed->o);
}

static void view_fill(struct look *l)
{
    const struct hri_index_options *o = &l->head->options;
    const struct hri_families *fs = l->fs;
    struct hri_seen *seen = l->seen;
    for (uint32_t f = 0; f < l->n; f++)
        for (uint32_t at = fs->first[f]; l->open[f] && at < fs->first[f + 1]; at++) {
            if (at + SEE_AHEAD < fs->first[l->n])
                block_ahead(l, fs->member[at + SEE_AHEAD]);
            block_see(l, fs->member[at]);
        }
    for (uint32_t b = l->n_blocks; b < l->head->n_blocks; b++)
        block_see(l, b);
    closed_sum(l);
    hri_partial_clear(&seen->near, o->g, o->v_dim);
    if (l->in->near)
        hri_partial_merge(&seen->near, l->in->near, o->g, o->v_dim);
    hri_partial_merge(&seen->near, &seen->closed, o->g, o->v_dim);
    seen->in.near = &seen->near;
    seen->in.scratch = (char *)seen + hri_round_up(state_bytes(o), 64);
    seen->n_families = l->n;
    seen->n_closed = l->head->n_blocks - seen->head.n_blocks;
    struct hri_step step = hri_step_at(&seen->head, &seen->in);
    for (uint32_t g = 0; g < o->g; g++)
        for (uint32_t i = 0; i < seen->head.n_blocks; i++)
            step.dots[g * step.stride + i] = l->dots[g * l->block_stride + seen->block[i]];
    memcpy(step.variance, l->variance, o->g * sizeof(float));
    memcpy(step.shift, l->shift, (size_t)o->g * o->v_dim * sizeof(float));
}

struct hri_seen *hri_families_look(const struct hri_index_head *head,
                                   const struct hri_select_in *in)
{
    const struct hri_index_options *o = &head->options;
    if (!head->families)
        return NULL;
    struct look l = {.head = head, .fs = head->families, .in = in, .seen = seen_at(head, in)};
    struct hri_seen *seen = l.seen;
    l.n = hri_families_seen(head, &l.n_blocks);
    l.stride = hri_lanes_up(l.n);
    l.block_stride = hri_lanes_up(head->n_blocks);
    l.dots = in->scratch;
    seen->some = false;
    if (l.n == 0)
        return NULL;
    seen->head = *head;
    seen->in = *in;
    look_layout(&l);
    seen->head.n_blocks = seen->head.n_rows = 0;
    memset(l.open, 0, l.stride);
    for (uint32_t g = 0; g < o->g; g++)
        l.common[g] = hri_dot(in->q + (size_t)g * o->k_dim, head->summary.k_mean, o->k_dim);
    hri_shape_query(head, in->q, o->g, l.variance, l.shift);
    hri_shape_query(&l.fs->top, in->q, o->g, l.between, l.between_shift);
    families_weigh(&l);
    loose_score(&l);
    rates_fill(&l);
    if (l.n_seen > seen_blocks_max(o) || !families_choose(&l))
        return NULL;
    for (uint32_t g = 0; g < o->g; g++)
        total_sum(&l, g);
    view_fill(&l);
    seen->some = true;
    return seen;
}
