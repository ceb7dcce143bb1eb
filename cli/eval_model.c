#include "cli/eval_model.h"

#include <stdlib.h>
#include <string.h>

#include "cli/logits.h"
#include "cli/out.h"

/* One pass: a session whose sequence 0 is dense and whose others are the items'. */
struct pass {
    struct cli_eval *eval;
    struct cli_eval_item *items;
    size_t n;
    struct cli_cache *caches;  /* [1 + n] */
    hr_sequence_t **sequences; /* [1 + n] */
    hre_session_t *session;
    float *logits, *dense_logits; /* [vocab] */
    struct cli_progress progress;
};

static uint32_t prefill_tokens(const struct cli_eval *eval)
{
    /* The first scored token must be predicted by the recipe, so the last token of the context
     * is decoded. */
    return (uint32_t)(eval->options->tokens_context - eval->options->tokens_decoded) - 1;
}

static int open_caches(struct pass *pass)
{
    const struct cli_eval_options *o = pass->eval->options;
    struct cli_recipe recipe = o->recipe;
    recipe.head_gates = pass->eval->head_gates;
    int code = cli_cache_open_dense(&pass->eval->model, &o->place, recipe.dtype, pass->eval->n_ids,
                                    &pass->caches[0]);
    for (size_t i = 0; i < pass->n && code == 0; i++) {
        recipe.name = pass->items[i].recipe;
        recipe.moved = pass->items[i].moved;
        code = cli_cache_open(&pass->eval->model, &o->place, &recipe, pass->eval->n_ids,
                              &pass->caches[1 + i]);
    }
    for (size_t i = 0; i <= pass->n; i++)
        pass->sequences[i] = pass->caches[i].sequence;
    return code;
}

static int open_pass(struct pass *pass)
{
    struct hre_session_options options;
    size_t vocab = pass->eval->model.info->vocab;
    pass->caches = calloc(1 + pass->n, sizeof *pass->caches);
    pass->sequences = calloc(1 + pass->n, sizeof(hr_sequence_t *));
    pass->logits = malloc(vocab * sizeof *pass->logits);
    pass->dense_logits = malloc(vocab * sizeof *pass->dense_logits);
    if (!pass->caches || !pass->sequences || !pass->logits || !pass->dense_logits)
        return cli_fail("out of memory");
    int code = open_caches(pass);
    if (code)
        return code;
    hre_session_options_init(&options);
    options.sequences = pass->sequences;
    options.n_sequences = (uint32_t)(1 + pass->n);
    options.tokens_max = pass->eval->n_ids;
    hr_status_t status = hre_session_create(pass->eval->model.model, &options, &pass->session);
    return status == HR_OK ? 0 : cli_fail_engine("session", status);
}

static void close_pass(struct pass *pass)
{
    hre_session_destroy(pass->session);
    for (size_t i = 0; pass->caches && i <= pass->n; i++)
        cli_cache_close(&pass->caches[i]);
    free(pass->caches);
    free(pass->sequences);
    free(pass->logits);
    free(pass->dense_logits);
}

static int on_progress(void *context, uint32_t done, uint32_t total)
{
    struct pass *pass = context;
    (void)total;
    cli_progress_update(&pass->progress, done);
    return cli_stop_signal() != 0;
}

static int prefill(struct pass *pass)
{
    struct hre_prefill_options options;
    uint32_t n = prefill_tokens(pass->eval);
    hre_prefill_options_init(&options);
    options.progress = on_progress;
    options.progress_context = pass;
    options.settle = 1;
    cli_progress_begin(&pass->progress, "prefill", "tokens", n);
    hr_status_t status = hre_session_prefill(pass->session, pass->eval->ids, n, &options, NULL);
    cli_progress_end(&pass->progress, hre_session_length(pass->session, 0));
    if (status != HR_OK && !(status == HR_ERR_CANCELED && cli_stop_signal()))
        return cli_fail_engine("prefill", status);
    return 0;
}

static int score_item(struct pass *pass, size_t i, uint32_t id, uint32_t next, double dense_nll)
{
    struct cli_eval_item *item = &pass->items[i];
    struct hre_decode_options options;
    struct hre_step_report report;
    size_t vocab = pass->eval->model.info->vocab;
    hre_decode_options_init(&options);
    options.check_exact = pass->eval->options->true_error;
    hr_status_t status =
        hre_session_decode(pass->session, (uint32_t)(1 + i), id, &options, pass->logits, &report);
    if (status != HR_OK)
        return cli_fail_engine(item->recipe, status);
    double kl = cli_kl(pass->dense_logits, pass->logits, vocab);
    item->scored++;
    item->agreed += cli_argmax(pass->dense_logits, vocab) == cli_argmax(pass->logits, vocab);
    item->nll_dense += dense_nll;
    item->nll += cli_nll(pass->logits, vocab, next);
    item->kl += kl;
    item->kl_max = kl > item->kl_max ? kl : item->kl_max;
    if (item->tally.steps == 0)
        cli_step_without_prefill(&report);
    cli_tally_add(&item->tally, &report);
    return 0;
}

/* All sequences decode the token at index t; what they expect at t + 1 is compared. */
static int score_token(struct pass *pass, uint32_t t)
{
    const uint32_t *ids = pass->eval->ids;
    struct hre_decode_options options;
    hre_decode_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    hr_status_t status =
        hre_session_decode(pass->session, 0, ids[t], &options, pass->dense_logits, NULL);
    if (status != HR_OK)
        return cli_fail_engine("dense", status);
    double dense_nll = cli_nll(pass->dense_logits, pass->eval->model.info->vocab, ids[t + 1]);
    int code = 0;
    for (size_t i = 0; i < pass->n && code == 0; i++)
        code = score_item(pass, i, ids[t], ids[t + 1], dense_nll);
    return code;
}

/* The end of the context, one by one: what sequence 0 does densely the others do with their recipes. */
static int grow(struct pass *pass)
{
    uint32_t first = prefill_tokens(pass->eval), done = 0;
    uint32_t n = (uint32_t)pass->eval->options->tokens_decoded;
    struct hre_decode_options options;
    hr_status_t status = HR_OK;
    cli_progress_begin(&pass->progress, "decode", "tokens", n);
    for (; done < n && status == HR_OK && !cli_stop_signal(); done += status == HR_OK) {
        for (uint32_t i = 0; i <= pass->n && status == HR_OK; i++) {
            hre_decode_options_init(&options);
            options.mode = i == 0 ? HR_ATTEND_EXACT : options.mode;
            status = hre_session_decode(pass->session, i, pass->eval->ids[first + done], &options,
                                        pass->logits, NULL);
        }
        cli_progress_update(&pass->progress, done + 1);
    }
    cli_progress_end(&pass->progress, done);
    return status == HR_OK ? 0 : cli_fail_engine("decode", status);
}

static int score(struct pass *pass)
{
    const struct cli_eval_options *o = pass->eval->options;
    uint32_t first = (uint32_t)o->tokens_context - 1, done = 0;
    int code = 0;
    cli_progress_begin(&pass->progress, "score", "tokens", o->tokens_scored);
    for (; done < o->tokens_scored && code == 0 && !cli_stop_signal(); done += code == 0) {
        code = score_token(pass, first + done);
        cli_progress_update(&pass->progress, done + 1);
    }
    cli_progress_end(&pass->progress, done);
    return code;
}

static void keep_stats(struct pass *pass)
{
    for (size_t i = 0; i < pass->n; i++) {
        struct cli_eval_item *item = &pass->items[i];
        item->cache.struct_size = sizeof item->cache;
        item->tiers.struct_size = sizeof item->tiers;
        hr_sequence_stats_get(pass->caches[1 + i].sequence, &item->cache);
        hr_runtime_stats_get(pass->caches[1 + i].runtime, &item->tiers);
    }
}

int cli_eval_pass(struct cli_eval *eval, size_t first, size_t n)
{
    struct pass pass = {.eval = eval, .items = eval->items + first, .n = n};
    int code = open_pass(&pass);
    if (code == 0)
        code = prefill(&pass);
    if (code == 0 && eval->options->tokens_decoded > 0)
        code = grow(&pass);
    if (code == 0)
        code = score(&pass);
    if (code == 0)
        keep_stats(&pass);
    close_pass(&pass);
    return code;
}
