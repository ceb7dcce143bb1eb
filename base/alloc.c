#include "base/alloc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/error.h"

/*
 * Every piece is preceded by this, directly before the pointer that was handed out:
 *
 *     start                    start + offset
 *     | padding | piece_header | the caller's bytes ...
 */
struct piece_header {
    uint64_t bytes;
    uint32_t offset;
    uint32_t mark;
};

#define PIECE_LIVE      0x68726c76u
#define PIECE_FREED     0x68726672u
#define HUGE_PAGE_BYTES ((size_t)2 << 20)

_Static_assert(sizeof(struct piece_header) == 16,
               "the smallest alignment leaves room for the header");

static _Thread_local hr_status_t last_refusal = HR_ERR_NOMEM;

static void *libc_alloc(void *ctx, size_t bytes, size_t alignment)
{
    (void)ctx;
    void *ptr;
    return posix_memalign(&ptr, alignment, bytes) == 0 ? ptr : NULL;
}

static void libc_free(void *ctx, void *ptr, size_t bytes)
{
    (void)ctx;
    (void)bytes;
    free(ptr);
}

void hri_alloc_init(struct hri_alloc *alloc, const char *name, uint64_t cap_bytes,
                    const struct hri_alloc_hooks *hooks)
{
    *alloc = (struct hri_alloc){
        .hooks = {libc_alloc, libc_free, NULL},
        .name = name != NULL ? name : "memory",
        .cap_bytes = cap_bytes,
        .fail_countdown = -1,
    };
    if (hooks != NULL)
        alloc->hooks = *hooks;
}

void hri_alloc_fail_after(struct hri_alloc *alloc, int64_t n)
{
    atomic_store(&alloc->fail_countdown, n);
}

hr_status_t hri_alloc_status(void)
{
    return last_refusal;
}

static void *refuse(struct hri_alloc *alloc, hr_status_t status)
{
    last_refusal = status;
    if (alloc != NULL)
        atomic_fetch_add_explicit(&alloc->fail_count, 1, memory_order_relaxed);
    return NULL;
}

static void *refuse_memory(struct hri_alloc *alloc, uint64_t bytes)
{
    hri_error_set(HR_ERR_NOMEM, "%s: no memory for %llu bytes",
                  alloc != NULL ? alloc->name : "memory", (unsigned long long)bytes);
    return refuse(alloc, HR_ERR_NOMEM);
}

/* True when a test asked for this allocation to fail. */
static bool must_fail(struct hri_alloc *alloc)
{
    int64_t left = atomic_load_explicit(&alloc->fail_countdown, memory_order_relaxed);
    while (left > 0) {
        if (atomic_compare_exchange_weak(&alloc->fail_countdown, &left, left - 1))
            return false;
    }
    return left == 0;
}

bool hri_alloc_charge(struct hri_alloc *alloc, uint64_t bytes)
{
    if (alloc == NULL)
        return true;
    uint64_t live = atomic_load_explicit(&alloc->live_bytes, memory_order_relaxed);
    uint64_t after;
    do {
        bool overflow = __builtin_add_overflow(live, bytes, &after);
        if (overflow || (alloc->cap_bytes != 0 && after > alloc->cap_bytes)) {
            hri_error_set(HR_ERR_BUDGET,
                          "%s: %llu bytes more than the %llu in use would exceed the cap of %llu",
                          alloc->name, (unsigned long long)bytes, (unsigned long long)live,
                          (unsigned long long)alloc->cap_bytes);
            refuse(alloc, HR_ERR_BUDGET);
            return false;
        }
    } while (!atomic_compare_exchange_weak(&alloc->live_bytes, &live, after));
    uint64_t peak = atomic_load_explicit(&alloc->peak_bytes, memory_order_relaxed);
    while (peak < after && !atomic_compare_exchange_weak(&alloc->peak_bytes, &peak, after))
        continue;
    return true;
}

void hri_alloc_refund(struct hri_alloc *alloc, uint64_t bytes)
{
    if (alloc == NULL)
        return;
    uint64_t before = atomic_fetch_sub_explicit(&alloc->live_bytes, bytes, memory_order_relaxed);
    HRI_ASSERT(before >= bytes);
    (void)before;
}

static void *raw_alloc(struct hri_alloc *alloc, size_t bytes, size_t alignment)
{
    if (alloc == NULL)
        return libc_alloc(NULL, bytes, alignment);
    return alloc->hooks.alloc(alloc->hooks.ctx, bytes, alignment);
}

static void raw_free(struct hri_alloc *alloc, void *ptr, size_t bytes)
{
    if (alloc == NULL)
        libc_free(NULL, ptr, bytes);
    else
        alloc->hooks.free(alloc->hooks.ctx, ptr, bytes);
}

static struct piece_header *header_of(void *ptr)
{
    return (struct piece_header *)((unsigned char *)ptr - sizeof(struct piece_header));
}

void *hri_aligned(struct hri_alloc *alloc, size_t alignment, size_t bytes)
{
    HRI_ASSERT(alignment != 0 && (alignment & (alignment - 1)) == 0 &&
               alignment <= HUGE_PAGE_BYTES);
    size_t offset =
        alignment < sizeof(struct piece_header) ? sizeof(struct piece_header) : alignment;
    size_t whole_bytes;
    if (__builtin_add_overflow(bytes, offset, &whole_bytes) || whole_bytes > PTRDIFF_MAX)
        return refuse_memory(alloc, bytes);
    if (alloc != NULL && must_fail(alloc))
        return refuse_memory(alloc, bytes);
    if (!hri_alloc_charge(alloc, bytes))
        return NULL;
    unsigned char *start = raw_alloc(alloc, whole_bytes, offset);
    if (start == NULL) {
        hri_alloc_refund(alloc, bytes);
        return refuse_memory(alloc, bytes);
    }
    unsigned char *ptr = start + offset;
    *header_of(ptr) = (struct piece_header){bytes, (uint32_t)offset, PIECE_LIVE};
    if (alloc != NULL)
        atomic_fetch_add_explicit(&alloc->alloc_count, 1, memory_order_relaxed);
    return ptr;
}

#define LOST_MAX 256u /* reachable ones: disks that never answer are few */

extern void *hri_lost[LOST_MAX]; /* not static: it is never read but by leak checkers */
void *hri_lost[LOST_MAX];

void hri_lose(void *ptr)
{
    static _Atomic uint32_t n_lost;
    if (ptr != NULL)
        hri_lost[n_lost++ % LOST_MAX] = ptr;
}

void hri_free(struct hri_alloc *alloc, void *ptr)
{
    if (ptr == NULL)
        return;
    struct piece_header *header = header_of(ptr);
    HRI_ASSERT(header->mark == PIECE_LIVE);
    header->mark = PIECE_FREED;
    uint64_t bytes = header->bytes;
    size_t offset = header->offset;
    raw_free(alloc, (unsigned char *)ptr - offset, bytes + offset);
    hri_alloc_refund(alloc, bytes);
    if (alloc != NULL)
        atomic_fetch_add_explicit(&alloc->free_count, 1, memory_order_relaxed);
}

void *hri_malloc(struct hri_alloc *alloc, size_t bytes)
{
    return hri_aligned(alloc, sizeof(struct piece_header), bytes);
}

void *hri_aligned_zero(struct hri_alloc *alloc, size_t alignment, size_t bytes)
{
    void *ptr = hri_aligned(alloc, alignment, bytes);
    if (ptr != NULL)
        memset(ptr, 0, bytes);
    return ptr;
}

void *hri_array(struct hri_alloc *alloc, size_t count, size_t item_bytes)
{
    size_t bytes;
    if (!hri_mul_size(count, item_bytes, &bytes))
        return refuse_memory(alloc, UINT64_MAX);
    return hri_malloc(alloc, bytes);
}

void *hri_calloc(struct hri_alloc *alloc, size_t count, size_t item_bytes)
{
    void *ptr = hri_array(alloc, count, item_bytes);
    if (ptr != NULL)
        memset(ptr, 0, count * item_bytes);
    return ptr;
}

void *hri_realloc(struct hri_alloc *alloc, void *ptr, size_t bytes)
{
    /*
     * Old and new piece exist together for a moment and both count: that is what the memory
     * really does.
     */
    void *moved = hri_malloc(alloc, bytes);
    if (moved == NULL || ptr == NULL)
        return moved;
    uint64_t old_bytes = header_of(ptr)->bytes;
    memcpy(moved, ptr, old_bytes < bytes ? old_bytes : bytes);
    hri_free(alloc, ptr);
    return moved;
}

char *hri_strdup(struct hri_alloc *alloc, const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = hri_malloc(alloc, bytes);
    if (copy != NULL)
        memcpy(copy, text, bytes);
    return copy;
}

size_t hri_page_bytes(void)
{
    long bytes = sysconf(_SC_PAGESIZE);
    return bytes > 0 ? (size_t)bytes : 4096;
}

hr_status_t hri_region_alloc(struct hri_alloc *alloc, size_t bytes, struct hri_region *region_out)
{
    size_t page_bytes = hri_page_bytes();
    if (bytes == 0 || bytes > SIZE_MAX / 2)
        return hri_error_set(HR_ERR_INVALID, "a region of %zu bytes is not possible", bytes);
    size_t usable_bytes = hri_round_up(bytes, page_bytes);
    if (alloc != NULL && must_fail(alloc)) {
        refuse_memory(alloc, usable_bytes);
        return HR_ERR_NOMEM;
    }
    if (!hri_alloc_charge(alloc, usable_bytes))
        return HR_ERR_BUDGET;

    /*
     * mmap aligns to small pages only: one huge page more leaves room to align ourselves. It is
     * never touched.
     */
    bool huge = usable_bytes >= HUGE_PAGE_BYTES;
    size_t mapping_bytes = usable_bytes + (huge ? HUGE_PAGE_BYTES : 0);
    void *mapping =
        mmap(NULL, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        hri_alloc_refund(alloc, usable_bytes);
        refuse_memory(alloc, usable_bytes);
        return HR_ERR_NOMEM;
    }
    void *base = mapping;
    if (huge) {
        base = (void *)(uintptr_t)hri_round_up((uintptr_t)mapping, HUGE_PAGE_BYTES);
        (void)madvise(base, usable_bytes, MADV_HUGEPAGE); /* a wish; small pages work as well */
    }
    if (alloc != NULL)
        atomic_fetch_add_explicit(&alloc->alloc_count, 1, memory_order_relaxed);
    *region_out = (struct hri_region){base, usable_bytes, mapping, mapping_bytes};
    return HR_OK;
}

void hri_region_touch(const struct hri_region *region, size_t first_byte, size_t bytes)
{
    size_t first = first_byte - first_byte % hri_page_bytes();
    if (first_byte > region->bytes || bytes > region->bytes - first_byte || bytes == 0)
        return;
#ifdef MADV_POPULATE_WRITE
    (void)madvise((unsigned char *)region->base + first, first_byte + bytes - first,
                  MADV_POPULATE_WRITE); /* of Linux 5.14; older ones refuse */
#endif
}

void hri_region_free(struct hri_alloc *alloc, struct hri_region *region)
{
    if (region->base == NULL)
        return;
    munmap(region->mapping, region->mapping_bytes);
    hri_alloc_refund(alloc, region->bytes);
    if (alloc != NULL)
        atomic_fetch_add_explicit(&alloc->free_count, 1, memory_order_relaxed);
    *region = (struct hri_region){0};
}
