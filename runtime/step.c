/* A step: one token through one layer, in six moves.
 *
 *   append, store   done when the row came in (append.c): tail and log
 *   index           pending rows leave as a segment (settle.c)
 *   select          score all summaries with the group's queries, choose what to refine
 *   fetch           hits need nothing, misses start their reads
 *   attend          sink and window, the estimate of the rest, hits, then misses as they land; merged by log-sum-exp
 */
#include "runtime/step.h"

#include "base/clock.h"
#include "base/error.h"
#include <math.h>
#include <string.h>

#define PARALLEL_WORK                                                                              \
    (1u << 17) /* multiply-adds of a move below which waking workers costs more than it saves */

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

static void tasks_run(struct step *st, hri_task_fn task, unsigned n_tasks)
{
    hr_sequence_t *s = st->s;
    bool parallel = s->n_kv > 1 && rows_read(st) * s->dk * s->g * s->n_kv > PARALLEL_WORK;
    hri_pool_run(parallel ? s->runtime->pool : NULL, task, st, n_tasks);
}

static void heads_run(struct step *st, hri_task_fn task)
{
    tasks_run(st, task, st->s->n_kv);
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
    if (hs->attended) {
        return;
    }
    hs->attended = true;
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

/* All that a head refines are single rows, in host memory that no file's cache takes away. */
static bool at_hand(const struct step *st, uint32_t head)
{
    const hr_sequence_t *s = st->s;
    const struct hri_head_step *hs = &s->steps[head];
    return hs->status == HR_OK && st->layer->indexed && s->rows_max > 0 &&
           s->runtime->file_bytes == 0 && !hs->out.all && hs->out.n_items == 0;
}

/* The heads choose; those that have chosen and need no fetch are attended by threads for which no choice is left: heads are few, and not
 * always as many as there are threads for. */
static void select_attend_task(void *context, unsigned task, unsigned worker)
{
    const struct step *st = context;
    uint32_t n_kv = st->s->n_kv, head = task % n_kv;
    struct hri_head_step *hs = &st->s->steps[head];
    if (task < n_kv) {
        select_task(context, head, worker);
        hs->selected_ns = hri_now_ns();
        __atomic_store_n(&hs->selected, true, __ATOMIC_RELEASE);
        return;
    }
    if (!__atomic_load_n(&hs->selected, __ATOMIC_ACQUIRE) || !at_hand(st, head)) {
        return; /* later, with the others */
    }
    hs->status = hri_step_rows_find(st, head);
    if (hs->status == HR_OK) {
        attend_task(context, head, worker);
    }
}

/* When the last head had chosen. */
static void select_ends(struct step *st)
{
    uint64_t last_ns = st->time_ns;
    for (uint32_t h = 0; h < st->s->n_kv; h++) {
        uint64_t ns = st->s->steps[h].selected_ns;
        last_ns = ns > last_ns ? ns : last_ns;
    }
    st->report->time_ns[HRI_SELECT] += last_ns - st->time_ns;
    st->time_ns = last_ns;
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

static bool all_attended(const struct step *st)
{
    bool all = true;
    for (uint32_t h = 0; h < st->s->n_kv; h++) {
        all &= st->s->steps[h].attended;
    }
    return all;
}

static bool any_late(const struct step *st)
{
    bool any = false;
    for (uint32_t h = 0; h < st->s->n_kv; h++) {
        any |= st->s->steps[h].n_late > 0;
    }
    return any;
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
        s->steps[h].selected = s->steps[h].attended = false;
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
        move_ends(st, HRI_SELECT);
    } else {
        tasks_run(st, select_attend_task, 2 * s->n_kv);
        select_ends(st);
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
    if (st.layer->heads != NULL) {
        status = whole_heads(&st);
        if (status != HR_OK) {
            return status;
        }
        move_ends(&st, HRI_ATTEND);
        status = hri_step_fetch_begin(&st);
        move_ends(&st, HRI_FETCH);
        if (st.layer->indexed && status == HR_OK && !all_attended(&st)) {
            heads_run(&st, attend_task);
            move_ends(&st, HRI_ATTEND);
        }
        status = hri_step_fetch_wait(&st, status);
        move_ends(&st, HRI_FETCH);
        if (status != HR_OK) {
            return status;
        }
        if (!st.layer->indexed || any_late(&st)) {
            heads_run(&st, st.layer->indexed ? land_task : rows_task);
        }
    }
    for (uint32_t h = 0; h < s->n_kv; h++) {
        hri_partial_finish(&s->steps[h].part, s->g, s->dv, out + (size_t)h * s->g * s->dv, NULL);
    }
    move_ends(&st, HRI_ATTEND);
    hri_step_report(&st);
    return HR_OK;
}
