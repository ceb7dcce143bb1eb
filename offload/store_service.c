/* A file tier that fails is taken out of service, with one log line: new cells stay in the host tier, as far as it has room, and reads go
 * on, since a disk that is full or cannot be written may still be read. Once a second, and before an append fails for want of room, a
 * write is tried again; when one comes through, the others follow and the tier is back. A file that gave no answer is dead for good: what
 * the host tier has of it is then the only copy and stays. */
#include "offload/store_impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"

#define RETRY_NS 1000000000u

static bool is_dead(const struct hri_store *store)
{
    return hri_disk_broken(store->read_disk) || hri_disk_broken(store->write_disk) ||
           hri_io_guard_gave_up(store->guard);
}

void hri_tier_out(struct hri_store *store, const char *why, ...)
{
    store->host.sole |= is_dead(store);
    if (store->out)
        return;
    va_list args;
    va_start(args, why);
    vsnprintf(store->out_why, sizeof store->out_why, why, args);
    va_end(args);
    store->out = true;
    store->retry_ns = hri_now_ns() + RETRY_NS;
    hri_log_warn(store->log, "file tier: out of service: %s; new rows stay in host memory",
                 store->out_why);
}

hr_status_t hri_tier_status(const struct hri_store *store)
{
    const struct hri_op *op = store->failed.first;
    if (op == NULL)
        return hri_error_set(HR_ERR_IO, "file tier: out of service: %s; the host tier is full",
                             store->out_why);
    return hri_error_set(HR_ERR_IO, "file tier: write of lane %llx, cells %u to %u: %s",
                         (unsigned long long)op->lane->tag, op->first_cell,
                         op->first_cell + op->n_cells - 1, strerror(store->write_error));
}

void hri_tier_keep(struct hri_lane *lane, uint32_t cell)
{
    lane->cells[cell].flags |= HRI_CELL_DIRTY | HRI_CELL_UNWRITTEN;
    lane->n_unwritten++;
    lane->store->n_unwritten++;
}

void hri_tier_unkeep(struct hri_lane *lane, uint32_t cell)
{
    lane->cells[cell].flags &= (uint16_t)~HRI_CELL_UNWRITTEN;
    lane->n_unwritten--;
    lane->store->n_unwritten--;
}

static hr_status_t start_lane(struct hri_store *store, struct hri_lane *lane, uint32_t most)
{
    struct hri_op *open_op = NULL;
    hr_status_t status = hri_lane_grow(lane, lane->n_cells);
    for (uint32_t i = lane->base_cells;
         status == HR_OK && i < lane->n_cells && lane->n_unwritten > 0; i++) {
        if (!(lane->cells[i].flags & HRI_CELL_UNWRITTEN))
            continue;
        if (!hri_write_fits(open_op, lane, i)) {
            hri_write_close(store, &open_op);
            open_op = most-- > 0 ? hri_write_op(store, lane, i) : NULL;
            if (open_op == NULL)
                break;
        }
        hri_tier_unkeep(lane, i);
        lane->cells[i].op = (uint16_t)(open_op - store->ops);
        open_op->memory[open_op->n_cells++] = hri_cell_memory(lane, i);
    }
    hri_write_close(store, &open_op);
    return status;
}

/* Starts writes of cells that stayed in memory, at most so many and as many as there are operations for. */
static hr_status_t start_unwritten(struct hri_store *store, uint32_t most)
{
    hr_status_t status = HR_OK;
    for (struct hri_lane *lane = store->lanes;
         lane != NULL && status == HR_OK && store->n_unwritten > 0 && store->free_writes != NULL;
         lane = lane->next)
        if (lane->n_unwritten > 0)
            status = start_lane(store, lane, most);
    return status;
}

static void retry_failed(struct hri_store *store, uint32_t most)
{
    struct hri_op_list again = store->failed;
    store->failed = (struct hri_op_list){NULL, NULL};
    for (; again.first != NULL && most > 0; most--) {
        struct hri_op *op = again.first;
        hri_op_list_remove(&again, op);
        hri_write_submit(store, op);
        store->counts.retries++;
    }
    while (again.first != NULL) {
        struct hri_op *op = again.first;
        hri_op_list_remove(&again, op);
        hri_op_list_add(&store->failed, op);
    }
}

void hri_tier_back(struct hri_store *store)
{
    if (!store->out || is_dead(store))
        return;
    store->out = false;
    hri_log_warn(store->log, "file tier: in service again");
    retry_failed(store, UINT32_MAX);
    (void)start_unwritten(store, UINT32_MAX); /* the rest with the next appends */
}

void hri_tier_try(struct hri_store *store)
{
    if (!store->out) {
        if (store->n_unwritten > 0)
            (void)start_unwritten(store, UINT32_MAX);
        return;
    }
    if (is_dead(store) || hri_now_ns() < store->retry_ns)
        return;
    store->retry_ns = hri_now_ns() + RETRY_NS;
    if (store->failed.first != NULL)
        retry_failed(store, 1);
    else if (store->n_unwritten > 0)
        (void)start_unwritten(store, 1);
    else
        hri_tier_back(store); /* all that failed is gone: the next write will tell */
    hri_disk_flush(store->write_disk);
}

hr_status_t hri_tier_flush(struct hri_store *store)
{
    do {
        retry_failed(store, UINT32_MAX);
        hr_status_t status = start_unwritten(store, UINT32_MAX);
        if (status == HR_OK)
            status = hri_write_wait_all(store);
        if (status != HR_OK)
            return status;
        if (store->failed.first != NULL)
            return hri_tier_status(store);
    } while (store->n_unwritten > 0);
    hri_tier_back(store);
    return store->out ? hri_tier_status(store) : HR_OK;
}
