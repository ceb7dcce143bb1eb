/* Opens a saved session: a sequence is created as ever, then filled from the file. Exact rows must be right or the open fails and says
 * which tokens are lost; what is derived from them is taken where it fits and is undamaged, else made anew by the next settle. */
#include "runtime/saved.h"

#include "base/error.h"
#include "index/image.h"
#include <errno.h>
#include <string.h>

#define CELLS_BYTES (4u << 20)

struct opener {
    hr_sequence_t *s;
    struct hri_archive_in *in;
    const char *path;
    struct hri_saved_meta meta;
    bool derived; /* what is derived can be taken over */
    bool unread;  /* the last get met an error of the disk */
};

/* -- what it must be -- */

struct hri_archive_in_options hri_saved_options(hr_runtime_t *rt, const struct hri_io_ops *io,
                                                const char *path)
{
    return (struct hri_archive_in_options){.io = io,
                                           .alloc = &rt->alloc,
                                           .path = path,
                                           .mode = rt->io_mode,
                                           .timeout_ns = 2 * hri_store_timeout_ns(rt->store)};
}

void hri_saved_close(const struct hri_io_ops *io, struct hri_archive_in *in, int fd)
{
    bool stuck = hri_archive_in_free(in);
    if (fd >= 0 && !stuck) {
        io->close_file(io->ctx, fd);
    }
}

static hr_status_t meta_read(struct hri_archive_in *in, const char *path,
                             struct hri_saved_meta *meta_out)
{
    const uint64_t key = hri_archive_key(HRI_SAVED_WHOLE, 0, 0, 0);
    hr_status_t status = hri_archive_seek(in, key);
    if (status == HR_OK && hri_archive_bytes(in, key) != sizeof *meta_out) {
        status =
            hri_error_set(HR_ERR_CORRUPT, "session %s: its description has another size", path);
    }
    return status == HR_OK ? hri_archive_get(in, meta_out, sizeof *meta_out) : status;
}

hr_status_t hri_saved_open(const struct hri_archive_in_options *options, int folder, int *fd_out,
                           struct hri_archive_in **in_out, struct hri_saved_meta *meta_out)
{
    struct hri_archive_in_options o = *options;
    struct hri_archive_in *in = NULL;
    bool stuck;
    o.fd = o.io->file_open(o.io->ctx, folder, HRI_SESSION_FILE, false);
    if (o.fd < 0) {
        return hri_folder_status(o.fd, "opening its file '" HRI_SESSION_FILE "'", o.path);
    }
    hr_status_t status = hri_archive_open(&o, &in, &stuck);
    if (status == HR_OK) {
        status = meta_read(in, o.path, meta_out);
    }
    if (status != HR_OK) {
        hri_saved_close(o.io, in, stuck ? -1 : o.fd);
        return status;
    }
    meta_out->selector[sizeof meta_out->selector - 1] = '\0';
    meta_out->argument[sizeof meta_out->argument - 1] = '\0';
    meta_out->cpu_level[sizeof meta_out->cpu_level - 1] = '\0';
    meta_out->recipe[sizeof meta_out->recipe - 1] = '\0';
    *fd_out = o.fd;
    *in_out = in;
    return HR_OK;
}

hr_status_t hri_saved_meta_compare(const struct hri_saved_meta *saved,
                                   const struct hri_saved_meta *ours, const char *path)
{
    const struct {
        const char *name;
        double saved, ours;
    } facts[] = {
        {"layers", saved->n_layers, ours->n_layers},
        {"query heads", saved->n_q, ours->n_q},
        {"kv-heads", saved->n_kv, ours->n_kv},
        {"k_dim", saved->dk, ours->dk},
        {"v_dim", saved->dv, ours->dv},
        {"dtype", saved->dtype, ours->dtype},
        {"scale", (double)saved->scale, (double)ours->scale},
        {"soft_cap", (double)saved->soft_cap, (double)ours->soft_cap},
        {"tokens of a page", saved->log_rows, ours->log_rows},
        {"bytes of a page", saved->log_cell_bytes, ours->log_cell_bytes},
    };
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        if (!(facts[i].saved == facts[i].ours)) {
            return hri_error_set(HR_ERR_INVALID, "session %s is of another model: %s %g, here %g",
                                 path, facts[i].name, facts[i].saved, facts[i].ours);
        }
    }
    const char *what = saved->rope_crc != ours->rope_crc         ? "rotary embedding"
                       : saved->sliding_crc != ours->sliding_crc ? "sliding windows"
                       : saved->log_n_crc != ours->log_n_crc     ? "log-n factors"
                                                                 : NULL;
    return what == NULL
               ? HR_OK
               : hri_error_set(HR_ERR_INVALID, "session %s is of another model: its %s differ",
                               path, what);
}

bool hri_saved_derived_fits(const struct hri_saved_meta *a, const struct hri_saved_meta *b)
{
    return a->gates_crc == b->gates_crc && a->block_cell_bytes == b->block_cell_bytes &&
           a->code_bytes == b->code_bytes && a->parts == b->parts && a->part_rows == b->part_rows &&
           a->keep_tokens == b->keep_tokens && a->seed == b->seed && a->n_sink == b->n_sink &&
           a->tail_max == b->tail_max && memcmp(a->values, b->values, sizeof a->values) == 0 &&
           strcmp(a->selector, b->selector) == 0 && strcmp(a->argument, b->argument) == 0;
}

/* -- reading -- */

static hr_status_t get(struct opener *op, void *data, size_t bytes)
{
    hr_status_t status = hri_archive_get(op->in, data, bytes);
    op->unread = status == HR_ERR_IO;
    return status;
}

/* What was saved is damaged or cannot be read; where memory, time or a tier failed it is not lost. */
static bool is_lost(const struct opener *op, hr_status_t status)
{
    return status == HR_ERR_CORRUPT || (status == HR_ERR_IO && op->unread);
}

/* The error of a read of exact rows, with the tokens that it costs. */
static hr_status_t rows_lost(const struct opener *op, hr_status_t status, uint32_t layer,
                             uint32_t first, uint32_t last)
{
    char message[HRI_ERROR_BYTES_MAX];
    if (!is_lost(op, status)) {
        return status;
    }
    hri_error_get(message, sizeof message);
    return hri_error_set(status, "layer %u: tokens %u to %u are lost: %s", layer, first, last,
                         message);
}

/* Rows are finite when they are appended; a file with others was not written by this library, whatever its checksums say. *bad: the byte. */
static hr_status_t rows_check(const struct opener *op, const void *rows, size_t bytes, size_t *bad)
{
    const hr_sequence_t *s = op->s;
    *bad = s->runtime->kernels->find_nonfinite(rows, s->dtype, bytes / hr_dtype_bytes(s->dtype)) *
           hr_dtype_bytes(s->dtype);
    return *bad == bytes
               ? HR_OK
               : hri_error_set(HR_ERR_CORRUPT, "session %s: a number is not finite", op->path);
}

/* -- cells -- */

/* `bad` NULL: cells of anything. Else of exact rows, and the first and the last byte of the stream that is damaged. */
static hr_status_t cells_load(struct opener *op, uint64_t key, struct hri_lane *lane,
                              uint32_t n_cells, uint32_t cell_bytes, uint64_t bad[2])
{
    uint32_t group = CELLS_BYTES / cell_bytes;
    if (hri_archive_bytes(op->in, key) != (uint64_t)n_cells * cell_bytes) {
        return hri_error_set(HR_ERR_CORRUPT, "session %s: stream %llx has another length than said",
                             op->path, (unsigned long long)key);
    }
    if (n_cells == 0) {
        return HR_OK;
    }
    unsigned char *buffer =
        hri_scratch_read(op->s->runtime, &op->s->runtime->rows, (size_t)group * cell_bytes);
    if (buffer == NULL) {
        return hri_alloc_status();
    }
    hr_status_t status = hri_archive_seek(op->in, key);
    for (uint32_t cell = 0; cell < n_cells && status == HR_OK; cell += group) {
        uint32_t n = n_cells - cell < group ? n_cells - cell : group;
        size_t at = 0;
        status = get(op, buffer, (size_t)n * cell_bytes);
        if (bad != NULL && status != HR_OK) {
            bad[0] = hri_archive_lost_at(op->in);
            bad[1] = bad[0] + HRI_ARCHIVE_PAYLOAD_BYTES - 1;
        } else if (bad != NULL) {
            status = rows_check(op, buffer, (size_t)n * cell_bytes, &at);
            bad[0] = bad[1] = (uint64_t)cell * cell_bytes + at;
        }
        if (status == HR_OK) {
            status = hri_lane_append(lane, buffer, n, NULL);
        }
    }
    return status;
}

/* -- exact rows -- */

static hr_status_t state_load(struct opener *op, uint32_t i, struct hri_saved_layer *state)
{
    const uint64_t key = hri_archive_key(HRI_SAVED_LAYER, i, HRI_SAVED_STATE, 0);
    const struct hri_saved_meta *m = &op->meta;
    hr_status_t status = hri_archive_seek(op->in, key);
    if (status == HR_OK) {
        status = get(op, state, sizeof *state);
    }
    if (status != HR_OK) { /* without it nothing of the layer can be read */
        return m->n_tokens == 0 ? status : rows_lost(op, status, i, 0, m->n_tokens - 1);
    }
    uint64_t bytes = sizeof *state + (uint64_t)state->n_settled * sizeof(uint32_t) +
                     (state->early_tokens > 0 ? (uint64_t)m->n_q * m->dk * sizeof(float) : 0) +
                     (uint64_t)state->n_worth * HRI_WORTH_BINS * sizeof(uint32_t);
    bool fits = state->n_tokens == m->n_tokens &&
                state->n_logged == m->n_tokens / HRI_LOG_ROWS * HRI_LOG_ROWS &&
                state->body_end <= m->n_tokens && state->tail_first <= state->n_logged &&
                m->n_tokens - state->tail_first <= m->tail_max && state->n_settled <= m->n_tokens &&
                state->early_tokens <= m->n_tokens &&
                (state->n_worth == 0 || state->n_worth == m->n_kv) &&
                bytes == hri_archive_bytes(op->in, key);
    return fits ? HR_OK
                : hri_error_set(HR_ERR_CORRUPT,
                                "session %s: layer %u: %u tokens, %u in the log, body to %u, tail "
                                "from %u: this cannot be",
                                op->path, i, state->n_tokens, state->n_logged, state->body_end,
                                state->tail_first);
}

/* Sink and tail as they were saved; where the tail has another size here, what the log does not have of it. */
static hr_status_t near_load(struct opener *op, uint32_t i, const struct hri_saved_layer *state)
{
    const hr_sequence_t *s = op->s;
    struct hri_layer *l = &op->s->layers[i];
    const uint64_t key = hri_archive_key(HRI_SAVED_LAYER, i, HRI_SAVED_NEAR, 0);
    uint32_t sink = op->meta.n_sink < state->n_tokens ? op->meta.n_sink : state->n_tokens;
    uint32_t tail = state->n_tokens - state->tail_first;
    uint64_t bytes = (uint64_t)s->n_kv * ((uint64_t)sink + tail) * s->row_bytes;
    if (hri_archive_bytes(op->in, key) != bytes) {
        return hri_error_set(HR_ERR_CORRUPT,
                             "session %s: layer %u: sink and tail have another size", op->path, i);
    }
    unsigned char *rows = hri_scratch_get(&op->s->runtime->group, bytes > 0 ? bytes : 1);
    if (rows == NULL) {
        return hri_alloc_status();
    }
    hr_status_t status = bytes > 0 ? hri_archive_seek(op->in, key) : HR_OK;
    if (status == HR_OK) {
        status = get(op, rows, bytes);
    }
    if (status == HR_OK) {
        size_t bad;
        status = rows_check(op, rows, bytes, &bad);
    }
    if (status != HR_OK) {
        return rows_lost(op, status, i, state->n_logged, state->n_tokens - 1);
    }
    l->tail_first = op->derived ? state->tail_first : state->n_logged;
    uint32_t skip = l->tail_first - state->tail_first;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        if (op->derived && sink > 0) {
            memcpy(l->sink + (size_t)h * s->n_sink * s->row_bytes,
                   rows + (size_t)h * sink * s->row_bytes, (size_t)sink * s->row_bytes);
        }
        const unsigned char *from =
            rows + ((size_t)s->n_kv * sink + (size_t)h * tail + skip) * s->row_bytes;
        memcpy(l->tail + (size_t)h * s->tail_max * s->row_bytes, from,
               (size_t)(tail - skip) * s->row_bytes);
    }
    return HR_OK;
}

static hr_status_t log_load(struct opener *op, uint32_t i, const struct hri_saved_layer *state)
{
    const uint64_t key = hri_archive_key(HRI_SAVED_LAYER, i, HRI_SAVED_LOG, 0);
    const hr_sequence_t *s = op->s;
    uint64_t bad[2] = {0, 0};
    hr_status_t status =
        cells_load(op, key, s->layers[i].log_lane, state->n_logged / HRI_LOG_ROWS * s->n_kv,
                   s->log_cell_bytes, bad);
    if (status == HR_OK) {
        return status;
    }
    uint32_t first = hri_saved_token_at(&op->meta, bad[0]),
             last = hri_saved_token_at(&op->meta, bad[1]) + HRI_LOG_ROWS - 1;
    return rows_lost(op, status, i, first, last < state->n_logged ? last : state->n_logged - 1);
}

/* -- what is derived -- */

static hr_status_t image_get(void *context, void *data, size_t bytes)
{
    return get(context, data, bytes);
}

static hr_status_t misfit(const struct opener *op, uint32_t layer, const char *what)
{
    return hri_error_set(HR_ERR_CORRUPT, "session %s: layer %u: %s", op->path, layer, what);
}

/* Every part of a block lies inside of a cell; parts that a block does not have lie nowhere. */
static bool places_fit(const hr_sequence_t *s, const struct hri_layer *l, uint32_t h)
{
    uint32_t n = hri_index_blocks(l->heads[h]) * s->parts, cells = hri_lane_cells(l->block_lane);
    for (uint32_t i = 0; i < n; i++) {
        const struct hri_block_at *at = &l->places[h][i];
        uint64_t bytes = (uint64_t)hri_index_item_rows(l->heads[h], i) * s->code_bytes;
        bool lies = at->cell < cells && at->offset + bytes <= s->block_cell_bytes;
        if (bytes == 0 ? at->cell != HRI_NO_CELL : !lies) {
            return false;
        }
    }
    return true;
}

static bool block_tokens_fit(const struct hri_layer *l, uint32_t h)
{
    const struct hri_block_tokens *t = &l->block_tokens[h];
    uint32_t rows = hri_index_rows(l->heads[h]), first = 0;
    for (uint32_t b = 0; b < hri_index_blocks(l->heads[h]); b++) {
        if (t->first[b] != first) {
            return false;
        }
        first += hri_index_block_rows(l->heads[h], b);
    }
    for (uint32_t i = 0; i < rows; i++) {
        if (t->token[i] >= l->n_tokens) {
            return false;
        }
    }
    return true;
}

/* What the index does not keep itself: where blocks lie, and which tokens they hold. */
static hr_status_t tables_load(struct opener *op, uint32_t i, uint32_t h)
{
    hr_sequence_t *s = op->s;
    struct hri_layer *l = &s->layers[i];
    uint32_t blocks = hri_index_blocks(l->heads[h]), rows = hri_index_rows(l->heads[h]);
    hr_status_t status = HR_OK;
    if (l->indexed) {
        status = get(op, l->places[h], (size_t)blocks * s->parts * sizeof(struct hri_block_at));
        status = status == HR_OK && !places_fit(s, l, h)
                     ? misfit(op, i, "a block lies outside of its cells")
                     : status;
    }
    if (status == HR_OK && l->block_tokens != NULL) {
        status = get(op, l->block_tokens[h].token, rows * sizeof(uint32_t));
        status =
            status == HR_OK ? get(op, l->block_tokens[h].first, blocks * sizeof(uint32_t)) : status;
        status = status == HR_OK && !block_tokens_fit(l, h)
                     ? misfit(op, i, "a block holds tokens that are not there")
                     : status;
    }
    return status;
}

/* Heads are made ahead in their order, all of the same rows. */
static bool ahead_fits(const struct hri_layer *l, uint32_t h, uint32_t body_end)
{
    uint32_t rows = hri_index_rows_ahead(l->heads[h]);
    return rows == 0 || (l->indexed && rows <= l->n_tokens - body_end &&
                         (h == 0 || rows == hri_index_rows_ahead(l->heads[h - 1])));
}

static hr_status_t head_load(struct opener *op, uint32_t i, uint32_t h,
                             const struct hri_saved_layer *state)
{
    hr_sequence_t *s = op->s;
    struct hri_layer *l = &s->layers[i];
    struct hri_image image = {.move = image_get, .context = op, .loads = true};
    uint32_t rows = state->body_end > s->n_sink ? state->body_end - s->n_sink : 0;
    hr_status_t status =
        hri_archive_seek(op->in, hri_archive_key(HRI_SAVED_LAYER, i, HRI_SAVED_HEAD, h));
    if (status == HR_OK) {
        status = hri_index_image(l->heads[h], &image);
    }
    if (status == HR_OK && (l->indexed || l->adds_rows) && hri_index_rows(l->heads[h]) != rows) {
        status = misfit(op, i, "the index holds other rows than the body");
    }
    if (status == HR_OK && !ahead_fits(l, h, state->body_end)) {
        status = misfit(op, i, "blocks were made ahead of other rows than there are");
    }
    if (status == HR_OK) {
        uint32_t seen = hri_index_blocks(l->heads[h]);
        hri_index_show(l->heads[h]);
        status = tables_load(op, i, h);
        if (hri_index_blocks(l->heads[h]) > seen) {
            hri_index_hide(l->heads[h], seen);
        }
    }
    return status == HR_OK && hri_archive_left(op->in) > 0
               ? misfit(op, i, "its index is longer than it should be")
               : status;
}

/* Ends of segments ascend, and the last is the body's. */
static hr_status_t settled_load(struct opener *op, uint32_t i, const struct hri_saved_layer *state)
{
    struct hri_layer *l = &op->s->layers[i];
    uint32_t sink = op->s->n_sink < state->n_tokens ? op->s->n_sink : state->n_tokens;
    hr_status_t status =
        hri_archive_seek(op->in, hri_archive_key(HRI_SAVED_LAYER, i, HRI_SAVED_STATE, 0));
    struct hri_saved_layer again;
    if (status == HR_OK) {
        status = get(op, &again, sizeof again);
    }
    if (status == HR_OK && (state->n_settled > l->settled_max || state->body_end < sink)) {
        status = misfit(op, i, "more segments than there is room for");
    }
    if (status == HR_OK && state->n_settled > 0) {
        status = get(op, l->settled, state->n_settled * sizeof *l->settled);
    }
    uint32_t end = sink;
    for (uint32_t j = 0; j < state->n_settled && status == HR_OK; j++) {
        status = l->settled[j] > end ? HR_OK : misfit(op, i, "segments overlap");
        end = l->settled[j];
    }
    if (status == HR_OK && l->settled != NULL && end != state->body_end) {
        status = misfit(op, i, "segments do not end where the body does");
    }
    if (status == HR_OK && l->exact && state->body_end != sink) {
        status = misfit(op, i, "a layer without a body has one");
    }
    if (status == HR_OK && state->early_tokens > 0) {
        status = l->early_q == NULL
                     ? misfit(op, i, "a guess that nobody wanted")
                     : get(op, l->early_q, (size_t)op->s->n_q * op->s->dk * sizeof *l->early_q);
    }
    bool shares = op->s->share.part != NULL && state->n_worth == op->s->n_kv;
    for (uint32_t h = 0; shares && h < op->s->n_kv && status == HR_OK; h++) {
        status =
            get(op, hri_share_worth_set(&op->s->share, i, h), HRI_WORTH_BINS * sizeof(uint32_t));
    }
    return status;
}

static hr_status_t derived_load(struct opener *op, uint32_t i, const struct hri_saved_layer *state)
{
    hr_sequence_t *s = op->s;
    struct hri_layer *l = &s->layers[i];
    hr_status_t status = settled_load(op, i, state);
    if (status == HR_OK && l->indexed) {
        status = cells_load(op, hri_archive_key(HRI_SAVED_LAYER, i, HRI_SAVED_BLOCKS, 0),
                            l->block_lane, state->block_cells, s->block_cell_bytes, NULL);
    }
    bool saved = hri_index_saves(&s->recipe);
    for (uint32_t h = 0; l->heads != NULL && saved && h < s->n_kv && status == HR_OK; h++) {
        status = head_load(op, i, h, state);
    }
    if (status != HR_OK) {
        return status;
    }
    if (l->heads != NULL && saved) {
        hri_index_link(l->heads, s->n_kv);
    }
    l->early_tokens = state->early_tokens;
    if (l->heads != NULL && !saved) { /* its own index, from the rows, as it was made */
        return hri_settle_ends(s, l, state->n_settled);
    }
    l->n_settled = state->n_settled;
    l->body_end = state->body_end;
    return HR_OK;
}

/* -- all of it -- */

static hr_status_t layer_load(struct opener *op, uint32_t i)
{
    hr_sequence_t *s = op->s;
    struct hri_layer *l = &s->layers[i];
    struct hri_saved_layer state;
    hr_status_t status = state_load(op, i, &state);
    if (status == HR_OK) {
        status = near_load(op, i, &state);
    }
    if (status == HR_OK) {
        status = log_load(op, i, &state);
    }
    if (status != HR_OK) {
        return status;
    }
    l->n_tokens = state.n_tokens;
    l->n_logged = state.n_logged;
    l->body_end = state.n_tokens < s->n_sink ? state.n_tokens : s->n_sink;
    if (op->derived) {
        status = derived_load(op, i, &state);
        if (!is_lost(op, status)) {
            return status;
        }
        hri_log_warn(&s->runtime->log, "%s; it is made anew from the rows", hr_last_error());
        status = hri_layer_index_reset(s, l);
        if (status != HR_OK) {
            return status;
        }
        l->body_end = state.n_tokens < s->n_sink ? state.n_tokens : s->n_sink;
    }
    return hri_layer_refill(s, l);
}

/* Blocks that were in frames are again, where there is room and they are still what they were. */
static hr_status_t frames_load(struct opener *op)
{
    hr_sequence_t *s = op->s;
    const uint64_t key = hri_archive_key(HRI_SAVED_FRAMES, 0, 0, 0);
    uint64_t n_steps = hri_frames_turns(s->frames, NULL, false), bytes = n_steps * sizeof(uint64_t);
    uint64_t all = hri_archive_bytes(op->in, key);
    struct hri_frame_note note;
    if (all < bytes || (all - bytes) % sizeof note != 0) {
        return HR_ERR_CORRUPT;
    }
    uint64_t *steps = hri_scratch_read(s->runtime, &s->runtime->rows, bytes);
    if (steps == NULL) {
        return hri_alloc_status();
    }
    hr_status_t status = hri_archive_seek(op->in, key);
    if (status == HR_OK) {
        status = get(op, steps, bytes);
    }
    if (status != HR_OK) {
        return status;
    }
    (void)hri_frames_turns(s->frames, steps, true);
    for (uint64_t left = (all - bytes) / sizeof note; left > 0 && status == HR_OK; left--) {
        status = get(op, &note, sizeof note);
        const struct hri_layer *l =
            note.lane / s->n_kv < s->n_layers ? &s->layers[note.lane / s->n_kv] : NULL;
        uint32_t h = note.lane % s->n_kv;
        if (status != HR_OK || l == NULL || !l->indexed ||
            note.block / s->parts >= hri_index_blocks(l->heads[h]) ||
            l->places[h][note.block].cell == HRI_NO_CELL) {
            continue;
        }
        const struct hri_block_at *at = &l->places[h][note.block];
        struct hri_read read = {.lane = l->block_lane,
                                .cell = at->cell,
                                .n_cells = 1,
                                .offset = at->offset,
                                .bytes =
                                    hri_index_item_rows(l->heads[h], note.block) * s->code_bytes,
                                .dst = hri_frames_restore(s->frames, &note)};
        struct hri_read_batch batch = {.reads = &read, .n_reads = 1};
        if (read.dst == NULL) {
            continue;
        }
        status = hri_store_read_begin(s->runtime->store, &batch);
        status = status == HR_OK ? hri_store_read_wait(s->runtime->store, &batch, 0) : status;
    }
    return status;
}

static hr_status_t fill(struct opener *op)
{
    hr_sequence_t *s = op->s;
    hr_status_t status = HR_OK;
    for (uint32_t i = 0; i < s->n_layers && status == HR_OK; i++) {
        status = layer_load(op, i);
    }
    if (status == HR_OK && op->derived && s->frames != NULL) {
        status = frames_load(op);
        if (status != HR_OK) { /* a cache: an empty one is as right */
            hri_frames_clear(s->frames);
            status = HR_OK;
        }
    }
    return status;
}

static hr_status_t compare(struct opener *op, const uint64_t *model_id)
{
    struct hri_saved_meta ours;
    hri_saved_meta_fill(op->s, &ours);
    hr_status_t status = hri_saved_meta_compare(&op->meta, &ours, op->path);
    if (status == HR_OK && model_id != NULL &&
        memcmp(op->meta.model_id, model_id, sizeof op->meta.model_id) != 0) {
        status =
            hri_error_set(HR_ERR_INVALID,
                          "session %s is of another model: weights or tokenizer differ", op->path);
    }
    if (status == HR_OK && op->meta.n_tokens > op->s->tokens_max) {
        status = hri_error_set(HR_ERR_FULL, "session %s: it has %u tokens, tokens_max is %u",
                               op->path, op->meta.n_tokens, op->s->tokens_max);
    }
    op->derived = hri_saved_derived_fits(&op->meta, &ours);
    return status;
}

static hr_status_t open_file(struct opener *op, hr_runtime_t *rt,
                             const struct hr_sequence_options *options, const uint64_t *model_id,
                             const struct hri_io_ops *io, int folder, int *lock)
{
    struct hr_sequence_options o = *options;
    if (o.struct_size == sizeof o && o.recipe == NULL) {
        o.recipe = op->meta.recipe;
    }
    hr_status_t status = hr_sequence_create(rt, &o, &op->s);
    if (status == HR_OK) {
        status = compare(op, model_id);
    }
    if (status == HR_OK) {
        status = fill(op);
    }
    if (status == HR_OK && *lock >= 0) {
        status = hri_home_set(op->s, HRI_HOME_OPENED, io, folder, op->path, lock);
    }
    if (status != HR_OK) {
        char message[HRI_ERROR_BYTES_MAX];
        hri_error_get(message, sizeof message);
        hr_sequence_destroy(op->s);
        return hri_error_set(status, "%s", message);
    }
    return HR_OK;
}

hr_status_t hr_sequence_open(hr_runtime_t *rt, const char *dir,
                             const struct hr_sequence_options *options, const uint64_t *model_id,
                             hr_sequence_t **sequence_out)
{
    struct opener op = {.path = dir};
    int folder = -1, lock = -1, fd = -1;
    if (rt == NULL || options == NULL || sequence_out == NULL) {
        return hri_error_set(HR_ERR_INVALID,
                             "hr_sequence_open: no runtime, no options or no place for the "
                             "sequence");
    }
    struct hri_io_guard *guard = NULL;
    hr_status_t status = hri_calls_begin(rt, &guard);
    if (status != HR_OK) {
        return status;
    }
    const struct hri_io_ops *io = hri_io_guard_ops(guard);
    status = hri_folder_open(io, dir, false, NULL, &folder);
    if (status == HR_OK) {
        status = hri_folder_lock_to_read(io, folder, dir, &lock);
    }
    if (status == HR_OK) {
        struct hri_archive_in_options o = hri_saved_options(rt, io, dir);
        status = hri_saved_open(&o, folder, &fd, &op.in, &op.meta);
    }
    if (status == HR_OK) {
        status = open_file(&op, rt, options, model_id, io, folder, &lock);
    }
    hri_saved_close(io, op.in, fd);
    hri_calls_end(guard, folder, lock);
    if (status == HR_OK) {
        *sequence_out = op.s;
    }
    return status;
}
