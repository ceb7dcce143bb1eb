#include "engine/session.h"

#include "engine/device.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_DEFAULT     512
#define SCRATCH_ALIGNMENT 64
#define ROW_FLOATS_ALIGN  16

void hre_session_options_init(struct hre_session_options *options)
{
    *options = (struct hre_session_options){.struct_size = sizeof(*options),
                                            .chunk_tokens = CHUNK_DEFAULT};
}

void hre_prefill_options_init(struct hre_prefill_options *options)
{
    *options = (struct hre_prefill_options){.struct_size = sizeof(*options)};
}

void hre_decode_options_init(struct hre_decode_options *options)
{
    *options = (struct hre_decode_options){.struct_size = sizeof(*options), .mode = HR_ATTEND_AUTO};
}

/* --------------------------------------------------------------------------------------- life */

static hr_status_t check_options(const struct hre_model *model,
                                 const struct hre_session_options *options)
{
    if (options->struct_size != sizeof(*options)) {
        return hre_fail(HR_ERR_INVALID, "hre_session_create: options of %zu bytes, %zu expected",
                        options->struct_size, sizeof(*options));
    }
    if (!options->sequences || options->n_sequences == 0) {
        return hre_fail(HR_ERR_INVALID, "hre_session_create: at least one sequence is needed");
    }
    if (options->tokens_max == 0 || options->chunk_tokens == 0) {
        return hre_fail(HR_ERR_INVALID,
                        "hre_session_create: tokens_max and chunk_tokens must be positive");
    }
    for (uint32_t i = 0; i < options->n_sequences; i++) {
        if (!options->sequences[i]) {
            return hre_fail(HR_ERR_INVALID, "hre_session_create: sequence %u is NULL", i);
        }
        for (uint32_t layer = 0; layer < model->info.n_layers; layer++) {
            uint32_t n = hr_sequence_length(options->sequences[i], layer);
            if (options->resume &&
                (n != hr_sequence_length(options->sequences[0], 0) || n > options->tokens_max)) {
                return hre_fail(HR_ERR_STATE,
                                "hre_session_create: sequence %u has %u tokens in layer %u", i, n,
                                layer);
            }
            if (!options->resume && n != 0) {
                return hre_fail(HR_ERR_STATE, "hre_session_create: sequence %u is not empty", i);
            }
            if (model->device && hr_sequence_wants_prefetch(options->sequences[i], layer)) {
                return hre_fail(HR_ERR_UNSUPPORTED,
                                "hre_session_create: recipe %s foresees queries, which a model on "
                                "a GPU does not",
                                hr_sequence_recipe(options->sequences[i]));
            }
        }
    }
    return HR_OK;
}

/* The next floats of the scratch, aligned; NULL while only its size is being added up. */
static float *take(float *base, size_t *used, size_t floats)
{
    float *p = base ? base + *used : NULL;

    *used += (floats + ROW_FLOATS_ALIGN - 1) / ROW_FLOATS_ALIGN * ROW_FLOATS_ALIGN;
    return p;
}

/* Returns the floats used. On a GPU the rows between the layers' attention are there, and those that come from it in its buffer. */
static size_t lay_out(struct hre_session *s, float *base)
{
    const struct hre_model_info *info = &s->model->info;
    const struct hre_device *device = s->model->device;
    size_t rows = s->chunk_tokens, used = 0;

    if (device) {
        s->q = device->host_q;
        s->k = device->host_k;
        s->v = device->host_v;
        s->att = device->host_att;
        return 0;
    }
    s->x = take(base, &used, rows * info->width);
    s->h = take(base, &used, rows * info->width);
    s->q = take(base, &used, rows * info->n_q_heads * info->k_dim);
    s->k = take(base, &used, rows * info->n_kv_heads * info->k_dim);
    s->v = take(base, &used, rows * info->n_kv_heads * info->v_dim);
    s->att = take(base, &used, rows * info->n_q_heads * info->v_dim);
    s->up = take(base, &used, rows * info->ffn_width);
    s->gate = take(base, &used, s->model->layers[0].gate.data ? rows * info->ffn_width : 0);
    s->cosine = take(base, &used, rows * s->model->n_ropes * (info->n_rot / 2));
    s->sine = take(base, &used, rows * s->model->n_ropes * (info->n_rot / 2));
    return used;
}

static hr_status_t allocate(struct hre_session *s, const struct hre_session_options *options)
{
    size_t floats = lay_out(s, NULL);

    s->sequences = calloc(s->n_sequences, sizeof(*s->sequences));
    s->lengths = calloc(s->n_sequences, sizeof(*s->lengths));
    s->last_ids = calloc(s->n_sequences, sizeof(*s->last_ids));
    s->memory = floats ? aligned_alloc(SCRATCH_ALIGNMENT, floats * sizeof(float)) : NULL;
    s->graphs = s->model->device ? calloc(s->n_sequences, sizeof(*s->graphs)) : NULL;
    if (!s->sequences || !s->lengths || !s->last_ids || (floats && !s->memory) ||
        (s->model->device && !s->graphs)) {
        return hre_fail(HR_ERR_NOMEM, "no memory for a session of %u tokens a chunk",
                        s->chunk_tokens);
    }
    s->memory_bytes = floats * sizeof(float);
    s->stats.scratch_bytes = s->memory_bytes;
    lay_out(s, s->memory);
    memcpy(s->sequences, options->sequences, s->n_sequences * sizeof(*s->sequences));
    for (uint32_t i = 0; options->resume && i < s->n_sequences; i++) {
        s->lengths[i] = hr_sequence_length(s->sequences[i], 0);
        s->last_ids[i] = options->last_id;
    }
    return HR_OK;
}

hr_status_t hre_session_create(hre_model_t *model, const struct hre_session_options *options,
                               hre_session_t **session_out)
{
    if (!model || !options || !session_out) {
        return hre_fail(HR_ERR_INVALID,
                        "hre_session_create: model, options and session_out must not be NULL");
    }
    hr_status_t status = check_options(model, options);
    if (status != HR_OK) {
        return status;
    }
    struct hre_session *s = calloc(1, sizeof(*s));
    if (!s) {
        return hre_fail(HR_ERR_NOMEM, "no memory for a session");
    }
    s->model = model;
    s->n_sequences = options->n_sequences;
    s->tokens_max = options->tokens_max;
    s->chunk_tokens =
        options->chunk_tokens < options->tokens_max ? options->chunk_tokens : options->tokens_max;
    if (model->device && model->device->rows_max < s->chunk_tokens) {
        s->chunk_tokens = model->device->rows_max;
    }
    status = allocate(s, options);
    if (status != HR_OK) {
        hre_session_destroy(s);
        return status;
    }
    *session_out = s;
    return HR_OK;
}

void hre_session_destroy(hre_session_t *session)
{
    if (!session) {
        return;
    }
    if (session->model->device) {
        hre_device_session_end(session);
    }
    free(session->logits);
    free(session->memory);
    free(session->last_ids);
    free(session->lengths);
    free(session->sequences);
    free(session);
}

uint32_t hre_session_length(const hre_session_t *session, uint32_t sequence)
{
    return sequence < session->n_sequences ? session->lengths[sequence] : 0;
}

void hre_session_stats(const hre_session_t *session, struct hre_session_stats *stats_out)
{
    *stats_out = session->stats;
}

/* ------------------------------------------------------------------------------------ prefill */

static hr_status_t check_ids(const struct hre_session *s, uint32_t sequence, const uint32_t *ids,
                             uint32_t n)
{
    uint32_t vocab = s->model->info.vocab, length = s->lengths[sequence];

    if (s->broken) {
        return hre_fail(HR_ERR_STATE, "the session failed before; it can only be destroyed");
    }
    if (!ids || n == 0) {
        return hre_fail(HR_ERR_INVALID, "no tokens to run");
    }
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] >= vocab) {
            return hre_fail(HR_ERR_INVALID, "token %u has id %u; the vocabulary has %u", i, ids[i],
                            vocab);
        }
    }
    if (n > s->tokens_max - length) {
        return hre_fail(HR_ERR_FULL, "%u tokens after %u go beyond the session's %u", n, length,
                        s->tokens_max);
    }
    return HR_OK;
}

hr_status_t hre_logits(struct hre_session *s, uint32_t first, uint32_t n, float *out)
{
    struct hre_product product = {&s->model->output, out};

    if (s->model->device) {
        return hre_device_logits(s, first, n, out);
    }
    hre_linear_apply(s->model->linear, s->h + (size_t)first * s->model->info.width, n, &product, 1);
    return HR_OK;
}

/* Logits of the rows that the pass left, handed out group by group. */
static hr_status_t emit_logits(struct hre_session *s, const struct hre_prefill_options *options,
                               uint32_t first, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += HRE_LOGIT_ROWS) {
        uint32_t count = n - i < HRE_LOGIT_ROWS ? n - i : HRE_LOGIT_ROWS;
        hr_status_t status = hre_logits(s, i, count, s->logits);

        if (status != HR_OK) {
            return status;
        }
        options->all_logits(options->all_logits_context, first + i, count, s->logits);
    }
    return HR_OK;
}

static void advance(struct hre_session *s, const struct hre_pass *pass)
{
    for (uint32_t i = 0; i < pass->n_sequences; i++) {
        s->lengths[pass->first_sequence + i] += pass->n;
        s->last_ids[pass->first_sequence + i] = pass->ids[pass->n - 1];
    }
}

/* One chunk; last says that it ends the prompt. */
static hr_status_t prefill_chunk(struct hre_session *s, const uint32_t *ids, uint32_t n, int last,
                                 const struct hre_prefill_options *options, float *logits_last_out)
{
    uint32_t first = s->lengths[0];
    struct hre_pass pass = {.ids = ids, .n = n, .n_sequences = s->n_sequences};

    hr_attend_options_init(&pass.attend);
    pass.attend.mode = HR_ATTEND_EXACT;
    pass.watch = options->rows ? options : NULL;
    pass.rows_needed = options->all_logits || options->rows ? n : last && logits_last_out ? 1 : 0;
    hr_status_t status = hre_forward(s, &pass);
    s->stats.prefill_append_ns += pass.times.append_ns;
    s->stats.prefill_attend_ns += pass.times.attend_ns;
    if (status != HR_OK) {
        return status;
    }
    advance(s, &pass);
    if (options->all_logits) {
        status = emit_logits(s, options, first, n);
    }
    if (status == HR_OK && last && logits_last_out) {
        status = hre_logits(s, pass.rows_needed - 1, 1, logits_last_out);
    }
    hre_workers_rest(s->model->workers);
    return status;
}

static hr_status_t settle(struct hre_session *s)
{
    uint64_t begin = hre_now_ns();

    for (uint32_t i = 0; i < s->n_sequences; i++) {
        for (uint32_t layer = 0; layer < s->model->info.n_layers; layer++) {
            hr_status_t status = hr_sequence_settle(s->sequences[i], layer);

            if (status != HR_OK) {
                return hre_fail_library(status, "indexing the prompt");
            }
        }
    }
    s->stats.prefill_settle_ns += hre_now_ns() - begin;
    return HR_OK;
}

static hr_status_t expect_end(struct hre_session *s, uint32_t n)
{
    for (uint32_t i = 0; i < s->n_sequences; i++) {
        hr_status_t status = hr_sequence_expect(s->sequences[i], s->lengths[i] + n);

        if (status != HR_OK) {
            return hre_fail_library(status, "before the prompt");
        }
    }
    return HR_OK;
}

static hr_status_t prefill_chunks(struct hre_session *s, const uint32_t *ids, uint32_t n,
                                  const struct hre_prefill_options *options, float *logits_last_out)
{
    hr_status_t expected = expect_end(s, n);

    if (expected != HR_OK) {
        return expected;
    }
    for (uint32_t done = 0; done < n;) {
        uint32_t count = n - done < s->chunk_tokens ? n - done : s->chunk_tokens;
        hr_status_t status =
            prefill_chunk(s, ids + done, count, done + count == n, options, logits_last_out);

        if (status != HR_OK) {
            return status;
        }
        done += count;
        if (options->progress && options->progress(options->progress_context, done, n)) {
            return hre_fail(HR_ERR_CANCELED, "prefill canceled after %u of %u tokens", done, n);
        }
    }
    return options->settle ? settle(s) : HR_OK;
}

static hr_status_t prepare_prefill(struct hre_session *s, const uint32_t *ids, uint32_t n,
                                   const struct hre_prefill_options *options)
{
    if (options->struct_size != sizeof(*options)) {
        return hre_fail(HR_ERR_INVALID, "hre_session_prefill: options of %zu bytes, %zu expected",
                        options->struct_size, sizeof(*options));
    }
    for (uint32_t i = 1; i < s->n_sequences; i++) {
        if (s->lengths[i] != s->lengths[0]) {
            return hre_fail(HR_ERR_STATE,
                            "sequences 0 and %u hold %u and %u tokens; prefill needs them equal", i,
                            s->lengths[0], s->lengths[i]);
        }
    }
    if (options->all_logits && !s->logits) {
        size_t bytes = (size_t)HRE_LOGIT_ROWS * s->model->info.vocab * sizeof(float);

        s->logits = malloc(bytes);
        if (!s->logits) {
            return hre_fail(HR_ERR_NOMEM, "no memory for %zu bytes of logits", bytes);
        }
        s->stats.scratch_bytes += bytes;
    }
    return check_ids(s, 0, ids, n);
}

hr_status_t hre_session_prefill(hre_session_t *session, const uint32_t *ids, uint32_t n,
                                const struct hre_prefill_options *options, float *logits_last_out)
{
    struct hre_prefill_options defaults;
    uint64_t begin = hre_now_ns();

    if (!options) {
        hre_prefill_options_init(&defaults);
        options = &defaults;
    }
    hr_status_t status = prepare_prefill(session, ids, n, options);
    if (status != HR_OK) {
        return status;
    }
    struct hre_session_stats *stats = &session->stats;
    uint64_t other = stats->prefill_append_ns + stats->prefill_attend_ns + stats->prefill_settle_ns;
    status = prefill_chunks(session, ids, n, options, logits_last_out);
    session->broken = status != HR_OK;
    uint64_t total = hre_now_ns() - begin;
    stats->prefill_tokens += n;
    stats->prefill_ns += total;
    other = stats->prefill_append_ns + stats->prefill_attend_ns + stats->prefill_settle_ns - other;
    stats->prefill_linear_ns += total > other ? total - other : 0;
    return status;
}

/* ------------------------------------------------------------------------------------- decode */

static void finish_report(const struct hre_session *s, const struct hre_pass *pass, int checked,
                          uint64_t total_ns, struct hre_step_report *report)
{
    uint32_t n = s->model->info.n_layers;

    report->n_layers = n;
    report->sum.predicted_error /= n;
    report->sum.late_error /= n;
    report->sum.true_error = checked ? report->sum.true_error / n : -1.0;
    report->sum.true_error_max = checked ? report->sum.true_error_max : -1.0;
    report->total_ns = total_ns;
    report->append_ns = pass->times.append_ns;
    report->attend_ns = pass->times.attend_ns;
    report->linear_ns = total_ns - report->append_ns - report->attend_ns;
}

static hr_status_t prepare_decode(struct hre_session *s, uint32_t sequence, const uint32_t *id,
                                  const struct hre_decode_options *options)
{
    if (options->struct_size != sizeof(*options)) {
        return hre_fail(HR_ERR_INVALID, "hre_session_decode: options of %zu bytes, %zu expected",
                        options->struct_size, sizeof(*options));
    }
    if (sequence >= s->n_sequences) {
        return hre_fail(HR_ERR_INVALID, "sequence %u; the session has %u", sequence,
                        s->n_sequences);
    }
    return check_ids(s, sequence, id, 1);
}

hr_status_t hre_session_decode(hre_session_t *session, uint32_t sequence, uint32_t id,
                               const struct hre_decode_options *options, float *logits_out,
                               struct hre_step_report *report_out)
{
    struct hre_decode_options defaults;
    struct hre_step_report report = {.n_layers = 0};
    uint64_t begin = hre_now_ns();

    if (!options) {
        hre_decode_options_init(&defaults);
        options = &defaults;
    }
    hr_status_t status = prepare_decode(session, sequence, &id, options);
    if (status != HR_OK) {
        return status;
    }
    struct hre_pass pass = {
        .ids = &id, .n = 1, .first_sequence = sequence, .n_sequences = 1, .rows_needed = 1};
    hr_attend_options_init(&pass.attend);
    pass.attend.mode = options->mode;
    pass.attend.check_exact = options->check_exact;
    pass.attend.strict_exact = options->strict_exact;
    pass.begin_ns = begin;
    pass.attend.refined_out = options->on_refined ? options->refined_memory : NULL;
    pass.decode = options;
    pass.sum = &report.sum;
    status = hre_forward(session, &pass);
    if (status != HR_OK) {
        session->broken = 1;
        return status;
    }
    advance(session, &pass);
    status = logits_out ? hre_logits(session, 0, 1, logits_out) : HR_OK;
    hre_workers_rest(session->model->workers);
    if (status != HR_OK) {
        session->broken = 1;
        return status;
    }
    finish_report(session, &pass, options->check_exact, hre_now_ns() - begin, &report);
    session->stats.decode_tokens++;
    session->stats.decode_ns += report.total_ns;
    session->stats.decode_linear_ns += report.linear_ns;
    session->stats.decode_append_ns += report.append_ns;
    session->stats.decode_attend_ns += report.attend_ns;
    if (report_out) {
        *report_out = report;
    }
    return HR_OK;
}
