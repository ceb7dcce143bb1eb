#include "base/pool.h"

#include "base/assert.h"
#include "base/error.h"

hr_status_t hri_object_pool_init(struct hri_object_pool *pool, struct hri_alloc *alloc,
                                 uint32_t capacity, size_t object_bytes, size_t alignment)
{
    if (capacity == 0 || object_bytes == 0)
        return hri_error_set(HR_ERR_INVALID, "an object pool needs a capacity and an object size");
    size_t stride = hri_round_up(object_bytes, alignment);
    size_t bytes;
    if (!hri_mul_size(stride, capacity, &bytes))
        return hri_error_set(HR_ERR_NOMEM, "an object pool of %u objects is too large", capacity);
    unsigned char *base = hri_aligned(alloc, alignment, bytes);
    if (base == NULL)
        return hri_alloc_status();
    uint32_t *free_list = hri_array(alloc, capacity, sizeof *free_list);
    if (free_list == NULL) {
        hri_free(alloc, base);
        return hri_alloc_status();
    }
    /* Object 0 goes out first. */
    for (uint32_t i = 0; i < capacity; i++)
        free_list[i] = capacity - 1 - i;
    *pool = (struct hri_object_pool){base, stride, capacity, capacity, free_list, alloc};
    return HR_OK;
}

void hri_object_pool_fini(struct hri_object_pool *pool)
{
    hri_free(pool->alloc, pool->free_list);
    hri_free(pool->alloc, pool->base);
    *pool = (struct hri_object_pool){0};
}

void *hri_object_pool_get(struct hri_object_pool *pool)
{
    if (pool->free_count == 0)
        return NULL;
    return hri_object_pool_at(pool, pool->free_list[--pool->free_count]);
}

void hri_object_pool_put(struct hri_object_pool *pool, void *object)
{
    HRI_ASSERT(pool->free_count < pool->capacity);
    pool->free_list[pool->free_count++] = hri_object_pool_index(pool, object);
}

uint32_t hri_object_pool_index(const struct hri_object_pool *pool, const void *object)
{
    size_t offset = (size_t)((const unsigned char *)object - pool->base);
    HRI_ASSERT(offset % pool->object_bytes == 0 && offset / pool->object_bytes < pool->capacity);
    return (uint32_t)(offset / pool->object_bytes);
}

void *hri_object_pool_at(const struct hri_object_pool *pool, uint32_t index)
{
    HRI_ASSERT(index < pool->capacity);
    return pool->base + (size_t)index * pool->object_bytes;
}
