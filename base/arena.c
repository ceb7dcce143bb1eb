#include "base/arena.h"

#include "base/assert.h"

#define ARENA_ALIGNMENT 64

hr_status_t hri_arena_init(struct hri_arena *arena, struct hri_alloc *alloc, size_t capacity_bytes)
{
    void *base = hri_aligned(alloc, ARENA_ALIGNMENT, capacity_bytes);
    if (base == NULL)
        return hri_alloc_status();
    hri_arena_init_buffer(arena, base, capacity_bytes);
    arena->alloc = alloc;
    arena->owned = true;
    return HR_OK;
}

void hri_arena_init_buffer(struct hri_arena *arena, void *buffer, size_t capacity_bytes)
{
    *arena = (struct hri_arena){.base = buffer, .capacity_bytes = capacity_bytes};
}

void hri_arena_fini(struct hri_arena *arena)
{
    if (arena->owned)
        hri_free(arena->alloc, arena->base);
    *arena = (struct hri_arena){0};
}

void *hri_arena_take(struct hri_arena *arena, size_t bytes, size_t alignment)
{
    HRI_ASSERT(alignment != 0 && (alignment & (alignment - 1)) == 0);
    uintptr_t next = (uintptr_t)arena->base + arena->used_bytes;
    size_t padding = (size_t)(-next & (alignment - 1));
    size_t left = arena->capacity_bytes - arena->used_bytes;
    if (padding > left || bytes > left - padding)
        return NULL;
    arena->used_bytes += padding + bytes;
    if (arena->peak_bytes < arena->used_bytes)
        arena->peak_bytes = arena->used_bytes;
    return (void *)(next + padding);
}

void *hri_arena_array(struct hri_arena *arena, size_t count, size_t item_bytes)
{
    size_t bytes;
    if (!hri_mul_size(count, item_bytes, &bytes))
        return NULL;
    return hri_arena_take(arena, bytes, ARENA_ALIGNMENT);
}
