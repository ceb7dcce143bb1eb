/* Exact attention of queries that are on a GPU already (a model that runs there): the layer's rows stream past from wherever the
 * host has them, a part of the caller's memory at a time; what the GPU holds of them (device_rows.h) is read where it is. */
#include "runtime/device_part.h"
#include "runtime/device_rows.h"

#include "base/clock.h"
#include "base/error.h"
#include <inttypes.h>
#include <math.h>

#define ROWS_BYTES (8u << 20) /* of rows that lie on the device at once; more gain little */

/* What a call needs there, in the caller's memory. */
struct work {
    float *scaled, *factor;    /* [n][n_q][dk], [n][n_q] */
    float *m, *l, *o;          /* [n][n_q], [n][n_q], [n][n_q][dv] */
    struct hri_cuda_job *jobs; /* [slots] pages that the device brings itself, */
    uint64_t *offsets;         /* [slots] where they lie in the host's memory */
    uint32_t *n_jobs;
    unsigned char *rows; /* [n_kv][rows_max][row_bytes] */
};

/* Pages that fit, of all kv-heads. */
static uint32_t slots_of(const hr_sequence_t *s, uint32_t rows_max)
{
    return rows_max / HRI_LOG_ROWS * s->n_kv;
}

static void work_carve(const hr_sequence_t *s, struct hri_device_carve *c, uint32_t n,
                       uint32_t rows_max, struct work *w)
{
    const size_t vectors = (size_t)n * s->n_q;
    w->scaled = hri_device_carve(c, vectors * s->dk, sizeof(float));
    w->factor = hri_device_carve(c, vectors, sizeof(float));
    w->m = hri_device_carve(c, vectors, sizeof(float));
    w->l = hri_device_carve(c, vectors, sizeof(float));
    w->o = hri_device_carve(c, vectors * s->dv, sizeof(float));
    w->jobs = hri_device_carve(c, slots_of(s, rows_max), sizeof *w->jobs);
    w->offsets = hri_device_carve(c, slots_of(s, rows_max), sizeof *w->offsets);
    w->n_jobs = hri_device_carve(c, 1, sizeof *w->n_jobs);
    w->rows = hri_device_carve(c, (size_t)s->n_kv * rows_max, s->row_bytes);
}

static size_t work_bytes(const hr_sequence_t *s, uint32_t n, uint32_t rows_max)
{
    struct hri_device_carve c = {0};
    struct work w;
    work_carve(s, &c, n, rows_max, &w);
    return c.used;
}

static bool supported(const hr_sequence_t *s)
{
    return s->runtime->gpu != NULL && s->dtype != HR_DTYPE_F32 && s->dk % 16 == 0 &&
           s->dv % 16 == 0;
}

void hr_device_attend_init(struct hr_device_attend *attend)
{
    *attend = (struct hr_device_attend){.struct_size = sizeof *attend};
}

size_t hr_sequence_device_work(const hr_sequence_t *s, uint32_t n_tokens)
{
    if (s == NULL || !supported(s)) {
        return 0;
    }
    uint32_t rows = (uint32_t)(ROWS_BYTES / (s->n_kv * s->row_bytes)),
             whole = hri_round_up(s->tokens_max, HRI_LOG_ROWS);
    rows = rows < HRI_LOG_ROWS ? HRI_LOG_ROWS : rows > whole ? whole : rows;
    return work_bytes(s, n_tokens, rows);
}

/* One pass over the rows. */
struct pass {
    hr_sequence_t *s;
    struct hri_device *device;
    void *stream;
    struct hri_cuda_prefill_args args;
    struct hri_cuda_heads heads;
    struct work work;
    uint32_t rows_max, filled; /* rows that fit; that lie there */
    struct hri_host_run host;  /* what the device reaches itself; bytes 0: nothing */
    struct hri_cuda_job *jobs; /* [slots] on the host: pages it is to bring, not asked for yet */
    uint64_t *offsets;
    uint32_t n_jobs;
    hr_status_t status; /* the first failure: the rest streams past */
};

static hr_status_t put(struct pass *p, void *to, const void *from, size_t bytes)
{
    int error = hri_device_ops(p->device)->copy(to, bytes, from, bytes, bytes, 1, p->stream);
    return hri_device_check(p->device, error, "rows of a prompt");
}

/* One launch for all pages that wait: a copy each would take longer than the bus. */
static hr_status_t gather(struct pass *p)
{
    const struct work *w = &p->work;
    const struct hri_cuda_gather_args args = {.jobs = w->jobs,
                                              .n_jobs = w->n_jobs,
                                              .host = p->host.base,
                                              .host_offset = w->offsets,
                                              .frames = w->rows,
                                              .frame_bytes =
                                                  (uint32_t)(HRI_LOG_ROWS * p->s->row_bytes)};
    if (p->n_jobs == 0) {
        return HR_OK;
    }
    hr_status_t status = put(p, w->n_jobs, &p->n_jobs, sizeof p->n_jobs);
    status = status == HR_OK ? put(p, w->jobs, p->jobs, p->n_jobs * sizeof *p->jobs) : status;
    status =
        status == HR_OK ? put(p, w->offsets, p->offsets, p->n_jobs * sizeof *p->offsets) : status;
    if (status == HR_OK) {
        int error =
            hri_device_ops(p->device)->launch->gather(&args, 0, HRI_CUDA_PATH_AUTO, p->stream);
        status = hri_device_check(p->device, error, "rows of a prompt");
    }
    p->n_jobs = 0;
    return status;
}

/* A whole page in memory that the device reaches, to a place where a whole page can be. */
static bool is_reached(const struct pass *p, const unsigned char *base, uint32_t rows)
{
    const uintptr_t host = (uintptr_t)p->host.base, at = (uintptr_t)base;
    return rows == HRI_LOG_ROWS && p->filled % HRI_LOG_ROWS == 0 && at >= host &&
           at - host < p->host.bytes && (at - host) % 16 == 0;
}

static hr_status_t launch(struct pass *p, int last)
{
    const struct hri_launchers *l = hri_device_ops(p->device)->launch;
    hr_status_t status = gather(p);
    if (status != HR_OK) {
        return status;
    }
    p->args.n_rows = p->filled;
    p->args.last = last;
    int error = l->prefill(&p->args, p->heads, p->stream);
    p->args.first = 0;
    p->args.rows_first += p->filled;
    p->filled = 0;
    return hri_device_check(p->device, error, "attending a prompt");
}

/* Rows that lie there already: *end_out is then where they end. */
static hr_status_t held_launch(struct pass *p, struct hri_layer *layer, uint32_t end,
                               struct hr_attend_report *report, uint32_t *end_out)
{
    struct hri_cuda_prefill_args args = p->args;
    args.rows = hri_held_prompt(p->s, layer, end, report, end_out, &args.head_stride_bytes);
    if (args.rows == NULL) {
        return HR_OK;
    }
    args.n_rows = *end_out;
    args.last = *end_out == end;
    int error = hri_device_ops(p->device)->launch->prefill(&args, p->heads, p->stream);
    hri_held_read(p->s, p->stream);
    p->args.first = 0;
    p->args.rows_first = *end_out;
    report->rows_device += (uint64_t)*end_out * p->s->n_kv;
    return hri_device_check(p->device, error, "attending a prompt");
}

/* Whether tile i + 1 lies right behind i's rows, for all kv-heads, as those of the tail do. */
static bool goes_on(const struct pass *p, const struct hri_tiles *tiles, uint32_t i)
{
    const hr_sequence_t *s = p->s;
    const size_t bytes = tiles->rows[i] * s->row_bytes;
    for (uint32_t h = 0; i + 1 < tiles->n && h < s->n_kv; h++) {
        if (tiles->base[(i + 1) * s->n_kv + h] != tiles->base[i * s->n_kv + h] + bytes) {
            return false;
        }
    }
    return i + 1 < tiles->n;
}

/* Tiles from *i on that lie in one run; *i is then the next. */
static hr_status_t rows_bring(struct pass *p, const struct hri_tiles *tiles, uint32_t *at)
{
    const hr_sequence_t *s = p->s;
    const uint32_t i = *at;
    uint32_t rows = tiles->rows[i];
    hr_status_t status = p->filled + rows > p->rows_max ? launch(p, 0) : HR_OK;
    for (; goes_on(p, tiles, *at) && p->filled + rows + tiles->rows[*at + 1] <= p->rows_max;
         ++*at) {
        rows += tiles->rows[*at + 1];
    }
    ++*at;
    for (uint32_t h = 0; h < s->n_kv && status == HR_OK; h++) {
        const unsigned char *from = tiles->base[i * s->n_kv + h];
        const size_t row = (size_t)h * p->rows_max + p->filled;
        if (is_reached(p, from, rows)) {
            p->offsets[p->n_jobs] = (uint64_t)(from - (const unsigned char *)p->host.base);
            p->jobs[p->n_jobs] =
                (struct hri_cuda_job){.block = p->n_jobs, .frame = (uint32_t)(row / HRI_LOG_ROWS)};
            p->n_jobs++;
        } else {
            status = put(p, p->work.rows + row * s->row_bytes, from, rows * s->row_bytes);
        }
    }
    p->filled += rows;
    return status;
}

static void visit(void *context, const struct hri_tiles *tiles)
{
    struct pass *p = context;
    for (uint32_t i = 0; i < tiles->n && p->status == HR_OK;) {
        p->status = rows_bring(p, tiles, &i);
    }
    p->status = p->status == HR_OK ? gather(p) : p->status;
    /* The host's buffers are filled anew after this. */
    int error = hri_device_ops(p->device)->stream_wait(p->stream);
    if (p->status == HR_OK) {
        p->status = hri_device_check(p->device, error, "rows of a prompt");
    }
}

/* Factors of the queries of tokens from `position` on, through scratch of the host. */
static hr_status_t scale(struct pass *p, const struct hri_layer *layer, const float *q, uint32_t n,
                         uint32_t position)
{
    hr_sequence_t *s = p->s;
    const struct work *w = &p->work;
    const struct hri_device_ops *ops = hri_device_ops(p->device);
    const size_t vectors = (size_t)n * s->n_q, bytes = vectors * sizeof(float);
    float *factor = hri_scratch_get(&s->runtime->queries, bytes);
    if (factor == NULL) {
        return hri_alloc_status();
    }
    for (uint32_t i = 0; i < n; i++) {
        const float log_n = logf((float)(position + i + 1));
        for (uint32_t h = 0; h < s->n_q; h++) {
            factor[(size_t)i * s->n_q + h] = hri_query_factor(s, layer, h, log_n);
        }
    }
    int error = ops->copy(w->factor, bytes, factor, bytes, bytes, 1, p->stream);
    if (error == 0) {
        error = ops->launch->scale(q, w->factor, (uint32_t)vectors, s->dk, w->scaled, p->stream);
    }
    if (error == 0) {
        error = ops->stream_wait(p->stream); /* the scratch is others' after this */
    }
    return hri_device_check(p->device, error, "a prompt's queries");
}

/* Rows that fit beside n queries: whole pages. */
static uint32_t rows_fit(const hr_sequence_t *s, uint32_t n, size_t bytes)
{
    const size_t page = (size_t)s->n_kv * HRI_LOG_ROWS * s->row_bytes;
    uint32_t pages = (uint32_t)((bytes - work_bytes(s, n, 0)) / page);
    while (pages > 1 && work_bytes(s, n, pages * HRI_LOG_ROWS) > bytes) {
        pages--;
    }
    return pages * HRI_LOG_ROWS;
}

/* The host's side of the jobs, in its scratch. */
static hr_status_t jobs_make(struct pass *p)
{
    const size_t n = slots_of(p->s, p->rows_max);
    unsigned char *memory =
        hri_scratch_get(&p->s->runtime->queries, n * (sizeof *p->jobs + sizeof *p->offsets));
    if (memory == NULL) {
        return hri_alloc_status();
    }
    p->offsets = (uint64_t *)(void *)memory;
    p->jobs = (struct hri_cuda_job *)(void *)(memory + n * sizeof *p->offsets);
    return HR_OK;
}

/* n queries from token `at` of the call on. */
static hr_status_t attend(hr_sequence_t *s, struct hri_layer *layer,
                          const struct hr_device_attend *o, uint32_t at, uint32_t n,
                          struct hr_attend_report *report)
{
    const uint32_t position = layer->n_tokens - o->n_tokens + at, end = position + n;
    const uint32_t first =
        layer->sliding != 0 && position + 1 > layer->sliding ? position + 1 - layer->sliding : 0;
    struct pass p = {.s = s,
                     .device = s->runtime->gpu,
                     .stream = o->stream,
                     .heads = {s->n_kv, s->g, s->dk, s->dv}};
    p.rows_max = rows_fit(s, n, o->work_bytes);
    work_carve(s, &(struct hri_device_carve){o->work, 0}, n, p.rows_max, &p.work);
    const struct work w = p.work;
    if (s->runtime->host_pinned) {
        p.host = hri_store_host_run(s->runtime->store);
    }
    const size_t element = hr_dtype_bytes(o->out_dtype);
    p.args = (struct hri_cuda_prefill_args){.q = w.scaled,
                                            .q_token_stride = (int64_t)s->n_q * s->dk,
                                            .q_head_stride = s->dk,
                                            .q_dtype = HR_DTYPE_F32,
                                            .scale = 1.0f,
                                            .soft_cap = s->soft_cap,
                                            .n_tokens = n,
                                            .q_first = position,
                                            .window = layer->sliding,
                                            .rows = w.rows,
                                            .head_stride_bytes = (size_t)p.rows_max * s->row_bytes,
                                            .dtype = s->dtype,
                                            .rows_first = first,
                                            .first = 1,
                                            .m = w.m,
                                            .l = w.l,
                                            .o = w.o,
                                            .out = (unsigned char *)o->out +
                                                   (size_t)at * s->n_q * s->dv * element,
                                            .out_token_stride = (int64_t)s->n_q * s->dv,
                                            .out_head_stride = s->dv,
                                            .out_dtype = o->out_dtype};
    const float *q = o->q + (size_t)at * s->n_q * s->dk;
    hr_status_t status = scale(&p, layer, q, n, position);
    status = status == HR_OK ? jobs_make(&p) : status;
    uint32_t held = first;
    if (status == HR_OK) {
        status = held_launch(&p, layer, end, report, &held);
    }
    if (status == HR_OK && held < end) {
        status = hri_stream_rows(s, layer, held, end, visit, &p, report);
        status = status == HR_OK ? p.status : status;
        status = status == HR_OK ? launch(&p, 1) : status;
    }
    if (status == HR_OK) {
        report->rows_by_level[3] += (uint64_t)(end - first) * s->n_kv;
        report->bytes_by_level[3] += (uint64_t)(end - first) * s->n_kv * s->row_bytes;
    }
    return status;
}

static hr_status_t check(const hr_sequence_t *s, uint32_t layer, const struct hr_device_attend *o)
{
    if (s == NULL || layer >= s->n_layers || o == NULL) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_attend_device: %s",
                             s == NULL   ? "no sequence"
                             : o == NULL ? "no queries"
                                         : "no such layer");
    }
    if (o->struct_size != sizeof *o) {
        return hri_error_set(HR_ERR_VERSION,
                             "device attend: struct_size %zu where this library has %zu",
                             o->struct_size, sizeof *o);
    }
    if (!supported(s)) {
        return hri_error_set(HR_ERR_UNSUPPORTED, "hr_sequence_attend_device: %s",
                             s->runtime->gpu == NULL ? "the runtime has no GPU"
                                                     : "rows in f32, or head dimensions that are "
                                                       "no multiples of 16");
    }
    if (o->n_tokens > s->layers[layer].n_tokens) {
        return hri_error_set(HR_ERR_STATE, "layer %u has %u tokens; %u queries are more", layer,
                             s->layers[layer].n_tokens, o->n_tokens);
    }
    size_t least = work_bytes(s, 1, HRI_LOG_ROWS);
    if (o->work_bytes < least) {
        return hri_error_set(HR_ERR_BUDGET,
                             "hr_sequence_attend_device: %zu bytes of work are not enough: one "
                             "token needs %zu",
                             o->work_bytes, least);
    }
    return hri_device_alive(s->runtime->gpu);
}

hr_status_t hr_sequence_attend_device(hr_sequence_t *s, uint32_t layer,
                                      const struct hr_device_attend *o,
                                      struct hr_attend_report *report_out)
{
    struct hr_attend_report report = {.true_error = -1.0, .true_error_max = -1.0};
    hr_status_t status = check(s, layer, o);
    if (status != HR_OK) {
        return status;
    }
    struct hri_layer *l = &s->layers[layer];
    uint32_t most = o->n_tokens;
    while (most > 1 && work_bytes(s, most, HRI_LOG_ROWS) > o->work_bytes) {
        most = (most + 1) / 2;
    }
    uint64_t began_ns = hri_now_ns();
    hri_cancel_begin(s);
    hri_device_range_begin(s->runtime->gpu, "headrace prompt attention");
    for (uint32_t i = 0; i < o->n_tokens && status == HR_OK; i += most) {
        status = attend(s, l, o, i, o->n_tokens - i < most ? o->n_tokens - i : most, &report);
        if (status == HR_OK && i + most < o->n_tokens && hri_canceled(s)) {
            status = hri_error_set(HR_ERR_CANCELED, "attending: canceled");
        }
    }
    if (status == HR_OK && o->q_host != NULL) {
        struct hr_tensor q =
            hr_tensor_make((float *)(uintptr_t)o->q_host, HR_DTYPE_F32, o->n_tokens, s->n_q, s->dk);
        status = hr_sequence_observe(s, layer, &q);
    }
    if (status == HR_OK) {
        hri_held_follow(s, l);
    }
    hri_device_range_end(s->runtime->gpu);
    report.time_ns[HRI_ATTEND] += hri_now_ns() - began_ns;
    if (status == HR_OK && !l->exact) {
        status = hri_settle(s, l, s->segment, false);
    }
    if (status != HR_OK) {
        return status;
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
