/* What a command with a model needs before it can work: the model with its tokenizer, and caches
 * for texts. */
#ifndef CLI_SETUP_H
#define CLI_SETUP_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "engine/engine.h"
#include "engine/tokenizer.h"
#include "cli/place.h"

struct cli_model {
    hre_model_t *model;
    hre_tokenizer_t *tokenizer;
    const struct hre_model_info *info;
};

/* The engine's message after what was being tried; returns CLI_EXIT_FAILED. */
int cli_fail_engine(const char *what, hr_status_t status);

/* 0, or an exit code after a message; then nothing is open. */
int cli_model_open(const char *path, const struct cli_place *place, struct cli_model *model_out);
void cli_model_close(struct cli_model *model);
/* "SmolLM2 135M Instruct: llama, 30 layers, ..." in one line; a second one of what it has on a GPU. */
void cli_model_print(FILE *file, const struct cli_model *model);
cJSON *cli_model_json(const struct cli_model *model);

/* Budgets as cli_budget_parse gives them. */
void cli_budget_apply(double budget, struct hr_sequence_options *options);
double cli_budget_bytes(double budget, uint64_t body_bytes,
                        uint32_t row_bytes); /* of a kv-head and step */
double cli_budget_share(double budget);      /* NaN where it is none */
char *cli_format_budget(double budget, char *text, size_t text_bytes);

/* How a text is attended. */
struct cli_recipe {
    const char *name;
    const char *dtype;       /* "f32", "f16", "bf16": how rows are kept exactly */
    double moved, tolerance; /* moved: a budget as cli_budget_parse gives it */
    uint64_t seed;
    const char *head_gates_path; /* table of gates, or NULL */
    float *head_gates;           /* [n_layers][n_kv_heads] read from it, or NULL */
    bool keep_tokens;            /* so that a step can tell which rows it refined */
};
#define CLI_RECIPE_DEFAULTS                                                                        \
    {                                                                                              \
        .name = "headrace", .dtype = "bf16", .moved = 0.01                                         \
    }
#define CLI_DTYPES "f32 f16 bf16"

/* A runtime with one sequence. */
struct cli_cache {
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
};
int cli_cache_open(const struct cli_model *model, const struct cli_place *place,
                   const struct cli_recipe *recipe, uint32_t tokens_max,
                   struct cli_cache *cache_out);
/* The same from a saved session; recipe->name NULL: the saved one. */
int cli_cache_open_saved(const struct cli_model *model, const struct cli_place *place,
                         const struct cli_recipe *recipe, uint32_t tokens_max, const char *dir,
                         struct cli_cache *cache_out);
/* A hash of the tokenizer and of what the file says of the weights. */
void cli_model_id(const struct cli_model *model, uint64_t id_out[4]);
/* Exact attention over rows in host memory that is as large as it must be. */
int cli_cache_open_dense(const struct cli_model *model, const struct cli_place *place,
                         const char *dtype, uint32_t tokens_max, struct cli_cache *cache_out);
void cli_cache_close(struct cli_cache *cache); /* zeroed is fine */
/* Exact K+V bytes of n tokens. */
uint64_t cli_exact_bytes(const struct cli_model *model, const char *dtype, uint64_t n_tokens);
/* How many caches of n tokens fit into memory_bytes beside a dense one; at least 1. */
size_t cli_caches_per_pass(const struct cli_model *model, const struct cli_place *place,
                           const char *dtype, uint64_t n_tokens, uint64_t memory_bytes);

/* For --help: the recipes of this build. Valid until the next call. */
const char *cli_recipe_help(void);

/* Refuses a recipe that the library does not know before a model is opened: -1, or the exit code
 * after a message. */
int cli_recipe_check(const char *command, const char *recipe);

/* Tokens that a recipe proposes before they are verified exactly; 0 where it does not draft. */
uint32_t cli_recipe_drafts(const char *recipe);

/* "@FILE" becomes the recipe in that file, anything else itself; checked. -1, or the exit code after a
 * message. text may be given. */
int cli_recipe_resolve(const char *command, const char *given, char *text, size_t text_bytes);

/* Reads a table of head gates for this model; path NULL: *gates_out is NULL. 0, or an exit code after a message. The
 * caller frees *gates_out. */
int cli_head_gates_read(const char *path, const struct cli_model *model, float **gates_out);
#define CLI_HEAD_GATES_OPTION(recipe_)                                                             \
    CLI_OPTION("head-gates", CLI_STRING, &(recipe_).head_gates_path, "FILE",                       \
               "which heads retrieve, for recipes that split them: a line per layer, a gate from " \
               "0 to 1 per kv-head (TSV; DuoAttention's full_attention_heads.tsv as it is)")

/* SIGINT and SIGTERM end the work at the next token or chunk; a second one ends the process at
 * once. */
void cli_stop_install(void);
int cli_stop_signal(void); /* 0: go on */

/* Largest resident memory of this process so far; 0 where it is not known. */
uint64_t cli_peak_resident_bytes(void);

#endif
