/*
 * Replacement: least recently used, with one exception that decoding needs. Layers take turns, so
 * their accesses are a loop; a pool smaller than one turn under LRU loses every frame just before
 * it is wanted again. Where even the oldest frame was used since the lane's last turn, the newest
 * one outside this step goes instead, and the pool keeps a fixed part of the loop.
 * docs/decisions/0002-frame-replacement.md has the measurements.
 */
#include "offload/frames.h"

#include <string.h>

#include "base/assert.h"
#include "base/error.h"

#define NONE              UINT32_MAX
#define FRAME_ALIGN_BYTES 64u

enum frame_state { FRAME_FREE, FRAME_LOADING, FRAME_READY };

struct frame {
    enum frame_state state;
    uint32_t lane, block;
    uint32_t prev, next;     /* list by last use, or of free frames */
    uint64_t step;           /* of its last use */
    struct hri_read *read;   /* while LOADING */
    struct hri_fetch *fetch; /* whose read it is */
};

struct lane_table {
    uint32_t *frames;  /* [blocks_max] 1 + frame of the block, or 0: fresh pages need no filling */
    uint8_t *resident; /* [blocks_max] 1: a ready frame that outlasts the step */
    uint32_t blocks_max;
    uint64_t step, step_before; /* of its last two fetches */
};

struct hri_frames {
    struct hri_alloc *alloc;
    struct hri_store *store;
    unsigned char *memory; /* n_frames, then the transit frames */
    /* Of the tables. They are as large as the longest text makes them, and a fork makes its own: zero pages that nobody touched yet
     * cost nothing. */
    struct hri_region table_region, resident_region, frame_region, memory_region;
    size_t stride_bytes;
    uint32_t frame_bytes, n_frames, n_transit, n_lanes;
    struct lane_table *lanes;
    struct frame *frames; /* [n_frames + n_transit] */
    uint32_t free_frame, oldest, newest;
    uint32_t n_fresh_frames; /* of the n_frames, from the end: never used, in no list */
    uint32_t n_transit_used; /* in this step */
    uint32_t n_touched;      /* the first frames, whose pages are there */
    uint64_t step;
    struct hri_frames_stats stats;
};

/* The frame of a block, or NONE. */
static uint32_t frame_of(const struct lane_table *lane, uint32_t block)
{
    return lane->frames[block] - 1;
}

static bool any_free(const struct hri_frames *frames)
{
    return frames->free_frame != NONE || frames->n_fresh_frames > 0;
}

static unsigned char *memory_of(const struct hri_frames *frames, uint32_t frame)
{
    return frames->memory + (size_t)frame * frames->stride_bytes;
}

/* --------------------------------------------------------------------------- create and destroy */

struct sizes {
    uint64_t memory, frames, lanes, tables, resident;
};

static struct sizes sizes_of(const struct hri_frames_options *options)
{
    uint64_t n = (uint64_t)options->n_frames + options->transit_frames, n_blocks = 0;
    for (uint32_t i = 0; i < options->n_lanes; i++)
        n_blocks += options->blocks_max[i];
    uint64_t page = hri_page_bytes();
    return (struct sizes){
        .memory = n * options->frame_bytes + page, /* as frames: rounded, and grows evenly with n */
        .frames = n * sizeof(struct frame) + page,
        .lanes = options->n_lanes * sizeof(struct lane_table),
        .tables = hri_round_up(n_blocks * sizeof(uint32_t), page),
        .resident = hri_round_up(n_blocks, page),
    };
}

uint64_t hri_frames_bytes(const struct hri_frames_options *options)
{
    struct sizes sizes = sizes_of(options);
    return sizes.memory + sizes.frames + sizes.lanes + sizes.tables + sizes.resident +
           sizeof(struct hri_frames);
}

static bool alloc_region(struct hri_frames *frames, uint64_t bytes, struct hri_region *region)
{
    return bytes == 0 || hri_region_alloc(frames->alloc, bytes, region) == HR_OK;
}

static bool alloc_tables(struct hri_frames *frames, const struct sizes *sizes)
{
    struct hri_alloc *alloc = frames->alloc;
    uint64_t page = hri_page_bytes();
    frames->lanes = hri_aligned_zero(alloc, FRAME_ALIGN_BYTES, sizes->lanes);
    return frames->lanes != NULL &&
           alloc_region(frames, sizes->memory - page, &frames->memory_region) &&
           alloc_region(frames, sizes->frames - page, &frames->frame_region) &&
           alloc_region(frames, sizes->tables, &frames->table_region) &&
           alloc_region(frames, sizes->resident, &frames->resident_region);
}

static void place_tables(struct hri_frames *frames, const struct hri_frames_options *options)
{
    uint32_t *table = frames->table_region.base;
    uint8_t *resident = frames->resident_region.base;
    for (uint32_t i = 0; i < options->n_lanes; i++) {
        frames->lanes[i].frames = table;
        frames->lanes[i].resident = resident;
        frames->lanes[i].blocks_max = options->blocks_max[i];
        if (options->blocks_max[i] == 0)
            continue;
        table += options->blocks_max[i];
        resident += options->blocks_max[i];
    }
    frames->frames = frames->frame_region.base;
    frames->memory = frames->memory_region.base;
    frames->oldest = NONE;
    frames->newest = NONE;
    frames->free_frame = NONE;
    frames->n_fresh_frames = options->n_frames;
}

static hr_status_t check_options(const struct hri_frames_options *options)
{
    if (options->frame_bytes == 0 || options->frame_bytes % FRAME_ALIGN_BYTES != 0)
        return hri_error_set(HR_ERR_INVALID, "frames: frame_bytes is %u, must be a multiple of %u",
                             options->frame_bytes, FRAME_ALIGN_BYTES);
    if ((uint64_t)options->n_frames + options->transit_frames >= NONE)
        return hri_error_set(HR_ERR_INVALID, "frames: too many");
    return HR_OK;
}

hr_status_t hri_frames_create(const struct hri_frames_options *options,
                              struct hri_frames **frames_out)
{
    HRI_TRY(check_options(options));
    struct hri_frames *frames = hri_calloc(options->device, 1, sizeof *frames);
    if (frames == NULL)
        return hri_alloc_status();
    frames->alloc = options->device;
    frames->store = options->store;
    frames->frame_bytes = options->frame_bytes;
    frames->stride_bytes = options->frame_bytes;
    frames->n_frames = options->n_frames;
    frames->n_transit = options->transit_frames;
    frames->n_lanes = options->n_lanes;
    frames->step = 1;
    struct sizes sizes = sizes_of(options);
    if (!alloc_tables(frames, &sizes)) {
        hr_status_t status = hri_alloc_status();
        hri_frames_destroy(frames);
        return status;
    }
    place_tables(frames, options);
    frames->stats.n_frames = options->n_frames;
    *frames_out = frames;
    return HR_OK;
}

void hri_frames_expect(struct hri_frames *frames, uint32_t n_blocks)
{
    uint32_t left = frames->n_frames - frames->n_touched, n = n_blocks < left ? n_blocks : left;
    hri_region_touch(&frames->memory_region, (size_t)frames->n_touched * frames->stride_bytes,
                     (size_t)n * frames->stride_bytes);
    frames->n_touched += n;
}

void hri_frames_destroy(struct hri_frames *frames)
{
    if (frames == NULL)
        return;
    hri_free(frames->alloc, frames->lanes);
    hri_region_free(frames->alloc, &frames->memory_region);
    hri_region_free(frames->alloc, &frames->frame_region);
    hri_region_free(frames->alloc, &frames->table_region);
    hri_region_free(frames->alloc, &frames->resident_region);
    hri_free(frames->alloc, frames);
}

void hri_frames_stats(const struct hri_frames *frames, struct hri_frames_stats *stats_out)
{
    *stats_out = frames->stats;
}

/* ---------------------------------------------------------------------------------- replacement */

static void unlink_frame(struct hri_frames *frames, uint32_t f)
{
    const struct frame *frame = &frames->frames[f];
    if (frame->prev != NONE)
        frames->frames[frame->prev].next = frame->next;
    else
        frames->oldest = frame->next;
    if (frame->next != NONE)
        frames->frames[frame->next].prev = frame->prev;
    else
        frames->newest = frame->prev;
}

static void link_newest(struct hri_frames *frames, uint32_t f)
{
    struct frame *frame = &frames->frames[f];
    frame->next = NONE;
    frame->prev = frames->newest;
    if (frames->newest != NONE)
        frames->frames[frames->newest].next = f;
    else
        frames->oldest = f;
    frames->newest = f;
}

static void use_frame(struct hri_frames *frames, uint32_t f)
{
    frames->frames[f].step = frames->step;
    if (f >= frames->n_frames)
        return;
    unlink_frame(frames, f);
    link_newest(frames, f);
}

static void frame_ready(struct hri_frames *frames, uint32_t f)
{
    struct frame *frame = &frames->frames[f];
    frame->state = FRAME_READY;
    frames->lanes[frame->lane].resident[frame->block] = f < frames->n_frames;
}

/* Takes a frame out of its lane's table; in the list of used frames it is no more. */
static void drop_frame(struct hri_frames *frames, uint32_t f)
{
    struct frame *frame = &frames->frames[f];
    HRI_ASSERT(frame->read == NULL || frame->read->done || frame->fetch->batch.n_reads == 0);
    if (frame->read != NULL)
        frame->read->from = NULL; /* its memory belongs to others from now on */
    frames->lanes[frame->lane].frames[frame->block] = 0;
    frames->lanes[frame->lane].resident[frame->block] = 0;
    frame->state = FRAME_FREE;
    frame->read = NULL;
    frame->fetch = NULL;
    if (f >= frames->n_frames)
        return;
    unlink_frame(frames, f);
    frame->next = frames->free_frame;
    frames->free_frame = f;
    frames->stats.n_used--;
}

/* Frames are listed by last use, so those of this step are all at the newest end. */
static uint32_t find_victim(const struct hri_frames *frames, const struct lane_table *lane)
{
    uint32_t f = frames->oldest;
    if (f == NONE || frames->frames[f].step == frames->step)
        return NONE;
    if (frames->frames[f].step <= lane->step_before)
        return f;
    f = frames->newest;
    while (frames->frames[f].step == frames->step)
        f = frames->frames[f].prev;
    return f;
}

static uint32_t take_free(struct hri_frames *frames)
{
    uint32_t f = frames->free_frame;
    if (f != NONE)
        frames->free_frame = frames->frames[f].next;
    else if (frames->n_fresh_frames > 0)
        f = frames->n_frames - frames->n_fresh_frames--;
    return f;
}

/* A frame for a block that is not resident; NONE when all are in use in this step. */
static uint32_t take_frame(struct hri_frames *frames, uint32_t lane, uint32_t block)
{
    if (!any_free(frames)) {
        uint32_t victim = find_victim(frames, &frames->lanes[lane]);
        if (victim != NONE) {
            drop_frame(frames, victim);
            frames->stats.replaced++;
        }
    }
    uint32_t f = take_free(frames);
    if (f != NONE) {
        link_newest(frames, f);
        frames->stats.n_used++;
    } else if (frames->n_transit_used < frames->n_transit) {
        f = frames->n_frames + frames->n_transit_used++;
    } else {
        return NONE;
    }
    frames->frames[f].lane = lane;
    frames->frames[f].block = block;
    frames->frames[f].step = frames->step;
    frames->frames[f].state = FRAME_LOADING;
    frames->lanes[lane].frames[block] = f + 1;
    return f;
}

void hri_frames_step_begin(struct hri_frames *frames)
{
    frames->step++;
    for (uint32_t i = 0; i < frames->n_transit_used; i++)
        if (frames->frames[frames->n_frames + i].state != FRAME_FREE)
            drop_frame(frames, frames->n_frames + i);
    frames->n_transit_used = 0;
}

const void *hri_frames_peek(const struct hri_frames *frames, uint32_t lane, uint32_t block)
{
    if (lane >= frames->n_lanes || block >= frames->lanes[lane].blocks_max)
        return NULL;
    uint32_t f = frame_of(&frames->lanes[lane], block);
    return f != NONE && frames->frames[f].state == FRAME_READY ? memory_of(frames, f) : NULL;
}

const uint8_t *hri_frames_resident(const struct hri_frames *frames, uint32_t lane)
{
    return frames->lanes[lane].resident;
}

void hri_frames_truncate(struct hri_frames *frames, uint32_t lane, uint32_t n_blocks)
{
    const struct lane_table *table = &frames->lanes[lane];
    for (uint32_t b = n_blocks; b < table->blocks_max; b++)
        if (table->frames[b] != 0)
            drop_frame(frames, frame_of(table, b));
}

/* ---------------------------------------------------------------------------------------- fetch */

static hr_status_t check_fetch(const struct hri_frames *frames, const struct hri_fetch *fetch)
{
    if (fetch->lane_index >= frames->n_lanes)
        return hri_error_set(HR_ERR_INVALID, "frames: no lane %u", fetch->lane_index);
    for (uint32_t i = 0; i < fetch->n_blocks; i++) {
        const struct hri_block_address *block = &fetch->blocks[i];
        if (block->block >= frames->lanes[fetch->lane_index].blocks_max || block->bytes == 0 ||
            block->bytes > frames->frame_bytes)
            return hri_error_set(HR_ERR_INVALID, "frames: block %u of lane %u with %u bytes",
                                 block->block, fetch->lane_index, block->bytes);
    }
    return HR_OK;
}

/* Undoes the misses of a fetch that could not begin. */
static void drop_misses(struct hri_frames *frames, struct hri_fetch *fetch)
{
    const struct lane_table *table = &frames->lanes[fetch->lane_index];
    fetch->batch = (struct hri_read_batch){0};
    for (uint32_t i = 0; i < fetch->n_misses; i++)
        drop_frame(frames, frame_of(table, fetch->blocks[fetch->read_block[i]].block));
    fetch->n_misses = 0;
}

static void add_read(struct hri_frames *frames, struct hri_fetch *fetch, uint32_t i, uint32_t f)
{
    const struct hri_block_address *block = &fetch->blocks[i];
    struct hri_read *read = &fetch->reads[fetch->n_misses];
    *read = (struct hri_read){
        .lane = fetch->lane,
        .cell = block->cell,
        .n_cells = 1,
        .offset = block->offset,
        .bytes = block->bytes,
        .dst = memory_of(frames, f),
    };
    frames->frames[f].read = read;
    frames->frames[f].fetch = fetch;
    fetch->read_block[fetch->n_misses++] = i;
}

/* A frame that another fetch of this step is filling counts as a hit; its bytes are looked for in
 * the wait. */
static void find_hit(struct hri_frames *frames, struct hri_fetch *fetch, uint32_t i)
{
    uint32_t block = fetch->blocks[i].block;
    uint32_t f = frame_of(&frames->lanes[fetch->lane_index], block);
    fetch->where[i] = hri_frames_peek(frames, fetch->lane_index, block);
    if (f != NONE)
        use_frame(frames, f);
}

static void note_turn(struct hri_frames *frames, struct lane_table *lane)
{
    if (lane->step == frames->step)
        return;
    lane->step_before = lane->step;
    lane->step = frames->step;
}

hr_status_t hri_frames_fetch_begin(struct hri_frames *frames, struct hri_fetch *fetch)
{
    fetch->n_hits = 0;
    fetch->n_misses = 0;
    fetch->n_settled = 0;
    fetch->frames = frames;
    fetch->batch = (struct hri_read_batch){0};
    HRI_TRY(check_fetch(frames, fetch));
    note_turn(frames, &frames->lanes[fetch->lane_index]);
    /* Hits first: what this fetch needs must not make room for what it misses. */
    for (uint32_t i = 0; i < fetch->n_blocks; i++)
        find_hit(frames, fetch, i);
    for (uint32_t i = 0; i < fetch->n_blocks; i++) {
        uint32_t block = fetch->blocks[i].block;
        if (frames->lanes[fetch->lane_index].frames[block] != 0)
            continue; /* resident, or a double of a miss above */
        uint32_t f = take_frame(frames, fetch->lane_index, block);
        if (f == NONE) {
            drop_misses(frames, fetch);
            return hri_error_set(HR_ERR_FULL,
                                 "frames: %u blocks do not fit beside this step's %u frames",
                                 fetch->n_blocks, frames->n_frames + frames->n_transit);
        }
        add_read(frames, fetch, i, f);
    }
    fetch->n_hits = fetch->n_blocks - fetch->n_misses;
    frames->stats.hits += fetch->n_hits;
    frames->stats.misses += fetch->n_misses;
    if (fetch->n_misses == 0)
        return HR_OK;
    fetch->batch.reads = fetch->reads;
    fetch->batch.n_reads = fetch->n_misses;
    fetch->batch.leave_host = fetch->share_copies;
    /* A frame may have another owner when a late read comes, so the kernel never writes to frames. */
    fetch->batch.indirect = true;
    hr_status_t status = hri_store_read_begin(frames->store, &fetch->batch);
    if (status != HR_OK)
        drop_misses(frames, fetch);
    return status;
}

static void copy_now(struct hri_read *read)
{
    if (read->from != NULL)
        memcpy(read->dst, read->from, read->bytes);
    read->from = NULL;
}

/* Touches nothing but the frame and its lane's table of residents, so that fetches of different
 * blocks may do it at the same time. */
void hri_fetch_copy(struct hri_fetch *fetch, uint32_t j)
{
    struct hri_frames *frames = fetch->frames;
    struct hri_read *read = &fetch->reads[j];
    if (read->from == NULL)
        return;
    copy_now(read);
    fetch->where[fetch->read_block[j]] = read->dst;
    uint32_t f =
        (uint32_t)((size_t)((unsigned char *)read->dst - frames->memory) / frames->stride_bytes);
    frames->frames[f].read = NULL;
    frames->frames[f].fetch = NULL;
    frame_ready(frames, f);
    fetch->n_settled++;
}

/* After the reads: frames that arrived are ready, the others are lost. */
static void settle_misses(struct hri_frames *frames, const struct hri_fetch *fetch)
{
    const struct lane_table *table = &frames->lanes[fetch->lane_index];
    for (uint32_t i = 0; i < fetch->n_misses; i++) {
        uint32_t f = frame_of(table, fetch->blocks[fetch->read_block[i]].block);
        /* A truncate may have come between. */
        if (f == NONE || frames->frames[f].read != &fetch->reads[i])
            continue;
        copy_now(&fetch->reads[i]);
        frames->frames[f].read = NULL;
        frames->frames[f].fetch = NULL;
        frame_ready(frames, f);
        if (fetch->reads[i].status != HR_OK)
            drop_frame(frames, f);
    }
}

/* Blocks that another fetch reads: waits for that one, up to the same deadline. */
static hr_status_t wait_for_others(struct hri_frames *frames, const struct hri_fetch *fetch,
                                   uint64_t deadline_ns)
{
    hr_status_t status = HR_OK;
    for (uint32_t i = 0; i < fetch->n_blocks; i++) {
        uint32_t f = frame_of(&frames->lanes[fetch->lane_index], fetch->blocks[i].block);
        if (fetch->where[i] != NULL || f == NONE || frames->frames[f].state != FRAME_LOADING)
            continue;
        struct hri_read_batch *batch = &frames->frames[f].fetch->batch;
        while (!frames->frames[f].read->done && status == HR_OK)
            status = hri_store_read_wait(frames->store, batch, deadline_ns);
        if (frames->frames[f].read->done && frames->frames[f].read->status == HR_OK) {
            copy_now(frames->frames[f].read);
            frame_ready(frames, f);
        }
    }
    return status;
}

hr_status_t hri_frames_fetch_wait(struct hri_frames *frames, struct hri_fetch *fetch,
                                  uint64_t deadline_ns)
{
    hr_status_t status = HR_OK;
    if (fetch->batch.n_reads > 0) {
        status = hri_store_read_wait(frames->store, &fetch->batch, deadline_ns);
        if (status == HR_ERR_TIMEOUT)
            hri_store_read_cancel(frames->store, &fetch->batch);
        if (fetch->n_settled < fetch->n_misses)
            settle_misses(frames, fetch);
    }
    if (status == HR_OK)
        status = wait_for_others(frames, fetch, deadline_ns);
    uint32_t n_lost = 0;
    for (uint32_t i = 0; i < fetch->n_blocks; i++) {
        if (fetch->where[i] == NULL)
            fetch->where[i] = hri_frames_peek(frames, fetch->lane_index, fetch->blocks[i].block);
        n_lost += fetch->where[i] == NULL;
    }
    if (status == HR_OK && n_lost > 0)
        return hri_error_set(HR_ERR_IO, "frames: %u blocks of lane %u were lost with another fetch",
                             n_lost, fetch->lane_index);
    return status;
}

/* --------------------------------------------------------------------------------------- saving */

bool hri_frames_next(const struct hri_frames *frames, uint32_t *cursor,
                     struct hri_frame_note *note_out)
{
    uint32_t f = *cursor == HRI_FRAMES_BEGIN ? frames->oldest : frames->frames[*cursor].next;
    while (f != NONE && frames->frames[f].state != FRAME_READY)
        f = frames->frames[f].next;
    if (f == NONE)
        return false;
    const struct frame *frame = &frames->frames[f];
    *note_out = (struct hri_frame_note){frame->lane, frame->block, frame->step};
    *cursor = f;
    return true;
}

void *hri_frames_restore(struct hri_frames *frames, const struct hri_frame_note *note)
{
    if (note->lane >= frames->n_lanes || note->block >= frames->lanes[note->lane].blocks_max ||
        frames->lanes[note->lane].frames[note->block] != 0 || !any_free(frames))
        return NULL;
    uint32_t f = take_frame(frames, note->lane, note->block);
    frames->frames[f].step = note->step < frames->step ? note->step : frames->step;
    frame_ready(frames, f);
    return memory_of(frames, f);
}

uint64_t hri_frames_turns(struct hri_frames *frames, uint64_t *steps, bool set)
{
    for (uint32_t i = 0; steps != NULL && i < frames->n_lanes; i++) {
        struct lane_table *lane = &frames->lanes[i];
        uint64_t *at = steps + 1 + 2 * (size_t)i;
        if (set) {
            lane->step = at[0];
            lane->step_before = at[1];
        } else {
            at[0] = lane->step;
            at[1] = lane->step_before;
        }
    }
    if (steps != NULL)
        *(set ? &frames->step : steps) = *(set ? steps : &frames->step);
    return 1 + 2 * (uint64_t)frames->n_lanes;
}

void hri_frames_clear(struct hri_frames *frames)
{
    for (uint32_t i = 0; i < frames->n_lanes; i++)
        hri_frames_truncate(frames, i, 0);
}
