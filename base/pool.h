/*
 * A fixed number of equal objects, handed out and taken back in constant time without allocating.
 * The memory is one run, allocated at init. One thread at a time.
 */
#ifndef HRI_BASE_POOL_H
#define HRI_BASE_POOL_H

#include "base/alloc.h"

struct hri_object_pool {
    unsigned char *base;
    size_t object_bytes; /* rounded up to the alignment */
    uint32_t capacity;
    uint32_t free_count;
    uint32_t *free_list; /* [capacity] indices; of the first free_count the last goes out next */
    struct hri_alloc *alloc;
};

hr_status_t hri_object_pool_init(struct hri_object_pool *pool, struct hri_alloc *alloc,
                                 uint32_t capacity, size_t object_bytes, size_t alignment);
void hri_object_pool_fini(struct hri_object_pool *pool);

/* NULL when all are out. The contents are undefined. */
void *hri_object_pool_get(struct hri_object_pool *pool);
void hri_object_pool_put(struct hri_object_pool *pool, void *object);

/* Objects also have stable numbers, 0 to capacity - 1. */
uint32_t hri_object_pool_index(const struct hri_object_pool *pool, const void *object);
void *hri_object_pool_at(const struct hri_object_pool *pool, uint32_t index);

#endif
