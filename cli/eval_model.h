/* Teacher-forced comparison of recipes with dense attention: the same text, the same weights,
 * one sequence for each recipe. */
#ifndef CLI_EVAL_MODEL_H
#define CLI_EVAL_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "cli/args.h"
#include "cli/setup.h"
#include "cli/tally.h"

struct cli_eval_options {
    const char *model, *file;
    uint64_t tokens_context, tokens_decoded, tokens_scored;
    struct cli_names recipes;
    struct cli_shares moved;
    struct cli_recipe recipe; /* dtype, tolerance, seed for all */
    struct cli_place place;
    uint64_t memory_bytes; /* of all caches of one pass */
    bool allow_longer, true_error, quiet;
    const char *json;
};

/* One (recipe, moved). */
struct cli_eval_item {
    const char *recipe, *moved_text;
    double moved;
    uint64_t scored, agreed;
    double nll_dense, nll, kl, kl_max; /* sums over the scored tokens */
    struct cli_tally tally;
    double prefill_index_seconds;
    struct hr_sequence_stats cache;
    struct hr_runtime_stats tiers;
};

struct cli_eval {
    const struct cli_eval_options *options;
    struct cli_model model;
    uint32_t *ids; /* [n_ids] context and scored tokens */
    uint32_t n_ids;
    float *head_gates; /* of --head-gates, or NULL */
    struct cli_eval_item *items;
    size_t n_items;
    size_t items_per_pass;
};

/* Prefills and scores items [first, first + n): 0, or an exit code after a message. */
int cli_eval_pass(struct cli_eval *eval, size_t first, size_t n);

void cli_eval_print(FILE *file, const struct cli_eval *eval);
cJSON *cli_eval_json(const struct cli_eval *eval);

#endif
