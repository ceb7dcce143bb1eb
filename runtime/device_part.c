/* A sequence's memory on the device: laid out once, brought up to date with the host before each step. */
#include "runtime/device_part.h"

#include "runtime/device_index.h"

#include "base/error.h"
#include "index/view.h"
#include <inttypes.h>
#include <string.h>

#define FRAME_STEPS    8.0 /* as sequence.c: frames for so many tokens' worth of refined bytes */
#define SHAPE_RANK_MAX 64u /* of kernels/cuda/query.cu */

/* -- layout -- */

static void in_carve(const hr_sequence_t *s, struct hri_device_carve *c, struct hri_device_in *in)
{
    const size_t begin = c->used, h = s->n_kv;
    in->n_blocks = hri_device_carve(c, h, sizeof *in->n_blocks);
    in->n_items = hri_device_carve(c, h, sizeof *in->n_items);
    in->n_bases = hri_device_carve(c, h, sizeof *in->n_bases);
    in->n_lone = hri_device_carve(c, h, sizeof *in->n_lone);
    in->n_strays = hri_device_carve(c, h, sizeof *in->n_strays);
    in->budget = hri_device_carve(c, 2 * h, sizeof *in->budget);
    in->enough = hri_device_carve(c, h, sizeof *in->enough);
    in->ticket = hri_device_carve(c, 1, sizeof *in->ticket);
    in->limit_ns = hri_device_carve(c, 1, sizeof *in->limit_ns);
    in->near = hri_device_carve(c, 4, sizeof *in->near);
    in->q = hri_device_carve(c, (size_t)s->n_q * s->dk, sizeof *in->q);
    in->scale = hri_device_carve(c, s->n_q, sizeof *in->scale);
    in->row = hri_device_carve(c, h, s->row_bytes);
    in->bytes = c->used - begin;
}

static void out_carve(const struct hri_device_part *p, const hr_sequence_t *s,
                      struct hri_device_carve *c, struct hri_device_out *o)
{
    const size_t begin = c->used, h = s->n_kv;
    o->out = hri_device_carve(c, (size_t)s->n_q * s->dv, sizeof *o->out);
    o->predicted = hri_device_carve(c, s->n_q, sizeof *o->predicted);
    o->late = hri_device_carve(c, s->n_q, sizeof *o->late);
    o->counts = hri_device_carve(c, h * HRI_CUDA_PREDICT_COUNTS, sizeof *o->counts);
    o->n_items = hri_device_carve(c, h, sizeof *o->n_items);
    o->worth = hri_device_carve(c, p->sizes.lines > 0 ? h * HRI_WORTH_BINS : 0, sizeof *o->worth);
    o->q = hri_device_carve(c, (size_t)s->n_q * s->dk, sizeof *o->q);
    o->row = hri_device_carve(c, h, s->row_bytes);
    o->bytes = c->used - begin;
}

static void lists_carve(const hr_sequence_t *s, struct hri_device_carve *c,
                        struct hri_device_lists *l)
{
    const size_t begin = c->used, n = (size_t)s->n_kv * s->items_max;
    l->items = hri_device_carve(c, n, sizeof *l->items);
    l->frames = hri_device_carve(c, n, sizeof *l->frames);
    l->bytes = c->used - begin;
}

static void layer_carve(const struct hri_device_part *p, const hr_sequence_t *s,
                        struct hri_device_carve *c, struct hri_device_layer *l)
{
    const size_t h = s->n_kv, blocks = h * p->blocks_max, items = h * p->items;
    lists_carve(s, c, &l->lists);
    l->tail = hri_device_carve(c, h * s->tail_max, s->row_bytes);
    l->sink = hri_device_carve(c, h * s->n_sink, s->row_bytes);
    l->k_codes = hri_device_carve(c, blocks, s->dk);
    l->v_codes = hri_device_carve(c, blocks, s->dv);
    l->rows = hri_device_carve(c, blocks, 1);
    l->peak = hri_device_carve(c, blocks, 1);
    l->spread = hri_device_carve(c, blocks, sizeof *l->spread);
    l->k_scale = hri_device_carve(c, blocks, sizeof(float));
    l->v_scale = hri_device_carve(c, blocks, sizeof(float));
    l->k_step = hri_device_carve(c, blocks, sizeof(float));
    l->v_step = hri_device_carve(c, blocks, sizeof(float));
    l->k_mean = hri_device_carve(c, h * s->dk, sizeof(float));
    l->v_mean = hri_device_carve(c, h * s->dv, sizeof(float));
    l->v_variance = hri_device_carve(c, h, sizeof(float));
    l->f = hri_device_carve(c, h * p->rank_c, s->dk);
    l->w = hri_device_carve(c, h * p->rank_d, s->dk);
    l->u = hri_device_carve(c, h * p->rank_d, s->dv);
    l->f_scale = hri_device_carve(c, h * p->rank_c, sizeof(float));
    l->w_scale = hri_device_carve(c, h * p->rank_d, sizeof(float));
    l->u_scale = hri_device_carve(c, h * p->rank_d, sizeof(float));
    l->host_offset = hri_device_carve(c, p->direct ? items : 0, sizeof *l->host_offset);
    l->block_bytes = hri_device_carve(c, p->direct ? items : 0, sizeof *l->block_bytes);
    if (p->sizes.lines > 0) {
        hri_device_sketch_carve(p, c, &l->sketches);
    }
}

static void work_carve(const struct hri_device_part *p, const hr_sequence_t *s,
                       struct hri_device_carve *c, struct hri_device_work *w)
{
    const size_t h = s->n_kv, q = s->n_q, items = h * p->items;
    const size_t g_up = h * hri_cuda_g_up(s->g);
    w->query.i8.codes = hri_device_carve(c, g_up * 2, hri_cuda_dk_up(s->dk));
    w->query.i8.step = hri_device_carve(c, g_up, sizeof(float));
    w->query.common = hri_device_carve(c, q, sizeof(float));
    w->query.variance = hri_device_carve(c, q, sizeof(float));
    w->query.shift = hri_device_carve(c, q * s->dv, sizeof(float));
    w->near_out = hri_device_carve(c, q * s->dv, sizeof(float));
    w->near_lse = hri_device_carve(c, q, sizeof(float));
    w->lse = hri_device_carve(c, q, sizeof(float));
    w->ones = hri_device_carve(c, q, sizeof(float));
    w->dots = hri_device_carve(c, q * p->blocks_max, sizeof(float));
    w->log_mass = hri_device_carve(c, q * p->blocks_max, sizeof(float));
    w->top = hri_device_carve(c, q, sizeof(float));
    w->total = hri_device_carve(c, q, sizeof(float));
    w->score_work = hri_device_carve(c, p->launch->score_work(p->heads), sizeof(float));
    w->factor = hri_device_carve(c, q, sizeof(float));
    w->common = hri_device_carve(c, q, sizeof(float));
    w->key = hri_device_carve(c, items, sizeof(float));
    w->error = hri_device_carve(c, items, sizeof(float));
    w->left = hri_device_carve(c, h, sizeof(float));
    w->left_out = hri_device_carve(c, h, sizeof(float));
    w->attend_work = hri_device_carve(c, p->launch->attend_work(p->heads), sizeof(float));
    w->score_arrived = hri_device_carve(c, h, sizeof(uint32_t));
    w->attend_arrived = hri_device_carve(c, p->launch->attend_counters(p->heads), sizeof(uint32_t));
    w->cost = hri_device_carve(c, items, sizeof(uint32_t));
    w->n_jobs = hri_device_carve(c, 1, sizeof(uint32_t));
    w->n_late = hri_device_carve(c, 1, sizeof(uint32_t));
    w->counts = hri_device_carve(c, 3, sizeof(uint32_t));
    w->bad = hri_device_carve(c, 1, sizeof(uint32_t));
    w->class_ = hri_device_carve(c, items, 1);
    w->mark = hri_device_carve(c, items, 1);
    w->jobs = hri_device_carve(c, h * s->items_max, sizeof *w->jobs);
    w->late = hri_device_carve(c, p->direct ? 0 : h * s->items_max, sizeof *w->late);
}

/* All of it; with a NULL base it adds up. */
static void part_carve(struct hri_device_part *p, const hr_sequence_t *s,
                       struct hri_device_carve *c)
{
    struct hri_device_layer none, *layers = p->layers;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].indexed) { /* one run, for one copy */
            in_carve(s, c, layers != NULL ? &layers[i].in : &none.in);
        }
    }
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].indexed) {
            out_carve(p, s, c, layers != NULL ? &layers[i].out : &none.out);
        }
    }
    work_carve(p, s, c, &p->work);
    if (p->sizes.lines > 0) {
        hri_device_sketch_work_carve(p, c, &p->sketch_work);
    }
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].indexed) {
            layer_carve(p, s, c, layers != NULL ? &layers[i] : &none);
        }
    }
}

/* The host's side of input and output, in the same order. */
static void host_carve(struct hri_device_part *p, const hr_sequence_t *s,
                       struct hri_device_carve *c)
{
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].indexed) {
            in_carve(s, c, &p->ins[i]);
        }
    }
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].indexed) {
            out_carve(p, s, c, &p->outs[i]);
        }
    }
    lists_carve(s, c, &p->lists);
}

/* -- creation -- */

const char *hri_device_lacks(const hr_sequence_t *s)
{
    if (s->recipe.selector->unit == HRI_UNIT_ALL) {
        return s->dtype == HR_DTYPE_F32             ? "rows in f32 are attended"
               : s->dk % 16 != 0 || s->dv % 16 != 0 ? "rows of such dimensions are attended"
                                                    : NULL;
    }
    if (!hri_index_viewable(&s->recipe)) {
        return "this recipe's steps run";
    }
    if (hri_recipe_value(&s->recipe, "sketch_host") > 0) {
        return "steps with sketches in host memory (sketch_host=1) run";
    }
    if (s->dtype == HR_DTYPE_F32) {
        return "steps over rows in f32 run";
    }
    if (s->dk % 16 != 0 || s->dv % 16 != 0) {
        return "steps of head dimensions that are no multiples of 16 run";
    }
    return NULL;
}

uint32_t hri_device_layers(const hr_sequence_t *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        n += s->layers[i].indexed;
    }
    return n;
}

/* Frames of a layer: what the budget leaves, up to FRAME_STEPS tokens' worth; two budgets of one step are the least. */
static hr_status_t frames_deal(hr_sequence_t *s, struct hri_device_part *p, uint64_t fixed,
                               struct hri_device_tier_options *t)
{
    const struct hr_tier_stats tier = hri_device_stats(p->device);
    double dealt =
        s->share.part != NULL ? (double)HRI_SHARE_MOST : 1; /* of one layer's heads together */
    double step = dealt * s->moved * s->tokens_max * s->row_bytes / p->frame_bytes + 1;
    uint64_t whole = (uint64_t)s->n_kv * p->items;
    uint64_t least = (uint64_t)(2 * step * s->n_kv),
             want = (uint64_t)(FRAME_STEPS / dealt * step * s->n_kv);
    least = least < whole ? least : whole;
    want = want < whole ? want : whole;
    t->n_frames = (uint32_t)least;
    uint64_t frames = hri_device_tier_bytes(t), left = tier.bytes_cap - tier.bytes_held;
    if (fixed + frames > left) {
        return hri_error_set(HR_ERR_BUDGET,
                             "device tier: %" PRIu64
                             " bytes are not enough for this sequence; it needs at least %" PRIu64
                             " (windows and summaries %" PRIu64 ", frames for one step %" PRIu64
                             ")",
                             tier.bytes_cap, tier.bytes_held + fixed + frames, fixed, frames);
    }
    uint64_t most = want;
    while (least < most) { /* the largest number that fits */
        t->n_frames = (uint32_t)((least + most + 1) / 2);
        if (fixed + hri_device_tier_bytes(t) <= left) {
            least = t->n_frames;
        } else {
            most = t->n_frames - 1;
        }
    }
    t->n_frames = (uint32_t)least;
    return HR_OK;
}

static hr_status_t tier_create(hr_sequence_t *s, struct hri_device_part *p, uint64_t fixed)
{
    struct hri_device_tier_options t = {.device = p->device,
                                        .alloc = &s->runtime->alloc,
                                        .n_layers = hri_device_layers(s),
                                        .n_heads = s->n_kv,
                                        .blocks_max = p->items,
                                        .frame_bytes = p->frame_bytes};
    hr_status_t status = frames_deal(s, p, fixed, &t);
    if (status == HR_OK) {
        status = hri_device_tier_create(&t, &p->tier);
    }
    p->n_frames = t.n_frames;
    return status;
}

static void box_carve(struct hri_device_part *p, struct hri_device_carve *c)
{
    p->box.requests = hri_device_carve(c, p->jobs_max, sizeof *p->box.requests);
    p->box.n = hri_device_carve(c, 1, sizeof *p->box.n);
    p->box.posted = hri_device_carve(c, 1, sizeof *p->box.posted);
    p->box.answers = hri_device_carve(c, p->jobs_max, sizeof *p->box.answers);
    p->box.landing = hri_device_carve(c, p->jobs_max, p->frame_bytes);
    p->box.max = p->jobs_max;
    p->box.frame_bytes = p->frame_bytes;
}

/* Where pinned memory is refused blocks are brought between two halves of a step. */
static hr_status_t bringing_create(hr_sequence_t *s, struct hri_device_part *p)
{
    struct hri_alloc *a = &s->runtime->alloc;
    struct hri_device_carve c = {0};
    p->jobs = hri_array(a, p->jobs_max, sizeof *p->jobs);
    p->reads = hri_array(a, p->jobs_max, sizeof *p->reads);
    p->answered = hri_array(a, p->jobs_max, 1);
    if (p->jobs == NULL || p->reads == NULL || p->answered == NULL) {
        return hri_alloc_status();
    }
    box_carve(p, &c);
    hr_status_t status = hri_device_buffer_create(p->device, c.used, &p->box_memory);
    if (status != HR_OK) {
        return status;
    }
    c = (struct hri_device_carve){p->box_memory.base, 0};
    box_carve(p, &c);
    p->mailed = p->box_memory.pinned;
    return hri_device_check(p->device, hri_device_ops(p->device)->event_create(&p->event),
                            "an event");
}

/* What the host keeps beside: one token's input and output, lists of what is copied. */
static hr_status_t host_create(hr_sequence_t *s, struct hri_device_part *p)
{
    struct hri_alloc *a = &s->runtime->alloc;
    struct hri_device_carve c = {0};
    p->ins = hri_calloc(a, s->n_layers, sizeof *p->ins);
    p->outs = hri_calloc(a, s->n_layers, sizeof *p->outs);
    if (p->ins == NULL || p->outs == NULL) {
        return hri_alloc_status();
    }
    host_carve(p, s, &c);
    hr_status_t status = hri_device_buffer_create(p->device, c.used, &p->host);
    if (status != HR_OK) {
        return status;
    }
    c = (struct hri_device_carve){p->host.base, 0};
    host_carve(p, s, &c);
    p->synced = hri_calloc(a, (size_t)s->n_layers * s->n_kv, sizeof *p->synced);
    p->offsets = hri_array(a, p->items, sizeof *p->offsets);
    p->bytes = hri_array(a, p->items, sizeof *p->bytes);
    uint32_t numbers = p->blocks_max > p->sizes.lone_max ? p->blocks_max : p->sizes.lone_max;
    p->numbers = hri_array(a, numbers, sizeof *p->numbers);
    if (p->synced == NULL || p->offsets == NULL || p->bytes == NULL || p->numbers == NULL) {
        return hri_alloc_status();
    }
    uint64_t jobs = (uint64_t)s->n_kv * s->items_max;
    p->jobs_max = (uint32_t)(jobs < p->n_frames ? jobs : p->n_frames);
    return p->direct ? HR_OK : bringing_create(s, p);
}

static hr_status_t device_fill(hr_sequence_t *s, struct hri_device_part *p)
{
    struct hri_device_carve c = {p->memory.base, 0};
    float *ones = p->host.base; /* room enough, and not in use yet */
    part_carve(p, s, &c);
    for (uint32_t i = 0; i < s->n_q; i++) {
        ones[i] = 1.0f;
    }
    hr_status_t status = hri_device_fill(p->device, p->memory.base, 0, p->memory.bytes);
    if (status == HR_OK) {
        status = hri_device_copy(p->device, p->work.ones, ones, s->n_q * sizeof *ones);
    }
    uint32_t number = 0;
    for (uint32_t i = 0; i < s->n_layers && status == HR_OK; i++) {
        struct hri_device_layer *l = &p->layers[i];
        l->blocks_synced = p->synced + (size_t)i * s->n_kv;
        l->shape_stale = true;
        if (s->layers[i].indexed) {
            l->number = number++;
            status = hri_device_record(s, i);
        }
    }
    return status == HR_OK ? hri_device_wait(p->device) : status;
}

hr_status_t hri_device_attach(hr_sequence_t *s)
{
    if (hri_device_layers(s) == 0) {
        return HR_OK;
    }
    struct hri_alloc *a = &s->runtime->alloc;
    struct hri_device_part *p = hri_calloc(a, 1, sizeof *p);
    if (p == NULL) {
        return hri_alloc_status();
    }
    s->part = p;
    hri_device_index_yield(s->runtime, UINT64_MAX); /* frames are worth more */
    p->device = s->runtime->gpu;
    p->launch = hri_device_ops(p->device)->launch;
    p->heads = (struct hri_cuda_heads){s->n_kv, s->g, s->dk, s->dv};
    p->blocks_max = (uint32_t)hri_round_up(s->blocks_max, 16);
    p->parts = s->parts;
    p->part_rows = s->part_rows;
    p->items = p->blocks_max * p->parts;
    hri_device_sketch_sizes(s, &p->sizes);
    p->frame_bytes = (uint32_t)hri_round_up((uint64_t)s->part_rows * s->code_bytes, 64);
    p->direct = s->runtime->host_pinned && s->runtime->file_bytes == 0;
    hri_index_view_ranks(s->dk, s->dv, &p->rank_c, &p->rank_d);
    struct hri_device_carve all = {0};
    part_carve(p, s, &all);
    p->layers = hri_calloc(a, s->n_layers, sizeof *p->layers);
    if (p->layers == NULL) {
        return hri_alloc_status();
    }
    hr_status_t status = tier_create(s, p, all.used);
    if (status == HR_OK) {
        status = hri_device_alloc(p->device, "windows and summaries", all.used, &p->memory);
    }
    if (status == HR_OK) {
        status = host_create(s, p);
    }
    return status == HR_OK ? device_fill(s, p) : status;
}

void hri_device_detach(hr_sequence_t *s)
{
    struct hri_device_part *p = s->part;
    struct hri_alloc *a = &s->runtime->alloc;
    if (p == NULL) {
        return;
    }
    const struct hri_device_ops *ops = hri_device_ops(p->device);
    for (uint32_t i = 0; p->layers != NULL && i < s->n_layers; i++) {
        if (p->layers[i].first != NULL) {
            ops->graph_destroy(p->layers[i].first);
        }
        if (p->layers[i].second != NULL) {
            ops->graph_destroy(p->layers[i].second);
        }
    }
    hri_device_free(p->device, &p->memory);
    hri_device_tier_destroy(p->tier);
    hri_device_buffer_destroy(p->device, &p->host);
    hri_device_buffer_destroy(p->device, &p->box_memory);
    if (p->event != NULL) {
        ops->event_destroy(p->event);
    }
    hri_free(a, p->layers);
    hri_free(a, p->ins);
    hri_free(a, p->outs);
    hri_free(a, p->synced);
    hri_free(a, p->offsets);
    hri_free(a, p->bytes);
    hri_free(a, p->numbers);
    hri_free(a, p->jobs);
    hri_free(a, p->reads);
    hri_free(a, p->answered);
    hri_free(a, p);
    s->part = NULL;
}

/* -- keeping up with the host -- */

/* Rows [first, end) of the tail, which may wrap around the ring's end. */
static hr_status_t ring_copy(const hr_sequence_t *s, struct hri_device_part *p,
                             const struct hri_layer *l, struct hri_device_layer *d, uint32_t first,
                             uint32_t end)
{
    hr_status_t status = HR_OK;
    for (uint32_t n; first < end && status == HR_OK; first += n) {
        const uint32_t at = first % s->tail_max, left = s->tail_max - at;
        n = end - first < left ? end - first : left;
        status = hri_device_copy_rows(
            p->device, d->tail + (size_t)at * s->row_bytes, (size_t)s->tail_max * s->row_bytes,
            hri_tail_row(s, l, 0, first), (size_t)s->tail_max * s->row_bytes,
            (size_t)n * s->row_bytes, s->n_kv);
    }
    return status;
}

static hr_status_t rows_sync(hr_sequence_t *s, struct hri_device_part *p, struct hri_layer *l,
                             struct hri_device_layer *d, uint32_t end)
{
    uint32_t first = l->body_end > s->n_sink ? l->body_end : s->n_sink;
    first = first < d->rows_synced ? d->rows_synced : first;
    hr_status_t status = first < end ? ring_copy(s, p, l, d, first, end) : HR_OK;
    if (status != HR_OK) {
        return status;
    }
    d->rows_synced = end > d->rows_synced ? end : d->rows_synced;
    uint32_t n = l->n_tokens < s->n_sink ? l->n_tokens : s->n_sink;
    if (n > d->sink_synced) {
        status = hri_device_copy(p->device, d->sink, l->sink,
                                 (size_t)s->n_kv * s->n_sink * s->row_bytes);
        d->sink_synced = status == HR_OK ? n : d->sink_synced;
    }
    return status;
}

struct upload { /* of one head */
    struct hri_device_part *p;
    uint32_t head, first, end; /* blocks */
    hr_status_t status;
};

/* Entries [first, end) of an array of blocks, of `bytes` a block. */
static void blocks_put(struct upload *u, void *array, const void *from, size_t bytes)
{
    if (u->status == HR_OK) {
        unsigned char *to =
            (unsigned char *)array + ((size_t)u->head * u->p->blocks_max + u->first) * bytes;
        u->status =
            hri_device_copy(u->p->device, to, (const unsigned char *)from + u->first * bytes,
                            (u->end - u->first) * bytes);
    }
}

/* One head's part of an array of heads. */
static void head_put(struct upload *u, void *array, const void *from, size_t bytes)
{
    if (u->status == HR_OK) {
        u->status =
            hri_device_copy(u->p->device, (unsigned char *)array + u->head * bytes, from, bytes);
    }
}

static void places_put(const hr_sequence_t *s, struct upload *u, const struct hri_layer *l,
                       struct hri_device_layer *d)
{
    const unsigned char *base = hri_store_host_run(s->runtime->store).base;
    const uint32_t parts = u->p->parts;
    for (uint32_t i = u->first * parts; i < u->end * parts; i++) {
        const struct hri_block_at *at = &l->places[u->head][i];
        const uint32_t rows = hri_index_item_rows(l->heads[u->head], i);
        const unsigned char *cell = rows > 0 ? hri_lane_peek(l->block_lane, at->cell) : base;
        u->p->offsets[i] = rows > 0 ? (uint64_t)(cell - base) + at->offset : 0;
        u->p->bytes[i] = rows * s->code_bytes;
    }
    blocks_put(u, d->host_offset, u->p->offsets, parts * sizeof *u->p->offsets);
    blocks_put(u, d->block_bytes, u->p->bytes, parts * sizeof *u->p->bytes);
}

static hr_status_t summaries_put(const hr_sequence_t *s, struct upload *u,
                                 const struct hri_layer *l, struct hri_device_layer *d)
{
    const struct hri_index_view v = hri_index_view(l->heads[u->head]);
    const float variance = (float)v.v_variance;
    u->end = v.n_blocks;
    blocks_put(u, d->v_codes, v.v_codes, s->dv);
    blocks_put(u, d->rows, v.block_rows, 1);
    blocks_put(u, d->peak, v.peak, 1);
    blocks_put(u, d->spread, v.spread, sizeof *v.spread);
    blocks_put(u, d->k_scale, v.k_scale, sizeof(float));
    blocks_put(u, d->v_scale, v.v_scale, sizeof(float));
    blocks_put(u, d->k_step, v.k_step, sizeof(float));
    blocks_put(u, d->v_step, v.v_step, sizeof(float));
    if (u->p->direct) {
        places_put(s, u, l, d);
    }
    if (v.sketch != NULL && u->status == HR_OK) {
        u->status = hri_device_sketch_put(u->p, l->heads[u->head], u->head, u->first, &d->sketches);
    }
    u->first = u->first / 16 * 16; /* centroids come in lines of 16 blocks */
    u->end = (uint32_t)hri_round_up(u->end, 16);
    blocks_put(u, d->k_codes, v.k_codes, s->dk);
    head_put(u, d->k_mean, v.k_mean, s->dk * sizeof(float));
    head_put(u, d->v_mean, v.v_mean, s->dv * sizeof(float));
    head_put(u, d->v_variance, &variance, sizeof variance);
    head_put(u, d->f, v.f, (size_t)v.rank_c * s->dk);
    head_put(u, d->w, v.w, (size_t)v.rank_d * s->dk);
    head_put(u, d->u, v.u, (size_t)v.rank_d * s->dv);
    head_put(u, d->f_scale, v.f_scale, v.rank_c * sizeof(float));
    head_put(u, d->w_scale, v.w_scale, v.rank_d * sizeof(float));
    head_put(u, d->u_scale, v.u_scale, v.rank_d * sizeof(float));
    return u->status;
}

hr_status_t hri_device_sync(hr_sequence_t *s, struct hri_layer *l, uint32_t end)
{
    struct hri_device_part *p = s->part;
    struct hri_device_layer *d = &p->layers[l - s->layers];
    hr_status_t status = rows_sync(s, p, l, d, end);
    for (uint32_t h = 0; h < s->n_kv && status == HR_OK; h++) {
        const uint32_t n = hri_index_blocks(l->heads[h]);
        if (n > d->blocks_synced[h] || d->shape_stale) {
            struct upload u = {.p = p, .head = h, .first = d->blocks_synced[h]};
            status = summaries_put(s, &u, l, d);
            d->blocks_synced[h] = status == HR_OK ? n : d->blocks_synced[h];
        }
    }
    d->shape_stale = d->shape_stale && status != HR_OK;
    return status;
}

void hri_device_shape_changed(hr_sequence_t *s, const struct hri_layer *l)
{
    s->part->layers[l - s->layers].shape_stale = true;
}

void hri_device_cut(hr_sequence_t *s)
{
    struct hri_device_part *p = s->part;
    for (uint32_t i = 0; p != NULL && i < s->n_layers; i++) {
        struct hri_layer *l = &s->layers[i];
        struct hri_device_layer *d = &p->layers[i];
        d->rows_synced = 0;
        d->sink_synced = 0;
        d->shape_stale = true;
        for (uint32_t h = 0; l->indexed && h < s->n_kv; h++) {
            const uint32_t n = hri_index_blocks(l->heads[h]);
            if (n >= d->blocks_synced[h]) {
                continue;
            }
            d->blocks_synced[h] = n;
            (void)hri_device_tier_truncate(p->tier, d->number, h,
                                           n * p->parts); /* else the device is lost */
        }
    }
}
