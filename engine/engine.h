/*
 * A small decoder engine: opens GGUF models of the Llama family and runs them with their K and V
 * kept by Headrace.
 *
 * It uses nothing but the public headers, as any program could, unless it runs on a GPU (engine/device.h). Objects:
 *   hre_model_t    the weights (read from the file), the geometry, the threads for linear layers
 *   hre_session_t  one run of a model over one or more sequences of the library, all fed one text
 *
 * Life of a run
 *   hre_model_open
 *   hre_model_sequence_options -> hr_sequence_create: the caller's, with its recipe and budgets
 *   hre_session_create -> hre_session_prefill -> hre_session_decode ... -> hre_session_destroy
 *   hr_sequence_destroy
 *   hre_model_close
 *
 * Threads: a model and its sessions belong to one thread at a time.
 * Errors: statuses are the library's; outputs are written only on success; hre_last_error() of
 * engine/fail.h has the line of text, also for failures of the library below. The engine never
 * prints. It tells OpenBLAS, whose settings are the process's, to use one thread per call.
 */
#ifndef HRE_ENGINE_H
#define HRE_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#include <headrace/headrace.h>

#include "engine/fail.h"
#include "engine/gguf.h"

typedef struct hre_model hre_model_t;
typedef struct hre_session hre_session_t;

/* -------------------------------------------------------------------------------------- model */

struct hre_model_options {
    size_t struct_size;
    uint32_t n_threads; /* for linear layers, including the caller; 0: one per core the process may
                           use */
    const char *cpu_level; /* NULL: best; "ref", "avx2", "avx512", "amx". The variable HEADRACE_CPU
                              overrides NULL */
    /* Where the model runs: NULL or "cpu"; "cuda", "cuda:1": that GPU, with the weights as bfloat16 in its memory. Sequences it is run over
     * may be on the same GPU or on the CPU. HR_ERR_UNSUPPORTED (no such device; the message says why), HR_ERR_NOMEM (the message has
     * what is needed and what is free). */
    const char *device;
    uint32_t
        device_rows; /* tokens of a prompt that it takes at a time, which sizes its scratch; 0: 1,024 to 4,096 by what is free */
    const char *blas; /* library of products there; NULL: cuBLAS where it is found, "": none */
    hr_log_fn log;    /* of the device; NULL: silent */
    void *log_context;
};
void hre_model_options_init(struct hre_model_options *options);

/*
 * path: a GGUF file, or "tiny" for the embedded retrieval model. options may be NULL. Statuses of
 * hre_gguf_open, and HR_ERR_UNSUPPORTED (architecture, tensor type, RoPE scaling: the message lists
 * what is supported), HR_ERR_CORRUPT (missing tensor or key, shapes that do not fit together),
 * HR_ERR_INVALID (options), HR_ERR_NOMEM.
 */
hr_status_t hre_model_open(const char *path, const struct hre_model_options *options,
                           hre_model_t **model_out);
void hre_model_close(hre_model_t *model); /* NULL is legal; its sessions must be destroyed first */

struct hre_model_info {
    const char *architecture; /* "llama", "qwen2", "headrace-tiny" */
    const char *name;         /* general.name, or "" */
    uint32_t n_layers, n_q_heads, n_kv_heads;
    uint32_t k_dim, v_dim; /* of one head */
    uint32_t width, ffn_width, vocab;
    uint32_t context_length; /* tokens it was trained for */
    uint32_t n_rot;
    hr_rope_layout_t rope_layout;
    const char *rope_scaling;        /* "none", "linear", "yarn", "llama3" */
    const float *rope_bases;         /* [n_layers] */
    const uint32_t *sliding_windows; /* [n_layers], 0: all */
    uint64_t file_bytes;             /* size of the file */
    uint64_t weight_bytes;           /* of all tensors, as in the file */
    uint64_t owned_bytes;            /* allocated beside the weights */
    uint64_t n_parameters;
    uint32_t n_threads;
    const char *cpu_level; /* kernels in use */
    const char *device;    /* the GPU's name, or NULL: the CPU. Then, in its memory: */
    uint64_t device_weight_bytes, device_scratch_bytes;
    uint32_t device_rows; /* tokens of a prompt at a time */
    const char *
        device_blas; /* file name of the library that does a prompt's products; NULL: our own kernels do */
};
/* Valid until close. */
const struct hre_model_info *hre_model_info(const hre_model_t *model);
/* The file behind it: tokenizer, chat template. */
const hre_gguf_t *hre_model_gguf(const hre_model_t *model);

/*
 * Fills geometry, RoPE, sliding windows, log-n factors and the logits' scale into options that
 * hr_sequence_options_init has initialised; leaves recipe, budgets, dtype, tokens_max and seed
 * alone. Pointers stay the model's.
 */
void hre_model_sequence_options(const hre_model_t *model, struct hr_sequence_options *options);

/* Lets a runtime use the model's threads, which are busy with its products between the calls to the library. The runtime must then only
 * be called by the thread that runs the model, and not after hre_model_close. */
void hre_model_runtime_options(hre_model_t *model, struct hr_runtime_options *options);

/* ------------------------------------------------------------------------------------ session */

struct hre_session_options {
    size_t struct_size;
    hr_sequence_t *const *
        sequences; /* [n_sequences], empty unless resume, made with hre_model_sequence_options; the caller's */
    uint32_t n_sequences; /* at least 1 */
    uint32_t
        tokens_max; /* no sequence grows beyond; at most what the sequences were created with */
    uint32_t chunk_tokens; /* prefill works on this many tokens at a time. Default 512 */
    int resume; /* the sequences hold tokens already, as many in every layer: opened or forked ones */
    uint32_t last_id; /* with resume: the newest of them */
};
void hre_session_options_init(struct hre_session_options *options);
hr_status_t hre_session_create(hre_model_t *model, const struct hre_session_options *options,
                               hre_session_t **session_out);
void hre_session_destroy(hre_session_t *session); /* NULL is legal; sequences are left alone */

/* Tokens that a sequence of the session holds. */
uint32_t hre_session_length(const hre_session_t *session, uint32_t sequence);

struct hre_prefill_options {
    size_t struct_size;
    /* After every chunk; non-zero stops the prefill with HR_ERR_CANCELED. NULL: none. */
    int (*progress)(void *context, uint32_t tokens_done, uint32_t tokens_total);
    void *progress_context;
    /* Every position's logits, in order, in groups of n: [n][vocab] floats, gone after the call.
     * NULL: none. */
    void (*all_logits)(void *context, uint32_t first_position, uint32_t n, const float *logits);
    void *all_logits_context;
    /* What attention gets, layer by layer and chunk by chunk: q [n][n_q_heads][k_dim] and k
     * [n][n_kv_heads][k_dim] rotated, v [n][n_kv_heads][v_dim], gone after the call. NULL: none. */
    void (*rows)(void *context, uint32_t layer, uint32_t first_position, uint32_t n, const float *q,
                 const float *k, const float *v);
    void *rows_context;
    int settle; /* after the last token, index all sequences (else the first recipe step does) */
};
void hre_prefill_options_init(struct hre_prefill_options *options);
/*
 * Runs n tokens through the model, appends their K and V to every sequence of the session and
 * attends exactly over the first of them. All sequences must be equally long. options and
 * logits_last_out ([vocab], of the last token) may be NULL. HR_ERR_INVALID (id outside of the
 * vocabulary, n = 0), HR_ERR_FULL (beyond tokens_max), HR_ERR_CANCELED, or what the library said.
 * After an error the session cannot be used further, only destroyed.
 */
hr_status_t hre_session_prefill(hre_session_t *session, const uint32_t *ids, uint32_t n,
                                const struct hre_prefill_options *options, float *logits_last_out);

/* sum += r: counts, bytes, times and mean errors added up, _max: the larger. */
void hre_report_add(struct hr_attend_report *sum, const struct hr_attend_report *r);

/* What one decode step did, over all layers. */
struct hre_step_report {
    struct hr_attend_report
        sum; /* counts, bytes and times added up; predicted_error, late_error and true_error:
                means over the layers (true_error -1 without check_exact); _max: largest */
    uint32_t n_layers;  /* layers that were attended */
    uint64_t total_ns;  /* the step from its start to the logits */
    uint64_t linear_ns; /* norms, projections, feed-forward, output */
    uint64_t append_ns; /* in hr_sequence_append */
    uint64_t attend_ns; /* in hr_sequence_attend */
};

struct hre_decode_options {
    size_t struct_size;
    hr_attend_mode_t mode; /* AUTO: the sequence's recipe; EXACT: dense attention */
    int check_exact;       /* also attend exactly in every layer and report the true error */
    /* Time for the token, 0: none. Layer i of n may wait for blocks until (i + 1) / n of it has passed; what is late stays at its
     * sketch or summary (hr_attend_options.deadline_ns). strict_exact as there. */
    uint64_t deadline_ns;
    int strict_exact;
    /*
     * After every layer's attention: refined is [n_kv_heads][n_tokens] as hr_attend_options.refined_out
     * has it, for the layer's n_tokens rows. NULL: not asked for; else refined_memory has n_kv_heads
     * times the sequence's length with this token. Recipes of blocks need keep_tokens.
     */
    void (*on_refined)(void *context, uint32_t layer, uint32_t n_tokens, const uint8_t *refined);
    void *on_refined_context;
    uint8_t *refined_memory;
};
void hre_decode_options_init(struct hre_decode_options *options);
/*
 * One token through the model with one sequence of the session. options, logits_out ([vocab]) and
 * report_out may be NULL. Statuses as for prefill.
 */
hr_status_t hre_session_decode(hre_session_t *session, uint32_t sequence, uint32_t id,
                               const struct hre_decode_options *options, float *logits_out,
                               struct hre_step_report *report_out);

/* Takes the newest tokens of a sequence back; last_id is its newest token then (0 if none is left). */
hr_status_t hre_session_truncate(hre_session_t *session, uint32_t sequence, uint32_t n_tokens,
                                 uint32_t last_id);

#define HRE_DRAFT_TOKENS_MAX 64
struct hre_speculation {
    size_t struct_size;
    uint32_t
        draft_tokens; /* proposed before they are verified together; less than chunk_tokens. 0: plain exact decoding */
    float *logits; /* [draft_tokens + 1][vocab], the caller's: exact ones, after the round */
    struct hre_step_report *steps; /* [draft_tokens] of the draft, or NULL */
    /* The next token after exact logits [vocab]; called once per token of the text, in order. */
    hr_status_t (*choose)(void *context, const float *logits, uint32_t *id_out);
    void *choose_context;
};
struct hre_speculation_report {
    uint32_t drafted, accepted;
    uint64_t draft_ns, verify_ns, total_ns; /* draft_ns: 0 without steps */
};
/*
 * One round: the sequence's recipe drafts what follows id, exact attention verifies all of it in one pass, and what was refused is
 * truncated. ids_out [draft_tokens + 1], n_out: the next 1 to draft_tokens + 1 tokens of the text, those that decoding one by one with
 * exact attention and the same chooser gives. All but the last have been run; the last is the next round's id. Statuses as for
 * prefill, and the chooser's.
 */
hr_status_t hre_session_speculate(hre_session_t *session, uint32_t sequence, uint32_t id,
                                  const struct hre_speculation *how, uint32_t *ids_out,
                                  uint32_t *n_out, struct hre_speculation_report *report_out);

/* Time and bytes of the session so far. */
struct hre_session_stats {
    uint64_t scratch_bytes; /* allocated by the session */
    uint64_t prefill_tokens, prefill_ns, prefill_linear_ns, prefill_append_ns, prefill_attend_ns,
        prefill_settle_ns;
    uint64_t decode_tokens, decode_ns, decode_linear_ns, decode_append_ns, decode_attend_ns;
    uint64_t decode_graph_tokens; /* of them, what a GPU did as one graph each */
};
void hre_session_stats(const hre_session_t *session, struct hre_session_stats *stats_out);

/* ------------------------------------------------------------------- texts for the tiny model */

/*
 * A text of n_tokens that hides n_keys (key, value) pairs among fillers and asks for all of them at
 * its end, as engine/models/README.md fixes it. ids: [n_tokens]. answers: [n_keys], the value
 * expected after the question at index n_tokens - 2 * n_keys + 2 * i. HR_ERR_INVALID: 1 <= n_keys
 * <= 64, n_tokens >= 2 n_keys + ceil(8 n_keys / 3).
 */
hr_status_t hre_tiny_text(uint32_t n_tokens, uint32_t n_keys, uint64_t seed, uint32_t *ids_out,
                          uint32_t *answers_out);

#endif
