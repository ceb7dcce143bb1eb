/* One run: what was asked for, what is open, what was counted. */
#ifndef CLI_RUN_H
#define CLI_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "cli/place.h"
#include "cli/prompt.h"
#include "cli/setup.h"
#include "cli/tally.h"
#include "engine/sample.h"

/* A session in a folder: what was opened, and what the tool keeps beside the rows. */
struct cli_saved {
    bool opened;
    uint32_t n_ids;      /* tokens in the sequence */
    uint32_t *ids;       /* [n_ids] */
    uint32_t pending;    /* written, but not run yet; CLI_NO_TOKEN: none */
    uint32_t tokens_max; /* room it was made for */
    double moved, tolerance;
    uint64_t seed;
    const char *dtype;
    char recipe[512];
    float *logits; /* [vocab] after the newest token */
    uint64_t open_ns, save_ns, save_bytes;
};
#define CLI_NO_TOKEN UINT32_MAX

struct cli_run_options {
    const char *model;
    struct cli_prompt_options prompt;
    struct cli_recipe recipe;
    char recipe_text[512]; /* behind recipe.name */
    struct cli_place place;
    uint64_t tokens;
    double temperature, top_p;
    double deadline_ms; /* of a token; 0: none */
    bool strict_exact;
    bool check_dense, allow_longer, quiet;
    const char *open_dir, *save_dir, *save_mode;
    bool recipe_given, moved_given, tolerance_given, seed_given, dtype_given;
    uint64_t forks, tokens_max;
    const char *json;
};

/* Of a recipe that drafts: what was proposed, and what exact attention agreed to. */
struct cli_speculation {
    uint32_t tokens; /* per round; 0: the recipe does not draft */
    uint64_t rounds, drafted, accepted, draft_ns, verify_ns;
};

/* Tokens and the time they were given. */
struct cli_deadline {
    uint64_t over, largest_ns; /* steps that took longer, and the longest */
    uint64_t with_late;        /* steps with blocks that came too late */
};

/* The recipe's next-token distributions beside those of dense attention. */
struct cli_dense {
    uint64_t tokens, agreed;
    double kl_sum, kl_max;
};

struct cli_run {
    const struct cli_run_options *options;
    struct cli_model model;
    struct cli_prompt prompt;
    uint32_t tokens_max;
    struct cli_cache cache, dense_cache;
    hre_session_t *session;
    float *head_gates; /* of --head-gates, or NULL */
    float *logits,
        *dense_logits; /* [vocab], of a drafting recipe [tokens + 1][vocab]; the second NULL without --check-dense */
    struct hre_bytes text; /* what was generated */
    uint32_t prefilled, generated;
    uint32_t asked, answered; /* a made text's questions */
    const char *ended; /* why: "tokens", "end of text", "context", "questions", "interrupted" */
    struct cli_tally tally;
    struct cli_dense dense;
    struct cli_deadline deadline;
    struct cli_speculation speculation;
    struct cli_saved saved;
    struct cli_recipe recipe; /* as asked for, or as saved */
    uint32_t *ids;            /* [n_ids] tokens in the sequence */
    uint32_t n_ids, ids_max;
    uint32_t pending; /* as saved.pending */
    cJSON *steps;     /* one object per step */
    bool failed;
};

/* Reads the prompt, then answers; the text is streamed. 0, or an exit code after a message;
 * counts are right in any case. */
int cli_run_prefill(struct cli_run *run);
int cli_run_generate(struct cli_run *run);

/* Reads what the folder of --open says, before the model's cache is made; takes from it what was not asked for otherwise. */
int cli_run_open_begin(struct cli_run *run);
int cli_run_save(struct cli_run *run);
/* Whether --save can work, before anything else is done. */
int cli_run_save_check(const struct cli_run_options *options);
/* Locks the folder of --save, before the text is read. */
int cli_run_save_claim(struct cli_run *run);
void cli_saved_fini(struct cli_saved *saved);
/* These tokens are in the sequence now. */
int cli_run_ran(struct cli_run *run, const uint32_t *ids, uint32_t n);
/* --fork: so many continuations of what was read. */
int cli_run_forks(struct cli_run *run, int (*generate)(struct cli_run *run));

/* One token of free text was chosen: written and counted. *again_out: whether another is wanted. */
int cli_run_token(struct cli_run *run, struct hre_stream *stream, uint32_t id, bool *again_out);
/* Free text of a recipe that drafts, in rounds of drafting and verifying, from the first token on. */
int cli_run_speculate(struct cli_run *run, hre_sampler_t *sampler, struct hre_stream *stream);
/* Compares with dense attention: run->logits [vocab] against what the dense sequence says after id. */
int cli_run_compare(struct cli_run *run, uint32_t id, const float *logits);

/* Context of the model against prompt and tokens: 0, or an exit code after a message; sets
 * tokens_max. */
int cli_run_fit(struct cli_run *run);

void cli_run_report(const struct cli_run *run);
/* The caller deletes it. */
cJSON *cli_run_json(const struct cli_run *run);

#endif
