/* The index of one kv-head of one layer: which blocks matter for a query, and what the others
 * amount to.
 *
 * An index head holds query statistics, the summaries of all blocks of its body (device tier) and
 * the state of its selector. It never sees where blocks live: the runtime tells it what a block
 * costs and which are resident.
 *
 * Letters as in kernels/kernels.h. Queries passed to select/estimate are float32, [G][k_dim],
 * rotated, and carry the softmax scale and log-n factor. Keys and values are float32 copies of the
 * exact rows, keys rotated as they were appended. Threads: different heads may be used by different
 * threads at the same time; one head by one thread.
 */
#ifndef HRI_INDEX_H
#define HRI_INDEX_H

#include "base/alloc.h"
#include "kernels/kernels.h"
#include <headrace/headrace.h>

/* -- selectors and their parameters (a recipe string names one: "quest:page=32") -- */
#define HRI_SELECTOR_PARAMS_MAX   24
#define HRI_RECIPE_ARGUMENT_BYTES 128

struct hri_param {
    const char *name, *meaning, *source;
    double value_default, min, max;
};
/* What the selector chooses. */
enum hri_unit { HRI_UNIT_NONE, HRI_UNIT_BLOCKS, HRI_UNIT_ROWS, HRI_UNIT_ALL };
/* How its blocks are stored. */
enum hri_codec { HRI_CODEC_EXACT, HRI_CODEC_I8 };

struct hri_selector {
    const char *name, *summary, *source; /* one line; paper and section */
    enum hri_unit unit;
    enum hri_codec codec;
    bool needs_row_scores; /* true top-k: select gets the logits of all body rows */
    bool keeps_stats;      /* query statistics (index/qstats.h) are gathered for it */
    bool takes_argument;   /* "name:ARGUMENT" is passed on as it stands (a FAISS factory string) */
    bool needs_gates;      /* which heads retrieve comes from the caller's table */
    bool
        attends_in_place; /* heads that attend everything do it where the rows lie; partials move */
    bool wants_early_q;   /* a guess of the query, made a layer before (in->early_q) */
    bool
        drafts; /* of a speculative decoder: its output is a proposal, param "tokens" says how many before they are verified */
    bool splits_clusters; /* clusters have any size; one larger than a block is several blocks */
    bool makes_ahead;     /* segments may be grouped some steps before they are seen */
    bool shares_budget;   /* unit ROWS: one head may read what the others of its layer leave */
    const struct hri_param *params;     /* ends with name NULL */
    const struct hri_selector_ops *ops; /* index/selector_ops.h */
};
/* Static, ordered; NULL past the end. full, window, exact-topk, quest, retroinfer, headrace. */
const struct hri_selector *hri_selector_at(size_t i);

struct hri_recipe {
    const struct hri_selector *selector;
    double values[HRI_SELECTOR_PARAMS_MAX];   /* in the order of selector->params */
    char argument[HRI_RECIPE_ARGUMENT_BYTES]; /* of selectors that take one */
};
/* "name" or "name:key=value,key=value". Unknown names and keys: HR_ERR_NOTFOUND with the nearest
 * known one in the message. */
hr_status_t hri_recipe_parse(const char *text, struct hri_recipe *recipe_out);
double hri_recipe_value(const struct hri_recipe *recipe, const char *key);
/* True for parameters that count something (tokens, rows, bits): whole numbers. The others are shares and the like. */
bool hri_param_counts(const struct hri_param *param);
/* Every selector has the parameters "sink" and "window" (tokens), "segment" (tokens grouped
 * together at prefill) and "decode_segment" (while decoding); those with blocks have "block"
 * (target rows per block). */

/* -- a head -- */
struct hri_index_options {
    struct hri_recipe recipe;
    uint32_t g, k_dim, v_dim;
    float scale, soft_cap;   /* scale: to undo what queries carry when statistics are kept */
    hr_dtype_t dtype;        /* of exact rows */
    struct hr_rope rope;     /* layout HR_ROPE_NONE: unknown */
    uint32_t horizon_tokens; /* positions ahead over which the metric is averaged */
    uint32_t positions_max;  /* no query will stand here or beyond (cuts the horizon); 0: unknown */
    uint32_t blocks_max, rows_max;
    uint32_t layer, head, n_layers, n_heads; /* which head of how many this is */
    bool
        rows_in_host; /* all of the body, as long as it lives: single rows may be read, and a few bytes of one */
    uint32_t n_sink; /* body row i is token n_sink + i */
    float gate;      /* 0..1 of the caller's table of heads: 1 retrieves, 0 streams; -1: no table */
    const float *gates; /* [n_layers][n_heads] that table, kept by the caller; or NULL */
    const struct hri_kernels *kernels;
    struct hri_alloc *device;  /* summaries (budgeted) */
    struct hri_alloc *scratch; /* statistics, the rest */
    uint64_t seed;
};
struct hri_index_head;

/* Rows a block may hold at most, and an upper bound of blocks for n rows grouped in segments (exact
 * enough to budget with). */
uint32_t hri_index_block_rows_max(const struct hri_recipe *recipe, uint32_t k_dim, uint32_t v_dim);
/* A block is stored, fetched and cached in parts of so many rows (the last one takes what is left): one page of 4 KiB where single
 * rows may be refined too, else the whole block. Part p of block b is item b * hri_index_parts + p: items are what select chooses
 * and what place[] is indexed by. */
uint32_t hri_index_part_rows(const struct hri_recipe *recipe, uint32_t k_dim, uint32_t v_dim);
uint32_t hri_index_parts(const struct hri_recipe *recipe, uint32_t k_dim, uint32_t v_dim);
/* Parts of all blocks together. */
uint32_t hri_index_items(const struct hri_index_head *head);
/* Rows of an item; 0 for a part that the block does not have. */
uint32_t hri_index_item_rows(const struct hri_index_head *head, uint32_t item);
uint32_t hri_index_blocks_bound(const struct hri_recipe *recipe, uint32_t k_dim, uint32_t v_dim,
                                uint32_t n_rows, uint32_t n_segments);
/* Device bytes of a head with blocks_max blocks. */
uint64_t hri_index_device_bytes(const struct hri_index_options *options);

hr_status_t hri_index_head_create(const struct hri_index_options *options,
                                  struct hri_index_head **head_out);
void hri_index_head_destroy(struct hri_index_head *head);

/* Query statistics: q [n][G][k_dim] as passed to select; query i is at position first_position + i.
 * Cheap: samples inside. */
void hri_index_observe(struct hri_index_head *head, const float *q, uint32_t n,
                       uint32_t first_position);

/* Groups n rows (a segment) into blocks and appends their summaries. Older blocks are untouched.
 * k [n][k_dim], v [n][v_dim]; position_end: position after the newest token, or the later one from
 * which the first query is expected (the horizon starts here). workspace: hri_index_workspace_bytes(...) bytes, 64-byte aligned. Outputs, the caller's
 * arrays: order[n]: row numbers in block order; block_rows[]: rows of each new block, in order;
 * n_blocks_out. */
size_t hri_index_workspace_bytes(const struct hri_index_options *options, uint32_t n_rows_max);
hr_status_t hri_index_add(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                          uint32_t position_end, void *workspace, uint32_t *order,
                          uint32_t *block_rows, uint32_t *n_blocks_out);
/* The same in two calls, each about half of the work; in between the head shows nothing of it and neither gets nor loses blocks. weight [n]
 * is the caller's, as order and block_rows are, and goes with them from the first call to the second; *weighted_out: it is needed. The
 * second one's workspace may be another. What both leave is what hri_index_add leaves. */
hr_status_t hri_index_add_begin(struct hri_index_head *head, const float *k, const float *v,
                                uint32_t n, uint32_t position_end, void *workspace, uint32_t *order,
                                uint32_t *block_rows, uint32_t *n_blocks_out, float *weight,
                                bool *weighted_out);
hr_status_t hri_index_add_end(struct hri_index_head *head, const float *k, const float *v,
                              uint32_t n, void *workspace, uint32_t *order, uint32_t *block_rows,
                              uint32_t n_blocks, const float *weight);
/* Before an add of these rows, for some of its work: what is fitted to them alone, where the last fit does not serve. May be left out. */
hr_status_t hri_index_fit(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                          uint32_t position_end, void *workspace);
/* For selectors that look at all heads of a layer before they group: called once per segment, before
 * hri_index_add. k, v [n_heads][n][dim]. Nothing to do for the others (hri_index_prepares). */
bool hri_index_prepares(const struct hri_recipe *recipe);
hr_status_t hri_index_prepare(struct hri_index_head *const *heads, uint32_t n_heads, const float *k,
                              const float *v, uint32_t n, uint32_t first_row);
/* For selectors of rows that keep an index of them (hri_index_adds_rows): rows first_row.. of the
 * body. position_end as above. After an error the head must be destroyed or truncated. */
bool hri_index_adds_rows(const struct hri_recipe *recipe);
hr_status_t hri_index_add_rows(struct hri_index_head *head, const float *k, const float *v,
                               uint32_t n, uint32_t first_row, uint32_t position_end);
/* Forgets rows >= n_rows. */
void hri_index_truncate_rows(struct hri_index_head *head, uint32_t n_rows);
uint32_t hri_index_rows(const struct hri_index_head *head);
uint32_t hri_index_blocks(const struct hri_index_head *head);
uint32_t hri_index_block_rows(const struct hri_index_head *head, uint32_t block);
/* Held for the blocks there are, shared parts included, sketches not. */
uint64_t hri_index_summary_bytes(const struct hri_index_head *head);
/* Of its sketches (level 1), 0 for selectors without. */
uint64_t hri_index_sketch_bytes(const struct hri_index_head *head);
/* True if select may choose single rows of blocks (hri_select_out.rows). */
bool hri_index_takes_rows(const struct hri_recipe *recipe);
/* Centres as the summary gives them (dequantised), for codes that are differences from them.
 * k_center may be NULL. */
void hri_index_centers(const struct hri_index_head *head, uint32_t block, float *k_center,
                       float *v_center);
/* Steps of a block's int8 codes (kept beside the summary). */
void hri_index_set_steps(struct hri_index_head *head, uint32_t block, float k_step, float v_step);
void hri_index_steps(const struct hri_index_head *head, uint32_t block, float *k_step,
                     float *v_step);
/* Drops blocks >= n_blocks (a truncate). */
void hri_index_truncate(struct hri_index_head *head, uint32_t n_blocks);
/* Blocks made ahead, for recipes whose segments may be (hri_index_makes_ahead): those from n_blocks on are hidden, so that steps, counts and
 * images' readers see a head without them, until they are shown or dropped. Between that and this the head neither gets nor loses others.
 * Nothing else of a head's state depends on which rows are seen, but the shape of level 0 has learnt from all. */
bool hri_index_makes_ahead(const struct hri_recipe *recipe);
void hri_index_hide(struct hri_index_head *head, uint32_t n_blocks);
void hri_index_show(struct hri_index_head *head); /* nothing hidden: nothing happens */
void hri_index_drop_ahead(struct hri_index_head *head);
uint32_t hri_index_blocks_ahead(const struct hri_index_head *head); /* 0: none are hidden */
uint32_t hri_index_rows_ahead(const struct hri_index_head *head);
/* Of a truncate, after the blocks or rows: tokens >= n_tokens are gone, also those that were not grouped yet. */
void hri_index_forget(struct hri_index_head *head, uint32_t n_tokens);

/* -- saving, forking (index/image.h) -- */
struct hri_image;
/* False: this recipe's index is made anew from the rows instead, with hri_index_add_rows. */
bool hri_index_saves(const struct hri_recipe *recipe);
/* Everything a head knows, out of it or into one just created. After an error while loading: destroy the head. */
hr_status_t hri_index_image(struct hri_index_head *head, struct hri_image *image);
/* Forks. A head that shares all tables and the selector's state with `head` and has query statistics of its own; neither may then get or
 * lose rows until the other is destroyed (hri_index_is_shared). gates: as in the options. Only where hri_index_shares; else copy. */
bool hri_index_shares(const struct hri_recipe *recipe);
bool hri_index_is_shared(const struct hri_index_head *head);
hr_status_t hri_index_share(struct hri_index_head *head, const float *gates,
                            struct hri_index_head **head_out);
/* Everything that `from` knows into `to`, which was just created with the same options. */
hr_status_t hri_index_copy(struct hri_index_head *from, struct hri_index_head *to);
/* After all heads of a layer were loaded. */
void hri_index_link(struct hri_index_head *const *heads, uint32_t n_heads);

/* -- a step -- */
enum hri_place { HRI_PLACE_HOST = 0, HRI_PLACE_FRAME = 1, HRI_PLACE_FILE = 2 };

struct hri_select_in {
    const float *q;                 /* [G][k_dim] */
    const struct hri_partial *near; /* sink and window, already attended: gives the denominator */
    uint64_t budget_bytes;          /* of refined blocks (or rows) for this head */
    double tolerance;        /* 0: spend the budget; else stop when the predicted error is below */
    uint32_t row_bytes;      /* stored bytes of a row in the selector's codec */
    const float *row_scores; /* [G][row_scores_stride] for needs_row_scores: logits of the body rows
                                in token order */
    size_t row_scores_stride;
    uint32_t n_rows;   /* body rows */
    uint32_t position; /* of the query */
    /* [G][k_dim] a guess of this query made before its layer was reached, or NULL */
    const float *early_q;
    /* [items], enum hri_place; NULL: all in host memory. An item of the file costs a whole cell. */
    const uint8_t *place;
    uint32_t cell_bytes;
    /* hri_index_step_scratch_bytes, 64-byte aligned; kept by the caller until estimate is done. */
    void *scratch;
};
/* A row of a block, by its place in the block. */
struct hri_row_ref {
    uint32_t block, row;
};

#define HRI_WORTH_BINS 256u
struct hri_select_out {
    uint32_t
        *items; /* the caller's, [items_max]: parts of blocks, or rows of the body; best first */
    uint32_t items_max, n_items;
    uint64_t bytes; /* what they cost */
    /* Beside whole blocks, rows of blocks that lie in host memory, in the order of the blocks; the caller's, [rows_max]; NULL:
     * none are chosen. */
    struct hri_row_ref *rows;
    uint32_t rows_max, n_rows;
    uint32_t
        n_rests; /* rows of whose values the rest was taken (index/rests.h); their bytes are among `bytes` */
    uint64_t bytes_rests;
    uint32_t rows_sketched; /* rows whose sketch was read, refined ones included */
    uint64_t bytes_sketched;
    uint64_t bytes_sketched_host; /* of these, moved from host memory; they are among `bytes` */
    uint64_t bytes_summaries;     /* of level 0, read; 0: all there is */
    uint32_t rows_visited;        /* by walks and look-ups in host memory: keys or codes compared */
    /* The caller's, [HRI_WORTH_BINS], or NULL: how many rows removed, or would remove, from half of 2^(i - 127) on of the squared relative
     * error. Selectors that do not know leave it. */
    uint32_t *worth;
    bool all;                      /* attend every row of this head exactly; items are ignored */
    float predicted[HR_GROUP_MAX]; /* relative output error per query head once they are refined */
    bool capped;                   /* tolerance mode: the budget ended it */
};
size_t hri_index_step_scratch_bytes(const struct hri_index_options *options);
hr_status_t hri_index_select(struct hri_index_head *head, const struct hri_select_in *in,
                             struct hri_select_out *out);
/* All kv-heads of a layer: some selectors share one budget or one choice between them. */
hr_status_t hri_index_select_layer(struct hri_index_head *const *heads, uint32_t n_heads,
                                   const struct hri_select_in *in, struct hri_select_out *out);
/* True if the heads of a layer must be selected for together. */
bool hri_index_selects_layers(const struct hri_recipe *recipe);
/* Selectors that keep keys on the device in another form: k [rows][k_dim] of a block, to be used instead
 * of those stored. Their blocks have at most HRI_REBUILD_ROWS_MAX rows. */
#define HRI_REBUILD_ROWS_MAX 32
bool hri_index_rebuilds_keys(const struct hri_recipe *recipe);
void hri_index_rebuild_keys(struct hri_index_head *head, uint32_t block, float *k);
/* The same for selectors of rows: k [k_dim] of one row. */
void hri_index_rebuild_row(struct hri_index_head *head, uint32_t row, float *k);
/* q . k_center of a block, [G], as scored by the last select with this scratch. */
void hri_index_block_dots(const struct hri_index_head *head, const struct hri_select_in *in,
                          uint32_t block, float *dots_out);
/* Says that the dots, centre and steps of a block (codec int8) are wanted soon: brings them into the
 * caches. */
void hri_index_block_ahead(const struct hri_index_head *head, const struct hri_select_in *in,
                           uint32_t block);
/* Selectors that sample rows weigh each by how likely it was to be drawn (hri_index_weighs_rows): dots[G], q . k of
 * out->items[i], becomes what is added to its logits; -INFINITY: not in this query head's sample. */
bool hri_index_weighs_rows(const struct hri_recipe *recipe);
void hri_index_weigh_row(struct hri_index_head *head, const struct hri_select_in *in, uint32_t i,
                         uint32_t row, const float *dots, float *log_weight_out);
/* Held in host memory by an index that is searched there. */
uint64_t hri_index_host_bytes(const struct hri_index_head *head);
/* Adds the estimate of every block not chosen in out to part (nothing for selectors that drop the
 * remainder). estimated_blocks_out may be NULL. */
void hri_index_estimate(struct hri_index_head *head, const struct hri_select_in *in,
                        const struct hri_select_out *out, struct hri_partial *part,
                        uint32_t *estimated_blocks_out);
/* Attends the rows chosen in out: codes[i] are the int8 codes [k_dim + v_dim] of out->rows[i]. */
void hri_index_attend_rows(struct hri_index_head *head, const struct hri_select_in *in,
                           const struct hri_select_out *out, const int8_t *const *codes,
                           struct hri_partial *part);
/* Adds the estimate of these items (chosen, but late; their rows' sketches or else their blocks' summaries) after the estimate of what was
 * not chosen. error_out [G]: the relative output error that their being late leaves, 0 where the selector predicts none. */
void hri_index_estimate_items(struct hri_index_head *head, const struct hri_select_in *in,
                              const uint32_t *items, uint32_t n, struct hri_partial *part,
                              float *error_out);

#endif
