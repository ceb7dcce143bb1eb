/* Speculative decoding over one sequence: a cheap recipe drafts, exact attention verifies, what was refused is truncated (TriForce,
 * arXiv 2404.11912, section 4; the sampling rule here is simpler: the caller's choice from the exact logits is the token, so that the
 * text is the one that exact decoding gives, up to rounding, whatever the draft says). */
#include <string.h>

#include "engine/sample.h"
#include "engine/session.h"

hr_status_t hre_session_truncate(hre_session_t *s, uint32_t sequence, uint32_t n_tokens,
                                 uint32_t last_id)
{
    if (sequence >= s->n_sequences || n_tokens > s->lengths[sequence]) {
        return hre_fail(HR_ERR_INVALID, "hre_session_truncate: sequence %u to %u tokens", sequence,
                        n_tokens);
    }
    hr_status_t status = hr_sequence_truncate(s->sequences[sequence], n_tokens);
    if (status != HR_OK) {
        return hre_fail_library(status, "taking tokens back");
    }
    s->lengths[sequence] = n_tokens;
    s->last_ids[sequence] = last_id;
    return HR_OK;
}

static hr_status_t check(const struct hre_session *s, uint32_t sequence, uint32_t id,
                         const struct hre_speculation *how)
{
    if (s->broken) {
        return hre_fail(HR_ERR_STATE, "the session failed before; it can only be destroyed");
    }
    if (!how || how->struct_size != sizeof *how || !how->logits || !how->choose) {
        return hre_fail(HR_ERR_INVALID, "hre_session_speculate: options of another size, or no "
                                        "logits, or nobody to choose");
    }
    if (sequence >= s->n_sequences || id >= s->model->info.vocab) {
        return hre_fail(HR_ERR_INVALID, "hre_session_speculate: sequence %u, token %u", sequence,
                        id);
    }
    if (how->draft_tokens >= s->chunk_tokens) {
        return hre_fail(HR_ERR_INVALID,
                        "%u draft tokens; chunks of the session have %u, one more is needed",
                        how->draft_tokens, s->chunk_tokens);
    }
    if (s->lengths[sequence] >= s->tokens_max) {
        return hre_fail(HR_ERR_FULL, "the session's %u tokens are used up", s->tokens_max);
    }
    return HR_OK;
}

/* ids[1..n]: what the recipe would write after ids[0]; the sequence is as before afterwards. */
static hr_status_t draft(struct hre_session *s, uint32_t sequence, uint32_t *ids, uint32_t n,
                         const struct hre_speculation *how, struct hre_speculation_report *report)
{
    uint32_t before = s->lengths[sequence], last = s->last_ids[sequence];
    hr_status_t status = HR_OK;
    for (uint32_t i = 0; i < n && status == HR_OK; i++) {
        struct hre_step_report *step = how->steps ? &how->steps[i] : NULL;
        status = hre_session_decode(s, sequence, ids[i], NULL, how->logits, step);
        if (status == HR_OK) {
            status = hre_sample_greedy(how->logits, s->model->info.vocab, &ids[i + 1]);
        }
        report->draft_ns += step ? step->total_ns : 0;
    }
    if (n == 0 || status != HR_OK) {
        return status;
    }
    s->stats.decode_tokens -= n; /* they are no part of the text */
    report->drafted = n;
    return hre_session_truncate(s, sequence, before, last);
}

/* logits [n][vocab] of exact attention after each of ids[n]. */
static hr_status_t verify(struct hre_session *s, uint32_t sequence, const uint32_t *ids, uint32_t n,
                          float *logits)
{
    struct hre_pass pass = {
        .ids = ids, .n = n, .first_sequence = sequence, .n_sequences = 1, .rows_needed = n};
    hr_attend_options_init(&pass.attend);
    pass.attend.mode = HR_ATTEND_EXACT;
    hr_status_t status = hre_forward(s, &pass);
    if (status != HR_OK) {
        return status;
    }
    status = hre_logits(s, 0, n, logits);
    hre_workers_rest(s->model->workers);
    if (status != HR_OK) {
        return status;
    }
    s->stats.decode_append_ns += pass.times.append_ns;
    s->stats.decode_attend_ns += pass.times.attend_ns;
    s->lengths[sequence] += n;
    s->last_ids[sequence] = ids[n - 1];
    return HR_OK;
}

/* Chooses after each verified token until a choice is not what was drafted. */
static hr_status_t accept(const struct hre_session *s, const uint32_t *ids, uint32_t drafted,
                          const struct hre_speculation *how, uint32_t *chosen_out, uint32_t *n_out)
{
    size_t vocab = s->model->info.vocab;
    for (uint32_t i = 0; i <= drafted; i++) {
        hr_status_t status =
            how->choose(how->choose_context, how->logits + i * vocab, &chosen_out[i]);
        if (status != HR_OK) {
            return status;
        }
        *n_out = i + 1;
        if (i == drafted || chosen_out[i] != ids[i + 1]) {
            break;
        }
    }
    return HR_OK;
}

hr_status_t hre_session_speculate(hre_session_t *s, uint32_t sequence, uint32_t id,
                                  const struct hre_speculation *how, uint32_t *ids_out,
                                  uint32_t *n_out, struct hre_speculation_report *report_out)
{
    struct hre_speculation_report report = {0};
    uint32_t ids[HRE_DRAFT_TOKENS_MAX + 1] = {id}, n = 0;
    uint64_t begin = hre_now_ns();
    hr_status_t status = check(s, sequence, id, how);
    if (status != HR_OK) {
        return status;
    }
    uint32_t before = s->lengths[sequence], room = s->tokens_max - before - 1;
    uint32_t tokens =
        how->draft_tokens < HRE_DRAFT_TOKENS_MAX ? how->draft_tokens : HRE_DRAFT_TOKENS_MAX;
    tokens = tokens < room ? tokens : room;
    status = draft(s, sequence, ids, tokens, how, &report);
    uint64_t drafted_at = hre_now_ns();
    if (status == HR_OK) {
        status = verify(s, sequence, ids, tokens + 1, how->logits);
    }
    report.verify_ns = hre_now_ns() - drafted_at;
    if (status == HR_OK) {
        status = accept(s, ids, tokens, how, ids_out, &n);
    }
    if (status == HR_OK && n <= tokens) {
        status = hre_session_truncate(s, sequence, before + n, ids[n - 1]);
    }
    if (status != HR_OK) {
        s->broken = 1;
        return status;
    }
    s->stats.decode_tokens += n;
    s->stats.decode_ns += report.verify_ns;
    report.accepted = n - 1;
    report.total_ns = hre_now_ns() - begin;
    *n_out = n;
    if (report_out) {
        *report_out = report;
    }
    return HR_OK;
}
