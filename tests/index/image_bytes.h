/* An image of a head in memory. */
#ifndef TESTS_INDEX_IMAGE_BYTES_H
#define TESTS_INDEX_IMAGE_BYTES_H

#include <stdlib.h>
#include <string.h>

#include "index/image.h"

struct bytes {
    unsigned char *data;
    size_t n, at, capacity;
};

static inline hr_status_t bytes_out(void *context, void *data, size_t n)
{
    struct bytes *b = context;
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n);
        b->data = realloc(b->data, b->capacity);
    }
    memcpy(b->data + b->n, data, n);
    b->n += n;
    return HR_OK;
}

static inline hr_status_t bytes_in(void *context, void *data, size_t n)
{
    struct bytes *b = context;
    if (n > b->n - b->at)
        return HR_ERR_CORRUPT;
    memcpy(data, b->data + b->at, n);
    b->at += n;
    return HR_OK;
}

#endif
