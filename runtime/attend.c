/* Attention calls of the public API, and exact attention over streamed rows (many queries, or one). */
#include "runtime/device_part.h"
#include "runtime/device_rows.h"

#include "base/clock.h"
#include "base/error.h"
#include <float.h>
#include <math.h>
#include <string.h>

#define MERGED_BYTES    (256u << 10)
#define MERGED_ROWS_MAX 256u

/* -- exact attention: many queries -- */

struct exact {
    hr_sequence_t *s;
    struct hri_layer *layer;
    const float *q; /* [n_kv][vectors][dk] */
    uint32_t nq, position, vectors;
    uint32_t groups; /* tasks per kv-head: groups of query vectors, or of tiles for few vectors */
    struct hri_partial *parts;   /* few vectors: [n_kv][groups], each of `vectors`; else [n_kv] */
    unsigned char *tile_scratch; /* per worker: the kernel's, then rows of several pages */
    size_t tile_scratch_bytes, kernel_scratch_bytes;
    uint32_t merged_rows; /* rows of a tile at the most */
    const struct hri_tiles *tiles;
};

static struct hri_partial partial_at(const struct hri_partial *p, uint32_t first, uint32_t dv)
{
    return (struct hri_partial){
        .m = p->m + first, .l = p->l + first, .o = p->o + (size_t)first * dv};
}

/* Which rows of a tile each query vector sees; false if none sees any. */
static bool ranges_fill(const struct exact *e, uint32_t v0, uint32_t nv, uint32_t token,
                        uint32_t rows, uint32_t *first, uint32_t *last)
{
    bool any = false;
    for (uint32_t v = 0; v < nv; v++) {
        uint32_t p = e->position + (v0 + v) / e->s->g;
        uint32_t low =
            e->layer->sliding != 0 && p + 1 > e->layer->sliding ? p + 1 - e->layer->sliding : 0;
        uint32_t end = p + 1 > token ? p + 1 - token : 0;
        last[v] = end < rows ? end : rows;
        first[v] = low > token ? low - token : 0;
        if (first[v] >= last[v]) {
            first[v] = last[v] = 0;
        }
        any |= first[v] < last[v];
    }
    return any;
}

/* As many pages as keep what the kernel makes of them in the second-level cache. */
static uint32_t rows_merged(const hr_sequence_t *s)
{
    uint32_t rows = MERGED_BYTES / ((s->dk + s->dv) * (uint32_t)sizeof(float));
    rows = rows / HRI_LOG_ROWS * HRI_LOG_ROWS;
    return rows < HRI_LOG_ROWS ? HRI_LOG_ROWS : rows > MERGED_ROWS_MAX ? MERGED_ROWS_MAX : rows;
}

/* Rows of a head from page *i on, *i then behind them: one page where it lies, or several copied one behind the other. A product of 64 rows
 * loses a tenth of its time to its beginning and end. */
static struct hri_rows pages_take(const struct exact *e, uint32_t head, uint32_t *i,
                                  unsigned char *copy)
{
    const hr_sequence_t *s = e->s;
    const struct hri_tiles *t = e->tiles;
    struct hri_rows rows = {.base = t->base[*i * s->n_kv + head],
                            .stride_bytes = s->row_bytes,
                            .n = t->rows[*i],
                            .dtype = s->dtype};
    uint32_t begin = t->token[*i];
    for (++*i;
         *i < t->n && t->token[*i] == begin + rows.n && rows.n + t->rows[*i] <= e->merged_rows;
         ++*i) {
        if (rows.base != copy) {
            memcpy(copy, rows.base, rows.n * s->row_bytes);
            rows.base = copy;
        }
        memcpy(copy + rows.n * s->row_bytes, t->base[*i * s->n_kv + head],
               t->rows[*i] * s->row_bytes);
        rows.n += t->rows[*i];
    }
    return rows;
}

static void tile_task(void *context, unsigned task, unsigned worker)
{
    const struct exact *e = context;
    hr_sequence_t *s = e->s;
    uint32_t head = task / e->groups, v0 = task % e->groups * HRI_TILE_QUERIES;
    uint32_t nv = e->vectors - v0 < HRI_TILE_QUERIES ? e->vectors - v0 : HRI_TILE_QUERIES;
    uint32_t first[HRI_TILE_QUERIES], last[HRI_TILE_QUERIES];
    struct hri_partial part = partial_at(&e->parts[head], v0, s->dv);
    const float *q = e->q + ((size_t)head * e->vectors + v0) * s->dk;
    unsigned char *scratch = e->tile_scratch + worker * e->tile_scratch_bytes;
    for (uint32_t i = 0; i < e->tiles->n;) {
        uint32_t token = e->tiles->token[i];
        if (!ranges_fill(e, v0, nv, token, e->tiles->rows[i], first, last)) {
            i++;
            continue;
        }
        struct hri_rows rows = pages_take(e, head, &i, scratch + e->kernel_scratch_bytes);
        (void)ranges_fill(e, v0, nv, token, rows.n, first, last);
        s->runtime->kernels->attend_tile(q, nv, s->dk, s->dv, rows, first, last, s->soft_cap,
                                         scratch, &part);
    }
}

/* One query token over the tiles [begin, end) of a head. A call for each page would take up to 1.6 times as long: nothing asks for the next
 * page's rows then. */
static void pages_attend(const hr_sequence_t *s, const struct hri_tiles *t, uint32_t head,
                         uint32_t begin, uint32_t end, const float *q, struct hri_partial *part)
{
    struct hri_rows runs[HRI_STREAM_PAGES];
    for (uint32_t n, first = begin; first < end; first += n) {
        n = end - first < HRI_STREAM_PAGES ? end - first : HRI_STREAM_PAGES;
        for (uint32_t i = 0; i < n; i++) {
            runs[i] = (struct hri_rows){.base = t->base[(first + i) * s->n_kv + head],
                                        .stride_bytes = s->row_bytes,
                                        .n = t->rows[first + i],
                                        .dtype = s->dtype};
        }
        s->runtime->kernels->attend_runs(q, s->g, s->dk, s->dv, runs, n, s->soft_cap, part);
    }
}

/* One query token: every row streamed is visible; tiles are dealt out to the workers, whose partials are merged at the end. */
static void rows_task(void *context, unsigned task, unsigned worker)
{
    (void)worker;
    const struct exact *e = context;
    hr_sequence_t *s = e->s;
    uint32_t head = task / e->groups, group = task % e->groups;
    struct hri_partial *part = &e->parts[task];
    const float *q = e->q + (size_t)head * s->g * s->dk;
    uint64_t begin, end;
    hri_split(e->tiles->n, e->groups, group, &begin, &end);
    pages_attend(s, e->tiles, head, (uint32_t)begin, (uint32_t)end, q, part);
}

static void exact_visit(void *context, const struct hri_tiles *tiles)
{
    struct exact *e = context;
    e->tiles = tiles;
    hri_pool_run(e->s->runtime->pool, e->nq == 1 ? rows_task : tile_task, e,
                 e->s->n_kv * e->groups);
}

static void partials_lay(struct hri_partial *parts, uint32_t n, uint32_t vectors, uint32_t dv,
                         float *memory)
{
    for (uint32_t i = 0; i < n; i++) {
        parts[i].m = memory;
        parts[i].l = memory + vectors;
        parts[i].o = memory + 2 * (size_t)vectors;
        memory += (size_t)vectors * (dv + 2);
        hri_partial_clear(&parts[i], vectors, dv);
    }
}

/* What a GPU attends of a query's rows: [first, end). */
struct there {
    uint32_t end;
    const float *out, *lse; /* [n_kv][G][dv], [n_kv][G], or NULL: nothing */
};

/* One query token: the GPU and the host attend what each of them has, at the same time. */
static hr_status_t one_attend(struct exact *e, uint32_t first, uint32_t end, struct there *there,
                              struct hr_attend_report *report)
{
    hr_sequence_t *s = e->s;
    uint32_t split = first;
    hr_status_t status = HR_OK;
    bool asked = hri_held_begin(s, e->layer, e->q, first, end, report, &split);
    if (split < end) {
        status = hri_stream_heads(s, e->layer, split, end, NULL, HRI_STREAM_PAGES, exact_visit, e,
                                  report);
    }
    if (!asked) {
        return status;
    }
    char message[HRI_ERROR_BYTES_MAX];
    hri_error_get(message, sizeof message); /* of the host's part */
    if (hri_held_end(s, e->layer, &there->out, &there->lse) == HR_OK) {
        there->end = split;
        return status == HR_OK ? HR_OK : hri_error_set(status, "%s", message);
    }
    return status == HR_OK ? hri_stream_heads(s, e->layer, first, split, NULL, HRI_STREAM_PAGES,
                                              exact_visit, e, report)
                           : hri_error_set(status, "%s", message);
}

hr_status_t hri_attend_exact(hr_sequence_t *s, struct hri_layer *layer, const float *q, uint32_t nq,
                             uint32_t position, float *out, struct hr_attend_report *report)
{
    struct hr_runtime *rt = s->runtime;
    struct exact e = {
        .s = s, .layer = layer, .q = q, .nq = nq, .position = position, .vectors = nq * s->g};
    e.groups = nq == 1 ? (2 * rt->n_workers + s->n_kv - 1) / s->n_kv
                       : (e.vectors + HRI_TILE_QUERIES - 1) / HRI_TILE_QUERIES;
    uint32_t n_parts = nq == 1 ? s->n_kv * e.groups : s->n_kv;
    e.merged_rows = rows_merged(s);
    e.kernel_scratch_bytes =
        hri_round_up(hri_tile_scratch_bytes(HRI_TILE_QUERIES, s->dk, s->dv, e.merged_rows), 64);
    e.tile_scratch_bytes =
        e.kernel_scratch_bytes + hri_round_up((size_t)e.merged_rows * s->row_bytes, 64);
    size_t parts_bytes = hri_round_up(n_parts * sizeof(struct hri_partial), 64);
    size_t state_bytes =
        hri_round_up((size_t)n_parts * e.vectors * (s->dv + 2) * sizeof(float), 64);
    unsigned char *memory = hri_scratch_get(&rt->tiles, parts_bytes + state_bytes +
                                                            rt->n_workers * e.tile_scratch_bytes);
    if (memory == NULL) {
        return hri_alloc_status();
    }
    e.parts = (struct hri_partial *)(void *)memory;
    e.tile_scratch = memory + parts_bytes + state_bytes;
    partials_lay(e.parts, n_parts, e.vectors, s->dv, (float *)(void *)(memory + parts_bytes));

    uint32_t first =
        layer->sliding != 0 && position + 1 > layer->sliding ? position + 1 - layer->sliding : 0;
    uint32_t end = position + nq;
    struct there there = {.end = first};
    hr_status_t status = nq == 1 ? one_attend(&e, first, end, &there, report)
                                 : hri_stream_rows(s, layer, first, end, exact_visit, &e, report);
    if (status != HR_OK) {
        return status;
    }
    uint32_t per_head = nq == 1 ? e.groups : 1;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        struct hri_partial *part = &e.parts[h * per_head];
        for (uint32_t i = 1; i < per_head; i++) {
            hri_partial_merge(part, part + i, e.vectors, s->dv);
        }
        if (there.out != NULL) {
            hri_partial_add(part, s->g, s->dv, there.lse + (size_t)h * s->g,
                            there.out + (size_t)h * s->g * s->dv);
        }
        hri_partial_finish(part, e.vectors, s->dv, out + (size_t)h * e.vectors * s->dv, NULL);
    }
    report->rows_device += (uint64_t)(there.end - first) * s->n_kv;
    report->rows_by_level[3] += (uint64_t)(end - first) * s->n_kv;
    report->bytes_by_level[3] += (uint64_t)(end - first) * s->n_kv * s->row_bytes;
    return HR_OK;
}

/* -- logits of the whole body, for selectors that are oracles -- */

struct scores {
    hr_sequence_t *s;
    struct hri_layer *layer;
    const struct hri_tiles *tiles;
};

static void score_task(void *context, unsigned head, unsigned worker)
{
    (void)worker;
    const struct scores *c = context;
    hr_sequence_t *s = c->s;
    float *out = s->row_scores + (size_t)head * s->g * s->tokens_max;
    for (uint32_t i = 0; i < c->tiles->n; i++) {
        struct hri_rows rows = {.base = c->tiles->base[i * s->n_kv + head],
                                .stride_bytes = s->row_bytes,
                                .n = c->tiles->rows[i],
                                .dtype = s->dtype};
        s->runtime->kernels->score_rows(s->steps[head].q, s->g, s->dk, rows, s->soft_cap,
                                        out + (c->tiles->token[i] - s->n_sink), s->tokens_max);
    }
}

static void score_visit(void *context, const struct hri_tiles *tiles)
{
    struct scores *c = context;
    c->tiles = tiles;
    hri_pool_run(c->s->runtime->pool, score_task, c, c->s->n_kv);
}

hr_status_t hri_score_body(hr_sequence_t *s, struct hri_layer *layer)
{
    struct scores c = {.s = s, .layer = layer};
    struct hr_attend_report unseen = {
        0}; /* an oracle's reading is not what it would move; only the selection counts */
    return hri_stream_heads(s, layer, s->n_sink, layer->body_end, NULL, HRI_STREAM_PAGES,
                            score_visit, &c, &unseen);
}

/* -- the whole body for some heads of a step -- */

struct body {
    hr_sequence_t *s;
    const uint8_t *only;
    const struct hri_tiles *tiles;
};

static void body_task(void *context, unsigned head, unsigned worker)
{
    (void)worker;
    const struct body *c = context;
    hr_sequence_t *s = c->s;
    struct hri_head_step *hs = &s->steps[head];
    struct hri_partial *part = s->recipe.selector->attends_in_place ? &hs->far : &hs->part;
    if (!c->only[head]) {
        return;
    }
    pages_attend(s, c->tiles, head, 0, c->tiles->n, hs->q, part);
    for (uint32_t i = 0; i < c->tiles->n; i++) {
        hs->refined_rows += c->tiles->rows[i];
    }
}

static void body_visit(void *context, const struct hri_tiles *tiles)
{
    struct body *c = context;
    c->tiles = tiles;
    hri_pool_run(c->s->runtime->pool, body_task, c, c->s->n_kv);
}

hr_status_t hri_attend_body(hr_sequence_t *s, struct hri_layer *layer, const uint8_t *only,
                            struct hr_attend_report *report)
{
    struct body c = {.s = s, .only = only};
    return hri_stream_heads(s, layer, s->n_sink, layer->body_end, only, HRI_STREAM_PAGES,
                            body_visit, &c, report);
}

/* -- the public calls -- */

void hr_attend_options_init(struct hr_attend_options *options)
{
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
}

static void outputs_store(hr_sequence_t *s, const float *src, uint32_t nq, struct hr_tensor *out,
                          uint32_t token)
{
    for (uint32_t i = 0; i < nq; i++) {
        for (uint32_t h = 0; h < s->n_q; h++) {
            hri_out_store(s, out, token + i, h,
                          src + (((size_t)(h / s->g) * nq + i) * s->g + h % s->g) * s->dv);
        }
    }
}

/* qf [n_kv][n][G][k_dim] as loaded, of the tokens from position on. */
static void queries_show(hr_sequence_t *s, struct hri_layer *l, const float *qf, uint32_t n,
                         uint32_t position)
{
    for (uint32_t h = 0; l->heads != NULL && h < s->n_kv; h++) {
        hri_index_observe(l->heads[h], qf + (size_t)h * n * s->g * s->dk, n, position);
    }
}

static hr_status_t exact_pass(hr_sequence_t *s, struct hri_layer *l, const struct hr_tensor *q,
                              struct hr_tensor *out, uint32_t first, uint32_t n, uint32_t position,
                              struct hr_attend_report *report)
{
    size_t vectors = (size_t)n * s->n_q;
    float *qf = hri_scratch_get(&s->runtime->queries, vectors * (s->dk + s->dv) * sizeof(float));
    if (qf == NULL) {
        return hri_alloc_status();
    }
    float *of = qf + vectors * s->dk;
    hr_status_t status = hri_queries_load(s, l, q, first, n, position, qf);
    if (status == HR_OK) {
        status = hri_attend_exact(s, l, qf, n, position, of, report);
    }
    if (status != HR_OK) {
        return status;
    }
    queries_show(s, l, qf, n, position);
    outputs_store(s, of, n, out, first);
    return HR_OK;
}

static hr_status_t exact_many(hr_sequence_t *s, struct hri_layer *l, const struct hr_tensor *q,
                              struct hr_tensor *out, uint32_t nq, struct hr_attend_report *report)
{
    uint64_t t0 = hri_now_ns();
    for (uint32_t i = 0; i < nq; i += HRI_QUERY_TOKENS_MAX) {
        uint32_t n = nq - i < HRI_QUERY_TOKENS_MAX ? nq - i : HRI_QUERY_TOKENS_MAX;
        hr_status_t status = exact_pass(s, l, q, out, i, n, l->n_tokens - nq + i, report);
        if (status == HR_OK && i + n < nq && hri_canceled(s)) {
            status = hri_error_set(HR_ERR_CANCELED, "attending: canceled");
        }
        if (status != HR_OK) {
            return status;
        }
    }
    if (nq != 1) {
        hri_held_follow(s, l);
    }
    report->time_ns[HRI_ATTEND] += hri_now_ns() - t0;
    return l->exact ? HR_OK : hri_settle(s, l, s->segment, false);
}

/* Relative distance of two outputs, per query head: mean and largest. */
static void error_compare(const hr_sequence_t *s, const float *got, const float *exact,
                          struct hr_attend_report *report)
{
    double sum = 0.0, largest = 0.0;
    for (uint32_t h = 0; h < s->n_q; h++) {
        double diff = 0.0, norm = 0.0;
        for (uint32_t j = 0; j < s->dv; j++) {
            double a = got[(size_t)h * s->dv + j], b = exact[(size_t)h * s->dv + j];
            diff += (a - b) * (a - b);
            norm += b * b;
        }
        double error = norm > 0.0 ? sqrt(diff / norm) : diff > 0.0 ? 1.0 : 0.0;
        sum += error;
        largest = error > largest ? error : largest;
    }
    report->true_error = sum / s->n_q;
    report->true_error_max = largest;
}

/* -- what a caller may ask of the last query -- */

static void refined_mark(const hr_sequence_t *s, const struct hri_layer *l, uint32_t head,
                         uint8_t *refined)
{
    const struct hri_head_step *hs = &s->steps[head];
    uint32_t body_first = s->n_sink < l->body_end ? s->n_sink : l->body_end;
    memset(refined, 1, l->n_tokens);
    if (l->heads == NULL || !hs->out.all) {
        memset(refined + body_first, 0, l->body_end - body_first);
    }
    for (uint32_t i = 0; l->heads != NULL && i < hs->out.n_items; i++) {
        uint32_t item = hs->items[i];
        if (!l->indexed) {
            refined[s->n_sink + item] = 1;
            continue;
        }
        const struct hri_block_tokens *tokens = &l->block_tokens[head];
        const uint32_t *token =
            tokens->token + tokens->first[item / s->parts] + item % s->parts * s->part_rows;
        uint32_t n = hs->where[i] != NULL ? hri_index_item_rows(l->heads[head], item) : 0;
        for (uint32_t j = 0; j < n; j++) {
            refined[token[j]] = 1;
        }
    }
    for (uint32_t i = 0; l->indexed && i < hs->out.n_rows; i++) {
        const struct hri_block_tokens *tokens = &l->block_tokens[head];
        refined[tokens->token[tokens->first[hs->rows[i].block] + hs->rows[i].row]] = 1;
    }
}

static void asked_fill(const hr_sequence_t *s, const struct hri_layer *l, bool exact,
                       const struct hr_attend_options *o)
{
    for (uint32_t h = 0; o->predicted_out != NULL && h < s->n_q; h++) {
        o->predicted_out[h] = exact ? 0.0f : s->steps[h / s->g].out.predicted[h % s->g];
    }
    for (uint32_t h = 0; o->refined_out != NULL && h < s->n_kv; h++) {
        uint8_t *refined = o->refined_out + (size_t)h * l->n_tokens;
        if (exact) {
            memset(refined, 1, l->n_tokens);
        } else {
            refined_mark(s, l, h, refined);
        }
    }
}

#define SQUARES_MAX 1e18f /* of a vector of them the squares' sum still is a float */

/* Whether all of x is at most this large; NaN never is. */
static bool all_within(const float *x, size_t n, float limit)
{
    uint32_t bits, most, found = 0;
    memcpy(&most, &limit, sizeof most);
    for (size_t i = 0; i < n; i++) { /* the bits of floats without signs are in their order */
        memcpy(&bits, x + i, sizeof bits);
        found |= (bits & 0x7fffffffu) > most;
    }
    return found == 0;
}

/* Queries or rows may be so large that squares of them, of which estimates are made, overflow. Attention itself bears more. */
static hr_status_t exact_instead(hr_sequence_t *s, struct hri_layer *l, uint32_t layer,
                                 const float *q, uint32_t position, float *out,
                                 struct hr_attend_report *report)
{
    hr_status_t status = hri_attend_exact(s, l, q, 1, position, out, report);
    if (status == HR_OK && !all_within(out, (size_t)s->n_q * s->dv, FLT_MAX)) {
        status =
            hri_error_set(HR_ERR_NONFINITE,
                          "layer %u: the output of token %u is not finite: its query or rows are "
                          "too large",
                          layer, position);
    }
    for (uint32_t h = 0; h < s->n_kv; h++) {
        struct hri_select_out *chosen = &s->steps[h].out;
        memset(chosen->predicted, 0, sizeof chosen->predicted);
        chosen->all = true;
    }
    report->predicted_error = report->predicted_error_max = report->late_error = 0;
    report->heads_capped = 0;
    return status;
}

/* Whether a step's output is one of numbers, made of estimates that could be made. */
static bool is_sound(const hr_sequence_t *s, const float *q, const float *out)
{
    bool estimates = s->recipe.selector->codec == HRI_CODEC_I8;
    return all_within(out, (size_t)s->n_q * s->dv, FLT_MAX) &&
           (!estimates || all_within(q, (size_t)s->n_q * s->dk, SQUARES_MAX));
}

static hr_status_t recipe_pass(hr_sequence_t *s, uint32_t layer, const struct hr_tensor *q,
                               struct hr_tensor *out, uint32_t row, uint32_t position,
                               const struct hr_attend_options *options,
                               struct hr_attend_report *report)
{
    bool check = options != NULL && options->check_exact;
    struct hri_limits limits = {.strict = options != NULL && options->strict_exact};
    if (options != NULL && options->deadline_ns != 0) {
        uint64_t now_ns = hri_now_ns(), rest_ns = UINT64_MAX - now_ns;
        limits.deadline_ns =
            now_ns + (options->deadline_ns < rest_ns ? options->deadline_ns : rest_ns);
    }
    struct hri_layer *l = &s->layers[layer];
    float *qf =
        hri_scratch_get(&s->runtime->queries, (size_t)s->n_q * (s->dk + 2 * s->dv) * sizeof(float));
    if (qf == NULL) {
        return hri_alloc_status();
    }
    float *of = qf + (size_t)s->n_q * s->dk, *exact = of + (size_t)s->n_q * s->dv;
    hr_status_t status = hri_queries_load(s, l, q, row, 1, position, qf);
    if (status == HR_OK) {
        hr_status_t (*step)(hr_sequence_t *, uint32_t, const float *, uint32_t,
                            const struct hri_limits *, float *, struct hr_attend_report *) =
            s->part != NULL && l->indexed ? hri_device_step : hri_step;
        status = step(s, layer, qf, position, &limits, of, report);
    }
    if (status == HR_OK && !is_sound(s, qf, of)) {
        status = exact_instead(s, l, layer, qf, position, of, report);
    }
    if (status == HR_OK && check) {
        struct hr_attend_report unseen = {0};
        status = hri_attend_exact(s, l, qf, 1, position, exact, &unseen);
        if (status == HR_OK) {
            error_compare(s, of, exact, report);
        }
    }
    if (status == HR_OK) {
        outputs_store(s, of, 1, out, row);
    }
    return status;
}

/* Several queries by the recipe: sums of counts, mean and largest of errors. */
static void report_add(struct hr_attend_report *sum, const struct hr_attend_report *one, uint32_t n)
{
    uint64_t *a = (uint64_t *)(void *)sum;
    const uint64_t *b = (const uint64_t *)(const void *)one;
    for (size_t i = 0; i < offsetof(struct hr_attend_report, predicted_error) / sizeof *a; i++) {
        a[i] += b[i];
    }
    sum->predicted_error += one->predicted_error / n;
    sum->late_error += one->late_error / n;
    sum->predicted_error_max = fmax(sum->predicted_error_max, one->predicted_error_max);
    if (one->true_error >= 0) {
        sum->true_error = (sum->true_error < 0 ? 0 : sum->true_error) + one->true_error / n;
        sum->true_error_max = fmax(sum->true_error_max, one->true_error_max);
    }
    for (int i = 0; i < HR_STAGES; i++) {
        sum->time_ns[i] += one->time_ns[i];
    }
}

static hr_status_t recipe_many(hr_sequence_t *s, uint32_t layer, const struct hr_tensor *q,
                               struct hr_tensor *out, uint32_t nq,
                               const struct hr_attend_options *options,
                               struct hr_attend_report *report)
{
    if (s->query_from > s->layers[layer].n_tokens - nq) {
        s->query_from = 0; /* it was not as expected */
    }
    for (uint32_t i = 0; i < nq; i++) {
        struct hr_attend_report one = {.true_error = -1.0, .true_error_max = -1.0};
        hr_status_t status =
            recipe_pass(s, layer, q, out, i, s->layers[layer].n_tokens - nq + i, options, &one);
        if (status != HR_OK) {
            return status;
        }
        report_add(report, &one, nq);
    }
    return HR_OK;
}

static hr_status_t attend_check(const hr_sequence_t *s, uint32_t layer, const struct hr_tensor *q,
                                const struct hr_attend_options *o, const struct hr_tensor *out)
{
    if (s == NULL || layer >= s->n_layers) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_attend: %s",
                             s == NULL ? "no sequence" : "no such layer");
    }
    if (o != NULL && o->struct_size != sizeof *o) {
        return hri_error_set(HR_ERR_VERSION,
                             "attend options: struct_size %zu where this library has %zu",
                             o->struct_size, sizeof *o);
    }
    if (o != NULL && (unsigned)o->mode > HR_ATTEND_RECIPE) {
        return hri_error_set(HR_ERR_INVALID, "attend options: mode %d does not exist",
                             (int)o->mode);
    }
    if (o != NULL && o->refined_out != NULL && s->layers[layer].indexed &&
        s->layers[layer].block_tokens == NULL) {
        return hri_error_set(HR_ERR_INVALID,
                             "attend options: refined_out needs a sequence with keep_tokens");
    }
    uint32_t n = q != NULL ? q->shape[0] : 0;
    hr_status_t status = hri_tensor_check(q, "q", n, s->n_q, s->dk);
    if (status == HR_OK) {
        status = hri_tensor_check(out, "out", n, s->n_q, s->dv);
    }
    if (status == HR_OK && n > s->layers[layer].n_tokens) {
        status = hri_error_set(HR_ERR_STATE, "layer %u has %u tokens; %u queries are more", layer,
                               s->layers[layer].n_tokens, n);
    }
    return status;
}

hr_status_t hr_sequence_attend(hr_sequence_t *s, uint32_t layer, const struct hr_tensor *q,
                               const struct hr_attend_options *options, struct hr_tensor *out,
                               struct hr_attend_report *report_out, hr_stream_t stream)
{
    (void)stream;
    hr_status_t status = attend_check(s, layer, q, options, out);
    if (status != HR_OK) {
        return status;
    }
    struct hri_layer *l = &s->layers[layer];
    struct hr_attend_report report = {.true_error = -1.0, .true_error_max = -1.0};
    hr_attend_mode_t mode = options != NULL ? options->mode : HR_ATTEND_AUTO;
    uint32_t nq = q->shape[0];
    hri_cancel_begin(s);
    bool exact = l->exact || mode == HR_ATTEND_EXACT || (mode == HR_ATTEND_AUTO && nq != 1);
    if (exact) {
        status = exact_many(s, l, q, out, nq, &report);
    } else {
        status = recipe_many(s, layer, q, out, nq, options, &report);
    }
    if (status != HR_OK) {
        return status;
    }
    if (exact && options != NULL && options->check_exact) {
        report.true_error = report.true_error_max = 0.0;
    }
    if (options != NULL && nq > 0) {
        asked_fill(s, l, exact, options);
    }
    for (int i = 0; i < HR_STAGES; i++) {
        report.time_ns[i] += s->time_ns[i];
        s->time_ns[i] = 0;
    }
    if (report_out != NULL) {
        *report_out = report;
    }
    return HR_OK;
}

hr_status_t hr_sequence_observe(hr_sequence_t *s, uint32_t layer, const struct hr_tensor *q)
{
    if (s == NULL || layer >= s->n_layers) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_observe: %s",
                             s == NULL ? "no sequence" : "no such layer");
    }
    struct hri_layer *l = &s->layers[layer];
    uint32_t nq = q != NULL ? q->shape[0] : 0;
    hr_status_t status = hri_tensor_check(q, "q", nq, s->n_q, s->dk);
    if (status == HR_OK && nq > l->n_tokens) {
        status = hri_error_set(HR_ERR_STATE, "layer %u has %u tokens; %u queries are more", layer,
                               l->n_tokens, nq);
    }
    for (uint32_t i = 0; status == HR_OK && l->heads != NULL && i < nq; i += HRI_QUERY_TOKENS_MAX) {
        uint32_t n = nq - i < HRI_QUERY_TOKENS_MAX ? nq - i : HRI_QUERY_TOKENS_MAX;
        uint32_t position = l->n_tokens - nq + i;
        float *qf = hri_scratch_get(&s->runtime->queries, (size_t)n * s->n_q * s->dk * sizeof *qf);
        status = qf != NULL ? hri_queries_load(s, l, q, i, n, position, qf) : hri_alloc_status();
        if (status == HR_OK) {
            queries_show(s, l, qf, n, position);
        }
    }
    return status;
}

int hr_sequence_wants_prefetch(const hr_sequence_t *s, uint32_t layer)
{
    return s != NULL && layer < s->n_layers && s->layers[layer].early_q != NULL;
}

hr_status_t hr_sequence_expect(hr_sequence_t *s, uint32_t position)
{
    if (s == NULL) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_expect: no sequence");
    }
    if (position > s->tokens_max) {
        return hri_error_set(HR_ERR_INVALID,
                             "hr_sequence_expect: position %u is beyond tokens_max %u", position,
                             s->tokens_max);
    }
    s->query_from = position;
    return HR_OK;
}

hr_status_t hr_sequence_set_tolerance(hr_sequence_t *s, double tolerance)
{
    if (s == NULL || !(tolerance > 0.0 && tolerance < 1.0)) {
        return s == NULL ? hri_error_set(HR_ERR_INVALID, "hr_sequence_set_tolerance: no sequence")
                         : hri_error_set(HR_ERR_INVALID,
                                         "hr_sequence_set_tolerance: tolerance is %g; it must be "
                                         "above 0 and below 1",
                                         tolerance);
    }
    if (s->tolerance <= 0.0) {
        return hri_error_set(HR_ERR_STATE, "hr_sequence_set_tolerance: the sequence was created "
                                           "without a tolerance");
    }
    s->tolerance = tolerance;
    return HR_OK;
}

hr_status_t hr_sequence_prefetch(hr_sequence_t *s, uint32_t layer, const struct hr_tensor *q,
                                 hr_stream_t stream)
{
    (void)stream;
    if (s == NULL || layer >= s->n_layers) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_prefetch: %s",
                             s == NULL ? "no sequence" : "no such layer");
    }
    hr_status_t status = hri_tensor_check(q, "q", 1, s->n_q, s->dk);
    struct hri_layer *l = &s->layers[layer];
    if (status != HR_OK || l->early_q == NULL || l->n_tokens == 0) {
        return status;
    }
    l->early_tokens = 0;
    status = hri_queries_load(s, l, q, 0, 1, l->n_tokens, l->early_q);
    if (status == HR_OK) {
        l->early_tokens = l->n_tokens;
    }
    return status;
}

hr_status_t hr_batch_attend(struct hr_batch_item *items, size_t n_items, uint32_t layer,
                            const struct hr_attend_options *options, hr_stream_t stream)
{
    if (items == NULL && n_items > 0) {
        return hri_error_set(HR_ERR_INVALID, "hr_batch_attend: no items");
    }
    hr_status_t first = HR_OK;
    char message[HRI_ERROR_BYTES_MAX] = "";
    for (size_t i = 0; i < n_items; i++) {
        struct hr_batch_item *it = &items[i];
        it->status =
            hr_sequence_attend(it->sequence, layer, &it->q, options, &it->out, &it->report, stream);
        if (it->status != HR_OK && first == HR_OK) {
            first = it->status;
            hri_error_get(message, sizeof message);
        }
    }
    return first == HR_OK ? HR_OK : hri_error_set(first, "%s", message);
}
