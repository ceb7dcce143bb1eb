/* The work of a run: prefill with progress, then free text or the answers to a made text's
 * questions. */
#include <stdlib.h>
#include <string.h>

#include "engine/sample.h"
#include "cli/logits.h"
#include "cli/out.h"
#include "cli/run.h"

/* ------------------------------------------------------------------------------------------ fit */

int cli_run_fit(struct cli_run *run)
{
    const struct cli_run_options *o = run->options;
    uint32_t context = run->model.info->context_length;
    uint32_t before = run->saved.n_ids + (run->pending != CLI_NO_TOKEN),
             n = before + run->prompt.n_ids;
    bool longer = context && n > context;
    if (longer && !o->allow_longer)
        return cli_fail("the prompt has %u tokens, the model was trained for %u; --allow-longer "
                        "goes on regardless, "
                        "--tokens-context cuts the text",
                        n, context);
    if (longer)
        cli_warn(
            "the prompt has %u tokens, the model was trained for %u; answers may make no sense", n,
            context);
    uint64_t most = run->prompt.n_keys ? n : n + o->tokens;
    if (!run->prompt.n_keys && !o->allow_longer && context && most > context)
        most = context;
    most = most < o->tokens_max ? o->tokens_max : most;
    most = most < run->saved.tokens_max ? run->saved.tokens_max : most;
    run->tokens_max = (uint32_t)most;
    return 0;
}

/* -------------------------------------------------------------------------------------- prefill */

static int on_progress(void *context, uint32_t done, uint32_t total)
{
    (void)total;
    cli_progress_update(context, done);
    return cli_stop_signal() != 0;
}

/* A made text is read up to its first question: what is asked must be answered by the recipe,
 * not by prefill's exact attention. */
static uint32_t prefill_tokens(const struct cli_run *run)
{
    return run->prompt.n_ids - 2 * run->prompt.n_keys;
}

static int step(struct cli_run *run, uint32_t id, bool compared);

/* What was opened, and no new text: as if it had never been away. */
static int go_on(struct cli_run *run)
{
    memcpy(run->logits, run->saved.logits, run->model.info->vocab * sizeof *run->logits);
    bool runs = run->pending != CLI_NO_TOKEN && run->speculation.tokens == 0;
    return runs ? step(run, run->pending, true) : 0;
}

/* The token that was written last, if it was not run, then the new text. */
static uint32_t *new_text(const struct cli_run *run, uint32_t *n_out)
{
    uint32_t n = 0, more = prefill_tokens(run);
    uint32_t *ids = malloc(((size_t)more + 1) * sizeof *ids);
    if (ids && run->pending != CLI_NO_TOKEN)
        ids[n++] = run->pending;
    if (ids && more)
        memcpy(ids + n, run->prompt.ids, more * sizeof *ids);
    *n_out = n + more;
    return ids;
}

int cli_run_prefill(struct cli_run *run)
{
    struct cli_progress progress;
    struct hre_prefill_options options;
    uint32_t n;
    int code = run->saved.opened ? cli_run_ran(run, run->saved.ids, run->saved.n_ids) : 0;
    run->pending = run->saved.opened ? run->saved.pending : CLI_NO_TOKEN;
    if (code || run->prompt.n_ids == 0)
        return code ? code : go_on(run);
    uint32_t *ids = new_text(run, &n);
    if (!ids)
        return cli_fail("out of memory");
    hre_prefill_options_init(&options);
    options.progress = on_progress;
    options.progress_context = &progress;
    options.settle = 1; /* grouping belongs to the reading, not to the first answer's time */
    cli_progress_begin(&progress, "prefill", "tokens", n);
    hr_status_t status = hre_session_prefill(run->session, ids, n, &options, run->logits);
    run->prefilled = hre_session_length(run->session, 0) - run->saved.n_ids;
    cli_progress_end(&progress, run->prefilled);
    if (status == HR_ERR_CANCELED && cli_stop_signal())
        run->ended = "interrupted";
    else if (status != HR_OK)
        code = cli_fail_engine("prefill", status);
    else
        code = cli_run_ran(run, ids, n);
    free(ids);
    return code;
}

/* ---------------------------------------------------------------------------------------- steps */

static void compare(struct cli_run *run, const float *logits)
{
    size_t n = run->model.info->vocab;
    double kl = cli_kl(run->dense_logits, logits, n);
    run->dense.tokens++;
    run->dense.agreed += cli_argmax(run->dense_logits, n) == cli_argmax(logits, n);
    run->dense.kl_sum += kl;
    run->dense.kl_max = kl > run->dense.kl_max ? kl : run->dense.kl_max;
}

static hr_status_t dense_step(struct cli_run *run, uint32_t id)
{
    struct hre_decode_options options;
    hre_decode_options_init(&options);
    options.mode = HR_ATTEND_EXACT;
    return hre_session_decode(run->session, 1, id, &options, run->dense_logits, NULL);
}

int cli_run_compare(struct cli_run *run, uint32_t id, const float *logits)
{
    hr_status_t status = dense_step(run, id);
    if (status != HR_OK)
        return cli_fail_engine("decode", status);
    compare(run, logits);
    return 0;
}

static void count_deadline(struct cli_deadline *d, const struct hre_step_report *step,
                           uint64_t deadline_ns)
{
    d->over += deadline_ns && step->total_ns > deadline_ns;
    d->largest_ns = step->total_ns > d->largest_ns ? step->total_ns : d->largest_ns;
    d->with_late += step->sum.blocks_late > 0;
}

/* One token through the model: the recipe's sequence, and the dense one beside it. Without
 * compared the comparison is left out. */
static int step(struct cli_run *run, uint32_t id, bool compared)
{
    struct hre_step_report report;
    struct hre_decode_options options;
    hre_decode_options_init(&options);
    options.check_exact = run->options->check_dense;
    options.deadline_ns = (uint64_t)(run->options->deadline_ms * 1e6);
    options.strict_exact = run->options->strict_exact;
    hr_status_t status = hre_session_decode(run->session, 0, id, &options, run->logits, &report);
    if (status == HR_OK && run->dense_logits)
        status = dense_step(run, id);
    if (status != HR_OK)
        return cli_fail_engine("decode", status);
    if (run->tally.steps == 0)
        cli_step_without_prefill(&report);
    cli_tally_add(&run->tally, &report);
    count_deadline(&run->deadline, &report, options.deadline_ns);
    cJSON_AddItemToArray(run->steps, cli_step_json(&report));
    if (run->dense_logits && compared)
        compare(run, run->logits);
    return cli_run_ran(run, &id, 1);
}

/* ------------------------------------------------------------------------------------ free text */

static int emit(struct cli_run *run, struct hre_stream *stream, uint32_t id)
{
    size_t before = run->text.bytes;
    hr_status_t status = id == HRE_TOKEN_NONE ? hre_stream_end(stream, &run->text)
                                              : hre_stream_push(stream, id, &run->text);
    if (status != HR_OK)
        return cli_fail_engine("decode", status);
    if (run->text.bytes == before)
        return 0;
    fwrite(run->text.data + before, 1, run->text.bytes - before, cli_out());
    fflush(cli_out());
    return 0;
}

/* Whether to choose another token; says why not. */
static bool goes_on(struct cli_run *run)
{
    if (cli_stop_signal())
        run->ended = "interrupted";
    else if (run->generated == run->options->tokens)
        run->ended = "tokens";
    else if (run->n_ids + (run->pending != CLI_NO_TOKEN) >= run->tokens_max)
        run->ended = "context";
    return run->ended == NULL;
}

int cli_run_token(struct cli_run *run, struct hre_stream *stream, uint32_t id, bool *again_out)
{
    *again_out = false;
    if (hre_tokenizer_is_end(run->model.tokenizer, id)) {
        run->ended = "end of text";
        return 0;
    }
    run->generated++;
    run->pending = id;
    int code = emit(run, stream, id);
    *again_out = code == 0 && goes_on(run);
    return code;
}

/* One token: chosen, written, and run through the model unless it is the last. */
static int next_token(struct cli_run *run, hre_sampler_t *sampler, struct hre_stream *stream)
{
    uint32_t id;
    bool again;
    hr_status_t status = hre_sampler_next(sampler, run->logits, &id);
    if (status != HR_OK)
        return cli_fail_engine("decode", status);
    int code = cli_run_token(run, stream, id, &again);
    return code || !again ? code : step(run, id, true);
}

static int generate_text(struct cli_run *run)
{
    hre_sampler_t *sampler;
    struct hre_stream stream;
    struct hre_sample_options options;
    int code = 0;
    hre_sample_options_init(&options);
    options.temperature = run->options->temperature;
    options.top_p = run->options->top_p;
    options.seed = run->recipe.seed;
    hr_status_t status = hre_sampler_create(&options, run->model.info->vocab, &sampler);
    if (status != HR_OK)
        return cli_fail_engine("sampling", status);
    hre_stream_init(&stream, run->model.tokenizer, false);
    if (run->speculation.tokens)
        code = cli_run_speculate(run, sampler, &stream);
    while (code == 0 && goes_on(run))
        code = next_token(run, sampler, &stream);
    if (code == 0)
        code = emit(run, &stream, HRE_TOKEN_NONE);
    if (run->text.bytes && run->text.data[run->text.bytes - 1] != '\n')
        fputc('\n', cli_out());
    hre_sampler_destroy(sampler);
    return code;
}

/* ------------------------------------------------------------------------------------ made text */

static int emit_answer(struct cli_run *run, uint32_t key, uint32_t expected, uint32_t got)
{
    struct hre_text name, right, said;
    char line[128];
    const hre_tokenizer_t *tokenizer = run->model.tokenizer;
    if (hre_tokenizer_piece(tokenizer, key, &name) != HR_OK ||
        hre_tokenizer_piece(tokenizer, expected, &right) != HR_OK ||
        hre_tokenizer_piece(tokenizer, got, &said) != HR_OK)
        return cli_fail_engine("answer", HR_ERR_INVALID);
    int n = snprintf(line, sizeof line, "%.*s %.*s", (int)name.bytes, name.data, (int)said.bytes,
                     said.data);
    if (got != expected)
        n += snprintf(line + n, sizeof line - (size_t)n, " (not %.*s)", (int)right.bytes,
                      right.data);
    bool line_ends = run->asked % 8 == 0 || run->asked == run->prompt.n_keys;
    snprintf(line + n, sizeof line - (size_t)n, "%s", line_ends ? "\n" : "   ");
    fputs(line, cli_out());
    fflush(cli_out());
    return hre_bytes_append(&run->text, line, strlen(line)) == HR_OK ? 0
                                                                     : cli_fail("out of memory");
}

static int ask(struct cli_run *run, const uint32_t *question, uint32_t expected)
{
    int code = step(run, question[0], true);
    if (code)
        return code;
    uint32_t got = cli_argmax(run->logits, run->model.info->vocab);
    run->asked++;
    run->generated++;
    run->answered += got == expected;
    code = emit_answer(run, question[0], expected, got);
    /* The true value follows, whatever was said; after the last question nothing needs it. */
    return code || run->asked == run->prompt.n_keys ? code : step(run, question[1], false);
}

static int answer_questions(struct cli_run *run)
{
    const uint32_t *questions = run->prompt.ids + prefill_tokens(run);
    int code = 0;
    for (uint32_t i = 0; i < run->prompt.n_keys && code == 0 && !cli_stop_signal(); i++)
        code = ask(run, questions + 2 * i, run->prompt.answers[i]);
    run->ended = cli_stop_signal() ? "interrupted" : "questions";
    return code;
}

int cli_run_generate(struct cli_run *run)
{
    if (run->ended)
        return 0;
    if (run->options->forks)
        return cli_run_forks(run, generate_text);
    return run->prompt.n_keys ? answer_questions(run) : generate_text(run);
}
