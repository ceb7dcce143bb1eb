#include "offload/disk.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "offload/disk_engine.h"

#define REPEATS_AT_ONCE 4
#define REPEAT_PAUSE_NS 250000

static const struct hri_disk_engine *const engines[] = {
    &hri_disk_uring,
    &hri_disk_uring_plain,
    &hri_disk_threads,
};

static const struct hri_disk_engine *find_engine(hr_io_mode_t mode)
{
    for (size_t i = 0; i < sizeof engines / sizeof engines[0]; i++)
        if (engines[i]->mode == mode)
            return engines[i];
    return NULL;
}

static void free_tables(struct hri_disk *disk)
{
    struct hri_alloc *alloc = disk->options.alloc;
    hri_free(alloc, disk->slots);
    hri_free(alloc, disk->generations);
    hri_free(alloc, disk->free_slots);
    hri_free(alloc, disk);
}

static bool alloc_tables(struct hri_disk *disk)
{
    struct hri_alloc *alloc = disk->options.alloc;
    uint32_t depth = disk->options.depth;
    disk->slots = hri_calloc(alloc, depth, sizeof(struct hri_disk_request *));
    disk->generations = hri_calloc(alloc, depth, sizeof *disk->generations);
    disk->free_slots = hri_calloc(alloc, depth, sizeof *disk->free_slots);
    if (disk->slots == NULL || disk->generations == NULL || disk->free_slots == NULL)
        return false;
    for (uint32_t i = 0; i < depth; i++)
        disk->free_slots[disk->n_free++] = depth - 1 - i;
    return true;
}

hr_status_t hri_disk_create(const struct hri_disk_options *options, struct hri_disk **disk_out)
{
    const struct hri_disk_engine *engine = find_engine(options->mode);
    if (engine == NULL || options->depth == 0)
        return hri_error_set(HR_ERR_INVALID, "disk: no such mode or a depth of 0");
    struct hri_disk *disk = hri_calloc(options->alloc, 1, sizeof *disk);
    if (disk == NULL)
        return hri_alloc_status();
    disk->options = *options;
    disk->options.io = hri_io_transfers(options->io);
    disk->engine = engine;
    disk->timeout_ns = options->io->timeout_ns    ? options->io->timeout_ns
                       : options->timeout_ns != 0 ? options->timeout_ns
                                                  : HRI_DISK_TIMEOUT_NS;
    hr_status_t status =
        alloc_tables(disk) ? engine->create(disk, &disk->state) : hri_alloc_status();
    if (status != HR_OK) {
        free_tables(disk);
        return status;
    }
    *disk_out = disk;
    return HR_OK;
}

bool hri_disk_destroy(struct hri_disk *disk)
{
    if (disk == NULL)
        return false;
    while (disk->n_in_flight > 0)
        hri_disk_reap(disk, disk->timeout_ns); /* ends: what gets no answer is given up */
    bool stuck = disk->engine->destroy(disk, disk->state);
    free_tables(disk);
    return stuck;
}

const char *hri_disk_name(const struct hri_disk *disk)
{
    return disk->engine->name;
}

uint32_t hri_disk_in_flight(const struct hri_disk *disk)
{
    return disk->n_in_flight + (disk->finished != NULL);
}

uint32_t hri_disk_room(const struct hri_disk *disk)
{
    return disk->n_free;
}

bool hri_disk_broken(const struct hri_disk *disk)
{
    return disk->broken != 0;
}

void hri_disk_stats(const struct hri_disk *disk, struct hri_disk_stats *stats_out)
{
    *stats_out = disk->stats;
}

static uint64_t user_of(const struct hri_disk *disk, uint32_t slot)
{
    return (uint64_t)disk->generations[slot] << 32 | slot;
}

/* Takes the request out of its slot; whatever still comes for it is a stray from now on. */
static void finish(struct hri_disk *disk, struct hri_disk_request *request, int error)
{
    uint32_t slot = request->slot;
    HRI_ASSERT(disk->slots[slot] == request);
    disk->generations[slot]++;
    disk->slots[slot] = NULL;
    disk->free_slots[disk->n_free++] = slot;
    disk->n_in_flight--;
    disk->stats.finished++;
    request->error = error;
    request->next = disk->finished;
    disk->finished = request;
}

/* Gives up everything under way. Its memory may still be written to by the kernel, hence the mark.
 */
static void abandon_all(struct hri_disk *disk, int error)
{
    for (uint32_t i = 0; i < disk->options.depth; i++) {
        if (disk->slots[i] == NULL)
            continue;
        disk->slots[i]->abandoned = true;
        finish(disk, disk->slots[i], error);
    }
}

/* --------------------------------------------------------------------------- registered buffers */

static int find_buffer(const struct hri_disk *disk, const struct iovec *iov)
{
    const unsigned char *base = iov->iov_base;
    for (int i = 0; i < (int)HRI_RING_BUFFERS; i++) {
        const struct hri_disk_buffer *buffer = &disk->buffers[i];
        if (buffer->taken && base >= buffer->base &&
            base + iov->iov_len <= buffer->base + buffer->bytes)
            return i;
    }
    return -1;
}

static void offer_buffer(struct hri_disk *disk, uint32_t slot)
{
    struct hri_disk_buffer *buffer = &disk->buffers[slot];
    buffer->taken = disk->engine->set_buffer(disk->state, slot, buffer->base, buffer->bytes) == 0;
    disk->stats.registered_buffers += buffer->taken;
}

/*
 * A ring belongs to the thread that made it; another one gets a ring of its own. What the old
 * thread left under way (reads that were cancelled) can no longer be reaped, so its memory is
 * written off.
 */
static void adopt_thread(struct hri_disk *disk)
{
    if (disk->engine->foreign == NULL || disk->broken || !disk->engine->foreign(disk->state))
        return;
    abandon_all(disk, ESTALE);
    int error = disk->engine->remake(disk->state);
    if (error < 0) {
        disk->broken = -error;
        return;
    }
    disk->stats.registered_buffers = 0;
    for (uint32_t i = 0; i < HRI_RING_BUFFERS; i++)
        if (disk->buffers[i].base != NULL)
            offer_buffer(disk, i);
}

void hri_disk_register(struct hri_disk *disk, void *base, size_t bytes)
{
    if (disk->engine->set_buffer == NULL)
        return;
    adopt_thread(disk);
    unsigned char *at = base;
    for (uint32_t i = 0; i < HRI_RING_BUFFERS && bytes > 0; i++) {
        if (disk->buffers[i].base != NULL)
            continue;
        size_t part = bytes < HRI_RING_BUFFER_BYTES_MAX ? bytes : HRI_RING_BUFFER_BYTES_MAX;
        disk->buffers[i].base = at;
        disk->buffers[i].bytes = part;
        offer_buffer(disk, i);
        at += part;
        bytes -= part;
    }
}

/* The parts of a run longer than one buffer follow each other, so base leads to them all. */
void hri_disk_unregister(struct hri_disk *disk, void *base)
{
    unsigned char *at = base;
    for (uint32_t i = 0; i < HRI_RING_BUFFERS && at != NULL; i++) {
        struct hri_disk_buffer *buffer = &disk->buffers[i];
        if (buffer->base != at)
            continue;
        if (buffer->taken) {
            adopt_thread(disk);
            disk->engine->set_buffer(disk->state, i, NULL, 0);
            disk->stats.registered_buffers--;
        }
        at = buffer->bytes == HRI_RING_BUFFER_BYTES_MAX ? at + buffer->bytes : NULL;
        memset(buffer, 0, sizeof *buffer);
    }
}

/* ------------------------------------------------------------------------------------- requests */

static void push(struct hri_disk *disk, struct hri_disk_request *request)
{
    disk->generations[request->slot]++;
    request->op = (struct hri_ring_op){
        .write = request->write,
        .buffer = -1,
        .n_iov = request->n_iov - request->iov_begin,
        .iov = request->iov + request->iov_begin,
        .offset = request->position,
        .user = user_of(disk, request->slot),
    };
    if (request->op.n_iov == 1 && disk->engine->set_buffer != NULL)
        request->op.buffer = find_buffer(disk, request->op.iov);
    int error = disk->engine->push(disk->state, &request->op);
    if (error == -EBUSY) {
        disk->engine->flush(disk->state);
        error = disk->engine->push(disk->state, &request->op);
    }
    if (error < 0)
        finish(disk, request, -error);
}

bool hri_disk_submit(struct hri_disk *disk, struct hri_disk_request *request)
{
    if (disk->n_free == 0)
        return false;
    adopt_thread(disk);
    request->abandoned = false;
    request->error = 0;
    request->iov_begin = 0;
    request->tries = 0;
    request->position = request->offset;
    request->left_bytes = 0;
    for (uint32_t i = 0; i < request->n_iov; i++)
        request->left_bytes += request->iov[i].iov_len;
    request->progress_ns = hri_now_ns();
    request->slot = disk->free_slots[--disk->n_free];
    disk->slots[request->slot] = request;
    disk->n_in_flight++;
    if (disk->broken)
        finish(disk, request, disk->broken);
    else
        push(disk, request);
    return true;
}

/* Moves the request's front past bytes that were transferred. */
static void advance(struct hri_disk_request *request, uint64_t bytes)
{
    request->position += bytes;
    request->left_bytes -= bytes;
    while (bytes > 0) {
        struct iovec *iov = &request->iov[request->iov_begin];
        if (bytes < iov->iov_len) {
            iov->iov_base = (unsigned char *)iov->iov_base + bytes;
            iov->iov_len -= bytes;
            return;
        }
        bytes -= iov->iov_len;
        request->iov_begin++;
    }
}

/* To be tried again at the end of this round of results. */
static void repeat(struct hri_disk *disk, struct hri_disk_request *request, int error)
{
    if (++request->tries > HRI_DISK_TRIES_MAX) {
        finish(disk, request, error);
        return;
    }
    disk->stats.repeats++;
    request->next = disk->again;
    disk->again = request;
}

/* A disk that has nothing but requests to repeat gets pauses. */
static void push_repeats(struct hri_disk *disk, int n_results)
{
    int n = 0;
    uint32_t tries = 0;
    for (const struct hri_disk_request *r = disk->again; r != NULL; r = r->next, n++)
        tries = r->tries > tries ? r->tries : tries;
    if (n == n_results && tries > REPEATS_AT_ONCE) {
        struct timespec pause = {0, REPEAT_PAUSE_NS};
        nanosleep(&pause, NULL);
    }
    while (disk->again != NULL) {
        struct hri_disk_request *request = disk->again;
        disk->again = request->next;
        push(disk, request);
    }
}

static void take_result(struct hri_disk *disk, const struct hri_ring_result *result)
{
    uint32_t slot = (uint32_t)result->user;
    if (slot >= disk->options.depth || disk->slots[slot] == NULL ||
        result->user != user_of(disk, slot)) {
        disk->stats.stray_completions++;
        return;
    }
    struct hri_disk_request *request = disk->slots[slot];
    int32_t got = result->result;
    disk->generations[slot]++; /* a double of this result is a stray */
    request->progress_ns = hri_now_ns();
    if (got == -EINTR || got == -EAGAIN) {
        repeat(disk, request, -got);
    } else if (got < 0) {
        finish(disk, request, -got);
    } else if ((uint64_t)got > request->left_bytes) {
        finish(disk, request, EIO); /* more than was asked for: nothing about it can be trusted */
    } else if ((uint64_t)got == request->left_bytes) {
        finish(disk, request, 0);
    } else {
        disk->stats.short_transfers++;
        /* Direct I/O goes on at an aligned offset only; a transfer of less than one unit is no
         * progress. */
        uint64_t whole = (uint64_t)got - (uint64_t)got % disk->options.align_bytes;
        if (whole == 0) {
            repeat(disk, request, EIO);
            return;
        }
        advance(request, whole);
        push(disk, request);
    }
}

/* Nanoseconds until the oldest request is overdue, 0 when one is. */
static uint64_t time_left_ns(const struct hri_disk *disk)
{
    uint64_t now = hri_now_ns(), left = disk->timeout_ns;
    for (uint32_t i = 0; i < disk->options.depth; i++) {
        if (disk->slots[i] == NULL)
            continue;
        uint64_t age = now - disk->slots[i]->progress_ns;
        if (age >= disk->timeout_ns)
            return 0;
        if (disk->timeout_ns - age < left)
            left = disk->timeout_ns - age;
    }
    return left;
}

/*
 * Time in which nobody looked (the caller was busy, the process was stopped) says nothing about the
 * disk: what a look took beyond what was expected does not count against the requests.
 */
static void look(struct hri_disk *disk, uint64_t expected_ns)
{
    uint64_t now = hri_now_ns(), gap = now - disk->looked_ns;
    disk->looked_ns = now;
    if (gap < expected_ns + disk->timeout_ns / 4)
        return;
    for (uint32_t i = 0; i < disk->options.depth; i++) {
        if (disk->slots[i] == NULL)
            continue;
        uint64_t moved = disk->slots[i]->progress_ns + gap - expected_ns;
        disk->slots[i]->progress_ns = moved < now ? moved : now;
    }
}

static struct hri_disk_request *take_finished(struct hri_disk *disk)
{
    struct hri_disk_request *list = disk->finished;
    disk->finished = NULL;
    return list;
}

void hri_disk_flush(struct hri_disk *disk)
{
    if (disk->n_in_flight > 0 && !disk->broken)
        disk->engine->flush(disk->state);
}

struct hri_disk_request *hri_disk_reap(struct hri_disk *disk, uint64_t wait_ns)
{
    adopt_thread(disk);
    if (disk->finished != NULL)
        wait_ns = 0;
    if (disk->n_in_flight == 0)
        return take_finished(disk);
    uint64_t end_ns = hri_now_ns() + wait_ns;
    look(disk, 0);
    for (;;) {
        uint64_t now = hri_now_ns();
        uint64_t rest_ns = now < end_ns ? end_ns - now : 0;
        uint64_t left_ns = rest_ns > 0 ? time_left_ns(disk) : 0;
        struct hri_ring_result results[HRI_DISK_RESULTS_MAX];
        uint64_t round_ns = rest_ns < left_ns ? rest_ns : left_ns;
        int n = disk->engine->reap(disk->state, results, HRI_DISK_RESULTS_MAX, round_ns);
        look(disk, round_ns);
        for (int i = 0; i < n; i++)
            take_result(disk, &results[i]);
        if (disk->again != NULL)
            push_repeats(disk, n);
        if (n < 0)
            disk->broken = -n;
        else if (n == 0 && time_left_ns(disk) == 0)
            disk->broken = ETIMEDOUT;
        if (disk->broken)
            abandon_all(disk, disk->broken);
        /* Continuations must reach the kernel before anybody waits elsewhere. */
        if (n > 0 && disk->n_in_flight > 0)
            hri_disk_flush(disk);
        if (disk->finished != NULL || rest_ns == 0 || disk->n_in_flight == 0)
            return take_finished(disk);
    }
}
