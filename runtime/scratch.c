/* Working memory that grows to the largest use and stays: steady state does not allocate. */
#include "runtime/sequence.h"

void *hri_scratch_get(struct hri_scratch *scratch, size_t bytes)
{
    if (bytes <= scratch->bytes) {
        return scratch->base;
    }
    hri_free(scratch->alloc, scratch->base);
    scratch->bytes = 0;
    scratch->base = hri_aligned(scratch->alloc, HRI_PAGE_BYTES, bytes);
    if (scratch->base != NULL) {
        scratch->bytes = bytes;
    }
    return scratch->base;
}

void hri_scratch_fini(struct hri_scratch *scratch)
{
    hri_free(scratch->alloc, scratch->base);
    scratch->base = NULL;
    scratch->bytes = 0;
}
