#include "offload/store_impl.h"

#include "base/assert.h"

static uint32_t find_between(const uint64_t *bits, uint32_t begin, uint32_t end, uint32_t n)
{
    uint32_t run = 0;
    for (uint32_t i = begin; i < end; i++) {
        uint64_t word = bits[i / 64];
        if (word == UINT64_MAX && i % 64 == 0) {
            run = 0;
            i += 63;
            continue;
        }
        run = word >> (i % 64) & 1 ? 0 : run + 1;
        if (run == n)
            return i + 1 - n;
    }
    return HRI_NONE;
}

uint32_t hri_bits_find(const uint64_t *bits, uint32_t limit, uint32_t hint, uint32_t n)
{
    uint32_t at = hint < limit ? find_between(bits, hint, limit, n) : HRI_NONE;
    return at != HRI_NONE || hint == 0 ? at : find_between(bits, 0, limit, n);
}

void hri_bits_set(uint64_t *bits, uint32_t first, uint32_t n, bool value)
{
    for (uint32_t i = first; i < first + n; i++) {
        HRI_ASSERT((bits[i / 64] >> (i % 64) & 1) != value);
        bits[i / 64] ^= (uint64_t)1 << (i % 64);
    }
}

hr_status_t hri_page_arena_init(struct hri_page_arena *arena, struct hri_alloc *alloc, size_t bytes)
{
    arena->n_pages = (uint32_t)(bytes / HRI_PAGE_BYTES);
    arena->used = hri_calloc(alloc, (arena->n_pages + 63) / 64, sizeof *arena->used);
    if (arena->used == NULL)
        return hri_alloc_status();
    return hri_region_alloc(alloc, bytes, &arena->region);
}

void hri_page_arena_fini(struct hri_page_arena *arena, struct hri_alloc *alloc)
{
    if (!arena->leak)
        hri_region_free(alloc, &arena->region);
    hri_free(alloc, arena->used);
}

void *hri_page_arena_take(struct hri_page_arena *arena, uint32_t n_pages)
{
    if (arena->n_pages - arena->n_used < n_pages)
        return NULL;
    uint32_t first = hri_bits_find(arena->used, arena->n_pages, arena->hint, n_pages);
    if (first == HRI_NONE)
        return NULL;
    hri_bits_set(arena->used, first, n_pages, true);
    arena->n_used += n_pages;
    arena->hint = first + n_pages;
    return (unsigned char *)arena->region.base + (size_t)first * HRI_PAGE_BYTES;
}

void hri_page_arena_put(struct hri_page_arena *arena, void *pages, uint32_t n_pages)
{
    size_t offset = (size_t)((unsigned char *)pages - (unsigned char *)arena->region.base);
    hri_bits_set(arena->used, (uint32_t)(offset / HRI_PAGE_BYTES), n_pages, false);
    arena->n_used -= n_pages;
}

bool hri_page_arena_holds(const struct hri_page_arena *arena, const void *at)
{
    const unsigned char *base = arena->region.base, *byte = at;
    return base != NULL && byte >= base && byte < base + arena->region.bytes;
}
