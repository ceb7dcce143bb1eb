#include "cli/eval_trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/out.h"
#include "cli/setup.h"

/* One recipe on its way through one trace. */
struct pass {
    const struct cli_trace_options *options;
    const struct cli_trace *trace;
    const struct cli_trace_truth *truth;
    const float *gates;
    struct cli_trace_item *item;
    hr_runtime_t *runtime;
    hr_sequence_t *sequence;
    float *predicted; /* [n_q_heads] of the newest query */
    uint8_t *refined; /* [n_kv_heads][length] */
};

static int failed(const struct pass *p, hr_status_t status)
{
    char what[CLI_TRACE_RECIPE_MAX + 256];
    snprintf(what, sizeof what, "%s on %s", p->item->used, p->trace->name);
    return cli_fail_status(what, status);
}

/* ----------------------------------------------------------------------------------------- open */

static uint32_t tokens_needed(const struct cli_trace_meta *m)
{
    return m->scored.at[m->scored.n - 1] + 1;
}

/* The device tier holds what it needs: the harness counts bytes, it does not limit them. */
static hr_status_t open_runtime(struct pass *p)
{
    const struct cli_trace_options *o = p->options;
    const struct cli_trace_meta *m = &p->trace->meta;
    uint64_t exact = (uint64_t)m->n_tokens * m->n_kv_heads * m->head_dim * 4;
    struct hr_runtime_options options;
    hr_runtime_options_init(&options);
    options.device_bytes = ((uint64_t)64 << 20) + 4 * exact;
    options.host_bytes = ((uint64_t)64 << 20) + 4 * exact;
    options.n_threads = (uint32_t)o->threads;
    options.cpu_level = o->cpu;
    if (strcmp(o->tier, "file") == 0) {
        options.file_dir = o->file_dir;
        options.file_bytes = options.host_bytes;
        options.host_bytes = o->host_bytes;
    }
    return hr_runtime_create(&options, &p->runtime);
}

static hr_status_t open_sequence(struct pass *p)
{
    const struct cli_trace_meta *m = &p->trace->meta;
    struct hr_sequence_options options;
    struct hr_rope rope = {m->rope_layout, m->n_rot, m->rope_frequencies};
    hr_sequence_options_init(&options);
    options.n_layers = 1;
    options.n_q_heads = m->n_q_heads;
    options.n_kv_heads = m->n_kv_heads;
    options.k_dim = options.v_dim = m->head_dim;
    options.dtype = HR_DTYPE_F16; /* as the trace has them: rows are exact */
    options.scale = (float)m->scale;
    options.rope = m->rope_layout == HR_ROPE_NONE ? NULL : &rope;
    options.tokens_max = tokens_needed(m);
    options.recipe = p->item->used;
    cli_budget_apply(p->options->moved.share[p->item->moved], &options);
    options.tolerance = p->options->tolerance;
    options.seed = p->options->seed;
    options.keep_tokens = 1;
    options.head_gates = p->gates;
    return hr_sequence_create(p->runtime, &options, &p->sequence);
}

static int open_item(struct pass *p)
{
    const struct cli_trace_meta *m = &p->trace->meta;
    struct cli_trace_item *item = p->item;
    size_t steps = (size_t)m->n_q_heads * m->scored.n;
    item->n_q_heads = m->n_q_heads;
    item->n_kv_heads = m->n_kv_heads;
    item->n_queries = m->scored.n;
    item->head_dim = m->head_dim;
    item->error = calloc(steps, sizeof *item->error);
    item->predicted = calloc(steps, sizeof *item->predicted);
    item->recall = calloc(steps, sizeof *item->recall);
    item->out = calloc(steps * m->head_dim, sizeof *item->out);
    p->predicted = calloc(m->n_q_heads, sizeof *p->predicted);
    p->refined = calloc((size_t)m->n_kv_heads * m->n_tokens, 1);
    if (!item->error || !item->predicted || !item->recall || !item->out || !p->predicted ||
        !p->refined)
        return cli_fail("out of memory");
    return 0;
}

void cli_trace_item_fini(struct cli_trace_item *item)
{
    free(item->error);
    free(item->predicted);
    free(item->recall);
    free(item->out);
    item->error = item->predicted = item->recall = item->out = NULL;
}

/* ----------------------------------------------------------------------------------------- steps */

/* A tensor over [heads][n][dim], seen as [tokens][heads][dim] from one token on. */
static struct hr_tensor view(void *data, hr_dtype_t dtype, uint32_t n, uint32_t first,
                             uint32_t tokens, uint32_t heads, uint32_t dim)
{
    char *from = (char *)data + (size_t)first * dim * hr_dtype_bytes(dtype);
    struct hr_tensor t = hr_tensor_make(from, dtype, tokens, heads, dim);
    t.strides[0] = dim;
    t.strides[1] = (int64_t)n * dim;
    t.strides[2] = 1;
    return t;
}

/* Rows up to and with a position. */
static hr_status_t append_to(struct pass *p, uint32_t position)
{
    const struct cli_trace_meta *m = &p->trace->meta;
    uint32_t have = hr_sequence_length(p->sequence, 0);
    if (have > position)
        return HR_OK;
    uint32_t n = position + 1 - have;
    struct hr_tensor k =
        view(p->trace->k, HR_DTYPE_F16, m->n_tokens, have, n, m->n_kv_heads, m->head_dim);
    struct hr_tensor v =
        view(p->trace->v, HR_DTYPE_F16, m->n_tokens, have, n, m->n_kv_heads, m->head_dim);
    return hr_sequence_append(p->sequence, 0, &k, &v, NULL);
}

/* Queries first .. first + n - 1 of those that may be learnt from, at consecutive positions: the
 * method sees them as it sees a prompt's. */
static hr_status_t show_run(struct pass *p, uint32_t first, uint32_t n)
{
    const struct cli_trace_meta *m = &p->trace->meta;
    struct hr_attend_options options;
    hr_status_t status = append_to(p, m->seen.at[first + n - 1]);
    float *unused = malloc((size_t)n * m->n_q_heads * m->head_dim * sizeof *unused);
    if (status == HR_OK && !unused)
        status = HR_ERR_NOMEM;
    if (status == HR_OK) {
        struct hr_tensor q =
            view(p->trace->seen, HR_DTYPE_F32, m->seen.n, first, n, m->n_q_heads, m->head_dim);
        struct hr_tensor out = hr_tensor_make(unused, HR_DTYPE_F32, n, m->n_q_heads, m->head_dim);
        hr_attend_options_init(&options);
        options.mode = HR_ATTEND_EXACT;
        status = hr_sequence_attend(p->sequence, 0, &q, &options, &out, NULL, NULL);
    }
    free(unused);
    return status;
}

/* All that stand before a scored query, or at its place. */
static hr_status_t show_seen(struct pass *p, uint32_t *next, uint32_t position)
{
    const struct cli_positions *seen = &p->trace->meta.seen;
    hr_status_t status = HR_OK;
    while (status == HR_OK && *next < seen->n && seen->at[*next] <= position) {
        uint32_t first = *next, n = 1;
        while (first + n < seen->n && seen->at[first + n] == seen->at[first] + n &&
               seen->at[first + n] <= position)
            n++;
        status = show_run(p, first, n);
        *next += n;
    }
    return status;
}

static double distance(const float *got, const double *truth, uint32_t d)
{
    double far = 0, size = 0;
    for (uint32_t j = 0; j < d; j++) {
        far += (got[j] - truth[j]) * (got[j] - truth[j]);
        size += truth[j] * truth[j];
    }
    return size > 0 ? sqrt(far / size) : far > 0 ? 1 : 0;
}

/* Attention mass of the body's rows: the share that was refined. */
static double recall_of(const struct pass *p, uint32_t query, uint32_t head, uint32_t body_first,
                        uint32_t body_end)
{
    const struct cli_trace_meta *m = &p->trace->meta;
    const float *mass = p->truth->mass + ((size_t)query * m->n_q_heads + head) * m->n_tokens;
    const uint8_t *refined =
        p->refined + (size_t)(head / (m->n_q_heads / m->n_kv_heads)) * (m->scored.at[query] + 1);
    double all = 0, known = 0;
    for (uint32_t i = body_first; i < body_end; i++) {
        all += mass[i];
        known += refined[i] ? mass[i] : 0;
    }
    return all > 0 ? known / all : 1;
}

static void score(struct pass *p, uint32_t query, uint32_t body_first, uint32_t body_end)
{
    struct cli_trace_item *item = p->item;
    uint32_t d = item->head_dim;
    for (uint32_t h = 0; h < item->n_q_heads; h++) {
        size_t at = (size_t)h * item->n_queries + query;
        item->error[at] = (float)distance(item->out + at * d, p->truth->out + at * d, d);
        item->predicted[at] = p->predicted[h];
        item->recall[at] = (float)recall_of(p, query, h, body_first, body_end);
    }
}

static void report_add(struct cli_trace_item *item, const struct hr_attend_report *r, bool first)
{
    enum { STAGE_INDEX = 2 }; /* append, store and index before it belong to the prompt */
    struct hr_attend_report one = *r;
    for (unsigned i = 0; first && i <= STAGE_INDEX; i++)
        one.time_ns[i] = 0;
    hre_report_add(&item->sum, &one);
}

/* Rows of the body, of a kv-head. Recipes that attend everything know no body: theirs is what sink and
 * window of the others leave. */
static uint32_t body_rows(const struct pass *p, const struct hr_attend_report *r)
{
    const struct cli_trace_meta *m = &p->trace->meta;
    uint64_t row_bytes = (uint64_t)m->n_kv_heads * m->head_dim * 4;
    if (r->rows_device > 0)
        return (uint32_t)(r->body_bytes / row_bytes);
    uint32_t end = m->scored.at[0] + 1, near = p->item->sink + p->item->window;
    return end > near ? end - near : 0;
}

static hr_status_t score_query(struct pass *p, uint32_t query)
{
    const struct cli_trace_meta *m = &p->trace->meta;
    struct cli_trace_item *item = p->item;
    struct hr_attend_options options;
    struct hr_attend_report report;
    struct hr_sequence_stats stats = {.struct_size = sizeof stats};
    uint32_t length = m->scored.at[query] + 1;
    struct hr_tensor q =
        view(p->trace->q, HR_DTYPE_F32, m->scored.n, query, 1, m->n_q_heads, m->head_dim);
    struct hr_tensor out =
        view(item->out, HR_DTYPE_F32, m->scored.n, query, 1, m->n_q_heads, m->head_dim);
    hr_attend_options_init(&options);
    options.mode = HR_ATTEND_RECIPE;
    options.predicted_out = p->predicted;
    options.refined_out = p->refined;
    uint64_t begin = cli_now_ns();
    hr_status_t status = hr_sequence_attend(p->sequence, 0, &q, &options, &out, &report, NULL);
    item->attend_ns += cli_now_ns() - begin;
    if (status == HR_OK)
        status = hr_sequence_stats_get(p->sequence, &stats);
    if (status != HR_OK)
        return status;
    uint32_t body = body_rows(p, &report), near = length - body;
    uint32_t body_end = (near < item->sink ? near : item->sink) + body;
    report_add(item, &report, query == 0);
    item->held_bytes += stats.summary_bytes + stats.sketch_bytes;
    item->body_bytes += (uint64_t)body * m->n_kv_heads * m->head_dim * 4;
    item->near_rows_min = query == 0 || near < item->near_rows_min ? near : item->near_rows_min;
    item->near_rows_max = near > item->near_rows_max ? near : item->near_rows_max;
    item->index_ns = stats.index_ns;
    item->host_index_bytes += stats.host_index_bytes;
    score(p, query, body_end - body, body_end);
    return HR_OK;
}

static hr_status_t run(struct pass *p)
{
    const struct cli_trace_meta *m = &p->trace->meta;
    uint32_t next_seen = 0;
    hr_status_t status = m->scored.n > 0 ? hr_sequence_expect(p->sequence, m->scored.at[0]) : HR_OK;
    for (uint32_t i = 0; i < m->scored.n && status == HR_OK && !cli_stop_signal(); i++) {
        status = show_seen(p, &next_seen, m->scored.at[i]);
        if (status == HR_OK)
            status = append_to(p, m->scored.at[i]);
        if (status == HR_OK && i == 0)
            status = hr_sequence_settle(p->sequence, 0);
        if (status == HR_OK)
            status = score_query(p, i);
    }
    p->item->done = status == HR_OK && !cli_stop_signal();
    return status;
}

int cli_trace_item_run(const struct cli_trace_options *o, const struct cli_trace *trace,
                       const struct cli_trace_truth *truth, const float *gates,
                       struct cli_trace_item *item)
{
    struct pass p = {.options = o, .trace = trace, .truth = truth, .gates = gates, .item = item};
    int code = open_item(&p);
    hr_status_t status = HR_OK;
    if (code == 0)
        status = open_runtime(&p);
    if (code == 0 && status == HR_OK)
        status = open_sequence(&p);
    if (code == 0 && status == HR_OK)
        status = run(&p);
    if (status != HR_OK)
        code = failed(&p, status);
    hr_sequence_destroy(p.sequence);
    hr_runtime_destroy(p.runtime);
    free(p.predicted);
    free(p.refined);
    return code;
}
