/* Exact rows in a GPU's memory: dealt out, brought up to date with the host, attended beside what the host attends. */
#include "runtime/device_rows.h"
#include "runtime/device_launch.h"

#include "base/error.h"
#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <string.h>

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* -- layout -- */

static void in_carve(const hr_sequence_t *s, struct hri_device_carve *c, struct hri_held_in *in)
{
    const size_t begin = c->used;
    in->near = hri_device_carve(c, 3, sizeof *in->near);
    in->q = hri_device_carve(c, (size_t)s->n_q * s->dk, sizeof *in->q);
    in->scale = hri_device_carve(c, s->n_q, sizeof *in->scale);
    in->row = hri_device_carve(c, s->n_kv, s->row_bytes);
    in->bytes = c->used - begin;
}

static void out_carve(const hr_sequence_t *s, struct hri_device_carve *c, struct hri_held_out *o)
{
    const size_t begin = c->used;
    o->out = hri_device_carve(c, (size_t)s->n_q * s->dv, sizeof *o->out);
    o->lse = hri_device_carve(c, s->n_q, sizeof *o->lse);
    o->q = hri_device_carve(c, (size_t)s->n_q * s->dk, sizeof *o->q);
    o->row = hri_device_carve(c, s->n_kv, s->row_bytes);
    o->bytes = c->used - begin;
}

static void device_carve(struct hri_device_rows *r, struct hri_device_carve *c)
{
    const hr_sequence_t *s = r->s;
    for (uint32_t i = 0; i < s->n_layers; i++) { /* one run, for one copy */
        in_carve(s, c, &r->layers[i].in);
    }
    for (uint32_t i = 0; i < s->n_layers; i++) {
        out_carve(s, c, &r->layers[i].out);
    }
    r->work = hri_device_carve(c, r->launch->attend_work(r->heads), sizeof *r->work);
    r->arrived = hri_device_carve(c, r->launch->attend_counters(r->heads), sizeof *r->arrived);
    r->bad = hri_device_carve(c, 1, sizeof *r->bad);
}

static void host_carve(struct hri_device_rows *r, struct hri_device_carve *c)
{
    for (uint32_t i = 0; i < r->s->n_layers; i++) {
        in_carve(r->s, c, &r->ins[i]);
    }
    for (uint32_t i = 0; i < r->s->n_layers; i++) {
        out_carve(r->s, c, &r->outs[i]);
    }
}

/* -- memory -- */

static bool is_window(const hr_sequence_t *s, const struct hri_layer *l)
{
    return l->sliding != 0 && l->sliding < s->tokens_max;
}

static uint32_t rows_wanted(const hr_sequence_t *s, const struct hri_layer *l)
{
    uint32_t n = is_window(s, l) ? l->sliding : s->tokens_max;
    return (uint32_t)hri_round_up(n, HRI_LOG_ROWS);
}

static uint64_t bytes_left(const hr_sequence_t *s)
{
    const struct hr_tier_stats tier = hri_device_stats(s->runtime->gpu);
    const uint64_t held = tier.bytes_held + hri_step_graph_bytes(s); /* a graph may be wanted yet */
    return tier.bytes_cap > held ? tier.bytes_cap - held : 0;
}

/* A layer's rows from at most `bytes`: as many pages as that holds, of a window all or none. */
static void layer_ask(struct hri_device_rows *r, uint32_t i, uint64_t bytes)
{
    const hr_sequence_t *s = r->s;
    const struct hri_layer *l = &s->layers[i];
    struct hri_held_layer *d = &r->layers[i];
    const uint64_t row = (uint64_t)s->n_kv * s->row_bytes;
    const uint32_t wanted = rows_wanted(s, l);
    uint64_t rows = bytes / row / HRI_LOG_ROWS * HRI_LOG_ROWS;
    rows = rows < wanted ? rows : wanted;
    d->asked = true;
    if (rows == 0 || (is_window(s, l) && rows < wanted) ||
        hri_device_alloc(r->device, "exact rows", rows * row, &d->memory) != HR_OK) {
        return;
    }
    d->capacity = (uint32_t)rows;
}

/* Windows first, which are small and always full, then equal shares: every layer then has something for the host to do meanwhile,
 * or none has. */
static void layers_ask(struct hri_device_rows *r)
{
    const hr_sequence_t *s = r->s;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].exact && is_window(s, &s->layers[i])) {
            layer_ask(r, i, bytes_left(s));
        }
        n += s->layers[i].exact && !is_window(s, &s->layers[i]);
    }
    for (uint32_t i = 0; i < s->n_layers && n > 0; i++) {
        if (s->layers[i].exact && !r->layers[i].asked) {
            layer_ask(r, i, bytes_left(s) / n--);
        }
    }
}

/* A layer that is asked for exactness only now: it shares with those that may be asked later. */
static void layer_ask_late(struct hri_device_rows *r, uint32_t i)
{
    uint32_t n = 0;
    for (uint32_t j = 0; j < r->s->n_layers; j++) {
        n += !r->layers[j].asked;
    }
    layer_ask(r, i, bytes_left(r->s) / n);
}

static void lack_said(const struct hri_device_rows *r)
{
    const hr_sequence_t *s = r->s;
    uint64_t held = 0, wanted = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if (s->layers[i].exact) {
            held += r->layers[i].capacity;
            wanted += rows_wanted(s, &s->layers[i]);
            n++;
        }
    }
    if (n > 0 && held < wanted) {
        hri_log_info(&s->runtime->log,
                     "device %s: device_bytes %" PRIu64 " leave room for %" PRIu64 " of %" PRIu64
                     " rows of the %u layers that attend all of them: the host attends the others",
                     hri_device_ops(r->device)->name, hri_device_stats(r->device).bytes_cap, held,
                     wanted, n);
    }
}

static bool supported(const hr_sequence_t *s)
{
    return s->runtime->gpu != NULL && s->dtype != HR_DTYPE_F32 && s->dk % 16 == 0 &&
           s->dv % 16 == 0 && !hri_device_is_lost(s->runtime->gpu);
}

/* HR_ERR_BUDGET and the like: then there are no rows on the device. */
static hr_status_t memory_create(struct hri_device_rows *r)
{
    struct hri_device_carve c = {0};
    device_carve(r, &c);
    if (c.used > bytes_left(r->s)) {
        return hri_error_set(HR_ERR_BUDGET, "no room");
    }
    hr_status_t status = hri_device_alloc(r->device, "exact attention", c.used, &r->memory);
    if (status != HR_OK) {
        return status;
    }
    c = (struct hri_device_carve){r->memory.base, 0};
    device_carve(r, &c);
    status = hri_device_fill(r->device, r->memory.base, 0, r->memory.bytes);
    c = (struct hri_device_carve){0};
    host_carve(r, &c);
    status = status == HR_OK ? hri_device_buffer_create(r->device, c.used, &r->host) : status;
    if (status == HR_OK) {
        c = (struct hri_device_carve){r->host.base, 0};
        host_carve(r, &c);
        status = hri_device_wait(r->device);
    }
    return status;
}

/* In time for the first query that wants it. */
static hr_status_t create(hr_sequence_t *s)
{
    struct hri_alloc *a = &s->runtime->alloc;
    struct hri_device_rows *r = hri_calloc(a, 1, sizeof *r);
    if (r == NULL) {
        return hri_alloc_status();
    }
    s->held = r;
    r->s = s;
    r->device = s->runtime->gpu;
    r->launch = hri_device_ops(r->device)->launch;
    r->heads = (struct hri_cuda_heads){s->n_kv, s->g, s->dk, s->dv};
    r->next = s->runtime->holders;
    s->runtime->holders = r;
    r->layers = hri_calloc(a, s->n_layers, sizeof *r->layers);
    r->ins = hri_calloc(a, s->n_layers, sizeof *r->ins);
    r->outs = hri_calloc(a, s->n_layers, sizeof *r->outs);
    if (r->layers == NULL || r->ins == NULL || r->outs == NULL) {
        return hri_alloc_status();
    }
    r->given_up = memory_create(r) != HR_OK ||
                  hri_device_check(r->device, hri_device_ops(r->device)->event_create(&r->event),
                                   "an event") != HR_OK;
    return HR_OK;
}

hr_status_t hri_held_attach(hr_sequence_t *s)
{
    bool any = false;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        any |= s->layers[i].exact;
    }
    if (!any || !supported(s)) {
        return HR_OK;
    }
    hr_status_t status = create(s);
    if (status == HR_OK && !s->held->given_up) {
        layers_ask(s->held);
    }
    if (status == HR_OK) {
        lack_said(s->held);
    }
    return status;
}

static bool rows_free(struct hri_device_rows *r)
{
    bool any = false;
    for (uint32_t i = 0; r->layers != NULL && i < r->s->n_layers; i++) {
        struct hri_held_layer *d = &r->layers[i];
        any |= d->memory.base != NULL;
        hri_device_free(r->device, &d->memory);
        d->capacity = d->first = d->end = 0;
    }
    return any;
}

void hri_held_detach(hr_sequence_t *s)
{
    struct hri_device_rows *r = s->held;
    struct hri_alloc *a = &s->runtime->alloc;
    if (r == NULL) {
        return;
    }
    for (struct hri_device_rows **at = &s->runtime->holders; *at != NULL; at = &(*at)->next) {
        if (*at == r) {
            *at = r->next;
            break;
        }
    }
    rows_free(r);
    hri_device_free(r->device, &r->memory);
    hri_device_buffer_destroy(r->device, &r->host);
    if (r->event != NULL) {
        hri_device_ops(r->device)->event_destroy(r->event);
    }
    hri_free(a, r->layers);
    hri_free(a, r->ins);
    hri_free(a, r->outs);
    hri_free(a, r);
    s->held = NULL;
}

bool hri_held_give_way(hr_runtime_t *rt)
{
    bool any = false;
    for (struct hri_device_rows *r = rt->holders; r != NULL; r = r->next) {
        any |= rows_free(r);
    }
    if (any) {
        hri_log_info(&rt->log,
                     "device %s: exact rows make room for another sequence's steps: the "
                     "host attends them",
                     hri_device_ops(rt->gpu)->name);
    }
    return any;
}

hr_status_t hri_held_attach_steps(hr_sequence_t *s)
{
    hr_status_t status = hri_device_attach(s);
    if (status == HR_ERR_BUDGET && hri_held_give_way(s->runtime)) {
        hri_device_detach(s);
        status = hri_device_attach(s);
    }
    return status;
}

void hri_held_say_lacks(const hr_sequence_t *s)
{
    const char *lacks = hri_device_lacks(s);
    if (lacks != NULL) {
        hri_log_info(&s->runtime->log,
                     "device %s, recipe %s: %s on the host, from host memory and file",
                     hri_device_ops(s->runtime->gpu)->name, s->recipe_text, lacks);
    }
}

uint64_t hri_held_bytes(const hr_sequence_t *s)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; s->held != NULL && i < s->n_layers; i++) {
        bytes += s->held->layers[i].memory.bytes;
    }
    return bytes;
}

/* -- keeping up with the host -- */

struct upload {
    struct hri_device_rows *r;
    struct hri_held_layer *d;
    hr_status_t status; /* the first failure: the rest streams past */
};

/* How far apart the heads' rows of a tile lie, 0: not equally far. */
static size_t heads_apart(const struct upload *u, const unsigned char *const *base)
{
    const uint32_t n = u->r->s->n_kv;
    const uintptr_t first = (uintptr_t)base[0];
    const uintptr_t apart = n > 1 ? (uintptr_t)base[1] - first : 1;
    for (uint32_t h = 1; h < n; h++) {
        if ((uintptr_t)base[h] <= first || (uintptr_t)base[h] - first != h * apart) {
            return 0;
        }
    }
    return apart;
}

/* n rows of all heads, from row `skip` of the tile on, to the ring's rows from `at` on. */
static void run_put(struct upload *u, const unsigned char *const *base, uint32_t skip, uint32_t at,
                    uint32_t n)
{
    const hr_sequence_t *s = u->r->s;
    const size_t bytes = (size_t)n * s->row_bytes, from = (size_t)skip * s->row_bytes;
    const size_t stride = (size_t)u->d->capacity * s->row_bytes;
    unsigned char *to = (unsigned char *)u->d->memory.base + (size_t)at * s->row_bytes;
    const size_t apart = heads_apart(u, base);
    if (apart >= bytes || s->n_kv == 1) {
        u->status = hri_device_copy_rows(u->r->device, to, stride, base[0] + from,
                                         s->n_kv > 1 ? apart : bytes, bytes, s->n_kv);
        return;
    }
    for (uint32_t h = 0; h < s->n_kv && u->status == HR_OK; h++) {
        u->status = hri_device_copy(u->r->device, to + h * stride, base[h] + from, bytes);
    }
}

static void upload_visit(void *context, const struct hri_tiles *tiles)
{
    struct upload *u = context;
    for (uint32_t i = 0; i < tiles->n; i++) {
        const unsigned char *const *base = tiles->base + (size_t)i * u->r->s->n_kv;
        for (uint32_t n, done = 0; done < tiles->rows[i] && u->status == HR_OK; done += n) {
            const uint32_t at = (tiles->token[i] + done) % u->d->capacity;
            n = min_u32(tiles->rows[i] - done, u->d->capacity - at);
            run_put(u, base, done, at, n);
        }
    }
    /* The host's buffers are filled anew after this. */
    u->status = u->status == HR_OK ? hri_device_wait(u->r->device) : u->status;
}

static void give_up(struct hri_device_rows *r)
{
    if (!r->given_up && !hri_device_is_lost(r->device)) { /* a loss was said */
        hri_log_warn(&r->s->runtime->log, "exact attention goes on on the host: %s",
                     hr_last_error());
    }
    r->given_up = true;
}

static void range_set(struct hri_held_layer *d, uint32_t end)
{
    d->end = end;
    if (end - d->first > d->capacity) {
        d->first = end - d->capacity;
    }
}

/* The rows of [first, end), which fit; after an error they are not all there. */
static hr_status_t sync(struct hri_device_rows *r, struct hri_layer *l, uint32_t first,
                        uint32_t end, struct hr_attend_report *report)
{
    struct hri_held_layer *d = &r->layers[l - r->s->layers];
    struct upload u = {.r = r, .d = d};
    if (d->end < first || d->first > first) {
        d->first = d->end = first;
    }
    if (d->end >= end) {
        return HR_OK;
    }
    hr_status_t status = hri_stream_rows(r->s, l, d->end, end, upload_visit, &u, report);
    if (u.status != HR_OK) {
        give_up(r);
        status = u.status;
    }
    if (status == HR_OK) {
        range_set(d, end);
    } else {
        d->first = d->end = first; /* what came of them may have replaced others */
    }
    return status;
}

/* -- a query -- */

/* The layer's rows, where there may be any. */
static struct hri_held_layer *held_layer(hr_sequence_t *s, const struct hri_layer *l)
{
    const uint32_t i = (uint32_t)(l - s->layers);
    if (s->held == NULL && supported(s) && create(s) != HR_OK) {
        return NULL;
    }
    struct hri_device_rows *r = s->held;
    if (r == NULL || r->given_up || r->layers == NULL || r->outs == NULL) {
        return NULL;
    }
    if (!r->layers[i].asked) {
        layer_ask_late(r, i);
    }
    return r->layers[i].capacity > 0 ? &r->layers[i] : NULL;
}

static int attend_launch(const struct hri_device_rows *r, const struct hri_held_layer *d,
                         const float *q)
{
    const hr_sequence_t *s = r->s;
    const struct hri_cuda_attend_args a = {
        .q = q,
        .dtype = s->dtype,
        .soft_cap = s->soft_cap,
        .runs = {{.rows = d->memory.base,
                  .head_stride_bytes = (size_t)d->capacity * s->row_bytes,
                  .n = d->in.near,
                  .first = d->in.near + 1,
                  .capacity = d->capacity}},
        .n_runs = 1,
        .out = d->out.out,
        .lse = d->out.lse,
        .work = r->work,
        .arrived = r->arrived};
    return r->launch->attend(&a, r->heads, hri_device_stream(r->device));
}

/* Input there, the newest row to its place, attention, output back. */
static hr_status_t queue(struct hri_device_rows *r, uint32_t i, bool with_row)
{
    const hr_sequence_t *s = r->s;
    struct hri_held_layer *d = &r->layers[i];
    const struct hri_held_in *in = &r->ins[i];
    const struct hri_held_out *out = &r->outs[i];
    hr_status_t status = hri_device_copy(r->device, d->in.near, in->near, in->bytes);
    if (status == HR_OK && with_row) {
        status = hri_device_copy_rows(
            r->device, (unsigned char *)d->memory.base + (size_t)in->near[2] * s->row_bytes,
            (size_t)d->capacity * s->row_bytes, d->in.row, s->row_bytes, s->row_bytes, s->n_kv);
    }
    if (status == HR_OK) {
        status = hri_device_check(r->device, attend_launch(r, d, d->in.q), "exact attention");
    }
    return status == HR_OK ? hri_device_copy(r->device, out->out, d->out.out,
                                             (size_t)((unsigned char *)out->q -
                                                      (unsigned char *)(void *)out->out))
                           : status;
}

bool hri_held_begin(hr_sequence_t *s, struct hri_layer *l, const float *q, uint32_t first,
                    uint32_t end, struct hr_attend_report *report, uint32_t *end_out)
{
    struct hri_held_layer *d = held_layer(s, l);
    if (d == NULL || (is_window(s, l) && end < l->n_tokens)) {
        return false; /* of a window only the newest rows are there */
    }
    struct hri_device_rows *r = s->held;
    const uint32_t i = (uint32_t)(l - s->layers),
                   stop = is_window(s, l) ? end : min_u32(end, d->capacity);
    if (stop <= first) {
        return false;
    }
    /* The newest row alone goes with the query. */
    const bool with_row = d->first <= first && d->end + 1 == stop && stop == l->n_tokens;
    if (sync(r, l, first, with_row ? stop - 1 : stop, report) != HR_OK) {
        return false;
    }
    const struct hri_held_in *in = &r->ins[i];
    in->near[0] = stop - first;
    in->near[1] = first % d->capacity;
    in->near[2] = (stop - 1) % d->capacity;
    memcpy(in->q, q, (size_t)s->n_q * s->dk * sizeof *q);
    for (uint32_t h = 0; h < s->n_kv && with_row; h++) {
        memcpy(in->row + (size_t)h * s->row_bytes, hri_tail_row(s, l, h, stop - 1), s->row_bytes);
    }
    if (queue(r, i, with_row) != HR_OK) {
        give_up(r);
        return false;
    }
    range_set(d, stop > d->end ? stop : d->end);
    *end_out = stop;
    return true;
}

hr_status_t hri_held_end(hr_sequence_t *s, struct hri_layer *l, const float **out,
                         const float **lse)
{
    struct hri_device_rows *r = s->held;
    const uint32_t i = (uint32_t)(l - s->layers);
    hr_status_t status = hri_device_wait(r->device);
    if (status != HR_OK) {
        give_up(r);
        return status;
    }
    *out = r->outs[i].out;
    *lse = r->outs[i].lse;
    return HR_OK;
}

const void *hri_held_prompt(hr_sequence_t *s, struct hri_layer *l, uint32_t end,
                            struct hr_attend_report *report, uint32_t *end_out, size_t *stride_out)
{
    struct hri_device_rows *r = s->held;
    struct hri_held_layer *d = r != NULL && !r->given_up ? &r->layers[l - s->layers] : NULL;
    if (d == NULL || d->capacity == 0 || is_window(s, l)) {
        return NULL;
    }
    const uint32_t stop = min_u32(end, d->capacity);
    if (stop == 0 || sync(r, l, 0, stop, report) != HR_OK) {
        return NULL;
    }
    *end_out = stop;
    *stride_out = (size_t)d->capacity * s->row_bytes;
    return d->memory.base;
}

void hri_held_read(hr_sequence_t *s, void *stream)
{
    struct hri_device_rows *r = s->held;
    int error = hri_device_ops(r->device)->event_record(r->event, stream);
    r->is_read = hri_device_check(r->device, error, "an event") == HR_OK;
}

/* Before rows that were there are replaced. */
static void readers_wait(struct hri_device_rows *r)
{
    const struct hri_device_ops *ops = hri_device_ops(r->device);
    while (r->is_read && ops->fault(ops->event_query(r->event)) == HRI_DEVICE_NOT_READY) {
        sched_yield();
    }
    r->is_read = false;
}

void hri_held_follow(hr_sequence_t *s, struct hri_layer *l)
{
    struct hri_device_rows *r = s->held;
    struct hr_attend_report unseen = {0};
    struct hri_held_layer *d = r != NULL && !r->given_up ? &r->layers[l - s->layers] : NULL;
    if (d == NULL || d->capacity == 0) {
        return;
    }
    const bool window = is_window(s, l);
    const uint32_t end = window ? l->n_tokens : min_u32(l->n_tokens, d->capacity);
    (void)sync(r, l, window && end > l->sliding ? end - l->sliding : 0, end, &unseen);
}

void hri_held_cut(hr_sequence_t *s)
{
    if (s->held == NULL || s->held->layers == NULL) {
        return;
    }
    readers_wait(s->held);
    for (uint32_t i = 0; i < s->n_layers; i++) {
        struct hri_held_layer *d = &s->held->layers[i];
        d->end = min_u32(d->end, s->layers[i].n_tokens);
        d->first = min_u32(d->first, d->end);
    }
}

/* -- a token as a graph -- */

bool hri_held_whole(const hr_sequence_t *s, uint32_t i)
{
    const struct hri_device_rows *r = s->held;
    return r != NULL && !r->given_up && r->layers[i].capacity >= rows_wanted(s, &s->layers[i]);
}

hr_status_t hri_held_token_begin(hr_sequence_t *s, uint32_t i, uint32_t position,
                                 struct hr_attend_report *report)
{
    struct hri_layer *l = &s->layers[i];
    const uint32_t first =
        l->sliding != 0 && position + 1 > l->sliding ? position + 1 - l->sliding : 0;
    if (!hri_held_whole(s, i)) {
        return hri_error_set(HR_ERR_UNSUPPORTED, "layer %u: its rows are no longer on the GPU", i);
    }
    hr_status_t status = sync(s->held, l, first, position, report);
    if (status != HR_OK) {
        return status;
    }
    struct hri_held_layer *d = &s->held->layers[i];
    const struct hri_held_in *in = &s->held->ins[i];
    const float log_n = logf((float)(position + 1));
    in->near[0] = position + 1 - first;
    in->near[1] = first % d->capacity;
    in->near[2] = position % d->capacity;
    for (uint32_t h = 0; h < s->n_q; h++) {
        in->scale[h] = hri_query_factor(s, l, h, log_n);
    }
    if (position + 1 - d->first > d->capacity) {
        d->first = position + 1 - d->capacity; /* the new row takes that one's place */
    }
    return HR_OK;
}

int hri_held_launch(const hr_sequence_t *s, uint32_t i, const float *q, const float *k,
                    const float *v)
{
    const struct hri_device_rows *r = s->held;
    const struct hri_held_layer *d = &r->layers[i];
    void *stream = hri_device_stream(r->device);
    const struct hri_cuda_append_args ring = {
        .tail = d->memory.base, .capacity = d->capacity, .length = d->in.near + 2, .bad = r->bad};
    HRI_LAUNCHED(r->launch->scale(q, d->in.scale, s->n_q, s->dk, d->out.q, stream));
    HRI_LAUNCHED(hri_device_append(s, r->launch, k, v, ring, d->out.row, stream));
    return attend_launch(r, d, d->out.q);
}

void hri_held_token_end(hr_sequence_t *s, uint32_t i, uint32_t position,
                        struct hr_attend_report *report)
{
    const uint64_t rows = (uint64_t)s->held->ins[i].near[0] * s->n_kv;
    range_set(&s->held->layers[i], position + 1);
    report->rows_device += rows;
    report->rows_by_level[3] += rows;
    report->bytes_by_level[3] += rows * s->row_bytes;
}

hr_status_t hri_held_put(hr_sequence_t *s)
{
    struct hri_device_rows *r = s->held;
    return hri_device_copy(r->device, r->layers[0].in.near, r->ins[0].near,
                           s->n_layers * r->ins[0].bytes);
}

hr_status_t hri_held_take(hr_sequence_t *s)
{
    struct hri_device_rows *r = s->held;
    return hri_device_copy(r->device, r->outs[0].out, r->layers[0].out.out,
                           s->n_layers * r->outs[0].bytes);
}
