/*
 * Reads. A batch walks its reads; cells in memory are copied at once, every other (read, cell) pair
 * becomes a piece. Pieces of one cell hang on one op, pieces of neighbouring cells join it while it
 * waits for the disk. When an op gets its place, each of its cells is aimed at a caller's memory if
 * one wants the whole cell and it is aligned, else at a bounce buffer. What arrived is checked,
 * then handed to all its pieces. Cells that failed are read once more, one by one.
 */
#include "offload/store_impl.h"

#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "base/checksum.h"
#include "base/clock.h"
#include "base/error.h"

#define WAIT_NS 1000000000u

static const char *text_of(int error)
{
    return error == EILSEQ ? "checksum does not fit" : strerror(error);
}

/* ---------------------------------------------------------------------------------------- queue */

static void free_op(struct hri_store *store, struct hri_op *op)
{
    if (op->bounce != NULL && !op->request.abandoned)
        hri_page_arena_put(&store->read_arena, op->bounce, op->bounce_pages);
    op->bounce = NULL;
    store->n_kept_wanted -= op->keep;
    op->lane->n_reads--;
    op->state = HRI_OP_FREE;
    op->next = store->free_reads;
    store->free_reads = op;
}

/* --------------------------------------------------------------------------------------- pieces */

static void free_piece(struct hri_store *store, uint32_t piece)
{
    store->pieces[piece].next = store->free_piece;
    store->free_piece = piece;
}

static uint32_t part_bytes(const struct hri_read *read)
{
    uint32_t cell_bytes = read->lane->cell_bytes;
    if (read->n_cells > 1)
        return cell_bytes;
    return read->bytes ? read->bytes : cell_bytes - read->offset;
}

static unsigned char *target_of(const struct hri_read *read, uint32_t cell)
{
    return (unsigned char *)read->dst + (size_t)(cell - read->cell) * read->lane->cell_bytes;
}

static void cell_arrived(struct hri_read_batch *batch, struct hri_read *read)
{
    if (--read->n_pending > 0)
        return;
    read->done = true;
    batch->n_pending--;
}

static void deliver(struct hri_read_batch *batch, struct hri_read *read, uint32_t cell,
                    const unsigned char *memory)
{
    unsigned char *target = target_of(read, cell);
    if (target != memory)
        memcpy(target, memory + (read->n_cells > 1 ? 0 : read->offset), part_bytes(read));
    cell_arrived(batch, read);
}

static void fail(struct hri_read_batch *batch, struct hri_read *read, uint32_t cell, int error)
{
    if (read->status == HR_OK || cell < read->bad_cell)
        read->bad_cell = cell;
    if (read->status != HR_ERR_IO)
        read->status = error == EILSEQ ? HR_ERR_CORRUPT : HR_ERR_IO;
    batch->error = error;
    if (!read->lane->store->said_lost)
        hri_log_warn(read->lane->store->log, "file tier: lane %llx: cell %u cannot be read: %s",
                     (unsigned long long)read->lane->tag, cell, text_of(error));
    read->lane->store->said_lost = true;
    cell_arrived(batch, read);
}

/* ---------------------------------------------------------------------------------------- start */

static bool joins(const struct hri_op *op, uint32_t low, uint32_t high)
{
    const struct hri_lane *lane = op->lane;
    return op->state == HRI_OP_QUEUED && op->n_cells < HRI_RUN_CELLS_MAX &&
           (op->n_cells + 1) * lane->cell_bytes <= HRI_RUN_BYTES_MAX &&
           hri_lane_position(lane, high) == hri_lane_position(lane, low) + lane->cell_bytes;
}

/* The waiting op that the cell extends at its end or its beginning. */
static struct hri_op *find_neighbour(struct hri_store *store, const struct hri_lane *lane,
                                     uint32_t cell)
{
    if (cell > 0 && (lane->cells[cell - 1].flags & HRI_CELL_READING)) {
        struct hri_op *op = &store->ops[lane->cells[cell - 1].op];
        if (joins(op, cell - 1, cell))
            return op;
    }
    if (cell + 1 < lane->n_cells && (lane->cells[cell + 1].flags & HRI_CELL_READING)) {
        struct hri_op *op = &store->ops[lane->cells[cell + 1].op];
        if (joins(op, cell, cell + 1))
            return op;
    }
    return NULL;
}

static struct hri_op *new_op(struct hri_store *store, struct hri_lane *lane, uint32_t cell)
{
    struct hri_op *op = store->free_reads;
    if (op == NULL)
        return NULL;
    store->free_reads = op->next;
    op->lane = lane;
    op->state = HRI_OP_QUEUED;
    op->first_cell = cell;
    op->n_cells = 0;
    op->pieces = HRI_NONE;
    op->solo = HRI_NONE;
    op->keep = false;
    op->good_mask = 0;
    op->bounce = NULL;
    op->request.abandoned = false;
    lane->n_reads++;
    hri_op_list_add(&store->queue, op);
    return op;
}

/* The op that will bring the cell: one under way, a waiting neighbour, or a new one. NULL: none is
 * free. */
static struct hri_op *op_for(struct hri_store *store, struct hri_read_batch *batch,
                             struct hri_lane *lane, uint32_t cell)
{
    struct hri_cell *entry = &lane->cells[cell];
    if (entry->flags & HRI_CELL_READING)
        return &store->ops[entry->op];
    struct hri_op *op = find_neighbour(store, lane, cell);
    if (op == NULL) {
        op = new_op(store, lane, cell);
        if (op == NULL)
            return NULL;
        batch->ios++;
    }
    if (cell < op->first_cell)
        op->first_cell = cell;
    op->n_cells++;
    entry->flags |= HRI_CELL_READING;
    entry->op = (uint16_t)(op - store->ops);
    batch->bytes_from_file += lane->cell_bytes;
    return op;
}

/* False when a fixed pool is empty: the batch goes on from here later. */
static bool begin_cell(struct hri_store *store, struct hri_read_batch *batch, struct hri_read *read,
                       uint32_t cell)
{
    struct hri_lane *lane = hri_lane_of(read->lane, cell);
    const unsigned char *memory = hri_lane_peek(lane, cell);
    if (memory != NULL) {
        batch->bytes_from_host += part_bytes(read);
        if (batch->leave_host && read->n_cells == 1) {
            read->from = memory + read->offset;
            cell_arrived(batch, read);
        } else {
            deliver(batch, read, cell, memory);
        }
        return true;
    }
    if (store->free_piece == HRI_NONE)
        return false;
    struct hri_op *op = op_for(store, batch, lane, cell);
    if (op == NULL)
        return false;
    uint32_t piece = store->free_piece;
    store->free_piece = store->pieces[piece].next;
    store->pieces[piece] = (struct hri_piece){batch, read, cell, op->pieces};
    op->pieces = piece;
    read->tier = HR_TIER_FILE;
    return true;
}

static void begin_reads(struct hri_store *store, struct hri_read_batch *batch)
{
    while (batch->n_begun < batch->n_reads) {
        struct hri_read *read = &batch->reads[batch->n_begun];
        while (batch->cells_begun < read->n_cells) {
            if (!begin_cell(store, batch, read, read->cell + batch->cells_begun))
                return;
            batch->cells_begun++;
        }
        batch->cells_begun = 0;
        batch->n_begun++;
    }
}

/* --------------------------------------------------------------------------------------- submit */

static bool direct_target(const struct hri_store *store, const struct hri_piece *piece)
{
    const struct hri_read *read = piece->read;
    if (piece->batch->indirect || part_bytes(read) != read->lane->cell_bytes)
        return false;
    return !store->file.direct ||
           (uintptr_t)target_of(read, piece->cell) % store->file.memory_align == 0;
}

/* Decides where each cell goes. False when the bounce buffers are used up. */
static bool aim(struct hri_store *store, struct hri_op *op)
{
    memset(op->memory, 0, op->n_cells * sizeof op->memory[0]);
    uint32_t n_bounce = op->n_cells;
    for (uint32_t i = op->pieces; i != HRI_NONE; i = store->pieces[i].next) {
        const struct hri_piece *piece = &store->pieces[i];
        unsigned char **memory = &op->memory[piece->cell - op->first_cell];
        if (*memory != NULL || !direct_target(store, piece))
            continue;
        *memory = target_of(piece->read, piece->cell);
        n_bounce--;
    }
    if (n_bounce == 0)
        return true;
    uint32_t cell_pages = op->lane->cell_bytes / HRI_PAGE_BYTES;
    unsigned char *bounce = hri_page_arena_take(&store->read_arena, n_bounce * cell_pages);
    if (bounce == NULL)
        return false;
    op->bounce = bounce;
    op->bounce_pages = n_bounce * cell_pages;
    for (uint32_t i = 0; i < op->n_cells; i++) {
        if (op->memory[i] != NULL)
            continue;
        op->memory[i] = bounce;
        bounce += op->lane->cell_bytes;
    }
    return true;
}

static void fill_request(struct hri_op *op, uint32_t first, uint32_t n)
{
    struct hri_disk_request *request = &op->request;
    uint32_t cell_bytes = op->lane->cell_bytes;
    request->write = false;
    request->offset = hri_lane_position(op->lane, op->first_cell + first);
    request->n_iov = 0;
    for (uint32_t i = first; i < first + n; i++) {
        struct iovec *last = request->n_iov ? &request->iov[request->n_iov - 1] : NULL;
        if (last != NULL && (unsigned char *)last->iov_base + last->iov_len == op->memory[i])
            last->iov_len += cell_bytes;
        else
            request->iov[request->n_iov++] = (struct iovec){op->memory[i], cell_bytes};
    }
}

static bool submit(struct hri_store *store, struct hri_op *op)
{
    if (op->state == HRI_OP_AGAIN)
        fill_request(op, op->solo, 1);
    else if (aim(store, op))
        fill_request(op, 0, op->n_cells);
    else
        return false;
    hri_op_list_remove(&store->queue, op);
    op->state = HRI_OP_FLYING;
    bool room = hri_disk_submit(store->read_disk, &op->request);
    HRI_ASSERT(room);
    (void)room;
    store->counts.file_reads++;
    return true;
}

static void submit_queue(struct hri_store *store)
{
    bool any = false;
    while (store->queue.first != NULL && hri_disk_room(store->read_disk) > 0 &&
           submit(store, store->queue.first))
        any = true;
    if (any)
        hri_disk_flush(store->read_disk);
}

/* --------------------------------------------------------------------------------------- arrive */

static void keep_copy(struct hri_store *store, struct hri_lane *lane, uint32_t cell,
                      const unsigned char *memory)
{
    struct hri_cell *entry = &lane->cells[cell];
    if (entry->slot != HRI_NONE)
        return;
    uint32_t slot = hri_host_take(&store->host, lane, cell);
    if (slot == HRI_NONE)
        return;
    memcpy(hri_host_memory(&store->host, slot), memory, lane->cell_bytes);
    entry->slot = slot;
    hri_cell_note(lane, cell);
    hri_host_clean(&store->host, slot);
}

/* Ends the pieces of one cell of the op; error 0 means that its bytes are right. */
static void end_cell(struct hri_store *store, struct hri_op *op, uint32_t index, int error)
{
    uint32_t cell = op->first_cell + index;
    bool cache = false;
    op->good_mask |= error == 0 ? 1u << index : 0;
    op->lane->cells[cell].flags &= (uint16_t)~HRI_CELL_READING;
    for (uint32_t *link = &op->pieces; *link != HRI_NONE;) {
        uint32_t i = *link;
        struct hri_piece *piece = &store->pieces[i];
        if (piece->cell != cell) {
            link = &piece->next;
            continue;
        }
        *link = piece->next;
        cache |= piece->batch->cache;
        if (error == 0)
            deliver(piece->batch, piece->read, cell, op->memory[index]);
        else
            fail(piece->batch, piece->read, cell, error);
        free_piece(store, i);
    }
    if (cache && error == 0)
        keep_copy(store, op->lane, cell, op->memory[index]);
}

static bool cell_fits(struct hri_store *store, const struct hri_op *op, uint32_t index)
{
    const struct hri_lane *lane = op->lane;
    if (hri_crc32c(0, op->memory[index], lane->cell_bytes) ==
        lane->cells[op->first_cell + index].crc)
        return true;
    store->counts.crc_failures++;
    return false;
}

/* What nobody waits for any more is kept until hri_store_take_late. */
static void end_op(struct hri_store *store, struct hri_op *op)
{
    if (!op->keep || op->good_mask == 0) {
        free_op(store, op);
        return;
    }
    op->state = HRI_OP_KEPT;
    hri_op_list_add(&store->kept, op);
}

static void drop_kept(struct hri_store *store, const struct hri_lane *lane)
{
    struct hri_op *next;
    for (struct hri_op *op = store->kept.first; op != NULL; op = next) {
        next = op->next;
        if (op->lane != lane)
            continue;
        hri_op_list_remove(&store->kept, op);
        free_op(store, op);
    }
}

void hri_store_take_late(struct hri_store *store)
{
    if (store->read_disk == NULL || store->n_kept_wanted == 0)
        return;
    hri_read_reap(store, 0);
    while (store->kept.first != NULL) {
        struct hri_op *op = store->kept.first;
        hri_op_list_remove(&store->kept, op);
        for (uint32_t i = 0; i < op->n_cells; i++)
            if (op->good_mask >> i & 1)
                keep_copy(store, op->lane, op->first_cell + i, op->memory[i]);
        free_op(store, op);
    }
}

/* Puts the op back in front of the queue for its next cell that failed, or ends it. */
static void next_solo(struct hri_store *store, struct hri_op *op)
{
    if (op->bad_mask == 0) {
        end_op(store, op);
        return;
    }
    op->solo = (uint32_t)__builtin_ctz(op->bad_mask);
    op->bad_mask &= op->bad_mask - 1;
    op->state = HRI_OP_AGAIN;
    store->counts.retries++;
    hri_op_list_add_first(&store->queue, op);
}

static void solo_arrived(struct hri_store *store, struct hri_op *op)
{
    int error = op->request.error;
    if (error == 0)
        store->counts.file_bytes_read += op->lane->cell_bytes;
    if (error == 0 && !cell_fits(store, op, op->solo))
        error = EILSEQ;
    end_cell(store, op, op->solo, error);
    next_solo(store, op);
}

static void end_all_cells(struct hri_store *store, struct hri_op *op, int error)
{
    for (uint32_t i = 0; i < op->n_cells; i++) {
        const struct hri_cell *cell = &op->lane->cells[op->first_cell + i];
        if ((cell->flags & HRI_CELL_READING) && &store->ops[cell->op] == op)
            end_cell(store, op, i, error);
    }
    free_op(store, op);
}

/* The kernel may still write into the memory of an abandoned read, so it is not tried again. */
static void end_abandoned(struct hri_store *store, struct hri_op *op)
{
    store->read_arena.leak = true;
    end_all_cells(store, op, op->request.error);
}

static void run_arrived(struct hri_store *store, struct hri_op *op)
{
    op->bad_mask = 0;
    if (op->request.error == 0)
        store->counts.file_bytes_read += (uint64_t)op->n_cells * op->lane->cell_bytes;
    for (uint32_t i = 0; i < op->n_cells; i++) {
        if (op->request.error == 0 && cell_fits(store, op, i))
            end_cell(store, op, i, 0);
        else
            op->bad_mask |= 1u << i;
    }
    next_solo(store, op);
}

/* With nothing under way, what cannot be submitted never will be: abandoned reads took the bounce
 * buffers with them. */
static void fail_stuck(struct hri_store *store)
{
    while (store->queue.first != NULL && hri_disk_in_flight(store->read_disk) == 0) {
        struct hri_op *op = store->queue.first;
        hri_op_list_remove(&store->queue, op);
        end_all_cells(store, op, ENOBUFS);
        submit_queue(store);
    }
}

void hri_read_reap(struct hri_store *store, uint64_t wait_ns)
{
    if (store->read_disk == NULL)
        return;
    submit_queue(store);
    fail_stuck(store);
    struct hri_disk_request *done = hri_disk_reap(store->read_disk, wait_ns);
    if (hri_disk_broken(store->read_disk))
        hri_tier_out(store, "reading: no answer, it was given up");
    submit_queue(store); /* the disk gets its next work before ours is looked at */
    while (done != NULL) {
        struct hri_op *op = (struct hri_op *)done;
        done = done->next;
        if (op->request.abandoned)
            end_abandoned(store, op);
        else if (op->solo != HRI_NONE)
            solo_arrived(store, op);
        else
            run_arrived(store, op);
    }
    submit_queue(store);
}

void hri_read_wait_lane(struct hri_store *store, const struct hri_lane *lane)
{
    drop_kept(store, lane);
    while (lane->n_reads > 0) {
        hri_read_reap(store, WAIT_NS); /* ends: the disk gives up what gets no answer */
        drop_kept(store, lane);
    }
}

/* -------------------------------------------------------------------------------------- batches */

static hr_status_t check_read(const struct hri_store *store, const struct hri_read *read)
{
    const struct hri_lane *lane = read->lane;
    if (lane == NULL || lane->store != store || read->dst == NULL)
        return hri_error_set(HR_ERR_INVALID, "read: no lane of this store, or no memory");
    if (read->n_cells == 0 || read->cell >= lane->n_cells ||
        read->n_cells > lane->n_cells - read->cell)
        return hri_error_set(HR_ERR_INVALID, "read: cells %u to %llu of lane %llx, which has %u",
                             read->cell, (unsigned long long)read->cell + read->n_cells,
                             (unsigned long long)lane->tag, lane->n_cells);
    if (read->n_cells == 1 &&
        (read->offset >= lane->cell_bytes || read->bytes > lane->cell_bytes - read->offset))
        return hri_error_set(HR_ERR_INVALID, "read: bytes %u from %u of a cell of %u", read->bytes,
                             read->offset, lane->cell_bytes);
    return HR_OK;
}

hr_status_t hri_store_read_begin(struct hri_store *store, struct hri_read_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_reads; i++)
        HRI_TRY(check_read(store, &batch->reads[i]));
    for (uint32_t i = 0; i < batch->n_reads; i++) {
        struct hri_read *read = &batch->reads[i];
        read->status = HR_OK;
        read->done = false;
        read->tier = HR_TIER_HOST;
        read->bad_cell = 0;
        read->from = NULL;
        read->n_pending = read->n_cells;
    }
    batch->n_pending = batch->n_reads;
    batch->n_begun = 0;
    batch->cells_begun = 0;
    batch->error = 0;
    batch->bytes_from_host = 0;
    batch->bytes_from_file = 0;
    batch->ios = 0;
    begin_reads(store, batch);
    if (batch->n_pending > 0)
        submit_queue(store);
    return HR_OK;
}

void hri_store_read_poll(struct hri_store *store, struct hri_read_batch *batch)
{
    if (batch->n_pending == 0)
        return;
    begin_reads(store, batch);
    hri_read_reap(store, 0);
}

static hr_status_t batch_status(const struct hri_read_batch *batch)
{
    const struct hri_read *first = NULL;
    uint32_t n = 0;
    for (uint32_t i = 0; i < batch->n_reads; i++) {
        if (batch->reads[i].status == HR_OK)
            continue;
        if (n++ == 0)
            first = &batch->reads[i];
    }
    if (first == NULL)
        return HR_OK;
    return hri_error_set(first->status,
                         "file tier: lane %llx: cell %u cannot be read: %s (%u of %u reads failed)",
                         (unsigned long long)first->lane->tag, first->bad_cell,
                         text_of(batch->error), n, batch->n_reads);
}

hr_status_t hri_store_read_wait(struct hri_store *store, struct hri_read_batch *batch,
                                uint64_t deadline_ns)
{
    if (batch->n_pending > 0 && deadline_ns == 0)
        deadline_ns = hri_now_ns() + store->timeout_ns;
    while (batch->n_pending > 0) {
        begin_reads(store, batch);
        if (batch->n_pending == 0)
            break;
        uint64_t now_ns = hri_now_ns();
        uint64_t wait_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
        hri_read_reap(store, wait_ns);
        if (wait_ns == 0 && batch->n_pending > 0)
            return hri_error_set(HR_ERR_TIMEOUT, "read: %u of %u reads are late", batch->n_pending,
                                 batch->n_reads);
    }
    return batch_status(batch);
}

/* --------------------------------------------------------------------------------------- cancel */

/* True if the kernel writes straight into the piece's memory, which it does from the op's first
 * submit to its end. */
static bool holds_memory(const struct hri_op *op, const struct hri_piece *piece)
{
    return op->state != HRI_OP_QUEUED &&
           op->memory[piece->cell - op->first_cell] == target_of(piece->read, piece->cell);
}

static uint32_t drop_pieces(struct hri_store *store, struct hri_op *op,
                            const struct hri_read_batch *batch)
{
    uint32_t n_held = 0;
    for (uint32_t *link = &op->pieces; *link != HRI_NONE;) {
        uint32_t i = *link;
        struct hri_piece *piece = &store->pieces[i];
        bool keep = piece->batch != batch;
        if (!keep && holds_memory(op, piece)) {
            keep = true;
            n_held++;
        }
        if (keep) {
            link = &piece->next;
            continue;
        }
        *link = piece->next;
        free_piece(store, i);
        if (batch->indirect && op->state != HRI_OP_QUEUED && !op->keep) {
            op->keep = true;
            store->n_kept_wanted++;
        }
    }
    return n_held;
}

static void drop_queued(struct hri_store *store, struct hri_op *op)
{
    for (uint32_t i = 0; i < op->n_cells; i++)
        op->lane->cells[op->first_cell + i].flags &= (uint16_t)~HRI_CELL_READING;
    hri_op_list_remove(&store->queue, op);
    free_op(store, op);
}

static uint32_t drop_batch(struct hri_store *store, const struct hri_read_batch *batch)
{
    uint32_t n_held = 0;
    for (uint32_t i = 0; i < HRI_READ_OPS; i++) {
        struct hri_op *op = &store->ops[i];
        if (op->state == HRI_OP_FREE)
            continue;
        n_held += drop_pieces(store, op, batch);
        if (op->state == HRI_OP_QUEUED && op->pieces == HRI_NONE)
            drop_queued(store, op);
    }
    return n_held;
}

bool hri_store_gave_up(const struct hri_store *store)
{
    return store->read_arena.leak;
}

void hri_store_read_cancel(struct hri_store *store, struct hri_read_batch *batch)
{
    while (batch->n_pending > 0 && store->read_disk != NULL && drop_batch(store, batch) > 0)
        hri_read_reap(store, WAIT_NS);
    for (uint32_t i = 0; i < batch->n_reads; i++) {
        if (batch->reads[i].done)
            continue;
        batch->reads[i].done = true;
        batch->reads[i].status = HR_ERR_CANCELED;
    }
    batch->n_begun = batch->n_reads;
    batch->cells_begun = 0;
    batch->n_pending = 0;
}
