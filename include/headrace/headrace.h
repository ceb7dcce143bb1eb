/* Headrace: attention over a KV cache that is many times larger than the memory it may use.
 *
 * Objects
 *   hr_runtime_t   owns the tiers (device, host, file), their budgets and the worker threads.
 *   hr_sequence_t  one text: the K and V rows of all its layers, spread over the runtime's tiers.
 *
 * Life of a sequence
 *   hr_runtime_create -> hr_sequence_create
 *     prefill: for each chunk of tokens, for each layer: hr_sequence_append, hr_sequence_attend (many queries: exact)
 *     decode:  for each token, for each layer: hr_sequence_append, hr_sequence_attend (one query: the recipe)
 *   -> hr_sequence_destroy -> hr_runtime_destroy
 *
 * Rules that hold everywhere
 *   - Threads: a runtime and all its sequences belong to one thread at a time. Different runtimes are independent.
 *   - Errors: every call returns a status; outputs are last, named *_out, and written only on success. hr_last_error() has one
 *     line that says what was wrong and where (thread-local, valid until the thread's next failing call).
 *   - Memory: the library allocates at create and while a segment is indexed, never in a decode step. It never prints, exits or
 *     aborts. Options structs begin with struct_size and are filled by their _init function first.
 *   - Tensors are read or written before the call returns on the CPU backend; the caller keeps ownership.
 */
#ifndef HEADRACE_HEADRACE_H
#define HEADRACE_HEADRACE_H

#include <stddef.h>
#include <stdint.h>

#include <headrace/status.h>

#define HR_VERSION_MAJOR 0
#define HR_VERSION_MINOR 1
#define HR_VERSION_PATCH 0

#if defined(__GNUC__)
#define HR_API __attribute__((visibility("default")))
#else
#define HR_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Limits. What exceeds them is refused by hr_sequence_create. */
#define HR_LAYERS_MAX   1024
#define HR_HEADS_MAX    1024
#define HR_HEAD_DIM_MIN 8
#define HR_HEAD_DIM_MAX 256
#define HR_GROUP_MAX    16 /* query heads per kv-head */
#define HR_TOKENS_MAX   (1u << 30)
#define HR_TIERS        3 /* device, host, file */
#define HR_LEVELS       4 /* summary, sketch, int8 rows, exact rows */
#define HR_STAGES       6 /* append, store, index, select, fetch, attend */

typedef struct hr_runtime hr_runtime_t;
typedef struct hr_sequence hr_sequence_t;
typedef void *hr_stream_t; /* NULL on the CPU backend: work is done when the call returns */

HR_API const char *hr_version(void);

/* ---------------------------------------------------------------------------------------------------------------- tensors */

typedef enum hr_dtype { HR_DTYPE_F32 = 0, HR_DTYPE_F16 = 1, HR_DTYPE_BF16 = 2 } hr_dtype_t;
HR_API size_t hr_dtype_bytes(hr_dtype_t dtype);
HR_API const char *hr_dtype_name(hr_dtype_t dtype);

/* [n_tokens][n_heads][dim]. Strides count elements; all three 0 means contiguous in that order. The innermost stride must be 1. */
struct hr_tensor {
    void *data;
    hr_dtype_t dtype;
    uint32_t shape[3];
    int64_t strides[3];
};
/* A contiguous tensor over data. */
HR_API struct hr_tensor hr_tensor_make(void *data, hr_dtype_t dtype, uint32_t n_tokens,
                                       uint32_t n_heads, uint32_t dim);

/* ---------------------------------------------------------------------------------------------------------------- runtime */

typedef enum hr_log_level { HR_LOG_ERROR, HR_LOG_WARN, HR_LOG_INFO, HR_LOG_DEBUG } hr_log_level_t;
typedef void (*hr_log_fn)(void *context, hr_log_level_t level, const char *line);

typedef void (*hr_task_fn)(void *context, uint32_t task, uint32_t worker);
typedef void (*hr_run_tasks_fn)(void *run_context, hr_task_fn fn, void *fn_context,
                                uint32_t n_tasks);

/* How the file tier does its I/O. AUTO probes and takes the first that works, in this order. */
#define HR_IO_TIMEOUT_NS_MAX 3600000000000ull
typedef enum hr_io_mode { HR_IO_AUTO, HR_IO_URING, HR_IO_URING_PLAIN, HR_IO_THREADS } hr_io_mode_t;

struct hr_runtime_options {
    size_t struct_size;
    uint64_t
        device_bytes; /* budget of the device tier: windows, summaries, frames, a GPU's exact rows. Default 256 MiB */
    uint64_t host_bytes; /* budget of the host tier. Default 1 GiB */
    const char *
        file_dir; /* folder for the file tier, NULL: no file tier, host memory is then the only copy */
    uint64_t file_bytes; /* cap on the file's physical bytes; required with file_dir */
    int file_wipe; /* overwrite the file with zeros before it is closed; a failure is an HR_LOG_ERROR line */
    hr_io_mode_t io_mode;
    /* A wait for the file tier ends after so long with HR_ERR_TIMEOUT; an I/O that has no answer after twice as long is given up,
     * and the tier with it. 0: 30 s; at most an hour. */
    uint64_t io_timeout_ns;
    uint32_t n_threads; /* workers including the caller; 0: one per core */
    hr_log_fn log;      /* NULL: silent */
    void *log_context;
    const char *
        cpu_level; /* NULL: best; "ref", "avx2", "avx512", "amx". The variable HEADRACE_CPU overrides NULL */
    /* Allocation hooks for all memory but the tiers' mapped regions; NULL: malloc family. */
    void *(*alloc)(void *context, size_t bytes, size_t alignment);
    void (*free)(void *context, void *pointer);
    void *alloc_context;
    /* Where the device tier is and steps run: NULL or "cpu", "cuda" (the first GPU), "cuda:1", ... On a GPU device_bytes is its
     * memory, host_bytes is pinned where that is allowed, and the recipe "headrace" runs its steps there. What such steps leave of
     * device_bytes is for exact rows: a query that attends all rows of a layer ("full", sliding windows, dense layers, checks) attends
     * there what fits, and the host attends the rest at the same time. Steps of other recipes, and all of rows in f32 or of head dimensions
     * that are no multiples of 16, run on the host from host memory and file, which an HR_LOG_INFO line says; what they keep instead
     * of the device tier is working memory then. A GPU that fails ends all its steps with HR_ERR_DEVICE; exact attention,
     * hr_sequence_save and the rest go on from the host. */
    const char *device;
    /* Threads of the caller's instead of the runtime's own, for programs that have some busy between the calls: calls fn(fn_context, task,
     * worker) once for every task below n_tasks, worker below n_threads and no two at once with the same, and returns when all are
     * done. Only called from within calls to the library, by the thread that made them. Needs n_threads; NULL: the runtime starts threads. */
    hr_run_tasks_fn run_tasks;
    void *run_tasks_context;
};
HR_API void hr_runtime_options_init(struct hr_runtime_options *options);
/* HR_ERR_INVALID, HR_ERR_NOMEM (also: of the device, device_bytes are not free), HR_ERR_IO (folder, disk), HR_ERR_BUDGET (file_bytes
 * larger than the free disk), HR_ERR_VERSION, HR_ERR_UNSUPPORTED (no such device; the message says why: build, driver, architecture). */
HR_API hr_status_t hr_runtime_create(const struct hr_runtime_options *options,
                                     hr_runtime_t **runtime_out);
/* All its sequences must be destroyed first (HR_ERR_STATE otherwise, nothing is freed). NULL is legal. */
HR_API hr_status_t hr_runtime_destroy(hr_runtime_t *runtime);

/* --------------------------------------------------------------------------------------------------------------- sequence */

typedef enum hr_rope_layout {
    HR_ROPE_NONE = 0,       /* keys are not rotated, or how they are is not known */
    HR_ROPE_HALF = 1,       /* dimension i pairs with i + n_rot/2 (NeoX, Llama in HF order) */
    HR_ROPE_INTERLEAVED = 2 /* dimension 2i pairs with 2i + 1 (Llama in GGUF order) */
} hr_rope_layout_t;

struct hr_rope {
    hr_rope_layout_t layout;
    uint32_t n_rot;           /* rotated dimensions, the first n_rot of the head; even */
    const float *frequencies; /* [n_rot/2] radians per position (after any scaling); copied */
};

struct hr_sequence_options {
    size_t struct_size;
    uint32_t n_layers, n_q_heads, n_kv_heads;
    uint32_t k_dim,
        v_dim;        /* may differ; each a multiple of 8 in [HR_HEAD_DIM_MIN, HR_HEAD_DIM_MAX] */
    hr_dtype_t dtype; /* how rows are kept exactly. Default BF16 */
    float scale;      /* of the logits; 0: 1/sqrt(k_dim) */
    float soft_cap;   /* logits become cap * tanh(logit / cap); 0: none */
    const uint32_t *
        sliding_window; /* [n_layers] tokens seen per layer including the current one, 0 = all; NULL: all 0; copied */
    const struct hr_rope *rope; /* [n_layers] or NULL (none); copied */
    const float *
        log_n; /* [n_layers][n_q_heads] w: logits times 1 + w ln(n), n = tokens visible; NULL: none; copied */
    uint32_t tokens_max; /* the sequence never grows beyond; sizes tables and the file */
    const char *recipe;  /* "headrace", "full", "quest:page=32", ...; NULL: "headrace" */
    double
        moved; /* budget of a step: bytes selected per layer as a share of the body's exact bytes, (0, 1]. Default 0.01 */
    double
        tolerance; /* 0: spend the budget; else stop when the predicted relative output error is below it */
    uint64_t seed;
    const float
        *head_gates; /* [n_layers][n_kv_heads] 0..1 for recipes that split heads: 1 retrieves
                                (everything), 0 streams (sink and window); NULL: none; copied */
    int keep_tokens; /* remember which tokens each block holds, for refined_out of an attend: 4 bytes
                        a row of working memory */
    uint64_t
        moved_bytes; /* not 0: the budget of each kv-head and step in bytes, however long the text; moved is passed over */
};
HR_API void hr_sequence_options_init(struct hr_sequence_options *options);
/* HR_ERR_INVALID (the message names the field), HR_ERR_BUDGET (the message names the tier and the least it needs).
 * Where the device tier is too small for a recipe that does not name "decode_segment" or the bits of its sketches, there are fewer of
 * both: hr_sequence_recipe then says "headrace:decode_segment=256", "headrace:sketch=1", "headrace:sketch=1,decode_segment=256" or the
 * same with "sketch=1,sketch_host=1" (sketches in host memory; not on a GPU) or "sketch=0". */
HR_API hr_status_t hr_sequence_create(hr_runtime_t *runtime,
                                      const struct hr_sequence_options *options,
                                      hr_sequence_t **sequence_out);
/* The recipe as it is run. The sequence's own. */
HR_API const char *hr_sequence_recipe(const hr_sequence_t *sequence);
HR_API void hr_sequence_destroy(hr_sequence_t *sequence);
/* Tokens held by a layer; 0 if the layer does not exist. */
HR_API uint32_t hr_sequence_length(const hr_sequence_t *sequence, uint32_t layer);

/* Adds n_tokens rows to a layer. k: [n_tokens][n_kv_heads][k_dim], v: [n_tokens][n_kv_heads][v_dim].
 * HR_ERR_SHAPE, HR_ERR_DTYPE, HR_ERR_NONFINITE (the message has token, head, dimension), HR_ERR_FULL (tokens_max),
 * HR_ERR_BUDGET, HR_ERR_IO. After an error the layer is as it was. */
HR_API hr_status_t hr_sequence_append(hr_sequence_t *sequence, uint32_t layer,
                                      const struct hr_tensor *k, const struct hr_tensor *v,
                                      hr_stream_t stream);

typedef enum hr_attend_mode {
    HR_ATTEND_AUTO = 0, /* one query: the recipe; more: exact */
    HR_ATTEND_EXACT = 1,
    HR_ATTEND_RECIPE = 2 /* each query by the recipe, rows after it unseen */
} hr_attend_mode_t;

struct hr_attend_options {
    size_t struct_size;
    hr_attend_mode_t mode;
    int check_exact; /* also attend exactly and put the true error in the report (reads everything) */
    /* Of each step by a recipe with blocks: blocks that have not come from the file so long after its beginning stay at their
     * sketch or summary; the report counts them, late_error says what it costs. 0: none, the step waits for io_timeout_ns. */
    uint64_t deadline_ns;
    /* Nothing stays below the level it was chosen for: the step waits beyond the deadline, for io_timeout_ns at most, which is
     * HR_ERR_TIMEOUT, and blocks that cannot be read are HR_ERR_IO or HR_ERR_CORRUPT instead of blocks_lost. */
    int strict_exact;
    /* Of the last query of the call; the caller's, NULL: not asked for. */
    float *predicted_out; /* [n_q_heads] relative error of the output, 0 where it is exact */
    /* [n_kv_heads][length] 1: attended from the row's own K and V (sink and window, refined), 0: less than
     * that. Recipes of blocks need keep_tokens. */
    uint8_t *refined_out;
};
HR_API void hr_attend_options_init(struct hr_attend_options *options);

struct hr_attend_report {
    uint64_t
        rows_by_level[HR_LEVELS]; /* rows of the body known at each level, summed over kv-heads */
    uint64_t bytes_by_level[HR_LEVELS]; /* bytes read by the attention at each level */
    uint64_t rows_device; /* exact rows on the device: sink and window; in a GPU's memory */
    uint64_t blocks_total, blocks_hit, blocks_fetched, blocks_estimated;
    uint64_t blocks_late; /* chosen, but not here in time: they stayed at their sketch or summary */
    uint64_t blocks_lost; /* of them, what cannot be read */
    uint64_t bytes_from_host,
        bytes_from_file;     /* moved to the device tier by this call; whole reads are counted */
    uint64_t bytes_selected; /* of what was refined, hit or moved */
    uint64_t bytes_hit;      /* of it, what lay in frames already */
    uint64_t body_bytes;     /* the body's exact K+V bytes: the denominator of "moved" */
    uint64_t ios;            /* reads of the file */
    uint64_t
        rows_rests; /* rows at level 1 of whose values the rest was taken (recipe headrace, "rests") */
    uint64_t bytes_rests;  /* what that moved: of bytes_from_host and bytes_selected */
    uint64_t rows_visited; /* keys or codes compared by recipes that walk an index in host memory */
    uint64_t
        heads_capped; /* with a tolerance: kv-heads where the budget was spent before the predicted error was below it */
    double predicted_error; /* relative error of the output, mean over query heads; 0 when exact */
    double predicted_error_max;
    double
        late_error; /* of the predicted error (squares add up), what late blocks cost; mean over query heads */
    double true_error; /* with check_exact, mean over query heads; else -1 */
    double true_error_max;
    uint64_t time_ns[HR_STAGES];
};
HR_API const char *hr_stage_name(unsigned stage);
HR_API const char *hr_level_name(unsigned level);
HR_API const char *hr_tier_name(unsigned tier);

/* Attention of the newest n_tokens tokens of a layer over all its rows up to each of them (causal).
 * q, out: [n_tokens][n_q_heads][k_dim / v_dim]; query head h reads kv-head h / (n_q_heads / n_kv_heads).
 * options and report_out may be NULL. HR_ERR_SHAPE, HR_ERR_DTYPE, HR_ERR_NONFINITE, HR_ERR_STATE (more queries than
 * rows), HR_ERR_IO, HR_ERR_CORRUPT (the message names the tokens lost), HR_ERR_TIMEOUT (io_timeout_ns). */
HR_API hr_status_t hr_sequence_attend(hr_sequence_t *sequence, uint32_t layer,
                                      const struct hr_tensor *q,
                                      const struct hr_attend_options *options,
                                      struct hr_tensor *out, struct hr_attend_report *report_out,
                                      hr_stream_t stream);

/* One item of a batch; sequences may have any lengths and shapes. q, out as above. */
struct hr_batch_item {
    hr_sequence_t *sequence;
    struct hr_tensor q, out;
    struct hr_attend_report report;
    hr_status_t status;
};
/* Attends all items of one layer. Every item gets its own status; returns the first that is not HR_OK, after all were tried. */
HR_API hr_status_t hr_batch_attend(struct hr_batch_item *items, size_t n_items, uint32_t layer,
                                   const struct hr_attend_options *options, hr_stream_t stream);

/* Shows a recipe the queries of the newest n_tokens tokens without attending: q [n_tokens][n_q_heads][k_dim], as for
 * hr_sequence_attend, which shows its own. For prompts: where several sequences get the same tokens and one of them is attended, or
 * where a layer's output is not needed. Recipes that learn from queries choose worse without. HR_ERR_SHAPE, HR_ERR_DTYPE,
 * HR_ERR_NONFINITE, HR_ERR_STATE (more queries than rows), HR_ERR_NOMEM. */
HR_API hr_status_t hr_sequence_observe(hr_sequence_t *sequence, uint32_t layer,
                                       const struct hr_tensor *q);

/* No query will be answered by the recipe before `position`: where a prompt ends whose length is known before all of it is there. Call it
 * before the prompt's rows are appended. A hint, for recipes that arrange rows for the queries to come: rows of a prompt are asked for from behind
 * its end only, which may be far from where they are, and rotary embedding turns queries on the way. On long prompts recipe headrace errs
 * several times less with it (docs/algorithm.md). Holds for the rows that are grouped from now on, until a query is answered before `position`, and for
 * forks; 0: not known. Not kept in a saved session. HR_ERR_INVALID (beyond tokens_max). */
HR_API hr_status_t hr_sequence_expect(hr_sequence_t *sequence, uint32_t position);

/* Another tolerance from the next step on, in (0, 1), for a sequence that was created with one; forks keep it.
 * HR_ERR_INVALID (no such number), HR_ERR_STATE (created without a tolerance: its steps spend their budget). */
HR_API hr_status_t hr_sequence_set_tolerance(hr_sequence_t *sequence, double tolerance);

/* A guess of the query with which a layer will be asked for its next token (or its newest, if that was appended already),
 * for recipes that choose early: q [1][n_q_heads][k_dim], as for hr_sequence_attend. A hint: recipes without a use for
 * it ignore it. HR_ERR_SHAPE, HR_ERR_DTYPE, HR_ERR_NONFINITE. */
HR_API hr_status_t hr_sequence_prefetch(hr_sequence_t *sequence, uint32_t layer,
                                        const struct hr_tensor *q, hr_stream_t stream);
/* 1 if this layer has a use for it. */
HR_API int hr_sequence_wants_prefetch(const hr_sequence_t *sequence, uint32_t layer);

/* -- a token through all layers at once, on a GPU --
 * For models that run on the same GPU: all launches of a token, those of the model between the layers included, are recorded once as one CUDA
 * graph and replayed for every token, unchanged while the sequence grows. Needs a sequence on a GPU whose layers all have steps by the recipe
 * there, or attend everything and have room for all rows there, and host memory that could be pinned. Without a file tier nothing waits for the host within a token; with one the device
 * asks for what it misses while the graph runs, and the thread that is in hr_step_graph_run brings it. Blocks that cannot be read or
 * take longer than io_timeout_ns stay at their summary (blocks_late, blocks_lost). */
typedef struct hr_step_graph hr_step_graph_t;
/* What the graph reads and writes of a layer: device memory, float32, contiguous; it stays as long as the graph. */
struct hr_step_buffers {
    float *q;   /* [n_q_heads][k_dim] as for hr_sequence_attend */
    float *k;   /* [n_kv_heads][k_dim] the new token's row */
    float *v;   /* [n_kv_heads][v_dim] */
    float *out; /* [n_q_heads][v_dim] */
};
struct hr_step_graph_options {
    size_t struct_size;
    /* Called while recording, for layer 0, 1, ... and at last n_layers: puts what makes this layer's q, k and v (from the layer before's
     * out) onto `stream`, a cudaStream_t; at n_layers what follows the last one. Only launches and copies on the device. buffers
     * [n_layers]. A status other than HR_OK ends the recording. NULL: the caller fills q, k and v of all layers before each run. */
    hr_status_t (*between)(void *context, uint32_t layer, const struct hr_step_buffers *buffers,
                           hr_stream_t stream);
    void *context;
};
HR_API void hr_step_graph_options_init(struct hr_step_graph_options *options);
/* HR_ERR_UNSUPPORTED (the message says what is missing), HR_ERR_BUDGET, HR_ERR_NOMEM, HR_ERR_DEVICE, what `between` returned. */
HR_API hr_status_t hr_step_graph_create(hr_sequence_t *sequence,
                                        const struct hr_step_graph_options *options,
                                        hr_step_graph_t **graph_out);
/* Before its sequence. NULL is legal. */
HR_API void hr_step_graph_destroy(hr_step_graph_t *graph);
/* HR_ERR_INVALID: no such layer. */
HR_API hr_status_t hr_step_graph_buffers(const hr_step_graph_t *graph, uint32_t layer,
                                         struct hr_step_buffers *buffers_out);
/* One token: its row is appended to every layer and its query attended; returns when that is done. All layers must have the same length
 * (HR_ERR_STATE). The report sums over layers, errors are means. HR_ERR_FULL, HR_ERR_NONFINITE (the token is not appended),
 * HR_ERR_BUDGET, HR_ERR_DEVICE; HR_ERR_UNSUPPORTED: exact rows made room for another sequence, nothing was done, and never will be. */
HR_API hr_status_t hr_step_graph_run(hr_step_graph_t *graph, struct hr_attend_report *report_out);

/* -- exact attention of queries that are on the GPU --
 * For models that run on the runtime's GPU: as hr_sequence_attend with HR_ATTEND_EXACT, but that queries and output lie in its memory. Rows of
 * the layer come from where the tiers have them, a part of `work` at a time. The call returns when the host has done its part: q, out and work
 * are in use until what is in the stream is done, and errors of the GPU may come out of a later call. */
struct hr_device_attend {
    size_t struct_size;
    const float *q; /* device memory: [n_tokens][n_q_heads][k_dim], of the newest tokens; finite */
    void *out;      /* device memory: [n_tokens][n_q_heads][v_dim] of out_dtype */
    hr_dtype_t out_dtype;
    uint32_t n_tokens;
    void *work; /* device memory, 256-byte aligned: what the call keeps there */
    size_t work_bytes;
    hr_stream_t stream; /* a cudaStream_t: everything is done in its order */
    /* The same queries in host memory, for recipes that learn from them, which is done while the GPU attends; NULL: the caller shows them
     * to hr_sequence_observe, or nobody. */
    const float *q_host;
};
HR_API void hr_device_attend_init(struct hr_device_attend *attend);
/* Bytes of work that n_tokens queries make good use of; with less they go in several passes over the rows. 0: no GPU, or nothing of this
 * sequence is attended there (rows in f32, head dimensions that are no multiples of 16). */
HR_API size_t hr_sequence_device_work(const hr_sequence_t *sequence, uint32_t n_tokens);
/* HR_ERR_UNSUPPORTED (where hr_sequence_device_work is 0), HR_ERR_BUDGET (work_bytes: the message has the least), HR_ERR_DEVICE, and as for
 * hr_sequence_attend. */
HR_API hr_status_t hr_sequence_attend_device(hr_sequence_t *sequence, uint32_t layer,
                                             const struct hr_device_attend *attend,
                                             struct hr_attend_report *report_out);

/* Groups and indexes all rows that wait for it (the end of a prompt); the first recipe step does it otherwise. */
HR_API hr_status_t hr_sequence_settle(hr_sequence_t *sequence, uint32_t layer);

/* Drops the newest tokens of every layer that has more than n_tokens; n_tokens may lie inside a block. What follows is as if the
 * dropped rows had never come: exact where all rows are attended; of a recipe's derived levels, segments of rows that reach into the
 * window are undone and grouped anew, sums over all rows keep what they learned. Costs the same at any length that is kept.
 * HR_ERR_INVALID (a layer has fewer tokens), HR_ERR_NOMEM, HR_ERR_IO, HR_ERR_CORRUPT, HR_ERR_TIMEOUT, HR_ERR_CANCELED. After an error the sequence is as it was. */
HR_API hr_status_t hr_sequence_truncate(hr_sequence_t *sequence, uint32_t n_tokens);

/* A second sequence with the same tokens, on the same runtime; from there on each goes its own way. Rows in the log and blocks are
 * shared, not copied; so are windows until one of the two appends or truncates, and summaries and sketches until one of the two groups
 * rows of its own. Costs the same at any length. The fork takes device memory for its own windows and frames. Either may be destroyed first. A fork of a fork of a fork ... is at most HR_FORK_DEPTH_MAX deep.
 * HR_ERR_FULL (too deep), HR_ERR_BUDGET, HR_ERR_NOMEM, HR_ERR_IO. */
#define HR_FORK_DEPTH_MAX 16
HR_API hr_status_t hr_sequence_fork(hr_sequence_t *sequence, hr_sequence_t **fork_out);

/* Makes the long call that is under way on this sequence (attend of many queries, settle, save, truncate) end soon with HR_ERR_CANCELED;
 * the sequence is then as that call's errors leave it, and goes on. Without such a call: nothing. The one function that any thread
 * may call while another works on the sequence. A call that waits for a disk without an answer ends when that does, or with the
 * time-outs of the disk: after three times io_timeout_ns at the latest. */
HR_API void hr_sequence_cancel(hr_sequence_t *sequence);

/* --------------------------------------------------------------------------------------------------------- saved sessions */

/* A session is a folder with one file, `session` (docs/format.md), and a lock. A save writes a new file beside the old one and
 * renames it over: whatever happens, the folder holds the old session or the new one, whole. How far that holds:
 *
 *   none     while the machine runs: also if the process is killed at any moment. After a power cut the session may be the old one, the
 *            new one, or damaged, which open and verify then say.
 *   relaxed  also after a power cut: data is on the disk before the rename. Which of the two is there may still be open for a while
 *            after the save returned.
 *   strict   when the save has returned HR_OK, the new session is there, also after a power cut: the rename is on the disk too.
 */
typedef enum hr_durability {
    HR_DURABILITY_NONE = 0,
    HR_DURABILITY_RELAXED = 1,
    HR_DURABILITY_STRICT = 2
} hr_durability_t;

struct hr_save_options {
    size_t struct_size;
    hr_durability_t durability; /* default RELAXED */
    uint64_t model_id
        [4]; /* what the caller knows of the model: a hash of weights and tokenizer. Compared at open. */
    const void
        *user; /* kept beside the rows, for instance token ids; at most HR_SESSION_USER_BYTES_MAX */
    size_t user_bytes;
};
#define HR_SESSION_USER_BYTES_MAX (1u << 30)
HR_API void hr_save_options_init(struct hr_save_options *options);
/* Saves all tokens, with everything derived from them, to the folder `dir`, which is made (0700) if it is missing; its parent must
 * exist. The sequence goes on afterwards. options may be NULL.
 * HR_ERR_STATE: layers of different lengths (a token under way). HR_ERR_BUSY: the folder is in use (the message names the process).
 * HR_ERR_INVALID (no folder, a link, not ours), HR_ERR_IO, HR_ERR_TIMEOUT (the disk gave no answer for twice io_timeout_ns), HR_ERR_CORRUPT
 * (rows lost), HR_ERR_CANCELED: the old session is as it was, or, where the message names the rename or a call after it, the new one. A call
 * without an answer is left behind, and may still be carried out when the disk answers: until then the folder stays locked. Takes 16 MiB of
 * memory while it runs. */
HR_API hr_status_t hr_sequence_save(hr_sequence_t *sequence, const char *dir,
                                    const struct hr_save_options *options);
/* Makes sure of a folder before the work that is to be saved there: it is made if it is missing, tried, and locked until the sequence is
 * destroyed or another folder is claimed; saves to it go on as ever. One that was made and never saved to is removed at the end. The
 * folder the sequence was opened from is its own already. Errors as of a save. */
HR_API hr_status_t hr_sequence_claim(hr_sequence_t *sequence, const char *dir);

/* Opens a saved session. Its rows are those that were saved, always: exact attention gives the same. Steps by the recipe give the same bit for
 * bit as the saved sequence's would have where what they choose by is the same: build and cpu level, recipe, moved, tolerance, seed and
 * head_gates, tokens_max and device_bytes (they size the frames), and where rows lie: no file tier on both sides, or host memory that holds
 * all, since a block that must be read from the file costs more of the budget. Where one of these differs, steps are as good, but not the same.
 * With another recipe its derived levels are made anew by the next settle.
 * options: as for hr_sequence_create; geometry, dtype, scale, rope and the like must be those of the saved one, tokens_max at least its
 * length. model_id: of the save, or NULL: not compared. The folder stays locked until the sequence is destroyed.
 * HR_ERR_NOTFOUND (no session there), HR_ERR_VERSION (another format), HR_ERR_INVALID (of another model: the message says what
 * differs), HR_ERR_BUSY (in use: the message names the process), HR_ERR_FULL (tokens_max), HR_ERR_BUDGET, HR_ERR_CORRUPT (the
 * message names what is lost), HR_ERR_IO (the same), HR_ERR_TIMEOUT (the disk gave no answer for twice io_timeout_ns). The files are never changed.
 * Takes 4 MiB of memory while it runs. */
HR_API hr_status_t hr_sequence_open(hr_runtime_t *runtime, const char *dir,
                                    const struct hr_sequence_options *options,
                                    const uint64_t *model_id, hr_sequence_t **sequence_out);

/* What a saved session is, from its first pages. */
struct hr_session_info {
    size_t struct_size;
    uint32_t version;
    uint32_t n_layers, n_q_heads, n_kv_heads, k_dim, v_dim;
    hr_dtype_t dtype;
    uint32_t n_tokens;
    uint64_t generation; /* counts the saves to this folder */
    uint64_t file_bytes, user_bytes;
    uint64_t saved_unix_s;
    uint64_t model_id[4];
    char recipe[512];
};
HR_API hr_status_t hr_session_info_get(const char *dir, struct hr_session_info *info_out);
/* The caller's own bytes; n_bytes must be info.user_bytes. */
HR_API hr_status_t hr_session_user_read(const char *dir, void *data, size_t n_bytes);

/* Reads every byte. HR_ERR_CORRUPT: report_out (written then too) says what is damaged, the message says it in words. HR_ERR_TIMEOUT: the disk gave no
 * answer for a minute. */
struct hr_session_check {
    size_t struct_size;
    uint64_t bytes_read, blocks, blocks_bad;
    uint64_t tokens_lost; /* tokens of which a row of some layer is lost */
    uint32_t first_lost, last_lost;
    int superblocks_bad; /* of the two */
    int derived_bad;     /* something is damaged that is derived from rows: open makes it anew */
    int user_bad;        /* hr_save_options.user is damaged: hr_session_user_read fails */
};
HR_API hr_status_t hr_session_verify(const char *dir, struct hr_session_check *check_out);
/* Removes the session's own files, and the folder if nothing else is in it; also what a first save that failed has left in a folder of
 * its own. HR_ERR_BUSY: in use. HR_ERR_NOTFOUND: no session. */
HR_API hr_status_t hr_session_remove(const char *dir);

/* ------------------------------------------------------------------------------------------------------------------ stats */

typedef enum hr_tier { HR_TIER_DEVICE = 0, HR_TIER_HOST = 1, HR_TIER_FILE = 2 } hr_tier_t;

struct hr_tier_stats {
    uint64_t bytes_held, bytes_peak, bytes_cap;
};
struct hr_runtime_stats {
    size_t struct_size;
    struct hr_tier_stats tier[HR_TIERS];
    uint64_t scratch_bytes,
        scratch_bytes_peak; /* working memory outside the tiers (counted, not capped) */
    uint64_t allocations;   /* calls of the allocator so far: a decode step adds none */
    uint64_t file_reads, file_writes, file_bytes_read, file_bytes_written;
    const char *io_mode; /* "uring", "uring-plain", "threads", "none" */
    const char *cpu_level;
};
struct hr_sequence_stats {
    size_t struct_size;
    uint64_t summary_bytes, sketch_bytes, window_bytes,
        frame_bytes;            /* on the device, this sequence */
    uint64_t exact_bytes;       /* K+V bytes of all rows in the sequence's dtype */
    uint64_t body_bytes;        /* of the rows in blocks */
    uint64_t body_rows, blocks; /* summed over layers and kv-heads */
    uint64_t host_bytes, file_bytes;
    uint64_t index_ns; /* time spent grouping, so far */
    uint64_t
        host_index_bytes; /* of an index in host memory, beside the tier's: graphs, hash tables, rests, sketches with sketch_host=1 */
    uint64_t
        device_row_bytes; /* room for exact rows in a GPU's memory, of layers that attend all of them */
    uint32_t layers_on_gpu; /* layers whose steps by the recipe run on a GPU */
};
HR_API hr_status_t hr_runtime_stats_get(const hr_runtime_t *runtime,
                                        struct hr_runtime_stats *stats_out);
HR_API hr_status_t hr_sequence_stats_get(const hr_sequence_t *sequence,
                                         struct hr_sequence_stats *stats_out);

/* What this build and machine can do, as one JSON text (features found by probing; file_dir may be NULL).
 * The caller frees it with hr_text_free. */
HR_API hr_status_t hr_info_json(const char *file_dir, char **json_out);
HR_API void hr_text_free(char *text);

/* Recipes known to this build: names, NULL after the last. */
HR_API const char *hr_recipe_name(size_t index);

/* What a recipe is. Texts are static. */
struct hr_recipe_info {
    const char *name, *summary, *source; /* one line; where the rule was published */
    uint32_t n_params;
    int needs_gates;    /* hr_sequence_options.head_gates must be given */
    int takes_argument; /* "name:ARGUMENT" */
    int drafts; /* what it gives is a proposal, to be verified exactly; "tokens" says how many at a time */
};
struct hr_recipe_param {
    const char *name, *meaning, *source; /* source: who proposed it, or where docs say why */
    double value_default, min, max;
    int whole; /* takes whole numbers only */
};
/* HR_ERR_NOTFOUND past the last. */
HR_API hr_status_t hr_recipe_describe(size_t index, struct hr_recipe_info *info_out);
HR_API hr_status_t hr_recipe_param(size_t index, uint32_t param, struct hr_recipe_param *param_out);
/* A parameter of a recipe text: what it says, or the default. HR_ERR_NOTFOUND: the recipe has none of that name. */
HR_API hr_status_t hr_recipe_value(const char *recipe, const char *param, double *value_out);
/* Whether a recipe text such as "quest:page=32" is right: what hr_sequence_create says about it. */
HR_API hr_status_t hr_recipe_check(const char *recipe);

/* Reads a recipe file: lines "key = value", "# comment" and blank ones; "recipe = NAME" is required, the other keys
 * are the recipe's parameters, "argument = TEXT" is for recipes that take one. The result is a recipe text. Errors
 * name `path` (of the message only) and the line. text need not end with 0. */
HR_API hr_status_t hr_recipe_parse_file(const char *path, const char *text, size_t n_bytes,
                                        char *recipe_out, size_t recipe_bytes);

#ifdef __cplusplus
}
#endif
#endif
