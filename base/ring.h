/*
 * Bounded queues between threads, items copied in and out. Full and empty are answers, not waits.
 *   spsc  one producer, one consumer: wait-free
 *   mpsc  many producers, one consumer: lock-free (Vyukov's bounded queue)
 * Capacity is rounded up to a power of two.
 */
#ifndef HRI_BASE_RING_H
#define HRI_BASE_RING_H

#include "base/alloc.h"

struct hri_spsc {
    /*
     * Each side's counter and its cached view of the other side's share a cache line; the two
     * sides do not.
     */
    _Alignas(64) _Atomic uint32_t head; /* next to pop; written by the consumer */
    uint32_t tail_seen;
    _Alignas(64) _Atomic uint32_t tail; /* next to push; written by the producer */
    uint32_t head_seen;
    _Alignas(64) uint32_t capacity;
    uint32_t item_bytes;
    unsigned char *items; /* [capacity][item_bytes] */
    struct hri_alloc *alloc;
};

hr_status_t hri_spsc_init(struct hri_spsc *ring, struct hri_alloc *alloc, uint32_t capacity,
                          uint32_t item_bytes);
void hri_spsc_fini(struct hri_spsc *ring);
bool hri_spsc_push(struct hri_spsc *ring, const void *item); /* false: full */
bool hri_spsc_pop(struct hri_spsc *ring, void *item_out);    /* false: empty */
uint32_t hri_spsc_count(const struct hri_spsc *ring); /* exact only when both sides are still */

struct hri_mpsc {
    _Alignas(64) _Atomic uint32_t tail;
    _Alignas(64) uint32_t head; /* the consumer's own */
    uint32_t capacity;
    uint32_t item_bytes;
    uint32_t cell_bytes;
    unsigned char *cells; /* [capacity] of { _Atomic uint32_t turn; item } */
    struct hri_alloc *alloc;
};

hr_status_t hri_mpsc_init(struct hri_mpsc *ring, struct hri_alloc *alloc, uint32_t capacity,
                          uint32_t item_bytes);
void hri_mpsc_fini(struct hri_mpsc *ring);
bool hri_mpsc_push(struct hri_mpsc *ring, const void *item);
bool hri_mpsc_pop(struct hri_mpsc *ring, void *item_out);

#endif
