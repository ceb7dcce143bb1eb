/*
 * A bump allocator over one fixed buffer: scratch of a step, taken piece by piece and given back
 * all at once. Never grows. One thread at a time.
 */
#ifndef HRI_BASE_ARENA_H
#define HRI_BASE_ARENA_H

#include "base/alloc.h"

struct hri_arena {
    unsigned char *base;
    size_t capacity_bytes;
    size_t used_bytes;
    size_t peak_bytes;       /* most ever used, to size the arena from a trial run */
    struct hri_alloc *alloc; /* owner of base when it was allocated by init */
    bool owned;
};

hr_status_t hri_arena_init(struct hri_arena *arena, struct hri_alloc *alloc, size_t capacity_bytes);

/* Over a buffer of the caller, which must outlive the arena. */
void hri_arena_init_buffer(struct hri_arena *arena, void *buffer, size_t capacity_bytes);
void hri_arena_fini(struct hri_arena *arena);

/* NULL when it does not fit. alignment: a power of two; 64 suits every kernel. */
void *hri_arena_take(struct hri_arena *arena, size_t bytes, size_t alignment);

/* An array of count items at 64-byte alignment, overflow checked; NULL when it does not fit. */
void *hri_arena_array(struct hri_arena *arena, size_t count, size_t item_bytes);

/* Everything taken after the mark is given back by the rewind. */
static inline size_t hri_arena_mark(const struct hri_arena *arena)
{
    return arena->used_bytes;
}

static inline void hri_arena_rewind(struct hri_arena *arena, size_t mark)
{
    arena->used_bytes = mark;
}

#endif
