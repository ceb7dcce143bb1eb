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

/* Its memory may still be written to. */
static void scratch_lose(struct hri_scratch *scratch)
{
    hri_lose(scratch->base);
    scratch->base = NULL;
    scratch->bytes = 0;
}

void hri_scratch_forget(hr_runtime_t *rt)
{
    if (rt->store == NULL || rt->disk_given_up || !hri_store_gave_up(rt->store)) {
        return;
    }
    rt->disk_given_up = true;
    scratch_lose(&rt->stream);
    scratch_lose(&rt->rows);
}

void *hri_scratch_read(hr_runtime_t *rt, struct hri_scratch *scratch, size_t bytes)
{
    hri_scratch_forget(rt);
    return hri_scratch_get(scratch, bytes);
}
