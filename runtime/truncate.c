/* Drops the newest tokens. What the tail will need again is read from the log first, into working memory, so that a failed read leaves
 * the sequence as it was; nothing after that can fail.
 *
 * Segments that reach beyond the window's beginning are undone: their rows wait in the log to be grouped anew, and those of the window are
 * back in the tail. */
#include "runtime/device_part.h"
#include "runtime/device_rows.h"

#include "base/error.h"
#include <string.h>

/* What becomes of a layer. */
struct cut {
    uint32_t n_tokens, n_logged, body_end, n_settled;
    uint32_t tail_first;
    bool drops_ahead; /* rows of the segment that is being made ahead go */
    unsigned char
        *rows; /* [n_kv][n_tokens - tail_first][row_bytes] of the tail, NULL: it has them */
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static struct cut cut_plan(const hr_sequence_t *s, const struct hri_layer *l, uint32_t n)
{
    struct cut c = {.n_tokens = n,
                    .n_logged = n / HRI_LOG_ROWS * HRI_LOG_ROWS,
                    .n_settled = l->n_settled,
                    .tail_first = l->tail_first};
    uint32_t outside = n > s->n_window ? n - s->n_window : 0; /* of the window */
    uint32_t sink = min_u32(s->n_sink, n);
    if (l->settled != NULL) {
        while (c.n_settled > 0 && l->settled[c.n_settled - 1] > outside) {
            c.n_settled--;
        }
        c.body_end = c.n_settled > 0 ? l->settled[c.n_settled - 1] : sink;
    } else {
        c.body_end = min_u32(l->body_end, outside > sink ? outside : sink);
    }
    uint32_t ahead = hri_layer_ahead(l);
    c.drops_ahead = ahead > 0 && (c.body_end < l->body_end || ahead > n - l->body_end);
    bool steps = !l->exact && (c.body_end < l->tail_first || l->tail_first > outside);
    if (steps || l->tail_first > c.n_logged) {
        uint32_t keep = s->n_window + s->decode_segment + HRI_LOG_ROWS;
        c.tail_first = min_u32(l->tail_first, min_u32(n > keep ? n - keep : 0, c.n_logged));
    }
    return c;
}

struct refill {
    const hr_sequence_t *s;
    const struct cut *cut;
};

static void refill_visit(void *context, const struct hri_tiles *tiles)
{
    const struct refill *r = context;
    const hr_sequence_t *s = r->s;
    uint32_t n = r->cut->n_tokens - r->cut->tail_first;
    for (uint32_t i = 0; i < tiles->n; i++) {
        for (uint32_t h = 0; h < s->n_kv; h++) {
            size_t row = (size_t)h * n + (tiles->token[i] - r->cut->tail_first);
            memcpy(r->cut->rows + row * s->row_bytes, tiles->base[(size_t)i * s->n_kv + h],
                   (size_t)tiles->rows[i] * s->row_bytes);
        }
    }
}

/* Plans every layer and reads what their tails need; rows lie in the runtime's scratch. */
static hr_status_t cuts_make(hr_sequence_t *s, uint32_t n_tokens, struct cut *cuts)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        struct hri_layer *l = &s->layers[i];
        cuts[i] = cut_plan(s, l, n_tokens);
        bool loses = cuts[i].body_end < l->body_end || cuts[i].drops_ahead;
        hr_status_t status = loses ? hri_layer_own(s, l) : HR_OK;
        if (status != HR_OK) {
            return status;
        }
        if (cuts[i].tail_first < l->tail_first) {
            bytes += (size_t)s->n_kv * (n_tokens - cuts[i].tail_first) * s->row_bytes;
        }
    }
    unsigned char *rows = bytes > 0 ? hri_scratch_read(s->runtime, &s->runtime->rows, bytes) : NULL;
    if (bytes > 0 && rows == NULL) {
        return hri_alloc_status();
    }
    for (uint32_t i = 0; i < s->n_layers; i++) {
        struct hri_layer *l = &s->layers[i];
        struct cut *c = &cuts[i];
        struct hr_attend_report unseen = {0};
        if (c->tail_first == l->tail_first) {
            continue;
        }
        c->rows = rows;
        rows += (size_t)s->n_kv * (n_tokens - c->tail_first) * s->row_bytes;
        struct refill refill = {s, c};
        hr_status_t status =
            hri_stream_rows(s, l, c->tail_first, n_tokens, refill_visit, &refill, &unseen);
        if (status != HR_OK) {
            return status;
        }
    }
    return HR_OK;
}

/* Blocks of a head that hold its first n rows; segments end where blocks do. */
static uint32_t blocks_of_rows(const struct hri_index_head *head, uint32_t n)
{
    uint32_t blocks = hri_index_blocks(head), rows = hri_index_rows(head);
    while (blocks > 0 && rows > n) {
        rows -= hri_index_block_rows(head, --blocks);
    }
    return blocks;
}

/* The first cell that only blocks >= kept use: a segment's cells follow those of the segments before it. */
static uint32_t first_cell_of(const hr_sequence_t *s, const struct hri_layer *l, uint32_t head,
                              uint32_t kept, uint32_t cells)
{
    const struct hri_index_head *index = l->heads[head];
    uint32_t end = (hri_index_blocks(index) + hri_index_blocks_ahead(index)) * s->parts;
    for (uint32_t i = kept * s->parts; i < end; i++) {
        cells = min_u32(cells, l->places[head][i].cell); /* HRI_NO_CELL is the largest */
    }
    return cells;
}

static void index_cut(hr_sequence_t *s, struct hri_layer *l, const struct cut *c)
{
    uint32_t rows = c->body_end > s->n_sink ? c->body_end - s->n_sink : 0;
    uint32_t first_lane = (uint32_t)(l - s->layers) * s->n_kv;
    uint32_t cells = l->block_lane != NULL ? hri_lane_cells(l->block_lane) : 0;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        struct hri_index_head *head = l->heads[h];
        if (l->indexed && (c->drops_ahead || hri_index_rows(head) > rows)) {
            uint32_t blocks = blocks_of_rows(head, rows);
            cells = first_cell_of(s, l, h, blocks, cells);
            hri_index_drop_ahead(head);
            if (s->frames != NULL) {
                hri_frames_truncate(s->frames, first_lane + h, blocks * s->parts);
            }
            hri_index_truncate(head, blocks);
        } else if (l->adds_rows && hri_index_rows(head) > rows) {
            hri_index_truncate_rows(head, rows);
        }
        hri_index_forget(head, c->n_tokens);
    }
    if (l->block_lane != NULL) {
        (void)hri_lane_truncate(l->block_lane, cells);
    }
}

static void layer_cut(hr_sequence_t *s, struct hri_layer *l, const struct cut *c)
{
    if (l->heads != NULL) {
        index_cut(s, l, c);
    }
    uint32_t n = c->n_tokens - c->tail_first;
    if (c->rows != NULL) {
        hri_tail_own(s, l);
    }
    for (uint32_t h = 0; c->rows != NULL && h < s->n_kv; h++) {
        memcpy(l->tail + (size_t)h * s->tail_max * s->row_bytes,
               c->rows + (size_t)h * n * s->row_bytes, (size_t)n * s->row_bytes);
    }
    (void)hri_lane_truncate(l->log_lane, c->n_logged / HRI_LOG_ROWS * s->n_kv);
    l->n_tokens = c->n_tokens;
    l->n_logged = c->n_logged;
    l->tail_first = c->tail_first;
    l->body_end = c->body_end;
    l->n_settled = c->n_settled;
    l->early_tokens = 0;
}

hr_status_t hr_sequence_truncate(hr_sequence_t *s, uint32_t n_tokens)
{
    if (s == NULL) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_truncate: no sequence");
    }
    for (uint32_t i = 0; i < s->n_layers; i++) {
        if (n_tokens > s->layers[i].n_tokens) {
            return hri_error_set(HR_ERR_INVALID,
                                 "hr_sequence_truncate: to %u tokens, but layer %u has %u",
                                 n_tokens, i, s->layers[i].n_tokens);
        }
    }
    struct cut cuts[HR_LAYERS_MAX];
    hri_cancel_begin(s);
    hr_status_t status = hri_settle_halves(s);
    if (status == HR_OK) {
        status = cuts_make(s, n_tokens, cuts);
    }
    for (uint32_t i = 0; status == HR_OK && i < s->n_layers; i++) {
        if (n_tokens < s->layers[i].n_tokens) {
            layer_cut(s, &s->layers[i], &cuts[i]);
        }
    }
    if (status == HR_OK) {
        hri_device_cut(s);
        hri_held_cut(s);
    }
    return status;
}

/* -- as a truncate to all that is there, of one layer: for sessions that were opened with another recipe -- */

struct sink_fill {
    const hr_sequence_t *s;
    struct hri_layer *layer;
};

static void sink_visit(void *context, const struct hri_tiles *tiles)
{
    const struct sink_fill *f = context;
    const hr_sequence_t *s = f->s;
    for (uint32_t i = 0; i < tiles->n; i++) {
        for (uint32_t h = 0; h < s->n_kv; h++) {
            memcpy(f->layer->sink + ((size_t)h * s->n_sink + tiles->token[i]) * s->row_bytes,
                   tiles->base[(size_t)i * s->n_kv + h], (size_t)tiles->rows[i] * s->row_bytes);
        }
    }
}

hr_status_t hri_layer_refill(hr_sequence_t *s, struct hri_layer *l)
{
    struct cut c = cut_plan(s, l, l->n_tokens);
    struct refill refill = {s, &c};
    struct sink_fill sink = {s, l};
    struct hr_attend_report unseen = {0};
    uint32_t n = l->n_tokens - c.tail_first;
    size_t bytes = (size_t)s->n_kv * n * s->row_bytes;
    c.rows = hri_scratch_read(s->runtime, &s->runtime->rows, bytes > 0 ? bytes : 1);
    if (c.rows == NULL) {
        return hri_alloc_status();
    }
    hr_status_t status =
        hri_stream_rows(s, l, c.tail_first, l->n_tokens, refill_visit, &refill, &unseen);
    if (status == HR_OK) {
        status =
            hri_stream_rows(s, l, 0, min_u32(s->n_sink, l->n_tokens), sink_visit, &sink, &unseen);
    }
    if (status == HR_OK) {
        layer_cut(s, l, &c);
    }
    return status;
}
