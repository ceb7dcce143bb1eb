/* Free text by a recipe that drafts: rounds of drafting and verifying (engine/speculate.c). The text is that of dense attention. */
#include <stdlib.h>
#include <string.h>

#include "cli/out.h"
#include "cli/run.h"

static hr_status_t choose(void *context, const float *logits, uint32_t *id_out)
{
    return hre_sampler_next(context, logits, id_out);
}

static void count(struct cli_run *run, const struct hre_step_report *steps,
                  const struct hre_speculation_report *report)
{
    struct cli_speculation *s = &run->speculation;
    s->rounds++;
    s->drafted += report->drafted;
    s->accepted += report->accepted;
    s->draft_ns += report->draft_ns;
    s->verify_ns += report->verify_ns;
    for (uint32_t i = 0; i < report->drafted; i++) {
        cli_tally_add(&run->tally, &steps[i]);
        cJSON_AddItemToArray(run->steps, cli_step_json(&steps[i]));
    }
}

/* Writes what a round gave, as far as it is wanted; what was run beyond that is taken back. */
static int take(struct cli_run *run, struct hre_stream *stream, uint32_t id, const uint32_t *ids,
                uint32_t n, bool *again_out)
{
    uint32_t length = hre_session_length(run->session, 0), ran = id, i = 0;
    size_t vocab = run->model.info->vocab;
    int code = 0;
    *again_out = true;
    for (; i < n && *again_out && code == 0; i++) {
        if (run->dense_logits)
            code = cli_run_compare(run, ran, run->logits + i * vocab);
        if (code == 0)
            code = cli_run_ran(run, &ran, 1);
        if (code == 0)
            code = cli_run_token(run, stream, ids[i], again_out);
        ran = ids[i];
    }
    memmove(run->logits, run->logits + (i - 1) * vocab, vocab * sizeof *run->logits);
    if (code || i == n)
        return code;
    hr_status_t status =
        hre_session_truncate(run->session, 0, length - (n - i), i > 1 ? ids[i - 2] : id);
    return status == HR_OK ? 0 : cli_fail_engine("decode", status);
}

int cli_run_speculate(struct cli_run *run, hre_sampler_t *sampler, struct hre_stream *stream)
{
    uint32_t tokens = run->speculation.tokens, id = 0, n = 0, ids[HRE_DRAFT_TOKENS_MAX + 1];
    struct hre_step_report *steps = calloc(tokens, sizeof *steps);
    struct hre_speculation how = {.struct_size = sizeof how,
                                  .logits = run->logits,
                                  .steps = steps,
                                  .choose = choose,
                                  .choose_context = sampler};
    struct hre_speculation_report report;
    bool again = true;
    int code = steps ? 0 : cli_fail("out of memory");
    bool waits = run->pending != CLI_NO_TOKEN; /* of a session: written when it was saved */
    hr_status_t status = code || waits ? HR_OK : hre_sampler_next(sampler, run->logits, &id);
    if (status != HR_OK)
        code = cli_fail_engine("decode", status);
    if (code == 0 && !waits)
        code = cli_run_token(run, stream, id, &again);
    id = waits ? run->pending : id;
    while (code == 0 && again) {
        uint64_t left = run->options->tokens - run->generated;
        how.draft_tokens = left < tokens ? (uint32_t)left : tokens;
        status = hre_session_speculate(run->session, 0, id, &how, ids, &n, &report);
        if (status != HR_OK) {
            code = cli_fail_engine("decode", status);
            break;
        }
        count(run, steps, &report);
        code = take(run, stream, id, ids, n, &again);
        id = ids[n - 1];
    }
    free(steps);
    return code;
}
