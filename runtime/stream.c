/* Exact rows of a layer, streamed in token order from wherever they are: two buffers, one being read while the other is used. */
#include "runtime/sequence.h"

#include "base/error.h"
#include <string.h>

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Log pages: as many as its buffer holds, and among them more that lie in host memory where a stream may have them. */
struct chunk {
    unsigned char *buffer;
    struct hri_tiles tiles;
    struct hri_read *reads;
    struct hri_read_batch batch;
};

struct stream {
    hr_sequence_t *s;
    struct hri_layer *layer;
    uint32_t first, end; /* tokens asked from the log */
    uint32_t pages_max;  /* of a chunk */
    uint32_t read_max;   /* those of them that have room in its buffer */
    const uint8_t *only; /* [n_kv] heads that are wanted; NULL: all */
    struct chunk chunk[2];
};

/* `pages` as hri_stream_heads was asked. */
static hr_status_t stream_init(struct stream *st, uint32_t pages)
{
    hr_sequence_t *s = st->s;
    size_t page_bytes = (size_t)s->n_kv * s->log_cell_bytes;
    uint32_t read_max = (uint32_t)(HRI_STREAM_BYTES / page_bytes);
    uint32_t whole =
        s->tokens_max / HRI_LOG_ROWS + 1; /* one size for all calls, so that none allocates later */
    uint32_t slots = s->tail_max / HRI_LOG_ROWS + 1;
    slots = max_u32(slots, min_u32(HRI_STREAM_PAGES, whole));
    read_max = min_u32(max_u32(read_max, 1), whole);
    slots = max_u32(slots, read_max);
    st->read_max = read_max;
    st->pages_max = max_u32(read_max, min_u32(pages, slots));
    size_t cells = (size_t)slots * s->n_kv;
    size_t table = (size_t)read_max * s->n_kv * sizeof(struct hri_read) + cells * sizeof(void *) +
                   slots * 2 * sizeof(uint32_t);
    table = hri_round_up(table, 64);
    size_t data = hri_round_up(read_max * page_bytes, HRI_PAGE_BYTES);
    unsigned char *base = hri_scratch_read(s->runtime, &s->runtime->stream, 2 * (data + table));
    if (base == NULL) {
        return hri_alloc_status();
    }
    for (int i = 0; i < 2; i++) {
        struct chunk *c = &st->chunk[i];
        unsigned char *t = base + 2 * data + (size_t)i * table;
        c->buffer = base + (size_t)i * data;
        c->reads = (struct hri_read *)(void *)t;
        t += (size_t)read_max * s->n_kv * sizeof(struct hri_read);
        c->tiles.base = (const unsigned char **)(void *)t;
        t += cells * sizeof(void *);
        c->tiles.token = (uint32_t *)(void *)t;
        c->tiles.rows = c->tiles.token + slots;
    }
    return HR_OK;
}

/* A page becomes the chunk's next one: cells in host memory are used where they are, runs of the others are read into the buffer as its
 * page *n_read. False: the buffer has no room for it. */
static bool page_add(struct stream *st, struct chunk *c, uint32_t page, uint32_t *n_read,
                     struct hr_attend_report *report)
{
    hr_sequence_t *s = st->s;
    const unsigned char **base = &c->tiles.base[c->tiles.n * s->n_kv];
    uint32_t first_cell = page * s->n_kv, n_host = 0, n_wanted = 0;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        bool wanted = st->only == NULL || st->only[h];
        base[h] = wanted ? hri_lane_peek(st->layer->log_lane, first_cell + h) : NULL;
        n_host += base[h] != NULL;
        n_wanted += wanted;
    }
    if (n_host < n_wanted && *n_read == st->read_max) {
        return false;
    }
    report->bytes_from_host += (uint64_t)n_host * s->log_cell_bytes;
    for (uint32_t h = 0; h < s->n_kv && n_host < n_wanted; h++) {
        if (base[h] != NULL || (st->only != NULL && !st->only[h])) {
            continue;
        }
        unsigned char *dst = c->buffer + ((size_t)*n_read * s->n_kv + h) * s->log_cell_bytes;
        struct hri_read *last = c->batch.n_reads > 0 ? &c->reads[c->batch.n_reads - 1] : NULL;
        if (last != NULL && last->cell + last->n_cells == first_cell + h) {
            last->n_cells++;
        } else {
            c->reads[c->batch.n_reads++] = (struct hri_read){
                .lane = st->layer->log_lane, .cell = first_cell + h, .n_cells = 1, .dst = dst};
        }
        base[h] = dst;
    }
    *n_read += n_host < n_wanted;
    c->tiles.n++;
    return true;
}

/* Pages from `page` on, as many as there is room for. */
static hr_status_t chunk_begin(struct stream *st, struct chunk *c, uint32_t page, uint32_t page_end,
                               struct hr_attend_report *report)
{
    hr_sequence_t *s = st->s;
    uint32_t n_read = 0;
    memset(&c->batch, 0, sizeof c->batch);
    c->batch.reads = c->reads;
    c->tiles.n = 0;
    for (uint32_t at = page; at < page_end && at < page + st->pages_max; at++) {
        if (!page_add(st, c, at, &n_read, report)) {
            break;
        }
    }
    for (uint32_t i = 0; i < c->tiles.n; i++) {
        uint32_t token = (page + i) * HRI_LOG_ROWS,
                 skip = token < st->first ? st->first - token : 0;
        uint32_t end = token + HRI_LOG_ROWS < st->end ? token + HRI_LOG_ROWS : st->end;
        c->tiles.token[i] = token + skip;
        c->tiles.rows[i] = end - token - skip;
        for (uint32_t h = 0; h < s->n_kv && skip > 0; h++) {
            if (c->tiles.base[i * s->n_kv + h] != NULL) {
                c->tiles.base[i * s->n_kv + h] += (size_t)skip * s->row_bytes;
            }
        }
    }
    return c->batch.n_reads > 0 ? hri_store_read_begin(s->runtime->store, &c->batch) : HR_OK;
}

/* Names the tokens that could not be read. */
static hr_status_t lost(const struct stream *st, const struct chunk *c, hr_status_t status)
{
    char message[HRI_ERROR_BYTES_MAX];
    hri_error_get(message, sizeof message);
    for (uint32_t i = 0; i < c->batch.n_reads; i++) {
        const struct hri_read *r = &c->reads[i];
        if (r->status != HR_OK) {
            uint32_t a = r->cell / st->s->n_kv * HRI_LOG_ROWS;
            uint32_t b = (r->cell + r->n_cells - 1) / st->s->n_kv * HRI_LOG_ROWS + HRI_LOG_ROWS - 1;
            return hri_error_set(status, "layer %u: tokens %u to %u are lost: %s",
                                 (unsigned)(st->layer - st->s->layers), a, b, message);
        }
    }
    return status;
}

static hr_status_t chunk_wait(struct stream *st, struct chunk *c, struct hr_attend_report *report)
{
    if (c->batch.n_reads == 0) {
        return HR_OK;
    }
    hr_status_t status = hri_store_read_wait(st->s->runtime->store, &c->batch, 0);
    report->bytes_from_host += c->batch.bytes_from_host;
    report->bytes_from_file += c->batch.bytes_from_file;
    report->ios += c->batch.ios;
    return status == HR_OK ? HR_OK : lost(st, c, status);
}

static hr_status_t stream_log(struct stream *st, hri_tiles_fn visit, void *context,
                              struct hr_attend_report *report)
{
    uint32_t page = st->first / HRI_LOG_ROWS,
             page_end = (st->end + HRI_LOG_ROWS - 1) / HRI_LOG_ROWS, turn = 0;
    hr_status_t status = chunk_begin(st, &st->chunk[0], page, page_end, report);
    while (status == HR_OK && page < page_end) {
        struct chunk *now = &st->chunk[turn], *next = &st->chunk[turn ^ 1];
        page += now->tiles.n;
        status = chunk_wait(st, now, report);
        if (status == HR_OK && page < page_end) {
            status = chunk_begin(st, next, page, page_end, report);
        }
        if (status == HR_OK) {
            visit(context, &now->tiles);
        }
        if (status == HR_OK && page < page_end && hri_canceled(st->s)) {
            status = hri_error_set(HR_ERR_CANCELED, "attending: canceled");
        }
        turn ^= 1;
    }
    for (int i = 0; i < 2; i++) {
        if (st->chunk[i].batch.n_pending > 0) {
            hri_store_read_cancel(st->s->runtime->store, &st->chunk[i].batch);
        }
    }
    return status;
}

static void visit_tail(struct stream *st, uint32_t first, uint32_t end, hri_tiles_fn visit,
                       void *context)
{
    struct hri_tiles *t = &st->chunk[0].tiles;
    t->n = 0;
    for (uint32_t token = first; token < end; token += HRI_LOG_ROWS) {
        t->token[t->n] = token;
        t->rows[t->n] = end - token < HRI_LOG_ROWS ? end - token : HRI_LOG_ROWS;
        for (uint32_t h = 0; h < st->s->n_kv; h++) {
            t->base[t->n * st->s->n_kv + h] = hri_tail_row(st->s, st->layer, h, token);
        }
        t->n++;
    }
    visit(context, t);
}

hr_status_t hri_stream_rows(hr_sequence_t *s, struct hri_layer *layer, uint32_t first, uint32_t end,
                            hri_tiles_fn visit, void *context, struct hr_attend_report *report)
{
    return hri_stream_heads(s, layer, first, end, NULL, 0, visit, context, report);
}

hr_status_t hri_stream_heads(hr_sequence_t *s, struct hri_layer *layer, uint32_t first,
                             uint32_t end, const uint8_t *only, uint32_t pages, hri_tiles_fn visit,
                             void *context, struct hr_attend_report *report)
{
    uint32_t split = layer->tail_first > first ? layer->tail_first : first;
    split = split < end ? split : end;
    struct stream st = {.s = s, .layer = layer, .first = first, .end = split, .only = only};
    hr_status_t status = stream_init(&st, pages);
    if (status == HR_OK && first < split) {
        status = stream_log(&st, visit, context, report);
    }
    if (status == HR_OK && split < end) {
        visit_tail(&st, split, end, visit, context);
    }
    return status;
}
