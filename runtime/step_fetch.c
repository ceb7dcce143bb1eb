/* The move of a step that brings what was chosen: hits need nothing, misses start their reads. */
#include "runtime/step.h"

#include "base/clock.h"
#include "base/error.h"

#include <string.h>

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
hr_status_t hri_step_rows_find(const struct step *st, uint32_t head)
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

/* What the store or the frames are to bring of one head, and where its single rows lie. */
static hr_status_t head_fetch(struct step *st, uint32_t head)
{
    const hr_sequence_t *s = st->s;
    const struct hri_head_step *hs = &s->steps[head];
    hr_status_t status = HR_OK;
    if (!hs->attended) {
        status = st->layer->indexed ? blocks_fetch(st, head) : rows_fetch(st, head);
        if (status == HR_OK && s->rows_max > 0) {
            status = hri_step_rows_find(st, head);
        }
    }
    if (status == HR_OK && s->rows_max > 0) {
        st->report->bytes_from_host +=
            (uint64_t)hs->out.n_rows * s->code_bytes + hs->out.bytes_rests;
    }
    return status;
}

hr_status_t hri_step_fetch_begin(struct step *st)
{
    hr_status_t status = HR_OK;
    if (st->layer->indexed) {
        hri_frames_step_begin(st->s->frames);
    }
    for (uint32_t h = 0; h < st->s->n_kv; h++) {
        if (status == HR_OK) {
            status = head_fetch(st, h);
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
hr_status_t hri_step_fetch_wait(struct step *st, hr_status_t status)
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
