#include "base/ring.h"

#include <string.h>

#include "base/error.h"

#define RING_CAPACITY_MAX (1u << 30)

static hr_status_t ring_capacity(uint32_t capacity, uint32_t item_bytes, uint32_t *capacity_out)
{
    if (capacity == 0 || capacity > RING_CAPACITY_MAX || item_bytes == 0)
        return hri_error_set(HR_ERR_INVALID, "a ring of %u items of %u bytes is not possible",
                             capacity, item_bytes);
    uint32_t power = 1;
    while (power < capacity)
        power *= 2;
    *capacity_out = power;
    return HR_OK;
}

hr_status_t hri_spsc_init(struct hri_spsc *ring, struct hri_alloc *alloc, uint32_t capacity,
                          uint32_t item_bytes)
{
    uint32_t power = 0;
    HRI_TRY(ring_capacity(capacity, item_bytes, &power));
    unsigned char *items = hri_array(alloc, power, item_bytes);
    if (items == NULL)
        return hri_alloc_status();
    memset(ring, 0, sizeof *ring);
    ring->capacity = power;
    ring->item_bytes = item_bytes;
    ring->items = items;
    ring->alloc = alloc;
    return HR_OK;
}

void hri_spsc_fini(struct hri_spsc *ring)
{
    hri_free(ring->alloc, ring->items);
    memset(ring, 0, sizeof *ring);
}

static unsigned char *spsc_item(const struct hri_spsc *ring, uint32_t index)
{
    return ring->items + (size_t)(index & (ring->capacity - 1)) * ring->item_bytes;
}

bool hri_spsc_push(struct hri_spsc *ring, const void *item)
{
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (tail - ring->head_seen == ring->capacity) {
        ring->head_seen = atomic_load_explicit(&ring->head, memory_order_acquire);
        if (tail - ring->head_seen == ring->capacity)
            return false;
    }
    memcpy(spsc_item(ring, tail), item, ring->item_bytes);
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
    return true;
}

bool hri_spsc_pop(struct hri_spsc *ring, void *item_out)
{
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    if (head == ring->tail_seen) {
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
        if (head == ring->tail_seen)
            return false;
    }
    memcpy(item_out, spsc_item(ring, head), ring->item_bytes);
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);
    return true;
}

uint32_t hri_spsc_count(const struct hri_spsc *ring)
{
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
    return atomic_load_explicit(&ring->tail, memory_order_acquire) - head;
}

/*
 * A cell's turn says whose it is: turn == position means free for the push of that position,
 * position + 1 means filled, and the pop sets it to position + capacity, the next round's push.
 */
struct mpsc_cell {
    _Atomic uint32_t turn;
    uint32_t unused;
};

_Static_assert(sizeof(struct mpsc_cell) == 8, "the item behind it stays aligned to 8");

static struct mpsc_cell *mpsc_cell(const struct hri_mpsc *ring, uint32_t position)
{
    size_t index = position & (ring->capacity - 1);
    return (struct mpsc_cell *)(void *)(ring->cells + index * ring->cell_bytes);
}

hr_status_t hri_mpsc_init(struct hri_mpsc *ring, struct hri_alloc *alloc, uint32_t capacity,
                          uint32_t item_bytes)
{
    uint32_t power = 0;
    HRI_TRY(ring_capacity(capacity, item_bytes, &power));
    if (power == 1)
        power = 2; /* with one cell, filled and free-for-the-next-round would be the same turn */
    uint32_t cell_bytes =
        (uint32_t)hri_round_up(sizeof(struct mpsc_cell) + (uint64_t)item_bytes, 8);
    unsigned char *cells = hri_array(alloc, power, cell_bytes);
    if (cells == NULL)
        return hri_alloc_status();
    memset(ring, 0, sizeof *ring);
    ring->capacity = power;
    ring->item_bytes = item_bytes;
    ring->cell_bytes = cell_bytes;
    ring->cells = cells;
    ring->alloc = alloc;
    for (uint32_t i = 0; i < power; i++)
        atomic_init(&mpsc_cell(ring, i)->turn, i);
    return HR_OK;
}

void hri_mpsc_fini(struct hri_mpsc *ring)
{
    hri_free(ring->alloc, ring->cells);
    memset(ring, 0, sizeof *ring);
}

bool hri_mpsc_push(struct hri_mpsc *ring, const void *item)
{
    uint32_t position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    struct mpsc_cell *cell;
    for (;;) {
        cell = mpsc_cell(ring, position);
        uint32_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        int32_t ahead = (int32_t)(turn - position);
        if (ahead < 0)
            return false;
        if (ahead > 0)
            position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
        else if (atomic_compare_exchange_weak_explicit(&ring->tail, &position, position + 1,
                                                       memory_order_relaxed, memory_order_relaxed))
            break;
    }
    memcpy(cell + 1, item, ring->item_bytes);
    atomic_store_explicit(&cell->turn, position + 1, memory_order_release);
    return true;
}

bool hri_mpsc_pop(struct hri_mpsc *ring, void *item_out)
{
    struct mpsc_cell *cell = mpsc_cell(ring, ring->head);
    if (atomic_load_explicit(&cell->turn, memory_order_acquire) != ring->head + 1)
        return false;
    memcpy(item_out, cell + 1, ring->item_bytes);
    atomic_store_explicit(&cell->turn, ring->head + ring->capacity, memory_order_release);
    ring->head++;
    return true;
}
