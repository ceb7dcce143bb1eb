/* eval trace: recipes against full attention on recorded rows and queries. */
#ifndef CLI_EVAL_TRACE_H
#define CLI_EVAL_TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>
#include <headrace/headrace.h>

#include "cli/args.h"
#include "cli/trace.h"

#define CLI_TRACE_LARGE_ERROR 0.005 /* predictions are also judged where the error matters */
#define CLI_TRACE_RECIPE_MAX  512   /* a name of a list and the settings for all */

struct cli_trace_options {
    struct cli_operands folders;
    struct cli_names recipes;
    struct cli_shares moved;
    const char *tier, *file_dir, *cpu, *json, *csv, *html, *dump, *head_gates;
    uint64_t threads, seed, host_bytes;
    double tolerance;
    bool quiet;
};

/* Full attention in double over the trace's rows: what every recipe is measured against. */
struct cli_trace_truth {
    double *out; /* [n_q_heads][n_queries][head_dim] */
    float *mass; /* [n_queries][n_q_heads][n_tokens] attention of each row, 0 behind the query */
};
int cli_trace_truth_make(const struct cli_trace *trace, struct cli_trace_truth *truth_out);
void cli_trace_truth_fini(struct cli_trace_truth *truth);

/* One recipe at one budget on one trace. A head-step is one query head at one scored query. */
struct cli_trace_item {
    size_t trace, recipe, moved;     /* which */
    char used[CLI_TRACE_RECIPE_MAX]; /* the recipe with what the comparison adds to it */
    uint32_t sink, window;           /* that it has then */
    uint32_t n_q_heads, n_kv_heads, n_queries, head_dim;
    float *error, *predicted, *recall; /* [n_q_heads][n_queries] */
    float *out;                        /* [n_q_heads][n_queries][head_dim] */
    struct hr_attend_report sum;       /* over the queries */
    uint64_t held_bytes,
        body_bytes; /* summaries and sketches; the body in bf16: both summed over the queries */
    uint64_t attend_ns, index_ns;
    uint64_t
        host_index_bytes; /* of indexes that are searched in host memory, summed like held_bytes */
    uint64_t near_rows_min, near_rows_max; /* exact rows beside the body, of a kv-head */
    bool done;
};

/* Sets used, sink and window: the recipe as it is compared with others. */
void cli_trace_equalise(const char *recipe, struct cli_trace_item *item);
bool cli_trace_needs_gates(const char *recipe);
/* The trace's line of a table of head gates, [n_kv_heads], the caller's; path NULL: *gates_out is NULL. 0, or an
 * exit code after a message. */
int cli_trace_gates(const char *path, const struct cli_trace *trace, float **gates_out);

/* Runs it; arrays are allocated. gates may be NULL. 0, or an exit code after a message. */
int cli_trace_item_run(const struct cli_trace_options *o, const struct cli_trace *trace,
                       const struct cli_trace_truth *truth, const float *gates,
                       struct cli_trace_item *item);
void cli_trace_item_fini(struct cli_trace_item *item);

/* What all traces have in common in the reports. */
struct cli_trace_about {
    char *name, *model;
    uint32_t layer, n_q_heads, n_kv_heads, head_dim, n_tokens, n_seen, n_queries;
};

struct cli_trace_eval {
    const struct cli_trace_options *options;
    struct cli_trace_about *traces; /* [folders.n] */
    struct cli_trace_item *items;   /* [folders.n][recipes.n][moved.n] */
    size_t n_items;
};
static inline struct cli_trace_item *cli_trace_item_at(const struct cli_trace_eval *eval,
                                                       size_t trace, size_t recipe, size_t moved)
{
    const struct cli_trace_options *o = eval->options;
    return &eval->items[(trace * o->recipes.n + recipe) * o->moved.n + moved];
}

/* Figures over one trace's item, or over the same item of all traces. */
struct cli_trace_figures {
    uint64_t steps, head_steps, large_steps;
    double error_mean, error_p50, error_p95, error_max;
    double device_fraction, moved_fraction, fetched_fraction, selected_fraction;
    double predicted_mean, within_2x, within_2x_large, mass_recall;
    double budget_fraction; /* of the body's bytes: what steps might move */
    double capped_fraction; /* of kv-heads and steps: the budget ended them above the tolerance */
    double rows_by_level[HR_LEVELS], bytes_by_level[HR_LEVELS]; /* of a step */
    double near_rows_min, near_rows_max, body_rows;             /* of a kv-head */
    double visited_fraction,
        host_index_fraction; /* rows that an index in host memory looked at; its bytes */
    double ns_per_step, index_seconds, stage_ns[HR_STAGES];
};
/* trace SIZE_MAX: all. False when nothing is there (or memory was short). */
bool cli_trace_figures(const struct cli_trace_eval *eval, size_t trace, size_t recipe, size_t moved,
                       struct cli_trace_figures *figures_out);

/* It moved more than its budget: such a figure must not stand beside others without a mark. */
static inline bool cli_trace_is_over(const struct cli_trace_figures *figures)
{
    return figures->moved_fraction > 1.1 * figures->budget_fraction;
}

/* Recipes that have figures, best first: by the mean error over all traces at the largest budget. */
size_t cli_trace_rank(const struct cli_trace_eval *eval, size_t order[CLI_LIST_MAX]);

void cli_trace_print(FILE *file, const struct cli_trace_eval *eval);
cJSON *cli_trace_json(const struct cli_trace_eval *eval);
/* The caller frees them; NULL: out of memory. */
char *cli_trace_csv(const struct cli_trace_eval *eval);
char *cli_trace_html(const struct cli_trace_eval *eval);

#endif
