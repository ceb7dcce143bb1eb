/* Saved sessions as files, without a runtime: what is in them, whether they are whole, and their removal. */
#include "runtime/saved.h"

#include "base/error.h"
#include <errno.h>
#include <string.h>

/* An open session file. */
struct session {
    struct hri_io_guard *guard;
    const struct hri_io_ops *io; /* the guard's */
    struct hri_alloc alloc;
    const char *path;
    int folder, fd;
    struct hri_archive_in *in;
    struct hri_saved_meta meta;
};

static hr_status_t session_open(struct session *x, const struct hri_io_ops *io, const char *dir)
{
    *x = (struct session){.path = dir, .folder = -1, .fd = -1};
    hri_alloc_init(&x->alloc, "session", 0, NULL);
    hr_status_t status = hri_io_guard_create(io, 0, &x->guard);
    if (status != HR_OK) {
        return status;
    }
    x->io = hri_io_guard_ops(x->guard);
    status = hri_folder_open(x->io, dir, false, NULL, &x->folder);
    if (status == HR_OK) {
        struct hri_archive_in_options o = {
            .io = x->io, .alloc = &x->alloc, .path = dir, .mode = HR_IO_AUTO};
        status = hri_saved_open(&o, x->folder, &x->fd, &x->in, &x->meta);
    }
    return status;
}

static void session_close(struct session *x)
{
    hri_saved_close(x->io, x->in, x->fd);
    hri_calls_end(x->guard, x->folder, -1);
}

hr_status_t hri_session_info_get(const struct hri_io_ops *io, const char *dir,
                                 struct hr_session_info *out)
{
    struct session x;
    if (out == NULL || out->struct_size != sizeof *out) {
        return hri_error_set(HR_ERR_VERSION,
                             "hr_session_info_get: no place for it, or one of another size");
    }
    hr_status_t status = session_open(&x, io, dir);
    if (status == HR_OK) {
        const struct hri_saved_meta *m = &x.meta;
        struct hri_archive_facts f = hri_archive_facts(x.in);
        *out = (struct hr_session_info){.struct_size = sizeof *out,
                                        .version = f.version,
                                        .n_layers = m->n_layers,
                                        .n_q_heads = m->n_q,
                                        .n_kv_heads = m->n_kv,
                                        .k_dim = m->dk,
                                        .v_dim = m->dv,
                                        .dtype = (hr_dtype_t)m->dtype,
                                        .n_tokens = m->n_tokens,
                                        .generation = f.generation,
                                        .file_bytes = f.file_bytes,
                                        .user_bytes = m->user_bytes,
                                        .saved_unix_s = f.saved_unix_s};
        memcpy(out->model_id, m->model_id, sizeof out->model_id);
        memcpy(out->recipe, m->recipe, sizeof out->recipe);
    }
    session_close(&x);
    return status;
}

hr_status_t hr_session_info_get(const char *dir, struct hr_session_info *out)
{
    return hri_session_info_get(hri_io_real(), dir, out);
}

hr_status_t hr_session_user_read(const char *dir, void *data, size_t n_bytes)
{
    struct session x;
    const uint64_t key = hri_archive_key(HRI_SAVED_USER, 0, 0, 0);
    hr_status_t status = session_open(&x, hri_io_real(), dir);
    if (status == HR_OK &&
        (n_bytes != x.meta.user_bytes || n_bytes != hri_archive_bytes(x.in, key) ||
         (data == NULL && n_bytes > 0))) {
        status = hri_error_set(HR_ERR_INVALID, "session %s: %zu bytes asked for, it has %llu", dir,
                               n_bytes, (unsigned long long)x.meta.user_bytes);
    }
    if (status == HR_OK && n_bytes > 0) {
        status = hri_archive_seek(x.in, key);
        status = status == HR_OK ? hri_archive_get(x.in, data, n_bytes) : status;
        if (status == HR_ERR_CORRUPT) {
            char message[HRI_ERROR_BYTES_MAX];
            hri_error_get(message, sizeof message);
            status = hri_error_set(status, "%s: what was kept beside the rows is lost", message);
        }
    }
    session_close(&x);
    return status;
}

/* -- verify -- */

/* Tokens of which a block held rows. False: none; it was derived from rows, or tells of them. */
static bool block_tokens(const struct session *x, const struct hri_archive_block *b,
                         uint32_t *first_out, uint32_t *last_out)
{
    const struct hri_saved_meta *m = &x->meta;
    uint32_t section = (uint32_t)(b->key >> 60), kind = b->key >> 40 & 0xf;
    uint32_t logged = m->n_tokens / HRI_LOG_ROWS * HRI_LOG_ROWS;
    uint64_t at = (b->key & (HRI_ARCHIVE_PARTS_MAX - 1)) * HRI_ARCHIVE_PAYLOAD_BYTES;
    if (section != HRI_SAVED_LAYER || m->n_tokens == 0) {
        return false;
    }
    *last_out = m->n_tokens - 1;
    if (kind == HRI_SAVED_STATE) { /* without it the layer cannot be read */
        *first_out = 0;
        return true;
    }
    if (kind == HRI_SAVED_NEAR) { /* the log has the others */
        *first_out = logged;
        return logged < m->n_tokens;
    }
    if (kind != HRI_SAVED_LOG || logged == 0) {
        return false;
    }
    *first_out = hri_saved_token_at(m, at);
    uint32_t last = hri_saved_token_at(m, at + b->bytes - 1) + HRI_LOG_ROWS - 1;
    *last_out = last < logged ? last : logged - 1;
    return *first_out <= *last_out;
}

struct lost {
    uint64_t *bits; /* a bit per token */
    struct hr_session_check *check;
};

static void lost_note(struct lost *lost, uint32_t first, uint32_t last)
{
    struct hr_session_check *c = lost->check;
    if (c->tokens_lost == 0 || first < c->first_lost) {
        c->first_lost = first;
    }
    if (c->tokens_lost == 0 || last > c->last_lost) {
        c->last_lost = last;
    }
    for (uint32_t t = first; t <= last; t++) {
        uint64_t bit = (uint64_t)1 << t % 64;
        c->tokens_lost += !(lost->bits[t / 64] & bit);
        lost->bits[t / 64] |= bit;
    }
}

static hr_status_t blocks_verify(struct session *x, struct lost *lost)
{
    struct hri_archive_facts f = hri_archive_facts(x->in);
    for (uint64_t i = 0; i < f.n_blocks; i++) {
        uint32_t first, last;
        hr_status_t status = hri_archive_check(x->in, i);
        lost->check->blocks++;
        if (status == HR_OK) {
            continue;
        }
        if (status != HR_ERR_CORRUPT && status != HR_ERR_IO) {
            return status;
        }
        lost->check->blocks_bad++;
        if (block_tokens(x, &f.blocks[i], &first, &last)) {
            lost_note(lost, first, last);
        } else if (f.blocks[i].key >> 60 == HRI_SAVED_USER) {
            lost->check->user_bad = 1;
        } else {
            lost->check->derived_bad = 1;
        }
    }
    return HR_OK;
}

static hr_status_t verdict(const struct session *x, const struct hr_session_check *c)
{
    const char *user = c->user_bad ? ", but what was kept beside its rows is" : "";
    if (c->tokens_lost > 0) {
        return hri_error_set(HR_ERR_CORRUPT,
                             "session %s: %llu of %llu blocks are damaged; %llu of %u tokens are "
                             "lost, between %u and %u",
                             x->path, (unsigned long long)c->blocks_bad,
                             (unsigned long long)c->blocks, (unsigned long long)c->tokens_lost,
                             x->meta.n_tokens, c->first_lost, c->last_lost);
    }
    if (c->blocks_bad > 0 || c->superblocks_bad > 0) {
        return hri_error_set(HR_ERR_CORRUPT,
                             "session %s: %llu of %llu blocks and %d of 2 superblocks are damaged; "
                             "no token is lost%s",
                             x->path, (unsigned long long)c->blocks_bad,
                             (unsigned long long)c->blocks, c->superblocks_bad, user);
    }
    return HR_OK;
}

hr_status_t hri_session_verify(const struct hri_io_ops *io, const char *dir,
                               struct hr_session_check *check_out)
{
    struct session x;
    struct hr_session_check check = {.struct_size = sizeof check};
    struct lost lost = {.check = &check};
    if (check_out == NULL || check_out->struct_size != sizeof check) {
        return hri_error_set(HR_ERR_VERSION,
                             "hr_session_verify: no place for the result, or one of another size");
    }
    hr_status_t status = session_open(&x, io, dir);
    if (status == HR_OK && x.meta.n_tokens > HR_TOKENS_MAX) {
        status = hri_error_set(HR_ERR_CORRUPT, "session %s: it speaks of %u tokens", dir,
                               x.meta.n_tokens);
    }
    if (status == HR_OK) {
        check.superblocks_bad = hri_archive_facts(x.in).superblocks_bad;
        lost.bits = hri_calloc(&x.alloc, x.meta.n_tokens / 64 + 1, sizeof *lost.bits);
        status = lost.bits != NULL ? blocks_verify(&x, &lost) : hri_alloc_status();
    }
    if (status == HR_OK) {
        status = verdict(&x, &check);
        if (status == HR_OK) {
            status = hri_archive_check_end(x.in);
        }
        check.bytes_read = hri_archive_facts(x.in).file_bytes;
        *check_out = check;
    }
    hri_free(&x.alloc, lost.bits);
    session_close(&x);
    return status;
}

hr_status_t hr_session_verify(const char *dir, struct hr_session_check *check_out)
{
    return hri_session_verify(hri_io_real(), dir, check_out);
}

/* Files of a session, in the order in which they are removed: one that cannot be leaves the session whole; what is left by a cut is removed as well. */
static const char *const session_files[] = {HRI_SESSION_FILE_NEW, HRI_SESSION_FILE,
                                            HRI_SESSION_LOCK};

/* A first save that failed or was cut leaves its lock, and maybe part of a file, and no session: 1 in a folder that has nothing else. */
static int is_left_over(const struct hri_io_ops *io, int folder)
{
    return io->folder_alone(io->ctx, folder,
                            HRI_SESSION_FILE "/" HRI_SESSION_FILE_NEW "/" HRI_SESSION_LOCK);
}

static hr_status_t remove_in(const struct hri_io_ops *io, int folder, const char *dir, int *lock)
{
    int fd = io->file_open(io->ctx, folder, HRI_SESSION_FILE, false);
    int left_over = fd == -ENOENT ? is_left_over(io, folder) : 0;
    if (left_over == -ETIMEDOUT) {
        return hri_folder_status(left_over, "looking into the folder", dir);
    }
    if (fd < 0 && left_over != 1) {
        return hri_folder_status(fd, "opening its file '" HRI_SESSION_FILE "'", dir);
    }
    if (fd >= 0) {
        io->close_file(io->ctx, fd);
    }
    hr_status_t status = hri_folder_lock(io, folder, dir, lock);
    for (size_t i = 0; i < sizeof session_files / sizeof *session_files && status == HR_OK; i++) {
        int error = io->file_remove(io->ctx, folder, session_files[i]);
        status =
            error < 0 && error != -ENOENT ? hri_folder_status(error, "removing it", dir) : HR_OK;
    }
    if (status == HR_OK) {
        int error = io->folder_remove(io->ctx, folder, dir); /* stays if anything else is in it */
        status = error == -ETIMEDOUT ? hri_folder_status(error, "removing the folder", dir) : HR_OK;
    }
    return status;
}

hr_status_t hri_session_remove(const struct hri_io_ops *real_io, const char *dir)
{
    struct hri_io_guard *guard = NULL;
    int folder = -1, lock = -1;
    hr_status_t status = hri_io_guard_create(real_io, 0, &guard);
    if (status != HR_OK) {
        return status;
    }
    const struct hri_io_ops *io = hri_io_guard_ops(guard);
    status = hri_folder_open(io, dir, false, NULL, &folder);
    if (status == HR_OK) {
        status = remove_in(io, folder, dir, &lock);
    }
    hri_calls_end(guard, folder, lock);
    return status;
}

hr_status_t hr_session_remove(const char *dir)
{
    return hri_session_remove(hri_io_real(), dir);
}
