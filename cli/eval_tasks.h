/* eval tasks: what recipes answer to questions about a text, next to dense attention's answers. */
#ifndef CLI_EVAL_TASKS_H
#define CLI_EVAL_TASKS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "cli/args.h"
#include "cli/out.h"
#include "cli/setup.h"
#include "cli/tally.h"
#include "cli/tasks_prompt.h"
#include "cli/tasks_source.h"

#define CLI_TASKS_ABLE                                                                             \
    0.5 /* dense scores from here on count as the model being able to do a task */

struct cli_tasks_options {
    const char *model;
    struct cli_names tasks, recipes;
    struct cli_shares moved;
    uint64_t tokens_context, samples, seed, answer_tokens;
    const char *question; /* "decode" or "prefill" */
    struct cli_source_files files;
    struct cli_recipe recipe; /* dtype, tolerance, head gates for all */
    struct cli_place place;
    uint64_t memory_bytes; /* of all caches of one pass */
    bool allow_longer, list, quiet;
    const char *json, *csv;
};

/* One (recipe, moved). */
struct cli_tasks_item {
    const char *recipe, *moved_text;
    double moved;
};

/* One (task, recipe, moved). Sums over the answers. */
struct cli_tasks_figure {
    uint64_t answers;
    double score, score_dense;
    uint64_t equal, better, worse; /* than dense */
    double kl;
    uint64_t kl_tokens;
    uint64_t *refined; /* [n_layers][n_kv_heads] rows that held an answer and were refined, */
    uint64_t rows;     /* of so many in each, over all steps that chose a token of it */
    struct cli_tally tally;
    uint64_t device_bytes, body_bytes; /* summaries and sketches, and what they stand for */
};

struct cli_tasks_eval {
    const struct cli_tasks_options *options;
    struct cli_model model;
    struct hre_chat_template chat;
    bool has_chat;
    struct cli_sources sources;
    float *head_gates;
    const struct cli_task *tasks[CLI_LIST_MAX];
    size_t n_tasks;
    struct cli_tasks_item *items; /* [n_items] */
    size_t n_items, items_per_pass;
    struct cli_tasks_figure *figures; /* [n_tasks][n_items] */
    cJSON *samples;                   /* every text with its answers */
    struct cli_progress progress;
    uint64_t tokens_done; /* of the progress */
};

/* One text: all items answer its questions. 0, or an exit code after a message. */
int cli_tasks_run_sample(struct cli_tasks_eval *eval, size_t task, uint64_t sample);

void cli_tasks_print(FILE *file, const struct cli_tasks_eval *eval);
cJSON *cli_tasks_json(struct cli_tasks_eval *eval);         /* takes eval->samples along */
int cli_tasks_write_csv(const struct cli_tasks_eval *eval); /* 0, or an exit code after a message */

#endif
