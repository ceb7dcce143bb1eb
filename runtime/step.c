/* A step: one token through one layer, in six moves.
 *
 *   append, store   done when the row came in (append.c): tail and log
 *   index           pending rows leave as a segment (settle.c)
 *   select          score all summaries with the group's queries, choose what to refine
 *   fetch           hits need nothing, misses start their reads
 *   attend          sink and window, the estimate of the rest, hits, then misses as they land; merged by log-sum-exp
 */
#include "runtime/sequence.h"

#include "base/clock.h"
#include "base/error.h"
#include <math.h>
#include <string.h>

#define PARALLEL_WORK                                                                              \
    (1u << 17) /* multiply-adds of a move below which waking workers costs more than it saves */

struct step {
    hr_sequence_t *s;
    struct hri_layer *layer;
    uint32_t layer_index, position;
    uint64_t budget_bytes; /* of one kv-head, as an equal share */
    const float *part;     /* [n_kv] of such a share, or NULL */
    uint64_t time_ns;      /* of the current move */
    struct hri_limits limits;
    struct hr_attend_report *report;
};

/* Rows of a kv-head that a step multiplies with at the most: keys and values of sink and window, summaries, sketches. */
static uint64_t rows_read(const struct step *st)
{
    const struct hri_layer *l = st->layer;
    if (!l->indexed) {
        return 2 * (uint64_t)l->n_tokens;
    }
    uint32_t body = hri_body_tokens(st->s, l);
    bool sketched = hri_index_sketch_bytes(l->heads[0]) > 0;
    return 2 * (uint64_t)(l->n_tokens - body) + hri_index_blocks(l->heads[0]) +
           (sketched ? body : 0);
}

static void heads_run(struct step *st, hri_task_fn task)
{
    hr_sequence_t *s = st->s;
    bool parallel = s->n_kv > 1 && rows_read(st) * s->dk * s->g * s->n_kv > PARALLEL_WORK;
    hri_pool_run(parallel ? s->runtime->pool : NULL, task, st, s->n_kv);
}

static void move_ends(struct step *st, enum hri_stage stage)
{
    uint64_t now = hri_now_ns();
    st->report->time_ns[stage] += now - st->time_ns;
    st->time_ns = now;
}

/* -- select -- */

static void near_attend(const struct step *st, uint32_t head)
{
    const hr_sequence_t *s = st->s;
    const struct hri_layer *l = st->layer;
    struct hri_head_step *hs = &s->steps[head];
    uint32_t seen = st->position + 1, n_sink = seen < s->n_sink ? seen : s->n_sink;
    uint32_t first = l->body_end > n_sink ? l->body_end : n_sink;
    hri_partial_clear(&hs->part, s->g, s->dv);
    struct hri_rows rows = {.stride_bytes = s->row_bytes, .dtype = s->dtype};
    if (n_sink > 0) {
        rows.base = l->sink + (size_t)head * s->n_sink * s->row_bytes;
        rows.n = n_sink;
        s->runtime->kernels->attend_rows(hs->q, s->g, s->dk, s->dv, rows, s->soft_cap, &hs->part);
    }
    if (first < seen) {
        rows.base = hri_tail_row(s, l, head, first);
        rows.n = seen - first;
        s->runtime->kernels->attend_rows(hs->q, s->g, s->dk, s->dv, rows, s->soft_cap, &hs->part);
    }
}

/* What each part of a block would cost: nothing from a frame, its bytes from host memory, a cell from the file. */
static const uint8_t *places_find(const struct step *st, uint32_t head, struct hri_head_step *hs)
{
    const hr_sequence_t *s = st->s;
    const struct hri_block_at *at = st->layer->places[head];
    const uint8_t *resident = hri_frames_resident(s->frames, st->layer_index * s->n_kv + head);
    _Static_assert(HRI_PLACE_HOST == 0 && HRI_PLACE_FRAME == 1, "resident[] is an array of places");
    if (s->runtime->file_bytes == 0) {
        return resident;
    }
    struct hri_lane_run run = {0};
    uint32_t n = hri_index_blocks(st->layer->heads[head]) * s->parts;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t cell = at[i].cell;
        if (cell != HRI_NO_CELL && (cell < run.first || cell >= run.end)) {
            run = hri_lane_run_of(st->layer->block_lane, cell);
        }
        bool memory = cell == HRI_NO_CELL || run.in_memory[cell];
        hs->place[i] = resident[i] ? HRI_PLACE_FRAME : memory ? HRI_PLACE_HOST : HRI_PLACE_FILE;
    }
    return hs->place;
}

/* Where the chosen blocks are to be had. */
static void addresses_fill(const struct step *st, uint32_t head)
{
    struct hri_head_step *hs = &st->s->steps[head];
    for (uint32_t i = 0; i < hs->out.n_items; i++) {
        uint32_t b = hs->items[i];
        const struct hri_block_at *at = &st->layer->places[head][b];
        hs->address[i] = (struct hri_block_address){
            .block = b,
            .cell = at->cell,
            .offset = at->offset,
            .bytes = hri_index_item_rows(st->layer->heads[head], b) * st->s->code_bytes};
    }
}

/* The guess of this token's query, where it came; it may have come before or after the token's row. */
static const float *early_q_of(const struct step *st, uint32_t head)
{
    const hr_sequence_t *s = st->s;
    const struct hri_layer *l = st->layer;
    bool fits = l->early_tokens != 0 &&
                (l->early_tokens == st->position || l->early_tokens == st->position + 1);
    return fits ? l->early_q + (size_t)head * s->g * s->dk : NULL;
}

/* What the selector is given: near attended, budget, places. */
static void question_fill(const struct step *st, uint32_t head)
{
    const hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    near_attend(st, head);
    hs->out = (struct hri_select_out){
        .items = hs->items, .items_max = s->items_max, .rows = hs->rows, .rows_max = s->rows_max};
    hs->status = HR_OK;
    if (st->layer->heads == NULL) {
        return;
    }
    float part = st->part != NULL ? st->part[head] : 1;
    if (st->part != NULL) {
        hs->out.worth = hri_share_worth_set(&st->s->share, st->layer_index, head);
    }
    hs->in = (struct hri_select_in){
        .q = hs->q,
        .near = &hs->part,
        .budget_bytes = (uint64_t)((double)part * (double)st->budget_bytes),
        .tolerance = s->tolerance,
        .row_bytes = s->code_bytes,
        .row_scores =
            s->row_scores != NULL ? s->row_scores + (size_t)head * s->g * s->tokens_max : NULL,
        .row_scores_stride = s->tokens_max,
        .n_rows = hri_body_tokens(s, st->layer),
        .position = st->position,
        .early_q = early_q_of(st, head),
        .scratch = hs->select_scratch,
    };
    if (st->layer->indexed) {
        hs->in.place = places_find(st, head, hs);
        hs->in.cell_bytes = s->block_cell_bytes;
    }
}

static void question_task(void *context, unsigned head, unsigned worker)
{
    (void)worker;
    question_fill(context, head);
}

static void select_task(void *context, unsigned head, unsigned worker)
{
    (void)worker;
    const struct step *st = context;
    struct hri_head_step *hs = &st->s->steps[head];
    question_fill(st, head);
    if (st->layer->heads != NULL) {
        hs->status = hri_index_select(st->layer->heads[head], &hs->in, &hs->out);
    }
    if (st->layer->indexed) {
        addresses_fill(st, head);
    }
}

/* Selectors that share one choice or one budget between the heads of a layer. */
static hr_status_t layer_select(struct step *st)
{
    hr_sequence_t *s = st->s;
    heads_run(st, question_task);
    for (uint32_t h = 0; h < s->n_kv; h++) {
        s->ins[h] = s->steps[h].in;
        s->outs[h] = s->steps[h].out;
    }
    hr_status_t status = hri_index_select_layer(st->layer->heads, s->n_kv, s->ins, s->outs);
    for (uint32_t h = 0; h < s->n_kv; h++) {
        s->steps[h].out = s->outs[h];
        if (st->layer->indexed) {
            addresses_fill(st, h);
        }
    }
    return status;
}

/* -- fetch -- */

static hr_status_t blocks_fetch(struct step *st, uint32_t head)
{
    hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    hs->fetch = (struct hri_fetch){.lane_index = st->layer_index * s->n_kv + head,
                                   .lane = st->layer->block_lane,
                                   .blocks = hs->address,
                                   .n_blocks = hs->out.n_items,
                                   .share_copies = true,
                                   .where = hs->where,
                                   .reads = hs->reads,
                                   .read_block = hs->read_block};
    hr_status_t status = hri_frames_fetch_begin(s->frames, &hs->fetch);
    for (uint32_t i = 0; i < hs->out.n_items; i++) {
        st->report->bytes_hit += hs->where[i] != NULL ? hs->address[i].bytes : 0;
    }
    return status;
}

/* Single rows of blocks are used where they lie in host memory; what is read of them is what moved. */
static hr_status_t block_rows_find(struct step *st, uint32_t head)
{
    const hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    const unsigned char *base = NULL;
    uint32_t last = UINT32_MAX;
    for (uint32_t i = 0; i < hs->out.n_rows; i++) {
        uint32_t b = hs->rows[i].block, row = hs->rows[i].row;
        uint32_t item = b * s->parts + row / s->part_rows;
        if (item != last) {
            const struct hri_block_at *place = &st->layer->places[head][item];
            base = hri_lane_peek(st->layer->block_lane, place->cell);
            if (base == NULL) {
                return hri_error_set(HR_ERR_INTERNAL,
                                     "layer %u, head %u: block %u was said to be in host memory",
                                     st->layer_index, head, b);
            }
            base += place->offset;
            last = item;
        }
        hs->row_codes[i] = (const int8_t *)base + (size_t)(row % s->part_rows) * s->code_bytes;
    }
    st->report->bytes_from_host += (uint64_t)hs->out.n_rows * s->code_bytes + hs->out.bytes_rests;
    return HR_OK;
}

static hr_status_t rows_fetch(struct step *st, uint32_t head)
{
    hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    uint32_t skip = s->row_bytes - s->code_bytes; /* keys that the device has */
    memset(&hs->fetch, 0, sizeof hs->fetch);
    hs->fetch.batch.reads = hs->reads;
    for (uint32_t i = 0; i < hs->out.n_items; i++) {
        uint32_t token = s->n_sink + hs->items[i];
        unsigned char *dst = s->row_buffer + ((size_t)head * s->items_max + i) * s->row_bytes;
        hs->where[i] = dst;
        if (token >= st->layer->tail_first) {
            memcpy(dst, hri_tail_row(s, st->layer, head, token) + skip, s->code_bytes);
            st->report->bytes_from_host +=
                s->code_bytes; /* selected rows count as moved wherever they happen to lie */
            continue;
        }
        hs->reads[hs->fetch.batch.n_reads++] =
            (struct hri_read){.lane = st->layer->log_lane,
                              .cell = hri_log_cell(s, token, head),
                              .n_cells = 1,
                              .offset = token % HRI_LOG_ROWS * s->row_bytes + skip,
                              .bytes = s->code_bytes,
                              .dst = dst};
    }
    hs->fetch.n_misses = hs->fetch.batch.n_reads;
    return hs->fetch.batch.n_reads > 0 ? hri_store_read_begin(s->runtime->store, &hs->fetch.batch)
                                       : HR_OK;
}

static hr_status_t fetch_begin(struct step *st)
{
    hr_status_t status = HR_OK;
    if (st->layer->indexed) {
        hri_frames_step_begin(st->s->frames);
    }
    for (uint32_t h = 0; h < st->s->n_kv; h++) {
        if (status == HR_OK) {
            status = st->layer->indexed ? blocks_fetch(st, h) : rows_fetch(st, h);
            if (status == HR_OK && st->s->rows_max > 0) {
                status = block_rows_find(st, h);
            }
        } else {
            memset(&st->s->steps[h].fetch, 0, sizeof st->s->steps[h].fetch);
        }
    }
    return status;
}

/* Blocks that do not come stay at the level below: those that are late where a deadline was set, those that cannot be read unless the
 * caller wants all of them. Single rows have no such level. */
static hr_status_t fetch_judge(const struct step *st, const struct hri_head_step *hs,
                               hr_status_t status)
{
    bool late = status == HR_ERR_TIMEOUT, lost = status == HR_ERR_IO || status == HR_ERR_CORRUPT;
    if (!late && !lost) {
        return status;
    }
    if (st->layer->indexed && !st->limits.strict && (lost || st->limits.deadline_ns != 0)) {
        return HR_OK;
    }
    char message[HRI_ERROR_BYTES_MAX];
    hri_error_get(message, sizeof message);
    return hri_error_set(status, "layer %u, kv-head %u, tokens %u to %u: %s", st->layer_index,
                         (unsigned)(hs - st->s->steps), st->s->n_sink, st->layer->body_end - 1,
                         message);
}

static uint32_t lost_count(const struct hri_head_step *hs)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < hs->fetch.batch.n_reads; i++) {
        n += hs->reads[i].status == HR_ERR_IO || hs->reads[i].status == HR_ERR_CORRUPT;
    }
    return n;
}

/* Every fetch that was begun is waited for, whatever happened to the others. */
static hr_status_t fetch_wait(struct step *st, hr_status_t status)
{
    hr_sequence_t *s = st->s;
    uint64_t hard_ns = hri_now_ns() + hri_store_timeout_ns(s->runtime->store);
    uint64_t deadline_ns =
        st->limits.strict || st->limits.deadline_ns == 0 ? hard_ns : st->limits.deadline_ns;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        struct hri_head_step *hs = &s->steps[h];
        hr_status_t one = HR_OK;
        if (st->layer->indexed) {
            if (hs->fetch.n_blocks > 0) {
                one = hri_frames_fetch_wait(s->frames, &hs->fetch, deadline_ns);
            }
            hs->n_lost = one != HR_OK ? lost_count(hs) : 0;
        } else if (hs->fetch.batch.n_reads > 0) {
            one = hri_store_read_wait(s->runtime->store, &hs->fetch.batch, hard_ns);
            if (one == HR_ERR_TIMEOUT) {
                hri_store_read_cancel(s->runtime->store, &hs->fetch.batch);
            }
        }
        one = fetch_judge(st, hs, one);
        st->report->bytes_from_host += hs->fetch.batch.bytes_from_host;
        st->report->bytes_from_file += hs->fetch.batch.bytes_from_file;
        st->report->ios += hs->fetch.batch.ios;
        status = status == HR_OK ? one : status;
    }
    return status;
}

/* -- attend -- */

/* Values as fetched, keys as the device keeps them. */
static void rebuilt_attend(const struct step *st, uint32_t head, uint32_t item)
{
    const hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    struct hri_index_head *index = st->layer->heads[head];
    uint32_t block = hs->items[item], n = hri_index_block_rows(index, block), width = s->dk + s->dv;
    const unsigned char *row = hs->where[item];
    float k[HRI_REBUILD_ROWS_MAX * HR_HEAD_DIM_MAX],
        rows[HRI_REBUILD_ROWS_MAX * 2 * HR_HEAD_DIM_MAX];
    hri_index_rebuild_keys(index, block, k);
    for (uint32_t i = 0; i < n; i++, row += s->code_bytes) {
        memcpy(rows + (size_t)i * width, k + (size_t)i * s->dk, s->dk * sizeof(float));
        s->runtime->kernels->to_f32(rows + (size_t)i * width + s->dk, row, s->dtype, s->dv);
    }
    struct hri_rows f32 = {
        .base = rows, .stride_bytes = width * sizeof(float), .n = n, .dtype = HR_DTYPE_F32};
    s->runtime->kernels->attend_rows(hs->q, s->g, s->dk, s->dv, f32, s->soft_cap, &hs->part);
}

/* next: bytes to ask for on the way, or NULL. */
static void block_attend(const struct step *st, uint32_t head, uint32_t item, const void *next,
                         uint32_t next_bytes)
{
    const hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    struct hri_index_head *index = st->layer->heads[head];
    uint32_t block = hs->items[item] / s->parts, n = hri_index_item_rows(index, hs->items[item]);
    hs->refined_rows += n;
    if (hri_index_rebuilds_keys(&s->recipe)) {
        rebuilt_attend(st, head, item);
        return;
    }
    if (s->recipe.selector->codec == HRI_CODEC_EXACT) {
        struct hri_rows rows = {
            .base = hs->where[item], .stride_bytes = s->row_bytes, .n = n, .dtype = s->dtype};
        s->runtime->kernels->attend_rows(hs->q, s->g, s->dk, s->dv, rows, s->soft_cap, &hs->part);
        return;
    }
    float dots[HR_GROUP_MAX], v_center[HR_HEAD_DIM_MAX];
    struct hri_block_i8 b = {.codes = hs->where[item],
                             .k_dot = dots,
                             .v_center = v_center,
                             .n = n,
                             .next = next,
                             .next_bytes = next_bytes};
    hri_index_block_dots(index, &hs->in, block, dots);
    hri_index_centers(index, block, NULL, v_center);
    hri_index_steps(index, block, &b.k_step, &b.v_step);
    s->runtime->kernels->attend_block_i8(hs->q, s->g, s->dk, s->dv, &b, s->soft_cap, &hs->part);
}

/* Item i's bytes, in a frame or where they wait to be copied to one; NULL: on their way. */
static const void *bytes_find(const struct hri_head_step *hs, uint32_t i, uint32_t miss)
{
    if (miss < hs->fetch.n_misses && hs->read_block[miss] == i) {
        return hs->reads[miss].from;
    }
    return hs->where[i];
}

/* Blocks lie here and there, so the processor cannot guess the next one. What the index keeps of it is asked for at once, it is
 * little; its bytes come while the one before is attended, a few lines at a time. NULL: there is none, or it is on its way. */
static const void *block_ahead(const struct step *st, uint32_t head, uint32_t item, uint32_t miss)
{
    const struct hri_head_step *hs = &st->s->steps[head];
    if (item >= hs->out.n_items || st->s->recipe.selector->codec != HRI_CODEC_I8) {
        return NULL;
    }
    hri_index_block_ahead(st->layer->heads[head], &hs->in, hs->items[item] / st->s->parts);
    return bytes_find(hs, item, miss);
}

#define RUNS                                                                                       \
    16u /* blocks: what was copied to a frame is still in the second-level cache when they are attended */

/* Blocks of rows as they are, attended together, so that the next one comes while one is worked on. */
struct runs {
    struct hri_rows of[RUNS];
    uint32_t n;
};

static void runs_attend(const hr_sequence_t *s, struct hri_head_step *hs, struct runs *runs)
{
    if (runs->n > 0) {
        s->runtime->kernels->attend_runs(hs->q, s->g, s->dk, s->dv, runs->of, runs->n, s->soft_cap,
                                         &hs->part);
    }
    runs->n = 0;
}

static void run_add(const struct step *st, uint32_t head, uint32_t item, struct runs *runs)
{
    const hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    uint32_t n = hri_index_item_rows(st->layer->heads[head], hs->items[item]);
    hs->refined_rows += n;
    runs->of[runs->n++] = (struct hri_rows){
        .base = hs->where[item], .stride_bytes = s->row_bytes, .n = n, .dtype = s->dtype};
    if (runs->n == RUNS) {
        runs_attend(s, hs, runs);
    }
}

/* The estimate of what was not chosen, the hits, and what comes from host memory, which is brought into its frame first; what is
 * still on its way from the file is noted in late[]. */
static void attend_task(void *context, unsigned head, unsigned worker)
{
    (void)worker;
    const struct step *st = context;
    struct hri_head_step *hs = &st->s->steps[head];
    hri_index_estimate(st->layer->heads[head], &hs->in, &hs->out, &hs->part, &hs->estimated);
    hri_index_attend_rows(st->layer->heads[head], &hs->in, &hs->out, hs->row_codes, &hs->part);
    hs->refined_rows += hs->out.n_rows;
    bool as_they_are = st->s->recipe.selector->codec == HRI_CODEC_EXACT &&
                       !hri_index_rebuilds_keys(&st->s->recipe);
    struct runs runs = {.n = 0};
    uint32_t n_late = 0, miss = 0;
    for (uint32_t i = 0; i < hs->out.n_items; i++) {
        if (miss < hs->fetch.n_misses && hs->read_block[miss] == i) {
            hri_fetch_copy(&hs->fetch, miss++);
        }
        const void *next = block_ahead(st, head, i + 1, miss);
        if (hs->where[i] == NULL) {
            hs->late[n_late++] = i;
        } else if (as_they_are) {
            run_add(st, head, i, &runs);
        } else {
            block_attend(st, head, i, next, next != NULL ? hs->address[i + 1].bytes : 0);
        }
    }
    runs_attend(st->s, hs, &runs);
    hs->n_late = n_late;
}

/* What has landed since; what never will stays at its lower level. */
static void land_task(void *context, unsigned head, unsigned worker)
{
    (void)worker;
    const struct step *st = context;
    struct hri_head_step *hs = &st->s->steps[head];
    uint32_t n_never = 0;
    for (uint32_t j = 0; j < hs->n_late; j++) {
        uint32_t item = hs->late[j];
        if (hs->where[item] != NULL) {
            block_attend(st, head, item, NULL, 0);
        } else {
            hs->late[n_never++] = hs->items[item];
        }
    }
    hri_index_estimate_items(st->layer->heads[head], &hs->in, hs->late, n_never, &hs->part,
                             hs->late_error);
    hs->n_late = n_never;
    for (uint32_t g = 0; n_never > 0 && g < st->s->g; g++) {
        hs->out.predicted[g] = hypotf(hs->out.predicted[g], hs->late_error[g]);
    }
}

/* Importance sampling: every row's logit is shifted by what the selector says. */
static void weighted_rows_attend(const struct step *st, uint32_t head)
{
    const hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    float values[HR_HEAD_DIM_MAX * HR_GROUP_MAX], logit[HR_GROUP_MAX], shift[HR_GROUP_MAX];
    for (uint32_t i = 0; i < hs->out.n_items; i++) {
        const unsigned char *at = hs->where[i];
        struct hri_rows row = {.base = at, .stride_bytes = s->row_bytes, .n = 1, .dtype = s->dtype};
        s->runtime->kernels->score_rows(hs->q, s->g, s->dk, row, 0.0f, logit, 1);
        hri_index_weigh_row(st->layer->heads[head], &hs->in, i, hs->items[i], logit, shift);
        s->runtime->kernels->to_f32(values, at + s->dk * hr_dtype_bytes(s->dtype), s->dtype, s->dv);
        for (uint32_t g = 0; g < s->g; g++) {
            float capped = s->soft_cap > 0 ? s->soft_cap * tanhf(logit[g] / s->soft_cap) : logit[g];
            logit[g] = capped + shift[g];
            memmove(values + (size_t)g * s->dv, values, s->dv * sizeof(float));
        }
        hri_partial_add(&hs->part, s->g, s->dv, logit, values);
    }
}

/* Values as fetched, keys as the device keeps them. */
static void rebuilt_rows_attend(const struct step *st, uint32_t head)
{
    const hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    uint32_t width = s->dk + s->dv;
    float rows[HRI_REBUILD_ROWS_MAX * 2 * HR_HEAD_DIM_MAX];
    for (uint32_t i = 0, n = 0; i < hs->out.n_items; i++) {
        float *row = rows + (size_t)n++ * width;
        hri_index_rebuild_row(st->layer->heads[head], hs->items[i], row);
        s->runtime->kernels->to_f32(row + s->dk, hs->where[i], s->dtype, s->dv);
        if (n == HRI_REBUILD_ROWS_MAX || i + 1 == hs->out.n_items) {
            struct hri_rows f32 = {
                .base = rows, .stride_bytes = width * sizeof(float), .n = n, .dtype = HR_DTYPE_F32};
            s->runtime->kernels->attend_rows(hs->q, s->g, s->dk, s->dv, f32, s->soft_cap,
                                             &hs->part);
            n = 0;
        }
    }
}

static void rows_task(void *context, unsigned head, unsigned worker)
{
    (void)worker;
    const struct step *st = context;
    const hr_sequence_t *s = st->s;
    struct hri_head_step *hs = &s->steps[head];
    hri_index_estimate(st->layer->heads[head], &hs->in, &hs->out, &hs->part, &hs->estimated);
    if (hri_index_weighs_rows(&s->recipe)) {
        weighted_rows_attend(st, head);
    } else if (hri_index_rebuilds_keys(&s->recipe)) {
        rebuilt_rows_attend(st, head);
    } else {
        s->runtime->kernels->attend_gather(hs->q, s->g, s->dk, s->dv, hs->where, hs->out.n_items,
                                           s->dtype, s->soft_cap, &hs->part);
    }
    hs->refined_rows += hs->out.n_items;
}

/* Attention where the rows lie: the workers go over host memory in place, and over what the file's reads bring to the
 * host; the device gets an output and a log-sum-exp per query head, and only those count as moved. */
static hr_status_t in_place_attend(struct step *st)
{
    hr_sequence_t *s = st->s;
    struct hr_attend_report there = {0};
    uint64_t bytes = s->g * (s->dv + 1) * sizeof(float);
    float out[HR_GROUP_MAX * HR_HEAD_DIM_MAX], lse[HR_GROUP_MAX];
    for (uint32_t h = 0; h < s->n_kv; h++) {
        hri_partial_clear(&s->steps[h].far, s->g, s->dv);
    }
    hr_status_t status = hri_attend_body(s, st->layer, s->whole, &there);
    for (uint32_t h = 0; h < s->n_kv && status == HR_OK; h++) {
        struct hri_head_step *hs = &s->steps[h];
        if (s->whole[h]) {
            hri_partial_finish(&hs->far, s->g, s->dv, out, lse);
            hri_partial_add(&hs->part, s->g, s->dv, lse, out);
            hs->out.bytes = bytes;
            st->report->bytes_from_host += bytes;
        }
    }
    st->report->ios += there.ios;
    return status;
}

/* Heads that attend everything: rows stream past, as in a prefill. */
static hr_status_t whole_heads(struct step *st)
{
    hr_sequence_t *s = st->s;
    bool any = false;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        struct hri_head_step *hs = &s->steps[h];
        s->whole[h] = hs->out.all;
        any |= hs->out.all;
        if (hs->out.all) {
            hs->out.n_items = 0;
            hs->out.bytes = (uint64_t)hs->in.n_rows * s->row_bytes;
        }
    }
    if (!any) {
        return HR_OK;
    }
    return s->recipe.selector->attends_in_place
               ? in_place_attend(st)
               : hri_attend_body(s, st->layer, s->whole, st->report);
}

/* -- the report -- */

/* Rows that the selector chose after it had read their sketches; late ones stay there. */
static uint64_t refined_sketched(const struct step *st, uint32_t head)
{
    const struct hri_head_step *hs = &st->s->steps[head];
    uint64_t n = hs->out.n_rows;
    for (uint32_t i = 0; hs->out.rows_sketched > 0 && i < hs->out.n_items; i++) {
        n += hri_index_item_rows(st->layer->heads[head], hs->items[i]);
    }
    for (uint32_t i = 0; hs->out.rows_sketched > 0 && i < hs->n_late; i++) {
        n -= hri_index_item_rows(st->layer->heads[head], hs->late[i]);
    }
    return n < hs->out.rows_sketched ? n : hs->out.rows_sketched;
}

static void report_fill(struct step *st)
{
    const hr_sequence_t *s = st->s;
    const struct hri_layer *l = st->layer;
    struct hr_attend_report *r = st->report;
    uint32_t body = hri_body_tokens(s, l), near = st->position + 1 - body;
    unsigned level = l->indexed && s->recipe.selector->codec == HRI_CODEC_I8 ? 2 : 3;
    r->rows_device = (uint64_t)near * s->n_kv;
    r->bytes_by_level[3] += r->rows_device * s->row_bytes;
    r->rows_by_level[3] += r->rows_device;
    r->body_bytes = (uint64_t)body * s->n_kv * s->row_bytes;
    double sum = 0.0, late = 0.0;
    for (uint32_t h = 0; l->heads != NULL && h < s->n_kv; h++) {
        const struct hri_head_step *hs = &s->steps[h];
        r->rows_by_level[level] += hs->refined_rows;
        r->bytes_by_level[level] += hs->refined_rows * s->code_bytes;
        r->bytes_selected += hs->out.bytes;
        r->rows_visited += hs->out.rows_visited;
        r->rows_rests += hs->out.n_rests;
        r->bytes_rests += hs->out.bytes_rests;
        r->bytes_from_host += hs->out.bytes_sketched_host;
        if (l->indexed) {
            r->blocks_total += hri_index_items(l->heads[h]);
            r->blocks_hit += hs->fetch.n_hits;
            r->blocks_fetched += hs->fetch.n_misses - hs->n_late;
            r->blocks_estimated += hs->estimated;
            r->blocks_late += hs->n_late;
            r->blocks_lost += hs->n_lost;
            uint64_t estimated = hs->estimated + hs->n_late > 0 ? body - hs->refined_rows : 0;
            uint64_t sketched = hs->out.rows_sketched - refined_sketched(st, h);
            r->rows_by_level[0] += estimated - sketched;
            r->rows_by_level[1] += sketched;
            r->bytes_by_level[0] += hs->out.bytes_summaries > 0
                                        ? hs->out.bytes_summaries
                                        : hri_index_summary_bytes(l->heads[h]);
            r->bytes_by_level[1] += hs->out.bytes_sketched;
        }
        for (uint32_t g = 0; g < s->g; g++) {
            sum += hs->out.predicted[g];
            late += hs->late_error[g];
            r->predicted_error_max = hs->out.predicted[g] > r->predicted_error_max
                                         ? hs->out.predicted[g]
                                         : r->predicted_error_max;
        }
    }
    r->predicted_error = sum / s->n_q;
    r->late_error = late / s->n_q;
}

hr_status_t hri_query_in_window(const struct hri_layer *l, uint32_t layer_index, uint32_t position)
{
    if (position + 1 >= l->body_end) {
        return HR_OK;
    }
    return hri_error_set(
        HR_ERR_STATE,
        "layer %u: the query of token %u is older than the window (tokens from %u on)", layer_index,
        position, l->body_end);
}

static hr_status_t step_begin(struct step *st, const float *q)
{
    hr_sequence_t *s = st->s;
    struct hri_layer *l = st->layer;
    hri_store_take_late(s->runtime->store);
    hr_status_t status = hri_settle(s, l, s->decode_segment, true);
    if (status == HR_OK) {
        status = hri_query_in_window(l, st->layer_index, st->position);
    }
    if (status != HR_OK) {
        return status;
    }
    st->budget_bytes = hri_step_budget(s, l);
    if (s->share.part != NULL) {
        st->part = hri_share_parts(&s->share, st->layer_index, st->position,
                                   (double)st->budget_bytes / s->code_bytes);
    }
    for (uint32_t h = 0; h < s->n_kv; h++) {
        memcpy(s->steps[h].q, q + (size_t)h * s->g * s->dk, (size_t)s->g * s->dk * sizeof(float));
        s->steps[h].refined_rows = 0;
        s->steps[h].estimated = 0;
        s->steps[h].n_late = 0;
        s->steps[h].n_lost = 0;
        memset(s->steps[h].late_error, 0, sizeof s->steps[h].late_error);
        memset(&s->steps[h].fetch, 0, sizeof s->steps[h].fetch);
    }
    return HR_OK;
}

static hr_status_t select_move(struct step *st)
{
    hr_sequence_t *s = st->s;
    hr_status_t status = HR_OK;
    if (st->layer->heads != NULL && s->recipe.selector->needs_row_scores) {
        status = hri_score_body(s, st->layer);
    }
    if (status != HR_OK) {
        return status;
    }
    if (st->layer->heads != NULL && hri_index_selects_layers(&s->recipe)) {
        status = layer_select(st);
    } else {
        heads_run(st, select_task);
    }
    st->layer->early_tokens = 0; /* used, or of another token */
    for (uint32_t h = 0; h < s->n_kv && status == HR_OK; h++) {
        status = s->steps[h].status;
        if (st->layer->heads != NULL) {
            hri_index_observe(st->layer->heads[h], s->steps[h].q, 1, st->position);
        }
    }
    return status;
}

hr_status_t hri_step(hr_sequence_t *s, uint32_t layer_index, const float *q, uint32_t position,
                     const struct hri_limits *limits, float *out, struct hr_attend_report *report)
{
    struct step st = {.s = s,
                      .layer = &s->layers[layer_index],
                      .layer_index = layer_index,
                      .position = position,
                      .limits = *limits,
                      .report = report};
    hr_status_t status = step_begin(&st, q);
    if (status != HR_OK) {
        return status;
    }
    st.time_ns = hri_now_ns();
    status = select_move(&st);
    if (status != HR_OK) {
        return status;
    }
    move_ends(&st, HRI_SELECT);

    if (st.layer->heads != NULL) {
        status = whole_heads(&st);
        if (status != HR_OK) {
            return status;
        }
        move_ends(&st, HRI_ATTEND);
        status = fetch_begin(&st);
        move_ends(&st, HRI_FETCH);
        if (st.layer->indexed && status == HR_OK) {
            heads_run(&st, attend_task);
            move_ends(&st, HRI_ATTEND);
        }
        status = fetch_wait(&st, status);
        move_ends(&st, HRI_FETCH);
        if (status != HR_OK) {
            return status;
        }
        heads_run(&st, st.layer->indexed ? land_task : rows_task);
    }
    for (uint32_t h = 0; h < s->n_kv; h++) {
        hri_partial_finish(&s->steps[h].part, s->g, s->dv, out + (size_t)h * s->g * s->dv, NULL);
    }
    move_ends(&st, HRI_ATTEND);
    report_fill(&st);
    return HR_OK;
}
