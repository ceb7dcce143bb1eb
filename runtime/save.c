/* Saves a sequence: a new file beside the old one, synced as asked, renamed over it. */
#include "runtime/saved.h"

#include "base/checksum.h"
#include "base/error.h"
#include "index/image.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define WINDOW_BYTES (2u << 20) /* cells read at a time, while the ones before them are written */

void hr_save_options_init(struct hr_save_options *options)
{
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
    options->durability = HR_DURABILITY_RELAXED;
}

struct saver {
    hr_sequence_t *s;
    struct hri_archive_out *out;
};

static hr_status_t canceled(const hr_sequence_t *s)
{
    return hri_canceled(s) ? hri_error_set(HR_ERR_CANCELED, "save: canceled") : HR_OK;
}

/* -- the parts -- */

void hri_saved_meta_fill(const hr_sequence_t *s, struct hri_saved_meta *m)
{
    memset(m, 0, sizeof *m);
    m->n_layers = s->n_layers;
    m->n_q = s->n_q;
    m->n_kv = s->n_kv;
    m->dk = s->dk;
    m->dv = s->dv;
    m->dtype = (uint32_t)s->dtype;
    m->scale = s->scale;
    m->soft_cap = s->soft_cap;
    m->log_rows = HRI_LOG_ROWS;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        const struct hri_layer *l = &s->layers[i];
        uint32_t rope[2] = {(uint32_t)l->rope.layout, l->rope.n_rot};
        m->sliding_crc = hri_crc32c(m->sliding_crc, &l->sliding, sizeof l->sliding);
        m->rope_crc = hri_crc32c(m->rope_crc, rope, sizeof rope);
        if (l->rope_frequencies != NULL) {
            m->rope_crc = hri_crc32c(m->rope_crc, l->rope_frequencies,
                                     l->rope.n_rot / 2 * sizeof *l->rope_frequencies);
        }
        if (l->log_n != NULL) {
            m->log_n_crc = hri_crc32c(m->log_n_crc, l->log_n, s->n_q * sizeof *l->log_n);
        }
    }
    m->n_tokens = s->layers[0].n_tokens;
    m->n_sink = s->n_sink;
    m->tail_max = s->tail_max;
    m->log_cell_bytes = s->log_cell_bytes;
    if (s->head_gates != NULL) {
        m->gates_crc =
            hri_crc32c(0, s->head_gates, (size_t)s->n_layers * s->n_kv * sizeof *s->head_gates);
    }
    m->block_cell_bytes = s->block_cell_bytes;
    m->code_bytes = s->code_bytes;
    m->parts = s->parts;
    m->part_rows = s->part_rows;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        m->keep_tokens |= s->layers[i].block_tokens != NULL;
    }
    m->moved = s->moved_bytes > 0 ? (double)s->moved_bytes : s->moved;
    m->tolerance = s->tolerance;
    m->seed = s->serial;
    memcpy(m->values, s->recipe.values, sizeof m->values);
    snprintf(m->selector, sizeof m->selector, "%s", s->recipe.selector->name);
    memcpy(m->argument, s->recipe.argument, sizeof m->argument);
    snprintf(m->cpu_level, sizeof m->cpu_level, "%s", s->runtime->kernels->name);
    snprintf(m->recipe, sizeof m->recipe, "%s", s->recipe_text);
}

/* Some neighbouring cells of a lane. Those that lie in host memory are taken from there; where one does not, all are read. */
struct window {
    uint32_t cell, n_cells;
    bool read_begun;
    struct hri_read read;
    struct hri_read_batch batch;
    unsigned char *buffer; /* [WINDOW_BYTES], or one cell if that is more */
};

static hr_status_t window_begin(struct saver *sv, struct hri_lane *lane, struct window *w)
{
    w->read_begun = false;
    for (uint32_t i = 0; i < w->n_cells && !w->read_begun; i++) {
        w->read_begun = hri_lane_peek(lane, w->cell + i) == NULL;
    }
    if (!w->read_begun) {
        return HR_OK;
    }
    w->read =
        (struct hri_read){.lane = lane, .cell = w->cell, .n_cells = w->n_cells, .dst = w->buffer};
    w->batch = (struct hri_read_batch){.reads = &w->read, .n_reads = 1};
    hr_status_t status = hri_store_read_begin(sv->s->runtime->store, &w->batch);
    w->read_begun = status == HR_OK;
    return status;
}

static hr_status_t window_put(struct saver *sv, struct hri_lane *lane, uint32_t cell_bytes,
                              struct window *w)
{
    struct hri_store *store = sv->s->runtime->store;
    hr_status_t status = HR_OK;
    if (w->read_begun) {
        status = hri_store_read_wait(store, &w->batch, 0);
        if (status == HR_ERR_TIMEOUT) { /* it is still under way */
            hri_store_read_cancel(store, &w->batch);
        }
        w->read_begun = false;
        return status == HR_OK
                   ? hri_archive_put(sv->out, w->buffer, (size_t)w->n_cells * cell_bytes)
                   : status;
    }
    for (uint32_t i = 0; i < w->n_cells && status == HR_OK; i++) {
        status = hri_archive_put(sv->out, hri_lane_peek(lane, w->cell + i), cell_bytes);
    }
    return status;
}

static hr_status_t cells_save(struct saver *sv, struct hri_lane *lane, uint32_t cell_bytes)
{
    hr_sequence_t *s = sv->s;
    uint32_t n = hri_lane_cells(lane);
    uint32_t group = WINDOW_BYTES > cell_bytes ? WINDOW_BYTES / cell_bytes : 1;
    size_t bytes = (size_t)group * cell_bytes;
    unsigned char *buffer = hri_scratch_read(s->runtime, &s->runtime->rows, 2 * bytes);
    struct window windows[2] = {{.buffer = buffer}, {.buffer = buffer + bytes}};
    hr_status_t status = buffer != NULL ? HR_OK : hri_alloc_status();
    /* Round i begins window i and writes window i - 1. */
    for (uint32_t cell = 0, i = 0; status == HR_OK && cell < n + group; cell += group, i++) {
        struct window *next = &windows[i % 2], *last = &windows[(i + 1) % 2];
        next->cell = cell;
        next->n_cells = cell >= n ? 0 : n - cell < group ? n - cell : group;
        status = canceled(s);
        if (status == HR_OK) {
            status = window_begin(sv, lane, next);
        }
        if (status == HR_OK) {
            status = window_put(sv, lane, cell_bytes, last);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (windows[i].read_begun) {
            hri_store_read_cancel(s->runtime->store, &windows[i].batch);
        }
    }
    return status;
}

static hr_status_t near_save(struct saver *sv, const struct hri_layer *l)
{
    const hr_sequence_t *s = sv->s;
    uint32_t sink = l->n_tokens < s->n_sink ? l->n_tokens : s->n_sink;
    hr_status_t status = HR_OK;
    for (uint32_t h = 0; sink > 0 && h < s->n_kv && status == HR_OK; h++) {
        status = hri_archive_put(sv->out, l->sink + (size_t)h * s->n_sink * s->row_bytes,
                                 (size_t)sink * s->row_bytes);
    }
    for (uint32_t h = 0; h < s->n_kv && status == HR_OK; h++) {
        status = hri_archive_put(sv->out, l->tail + (size_t)h * s->tail_max * s->row_bytes,
                                 (size_t)(l->n_tokens - l->tail_first) * s->row_bytes);
    }
    return status;
}

static hr_status_t image_put(void *context, void *data, size_t bytes)
{
    struct saver *sv = context;
    return hri_archive_put(sv->out, data, bytes);
}

static hr_status_t head_save(struct saver *sv, struct hri_layer *l, uint32_t h)
{
    const hr_sequence_t *s = sv->s;
    struct hri_image image = {.move = image_put, .context = sv};
    hr_status_t status = hri_index_image(l->heads[h], &image);
    uint32_t blocks = hri_index_blocks(l->heads[h]) + hri_index_blocks_ahead(l->heads[h]);
    uint32_t rows = hri_index_rows(l->heads[h]) + hri_index_rows_ahead(l->heads[h]);
    if (status == HR_OK && l->indexed) {
        status = hri_archive_put(sv->out, l->places[h],
                                 (size_t)blocks * s->parts * sizeof(struct hri_block_at));
    }
    if (status == HR_OK && l->block_tokens != NULL) {
        status = hri_archive_put(sv->out, l->block_tokens[h].token, rows * sizeof(uint32_t));
    }
    if (status == HR_OK && l->block_tokens != NULL) {
        status = hri_archive_put(sv->out, l->block_tokens[h].first, blocks * sizeof(uint32_t));
    }
    return status;
}

static hr_status_t state_save(struct saver *sv, uint32_t i)
{
    const hr_sequence_t *s = sv->s;
    const struct hri_layer *l = &s->layers[i];
    struct hri_saved_layer state = {
        .n_tokens = l->n_tokens,
        .body_end = l->body_end,
        .tail_first = l->tail_first,
        .n_logged = l->n_logged,
        .n_settled = l->n_settled,
        .block_cells = l->block_lane != NULL ? hri_lane_cells(l->block_lane) : 0,
        .early_tokens = l->early_q != NULL ? l->early_tokens : 0,
        .n_worth = hri_share_known(&s->share, i) ? s->n_kv : 0,
    };
    hr_status_t status = hri_archive_put(sv->out, &state, sizeof state);
    if (status == HR_OK && l->n_settled > 0) {
        status = hri_archive_put(sv->out, l->settled, l->n_settled * sizeof *l->settled);
    }
    if (status == HR_OK && state.early_tokens > 0) {
        status = hri_archive_put(sv->out, l->early_q, (size_t)s->n_q * s->dk * sizeof *l->early_q);
    }
    for (uint32_t h = 0; h < state.n_worth && status == HR_OK; h++) {
        status = hri_archive_put(sv->out, hri_share_worth(&s->share, i, h),
                                 HRI_WORTH_BINS * sizeof(uint32_t));
    }
    return status;
}

static hr_status_t layer_save(struct saver *sv, uint32_t i)
{
    hr_sequence_t *s = sv->s;
    struct hri_layer *l = &s->layers[i];
    hr_status_t status = canceled(s);
#define STREAM(kind, head)                                                                         \
    status = status == HR_OK                                                                       \
                 ? hri_archive_stream(sv->out, hri_archive_key(HRI_SAVED_LAYER, i, kind, head))    \
                 : status
#define PART(call) status = status == HR_OK ? (call) : status
    STREAM(HRI_SAVED_STATE, 0);
    PART(state_save(sv, i));
    STREAM(HRI_SAVED_NEAR, 0);
    PART(near_save(sv, l));
    STREAM(HRI_SAVED_LOG, 0);
    PART(cells_save(sv, l->log_lane, s->log_cell_bytes));
    if (l->block_lane != NULL) {
        STREAM(HRI_SAVED_BLOCKS, 0);
        PART(cells_save(sv, l->block_lane, s->block_cell_bytes));
    }
    for (uint32_t h = 0; l->heads != NULL && h < s->n_kv; h++) {
        if (hri_index_saves(&s->recipe)) {
            STREAM(HRI_SAVED_HEAD, h);
            PART(head_save(sv, l, h));
        }
    }
#undef STREAM
#undef PART
    return status;
}

/* Which blocks the frames hold, and the order of their last use: what a step chooses depends on it. */
static hr_status_t frames_save(struct saver *sv)
{
    struct hri_frames *frames = sv->s->frames;
    struct hri_frame_note note;
    size_t bytes = hri_frames_turns(frames, NULL, false) * sizeof(uint64_t);
    uint64_t *steps = hri_scratch_read(sv->s->runtime, &sv->s->runtime->rows, bytes);
    if (steps == NULL) {
        return hri_alloc_status();
    }
    (void)hri_frames_turns(frames, steps, false);
    hr_status_t status = hri_archive_put(sv->out, steps, bytes);
    uint32_t cursor = HRI_FRAMES_BEGIN;
    while (status == HR_OK && hri_frames_next(frames, &cursor, &note)) {
        status = hri_archive_put(sv->out, &note, sizeof note);
    }
    return status;
}

static hr_status_t all_save(struct saver *sv, const struct hr_save_options *o)
{
    hr_sequence_t *s = sv->s;
    struct hri_saved_meta meta;
    hri_saved_meta_fill(s, &meta);
    memcpy(meta.model_id, o->model_id, sizeof meta.model_id);
    meta.user_bytes = o->user_bytes;
    hr_status_t status = hri_archive_stream(sv->out, hri_archive_key(HRI_SAVED_WHOLE, 0, 0, 0));
    if (status == HR_OK) {
        status = hri_archive_put(sv->out, &meta, sizeof meta);
    }
    if (status == HR_OK) {
        status = hri_archive_stream(sv->out, hri_archive_key(HRI_SAVED_USER, 0, 0, 0));
    }
    if (status == HR_OK) {
        status = hri_archive_put(sv->out, o->user, o->user_bytes);
    }
    for (uint32_t i = 0; i < s->n_layers && status == HR_OK; i++) {
        status = layer_save(sv, i);
    }
    if (status == HR_OK && s->frames != NULL) {
        status = hri_archive_stream(sv->out, hri_archive_key(HRI_SAVED_FRAMES, 0, 0, 0));
        status = status == HR_OK ? frames_save(sv) : status;
    }
    return status == HR_OK ? hri_archive_finish(sv->out) : status;
}

/* -- the folder -- */

/* The sequence number of the save that is there; 0 where there is none, or none that can be read. HR_ERR_TIMEOUT, HR_ERR_INVALID. */
static hr_status_t generation_of(hr_sequence_t *s, const struct hri_io_ops *io, int folder,
                                 const char *dir, uint64_t *generation_out)
{
    struct hri_archive_in_options o = hri_saved_options(s->runtime, io, dir);
    struct hri_archive_in *in = NULL;
    hr_status_t status = HR_OK;
    bool stuck = false;
    *generation_out = 0;
    o.fd = io->file_open(io->ctx, folder, HRI_SESSION_FILE, false);
    if (o.fd == -ETIMEDOUT || o.fd == -EMEDIUMTYPE) {
        return hri_folder_status(o.fd, "opening its file '" HRI_SESSION_FILE "'", dir);
    }
    if (o.fd >= 0) {
        status = hri_archive_open(&o, &in, &stuck);
    }
    if (in != NULL) {
        *generation_out = hri_archive_facts(in).generation;
    }
    hri_saved_close(io, in, stuck ? -1 : o.fd);
    return status == HR_ERR_TIMEOUT ? status : HR_OK;
}

/* *stuck_out: see hri_archive_out_free. */
static hr_status_t file_write(hr_sequence_t *s, const struct hri_io_ops *io, int fd,
                              const char *dir, uint64_t generation, const struct hr_save_options *o,
                              bool *stuck_out)
{
    struct saver sv = {.s = s};
    struct hri_archive_out_options oo = {.io = io,
                                         .alloc = &s->runtime->alloc,
                                         .fd = fd,
                                         .path = dir,
                                         .generation = generation,
                                         .syncs = o->durability != HR_DURABILITY_NONE,
                                         .mode = s->runtime->io_mode,
                                         .timeout_ns = 2 * hri_store_timeout_ns(s->runtime->store),
                                         .saved_unix_s = (uint64_t)time(NULL)};
    hr_status_t status = hri_archive_begin(&oo, &sv.out);
    if (status == HR_OK) {
        status = all_save(&sv, o);
    }
    *stuck_out = hri_archive_out_free(sv.out);
    return status;
}

/* The new file, whole, under its own name. */
static hr_status_t new_file(hr_sequence_t *s, const struct hri_io_ops *io, int folder,
                            const char *dir, const struct hr_save_options *o)
{
    uint64_t generation;
    hr_status_t status = generation_of(s, io, folder, dir, &generation);
    if (status != HR_OK) {
        return status;
    }
    int error = io->file_remove(io->ctx, folder, HRI_SESSION_FILE_NEW); /* of a save that died */
    if (error < 0 && error != -ENOENT) {
        return hri_folder_status(error, "removing " HRI_SESSION_FILE_NEW, dir);
    }
    int fd = io->file_open(io->ctx, folder, HRI_SESSION_FILE_NEW, true);
    if (fd < 0) {
        return hri_folder_status(fd, "making " HRI_SESSION_FILE_NEW, dir);
    }
    bool stuck = false;
    status = file_write(s, io, fd, dir, generation + 1, o, &stuck);
    if (status == HR_OK && o->durability != HR_DURABILITY_NONE) {
        error = io->sync_file(io->ctx, fd);
        status = error < 0 ? hri_folder_status(error, "syncing " HRI_SESSION_FILE_NEW, dir) : HR_OK;
    }
    error = stuck ? 0 : io->close_file(io->ctx, fd);
    if (status == HR_OK && error < 0) {
        status = hri_folder_status(error, "closing " HRI_SESSION_FILE_NEW, dir);
    }
    return status;
}

/* The folder is a name in its parent, which an earlier save that was not strict may have made. A parent that may not be read is none of
 * ours, unless we just made the folder in it. */
static hr_status_t parent_sync(const struct hri_io_ops *io, const char *dir, bool made)
{
    char path[4096];
    int parent;
    if (snprintf(path, sizeof path, "%s/..", dir) >= (int)sizeof path) {
        return hri_folder_status(-ENAMETOOLONG, "syncing its parent", dir);
    }
    hr_status_t status = hri_folder_open(io, path, false, NULL, &parent);
    if (status != HR_OK) {
        return made || status == HR_ERR_TIMEOUT ? status : HR_OK;
    }
    int error = io->sync_file(io->ctx, parent);
    io->close_file(io->ctx, parent);
    return error < 0 ? hri_folder_status(error, "syncing its parent", dir) : HR_OK;
}

static hr_status_t save_into(hr_sequence_t *s, const struct hri_io_ops *io, int folder, bool made,
                             const char *dir, const struct hr_save_options *o)
{
    hr_status_t status = new_file(s, io, folder, dir, o);
    if (status == HR_OK) {
        int error = io->file_rename(io->ctx, folder, HRI_SESSION_FILE_NEW, HRI_SESSION_FILE);
        status =
            error < 0 ? hri_folder_status(error, "renaming " HRI_SESSION_FILE_NEW, dir) : HR_OK;
    }
    if (status != HR_OK) {
        char message[HRI_ERROR_BYTES_MAX];
        hri_error_get(message, sizeof message);
        (void)io->file_remove(io->ctx, folder, HRI_SESSION_FILE_NEW);
        return hri_error_set(status, "%s", message);
    }
    if (o->durability == HR_DURABILITY_STRICT) {
        int error = io->sync_file(io->ctx, folder);
        status = error < 0 ? hri_folder_status(error, "syncing the folder", dir) : HR_OK;
        if (status == HR_OK) {
            status = parent_sync(io, dir, made);
        }
    }
    return status;
}

static hr_status_t options_check(const hr_sequence_t *s, const struct hr_save_options *o)
{
    if (o->struct_size != sizeof *o) {
        return hri_error_set(HR_ERR_VERSION,
                             "save options: struct_size %zu where this library has %zu (use the "
                             "_init function)",
                             o->struct_size, sizeof *o);
    }
    if ((unsigned)o->durability > HR_DURABILITY_STRICT) {
        return hri_error_set(HR_ERR_INVALID, "save options: durability %d does not exist",
                             (int)o->durability);
    }
    if (o->user_bytes > HR_SESSION_USER_BYTES_MAX || (o->user == NULL && o->user_bytes > 0)) {
        return hri_error_set(HR_ERR_INVALID, "save options: %zu user bytes, at most %u, at %s",
                             o->user_bytes, HR_SESSION_USER_BYTES_MAX,
                             o->user != NULL ? "a place" : "no place");
    }
    for (uint32_t i = 1; i < s->n_layers; i++) {
        if (s->layers[i].n_tokens != s->layers[0].n_tokens) {
            return hri_error_set(HR_ERR_STATE,
                                 "save: layer %u has %u tokens, layer 0 has %u: a token is under "
                                 "way",
                                 i, s->layers[i].n_tokens, s->layers[0].n_tokens);
        }
    }
    return HR_OK;
}

hr_status_t hr_sequence_save(hr_sequence_t *s, const char *dir,
                             const struct hr_save_options *options)
{
    struct hr_save_options defaults;
    if (s == NULL) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_save: no sequence");
    }
    if (options == NULL) {
        hr_save_options_init(&defaults);
        options = &defaults;
    }
    struct hri_io_guard *guard = NULL;
    struct hri_home *home = NULL; /* of the folder, if it is locked already */
    int folder = -1, lock = -1;
    bool made = false;
    hr_status_t status = options_check(s, options);
    hri_cancel_begin(s);
    if (status == HR_OK) {
        status = hri_settle_halves(s);
    }
    if (status == HR_OK) {
        status = hri_calls_begin(s->runtime, &guard);
    }
    if (status != HR_OK) {
        return status;
    }
    const struct hri_io_ops *io = hri_io_guard_ops(guard);
    status = hri_folder_open(io, dir, true, &made, &folder);
    if (status == HR_OK) {
        status = hri_home_find(s, io, folder, dir, &home);
    }
    if (status == HR_OK && home == NULL) {
        status = hri_folder_lock(io, folder, dir, &lock);
    }
    if (status == HR_OK) {
        status =
            save_into(s, io, folder, made || (home != NULL && home->made_as != NULL), dir, options);
    }
    /* What did not come back may still rename: nobody has the folder before. */
    if (home != NULL && hri_io_guard_gave_up(guard)) {
        hri_home_leave(s, io, home);
    }
    hri_calls_end(guard, folder, lock);
    return status;
}
