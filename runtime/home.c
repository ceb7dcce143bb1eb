/* Folders of saved sessions that a sequence has locked: the one it was opened from, and the one it is to be saved to. A folder is known by
 * what it is, not by how its path was spelled. */
#include "runtime/saved.h"

#include "base/error.h"
#include <errno.h>
#include <string.h>

hr_status_t hri_calls_begin(const hr_runtime_t *rt, struct hri_io_guard **guard_out)
{
    return hri_io_guard_create(rt->io, 2 * hri_store_timeout_ns(rt->store), guard_out);
}

void hri_calls_end(struct hri_io_guard *guard, int folder, int lock)
{
    if (guard == NULL) {
        return;
    }
    const struct hri_io_ops *io = hri_io_guard_ops(guard);
    if (lock >= 0) {
        io->close_file(io->ctx, lock);
    }
    if (folder >= 0) {
        io->close_file(io->ctx, folder);
    }
    hri_io_guard_destroy(guard);
}

hr_status_t hri_home_find(hr_sequence_t *s, const struct hri_io_ops *io, int folder,
                          const char *path, struct hri_home **home_out)
{
    struct hri_io_stat st = {0};
    *home_out = NULL;
    int error = io->stat_file(io->ctx, folder, &st);
    if (error < 0) {
        return hri_folder_status(error, "looking at the folder", path);
    }
    for (int i = 0; i < HRI_HOMES; i++) {
        struct hri_home *home = &s->homes[i];
        if (home->held && home->device == st.device && home->inode == st.inode) {
            *home_out = home;
        }
    }
    return HR_OK;
}

hr_status_t hri_home_set(hr_sequence_t *s, int which, const struct hri_io_ops *io, int folder,
                         const char *path, int *lock)
{
    struct hri_io_stat st = {0};
    int error = io->stat_file(io->ctx, folder, &st);
    if (error < 0) {
        return hri_folder_status(error, "looking at the folder", path);
    }
    s->homes[which] = (struct hri_home){
        .held = true, .device = st.device, .inode = st.inode, .lock = *lock, .folder = -1};
    *lock = -1;
    return HR_OK;
}

/* A folder that was made for a save that never came is none of anybody's. */
static void unmake(const struct hri_home *home, const struct hri_io_ops *io)
{
    if (home->made_as != NULL && io->folder_alone != NULL && io->folder_remove != NULL &&
        io->folder_alone(io->ctx, home->folder, HRI_SESSION_LOCK) == 1 &&
        io->file_remove(io->ctx, home->folder, HRI_SESSION_LOCK) == 0) {
        (void)io->folder_remove(io->ctx, home->folder, home->made_as);
    }
}

void hri_home_leave(hr_sequence_t *s, const struct hri_io_ops *io, struct hri_home *home)
{
    if (!home->held) {
        return;
    }
    unmake(home, io);
    io->close_file(io->ctx, home->lock);
    if (home->folder >= 0) {
        io->close_file(io->ctx, home->folder);
    }
    hri_free(&s->runtime->alloc, home->made_as);
    *home = (struct hri_home){.held = false};
}

void hri_homes_leave(hr_sequence_t *s)
{
    struct hri_io_guard *guard = NULL;
    bool any = false;
    for (int i = 0; i < HRI_HOMES; i++) {
        any |= s->homes[i].held;
    }
    if (!any) {
        return;
    }
    /* Without memory for a guard there is no time-out, either. */
    bool guarded = hri_calls_begin(s->runtime, &guard) == HR_OK;
    for (int i = 0; i < HRI_HOMES; i++) {
        hri_home_leave(s, guarded ? hri_io_guard_ops(guard) : s->runtime->io, &s->homes[i]);
    }
    hri_io_guard_destroy(guard);
}

/* A save will make its new file there. */
static hr_status_t writable(const struct hri_io_ops *io, int folder, const char *dir)
{
    int old = io->file_open(io->ctx, folder, HRI_SESSION_FILE, false);
    if (old >= 0) {
        io->close_file(io->ctx, old);
    } else if (old == -ETIMEDOUT || old == -EMEDIUMTYPE) {
        return hri_folder_status(old, "opening its file '" HRI_SESSION_FILE "'", dir);
    }
    int error = io->file_remove(io->ctx, folder, HRI_SESSION_FILE_NEW); /* of a save that died */
    if (error < 0 && error != -ENOENT) {
        return hri_folder_status(error, "removing " HRI_SESSION_FILE_NEW, dir);
    }
    int fd = io->file_open(io->ctx, folder, HRI_SESSION_FILE_NEW, true);
    if (fd < 0) {
        return hri_folder_status(fd, "making " HRI_SESSION_FILE_NEW, dir);
    }
    error = io->close_file(io->ctx, fd);
    int removed = io->file_remove(io->ctx, folder, HRI_SESSION_FILE_NEW);
    error = error < 0 ? error : removed;
    return error < 0 ? hri_folder_status(error, "trying " HRI_SESSION_FILE_NEW, dir) : HR_OK;
}

static hr_status_t claim(hr_sequence_t *s, const struct hri_io_ops *io, const char *dir,
                         int *folder, int *lock)
{
    struct hri_home *home = &s->homes[HRI_HOME_CLAIMED], *same, fresh = {.held = true};
    bool made = false;
    hr_status_t status = hri_folder_open(io, dir, true, &made, folder);
    if (status == HR_OK) {
        status = hri_home_find(s, io, *folder, dir, &same);
    }
    if (status != HR_OK) {
        return status;
    }
    if (same == NULL) {
        status = hri_folder_lock(io, *folder, dir, lock);
    }
    if (status == HR_OK) {
        status = writable(io, *folder, dir);
    }
    if (status != HR_OK || same != NULL) {
        return status;
    }
    fresh.made_as = made ? hri_strdup(&s->runtime->alloc, dir) : NULL;
    if (made && fresh.made_as == NULL) {
        return hri_alloc_status();
    }
    hri_home_leave(s, io, home);
    status = hri_home_set(s, HRI_HOME_CLAIMED, io, *folder, dir, lock);
    if (status != HR_OK) {
        hri_free(&s->runtime->alloc, fresh.made_as);
        return status;
    }
    home->made_as = fresh.made_as;
    home->folder = *folder;
    *folder = -1;
    return HR_OK;
}

hr_status_t hr_sequence_claim(hr_sequence_t *s, const char *dir)
{
    struct hri_io_guard *guard = NULL;
    int folder = -1, lock = -1;
    if (s == NULL) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_claim: no sequence");
    }
    hr_status_t status = hri_calls_begin(s->runtime, &guard);
    if (status != HR_OK) {
        return status;
    }
    const struct hri_io_ops *io = hri_io_guard_ops(guard);
    status = claim(s, io, dir, &folder, &lock);
    hri_calls_end(guard, folder, lock);
    return status;
}
