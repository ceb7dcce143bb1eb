#include "offload/store_impl.h"

#include "base/assert.h"
#include "base/error.h"

#define SLAB_BYTES_MAX HRI_CELL_BYTES_MAX
#define SLABS_WANTED   8u
#define STEAL_TRIES    8u /* slabs of another class looked at before giving up */

/* 1 MiB, smaller where the budget has no room for eight of them. */
static uint32_t slab_bytes_for(uint64_t bytes)
{
    uint32_t slab = SLAB_BYTES_MAX;
    while (slab > HRI_PAGE_BYTES && bytes / slab < SLABS_WANTED)
        slab /= 2;
    return slab;
}

static hr_status_t alloc_tables(struct hri_store *store)
{
    struct hri_host *host = &store->host;
    host->slabs = hri_calloc(store->alloc, host->n_slabs, sizeof *host->slabs);
    if (host->slabs == NULL)
        return hri_alloc_status();
    size_t n_slots = (size_t)host->n_slabs * host->slab_stride;
    HRI_TRY(hri_region_alloc(store->alloc, n_slots * sizeof *host->slots, &host->slot_region));
    host->slots = host->slot_region.base;
    return HR_OK;
}

hr_status_t hri_host_init(struct hri_store *store, uint64_t bytes)
{
    struct hri_host *host = &store->host;
    hri_alloc_init(&host->alloc, "host tier", bytes, NULL);
    host->slab_bytes = slab_bytes_for(bytes);
    host->n_slabs = (uint32_t)(bytes / host->slab_bytes);
    host->slab_stride = host->slab_bytes / HRI_PAGE_BYTES;
    host->free_slab = HRI_NONE;
    if (bytes / host->slab_bytes > HRI_NONE / host->slab_stride)
        return hri_error_set(HR_ERR_INVALID, "host_bytes %llu: more than 16 TiB",
                             (unsigned long long)bytes);
    if (host->n_slabs == 0)
        return HR_OK;
    HRI_TRY(
        hri_region_alloc(&host->alloc, (size_t)host->n_slabs * host->slab_bytes, &host->region));
    HRI_TRY(alloc_tables(store));
    for (uint32_t i = host->n_slabs; i-- > 0;) {
        host->slabs[i].class_index = HRI_NONE;
        host->slabs[i].next = host->free_slab;
        host->free_slab = i;
    }
    return HR_OK;
}

void hri_host_fini(struct hri_store *store)
{
    struct hri_host *host = &store->host;
    hri_region_free(store->alloc, &host->slot_region);
    hri_free(store->alloc, host->slabs);
    /* A write that was given up may still read from here; its pages are left mapped. */
    if (!store->write_arena.leak)
        hri_region_free(&host->alloc, &host->region);
}

hr_status_t hri_host_class_get(struct hri_host *host, uint32_t cell_bytes, uint32_t *class_out)
{
    uint32_t at = HRI_NONE;
    for (uint32_t i = HRI_CLASSES_MAX; i-- > 0;)
        if (host->classes[i].cell_bytes == 0)
            at = i;
    for (uint32_t i = 0; i < HRI_CLASSES_MAX; i++)
        if (host->classes[i].cell_bytes == cell_bytes)
            at = i;
    if (at == HRI_NONE)
        return hri_error_set(HR_ERR_FULL, "host tier: more than %u different cell sizes",
                             HRI_CLASSES_MAX);
    struct hri_slot_class *class = &host->classes[at];
    if (class->cell_bytes == 0) {
        class->cell_bytes = cell_bytes;
        class->slab_slots = host->slab_bytes / cell_bytes;
        class->partial = HRI_NONE;
        for (uint32_t q = 0; q < HRI_PRIORITIES; q++)
            class->clean[q] = (struct hri_slot_list){HRI_NONE, HRI_NONE};
    }
    class->n_lanes++;
    *class_out = at;
    return HR_OK;
}

/* The last lane is gone and with it every slot, so that no slab belongs to the class any more. */
void hri_host_class_put(struct hri_host *host, uint32_t class_index)
{
    struct hri_slot_class *class = &host->classes[class_index];
    if (--class->n_lanes == 0)
        class->cell_bytes = 0;
}

unsigned char *hri_host_memory(const struct hri_host *host, uint32_t slot)
{
    uint32_t slab = slot / host->slab_stride, place = slot % host->slab_stride;
    size_t cell_bytes = host->classes[host->slabs[slab].class_index].cell_bytes;
    return (unsigned char *)host->region.base + (size_t)slab * host->slab_bytes +
           place * cell_bytes;
}

/* ---------------------------------------------------------------------------------------- lists */

static struct hri_slot_list *list_of(struct hri_host *host, uint32_t slot)
{
    const struct hri_lane *lane = host->slots[slot].lane;
    return &host->classes[lane->class_index].clean[lane->priority];
}

void hri_host_clean(struct hri_host *host, uint32_t slot)
{
    struct hri_slot *entry = &host->slots[slot];
    struct hri_slot_list *list = list_of(host, slot);
    entry->tick = ++host->tick;
    entry->next = HRI_NONE;
    entry->prev = list->newest;
    if (list->newest != HRI_NONE)
        host->slots[list->newest].next = slot;
    else
        list->oldest = slot;
    list->newest = slot;
}

void hri_host_unclean(struct hri_host *host, uint32_t slot)
{
    struct hri_slot *entry = &host->slots[slot];
    struct hri_slot_list *list = list_of(host, slot);
    if (entry->prev != HRI_NONE)
        host->slots[entry->prev].next = entry->next;
    else
        list->oldest = entry->next;
    if (entry->next != HRI_NONE)
        host->slots[entry->next].prev = entry->prev;
    else
        list->newest = entry->prev;
}

void hri_host_touch(struct hri_host *host, uint32_t slot)
{
    hri_host_unclean(host, slot);
    hri_host_clean(host, slot);
}

static void link_partial(struct hri_host *host, uint32_t slab)
{
    struct hri_slot_class *class = &host->classes[host->slabs[slab].class_index];
    host->slabs[slab].prev = HRI_NONE;
    host->slabs[slab].next = class->partial;
    if (class->partial != HRI_NONE)
        host->slabs[class->partial].prev = slab;
    class->partial = slab;
}

static void unlink_partial(struct hri_host *host, uint32_t slab)
{
    struct hri_slab *entry = &host->slabs[slab];
    if (entry->prev != HRI_NONE)
        host->slabs[entry->prev].next = entry->next;
    else
        host->classes[entry->class_index].partial = entry->next;
    if (entry->next != HRI_NONE)
        host->slabs[entry->next].prev = entry->prev;
}

/* ---------------------------------------------------------------------------------------- slots */

static void assign_slab(struct hri_host *host, uint32_t slab, uint32_t class_index)
{
    struct hri_slab *entry = &host->slabs[slab];
    uint32_t base = slab * host->slab_stride, n = host->classes[class_index].slab_slots;
    entry->class_index = class_index;
    entry->n_used = 0;
    entry->free_slot = base;
    for (uint32_t i = 0; i < n; i++) {
        host->slots[base + i].lane = NULL;
        host->slots[base + i].next = i + 1 < n ? base + i + 1 : HRI_NONE;
    }
    link_partial(host, slab);
}

static uint32_t take_from_slab(struct hri_host *host, uint32_t slab, struct hri_lane *lane,
                               uint32_t cell)
{
    struct hri_slab *entry = &host->slabs[slab];
    uint32_t slot = entry->free_slot;
    entry->free_slot = host->slots[slot].next;
    entry->n_used++;
    if (entry->free_slot == HRI_NONE)
        unlink_partial(host, slab);
    host->slots[slot].lane = lane;
    host->slots[slot].cell = cell;
    host->held_bytes += lane->cell_bytes;
    if (host->held_bytes > host->peak_bytes)
        host->peak_bytes = host->held_bytes;
    return slot;
}

void hri_host_put(struct hri_host *host, uint32_t slot)
{
    uint32_t slab = slot / host->slab_stride;
    struct hri_slab *entry = &host->slabs[slab];
    host->held_bytes -= host->slots[slot].lane->cell_bytes;
    host->slots[slot].lane = NULL;
    host->slots[slot].next = entry->free_slot;
    if (entry->free_slot == HRI_NONE)
        link_partial(host, slab);
    entry->free_slot = slot;
    if (--entry->n_used > 0)
        return;
    unlink_partial(host, slab);
    entry->class_index = HRI_NONE;
    entry->next = host->free_slab;
    host->free_slab = slab;
}

static void evict(struct hri_host *host, uint32_t slot)
{
    struct hri_slot *entry = &host->slots[slot];
    entry->lane->cells[entry->cell].slot = HRI_NONE;
    hri_cell_note(entry->lane, entry->cell);
    hri_host_unclean(host, slot);
    hri_host_put(host, slot);
}

static bool slot_evictable(const struct hri_host *host, uint32_t slot, uint32_t priority)
{
    const struct hri_slot *entry = &host->slots[slot];
    return entry->lane == NULL || (entry->lane->priority <= priority &&
                                   !(entry->lane->cells[entry->cell].flags & HRI_CELL_DIRTY));
}

/* Frees the slab of slot if nothing in it must stay. */
static bool evict_slab(struct hri_host *host, uint32_t slot, uint32_t priority)
{
    uint32_t slab = slot / host->slab_stride, base = slab * host->slab_stride;
    uint32_t n = host->classes[host->slabs[slab].class_index].slab_slots;
    for (uint32_t i = base; i < base + n; i++)
        if (!slot_evictable(host, i, priority))
            return false;
    for (uint32_t i = base; i < base + n; i++)
        if (host->slots[i].lane != NULL)
            evict(host, i);
    return true;
}

/* The class, other than own, whose clean cells of this priority have waited longest. */
static uint32_t oldest_other_class(const struct hri_host *host, uint32_t own, uint32_t priority)
{
    uint32_t found = HRI_NONE;
    uint64_t tick = UINT64_MAX;
    for (uint32_t i = 0; i < HRI_CLASSES_MAX; i++) {
        const struct hri_slot_class *class = &host->classes[i];
        if (i == own || class->cell_bytes == 0 || class->clean[priority].oldest == HRI_NONE)
            continue;
        if (host->slots[class->clean[priority].oldest].tick < tick) {
            tick = host->slots[class->clean[priority].oldest].tick;
            found = i;
        }
    }
    return found;
}

static bool steal_slab(struct hri_host *host, uint32_t from, uint32_t victim_priority,
                       uint32_t priority)
{
    uint32_t slot = host->classes[from].clean[victim_priority].oldest;
    for (uint32_t i = 0; i < STEAL_TRIES && slot != HRI_NONE; i++) {
        uint32_t next = host->slots[slot].next;
        if (evict_slab(host, slot, priority))
            return true;
        slot = next;
    }
    return false;
}

/* Low priorities give way first, then what was used longest ago; another class loses a whole slab.
 */
static bool make_room(struct hri_host *host, const struct hri_lane *lane)
{
    const struct hri_slot_class *class = &host->classes[lane->class_index];
    for (uint32_t q = 0; q <= lane->priority; q++) {
        uint32_t own = class->clean[q].oldest;
        uint32_t other = oldest_other_class(host, lane->class_index, q);
        bool own_first =
            own != HRI_NONE &&
            (other == HRI_NONE ||
             host->slots[own].tick < host->slots[host->classes[other].clean[q].oldest].tick);
        if (!own_first && other != HRI_NONE && steal_slab(host, other, q, lane->priority))
            return true;
        if (own != HRI_NONE) {
            evict(host, own);
            return true;
        }
    }
    return false;
}

uint32_t hri_host_take(struct hri_host *host, struct hri_lane *lane, uint32_t cell)
{
    struct hri_slot_class *class = &host->classes[lane->class_index];
    if (class->slab_slots == 0 || host->n_slabs == 0)
        return HRI_NONE;
    if (class->partial == HRI_NONE && host->free_slab == HRI_NONE &&
        (host->sole || !make_room(host, lane)))
        return HRI_NONE;
    if (class->partial == HRI_NONE) {
        uint32_t slab = host->free_slab;
        host->free_slab = host->slabs[slab].next;
        assign_slab(host, slab, lane->class_index);
    }
    return take_from_slab(host, class->partial, lane, cell);
}
