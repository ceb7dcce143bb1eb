/* Traces: K and V rows of one layer and queries on them, in a folder (docs/traces.md). */
#ifndef CLI_TRACE_H
#define CLI_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include <cjson/cJSON.h>
#include <headrace/headrace.h>

#define CLI_TRACE_FORMAT     "headrace-trace-1"
#define CLI_TRACE_WHY_BYTES  320
#define CLI_TRACE_META_BYTES ((size_t)64 << 20)

struct cli_positions {
    uint32_t n;
    uint32_t *at; /* [n] increasing */
};

struct cli_trace_meta {
    char *model;
    uint32_t layer, n_q_heads, n_kv_heads, head_dim, n_tokens;
    double scale;
    struct cli_positions seen, scored;
    /* How queries and keys are rotated; layout HR_ROPE_NONE: not known. */
    hr_rope_layout_t rope_layout;
    double rope_base;        /* 0 where frequencies were given alone */
    uint32_t n_rot;          /* rotated dimensions */
    float *rope_frequencies; /* [n_rot/2] */
};

struct cli_trace {
    char *path, *name; /* as given; the folder's own name */
    struct cli_trace_meta meta;
    uint16_t *k, *v; /* float16 [n_kv_heads][n_tokens][head_dim] */
    float *seen, *q; /* [n_q_heads][meta.seen.n], [meta.scored.n] [head_dim] */
};

/* Reads meta.json's text. False with the reason in why [CLI_TRACE_WHY_BYTES]; nothing is held then. */
bool cli_trace_meta_parse(const char *text, size_t n, struct cli_trace_meta *meta_out, char *why);
void cli_trace_meta_fini(struct cli_trace_meta *meta);
cJSON *cli_trace_meta_json(const struct cli_trace_meta *meta);

/* 0, or an exit code after a message that names the file and what is wrong; then nothing is held. */
int cli_trace_load(const char *path, struct cli_trace *trace_out);
/* The folder is made if it is missing; meta.json is written last, so that a folder without it is no trace. */
int cli_trace_save(const struct cli_trace *trace);
void cli_trace_fini(struct cli_trace *trace); /* zeroed is fine */

/* The last part of a path, without slashes at its end: "a/b/" -> "b", "." -> the folder's name. The caller frees it; NULL: out of
 * memory. */
char *cli_folder_name(const char *path);

float cli_float_from_half(uint16_t half);
/* Rounds to nearest even; what is too large becomes infinite. */
uint16_t cli_half_from_float(float value);

#endif
