/*
 * Memory with a count, a cap and a way to fail on purpose. One struct hri_alloc stands for one
 * budget (a handle's bookkeeping, the device tier, the host tier); every function is safe from
 * any thread. The allocator must outlive what it handed out.
 *
 * Counted are the bytes asked for (whole pages for regions), not the 16 to `alignment` bytes of
 * header before each piece.
 *
 * Every function accepts alloc == NULL: plain memory of the C library, neither counted nor
 * capped. Pieces must be freed with the allocator they came from.
 */
#ifndef HRI_BASE_ALLOC_H
#define HRI_BASE_ALLOC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct hri_alloc_hooks {
    /* Returns at least bytes at the alignment (a power of two >= 16), or NULL. */
    void *(*alloc)(void *ctx, size_t bytes, size_t alignment);
    void (*free)(void *ctx, void *ptr, size_t bytes);
    void *ctx;
};

struct hri_alloc {
    struct hri_alloc_hooks hooks;
    const char *name;   /* names the budget in messages, such as "host tier" */
    uint64_t cap_bytes; /* 0: no cap. Going over it fails with HR_ERR_BUDGET */
    _Atomic uint64_t live_bytes;
    _Atomic uint64_t peak_bytes;
    _Atomic uint64_t alloc_count; /* that succeeded since init; the step path leaves it alone */
    _Atomic uint64_t free_count;
    _Atomic uint64_t fail_count;    /* allocations refused for any reason */
    _Atomic int64_t fail_countdown; /* < 0: never; n: n allocations pass, all after them fail */
};

/* hooks NULL: the C library's memory. name must outlive the allocator; NULL reads "memory". */
void hri_alloc_init(struct hri_alloc *alloc, const char *name, uint64_t cap_bytes,
                    const struct hri_alloc_hooks *hooks);

/* The next `n` allocations succeed, all later ones fail, until called again with -1. */
void hri_alloc_fail_after(struct hri_alloc *alloc, int64_t n);

/*
 * NULL on failure, with the message recorded for hr_last_error(); use hri_alloc_status() for the
 * code to return. Zero bytes give a valid pointer that must be freed. Everything is aligned to 16
 * at least. The two that take a count check the product for overflow; hri_calloc zeroes,
 * hri_array does not.
 */
void *hri_malloc(struct hri_alloc *alloc, size_t bytes);
void *hri_calloc(struct hri_alloc *alloc, size_t count, size_t item_bytes);
void *hri_array(struct hri_alloc *alloc, size_t count, size_t item_bytes);
char *hri_strdup(struct hri_alloc *alloc, const char *text);

/* alignment: a power of two up to 2 MiB. */
void *hri_aligned(struct hri_alloc *alloc, size_t alignment, size_t bytes);
void *hri_aligned_zero(struct hri_alloc *alloc, size_t alignment, size_t bytes);

/* ptr is of hri_malloc, or NULL; on failure it stays as it was. The result is aligned to 16. */
void *hri_realloc(struct hri_alloc *alloc, void *ptr, size_t bytes);

/* ptr may be NULL. */
void hri_free(struct hri_alloc *alloc, void *ptr);

/* Of memory that something else may still write to, as the kernel does for requests that were given up: it is never used or freed again, and
 * stays reachable, so that it is not taken for a leak. It stays charged to its allocator. ptr may be NULL. */
void hri_lose(void *ptr);

/* HR_ERR_BUDGET if the last refusal on this thread was the cap's, else HR_ERR_NOMEM. */
hr_status_t hri_alloc_status(void);

/*
 * Takes bytes from the budget without memory behind them, for what is allocated elsewhere; false
 * over the cap.
 */
bool hri_alloc_charge(struct hri_alloc *alloc, uint64_t bytes);
void hri_alloc_refund(struct hri_alloc *alloc, uint64_t bytes);

/*
 * A big, zeroed run of pages of its own. From 2 MiB up it starts on a huge-page boundary and asks
 * for huge pages. hooks are not used: the pages come from mmap.
 */
struct hri_region {
    void *base;    /* NULL: empty */
    size_t bytes;  /* usable and counted: what was asked for, rounded up to pages */
    void *mapping; /* what munmap needs */
    size_t mapping_bytes;
};

hr_status_t hri_region_alloc(struct hri_alloc *alloc, size_t bytes, struct hri_region *region_out);

/* Makes the pages of this part be there, so that who writes first need not wait for them. A wish; what they hold stays. */
void hri_region_touch(const struct hri_region *region, size_t first_byte, size_t bytes);
/* Empties the region; an empty one is fine. */
void hri_region_free(struct hri_alloc *alloc, struct hri_region *region);

/* The machine's page size; alignment that direct I/O and regions share. */
size_t hri_page_bytes(void);

static inline uint64_t hri_round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* True and *product_out written unless a * b overflows. */
static inline bool hri_mul_size(size_t a, size_t b, size_t *product_out)
{
    return !__builtin_mul_overflow(a, b, product_out);
}

#endif
