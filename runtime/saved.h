/* What a saved session holds, stream by stream (docs/format.md): shared by save.c, open.c and session.c. */
#ifndef HRI_RUNTIME_SAVED_H
#define HRI_RUNTIME_SAVED_H

#include "offload/archive.h"
#include "offload/io_guard.h"
#include "runtime/sequence.h"

enum { HRI_SAVED_WHOLE = 0, HRI_SAVED_USER = 1, HRI_SAVED_LAYER = 2, HRI_SAVED_FRAMES = 3 };
enum {
    HRI_SAVED_STATE = 0, /* struct hri_saved_layer, ends of segments */
    HRI_SAVED_NEAR = 1,  /* sink and tail, exact */
    HRI_SAVED_LOG = 2,   /* cells */
    HRI_SAVED_BLOCKS = 3,
    HRI_SAVED_HEAD = 4 /* of each kv-head: index image, places, tokens of blocks */
};

/* The first stream. */
struct hri_saved_meta {
    /* What must be the same: geometry and all that exact attention depends on. */
    uint32_t n_layers, n_q, n_kv, dk, dv, dtype;
    uint32_t rope_crc, sliding_crc, log_n_crc;
    float scale, soft_cap;
    uint32_t log_rows; /* HRI_LOG_ROWS */
    uint64_t model_id[4];
    /* What is there. */
    uint32_t n_tokens, n_sink, tail_max, log_cell_bytes;
    uint64_t user_bytes;
    /* What derived levels depend on; where any of it differs they are made anew. */
    uint32_t gates_crc, block_cell_bytes, code_bytes, parts, part_rows, keep_tokens;
    double moved, tolerance;
    uint64_t seed;
    double values[HRI_SELECTOR_PARAMS_MAX];
    char selector[64], argument[HRI_RECIPE_ARGUMENT_BYTES];
    char cpu_level[16];
    char recipe[512]; /* as text, for people */
    uint8_t zero[8];
};
_Static_assert(sizeof(struct hri_saved_meta) == 1072, "on disk");

struct hri_saved_layer {
    uint32_t n_tokens, body_end, tail_first, n_logged;
    uint32_t n_settled, block_cells, early_tokens;
    uint32_t n_worth; /* heads that say what rows were worth to the last token: 0 or n_kv */
};

/* Fills all but user_bytes and model_id. */
void hri_saved_meta_fill(const hr_sequence_t *s, struct hri_saved_meta *meta);
/* The geometry of both is the same: HR_OK, or HR_ERR_INVALID with what differs. */
hr_status_t hri_saved_meta_compare(const struct hri_saved_meta *saved,
                                   const struct hri_saved_meta *ours, const char *path);
bool hri_saved_derived_fits(const struct hri_saved_meta *saved, const struct hri_saved_meta *ours);

/* Opens the session file in an open folder; the options' fd is not used. Closed with hri_saved_close. */
hr_status_t hri_saved_open(const struct hri_archive_in_options *options, int folder, int *fd_out,
                           struct hri_archive_in **in_out, struct hri_saved_meta *meta_out);
/* Frees the one, closes the other; no archive and an fd of -1 are legal. */
void hri_saved_close(const struct hri_io_ops *io, struct hri_archive_in *in, int fd);
/* How a runtime reads. */
struct hri_archive_in_options hri_saved_options(hr_runtime_t *rt, const struct hri_io_ops *io,
                                                const char *path);

/* -- folders (home.c) -- */

/* The runtime's calls of the disk, each with an end: for one call of ours, destroyed at its end. */
hr_status_t hri_calls_begin(const hr_runtime_t *rt, struct hri_io_guard **guard_out);
/* Gives back a folder's lock, then the folder (-1: there is none), and the guard. NULL: they were never opened. */
void hri_calls_end(struct hri_io_guard *guard, int folder, int lock);
/* *home_out: the sequence has locked this folder already; else NULL. */
hr_status_t hri_home_find(hr_sequence_t *s, const struct hri_io_ops *io, int folder,
                          const char *path, struct hri_home **home_out);
/* Takes the lock over. */
hr_status_t hri_home_set(hr_sequence_t *s, int which, const struct hri_io_ops *io, int folder,
                         const char *path, int *lock);
void hri_home_leave(hr_sequence_t *s, const struct hri_io_ops *io, struct hri_home *home);

/* hr_session_info_get, hr_session_verify and hr_session_remove by a table of I/O operations. */
hr_status_t hri_session_info_get(const struct hri_io_ops *io, const char *dir,
                                 struct hr_session_info *out);
hr_status_t hri_session_verify(const struct hri_io_ops *io, const char *dir,
                               struct hr_session_check *check_out);
hr_status_t hri_session_remove(const struct hri_io_ops *io, const char *dir);

/* The layer's rows [first, first + rows) of a log cell that holds byte `at` of the log stream. */
static inline uint32_t hri_saved_token_at(const struct hri_saved_meta *meta, uint64_t at)
{
    return (uint32_t)(at / meta->log_cell_bytes / meta->n_kv * meta->log_rows);
}

#endif
