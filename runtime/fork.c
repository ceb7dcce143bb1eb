/* Forks: a second sequence with the same tokens. Cells of the log and of blocks are shared for good (offload/store_lane.c); an index with
 * its tables of places until one of the two groups or drops rows; the tail until one of them writes to its own. Copied are the sink and
 * the query statistics: what is copied does not grow with the text. */
#include "runtime/device_rows.h"

#include "base/error.h"
#include <string.h>

static void *copy_of(struct hri_alloc *alloc, const void *from, size_t used, size_t bytes)
{
    void *to = hri_aligned(alloc, 64, bytes > 0 ? bytes : 64);
    if (to != NULL && used > 0) {
        memcpy(to, from, used);
    }
    return to;
}

/* -- what is shared becomes a layer's own -- */

static hr_status_t tables_own(hr_sequence_t *s, struct hri_layer *l, struct hri_block_at **places,
                              struct hri_block_tokens *tokens)
{
    struct hri_alloc *a = &s->runtime->alloc;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        size_t blocks = hri_index_blocks(l->heads[h]) + hri_index_blocks_ahead(l->heads[h]);
        size_t rows = hri_index_rows(l->heads[h]) + hri_index_rows_ahead(l->heads[h]);
        places[h] = copy_of(a, l->places[h], blocks * s->parts * sizeof **places,
                            (size_t)s->blocks_max * s->parts * sizeof **places);
        if (places[h] == NULL) {
            return hri_alloc_status();
        }
        if (tokens == NULL) {
            continue;
        }
        tokens[h].token = copy_of(a, l->block_tokens[h].token, rows * sizeof(uint32_t),
                                  s->tokens_max * sizeof(uint32_t));
        tokens[h].first = copy_of(a, l->block_tokens[h].first, blocks * sizeof(uint32_t),
                                  s->blocks_max * sizeof(uint32_t));
        if (tokens[h].token == NULL || tokens[h].first == NULL) {
            return hri_alloc_status();
        }
    }
    return HR_OK;
}

static hr_status_t places_own(hr_sequence_t *s, struct hri_layer *l)
{
    struct hri_alloc *a = &s->runtime->alloc;
    struct hri_block_tokens *tokens =
        l->block_tokens != NULL ? hri_calloc(a, s->n_kv, sizeof *tokens) : NULL;
    struct hri_block_at **places = hri_calloc(a, s->n_kv, sizeof *places);
    hr_status_t status = places != NULL && (tokens != NULL || l->block_tokens == NULL)
                             ? tables_own(s, l, places, tokens)
                             : hri_alloc_status();
    if (status == HR_OK) {
        --*l->shared;
        l->shared = NULL;
        memcpy(l->places, places, s->n_kv * sizeof *places);
        if (tokens != NULL) {
            memcpy(l->block_tokens, tokens, s->n_kv * sizeof *tokens);
        }
    }
    for (uint32_t h = 0; status != HR_OK && h < s->n_kv; h++) {
        if (places != NULL) {
            hri_free(a, places[h]);
        }
        if (tokens != NULL) {
            hri_free(a, tokens[h].token);
            hri_free(a, tokens[h].first);
        }
    }
    hri_free(a, places);
    hri_free(a, tokens);
    return status;
}

/* New heads with what the old ones know; the old ones where that fails. */
static hr_status_t heads_own(hr_sequence_t *s, struct hri_layer *l)
{
    struct hri_index_head *old[HR_HEADS_MAX];
    memcpy(old, l->heads, s->n_kv * sizeof *old);
    memset(l->heads, 0, s->n_kv * sizeof *l->heads);
    hr_status_t status = hri_heads_create(s, l);
    for (uint32_t h = 0; h < s->n_kv && status == HR_OK; h++) {
        status = hri_index_copy(old[h], l->heads[h]);
    }
    for (uint32_t h = 0; h < s->n_kv; h++) {
        hri_index_head_destroy(status == HR_OK ? old[h] : l->heads[h]);
    }
    if (status != HR_OK) {
        memcpy(l->heads, old, s->n_kv * sizeof *old);
    }
    return status;
}

hr_status_t hri_layer_own(hr_sequence_t *s, struct hri_layer *l)
{
    hr_status_t status = HR_OK;
    if (l->shared != NULL && *l->shared > 1) {
        status = places_own(s, l);
    }
    if (status == HR_OK && l->heads != NULL && hri_index_is_shared(l->heads[0])) {
        status = heads_own(s, l);
    }
    return status;
}

/* -- tails -- */

static unsigned char *spare_take(struct hri_tail_share *share)
{
    unsigned char *spare = share->spare;
    memcpy(&share->spare, spare, sizeof share->spare);
    return spare;
}

/* Who is left alone with the tail has it as before. */
static bool tail_leave(hr_sequence_t *s, struct hri_layer *l, unsigned char **spare_out)
{
    struct hri_tail_share *share = l->tail_share;
    l->tail_share = NULL;
    if (share == NULL) {
        return false;
    }
    if (--share->layers == 0) {
        hri_free(&s->runtime->alloc, share);
        return false;
    }
    *spare_out = spare_take(share);
    return true;
}

void hri_tail_own(hr_sequence_t *s, struct hri_layer *l)
{
    unsigned char *own;
    if (!tail_leave(s, l, &own)) {
        return;
    }
    size_t used = (size_t)(l->n_tokens - l->tail_first) * s->row_bytes;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        size_t at = (size_t)h * s->tail_max * s->row_bytes;
        memcpy(own + at, l->tail + at, used);
    }
    l->tail = own;
}

void hri_tail_destroy(hr_sequence_t *s, struct hri_layer *l)
{
    unsigned char *spare = NULL;
    bool others = tail_leave(s, l, &spare);
    hri_free(&s->runtime->device, others ? spare : l->tail);
    l->tail = NULL;
}

static hr_status_t tail_fork(hr_sequence_t *f, struct hri_layer *from, struct hri_layer *l)
{
    size_t bytes = (size_t)f->n_kv * f->tail_max * f->row_bytes;
    if (from->tail_share == NULL) {
        from->tail_share = hri_array(&f->runtime->alloc, 1, sizeof *from->tail_share);
        if (from->tail_share == NULL) {
            return hri_alloc_status();
        }
        *from->tail_share = (struct hri_tail_share){.layers = 1};
    }
    struct hri_tail_share *share = from->tail_share;
    unsigned char *spare = hri_aligned(&f->runtime->device, 64, bytes);
    if (spare == NULL) {
        return hri_alloc_status();
    }
    memcpy(spare, &share->spare, sizeof share->spare);
    share->spare = spare;
    share->layers++;
    l->tail_share = share;
    l->tail = from->tail;
    return HR_OK;
}

/* -- a fork -- */

static hr_status_t shared_count(struct hri_alloc *a, struct hri_layer *from, struct hri_layer *l)
{
    if (from->shared == NULL) {
        from->shared = hri_array(a, 1, sizeof *from->shared);
        if (from->shared == NULL) {
            return hri_alloc_status();
        }
        *from->shared = 1;
    }
    l->shared = from->shared;
    ++*l->shared;
    return HR_OK;
}

static hr_status_t places_fork(hr_sequence_t *f, struct hri_layer *from, struct hri_layer *l)
{
    struct hri_alloc *a = &f->runtime->alloc;
    hr_status_t status = shared_count(a, from, l);
    if (status != HR_OK) {
        return status;
    }
    l->places = copy_of(a, from->places, f->n_kv * sizeof *l->places, f->n_kv * sizeof *l->places);
    if (from->block_tokens != NULL) {
        l->block_tokens = copy_of(a, from->block_tokens, f->n_kv * sizeof *l->block_tokens,
                                  f->n_kv * sizeof *l->block_tokens);
    }
    return l->places != NULL && (l->block_tokens != NULL || from->block_tokens == NULL)
               ? HR_OK
               : hri_alloc_status();
}

static hr_status_t heads_fork(hr_sequence_t *f, const struct hri_layer *from, struct hri_layer *l)
{
    l->heads = hri_calloc(&f->runtime->alloc, f->n_kv, sizeof(struct hri_index_head *));
    if (l->heads == NULL) {
        return hri_alloc_status();
    }
    if (!hri_index_saves(&f->recipe)) { /* made from the rows, as it was */
        hr_status_t status = hri_heads_create(f, l);
        uint32_t n = l->n_settled;
        l->body_end = l->n_tokens < f->n_sink ? l->n_tokens : f->n_sink;
        return status == HR_OK ? hri_settle_ends(f, l, n) : status;
    }
    bool shares = hri_index_shares(&f->recipe);
    hr_status_t status = shares ? HR_OK : hri_heads_create(f, l);
    for (uint32_t h = 0; h < f->n_kv && status == HR_OK; h++) {
        status = shares ? hri_index_share(from->heads[h], f->head_gates, &l->heads[h])
                        : hri_index_copy(from->heads[h], l->heads[h]);
    }
    if (status == HR_OK && !shares) {
        hri_index_link(l->heads, f->n_kv);
    }
    return status;
}

static hr_status_t rows_fork(hr_sequence_t *f, struct hri_layer *from, struct hri_layer *l)
{
    size_t sink = (size_t)f->n_kv * f->n_sink * f->row_bytes;
    if (sink > 0) {
        l->sink = copy_of(&f->runtime->device, from->sink, sink, sink);
        if (l->sink == NULL) {
            return hri_alloc_status();
        }
    }
    return tail_fork(f, from, l);
}

static hr_status_t options_fork(const hr_sequence_t *f, const struct hri_layer *from,
                                struct hri_layer *l)
{
    struct hri_alloc *a = &f->runtime->alloc;
    size_t frequencies = from->rope.n_rot / 2 * sizeof(float), log_n = f->n_q * sizeof(float),
           early = (size_t)f->n_q * f->dk * sizeof(float);
    bool right = true;
    if (from->rope_frequencies != NULL) {
        l->rope_frequencies = copy_of(a, from->rope_frequencies, frequencies, frequencies);
        l->rope.frequencies = l->rope_frequencies;
        right = right && l->rope_frequencies != NULL;
    }
    if (from->log_n != NULL) {
        l->log_n = copy_of(a, from->log_n, log_n, log_n);
        right = right && l->log_n != NULL;
    }
    if (from->early_q != NULL) {
        l->early_q = copy_of(a, from->early_q, from->early_tokens > 0 ? early : 0, early);
        right = right && l->early_q != NULL;
    }
    if (from->settled != NULL) {
        l->settled = copy_of(a, from->settled, from->n_settled * sizeof *l->settled,
                             from->settled_max * sizeof *l->settled);
        right = right && l->settled != NULL;
    }
    return right ? HR_OK : hri_alloc_status();
}

static hr_status_t layer_fork(hr_sequence_t *f, struct hri_layer *from, struct hri_layer *l)
{
    *l = *from;
    l->rope_frequencies = NULL;
    l->log_n = NULL;
    l->early_q = NULL;
    l->settled = NULL;
    l->sink = l->tail = NULL;
    l->tail_share = NULL;
    l->log_lane = l->block_lane = NULL;
    l->heads = NULL;
    l->places = NULL;
    l->block_tokens = NULL;
    l->shared = NULL;
    hr_status_t status = hri_half_create(f, l);
    if (status == HR_OK) {
        status = options_fork(f, from, l);
    }
    if (status == HR_OK) {
        status = rows_fork(f, from, l);
    }
    if (status == HR_OK) {
        status = hri_lane_fork(&from->log_lane, HR_FORK_DEPTH_MAX, &l->log_lane);
    }
    if (status == HR_OK && from->block_lane != NULL) {
        status = hri_lane_fork(&from->block_lane, HR_FORK_DEPTH_MAX, &l->block_lane);
    }
    if (status == HR_OK && from->places != NULL && from->indexed) {
        status = places_fork(f, from, l);
    }
    if (status == HR_OK && from->heads != NULL) {
        status = heads_fork(f, from, l);
    }
    return status;
}

/* The shape and what follows from it; everything owned is made anew. */
static hr_sequence_t *shell_of(const hr_sequence_t *s)
{
    hr_sequence_t *f = hri_array(&s->runtime->alloc, 1, sizeof *f);
    if (f == NULL) {
        return NULL;
    }
    *f = *s;
    f->layers = NULL;
    f->frames = NULL;
    f->part = NULL;
    f->held = NULL;
    f->steps = NULL;
    memset(&f->share, 0, sizeof f->share);
    f->whole = NULL;
    f->ins = NULL;
    f->outs = NULL;
    f->head_gates = NULL;
    f->row_scores = NULL;
    f->row_buffer = NULL;
    memset(f->homes, 0, sizeof f->homes);
    f->cancel = 0;
    f->index_ns = 0;
    memset(f->time_ns, 0, sizeof f->time_ns);
    f->runtime->n_sequences++;
    return f;
}

hr_status_t hr_sequence_fork(hr_sequence_t *s, hr_sequence_t **fork_out)
{
    if (s == NULL || fork_out == NULL) {
        return hri_error_set(HR_ERR_INVALID,
                             "hr_sequence_fork: no sequence or no place for the fork");
    }
    struct hri_alloc *a = &s->runtime->alloc;
    hr_status_t status = hri_settle_halves(s);
    if (status != HR_OK) {
        return status;
    }
    hr_sequence_t *f = shell_of(s);
    if (f == NULL) {
        return hri_alloc_status();
    }
    if (s->head_gates != NULL) {
        size_t bytes = (size_t)s->n_layers * s->n_kv * sizeof(float);
        f->head_gates = copy_of(a, s->head_gates, bytes, bytes);
        status = f->head_gates != NULL ? HR_OK : hri_alloc_status();
    }
    if (status == HR_OK) {
        f->layers = hri_calloc(a, s->n_layers, sizeof *f->layers);
        status = f->layers != NULL ? HR_OK : hri_alloc_status();
    }
    for (uint32_t i = 0; i < s->n_layers && status == HR_OK; i++) {
        status = layer_fork(f, &s->layers[i], &f->layers[i]);
    }
    if (status == HR_OK) {
        status = hri_steps_create(f);
    }
    if (status == HR_OK && s->share.part != NULL) {
        hri_share_copy(&s->share, &f->share);
    }
    if (status == HR_OK && f->recipe.selector->unit == HRI_UNIT_BLOCKS) {
        status = hri_frames_attach(f);
    }
    if (status == HR_OK) {
        status = hri_held_attach(f);
    }
    if (status != HR_OK) {
        status = hri_status_with_hint(f, status);
        char message[HRI_ERROR_BYTES_MAX];
        hri_error_get(message, sizeof message);
        hr_sequence_destroy(f);
        return hri_error_set(status, "%s", message);
    }
    *fork_out = f;
    return HR_OK;
}
