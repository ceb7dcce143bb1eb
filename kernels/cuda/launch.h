/* The CUDA kernels as C functions: one launcher per operation, on raw device pointers and a stream.
 *
 * A launcher checks nothing that its caller can know, allocates nothing and does not wait; it returns
 * 0 or the runtime's error number (cudaError_t). All may be captured in a graph: what changes from
 * token to token (lengths, counts, budgets) is read from device memory, and grids are sized by the
 * machine, not by the data. Results do not depend on the order in which threads or blocks run.
 *
 * Letters as in kernels.h: a layer has H kv-heads (those of all sequences of a batch, one after the
 * other), each shared by G query heads (1..16); dk, dv: multiples of 16 in [16, 256]; queries are
 * float32 [H][G][dk] and carry the scale. "stride" counts elements and is a multiple of 16. Rows are
 * K then V, adjacent; rows in float16, bfloat16 or int8 begin at multiples of 16 bytes. */
#ifndef HRI_CUDA_LAUNCH_H
#define HRI_CUDA_LAUNCH_H

#if defined(__cplusplus) && defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow" /* a function may have the name of a struct in C */
#endif
#include <headrace/headrace.h>
#if defined(__cplusplus) && defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct hri_cuda_heads {
    uint32_t n, g, dk, dv; /* H, G */
};

/* What grids are sized by: set once by the device layer; the default is an H100's. */
struct hri_cuda_machine {
    uint32_t sm_count, arch; /* arch: 80, 86, 89, 90, 100, 120 */
};
void hri_cuda_set_machine(struct hri_cuda_machine machine);
struct hri_cuda_machine hri_cuda_get_machine(void);
/* A kernel that does nothing: fails where this build has no code for the device. */
int hri_cuda_nothing(void *stream);
/* For measurements: reads `bytes` of memory, a multiple of 16, and adds the sum of their 32-bit words to *sum. */
int hri_cuda_read(const void *memory, size_t bytes, uint32_t *sum, void *stream);

/* ------------------------------------------------------------------------------------------ append
 * Rows of new tokens into the tails: token i of the call becomes row (*length + i) % capacity of
 * each head's tail, converted to `to` (rounded to nearest even). */
struct hri_cuda_append_args {
    const void *k, *v; /* [n][H][dk], [n][H][dv] of `from` */
    int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride; /* elements */
    hr_dtype_t from, to;
    void *tail; /* [H][capacity][dk + dv] of `to` */
    uint32_t capacity;
    uint32_t *length; /* in device memory */
    /* Smallest (i * H + head) * (dk + dv) + dimension that is not finite after the conversion;
     * left alone if all are. The caller sets it to UINT32_MAX. */
    uint32_t *bad;
    int advance; /* then adds n to *length */
};
int hri_cuda_append(const struct hri_cuda_append_args *append, struct hri_cuda_heads heads,
                    uint32_t n, void *stream);

/* ---------------------------------------------------------------------------- summaries and blocks
 * A grouped segment becomes blocks: for each, its summary and its int8 rows as differences from the
 * summary as it reads back (kernels.h: hri_centroids, hri_block_i8). Blocks b < n_blocks of the
 * segment of each head; block b becomes number first_block + b. */
struct hri_cuda_pack_args {
    const void *rows; /* [H][n][dk + dv] in token order */
    hr_dtype_t dtype;
    uint32_t n, n_blocks, first_block;
    const uint32_t *order;       /* [H][n] the rows of block 0, of block 1, ... */
    const uint32_t *block_begin; /* [H][n_blocks + 1] in order */
    const float *k_mean;         /* [H][dk] */
    uint32_t blocks_max;         /* of the arrays below; multiple of 16 */
    uint8_t *k_codes;            /* [H][blocks_max/16][dk/4][16][4] */
    int8_t *v_codes;             /* [H][blocks_max][dv] */
    float *k_scale, *v_scale;    /* [H][blocks_max] */
    uint8_t *block_rows;         /* [H][blocks_max] */
    int8_t *codes;               /* [H][n][dk + dv] in the order of `order` */
    float *k_step, *v_step;      /* [H][blocks_max] of the rows */
    float *centres;     /* [H][blocks_max][dk + dv] the summaries as they read back; or NULL */
    uint32_t *block_of; /* [H][n] of the rows in that order, by the segment's numbers; or NULL */
};
int hri_cuda_pack(const struct hri_cuda_pack_args *pack, struct hri_cuda_heads heads, void *stream);

/* codes of rotated residuals (kernels.h: pack_sketch): rows first_row.. of each head. */
struct hri_cuda_pack_sketch_args {
    const float *z;        /* [H][n][z_stride] */
    const float *inv_step; /* [H][n4 + n2] */
    uint8_t *codes;        /* [H][codes_stride] bytes */
    size_t z_stride, codes_stride;
    uint32_t n4, n2, n, first_row;
};
int hri_cuda_pack_sketch(const struct hri_cuda_pack_sketch_args *pack, uint32_t n_heads,
                         void *stream);

/* ----------------------------------------------------------------------------------------- queries
 * Once per step and layer, from q: the two int8 terms that summaries and int8 rows are scored with
 * (query_i8.h), what each head's shape makes of it, and the query in the bases of the sketches. */
#define HRI_CUDA_GROUP_MAX HR_GROUP_MAX
/* q as step (128 high + low). Rows are padded with 0 to dk_up = dk rounded up to 64, query heads to
 * g_up = a multiple of 4. */
#ifdef __CUDACC__
#define HRI_CUDA_BOTH __host__ __device__
#else
#define HRI_CUDA_BOTH
#endif
static inline HRI_CUDA_BOTH uint32_t hri_cuda_dk_up(uint32_t dk)
{
    return (dk + 63u) & ~63u;
}
static inline HRI_CUDA_BOTH uint32_t hri_cuda_g_up(uint32_t g)
{
    return (g + 3u) & ~3u;
}
struct hri_cuda_query_i8 {
    int8_t *codes; /* [H][g_up][2][dk_up]: high, then low */
    float *step;   /* [H][g_up] */
};
/* A shape of every head (index/summary.h); NULL members where there is none. */
struct hri_cuda_shape {
    const int8_t *f, *w, *u; /* [H][rank_c][dk], [H][rank_d][dk], [H][rank_d][dv] */
    const float *f_scale, *w_scale, *u_scale;
    uint32_t rank_c, rank_d;
    const float *k_mean; /* [H][dk] */
};
struct hri_cuda_query_out {
    struct hri_cuda_query_i8 i8;
    float *common;   /* [H][G] q . k_mean, or NULL */
    float *variance; /* [H][G] q'Cq, or NULL */
    float *shift;    /* [H][G][dv] D q, or NULL */
};
int hri_cuda_query(const float *q, struct hri_cuda_heads heads, const struct hri_cuda_shape *shape,
                   const struct hri_cuda_query_out *out, void *stream);

/* out = q times a factor per query head (scale, log n): q, out [n_q][dk], factor [n_q]. */
int hri_cuda_scale(const float *q, const float *factor, uint32_t n_q, uint32_t dk, float *out,
                   void *stream);

/* kernels.h: hri_sketch_query, the same layout. */
struct hri_cuda_sketch_query {
    int8_t q4[HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    int8_t q2[HR_GROUP_MAX][HR_HEAD_DIM_MAX];
    float scale4[HR_GROUP_MAX], scale2[HR_GROUP_MAX], offset[HR_GROUP_MAX];
};
/* Bases of one head (index/sketch.h), in device memory: how to turn a query, and its sketched rows. */
struct hri_cuda_basis {
    const int8_t *query;      /* [dk][dk] */
    const float *query_scale; /* [dk] */
    const float *step;        /* [n4 + n2] */
    const float *missed;      /* [dk] */
    uint32_t n4, n2;
    /* Of values; query and score do not look at them. */
    const int8_t *value;      /* [n4 + n2][dv] what a code of one adds, */
    const float *value_scale; /* [n4 + n2] times this */
    float value_rest;         /* mean square of what a row's value lies beside that */
};
/* queries [H][n_bases]; rest [H][n_bases][G]. there [H]: how many of the bases there are, NULL: all. */
int hri_cuda_query_sketch(const float *q, struct hri_cuda_heads heads,
                          const struct hri_cuda_basis *bases /* [H][n_bases] */, uint32_t n_bases,
                          const uint32_t *there, struct hri_cuda_sketch_query *queries, float *rest,
                          void *stream);

/* ------------------------------------------------------------------------------------------- score
 * All summaries. dots = q . centre; log_mass = log n + dots + min(spread variance / 2, 3), with a
 * soft cap bent as in docs/algorithm.md; top and total: their largest and the sum of exp(log_mass -
 * top), the softmax (near_m, near_l) of what was attended before included. */
struct hri_cuda_summaries {
    const uint8_t *k_codes; /* as above */
    const float *k_scale;   /* [H][blocks_max] */
    const uint16_t *spread; /* [H][blocks_max] bfloat16, or NULL */
    const uint8_t *rows;    /* [H][blocks_max] */
    uint32_t blocks_max;
    const uint32_t *n; /* [H] blocks there are */
};
struct hri_cuda_score_args {
    struct hri_cuda_query_i8 q;
    const float *common, *variance; /* [H][G], NULL: 0 */
    const float *near_m, *near_l;   /* [H][G], NULL: nothing near */
    float soft_cap;
    float *dots, *log_mass; /* [H][G][stride], log_mass may be NULL (then top and total are too) */
    size_t stride;
    float *top, *total; /* [H][G] */
    float *work;        /* hri_cuda_score_work(heads) floats */
    uint32_t *arrived;  /* [H] zero; zero again afterwards */
};
size_t hri_cuda_score_work(struct hri_cuda_heads heads);
int hri_cuda_score(const struct hri_cuda_score_args *score,
                   const struct hri_cuda_summaries *summaries, struct hri_cuda_heads heads,
                   void *stream);

/* ---------------------------------------------------------------------------------------- sketches
 * A list per head of groups of 16 sketched rows (kernels.h: hri_sketch_rows), in pairs that share a
 * basis; HRI_CUDA_NONE fills a pair up. All bases have the same number of lines. */
#define HRI_CUDA_NONE UINT32_MAX
struct hri_cuda_sketch_list {
    const uint8_t *codes; /* [H][codes_stride] bytes, 64-byte aligned */
    size_t codes_stride;
    const struct hri_cuda_basis *bases; /* [H][n_bases]: n4 and n2 are read */
    uint32_t n_bases, lines;            /* lines = n4/8 + n2/16 */
    const uint32_t *there;              /* [H] bases there are, NULL: all */
    const uint32_t *groups;             /* [H][2 pairs_max] */
    const uint32_t *pair_basis;         /* [H][pairs_max] */
    const uint32_t *n_pairs;            /* [H] */
    uint32_t pairs_max;
};
/* out[h][gh][16 group + r] = what the row's codes add to the logit. */
int hri_cuda_score_sketch(const struct hri_cuda_sketch_list *list,
                          const struct hri_cuda_sketch_query *queries /* [H][n_bases] */,
                          struct hri_cuda_heads heads, float *out, size_t stride, void *stream);
/* sum[h][basis][gh][i] = sum over the listed groups of the basis of w[h][gh][row] (c_i - 7.5 or
 * 1.5), i < n4 + n2. Lanes without a row must weigh 0; w must be finite. */
struct hri_cuda_sketch_sum {
    const float *w; /* [H][G][stride] */
    size_t stride;
    float *sum;        /* [H][n_bases][G][HR_HEAD_DIM_MAX] */
    float *work;       /* hri_cuda_sum_sketch_work(...) floats */
    uint32_t *arrived; /* hri_cuda_sum_sketch_counters(...), zero; zero again afterwards */
};
size_t hri_cuda_sum_sketch_work(struct hri_cuda_heads heads, uint32_t n_bases, uint32_t lines);
size_t hri_cuda_sum_sketch_counters(struct hri_cuda_heads heads, uint32_t n_bases, uint32_t lines);
int hri_cuda_sum_sketch(const struct hri_cuda_sketch_list *list,
                        const struct hri_cuda_sketch_sum *sum, struct hri_cuda_heads heads,
                        void *stream);

/* ------------------------------------------------------------------------------------------- rows
 * A step's sketched rows, level 1 (docs/algorithm.md): what their sketches make of their blocks. Rows lie in lanes,
 * block after block in 16 of them a group; a basis's first block begins a group. Blocks are stored in `parts` of
 * part_rows rows, which are what is refined: part p of block b is item b * parts + p. */
struct hri_cuda_rows {
    const uint32_t *n; /* [H] blocks */
    uint32_t blocks_max, parts, part_rows;
    const uint32_t *first_lane; /* [H][blocks_max] */
    const uint8_t *rows;        /* [H][blocks_max] */
    const uint8_t *miss; /* [H][blocks_max] what its sketches miss over the basis's: log coded */
    const uint8_t *gain, *value_miss;   /* [H][blocks_max] as struct hri_sketch has them */
    const uint16_t *basis_of;           /* [H][blocks_max] */
    const struct hri_cuda_basis *bases; /* [H][n_bases] */
    uint32_t n_bases;
    const float *rest; /* [H][n_bases][G] as query_sketch leaves it */
    float *x;          /* [H][G][lanes] scores of sketches; after weigh_rows logits */
    size_t lanes;
    float *log_mass,
        *focus; /* [H][G][stride] log of the sum of a block's weights; the sum of their squares over
                                the square of that */
    size_t stride;
    const float *top,
        *total; /* [H][G] of all log_mass and of what was attended before, as total_rows leaves them */
};
/* Rows whose keys are kept beside their sketches; they ascend by block, then by row. */
struct hri_cuda_strays {
    const uint32_t *block,
        *first;         /* [H][max], [H][blocks_max]: the first in this block or after it */
    const uint8_t *row; /* [H][max] its place in the block */
    const float *step;  /* [H][max] */
    const int8_t *key;  /* [H][max][dk] times step: key less centre */
    const uint32_t *n;  /* [H] */
    uint32_t max;
};
/* x = capped(dots + gain x, centred in its block) + what is missed, strays by their keys; log_mass and focus of all blocks. */
int hri_cuda_weigh_rows(const struct hri_cuda_rows *rows, const struct hri_cuda_strays *strays,
                        const float *q, const float *dots /* [H][G][stride] */, float soft_cap,
                        struct hri_cuda_heads heads, void *stream);
/* top and total [H][G] of all log_mass and near_lse. */
int hri_cuda_total_rows(const struct hri_cuda_rows *rows, const float *near_lse, float *top,
                        float *total, struct hri_cuda_heads heads, void *stream);

/* Blocks that weigh more than share_min of some query head's total (with of_mean: of the mean block's share; share_min
 * < 0: all) count with their rows, the others with their mean value. */
struct hri_cuda_rows_least {
    float share_min;
    int of_mean;
};
/* The list of the groups of such blocks, for score_sketch and sum_sketch. */
struct hri_cuda_rows_list {
    uint32_t *groups, *pair_basis, *n_pairs; /* as in hri_cuda_sketch_list */
    uint32_t pairs_max;                      /* at least all groups / 2 + n_bases */
    uint32_t *work;                          /* [H][blocks_max] */
};
int hri_cuda_list_rows(const struct hri_cuda_rows *rows, struct hri_cuda_rows_least least,
                       const struct hri_cuda_rows_list *list, struct hri_cuda_heads heads,
                       void *stream);
/* Weights for sum_sketch of all lanes of the groups that list_rows lists, over exp(top). Rows of parts with mark 0 weigh
 * nothing; of what is left of every block the log of the mass and the sum of the squares over exp(2 top). */
struct hri_cuda_rows_fill {
    const uint8_t *mark;            /* [H][blocks_max parts], NULL: all are in */
    float *w;                       /* [H][G][lanes] */
    float *left_mass, *left_square; /* [H][G][stride] or both NULL */
};
int hri_cuda_fill_rows(const struct hri_cuda_rows *rows, struct hri_cuda_rows_least least,
                       const struct hri_cuda_rows_fill *fill, struct hri_cuda_heads heads,
                       void *stream);
/* out [H][G][dv]: what the sums of sum_sketch make of the values, beside their blocks' means. */
struct hri_cuda_rows_values {
    const float *sum; /* [H][n_bases][G][HR_HEAD_DIM_MAX] */
    const struct hri_cuda_basis *bases;
    uint32_t n_bases;
    const uint32_t *there; /* [H] */
    float *out;
    float *work;       /* [H][n_bases][G][dv] */
    uint32_t *arrived; /* [H] zero; zero again afterwards */
};
int hri_cuda_value_rows(const struct hri_cuda_rows_values *values, struct hri_cuda_heads heads,
                        void *stream);

/* Rows that lie farthest from their centres, each by its lane and item, ascending, with its own miss. */
struct hri_cuda_lone {
    const uint32_t *lane, *item; /* [H][max] */
    const uint8_t *miss;         /* [H][max] */
    const uint32_t *n;           /* [H] */
    uint32_t max;
};
/* What refining a part removes of the expected error: the sum over its rows and the group of p^2 (min(miss rest, 1) far +
 * value_rest) / |o|^2. Lone rows raise the key, not the error, by what they might turn out to be. */
struct hri_cuda_worth_rows_args {
    const float *factor, *size; /* [H][G] far / |o|^2 and |o|^2, as factor leaves them */
    const float *common;        /* [H][G] likewise, or NULL: not in left */
    struct hri_cuda_lone lone;
    uint32_t row_bytes;
    const uint32_t *frame_of; /* [H][blocks_max parts] or NULL: nothing is in a frame */
    float *key, *error;       /* [H][blocks_max parts] */
    uint32_t *cost;           /* likewise, bytes; 0, with key 0: the block has no such part */
    uint8_t *class_;          /* likewise, 1: in a frame */
    float *left;              /* [H] sum of error; with common as in hri_cuda_worth_args */
    /* [H][HRI_CUDA_WORTH_BINS]: how many rows of blocks that weigh something lie in parts that remove from 2^(i - 127) on, to
     * twice that, a row (index/index.h). bins_work [same], zero; zero again afterwards. */
    uint32_t *bins, *bins_work;
};
#define HRI_CUDA_WORTH_BINS 256u
int hri_cuda_worth_rows(const struct hri_cuda_rows *rows,
                        const struct hri_cuda_worth_rows_args *worth, struct hri_cuda_heads heads,
                        void *stream);
/* As predict, below: what the rows leave that are not refined, what of it is late. */
struct hri_cuda_predict_rows_args {
    const float *factor, *size, *common;  /* [H][G] */
    const float *left_mass, *left_square; /* [H][G][stride] */
    const uint32_t *items, *n_items, *frames_of;
    uint32_t items_max;
    const uint8_t *class_;
    float *predicted, *late; /* [H][G] */
    uint32_t
        *counts; /* [H][HRI_CUDA_PREDICT_COUNTS] parts refined, of them hits, late; rows likewise */
};
int hri_cuda_predict_rows(const struct hri_cuda_rows *rows,
                          const struct hri_cuda_predict_rows_args *predict,
                          struct hri_cuda_heads heads, void *stream);

/* ------------------------------------------------------------------------------------------- worth
 * What refining a block removes of the expected error (docs/algorithm.md, "Which blocks to raise"),
 * as select wants it. With p the block's share of a head's attention and x its variance, summed over
 * the group: doubt = p^2 (exp(min(x, 3)) - 1 + 0.3) / n; key = doubt / n, raised where the block's
 * farthest row may be what the query looks for; error = doubt times the head's factor. */
struct hri_cuda_worth_args {
    const float *log_mass, *top, *total; /* as score leaves them */
    const float *variance;               /* [H][G] */
    const float *factor;                 /* [H][G] or NULL: 1 */
    const float *common;                 /* [H][G] as factor leaves it, or NULL: not in left */
    const uint16_t *spread;              /* [H][blocks_max] bfloat16 */
    const uint8_t *rows, *peak;          /* [H][blocks_max]; peak NULL: no outliers */
    const uint32_t *n;                   /* [H] */
    uint32_t blocks_max, row_bytes;
    size_t stride;
    const uint32_t *frame_of; /* [H][blocks_max] or NULL: nothing is in a frame */
    float *key, *error;       /* [H][stride] */
    uint32_t *cost;           /* [H][stride] bytes */
    uint8_t *class_;          /* [H][stride] 1: in a frame */
    float *
        left; /* [H] sum of error; with common, and of what shares are off by in common before anything is refined */
};
int hri_cuda_worth(const struct hri_cuda_worth_args *worth, struct hri_cuda_heads heads,
                   void *stream);

/* ---------------------------------------------------------------------------------------- predict
 * From a doubt to the square of the relative error: the mean square distance of the head's values from
 * the output over the output's square. The output is made of what was attended before, of the blocks
 * with more than 0.2 % of the mass at their mean values, and of the rest at the mean of all. */
struct hri_cuda_factor_args {
    const float *log_mass, *top,
        *total; /* as score leaves them, what was attended before included */
    size_t stride;
    const float *near_out, *near_lse; /* [H][G][dv], [H][G]: attended before */
    const int8_t *v_codes;            /* [H][blocks_max][dv] */
    const float *v_scale;             /* [H][blocks_max] */
    const float *v_mean, *v_variance; /* [H][dv], [H]: of all values */
    const uint32_t *n;                /* [H] */
    uint32_t blocks_max;
    const float *added; /* [H][G][dv] added to the weighted values, over exp(top); or NULL */
    float *factor;      /* [H][G] */
    float *common;      /* [H][G] the same for the distance of the values' mean, or NULL */
    float *size;        /* [H][G] the output's square, or NULL */
};
int hri_cuda_factor(const struct hri_cuda_factor_args *factor, struct hri_cuda_heads heads,
                    void *stream);

/* The predicted relative error of the output once the chosen blocks are attended, what of it those cost
 * that did not come, and the counts of a report. */
#define HRI_CUDA_PREDICT_COUNTS 6
struct hri_cuda_predict_args {
    const float *log_mass, *top, *total;
    size_t stride;
    const float *variance, *factor, *common; /* [H][G] */
    const uint16_t *spread;                  /* [H][blocks_max] bfloat16 */
    const uint8_t *rows, *mark;              /* [H][blocks_max]; mark 0: refined (hri_cuda_mark) */
    const uint32_t *n;                       /* [H] */
    uint32_t blocks_max;
    const uint32_t *items, *n_items,
        *frames_of; /* [H][items_max]: chosen; frame NONE: did not come */
    uint32_t items_max;
    const uint8_t *class_;   /* [H][stride] 1: was in a frame before */
    float *predicted, *late; /* [H][G] */
    uint32_t *counts;        /* [H][6] blocks refined, of them hits, late; rows likewise */
};
int hri_cuda_predict(const struct hri_cuda_predict_args *predict, struct hri_cuda_heads heads,
                     void *stream);

/* ------------------------------------------------------------------------------------------ select
 * Items by key, larger first, ties by smaller index; keys that are not > 0 are never taken.
 * Candidates of a class are its best items whose costs together fit the class's budget: one that
 * does not fit ends them. Of all candidates the best are taken, until what they leave of the error
 * is at most `enough`. Items taken are listed in ascending order. */
struct hri_cuda_select_args {
    const float *key;      /* [H][stride] */
    const uint32_t *cost;  /* [H][stride], NULL: all 1 */
    const uint8_t *class_; /* [H][stride] 0 or 1 (hits), NULL: all 0 */
    const float *error;    /* [H][stride] what taking the item removes, >= 0; or NULL */
    size_t stride;
    const uint32_t *n;          /* [H] */
    const uint64_t *budget;     /* [H][2] */
    const float *left, *enough; /* [H] error before; enough <= 0: not looked at. With `error` */
    uint32_t *items;            /* [H][items_max] */
    uint32_t items_max;
    uint32_t *n_items; /* [H]: at most items_max, ascending order decides what is left out */
    float *left_out;   /* [H] or NULL: of the error, after all that were taken */
};
int hri_cuda_select(const struct hri_cuda_select_args *select, uint32_t n_heads, void *stream);

/* ----------------------------------------------------------------------------------------- resolve
 * The residency table of one layer: which frame holds which block, and the clock that replaces. All
 * in device memory. A frame used in this turn is never replaced in it. Each layer has frames of its
 * own: layers take turns, and a clock over all of them would lose every frame just before its layer
 * comes round again (docs/decisions/0002). */
struct hri_cuda_residency {
    uint32_t *frame_of;    /* [H][blocks_max] or NONE */
    uint32_t *holds;       /* [n_frames] head * blocks_max + block, or NONE */
    uint32_t *last_turn;   /* [n_frames] turn of the last use, 0: never */
    uint8_t *referenced;   /* [n_frames] the clock's bit */
    uint32_t *hand, *turn; /* one number each */
    uint32_t n_frames, blocks_max;
};
int hri_cuda_residency_clear(const struct hri_cuda_residency *table, uint32_t n_heads,
                             void *stream);
/* Blocks whose bytes did not come, [*n] jobs: they leave the table. */
struct hri_cuda_job {
    uint32_t head, block, frame, item; /* item: its place in the head's list */
};
int hri_cuda_residency_drop(const struct hri_cuda_residency *table, const struct hri_cuda_job *jobs,
                            const uint32_t *n, void *stream);
struct hri_cuda_resolve_args {
    const uint32_t *items, *n_items; /* [H][items_max], [H]: blocks, each once per head */
    uint32_t items_max;
    uint32_t *frames;          /* [H][items_max] the frame, or NONE: no frame is left for it */
    struct hri_cuda_job *jobs; /* [jobs_max] copies to be made, by head and item */
    uint32_t jobs_max;
    uint32_t *n_jobs;
    uint32_t *counts; /* [3] hits, misses, misses without a frame; added to */
};
/* A turn: hits are marked used, misses take frames in the clock's order. */
int hri_cuda_resolve(const struct hri_cuda_residency *table,
                     const struct hri_cuda_resolve_args *resolve, uint32_t n_heads, void *stream);

/* Of a turn's jobs those whose bytes did not come: they leave the table, and their place in the list of
 * frames becomes NONE, so that their blocks stay at the lower level. */
int hri_cuda_resolve_late(const struct hri_cuda_residency *table,
                          const struct hri_cuda_resolve_args *resolve,
                          const struct hri_cuda_job *late, const uint32_t *n, void *stream);

/* ------------------------------------------------------------------------------------------ gather
 * Blocks from mapped pinned host memory into frames. */
struct hri_cuda_gather_args {
    const struct hri_cuda_job *jobs;
    const uint32_t *n_jobs;
    const unsigned char *host;   /* device address of the mapped memory */
    const uint64_t *host_offset; /* [H][blocks_max] where each block lies; multiples of 16 */
    const uint32_t *bytes;       /* [H][blocks_max] multiples of 16, or NULL: frame_bytes */
    uint32_t blocks_max;
    unsigned char *frames; /* frame f at f * frame_bytes */
    uint32_t frame_bytes;  /* multiple of 16 */
};
/* How bytes travel: bulk copies exist from sm_90 on. */
enum hri_cuda_path { HRI_CUDA_PATH_AUTO, HRI_CUDA_PATH_LOADS, HRI_CUDA_PATH_BULK };
/* On n_blocks thread blocks, 0: 4. Few are enough, and leave the machine to others. */
int hri_cuda_gather(const struct hri_cuda_gather_args *gather, uint32_t n_blocks,
                    enum hri_cuda_path path, void *stream);

/* ----------------------------------------------------------------------------------------- mailbox
 * Misses that only the host can bring. The device posts a turn's jobs and goes on to wait for them; a thread of the
 * host sees the ticket, brings the blocks to landing places and answers one by one. What has no answer in time stays
 * at its lower level: the device decides that, and the answer that comes later is of an old ticket.
 *
 *   device   requests, n, then posted = ticket       answers[j] == 2 ticket + 1 ? landing j -> frame : late
 *   host     posted seen: read requests, bring them, answers[j] = 2 ticket + 1, or 2 ticket: it never will
 *
 * All in mapped pinned host memory. */
struct hri_cuda_mailbox {
    struct hri_cuda_job *requests; /* [max] */
    uint32_t *n, *posted;          /* one number each */
    uint32_t *answers;             /* [max] */
    unsigned char *landing;        /* [max][frame_bytes] */
    uint32_t max, frame_bytes;
};
struct hri_cuda_mail_args {
    const struct hri_cuda_job *jobs; /* of resolve, in device memory as all below */
    const uint32_t *n_jobs;          /* at most max */
    const uint32_t *ticket;          /* another one each time */
    const uint64_t *limit_ns;        /* how long collect waits, from its beginning */
    unsigned char *frames;
    struct hri_cuda_job *late; /* [max] what did not come */
    uint32_t *n_late;
};
int hri_cuda_mail_post(const struct hri_cuda_mailbox *box, const struct hri_cuda_mail_args *mail,
                       void *stream);
int hri_cuda_mail_collect(const struct hri_cuda_mailbox *box, const struct hri_cuda_mail_args *mail,
                          void *stream);

/* ------------------------------------------------------------------------------------------ attend
 * Decode attention of one query per query head over all that is known, at its level, merged exactly:
 * parts are pairs (output, log-sum-exp). Any part may be absent. */

/* Exact rows, float16 or bfloat16. Row i < n of head h lies in pages, if there are any, at row
 * pages[h][i / page_rows] * page_rows + i % page_rows, else at row (first + i) % capacity. */
struct hri_cuda_run {
    const void *rows;
    size_t head_stride_bytes;  /* where the next head's rows begin; 0 where pages are shared */
    const uint32_t *n, *first; /* one number each; first NULL: 0 */
    uint32_t capacity;
    const uint32_t *pages; /* [H][pages_max] or NULL */
    uint32_t pages_max, page_rows;
};
#define HRI_CUDA_RUNS_MAX 3
/* Blocks in frames, int8 rows (level 2). */
struct hri_cuda_refined {
    const uint32_t *items, *n_items, *frames_of; /* [H][items_max], [H]: as resolve leaves them */
    uint32_t items_max, rows_max;                /* rows of an item, at most */
    const int8_t *frames;                        /* frame f at f * frame_bytes: [rows][dk + dv] */
    uint32_t frame_bytes;
    const float *k_step, *v_step; /* [H][blocks_max] */
    const uint8_t *rows;          /* [H][blocks_max] */
    const float *dots;            /* [H][G][stride] q . centre */
    /* 0 or 1: items are blocks; else rows_max rows of block item / parts, from rows_max (item % parts) on. */
    uint32_t parts;
};
/* All other blocks, from their summaries (level 0), or with the weights of their sketched rows. */
struct hri_cuda_estimate {
    const uint32_t *n;      /* [H] blocks */
    const float *log_mass;  /* [H][G][stride]; -INFINITY counts for nothing */
    const uint8_t *mark;    /* [H][blocks_max] 0: leave the block out, NULL: all are in */
    const uint16_t *spread; /* [H][blocks_max] bfloat16, NULL: 0 */
    const float *shift;     /* [H][G][dv] added spread times, NULL: 0 */
};
struct hri_cuda_attend_args {
    const float *q;              /* [H][G][dk] */
    struct hri_cuda_query_i8 q8; /* of the same; with refined */
    hr_dtype_t dtype;            /* of the exact rows */
    float soft_cap;
    struct hri_cuda_run runs[HRI_CUDA_RUNS_MAX];
    uint32_t n_runs;
    struct hri_cuda_refined refined;   /* items NULL: none */
    struct hri_cuda_estimate estimate; /* log_mass NULL: none */
    uint32_t blocks_max;
    size_t stride;
    const int8_t *v_codes; /* [H][blocks_max][dv], of both */
    const float *v_scale;  /* [H][blocks_max] */
    /* Parts attended before: [n_parts][H][G][dv] and [n_parts][H][G]. */
    const float *parts_out, *parts_lse;
    uint32_t n_parts;
    const float *added,
        *added_top; /* [H][G][dv] added to the weighted values, over exp(added_top [H][G]); or NULL */
    float *out, *lse;  /* [H][G][dv], [H][G]; without any row: 0 and -INFINITY */
    float *work;       /* hri_cuda_attend_work(heads) floats */
    uint32_t *arrived; /* hri_cuda_attend_counters(heads), zero; zero again afterwards */
};
size_t hri_cuda_attend_work(struct hri_cuda_heads heads);
size_t hri_cuda_attend_counters(struct hri_cuda_heads heads);
int hri_cuda_attend(const struct hri_cuda_attend_args *attend, struct hri_cuda_heads heads,
                    void *stream);
/* mark[h][b] = 1, or 0 where the block was chosen and has a frame, b < n[h]. */
int hri_cuda_mark(const struct hri_cuda_refined *refined, const uint32_t *n, uint32_t blocks_max,
                  uint8_t *mark, uint32_t n_heads, void *stream);

/* ----------------------------------------------------------------------------------------- prefill
 * Exact causal attention of many queries, with rows streamed past in chunks: what one chunk adds is
 * kept in `state` for the next. Query i of the call has token number q_first + i and sees the rows
 * of tokens up to its own, the last `window` of them (0: all). */
struct hri_cuda_prefill_args {
    const void *q;                         /* [n_tokens][H G][dk] of q_dtype */
    int64_t q_token_stride, q_head_stride; /* elements */
    hr_dtype_t q_dtype;
    float scale, soft_cap;
    uint32_t n_tokens, q_first, window;
    const void *rows; /* [H] times n_rows of [dk + dv], float16 or bfloat16; 16-byte aligned */
    size_t head_stride_bytes;
    hr_dtype_t dtype;
    uint32_t n_rows, rows_first;               /* rows_first: token number of row 0 */
    int first, last;                           /* chunk: begin with nothing; write out */
    float *m, *l;                              /* state: [n_tokens][H G] */
    float *o;                                  /* state: [n_tokens][H G][dv] */
    void *out;                                 /* [n_tokens][H G][dv] of out_dtype */
    int64_t out_token_stride, out_head_stride; /* elements */
    hr_dtype_t out_dtype;
    float *lse; /* [n_tokens][H G] or NULL */
};
int hri_cuda_prefill(const struct hri_cuda_prefill_args *prefill, struct hri_cuda_heads heads,
                     void *stream);

/* ------------------------------------------------------------------------------------------- group
 * A segment's rows as points, and k-means of them (index/points.h, index/group.h). */
#define HRI_CUDA_POINT_DIMS 32u
struct hri_cuda_points_args {
    const void *rows; /* [H][n][dk + dv] float16 or bfloat16, 16-byte aligned */
    hr_dtype_t dtype;
    uint32_t n;
    const float *axes; /* [H][32][dk + dv]: n_k of keys, 0 in the values' columns, then of values */
    const uint32_t *n_k; /* [H] */
    float *y;            /* [H][n][32] */
};
int hri_cuda_group_points(const struct hri_cuda_points_args *points, struct hri_cuda_heads heads,
                          void *stream);

struct hri_cuda_clusters {
    const float *y; /* [H][n][32] */
    uint32_t n, k_max;
    const uint32_t *k; /* [H] centres, at most k_max */
    float *centres;    /* [H][k_max][32] */
    uint32_t *nearest; /* [H][n] */
    uint32_t *counts;  /* [H][k_max] */
};
/* The first centres: points of rows spread over the segment (hri_group_first_row). */
int hri_cuda_group_begin(const struct hri_cuda_clusters *clusters, uint32_t n_heads, void *stream);
/* nearest: of every point, by |y - c|^2; of equal ones the first. */
int hri_cuda_group_assign(const struct hri_cuda_clusters *clusters, uint32_t n_heads, void *stream);
/* counts, and centres as the means of their points; one without points stays. */
int hri_cuda_group_move(const struct hri_cuda_clusters *clusters, uint32_t n_heads, void *stream);

/* ---------------------------------------------------------------------------------------- residual
 * What is left of the rows of a packed segment: x - centre of its block, in block order. */
struct hri_cuda_residual_args {
    const void *rows; /* [H][n][dk + dv] in token order, float16 or bfloat16, 16-byte aligned */
    hr_dtype_t dtype;
    uint32_t n, n_blocks, blocks_max;
    const uint32_t *order;       /* [H][n] */
    const uint32_t *block_begin; /* [H][n_blocks + 1] */
    const uint32_t *block_of;    /* [H][n] and */
    const float *centres;        /* [H][blocks_max][dk + dv], of hri_cuda_pack */
};
/* z [H][n][dk]: keys' residuals times matrix [H][dk][dk] transposed. */
int hri_cuda_residual_turn(const struct hri_cuda_residual_args *residual, const float *matrix,
                           float *z, struct hri_cuda_heads heads, void *stream);
/* Of every block |z|^2 of its rows: the sum and the largest, [H][blocks_max]. */
int hri_cuda_residual_squares(const struct hri_cuda_residual_args *residual, const float *z,
                              float *sum, float *most, struct hri_cuda_heads heads, void *stream);
/* moment [H][dk + dv][dk + dv] = sum over all rows of x x', both halves. */
int hri_cuda_residual_moment(const struct hri_cuda_residual_args *residual, float *moment,
                             struct hri_cuda_heads heads, void *stream);

/* What sketches miss of the rows of one head (index/sketch.c). */
struct hri_cuda_missed_args {
    const float *z;      /* [n][dk] in block order */
    const float *step;   /* [n4 + n2] */
    const float *length; /* [dk] */
    uint32_t n4, n2, dk, dv, n_blocks;
    const void *rows; /* [..][dk + dv] */
    hr_dtype_t dtype;
    const uint32_t *order, *block_begin; /* [n], [n_blocks + 1] */
    const float *centres;                /* [n_blocks][dk + dv] */
    uint8_t *gain;                       /* [n_blocks] */
    float *far, *missed, *plain, *value; /* [n] */
};
int hri_cuda_missed(const struct hri_cuda_missed_args *missed, void *stream);

/* ------------------------------------------------------------------------------------------- model
 * A decoder's own layers, between the attention of the others. Matrices are bfloat16 [rows][cols], cols a multiple
 * of 8, beginning at multiples of 16 bytes; activations are float32 [n][..], one row behind the other, but for
 * the rows that a product of many reads (bfloat16). */

/* x[i] = table[ids[i + 1]], and smear times table[ids[i]] where there is a smear: ids[0] is the token before the
 * first, HRI_CUDA_NONE if there is none. */
struct hri_cuda_embed_args {
    const uint16_t *table; /* [vocab][width] bfloat16 */
    const uint32_t *ids;   /* [n + 1] */
    const float *smear;    /* [width] or NULL */
    float *x;              /* [n][width] */
    uint32_t width;
};
int hri_cuda_embed(const struct hri_cuda_embed_args *embed, uint32_t n, void *stream);

/* x += delta where there is one, y = x / sqrt(mean x^2 + eps) * weight, or with a bias
 * y = (x - mean) / sqrt(variance + eps) * weight + bias. */
struct hri_cuda_norm_args {
    float *x;           /* [n][width] */
    const float *delta; /* [n][width] or NULL */
    const float *weight, *bias;
    float eps;
    uint32_t width;
    void *y; /* [n][width] of y_dtype (float32, bfloat16) */
    hr_dtype_t y_dtype;
};
int hri_cuda_norm(const struct hri_cuda_norm_args *norm, uint32_t n, void *stream);

/* Rotates the first n_rot dimensions of every head in place, queries and keys. */
struct hri_cuda_rope_args {
    float *q, *k; /* [n][n_q][dim], [n][n_kv][dim] */
    uint32_t n_q, n_kv, dim, n_rot;
    hr_rope_layout_t layout;
    const float *cosine, *sine; /* [n][n_rot / 2] */
};
int hri_cuda_rope(const struct hri_cuda_rope_args *rope, uint32_t n, void *stream);

/* out = gate / (1 + exp(-gate)) * up, or without a gate gelu(up), tanh form; n elements of out_dtype (float32, bfloat16). */
int hri_cuda_activate(const float *gate, const float *up, size_t n, void *out, hr_dtype_t out_dtype,
                      void *stream);

/* y = x as bfloat16, n elements. */
int hri_cuda_round(const float *x, size_t n, uint16_t *y, void *stream);
/* y[i] = bias, n rows of `width`. */
int hri_cuda_repeat(const float *bias, uint32_t n, uint32_t width, float *y, void *stream);

/* y = W x (+ bias), up to HRI_CUDA_PRODUCTS_MAX matrices with the same rows of activations. */
#define HRI_CUDA_PRODUCTS_MAX    3
#define HRI_CUDA_LINEAR_ROWS_MAX 16u
struct hri_cuda_product {
    const uint16_t *w; /* [rows][cols] */
    const float *bias; /* [rows] or NULL */
    float *y;          /* [m][rows] */
    uint32_t rows;
};
/* Of few rows of activations, m <= HRI_CUDA_LINEAR_ROWS_MAX. */
struct hri_cuda_linear_args {
    const float *x; /* [m][cols] */
    uint32_t m, cols, n_products;
    struct hri_cuda_product products[HRI_CUDA_PRODUCTS_MAX];
    float *work;       /* hri_cuda_linear_work(m) floats */
    uint32_t *arrived; /* hri_cuda_linear_counters(), zero; zero again afterwards */
};
size_t hri_cuda_linear_work(uint32_t m);
size_t hri_cuda_linear_counters(void);
int hri_cuda_linear(const struct hri_cuda_linear_args *linear, void *stream);
/* Of many rows: x bfloat16 [m][cols]. */
struct hri_cuda_matmul_args {
    const uint16_t *x;
    uint32_t m, cols;
    struct hri_cuda_product product;
};
int hri_cuda_matmul(const struct hri_cuda_matmul_args *matmul, void *stream);

#ifdef __cplusplus
}
#endif
#endif
