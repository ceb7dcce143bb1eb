/* What a selector is made of: one small table. Selectors see a head through index/head.h.
 *
 * A selector with blocks groups a segment's rows, writes summaries for the new blocks, and per step
 * scores them, chooses and (where it has one) estimates the remainder. NULL entries mean "has
 * none"; their default is in the comment.
 */
#ifndef HRI_SELECTOR_OPS_H
#define HRI_SELECTOR_OPS_H

#include "index/index.h"

struct hri_segment {
    const float *k; /* [n][k_dim] */
    const float *v; /* [n][v_dim] */
    uint32_t n;
    uint32_t first_row; /* of the body; its token is n_sink + first_row */
    uint32_t position_end;
    uint32_t target, cap; /* mean and largest rows of a block */
    uint32_t blocks_max;  /* of this segment */
    void *workspace;      /* workspace_bytes(options, n), 64-byte aligned */
    uint32_t *order;      /* out [n] */
    uint32_t *block_rows; /* out [blocks_max] */
    uint32_t n_blocks;    /* out */
    const float
        *weight; /* out, may stay NULL: [n] how much queries look at each row, in the workspace */
};

struct hri_index_job;

/* One turn of work on a segment, counted from 0: up to a job, which is written, or (kind left NONE) to the end (index/job.h). */
typedef hr_status_t (*hri_index_turn_fn)(struct hri_index_head *head, struct hri_segment *segment,
                                         uint32_t turn, struct hri_index_job *job);

struct hri_selector_ops {
    /* Device bytes for blocks_max blocks beyond the head's own tables; default 0. */
    uint64_t (*device_bytes)(const struct hri_index_options *options);
    /* Of those, what n_blocks blocks hold, shared parts included; default 0. */
    uint64_t (*held_bytes)(const struct hri_index_head *head, uint32_t n_blocks);
    /* Head state; default none. */
    hr_status_t (*create)(struct hri_index_head *head);
    void (*destroy)(struct hri_index_head *head);
    /* Bytes add needs for n rows. */
    size_t (*workspace_bytes)(const struct hri_index_options *options, uint32_t n);
    /* What group would fit first to these rows, so that it finds it made; default: nothing. */
    hr_status_t (*fit)(struct hri_index_head *head, const struct hri_segment *segment);
    /* Fills order, block_rows, n_blocks; default: consecutive rows, target rows each. */
    hr_status_t (*group)(struct hri_index_head *head, struct hri_segment *segment);
    /* Writes summaries for the segment's blocks, whose first is number head->n_blocks; default
     * none. */
    hr_status_t (*summarise)(struct hri_index_head *head, const struct hri_segment *segment);
    /* The same in turns, in their place, and what follows, some tokens later perhaps (hri_index_add_end); all three or none. */
    hri_index_turn_fn group_turn, summarise_turn, sketch_turn;
    /* A job of these turns, on the CPU. */
    void (*job_run)(const struct hri_index_job *job);
    /* Bytes of scratch a step needs. */
    size_t (*scratch_bytes)(const struct hri_index_options *options);
    hr_status_t (*select)(struct hri_index_head *head, const struct hri_select_in *in,
                          struct hri_select_out *out);
    /* All kv-heads of a layer at once, instead of select (in, out: one each); default: one by one.
     * Runs on one thread. */
    hr_status_t (*select_layer)(struct hri_index_head *const *heads, uint32_t n_heads,
                                const struct hri_select_in *in, struct hri_select_out *out);
    /* Queries as they pass, prefill and decode (hri_index_observe); default: not looked at. */
    void (*observe)(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position);
    /* Once per segment, all heads of the layer, before group; may allocate. Default: nothing. */
    hr_status_t (*prepare)(struct hri_index_head *const *heads, uint32_t n_heads, const float *k,
                           const float *v, uint32_t n, uint32_t first_row);
    /* Unit ROWS: more rows of the body (row numbers first_row..); may allocate. Default: the
     * selector needs no index of rows, and rows leave the window one at a time. */
    hr_status_t (*add_rows)(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end);
    /* Forgets rows >= n_rows (a truncate); required with add_rows. */
    void (*truncate_rows)(struct hri_index_head *head, uint32_t n_rows);
    /* Tokens >= n_tokens are gone (hri_index_forget): drops choices and marks that name them, or blocks that are gone. Default:
     * nothing. */
    void (*forget)(struct hri_index_head *head, uint32_t n_tokens);
    /* State and create-time tables beyond the head's own, as index/image.h says. Without it the index is made anew from the rows. */
    void (*image)(struct hri_index_head *head, struct hri_image *image);
    /* All heads of a layer have been loaded: pointers from one to others. Default: nothing. */
    void (*link)(struct hri_index_head *const *heads, uint32_t n_heads);
    /* Log weights [G] of the i-th row chosen by the step whose scratch is in->scratch; default: 0. */
    void (*weigh_row)(struct hri_index_head *head, const struct hri_select_in *in, uint32_t i,
                      uint32_t row, const float *dots, float *log_weight_out);
    /* Bytes in host memory of an index that is searched there; default 0. */
    uint64_t (*host_bytes)(const struct hri_index_head *head);
    /* k [block's rows][k_dim]: keys as the device keeps them; default: as stored. Where it is there, stored
     * rows have no keys: a row is its value. rebuilds (NULL: always) says whether this recipe does it. */
    void (*rebuild_keys)(struct hri_index_head *head, uint32_t block, float *k);
    bool (*rebuilds)(const struct hri_recipe *recipe);
    void (*rebuild_row)(struct hri_index_head *head, uint32_t row, float *k); /* unit ROWS */
    /* Mean key and value of a block as the summary has them; default: those of head->summary, or 0. */
    void (*centers)(const struct hri_index_head *head, uint32_t block, float *k_center,
                    float *v_center);
    /* Adds the estimate of all blocks not in out, or (out NULL) of the n items listed; returns how
     * many. Default: drops them. */
    uint32_t (*estimate)(struct hri_index_head *head, const struct hri_select_in *in,
                         const struct hri_select_out *out, const uint32_t *blocks, uint32_t n,
                         struct hri_partial *part);
    /* Adds the estimate of n items that were chosen but did not come, and says what relative error [G] they leave; called after
     * estimate. Default: estimate with the list, and an error of 0. */
    void (*late)(struct hri_index_head *head, const struct hri_select_in *in, const uint32_t *items,
                 uint32_t n, struct hri_partial *part, float *error_out);
};

extern const struct hri_selector hri_selector_full;
extern const struct hri_selector hri_selector_window;
extern const struct hri_selector hri_selector_exact_topk;
extern const struct hri_selector hri_selector_quest;
extern const struct hri_selector hri_selector_arkvale;
extern const struct hri_selector hri_selector_shadowkv;
extern const struct hri_selector hri_selector_freekv;
extern const struct hri_selector hri_selector_louiskv;
extern const struct hri_selector hri_selector_actqkv;
extern const struct hri_selector hri_selector_lserve;
extern const struct hri_selector hri_selector_retroinfer;
extern const struct hri_selector hri_selector_tokenselect;
extern const struct hri_selector hri_selector_infinigen;
extern const struct hri_selector hri_selector_instinfer;
extern const struct hri_selector hri_selector_duoattention;
extern const struct hri_selector hri_selector_razorattention;
extern const struct hri_selector hri_selector_task_kv;
extern const struct hri_selector hri_selector_rlkv;
extern const struct hri_selector hri_selector_pqcache;
extern const struct hri_selector hri_selector_a2ats;
extern const struct hri_selector hri_selector_clusterkv;
extern const struct hri_selector hri_selector_squeezed;
extern const struct hri_selector hri_selector_magicpig;
extern const struct hri_selector hri_selector_pariskv;
extern const struct hri_selector hri_selector_retrievalattention;
extern const struct hri_selector hri_selector_faiss;
extern const struct hri_selector hri_selector_triforce;
extern const struct hri_selector hri_selector_headrace;

#endif
