/* Moves 1 and 2 of a step: new rows enter the tail (device); whole pages of rows go to the log (the authoritative tier). */
#include "runtime/sequence.h"

#include "base/clock.h"
#include "base/error.h"
#include <string.h>

#define STAGE_PAGES 8u /* pages converted and handed to the log at a time */

struct source {
    const struct hr_tensor *k, *v;
    uint32_t first; /* token number of the tensors' first row */
};

/* The exact row of a new token: converted, K then V. */
static void row_load(const hr_sequence_t *s, const struct source *src, uint32_t token,
                     uint32_t head, unsigned char *dst)
{
    const struct hri_kernels *kern = s->runtime->kernels;
    const struct hr_tensor *t[2] = {src->k, src->v};
    const uint32_t dims[2] = {s->dk, s->dv};
    for (int i = 0; i < 2; i++) {
        const unsigned char *row = hri_tensor_row(t[i], token - src->first, head);
        size_t bytes = dims[i] * hr_dtype_bytes(s->dtype);
        if (t[i]->dtype == s->dtype) {
            memcpy(dst, row, bytes);
        } else {
            float wide[HR_HEAD_DIM_MAX];
            kern->to_f32(wide, row, t[i]->dtype, dims[i]);
            kern->from_f32(dst, wide, s->dtype, dims[i]);
        }
        dst += bytes;
    }
}

/* Every number must be finite, also after the conversion (a float can overflow f16). */
static hr_status_t rows_check(const hr_sequence_t *s, const struct source *src, uint32_t n)
{
    const struct hri_kernels *kern = s->runtime->kernels;
    unsigned char row[2 * HR_HEAD_DIM_MAX * 4];
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t h = 0; h < s->n_kv; h++) {
            row_load(s, src, src->first + i, h, row);
            size_t bad = kern->find_nonfinite(row, s->dtype, s->dk + s->dv);
            if (bad < s->dk + s->dv) {
                bool key = bad < s->dk;
                return hri_error_set(
                    HR_ERR_NONFINITE, "%s: token %u, head %u, dimension %zu is not finite in %s",
                    key ? "k" : "v", i, h, key ? bad : bad - s->dk, hr_dtype_name(s->dtype));
            }
        }
    }
    return HR_OK;
}

/* Writes all whole pages of [n_logged, end) to the log. */
static hr_status_t log_pages(hr_sequence_t *s, struct hri_layer *l, const struct source *src,
                             uint32_t end)
{
    uint32_t n_pages = end / HRI_LOG_ROWS - l->n_logged / HRI_LOG_ROWS;
    if (n_pages == 0) {
        return HR_OK;
    }
    size_t page_bytes = (size_t)s->n_kv * s->log_cell_bytes;
    uint32_t stage = n_pages < STAGE_PAGES ? n_pages : STAGE_PAGES;
    unsigned char *buffer = hri_scratch_read(s->runtime, &s->runtime->rows, stage * page_bytes);
    if (buffer == NULL) {
        return hri_alloc_status();
    }
    size_t used = (size_t)HRI_LOG_ROWS * s->row_bytes;
    for (uint32_t p = 0; p < n_pages; p += stage) {
        uint32_t now = n_pages - p < stage ? n_pages - p : stage;
        for (uint32_t c = 0; c < now * s->n_kv; c++) {
            unsigned char *cell = buffer + (size_t)c * s->log_cell_bytes;
            uint32_t head = c % s->n_kv, token = l->n_logged + (p + c / s->n_kv) * HRI_LOG_ROWS;
            for (uint32_t i = 0; i < HRI_LOG_ROWS; i++) {
                unsigned char *dst = cell + (size_t)i * s->row_bytes;
                if (token + i < src->first) {
                    memcpy(dst, hri_tail_row(s, l, head, token + i), s->row_bytes);
                } else {
                    row_load(s, src, token + i, head, dst);
                }
            }
            memset(cell + used, 0, s->log_cell_bytes - used);
        }
        uint32_t first_cell;
        hr_status_t status = hri_lane_append(l->log_lane, buffer, now * s->n_kv, &first_cell);
        if (status != HR_OK) {
            return status;
        }
    }
    return HR_OK;
}

/* First token the tail must keep once the sequence has `end` tokens of which n_logged are in the log. */
static uint32_t tail_first_for(const hr_sequence_t *s, const struct hri_layer *l, uint32_t end,
                               uint32_t n_logged)
{
    if (end - l->tail_first <= s->tail_max) {
        return l->tail_first;
    }
    uint32_t keep = s->n_window + s->decode_segment + HRI_LOG_ROWS;
    uint32_t first = end > keep ? end - keep : 0;
    return first < n_logged ? first : n_logged;
}

static void tail_extend(hr_sequence_t *s, struct hri_layer *l, const struct source *src,
                        uint32_t end, uint32_t n_logged)
{
    uint32_t first = tail_first_for(s, l, end, n_logged);
    hri_tail_own(s, l);
    if (first > l->tail_first) {
        uint32_t kept = first < l->n_tokens ? l->n_tokens - first : 0;
        for (uint32_t h = 0; h < s->n_kv && kept > 0; h++) {
            unsigned char *base = l->tail + (size_t)h * s->tail_max * s->row_bytes;
            memmove(base, base + (size_t)(first - l->tail_first) * s->row_bytes,
                    (size_t)kept * s->row_bytes);
        }
        l->tail_first = first;
    }
    for (uint32_t t = src->first > first ? src->first : first; t < end; t++) {
        for (uint32_t h = 0; h < s->n_kv; h++) {
            row_load(s, src, t, h,
                     l->tail + ((size_t)h * s->tail_max + (t - first)) * s->row_bytes);
        }
    }
    for (uint32_t t = src->first; t < end && t < s->n_sink; t++) {
        for (uint32_t h = 0; h < s->n_kv; h++) {
            row_load(s, src, t, h, l->sink + ((size_t)h * s->n_sink + t) * s->row_bytes);
        }
    }
}

hr_status_t hr_sequence_append(hr_sequence_t *s, uint32_t layer, const struct hr_tensor *k,
                               const struct hr_tensor *v, hr_stream_t stream)
{
    (void)stream;
    if (s == NULL || layer >= s->n_layers) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_append: %s",
                             s == NULL ? "no sequence" : "no such layer");
    }
    uint32_t n = k != NULL ? k->shape[0] : 0;
    hr_status_t status = hri_tensor_check(k, "k", n, s->n_kv, s->dk);
    if (status == HR_OK) {
        status = hri_tensor_check(v, "v", n, s->n_kv, s->dv);
    }
    if (status != HR_OK) {
        return status;
    }
    struct hri_layer *l = &s->layers[layer];
    if (n > s->tokens_max - l->n_tokens) {
        return hri_error_set(HR_ERR_FULL, "layer %u has %u tokens; %u more exceed tokens_max %u",
                             layer, l->n_tokens, n, s->tokens_max);
    }
    struct source src = {.k = k, .v = v, .first = l->n_tokens};
    uint64_t t0 = hri_now_ns();
    status = rows_check(s, &src, n);
    if (status != HR_OK) {
        return status;
    }
    uint32_t end = l->n_tokens + n, cells = hri_lane_cells(l->log_lane);
    uint64_t t1 = hri_now_ns();
    status = log_pages(s, l, &src, end);
    if (status != HR_OK) {
        char message[HRI_ERROR_BYTES_MAX];
        hri_error_get(message, sizeof message);
        (void)hri_lane_truncate(l->log_lane, cells);
        return hri_error_set(status, "layer %u, tokens %u to %u not appended: %s", layer, src.first,
                             end - 1, message);
    }
    uint64_t t2 = hri_now_ns();
    uint32_t n_logged = end / HRI_LOG_ROWS * HRI_LOG_ROWS;
    tail_extend(s, l, &src, end, n_logged);
    l->n_logged = n_logged;
    l->n_tokens = end;
    if (l->body_end < s->n_sink) {
        l->body_end = end < s->n_sink ? end : s->n_sink;
    }
    s->time_ns[HRI_STORE] += t2 - t1;
    s->time_ns[HRI_APPEND] += hri_now_ns() - t2 + t1 - t0;
    return HR_OK;
}
