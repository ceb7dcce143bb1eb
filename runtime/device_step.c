/* A step on the device: the launches of a layer, recorded once; what goes there and comes back for a token. */
#include "runtime/device_launch.h"

#include "base/clock.h"
#include "base/error.h"
#include "index/view.h"
#include <string.h>

#define GATHER_BLOCKS 4u /* thread blocks: enough for the bus, few enough to leave the rest alone */

/* -- launches -- */

static struct hri_cuda_shape shape_of(const struct hri_device_launches *l)
{
    const struct hri_device_layer *d = l->d;
    return (struct hri_cuda_shape){.f = d->f,
                                   .w = d->w,
                                   .u = d->u,
                                   .f_scale = d->f_scale,
                                   .w_scale = d->w_scale,
                                   .u_scale = d->u_scale,
                                   .rank_c = l->p->rank_c,
                                   .rank_d = l->p->rank_d,
                                   .k_mean = d->k_mean};
}

static int append(const struct hri_device_launches *l)
{
    const hr_sequence_t *s = l->s;
    const unsigned char *row = l->d->in.row;
    const struct hri_cuda_append_args a = {.k = row,
                                           .v = row + (size_t)s->dk * hr_dtype_bytes(s->dtype),
                                           .k_token_stride = s->dk + s->dv,
                                           .k_head_stride = s->dk + s->dv,
                                           .v_token_stride = s->dk + s->dv,
                                           .v_head_stride = s->dk + s->dv,
                                           .from = s->dtype,
                                           .to = s->dtype,
                                           .tail = l->d->tail,
                                           .capacity = s->tail_max,
                                           .length = l->d->in.near + 3,
                                           .bad = l->w->bad};
    return l->p->launch->append(&a, l->p->heads, 1, l->stream);
}

static struct hri_cuda_attend_args attend_args(const struct hri_device_launches *l)
{
    return (struct hri_cuda_attend_args){.q = l->q,
                                         .dtype = l->s->dtype,
                                         .soft_cap = l->s->soft_cap,
                                         .work = l->w->attend_work,
                                         .arrived = l->w->attend_arrived};
}

static int near_attend(const struct hri_device_launches *l)
{
    const hr_sequence_t *s = l->s;
    struct hri_cuda_attend_args a = attend_args(l);
    const struct hri_cuda_run sink = {.rows = l->d->sink,
                                      .head_stride_bytes = (size_t)s->n_sink * s->row_bytes,
                                      .n = l->d->in.near,
                                      .capacity = s->n_sink};
    a.runs[0] = (struct hri_cuda_run){.rows = l->d->tail,
                                      .head_stride_bytes = (size_t)s->tail_max * s->row_bytes,
                                      .n = l->d->in.near + 1,
                                      .first = l->d->in.near + 2,
                                      .capacity = s->tail_max};
    a.runs[1] = sink;
    a.n_runs = s->n_sink > 0 ? 2 : 1;
    a.out = l->w->near_out;
    a.lse = l->w->near_lse;
    return l->p->launch->attend(&a, l->p->heads, l->stream);
}

static int score(const struct hri_device_launches *l)
{
    const struct hri_device_layer *d = l->d;
    const struct hri_cuda_summaries summaries = {d->k_codes, d->k_scale,       d->spread,
                                                 d->rows,    l->p->blocks_max, d->in.n_blocks};
    const bool masses =
        !hri_device_sketched(l->p); /* else their rows' sketches say what blocks weigh */
    const struct hri_cuda_score_args a = {.q = l->w->query.i8,
                                          .common = l->w->query.common,
                                          .variance = l->w->query.variance,
                                          .near_m = l->w->near_lse,
                                          .near_l = l->w->ones,
                                          .soft_cap = l->s->soft_cap,
                                          .dots = l->w->dots,
                                          .log_mass = masses ? l->w->log_mass : NULL,
                                          .stride = l->p->blocks_max,
                                          .top = l->w->top,
                                          .total = l->w->total,
                                          .work = l->w->score_work,
                                          .arrived = l->w->score_arrived};
    return l->p->launch->score(&a, &summaries, l->p->heads, l->stream);
}

static int factor(const struct hri_device_launches *l)
{
    const bool sketched = hri_device_sketched(l->p);
    const struct hri_cuda_factor_args a = {.log_mass = l->w->log_mass,
                                           .top = l->w->top,
                                           .total = l->w->total,
                                           .stride = l->p->blocks_max,
                                           .near_out = l->w->near_out,
                                           .near_lse = l->w->near_lse,
                                           .v_codes = l->d->v_codes,
                                           .v_scale = l->d->v_scale,
                                           .v_mean = l->d->v_mean,
                                           .v_variance = l->d->v_variance,
                                           .n = l->d->in.n_blocks,
                                           .blocks_max = l->p->blocks_max,
                                           .added = sketched ? l->p->sketch_work.added : NULL,
                                           .factor = l->w->factor,
                                           .common = l->w->common,
                                           .size = sketched ? l->p->sketch_work.size : NULL};
    return l->p->launch->factor(&a, l->p->heads, l->stream);
}

static int worth(const struct hri_device_launches *l, const struct hri_cuda_residency *table)
{
    const struct hri_cuda_worth_args a = {.log_mass = l->w->log_mass,
                                          .top = l->w->top,
                                          .total = l->w->total,
                                          .variance = l->w->query.variance,
                                          .factor = l->w->factor,
                                          .common = l->s->tolerance > 0 ? l->w->common : NULL,
                                          .spread = l->d->spread,
                                          .rows = l->d->rows,
                                          .peak = l->d->peak,
                                          .n = l->d->in.n_blocks,
                                          .blocks_max = l->p->blocks_max,
                                          .row_bytes = l->s->code_bytes,
                                          .stride = l->p->blocks_max,
                                          .frame_of = table->frame_of,
                                          .key = l->w->key,
                                          .error = l->w->error,
                                          .cost = l->w->cost,
                                          .class_ = l->w->class_,
                                          .left = l->w->left};
    return l->p->launch->worth(&a, l->p->heads, l->stream);
}

static int choose(const struct hri_device_launches *l)
{
    const struct hri_cuda_select_args a = {.key = l->w->key,
                                           .cost = l->w->cost,
                                           .class_ = l->w->class_,
                                           .error = l->w->error,
                                           .stride = l->p->items,
                                           .n = l->d->in.n_items,
                                           .budget = l->d->in.budget,
                                           .left = l->w->left,
                                           .enough = l->d->in.enough,
                                           .items = l->d->lists.items,
                                           .items_max = l->s->items_max,
                                           .n_items = l->d->out.n_items,
                                           .left_out = l->w->left_out};
    return l->p->launch->select(&a, l->s->n_kv, l->stream);
}

static struct hri_cuda_resolve_args resolve_args(const struct hri_device_launches *l)
{
    return (struct hri_cuda_resolve_args){.items = l->d->lists.items,
                                          .n_items = l->d->out.n_items,
                                          .items_max = l->s->items_max,
                                          .frames = l->d->lists.frames,
                                          .jobs = l->w->jobs,
                                          .jobs_max = l->p->jobs_max,
                                          .n_jobs = l->w->n_jobs,
                                          .counts = l->w->counts};
}

static int gather(const struct hri_device_launches *l)
{
    const struct hri_cuda_gather_args a = {.jobs = l->w->jobs,
                                           .n_jobs = l->w->n_jobs,
                                           .host = hri_store_host_run(l->s->runtime->store).base,
                                           .host_offset = l->d->host_offset,
                                           .bytes = l->d->block_bytes,
                                           .blocks_max = l->p->items,
                                           .frames =
                                               hri_device_tier_frames(l->p->tier, l->d->number),
                                           .frame_bytes = l->p->frame_bytes};
    return l->p->launch->gather(&a, GATHER_BLOCKS, HRI_CUDA_PATH_AUTO, l->stream);
}

static int far_attend(const struct hri_device_launches *l)
{
    const struct hri_device_layer *d = l->d;
    struct hri_cuda_attend_args a = attend_args(l);
    a.q8 = l->w->query.i8;
    a.refined = (struct hri_cuda_refined){
        .items = d->lists.items,
        .n_items = d->out.n_items,
        .frames_of = d->lists.frames,
        .items_max = l->s->items_max,
        .rows_max = l->s->part_rows,
        .frames = (const int8_t *)hri_device_tier_frames(l->p->tier, d->number),
        .frame_bytes = l->p->frame_bytes,
        .k_step = d->k_step,
        .v_step = d->v_step,
        .rows = d->rows,
        .dots = l->w->dots,
        .parts = l->p->parts};
    a.estimate = (struct hri_cuda_estimate){.n = d->in.n_blocks,
                                            .log_mass = l->w->log_mass,
                                            .mark = l->w->mark,
                                            .spread = d->spread,
                                            .shift = l->w->query.shift};
    a.blocks_max = l->p->blocks_max;
    a.stride = l->p->blocks_max;
    a.v_codes = d->v_codes;
    a.v_scale = d->v_scale;
    a.parts_out = l->w->near_out;
    a.parts_lse = l->w->near_lse;
    a.n_parts = 1;
    a.out = d->out.out;
    a.lse = l->w->lse;
    HRI_LAUNCHED(l->p->launch->mark(&a.refined, d->in.n_items, l->p->items, l->w->mark, l->s->n_kv,
                                    l->stream));
    if (hri_device_sketched(l->p)) {
        HRI_LAUNCHED(hri_device_sketch_rest(l));
        a.estimate = (struct hri_cuda_estimate){.n = d->in.n_blocks,
                                                .log_mass = l->p->sketch_work.left_mass};
        a.added = l->p->sketch_work.added;
        a.added_top = l->w->top;
    }
    return l->p->launch->attend(&a, l->p->heads, l->stream);
}

static int predict(const struct hri_device_launches *l)
{
    const struct hri_device_layer *d = l->d;
    const struct hri_cuda_predict_args a = {.log_mass = l->w->log_mass,
                                            .top = l->w->top,
                                            .total = l->w->total,
                                            .stride = l->p->blocks_max,
                                            .variance = l->w->query.variance,
                                            .factor = l->w->factor,
                                            .common = l->w->common,
                                            .spread = d->spread,
                                            .rows = d->rows,
                                            .mark = l->w->mark,
                                            .n = d->in.n_blocks,
                                            .blocks_max = l->p->blocks_max,
                                            .items = d->lists.items,
                                            .n_items = d->out.n_items,
                                            .frames_of = d->lists.frames,
                                            .items_max = l->s->items_max,
                                            .class_ = l->w->class_,
                                            .predicted = d->out.predicted,
                                            .late = d->out.late,
                                            .counts = d->out.counts};
    return l->p->launch->predict(&a, l->p->heads, l->stream);
}

static int choice(const struct hri_device_launches *l)
{
    const struct hri_cuda_residency *table = hri_device_tier_table(l->p->tier, l->d->number);
    const struct hri_cuda_resolve_args resolve = resolve_args(l);
    const bool sketched = hri_device_sketched(l->p);
    HRI_LAUNCHED(score(l));
    if (sketched) {
        HRI_LAUNCHED(hri_device_sketch_read(l));
    }
    HRI_LAUNCHED(factor(l));
    HRI_LAUNCHED(sketched ? hri_device_sketch_worth(l, table) : worth(l, table));
    HRI_LAUNCHED(choose(l));
    return l->p->launch->resolve(table, &resolve, l->s->n_kv, l->stream);
}

static int first_half(const struct hri_device_launches *l)
{
    const struct hri_cuda_shape shape = shape_of(l);
    HRI_LAUNCHED(l->p->launch->query(l->q, l->p->heads, &shape, &l->w->query, l->stream));
    if (hri_device_sketched(l->p)) {
        HRI_LAUNCHED(hri_device_sketch_query(l));
    }
    HRI_LAUNCHED(near_attend(l));
    return choice(l);
}

static int mail(const struct hri_device_launches *l)
{
    const struct hri_cuda_mail_args a = {.jobs = l->w->jobs,
                                         .n_jobs = l->w->n_jobs,
                                         .ticket = l->d->in.ticket,
                                         .limit_ns = l->d->in.limit_ns,
                                         .frames = hri_device_tier_frames(l->p->tier, l->d->number),
                                         .late = l->w->late,
                                         .n_late = l->w->n_late};
    HRI_LAUNCHED(l->p->launch->mail_post(&l->p->box, &a, l->stream));
    return l->p->launch->mail_collect(&l->p->box, &a, l->stream);
}

static int second_half(const struct hri_device_launches *l)
{
    if (l->p->direct) {
        HRI_LAUNCHED(gather(l));
    } else {
        const struct hri_cuda_resolve_args resolve = resolve_args(l);
        if (l->p->mailed) {
            HRI_LAUNCHED(mail(l));
        }
        HRI_LAUNCHED(l->p->launch->resolve_late(hri_device_tier_table(l->p->tier, l->d->number),
                                                &resolve, l->w->late, l->w->n_late, l->stream));
    }
    HRI_LAUNCHED(far_attend(l));
    return hri_device_sketched(l->p) ? hri_device_sketch_predict(l) : predict(l);
}

/* -- recording -- */

static hr_status_t record(struct hri_device *device, const struct hri_device_launches *l,
                          bool first, bool second, void **graph_out)
{
    const struct hri_device_ops *ops = hri_device_ops(device);
    hr_status_t status = hri_device_check(device, ops->capture_begin(l->stream), "recording");
    if (status != HR_OK) {
        return status;
    }
    int error = first ? append(l) : 0;
    error = error == 0 && first ? first_half(l) : error;
    error = error == 0 && second ? second_half(l) : error;
    void *graph = NULL;
    int ended = ops->capture_end(l->stream, &graph);
    status = hri_device_check(device, error != 0 ? error : ended, "recording a step");
    if (status == HR_OK) {
        *graph_out = graph;
    } else if (graph != NULL) {
        ops->graph_destroy(graph);
    }
    return status;
}

static struct hri_device_launches launch_of(const hr_sequence_t *s, uint32_t layer_index)
{
    const struct hri_device_part *p = s->part;
    const struct hri_device_layer *d = &p->layers[layer_index];
    return (struct hri_device_launches){s, p, d, &p->work, hri_device_stream(p->device), d->in.q};
}

hr_status_t hri_device_record(hr_sequence_t *s, uint32_t layer_index)
{
    struct hri_device_part *p = s->part;
    struct hri_device_layer *d = &p->layers[layer_index];
    const struct hri_device_launches l = launch_of(s, layer_index);
    const bool whole = p->direct || p->mailed;
    hr_status_t status = record(p->device, &l, true, whole, &d->first);
    if (status == HR_OK && !whole) {
        status = record(p->device, &l, false, true, &d->second);
    }
    return status;
}

int hri_device_append(const hr_sequence_t *s, const struct hri_launchers *launch, const float *k,
                      const float *v, struct hri_cuda_append_args ring, void *beside, void *stream)
{
    const struct hri_cuda_heads heads = {s->n_kv, s->g, s->dk, s->dv};
    ring.k = k;
    ring.v = v;
    ring.k_token_stride = (int64_t)s->n_kv * s->dk;
    ring.k_head_stride = s->dk;
    ring.v_token_stride = (int64_t)s->n_kv * s->dv;
    ring.v_head_stride = s->dv;
    ring.from = HR_DTYPE_F32;
    ring.to = s->dtype;
    HRI_LAUNCHED(launch->append(&ring, heads, 1, stream));
    ring.tail = beside;
    ring.capacity = 1;
    return launch->append(&ring, heads, 1, stream);
}

int hri_device_launch(const hr_sequence_t *s, uint32_t layer_index, const float *q, const float *k,
                      const float *v)
{
    struct hri_device_launches l = launch_of(s, layer_index);
    l.q = l.d->out.q;
    HRI_LAUNCHED(l.p->launch->scale(q, l.d->in.scale, s->n_q, s->dk, l.d->out.q, l.stream));
    const struct hri_cuda_append_args ring = {
        .tail = l.d->tail, .capacity = s->tail_max, .length = l.d->in.near + 3, .bad = l.w->bad};
    HRI_LAUNCHED(hri_device_append(s, l.p->launch, k, v, ring, l.d->out.row, l.stream));
    HRI_LAUNCHED(first_half(&l));
    return second_half(&l);
}

int hri_device_launch_again(const hr_sequence_t *s, uint32_t layer_index)
{
    const struct hri_device_launches l = launch_of(s, layer_index);
    HRI_LAUNCHED(append(&l));
    HRI_LAUNCHED(first_half(&l));
    return second_half(&l);
}

int hri_device_launch_choice(const hr_sequence_t *s, uint32_t layer_index)
{
    const struct hri_device_launches l = launch_of(s, layer_index);
    return choice(&l);
}

/* -- a token -- */

struct hri_device_token hri_device_token(hr_sequence_t *s, uint32_t layer_index, uint32_t position,
                                         struct hr_attend_report *report)
{
    return (struct hri_device_token){.s = s,
                                     .p = s->part,
                                     .layer = &s->layers[layer_index],
                                     .d = &s->part->layers[layer_index],
                                     .in = &s->part->ins[layer_index],
                                     .out = &s->part->outs[layer_index],
                                     .layer_index = layer_index,
                                     .position = position,
                                     .report = report};
}

static void move_ends(struct hri_device_token *t, enum hri_stage stage)
{
    uint64_t now = hri_now_ns();
    t->report->time_ns[stage] += now - t->time_ns;
    t->time_ns = now;
}

/* Budgets of misses and of hits, by what rows were worth to the last token where heads share. */
static void budgets_fill(struct hri_device_token *t)
{
    hr_sequence_t *s = t->s;
    const uint64_t equal = hri_step_budget(s, t->layer);
    const double reuse = hri_recipe_value(&s->recipe, "reuse");
    const float *part =
        s->share.part != NULL
            ? hri_share_parts(&s->share, t->layer_index, t->position, (double)equal / s->code_bytes)
            : NULL;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        const uint64_t budget = part != NULL ? (uint64_t)((double)part[h] * (double)equal) : equal;
        t->in->budget[2 * h] = budget;
        t->in->budget[2 * h + 1] = (uint64_t)(reuse * (double)budget);
    }
}

void hri_device_in_fill(struct hri_device_token *t)
{
    const hr_sequence_t *s = t->s;
    const struct hri_layer *l = t->layer;
    struct hri_device_in *in = t->in;
    budgets_fill(t);
    for (uint32_t h = 0; h < s->n_kv; h++) {
        const struct hri_sketch *sketch = hri_index_view(l->heads[h]).sketch;
        in->n_blocks[h] = hri_index_blocks(l->heads[h]);
        in->n_items[h] = in->n_blocks[h] * s->parts;
        in->n_bases[h] = sketch != NULL ? sketch->n_bases : 0;
        in->n_lone[h] = sketch != NULL ? sketch->n_lone : 0;
        in->n_strays[h] = sketch != NULL ? sketch->strays.n : 0;
        in->enough[h] = (float)(s->g * s->tolerance * s->tolerance);
    }
    uint32_t seen = t->position + 1, first = l->body_end > s->n_sink ? l->body_end : s->n_sink;
    in->near[0] = seen < s->n_sink ? seen : s->n_sink;
    in->near[1] = first < seen ? seen - first : 0;
    in->near[2] = first % s->tail_max;
    in->near[3] = t->position % s->tail_max;
    *in->ticket = ++t->p->ticket;
    *in->limit_ns = hri_store_timeout_ns(s->runtime->store);
}

static void query_fill(struct hri_device_token *t, const float *q)
{
    const hr_sequence_t *s = t->s;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        memcpy(t->in->row + (size_t)h * s->row_bytes, hri_tail_row(s, t->layer, h, t->position),
               s->row_bytes);
    }
    memcpy(t->in->q, q, (size_t)s->n_q * s->dk * sizeof *q);
}

/* Late and lost blocks stay at their summary, unless the caller wants all of them. */
static void judge(struct hri_device_token *t, hr_status_t status)
{
    bool late = status == HR_ERR_TIMEOUT, lost = status == HR_ERR_IO || status == HR_ERR_CORRUPT;
    if ((late && t->limits->deadline_ns != 0 && !t->limits->strict) ||
        (lost && !t->limits->strict)) {
        return;
    }
    char message[HRI_ERROR_BYTES_MAX];
    hri_error_get(message, sizeof message);
    t->judged = hri_error_set(status, "layer %u, tokens %u to %u: %s", t->layer_index, t->s->n_sink,
                              t->layer->body_end - 1, message);
}

void hri_device_read_fill(const hr_sequence_t *s, uint32_t layer_index,
                          const struct hri_cuda_job *job, void *dst, struct hri_read *read)
{
    const struct hri_layer *l = &s->layers[layer_index];
    const struct hri_block_at *at = &l->places[job->head][job->block];
    *read = (struct hri_read){.lane = l->block_lane,
                              .cell = at->cell,
                              .n_cells = 1,
                              .offset = at->offset,
                              .bytes = hri_index_item_rows(l->heads[job->head], job->block) *
                                       s->code_bytes,
                              .dst = dst};
}

/* Reads all misses; those that came are copied to their frames, the others stay in p->jobs. Returns how many these are. */
static hr_status_t misses_read(struct hri_device_token *t, uint32_t n, uint32_t *n_late_out)
{
    struct hri_device_part *p = t->p;
    struct hri_store *store = t->s->runtime->store;
    struct hri_read_batch batch = {
        .reads = p->reads, .n_reads = n, .indirect = true, .leave_host = true};
    uint64_t hard_ns = hri_now_ns() + hri_store_timeout_ns(store);
    bool waits = t->limits->strict || t->limits->deadline_ns == 0;
    for (uint32_t j = 0; j < n; j++) {
        hri_device_read_fill(t->s, t->layer_index, &p->jobs[j],
                             p->box.landing + (size_t)j * p->frame_bytes, &p->reads[j]);
    }
    hr_status_t status = hri_store_read_begin(store, &batch);
    if (status != HR_OK) {
        return status;
    }
    status = hri_store_read_wait(store, &batch, waits ? hard_ns : t->limits->deadline_ns);
    if (status == HR_ERR_TIMEOUT) {
        hri_store_read_cancel(store, &batch);
    }
    if (status != HR_OK) {
        judge(t, status);
    }
    unsigned char *frames = hri_device_tier_frames(p->tier, t->d->number);
    uint32_t n_late = 0;
    status = HR_OK;
    for (uint32_t j = 0; j < n && status == HR_OK; j++) {
        const struct hri_read *read = &p->reads[j];
        if (!read->done || read->status != HR_OK) {
            t->n_lost += read->done;
            p->jobs[n_late++] = p->jobs[j];
            continue;
        }
        status = hri_device_copy(p->device, frames + (size_t)p->jobs[j].frame * p->frame_bytes,
                                 read->from != NULL ? read->from : read->dst, read->bytes);
    }
    t->report->bytes_from_host += batch.bytes_from_host;
    t->report->bytes_from_file += batch.bytes_from_file;
    t->report->ios += batch.ios;
    *n_late_out = n_late;
    return status;
}

/* What the device cannot reach is brought by the host, between the two halves. */
static hr_status_t misses_bring(struct hri_device_token *t)
{
    struct hri_device_part *p = t->p;
    uint32_t n = 0, n_late = 0;
    hr_status_t status = hri_device_copy(p->device, &n, p->work.n_jobs, sizeof n);
    status = status == HR_OK ? hri_device_wait(p->device) : status;
    move_ends(t, HRI_SELECT);
    if (status == HR_OK && n > 0) {
        status = hri_device_copy(p->device, p->jobs, p->work.jobs, n * sizeof *p->jobs);
        status = status == HR_OK ? hri_device_wait(p->device) : status;
        status = status == HR_OK ? misses_read(t, n, &n_late) : status;
    }
    if (status == HR_OK) {
        status = hri_device_copy(p->device, p->work.late, p->jobs, n_late * sizeof *p->jobs);
    }
    if (status == HR_OK) {
        status = hri_device_copy(p->device, p->work.n_late, &n_late, sizeof n_late);
    }
    move_ends(t, HRI_FETCH);
    return status;
}

static hr_status_t graph_run(struct hri_device *device, void *graph)
{
    hr_status_t status = hri_device_alive(device);
    return status != HR_OK
               ? status
               : hri_device_check(
                     device, hri_device_ops(device)->graph_launch(graph, hri_device_stream(device)),
                     "a step");
}

/* How long the device may wait for a block: until the deadline, or as long as the store does. */
static uint64_t limit_ns(const struct hri_device_token *t)
{
    uint64_t now = hri_now_ns(), deadline = t->limits->deadline_ns;
    if (t->limits->strict || deadline == 0) {
        return hri_store_timeout_ns(t->s->runtime->store);
    }
    return deadline > now ? deadline - now : 0;
}

static hr_status_t mail_serve(struct hri_device_token *t)
{
    struct hri_device_mail mail = {.first_layer = t->layer_index,
                                   .n_layers = 1,
                                   .first_ticket = *t->in->ticket,
                                   .report = t->report};
    hr_status_t status = hri_device_mail_serve(t->s, &mail);
    t->n_lost = mail.n_lost;
    if (status == HR_OK && mail.n_lost > 0) {
        judge(t, hri_error_set(mail.why, "%u blocks cannot be read", mail.n_lost));
    }
    if (status == HR_OK && mail.n_late > 0) {
        judge(t, hri_error_set(HR_ERR_TIMEOUT, "%u blocks are late", mail.n_late));
    }
    return status;
}

static hr_status_t device_run(struct hri_device_token *t)
{
    struct hri_device_part *p = t->p;
    struct hri_device *device = p->device;
    bool lists = t->layer->block_tokens != NULL;
    hr_status_t status = hri_device_copy(device, t->d->in.n_blocks, t->in->n_blocks, t->in->bytes);
    status = status == HR_OK ? graph_run(device, t->d->first) : status;
    if (status == HR_OK && !p->direct && !p->mailed) {
        status = misses_bring(t);
        status = status == HR_OK ? graph_run(device, t->d->second) : status;
    }
    if (status == HR_OK) {
        status = hri_device_copy(device, t->out->out, t->d->out.out, t->out->bytes);
    }
    if (status == HR_OK && lists) {
        status = hri_device_copy(device, p->lists.items, t->d->lists.items, p->lists.bytes);
    }
    if (status == HR_OK && p->mailed) {
        status = mail_serve(t);
    }
    status = status == HR_OK ? hri_device_wait(device) : status;
    move_ends(t, HRI_ATTEND);
    return status;
}

/* What the CPU's step leaves for hr_attend_options.predicted_out and refined_out. */
static void heads_fill(struct hri_device_token *t)
{
    const hr_sequence_t *s = t->s;
    const struct hri_device_out *o = t->out;
    const struct hri_device_lists *lists = &t->p->lists;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        struct hri_head_step *hs = &s->steps[h];
        memcpy(hs->out.predicted, o->predicted + (size_t)h * s->g, s->g * sizeof(float));
        hs->out.n_items = hs->out.n_rows = 0;
        if (t->layer->block_tokens == NULL) {
            continue;
        }
        hs->out.items = hs->items;
        hs->out.n_items = o->n_items[h];
        for (uint32_t i = 0; i < o->n_items[h]; i++) {
            const size_t at = (size_t)h * s->items_max + i;
            hs->items[i] = lists->items[at];
            hs->where[i] = lists->frames[at] != HRI_CUDA_NONE ? hs->items : NULL; /* that it came */
        }
    }
}

static void report_head(struct hri_device_token *t, uint32_t h, uint32_t body)
{
    const hr_sequence_t *s = t->s;
    struct hr_attend_report *r = t->report;
    const uint32_t *c = t->out->counts + (size_t)h * HRI_CUDA_PREDICT_COUNTS;
    const uint32_t blocks = hri_index_items(t->layer->heads[h]);
    const int rest = hri_device_sketched(t->p) ? 1 : 0; /* the level of what is not refined */
    r->blocks_total += blocks;
    r->blocks_hit += c[1];
    r->blocks_fetched += c[0] - c[1];
    r->blocks_late += c[2];
    r->blocks_estimated += blocks - c[0] - c[2];
    r->rows_by_level[2] += c[3];
    r->bytes_by_level[2] += (uint64_t)c[3] * s->code_bytes;
    r->rows_by_level[rest] += body - c[3];
    r->bytes_by_level[0] += hri_index_summary_bytes(t->layer->heads[h]);
    r->bytes_by_level[1] += hri_device_sketch_read_bytes(t->layer->heads[h]);
    r->bytes_selected += (uint64_t)(c[3] + c[5]) * s->code_bytes;
    r->bytes_hit += (uint64_t)c[4] * s->code_bytes;
    if (t->p->direct) {
        r->bytes_from_host += (uint64_t)(c[3] - c[4]) * s->code_bytes;
    }
}

/* The device says what it predicts, not why it ended: above a tolerance only the budget ends it. */
static bool is_capped(const struct hri_device_token *t, uint32_t h)
{
    const hr_sequence_t *s = t->s;
    double sum = 0;
    for (uint32_t g = 0; g < s->g; g++) {
        double predicted = t->out->predicted[h * s->g + g];
        sum += predicted * predicted;
    }
    return s->tolerance > 0 && sum > s->g * s->tolerance * s->tolerance;
}

void hri_device_report(struct hri_device_token *t)
{
    hr_sequence_t *s = t->s;
    const struct hri_layer *l = t->layer;
    struct hr_attend_report *r = t->report;
    uint32_t body = hri_body_tokens(s, l);
    double sum = 0.0, late = 0.0;
    uint64_t near = (uint64_t)(t->position + 1 - body) * s->n_kv;
    r->rows_device += near;
    r->rows_by_level[3] += near;
    r->bytes_by_level[3] += near * s->row_bytes;
    r->body_bytes += (uint64_t)body * s->n_kv * s->row_bytes;
    r->blocks_lost += t->n_lost;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        report_head(t, h, body);
        r->heads_capped += is_capped(t, h);
        if (s->share.part != NULL) {
            memcpy(hri_share_worth_set(&s->share, t->layer_index, h),
                   t->out->worth + (size_t)h * HRI_WORTH_BINS,
                   HRI_WORTH_BINS * sizeof *t->out->worth);
        }
    }
    for (uint32_t h = 0; h < s->n_q; h++) {
        double predicted = t->out->predicted[h];
        sum += predicted;
        late += t->out->late[h];
        r->predicted_error_max =
            predicted > r->predicted_error_max ? predicted : r->predicted_error_max;
    }
    r->predicted_error += sum / s->n_q;
    r->late_error += late / s->n_q;
}

static hr_status_t token_begin(struct hri_device_token *t)
{
    hr_sequence_t *s = t->s;
    struct hri_layer *l = t->layer;
    hri_store_take_late(s->runtime->store);
    hr_status_t status = hri_device_alive(t->p->device);
    status = status == HR_OK ? hri_settle(s, l, s->decode_segment, true) : status;
    status = status == HR_OK ? hri_query_in_window(l, t->layer_index, t->position) : status;
    /* The newest row comes with the token. */
    uint32_t end = t->position + 1 == l->n_tokens ? t->position : l->n_tokens;
    return status == HR_OK ? hri_device_sync(s, l, end) : status;
}

/* All or nothing was asked for, and some blocks had no frame. */
static hr_status_t strict_check(const struct hri_device_token *t)
{
    if (t->judged != HR_OK || !t->limits->strict || t->report->blocks_late == 0) {
        return t->judged;
    }
    return hri_error_set(HR_ERR_BUDGET, "layer %u: device tier: no frames for %llu chosen blocks",
                         t->layer_index, (unsigned long long)t->report->blocks_late);
}

hr_status_t hri_device_step(hr_sequence_t *s, uint32_t layer_index, const float *q,
                            uint32_t position, const struct hri_limits *limits, float *out,
                            struct hr_attend_report *report)
{
    struct hri_device_token t = hri_device_token(s, layer_index, position, report);
    t.limits = limits;
    hr_status_t status = token_begin(&t);
    if (status != HR_OK) {
        return status;
    }
    t.time_ns = hri_now_ns();
    hri_device_in_fill(&t);
    *t.in->limit_ns = limit_ns(&t);
    query_fill(&t, q);
    hri_device_range_begin(t.p->device, "headrace step");
    status = device_run(&t);
    hri_device_range_end(t.p->device);
    if (status != HR_OK) {
        return status;
    }
    t.d->rows_synced = t.layer->n_tokens;
    hri_device_report(&t);
    status = strict_check(&t);
    if (status != HR_OK) {
        return status;
    }
    heads_fill(&t);
    for (uint32_t h = 0; h < s->n_kv; h++) {
        hri_index_observe(t.layer->heads[h], q + (size_t)h * s->g * s->dk, 1, position);
    }
    memcpy(out, t.out->out, (size_t)s->n_q * s->dv * sizeof *out);
    return HR_OK;
}
