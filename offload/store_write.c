/* Write-behind. A cell stays in memory, in its host slot or in a write buffer, until the disk has
 * it; a write that fails keeps its cells there and is tried again (store_service.c), so that nothing
 * is lost while the process lives. */
#include "offload/store_impl.h"

#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"

#define WAIT_NS 1000000000u

static void free_op(struct hri_store *store, struct hri_op *op)
{
    op->state = HRI_OP_FREE;
    op->next = store->free_writes;
    store->free_writes = op;
}

void hri_write_submit(struct hri_store *store, struct hri_op *op)
{
    struct hri_disk_request *request = &op->request;
    request->write = true;
    request->offset = hri_lane_position(op->lane, op->first_cell);
    request->n_iov = op->n_cells;
    for (uint32_t i = 0; i < op->n_cells; i++)
        request->iov[i] = (struct iovec){op->memory[i], op->lane->cell_bytes};
    op->state = HRI_OP_FLYING;
    op->trial = store->out;
    op->lane->n_writes++;
    bool room = hri_disk_submit(store->write_disk, request);
    HRI_ASSERT(room); /* the disk's depth is the number of write operations */
    (void)room;
    store->counts.file_writes++;
    store->counts.file_bytes_written += (uint64_t)op->n_cells * op->lane->cell_bytes;
}

/* The bytes of a cell are needed no longer by its write. */
static void release_cell(struct hri_store *store, struct hri_op *op, uint32_t i)
{
    struct hri_cell *cell = &op->lane->cells[op->first_cell + i];
    cell->flags &= (uint16_t)~HRI_CELL_DIRTY;
    hri_cell_note(op->lane, op->first_cell + i);
    if (cell->slot != HRI_NONE)
        hri_host_clean(&store->host, cell->slot);
    else if (!op->request.abandoned)
        hri_page_arena_put(&store->write_arena, op->memory[i],
                           op->lane->cell_bytes / HRI_PAGE_BYTES);
}

static void take_finished(struct hri_store *store, struct hri_op *op)
{
    op->lane->n_writes--;
    if (op->request.error != 0) {
        store->write_error = op->request.error;
        op->state = HRI_OP_FAILED;
        hri_op_list_add(&store->failed, op);
        hri_tier_out(store, "writing: %s", strerror(store->write_error));
        return;
    }
    for (uint32_t i = 0; i < op->n_cells; i++)
        release_cell(store, op, i);
    bool trial = op->trial; /* others were under way before the tier failed and tell nothing */
    free_op(store, op);
    if (trial)
        hri_tier_back(store);
}

void hri_write_reap(struct hri_store *store, uint64_t wait_ns)
{
    if (store->write_disk == NULL)
        return;
    struct hri_disk_request *done = hri_disk_reap(store->write_disk, wait_ns);
    while (done != NULL) {
        struct hri_op *op = (struct hri_op *)done;
        done = done->next;
        take_finished(store, op);
    }
}

void hri_write_wait_lane(struct hri_store *store, const struct hri_lane *lane)
{
    while (lane->n_writes > 0)
        hri_write_reap(store, WAIT_NS); /* ends: the disk gives up what gets no answer */
}

/* Time that is left of a wait, in steps of WAIT_NS. 0: it is over, the disk is looked at once more. */
static uint64_t wait_part(uint64_t end_ns)
{
    uint64_t now_ns = hri_now_ns(), left_ns = end_ns > now_ns ? end_ns - now_ns : 0;
    return left_ns < WAIT_NS ? left_ns : WAIT_NS;
}

static hr_status_t late_status(const struct hri_store *store)
{
    return hri_error_set(HR_ERR_TIMEOUT, "file tier: %u writes have no answer after %.1f s",
                         hri_disk_in_flight(store->write_disk), (double)store->timeout_ns * 1e-9);
}

hr_status_t hri_write_wait_all(struct hri_store *store)
{
    uint64_t end_ns = hri_now_ns() + store->timeout_ns;
    while (hri_disk_in_flight(store->write_disk) > 0) {
        uint64_t wait_ns = wait_part(end_ns);
        hri_write_reap(store, wait_ns);
        if (wait_ns == 0 && hri_disk_in_flight(store->write_disk) > 0)
            return late_status(store);
    }
    return HR_OK;
}

/* Something finishes or nothing is under way any more. */
static hr_status_t wait_for_one(struct hri_store *store, uint64_t end_ns)
{
    uint64_t wait_ns = wait_part(end_ns);
    if (hri_disk_in_flight(store->write_disk) == 0)
        return store->failed.first != NULL
                   ? hri_tier_status(store)
                   : hri_error_set(HR_ERR_INTERNAL, "file tier: write buffers were lost");
    hri_write_reap(store, wait_ns);
    if (store->failed.first != NULL)
        return hri_tier_status(store);
    return wait_ns > 0 ? HR_OK : late_status(store);
}

hr_status_t hri_write_buffer(struct hri_store *store, uint32_t bytes, unsigned char **memory_out)
{
    for (uint64_t end_ns = hri_now_ns() + store->timeout_ns;;) {
        *memory_out = hri_page_arena_take(&store->write_arena, bytes / HRI_PAGE_BYTES);
        if (*memory_out != NULL)
            return HR_OK;
        HRI_TRY(wait_for_one(store, end_ns));
    }
}

bool hri_write_fits(const struct hri_op *op, const struct hri_lane *lane, uint32_t cell)
{
    return op != NULL && op->lane == lane && op->first_cell + op->n_cells == cell &&
           op->n_cells < HRI_RUN_CELLS_MAX &&
           (op->n_cells + 1) * lane->cell_bytes <= HRI_RUN_BYTES_MAX &&
           hri_lane_position(lane, cell) == hri_lane_position(lane, cell - 1) + lane->cell_bytes;
}

void hri_write_close(struct hri_store *store, struct hri_op **open_op)
{
    if (*open_op != NULL)
        hri_write_submit(store, *open_op);
    *open_op = NULL;
}

struct hri_op *hri_write_op(struct hri_store *store, struct hri_lane *lane, uint32_t first_cell)
{
    struct hri_op *op = store->free_writes;
    if (op == NULL)
        return NULL;
    store->free_writes = op->next;
    op->lane = lane;
    op->first_cell = first_cell;
    op->n_cells = 0;
    return op;
}

hr_status_t hri_write_add(struct hri_store *store, struct hri_lane *lane, uint32_t cell,
                          unsigned char *memory, struct hri_op **open_op)
{
    if (!hri_write_fits(*open_op, lane, cell)) {
        hri_write_close(store, open_op);
        uint64_t end_ns = hri_now_ns() + store->timeout_ns;
        while (store->free_writes == NULL)
            HRI_TRY(wait_for_one(store, end_ns));
        *open_op = hri_write_op(store, lane, cell);
    }
    struct hri_op *op = *open_op;
    op->memory[op->n_cells++] = memory;
    lane->cells[cell].flags |= HRI_CELL_DIRTY;
    lane->cells[cell].op = (uint16_t)(op - store->ops);
    return HR_OK;
}

/* The cells of a failed write go with their lane or its end; what is left of it stays. */
void hri_write_forget(struct hri_store *store, struct hri_lane *lane, uint32_t n_cells)
{
    struct hri_op *next;
    for (struct hri_op *op = store->failed.first; op != NULL; op = next) {
        next = op->next;
        if (op->lane != lane)
            continue;
        while (op->n_cells > 0 && op->first_cell + op->n_cells > n_cells)
            release_cell(store, op, --op->n_cells);
        if (op->n_cells == 0) {
            hri_op_list_remove(&store->failed, op);
            free_op(store, op);
        }
    }
}
