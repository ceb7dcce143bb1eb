/* The device tier's frames: fixed slots that hold recently refined blocks, shared by the lanes of
 * one sequence.
 *
 * A block is addressed by (lane, block number); where its bytes lie in the lane's cells is the
 * caller's to say. Frames used since hri_frames_step_begin are never replaced before the next one,
 * so pointers stay valid for a step. Threads: like the store.
 */
#ifndef HRI_FRAMES_H
#define HRI_FRAMES_H

#include "offload/store.h"

struct hri_frames;

struct hri_frames_options {
    uint32_t frame_bytes; /* multiple of 64 */
    uint32_t n_frames;    /* 0 is legal: nothing is kept, a few transit frames serve each fetch */
    uint32_t transit_frames; /* extra frames that last one step: used when all others are; 0 is
                                legal where n_frames holds any step */
    uint32_t n_lanes;
    const uint32_t *blocks_max; /* [n_lanes] */
    struct hri_alloc *device;   /* the budget: frames and tables come from here */
    struct hri_store *store;
};
hr_status_t hri_frames_create(const struct hri_frames_options *options,
                              struct hri_frames **frames_out);
void hri_frames_destroy(struct hri_frames *frames);
/* Device bytes such a pool takes at most. */
uint64_t hri_frames_bytes(const struct hri_frames_options *options);

/* So many blocks more are there to be fetched: the pages of as many frames are touched now, so that steps need not. */
void hri_frames_expect(struct hri_frames *frames, uint32_t n_blocks);

void hri_frames_step_begin(struct hri_frames *frames);
/* The block's bytes if resident, else NULL; does not count as a use. */
const void *hri_frames_peek(const struct hri_frames *frames, uint32_t lane, uint32_t block);
/* Of all blocks of a lane at once: [blocks_max], 1 where a frame that outlasts the step holds the
 * block, else 0. Kept up to date; the array stays where it is as long as the frames live. */
const uint8_t *hri_frames_resident(const struct hri_frames *frames, uint32_t lane);

struct hri_block_address {
    uint32_t block;
    uint32_t cell, offset, bytes; /* in the lane's cells */
};
struct hri_fetch {
    /* in */
    uint32_t lane_index;
    struct hri_lane *lane;
    const struct hri_block_address *blocks;
    uint32_t n_blocks;
    bool share_copies; /* misses that host memory has wait for hri_fetch_copy, or for the wait */
    /* out: [n_blocks], the caller's arrays. where[i] NULL until it has arrived (or if it never
     * will). */
    const void **where;
    struct hri_read *reads; /* [n_blocks] space */
    uint32_t n_hits, n_misses;
    struct hri_read_batch batch;
    uint32_t *read_block; /* [n_blocks] space: reads[j] is for blocks[read_block[j]], ascending */
    struct hri_frames *frames; /* private */
    uint32_t n_settled;        /* private: misses whose frames are ready before the wait */
};
/* Hits are there at once; misses take frames (least worth first by the replacement policy) and
 * their reads start. Every fetch is waited for within its step. HR_ERR_FULL when the step needs
 * more than n_frames + transit_frames: nothing was started. */
hr_status_t hri_frames_fetch_begin(struct hri_frames *frames, struct hri_fetch *fetch);
/* Brings the block of read j from host memory into its frame and sets its place, if it waits for
 * that (share_copies). Between begin and wait; different fetches may do it in different threads at
 * the same time. */
void hri_fetch_copy(struct hri_fetch *fetch, uint32_t j);
/* Until all arrived or the deadline (0: none). Late and failed blocks keep where[i] == NULL and
 * lose their frames. HR_OK, HR_ERR_TIMEOUT (some are late), HR_ERR_CORRUPT / HR_ERR_IO. */
hr_status_t hri_frames_fetch_wait(struct hri_frames *frames, struct hri_fetch *fetch,
                                  uint64_t deadline_ns);
/* Drops blocks >= n_blocks of a lane. */
void hri_frames_truncate(struct hri_frames *frames, uint32_t lane, uint32_t n_blocks);

/* -- for saving: which blocks lie in frames, and when they were used -- */
struct hri_frame_note {
    uint32_t lane, block;
    uint64_t step;
};
/* The next used frame, the longest unused first; *cursor is HRI_FRAMES_BEGIN before the first. False: there are no more. */
#define HRI_FRAMES_BEGIN UINT32_MAX
bool hri_frames_next(const struct hri_frames *frames, uint32_t *cursor,
                     struct hri_frame_note *note_out);
/* A frame for this block, used last of all so far; its memory, which the caller fills at once. NULL: none is free, or the block is not
 * one of the lane's, or has a frame. */
void *hri_frames_restore(struct hri_frames *frames, const struct hri_frame_note *note);
/* The clock of the frames and of each lane: steps [the number returned]; set: from steps, else into it (NULL: just the number). */
uint64_t hri_frames_turns(struct hri_frames *frames, uint64_t *steps, bool set);
/* Drops all blocks. */
void hri_frames_clear(struct hri_frames *frames);

struct hri_frames_stats {
    uint64_t hits, misses, replaced;
    uint32_t n_frames, n_used;
};
void hri_frames_stats(const struct hri_frames *frames, struct hri_frames_stats *stats_out);

#endif
