/* Inside the runtime: what a runtime, a sequence and a layer are made of. Not installed.
 *
 * Tokens of a layer, oldest first:
 *
 *   0        n_sink                     body_end             tail_first   logged      length
 *   | sink   | body: in blocks, indexed | pending: log only  | ........ near ........ |
 *            |<---- 'log' lane: exact rows in token order, [page][kv-head] cells ---->| rest: only in the tail
 *
 * The tail (device) holds the rows [tail_first, length) exactly; sink rows have a copy of their own. Rows leave the tail only
 * once the log has them. A recipe step first settles: pending rows are grouped until body_end >= tail_first.
 */
#ifndef HRI_RUNTIME_SEQUENCE_H
#define HRI_RUNTIME_SEQUENCE_H

#include "base/alloc.h"
#include "base/log.h"
#include "base/threads.h"
#include "index/index.h"
#include "kernels/device.h"
#include "kernels/kernels.h"
#include "offload/frames.h"
#include "offload/io_ops.h"
#include "offload/store.h"
#include "runtime/share.h"
#include <headrace/headrace.h>

#define HRI_LOG_ROWS                                                                               \
    64u /* tokens in a cell of the log; cells stay near 16-64 KiB for all head dims */
#define HRI_STREAM_BYTES                                                                           \
    (2u << 20)                    /* one of the two buffers through which exact attention streams */
#define HRI_STREAM_PAGES     64u  /* log pages that a single query may be shown at a time */
#define HRI_QUERY_TOKENS_MAX 512u /* queries attended in one pass over the rows */
#define HRI_TILE_QUERIES                                                                           \
    192u /* query vectors of one tile task: their state stays in the L2 cache */

enum hri_stage { HRI_APPEND, HRI_STORE, HRI_INDEX, HRI_SELECT, HRI_FETCH, HRI_ATTEND };

/* Grown on demand, never shrunk: steady state does not allocate. */
struct hri_device_part;
struct hri_device_rows;
struct hri_device_index;

struct hri_scratch {
    struct hri_alloc *alloc;
    void *base;
    size_t bytes;
};
void *hri_scratch_get(struct hri_scratch *scratch,
                      size_t bytes); /* page aligned; NULL: out of memory */
void hri_scratch_fini(struct hri_scratch *scratch);
/* The same for `stream` and `rows`, which rows are read to: once the disk was given up, other memory than until then. */
void *hri_scratch_read(hr_runtime_t *rt, struct hri_scratch *scratch, size_t bytes);
/* Lets go of what the kernel may still write to. */
void hri_scratch_forget(hr_runtime_t *rt);

struct hr_runtime {
    struct hri_alloc alloc;  /* scratch: everything outside the tiers */
    struct hri_alloc device; /* the device tier's budget */
    struct hri_log log;
    hr_log_fn log_fn;
    void *log_context;
    struct hri_pool *pool;
    unsigned n_workers;
    const struct hri_kernels *kernels;
    struct hri_store *store;
    struct hri_alloc_hooks hooks;
    const struct hri_io_ops *io; /* of the file tier and of saved sessions */
    hr_io_mode_t io_mode;        /* the same */
    uint32_t n_sequences;
    uint64_t host_bytes, file_bytes;
    struct hri_device *gpu; /* a device with memory of its own, or NULL: the CPU is the device */
    bool host_pinned;       /* it reads the host tier in place */
    struct hri_device_rows *holders; /* sequences with exact rows there (device_rows.h) */
    /* What indexing there uses (device_index.c), NULL: nothing yet, or refused: there is no room; on_host: the CPU does it all (tests). */
    struct hri_device_index *device_index;
    bool device_index_refused, index_on_host;
    struct hri_scratch stream, queries, tiles, rows, group;
    bool disk_given_up; /* and what it was reading to is forgotten */
    void *(*user_alloc)(void *, size_t, size_t);
    void (*user_free)(void *, void *);
    void *user_context;
};

#define HRI_NO_CELL UINT32_MAX
struct hri_block_at {      /* where a block's bytes lie in its layer's block lane */
    uint32_t cell, offset; /* cell HRI_NO_CELL: the block has no such part */
};

/* Which tokens the blocks of a kv-head hold, kept on request. */
struct hri_block_tokens {
    uint32_t *token; /* [tokens_max] of the body's rows in the order of the blocks */
    uint32_t *first; /* [blocks_max] a block's first row in token[] */
};

/* Forks: a tail that several layers read. It changes no more until all but one have left; each of the others that may still leave has
 * brought memory for a copy, so that leaving cannot fail and allocates nothing. */
struct hri_tail_share {
    uint32_t layers;
    unsigned char *spare; /* [layers - 1] buffers, each begins with the address of the next */
};

/* A head of the segment that leaves next whose blocks were begun and not ended (settle.c). n 0: none. */
struct hri_half {
    uint32_t head, n, n_blocks;
    uint32_t n_max; /* rows that there is room for */
    bool weighted;
    uint32_t *order, *block_rows; /* [n_max] */
    float *weight;                /* [n_max] */
};

struct hri_layer {
    uint32_t n_tokens;   /* length */
    uint32_t body_end;   /* tokens [n_sink, body_end) are the body */
    uint32_t tail_first; /* first token the tail holds */
    uint32_t n_logged;   /* tokens in the log, a multiple of HRI_LOG_ROWS */
    uint32_t sliding;    /* tokens seen, 0: all */
    bool indexed;   /* the recipe works on blocks here (no sliding window, selector has blocks) */
    bool adds_rows; /* the selector chooses rows from an index of its own */
    bool exact;     /* the recipe attends everything here: full, or a sliding window */
    struct hr_rope rope;
    float *rope_frequencies;
    const float *log_n;    /* [n_q_heads] or NULL */
    float *early_q;        /* [n_kv][G][k_dim] scaled, for selectors that want it; else NULL */
    uint32_t early_tokens; /* tokens the layer had when it came; 0: none waits */
    struct hri_lane *log_lane;
    struct hri_lane *block_lane; /* NULL unless indexed */
    uint32_t *
        settled; /* [n_settled] where each segment of the body ends; NULL where rows leave the window one by one */
    uint32_t n_settled, settled_max;
    unsigned char *sink;                   /* [n_kv][n_sink][row_bytes] */
    unsigned char *tail;                   /* [n_kv][tail_max][row_bytes] */
    struct hri_tail_share *tail_share;     /* NULL: the tail is this layer's alone */
    struct hri_index_head **heads;         /* [n_kv], NULL unless indexed or selecting rows */
    struct hri_block_at **places;          /* [n_kv][blocks_max] */
    struct hri_block_tokens *block_tokens; /* [n_kv] or NULL */
    struct hri_half half;
    uint32_t *
        shared; /* forks: how many layers use the arrays in places and block_tokens; NULL: this one alone */
};

/* A folder of a saved session that the sequence has locked (home.c). */
enum { HRI_HOME_OPENED, HRI_HOME_CLAIMED, HRI_HOMES };
struct hri_home {
    bool held;
    uint64_t device, inode; /* which folder it is */
    int lock;
    int folder;    /* -1, or the open folder */
    char *made_as; /* its path, if it was made when it was claimed */
};

/* One kv-head's part of a step. */
struct hri_head_step {
    float *q; /* [G][k_dim], scaled */
    struct hri_partial part;
    struct hri_partial far; /* of recipes that attend in place; else NULLs */
    struct hri_select_in in;
    struct hri_select_out out;
    uint32_t *items;
    struct hri_row_ref
        *rows; /* [rows_max] or NULL: rows of blocks in host memory, refined singly */
    const int8_t **row_codes; /* [rows_max] */
    uint8_t *place;           /* [blocks_max] enum hri_place */
    struct hri_block_address *address;
    const void **where;
    struct hri_read *reads;
    uint32_t *read_block;
    uint32_t *late;
    struct hri_fetch fetch;
    unsigned char *select_scratch;
    uint32_t estimated, n_late, n_lost; /* lost: of those late, what cannot be read */
    float late_error[HR_GROUP_MAX];
    uint64_t refined_rows;
    uint64_t selected_ns;
    bool selected; /* atomic: this step's choice is made */
    bool
        attended; /* and the estimate, rows and blocks that it takes are in part, but for late ones */
    hr_status_t status;
};

struct hr_sequence {
    hr_runtime_t *runtime;
    uint32_t n_layers, n_q, n_kv, g, dk, dv;
    hr_dtype_t dtype;
    uint32_t row_bytes;  /* exact row, K and V */
    uint32_t code_bytes; /* a row as the blocks store it */
    float scale, soft_cap;
    uint32_t tokens_max;
    uint32_t query_from; /* no recipe step stands before this position (hr_sequence_expect) */
    struct hri_recipe recipe;
    uint32_t n_sink, n_window, segment, decode_segment;
    uint32_t tail_max;
    uint32_t log_cell_bytes, block_cell_bytes, block_rows_max, blocks_max;
    uint32_t parts,
        part_rows; /* a block is stored in parts (index/index.h); with their numbers as items */
    double moved, tolerance;
    uint64_t moved_bytes; /* not 0: the budget; moved is then its share of the longest text */
    struct hri_layer *layers;
    struct hri_frames *frames; /* NULL where the recipe has no blocks, or they are on a device: */
    struct hri_device_part *part; /* what is there (device_part.h), or NULL */
    bool steps_on_gpu;            /* else the recipe's steps run on the host */
    struct hri_device_rows *held; /* exact rows there (device_rows.h), or NULL */
    struct hri_head_step *steps;  /* [n_kv] */
    uint32_t items_max, rows_max;
    uint64_t body_rows; /* summed over layers and kv-heads */
    uint64_t index_ns;
    struct hri_share share;      /* part NULL: the budget is not shared */
    uint8_t *whole;              /* [n_kv] heads whose every row this step attends */
    struct hri_select_in *ins;   /* [n_kv] of a layer, for selectors of whole layers */
    struct hri_select_out *outs; /* [n_kv] */
    const float *head_gates;     /* [n_layers][n_kv] or NULL */
    float *row_scores;           /* [n_kv][G][tokens_max] for true top-k, else NULL */
    unsigned char *row_buffer;   /* [n_kv][items_max][row_bytes] for selectors of rows */
    uint64_t time_ns[HR_STAGES]; /* of append/store/index since the last report */
    uint64_t serial;
    char recipe_text[512]; /* as given */
    uint32_t cancel;       /* atomic: 1 ends the long call that is under way */
    struct hri_home homes[HRI_HOMES];
};

/* As hr_runtime_create, with other system calls than the real ones; io outlives the runtime. */
hr_status_t hri_runtime_create(const struct hr_runtime_options *options,
                               const struct hri_io_ops *io, hr_runtime_t **runtime_out);
/* And with another device than those of the build, for tests: what options->device names, NULL: none. */
hr_status_t hri_runtime_create_on(const struct hr_runtime_options *options,
                                  const struct hri_io_ops *io, const struct hri_device_ops *ops,
                                  hr_runtime_t **runtime_out);

/* Leaves all homes of a sequence that ends. */
void hri_homes_leave(hr_sequence_t *s);

/* A long call begins: what was canceled before it does not count. */
static inline void hri_cancel_begin(hr_sequence_t *s)
{
    __atomic_store_n(&s->cancel, 0, __ATOMIC_RELAXED);
}
static inline bool hri_canceled(const hr_sequence_t *s)
{
    return __atomic_load_n(&s->cancel, __ATOMIC_RELAXED) != 0;
}

/* -- shared steps -- */
static inline const unsigned char *hri_tail_row(const hr_sequence_t *s, const struct hri_layer *l,
                                                uint32_t head, uint32_t token)
{
    return l->tail + ((size_t)head * s->tail_max + (token - l->tail_first)) * s->row_bytes;
}
/* Tokens after the sink whose rows lie in blocks. */
static inline uint32_t hri_body_tokens(const hr_sequence_t *s, const struct hri_layer *l)
{
    return l->body_end > s->n_sink ? l->body_end - s->n_sink : 0;
}
/* Bytes that a step may select of each kv-head, as an equal share. */
static inline uint64_t hri_step_budget(const hr_sequence_t *s, const struct hri_layer *l)
{
    uint64_t body = (uint64_t)hri_body_tokens(s, l) * s->row_bytes;
    if (s->moved_bytes > 0) {
        return s->moved_bytes < body ? s->moved_bytes : body;
    }
    return (uint64_t)(s->moved * (double)hri_body_tokens(s, l) * s->row_bytes);
}
/* What a query of head h is multiplied by; log_n: ln of the tokens that it sees. */
static inline float hri_query_factor(const hr_sequence_t *s, const struct hri_layer *l, uint32_t h,
                                     float log_n)
{
    return s->scale * (l->log_n != NULL ? 1.0f + l->log_n[h] * log_n : 1.0f);
}
/* HR_ERR_STATE where rows that the query of `position` does not see are in the body already. */
hr_status_t hri_query_in_window(const struct hri_layer *l, uint32_t layer_index, uint32_t position);
static inline uint32_t hri_log_cell(const hr_sequence_t *s, uint32_t token, uint32_t head)
{
    return token / HRI_LOG_ROWS * s->n_kv + head;
}

/* A run of row tiles of one layer, all in memory: tile i holds rows [token[i], token[i] + rows[i]) of every kv-head,
 * head h at base[i * n_kv + h]. */
struct hri_tiles {
    uint32_t n;
    uint32_t *token, *rows;
    const unsigned char **base;
};
typedef void (*hri_tiles_fn)(void *context, const struct hri_tiles *tiles);
/* Brings rows [first, end) of a layer past visit in token order, from the log (read ahead while visit works) and the tail. */
hr_status_t hri_stream_rows(hr_sequence_t *s, struct hri_layer *layer, uint32_t first, uint32_t end,
                            hri_tiles_fn visit, void *context, struct hr_attend_report *report);
/* The same for the kv-heads with only[head] alone, NULL: all; the others' tiles are NULL. Rows in host memory may come `pages` tiles at
 * a time, at most HRI_STREAM_PAGES, where the buffers hold fewer. */
hr_status_t hri_stream_heads(hr_sequence_t *s, struct hri_layer *layer, uint32_t first,
                             uint32_t end, const uint8_t *only, uint32_t pages, hri_tiles_fn visit,
                             void *context, struct hr_attend_report *report);

/* Exact causal attention of nq query tokens, the first at `position`. q: [n_kv][nq][G][dk], scaled; out: [n_kv][nq][G][dv]. */
hr_status_t hri_attend_exact(hr_sequence_t *s, struct hri_layer *layer, const float *q, uint32_t nq,
                             uint32_t position, float *out, struct hr_attend_report *report);
/* Exact attention of a step's query over the body, for the kv-heads with only[head]; adds to the parts of s->steps. */
hr_status_t hri_attend_body(hr_sequence_t *s, struct hri_layer *layer, const uint8_t *only,
                            struct hr_attend_report *report);
/* Device memory that a graph of the sequence's tokens needs (step_graph.c). */
uint64_t hri_step_graph_bytes(const hr_sequence_t *s);
/* Logits of the body's rows for one query token, into s->row_scores. */
hr_status_t hri_score_body(hr_sequence_t *s, struct hri_layer *layer);

/* Groups pending rows into blocks, in segments: while at least `least` wait and, with near, while the tail lacks any of them. */
hr_status_t hri_settle(hr_sequence_t *s, struct hri_layer *layer, uint32_t least, bool near);

/* Ends what a step began of the next segment's blocks: before anything but a step looks at the layer's index or changes its rows. */
hr_status_t hri_settle_half(hr_sequence_t *s, struct hri_layer *layer);
hr_status_t hri_settle_halves(hr_sequence_t *s); /* of all layers */
hr_status_t hri_half_create(hr_sequence_t *s, struct hri_layer *layer);

/* Tokens after the body that heads were grouped ahead for, 0: none. */
uint32_t hri_layer_ahead(const struct hri_layer *layer);

/* The first n segments of l->settled, grouped as they were; the body is empty. */
hr_status_t hri_settle_ends(hr_sequence_t *s, struct hri_layer *layer, uint32_t n);
/* A layer whose log is whole and whose tail has the rows after it: sink and tail as the recipe wants them, from the log. */
hr_status_t hri_layer_refill(hr_sequence_t *s, struct hri_layer *layer);
/* Forgets the layer's index and blocks: as created. */
hr_status_t hri_layer_index_reset(hr_sequence_t *s, struct hri_layer *layer);

/* Before a layer's index gets or loses rows: what it shares with forks becomes its own. */
hr_status_t hri_layer_own(hr_sequence_t *s, struct hri_layer *layer);
/* Before a layer's tail is written to: it becomes the layer's own. */
void hri_tail_own(hr_sequence_t *s, struct hri_layer *layer);
void hri_tail_destroy(hr_sequence_t *s, struct hri_layer *layer);
/* Parts of a sequence's creation, for forks. */
hr_status_t hri_steps_create(hr_sequence_t *s);
hr_status_t hri_frames_attach(hr_sequence_t *s);
hr_status_t hri_heads_create(hr_sequence_t *s, struct hri_layer *layer);
/* What the heads of a layer have in common. */
void hri_index_options_fill(const hr_sequence_t *s, const struct hri_layer *layer,
                            struct hri_index_options *options);
hr_status_t hri_status_with_hint(const hr_sequence_t *s, hr_status_t status);

/* What a step may wait for. */
struct hri_limits {
    uint64_t
        deadline_ns; /* hri_now_ns at which fetches are late; 0: the store's time-out, which is an error */
    bool strict; /* late and lost blocks are errors */
};
/* One query token by the recipe. q: [n_kv][G][dk], scaled; out: [n_kv][G][dv]. */
hr_status_t hri_step(hr_sequence_t *s, uint32_t layer_index, const float *q, uint32_t position,
                     const struct hri_limits *limits, float *out, struct hr_attend_report *report);

/* q tensor rows -> [n_kv][n][G][dk] float, scaled, log-n applied. Finds non-finite numbers. */
hr_status_t hri_queries_load(hr_sequence_t *s, const struct hri_layer *layer,
                             const struct hr_tensor *q, uint32_t first, uint32_t n,
                             uint32_t position, float *dst);
void hri_out_store(const hr_sequence_t *s, struct hr_tensor *out, uint32_t token, uint32_t head,
                   const float *src);

hr_status_t hri_tensor_check(const struct hr_tensor *t, const char *name, uint32_t n_tokens,
                             uint32_t n_heads, uint32_t dim);
static inline const unsigned char *hri_tensor_row(const struct hr_tensor *t, uint32_t token,
                                                  uint32_t head)
{
    int64_t s0 = t->strides[0], s1 = t->strides[1];
    if (s0 == 0 && s1 == 0) {
        s1 = t->shape[2];
        s0 = (int64_t)t->shape[1] * t->shape[2];
    }
    return (const unsigned char *)t->data +
           (int64_t)hr_dtype_bytes(t->dtype) * (s0 * token + s1 * head);
}

/* What nobody asked for by name gives way where the device tier is too small: first the rows that wait behind the window, then the
 * sketches' bits (one; but on a GPU, one in host memory; none), then both. The attempt-th such recipe, from 1 to HRI_SMALLER_RECIPES, as
 * text; false: there is none. */
#define HRI_SMALLER_RECIPES 7
bool hri_recipe_smaller(const char *recipe, uint32_t attempt, bool on_gpu, char *text,
                        size_t bytes);

#endif
