/* Inside of an index head: what the selectors see. */
#ifndef HRI_INDEX_HEAD_H
#define HRI_INDEX_HEAD_H

#include "index/points.h"
#include "index/selector_ops.h"
#include "index/sketch.h"
#include "index/sort.h"
#include "index/summary.h"

#include <math.h>

#define HRI_BLOCK_ROWS_LIMIT 255u /* rows of a block are kept in a byte */
#define HRI_LANES            16u  /* blocks are scored in lines of so many */

struct hri_families;

struct hri_index_head {
    struct hri_index_options options; /* rope.frequencies: the caller's, only good in create */
    const struct hri_selector_ops *ops;
    struct hri_qstats stats;
    bool keeps_stats; /* the selector has a use for them */
    void *state;      /* the selector's own */
    /* Forks: how many heads use this one's tables and state, which change no more until one is left. NULL: it alone. */
    uint32_t *shared;

    uint32_t n_blocks, n_rows;
    /* What there is together with blocks made ahead (hri_index_hide); n_blocks 0: there are none. */
    struct {
        uint32_t n_blocks, n_rows, n_bases, n_lone, n_strays;
    } ahead;
    uint32_t parts, part_rows; /* a block is stored in so many parts, of so many rows each */
    uint8_t *block_rows;       /* [blocks_max] device */
    float *k_step, *v_step;    /* [blocks_max] device, codec int8 only */
    float log_rows[HRI_BLOCK_ROWS_LIMIT + 1];

    struct hri_summary summary;    /* retroinfer, headrace */
    struct hri_bounds bounds;      /* quest */
    struct hri_shape shape;        /* headrace */
    struct hri_points points;      /* headrace */
    struct hri_sketch *sketch;     /* headrace with sketches, else NULL */
    struct hri_families *families; /* headrace without, in long sequences, else NULL */
};

/* Not fmaxf, which is a call unless NaNs may be ignored. */
static inline float hri_larger(float a, float b)
{
    return a > b ? a : b;
}

static inline float hri_smaller(float a, float b)
{
    return a < b ? a : b;
}

/* Sum with several chains, so that it is not as slow as one addition after the other. Of a block's rows; hri_pass_sum is for all blocks. */
static inline float hri_sum(const float *x, uint32_t n)
{
    float sum[8] = {0};
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (uint32_t j = 0; j < 8; j++)
            sum[j] += x[i + j];
    for (; i < n; i++)
        sum[0] += x[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

static inline uint32_t hri_lanes_up(uint32_t n)
{
    return (n + HRI_LANES - 1) / HRI_LANES * HRI_LANES;
}

/* Rows per block a recipe aims at. */
uint32_t hri_index_target_rows(const struct hri_recipe *recipe);
/* Of small segments. */
uint32_t hri_index_target_rows_least(const struct hri_recipe *recipe);

/* Takes blocks from ranked (n entries; key = worth per byte; reordered) into out, best first, while
 * what has to move for them fits. A block too large for what is left is passed over. Blocks in
 * frames have a budget of their own, since nothing moves for them: reuse_bytes (0: they are counted
 * like the others). enough (may be NULL) is told of each block taken and says whether to stop.
 * Returns true if enough ended it. */
struct hri_take {
    struct hri_ranked *ranked;
    uint32_t n;
    uint64_t budget_bytes, reuse_bytes;
    bool (*enough)(void *context, uint32_t block);
    void *context;
};
bool hri_take_blocks(const struct hri_index_head *head, const struct hri_select_in *in,
                     const struct hri_take *take, struct hri_select_out *out);

/* The same purse for single candidates: pays for a block if what is left allows it. */
struct hri_purse {
    uint64_t move_bytes, reuse_bytes;
};
bool hri_take_one(const struct hri_index_head *head, const struct hri_select_in *in, uint32_t item,
                  struct hri_purse *purse, struct hri_select_out *out);

/* The scratch of a step of the selectors with centroids. */
struct hri_step {
    size_t stride; /* blocks up to 16 */
    float *dots;   /* [g][stride] q . centre */
    float *weight; /* [g][stride] mass / exp(top) */
    float *sum;    /* [g][v_dim] */
    float *shift;  /* [g][v_dim] D q */
    float *top,
        *total; /* [HR_GROUP_MAX] largest logit, near included; all mass over exp(top), near included */
    float *variance;           /* [HR_GROUP_MAX] q'Cq */
    float *work;               /* [stride] */
    struct hri_ranked *ranked; /* [stride] */
    uint8_t *mark;             /* [stride] */
};
size_t hri_step_bytes(const struct hri_index_options *options);
/* Of these, the dots alone: they come first. */
static inline const float *hri_step_dots(const struct hri_select_in *in)
{
    return in->scratch;
}
struct hri_step hri_step_at(const struct hri_index_head *head, const struct hri_select_in *in);

#define HRI_HALF_VARIANCE_MAX 3.0f
#define HRI_VARIANCE_MAX      (2 * HRI_HALF_VARIANCE_MAX)

/* Where the lift of a ranking ends: beyond, blocks are equally worth a look. */
#define HRI_TAIL_MAX 40.0f
/* Deviations along the query at which a block's farthest row is looked for: from 1.0 on every key
 * of the embedded model is found (0.7: 1 of 576 missed at 4K); real keys do not notice. */
#define HRI_OUTLIER_REACH 1.4f

/* How much more a block may weigh than its clamped estimate says, as a factor on its doubt. Its farthest row stands out by `peak`
 * times the block's deviation; along the query it may lie HRI_OUTLIER_REACH deviations off the mean, and alone weighs exp of that. It
 * matters where one row among unlike ones is what the query looks for. For the ranking only: as an estimate it would be wrong far
 * more often than right. Of a family's blocks as of a block's rows. */
static inline float hri_tail_factor(float variance, float peak, float log_rows)
{
    float reach = HRI_OUTLIER_REACH * peak * sqrtf(variance);
    float clamped = hri_smaller(0.5f * variance, HRI_HALF_VARIANCE_MAX);
    float extra = reach - log_rows - clamped;
    return extra > 0 ? expf(2 * hri_smaller(extra, HRI_TAIL_MAX)) : 1;
}

static inline bool hri_stands_out(float variance, float peak, float log_rows)
{
    return HRI_OUTLIER_REACH * HRI_OUTLIER_REACH * peak * peak * variance > log_rows * log_rows;
}

/* A wrong share moves the output by (value - output): its mean square over the head's values, relative to the output's. Where many blocks are
 * off by the same part, all their values together count, not each: *common_out is that square for their mean. */
float hri_error_factor(const struct hri_index_head *head, const float *output, float *common_out);

/* So much of their variance are the logarithms of all blocks' masses off by in common, on the mean over queries: logits are not Gaussian, the same
 * way in every block. By measurement (docs/algorithm.md). */
#define HRI_DRIFT 0.05f
/* The same of rows, by the variance that their sketches miss. */
#define HRI_DRIFT_SKETCH 0.15f
/* Of a block: its weight times this. */
static inline float hri_drift(float variance)
{
    return HRI_DRIFT * hri_smaller(variance, HRI_VARIANCE_MAX);
}
/* Blocks: log of the estimated mass, log n + q.m + variance / 2 (docs/algorithm.md, level 0). Needs
 * dots and variance. */
float hri_step_log_mass(const struct hri_index_head *head, const struct hri_step *step, uint32_t g,
                        uint32_t b);
/* A block's spread; 0 without a shape. */
float hri_block_spread(const struct hri_index_head *head, uint32_t b);
/* Of all blocks: weight = mass / exp(top), top and total (near included). Needs dots and variance.
 */
void hri_step_weigh(const struct hri_index_head *head, const struct hri_select_in *in,
                    struct hri_step *step);
/* variance and shift for selectors whose summaries have no shape: zero. */
void hri_step_first_order(const struct hri_index_head *head, struct hri_step *step);

/* Adds the estimates of the blocks with mark to part; overwrites the weights of the others. Returns
 * how many. */
uint32_t hri_step_estimate_marked(const struct hri_index_head *head, struct hri_step *step,
                                  struct hri_partial *part);
/* Adds the estimates of these items, from dots: of a part its share of the block's. */
void hri_step_estimate_listed(const struct hri_index_head *head, struct hri_step *step,
                              const uint32_t *items, uint32_t n, struct hri_partial *part);

#endif
