/* Move 3 of a step: pending rows leave as a segment, are grouped, summarised, encoded and stored as blocks. */
#include "runtime/device_index.h"
#include "runtime/device_part.h"

#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include <string.h>

#define OPEN_CELLS 8u

/* Working memory of one head of a segment. */
struct group_slot {
    float *k, *v; /* [n][dk], [n][dv] */
    void *workspace;
    uint32_t *order, *block_rows;
    float *wide;          /* [block_rows_max][dim] rows of one block */
    unsigned char *codes; /* [block_rows_max][code_bytes] the same as stored */
    unsigned char *cells; /* the blocks, packed */
    uint32_t n_blocks, n_cells;
    /* Work goes on in turns, each up to a job of `adding` (index/job.h), until it is done. */
    struct hri_index_adding adding;
    uint32_t turn, first_block;
    bool done;
    struct hri_device_coded coded; /* int8 rows of all blocks, in order; codes NULL: made here */
    hr_status_t status;
    char message[HRI_ERROR_BYTES_MAX];
};

struct segment;
/* One turn of a head's part of a segment, on a worker; its rows are in the slot. */
typedef hr_status_t (*head_work_fn)(const struct segment *g, uint32_t head,
                                    struct group_slot *slot);

struct segment {
    hr_sequence_t *s;
    struct hri_layer *layer;
    uint32_t first, n;   /* tokens */
    unsigned char *rows; /* [n_kv][n][row_bytes] */
    struct group_slot *slots;
    uint32_t head_first, head_end; /* those to be grouped */
    uint32_t head0;                /* of the wave */
    uint32_t wave;                 /* heads at once */
    bool on_device;                /* does the jobs of this wave; and */
    bool served;                   /* has done those of the last turn */
    head_work_fn work;
};

static void copy_visit(void *context, const struct hri_tiles *tiles)
{
    struct segment *g = context;
    hr_sequence_t *s = g->s;
    for (uint32_t i = 0; i < tiles->n; i++) {
        for (uint32_t h = g->head_first; h < g->head_end; h++) {
            unsigned char *dst =
                g->rows + ((size_t)h * g->n + (tiles->token[i] - g->first)) * s->row_bytes;
            memcpy(dst, tiles->base[i * s->n_kv + h], (size_t)tiles->rows[i] * s->row_bytes);
        }
    }
}

static void rows_to_float(const struct segment *g, uint32_t head, struct group_slot *slot)
{
    const hr_sequence_t *s = g->s;
    const struct hri_kernels *kern = s->runtime->kernels;
    const unsigned char *row = g->rows + (size_t)head * g->n * s->row_bytes;
    size_t k_bytes = s->dk * hr_dtype_bytes(s->dtype);
    for (uint32_t i = 0; i < g->n; i++, row += s->row_bytes) {
        kern->to_f32(slot->k + (size_t)i * s->dk, row, s->dtype, s->dk);
        kern->to_f32(slot->v + (size_t)i * s->dv, row + k_bytes, s->dtype, s->dv);
    }
}

/* Rows of part p of a block of n rows; 0: there is no such part. */
static uint32_t part_rows(const hr_sequence_t *s, uint32_t n, uint32_t p)
{
    uint32_t first = p * s->part_rows, left = n > first ? n - first : 0;
    return left < s->part_rows ? left : s->part_rows;
}

/* Puts each part into one cell, never across two, so that a part is one read: best fit among a few open cells. */
static void parts_pack(const hr_sequence_t *s, struct group_slot *slot, struct hri_block_at *places)
{
    uint32_t open[OPEN_CELLS], used[OPEN_CELLS], n_open = 0;
    slot->n_cells = 0;
    for (uint32_t item = 0; item < slot->n_blocks * s->parts; item++) {
        uint32_t rows = part_rows(s, slot->block_rows[item / s->parts], item % s->parts);
        uint32_t bytes = rows * s->code_bytes, best = OPEN_CELLS, fullest = 0;
        if (rows == 0) {
            places[item] = (struct hri_block_at){.cell = HRI_NO_CELL};
            continue;
        }
        for (uint32_t i = 0; i < n_open; i++) {
            if (used[i] + bytes <= s->block_cell_bytes &&
                (best == OPEN_CELLS || used[i] > used[best])) {
                best = i;
            }
            fullest = used[i] > used[fullest] ? i : fullest;
        }
        if (best == OPEN_CELLS) {
            best = n_open < OPEN_CELLS ? n_open++ : fullest;
            open[best] = slot->n_cells++;
            used[best] = 0;
        }
        places[item] = (struct hri_block_at){.cell = open[best], .offset = used[best]};
        used[best] += bytes;
    }
}

/* Level 2: differences from the block's centre, one step for K and one for V; codes [n][dk + dv]. */
static void block_encode(const struct segment *g, struct group_slot *slot,
                         struct hri_index_head *head, uint32_t block, const uint32_t *rows,
                         uint32_t n, unsigned char *codes)
{
    const struct hri_device_coded *coded = &slot->coded;
    if (coded->codes != NULL) {
        const uint32_t b = block - slot->first_block;
        memcpy(codes, coded->codes + (size_t)(rows - slot->order) * g->s->code_bytes,
               (size_t)n * g->s->code_bytes);
        hri_index_set_steps(head, block, coded->k_step[b], coded->v_step[b]);
        return;
    }
    const hr_sequence_t *s = g->s;
    const struct hri_kernels *kern = s->runtime->kernels;
    float k_center[HR_HEAD_DIM_MAX], v_center[HR_HEAD_DIM_MAX];
    float steps[2];
    hri_index_centers(head, block, k_center, v_center);
    for (int part = 0; part < 2; part++) {
        const float *x = part == 0 ? slot->k : slot->v, *center = part == 0 ? k_center : v_center;
        uint32_t d = part == 0 ? s->dk : s->dv;
        for (uint32_t i = 0; i < n; i++) {
            memcpy(slot->wide + (size_t)i * d, x + (size_t)rows[i] * d, d * sizeof(float));
        }
        steps[part] = kern->quantise_i8(slot->wide, d, n, d, center,
                                        (int8_t *)codes + (part == 0 ? 0 : s->dk), s->dk + s->dv);
    }
    hri_index_set_steps(head, block, steps[0], steps[1]);
}

static void block_copy(const struct segment *g, uint32_t head, const uint32_t *rows, uint32_t n,
                       unsigned char *codes)
{
    const hr_sequence_t *s = g->s;
    size_t skip = s->row_bytes - s->code_bytes; /* keys that the device rebuilds */
    for (uint32_t i = 0; i < n; i++) {
        memcpy(codes + (size_t)i * s->code_bytes,
               g->rows + ((size_t)head * g->n + rows[i]) * s->row_bytes + skip, s->code_bytes);
    }
}

static void blocks_encode(const struct segment *g, struct group_slot *slot, uint32_t head,
                          const struct hri_block_at *places, uint32_t first_block)
{
    const hr_sequence_t *s = g->s;
    const uint32_t *rows = slot->order;
    memset(slot->cells, 0, (size_t)slot->n_cells * s->block_cell_bytes);
    for (uint32_t b = 0; b < slot->n_blocks; b++) {
        uint32_t n = slot->block_rows[b];
        if (s->recipe.selector->codec == HRI_CODEC_I8) {
            block_encode(g, slot, g->layer->heads[head], first_block + b, rows, n, slot->codes);
        } else {
            block_copy(g, head, rows, n, slot->codes);
        }
        for (uint32_t p = 0; p < s->parts; p++) {
            const struct hri_block_at *at = &places[b * s->parts + p];
            if (at->cell != HRI_NO_CELL) {
                memcpy(slot->cells + (size_t)at->cell * s->block_cell_bytes + at->offset,
                       slot->codes + (size_t)p * s->part_rows * s->code_bytes,
                       (size_t)part_rows(s, n, p) * s->code_bytes);
            }
        }
        rows += n;
    }
}

/* Where the queries stand that the segment's rows are arranged for. */
static uint32_t asked_from(const struct segment *g)
{
    return g->layer->n_tokens > g->s->query_from ? g->layer->n_tokens : g->s->query_from;
}

/* Selectors of rows keep an index of their own: no blocks, nothing to store. */
static hr_status_t rows_add(const struct segment *g, uint32_t head, struct group_slot *slot)
{
    slot->done = true;
    return hri_index_add_rows(g->layer->heads[head], slot->k, slot->v, g->n,
                              g->first - g->s->n_sink, asked_from(g));
}

static void block_tokens_note(const struct segment *g, const struct group_slot *slot,
                              struct hri_block_tokens *tokens, uint32_t first_block)
{
    uint32_t first = g->first - g->s->n_sink;
    for (uint32_t i = 0; i < g->n; i++) {
        tokens->token[first + i] = g->first + slot->order[i];
    }
    for (uint32_t b = 0; b < slot->n_blocks; b++) {
        tokens->first[first_block + b] = first;
        first += slot->block_rows[b];
    }
}

/* Codes of the blocks that the head got last, and where they lie. */
static void blocks_lay(const struct segment *g, uint32_t head, struct group_slot *slot)
{
    hr_sequence_t *s = g->s;
    uint32_t first_block = slot->first_block;
    struct hri_block_at *places = g->layer->places[head] + (size_t)first_block * s->parts;
    slot->n_blocks = slot->adding.segment.n_blocks;
    slot->coded.codes = NULL;
    if (g->on_device) {
        (void)hri_device_index_codes(s, head - g->head0, &slot->coded);
    }
    parts_pack(s, slot, places);
    blocks_encode(g, slot, head, places, first_block);
    if (g->layer->block_tokens != NULL) {
        block_tokens_note(g, slot, &g->layer->block_tokens[head], first_block);
    }
}

static void adding_begin(const struct segment *g, uint32_t head, struct group_slot *slot,
                         uint32_t *order, uint32_t *block_rows)
{
    struct hri_index_head *index = g->layer->heads[head];
    slot->first_block = hri_index_blocks(index);
    hri_index_adding_init(&slot->adding, index, slot->k, slot->v, g->n, asked_from(g),
                          slot->workspace, order, block_rows);
}

static hr_status_t adding_turn(struct group_slot *slot)
{
    hr_status_t status = hri_index_adding_next(&slot->adding);
    slot->done = slot->adding.job.kind == HRI_INDEX_JOB_NONE;
    return status;
}

static hr_status_t blocks_make(const struct segment *g, uint32_t head, struct group_slot *slot)
{
    if (slot->turn == 0) {
        adding_begin(g, head, slot, slot->order, slot->block_rows);
    }
    hr_status_t status = adding_turn(slot);
    if (status == HR_OK && slot->done) {
        blocks_lay(g, head, slot);
    }
    return status;
}

/* The same in two goes, for one head alone. */
static hr_status_t half_begin(const struct segment *g, uint32_t head, struct group_slot *slot)
{
    struct hri_half *half = &g->layer->half;
    const struct hri_segment *made = &slot->adding.segment;
    if (slot->turn == 0) {
        adding_begin(g, head, slot, half->order, half->block_rows);
        slot->adding.end = HRI_INDEX_SKETCH;
    }
    hr_status_t status = adding_turn(slot);
    if (status == HR_OK && slot->done) {
        half->n_blocks = made->n_blocks;
        half->weighted = made->weight != NULL;
        if (half->weighted) {
            memcpy(half->weight, made->weight, g->n * sizeof *half->weight);
        }
    }
    return status;
}

static hr_status_t half_end(const struct segment *g, uint32_t head, struct group_slot *slot)
{
    const struct hri_half *half = &g->layer->half;
    if (slot->turn == 0) {
        memcpy(slot->order, half->order, g->n * sizeof *slot->order);
        memcpy(slot->block_rows, half->block_rows, half->n_blocks * sizeof *slot->block_rows);
        adding_begin(g, head, slot, slot->order, slot->block_rows);
        hri_index_adding_resume(&slot->adding, half->n_blocks,
                                half->weighted ? half->weight : NULL);
    }
    hr_status_t status = adding_turn(slot);
    if (status == HR_OK && slot->done) {
        blocks_lay(g, head, slot);
    }
    return status;
}

/* What grouping needs, ahead of it. */
static hr_status_t fit_make(const struct segment *g, uint32_t head, struct group_slot *slot)
{
    slot->done = true;
    return hri_index_fit(g->layer->heads[head], slot->k, slot->v, g->n, asked_from(g),
                         slot->workspace);
}

static void head_task(void *context, unsigned task, unsigned worker)
{
    (void)worker;
    struct segment *g = context;
    struct group_slot *slot = &g->slots[task];
    uint32_t head = g->head0 + task;
    if (slot->turn == 0) {
        rows_to_float(g, head, slot);
    } else if (g->served) {
        hri_device_index_take(g->s, task, &slot->adding.job);
    } else {
        hri_index_job_run(&slot->adding.job);
    }
    for (;;) {
        slot->status = g->work(g, head, slot);
        slot->turn++;
        if (slot->status != HR_OK || slot->done || g->on_device) {
            break;
        }
        hri_index_job_run(&slot->adding.job);
    }
    if (slot->status != HR_OK) {
        hri_error_get(slot->message, sizeof slot->message);
    }
}

/* The jobs of n heads' last turns. Where the device does not do them, the CPU does, and all that follow. */
static void jobs_serve(struct segment *g, uint32_t n)
{
    const struct hri_index_job *jobs[HR_HEADS_MAX];
    for (uint32_t i = 0; i < n; i++) {
        jobs[i] = &g->slots[i].adding.job;
        HRI_ASSERT(jobs[i]->kind == jobs[0]->kind); /* as many rows, as many turns */
    }
    g->served = g->on_device && hri_device_index_run(g->s, jobs, n) == HR_OK;
    g->on_device = g->served;
}

/* Heads [head0, head0 + n) through all their turns. */
static hr_status_t wave_run(struct segment *g, uint32_t n)
{
    hr_sequence_t *s = g->s;
    const size_t head_bytes = (size_t)g->n * s->row_bytes;
    bool jobs = g->work != fit_make && g->work != rows_add;
    for (uint32_t i = 0; i < n; i++) {
        g->slots[i].turn = 0;
        g->slots[i].done = false;
    }
    g->on_device = jobs && hri_device_index_heads(s, g->n) >= n &&
                   hri_device_index_begin(s, g->rows + g->head0 * head_bytes, g->n, n) == HR_OK;
    for (;;) {
        hri_pool_run(s->runtime->pool, head_task, g, n);
        for (uint32_t i = 0; i < n; i++) {
            if (g->slots[i].status != HR_OK) {
                return hri_error_set(g->slots[i].status, "%s", g->slots[i].message);
            }
        }
        if (g->slots[0].done) {
            return HR_OK;
        }
        jobs_serve(g, n);
    }
}

/* A wave's cells are appended by the owner of the store. */
static hr_status_t wave_store(struct segment *g, uint32_t n)
{
    hr_sequence_t *s = g->s;
    for (uint32_t i = 0; i < n; i++) {
        struct group_slot *slot = &g->slots[i];
        uint32_t first_cell, head = g->head0 + i;
        hr_status_t status =
            hri_lane_append(g->layer->block_lane, slot->cells, slot->n_cells, &first_cell);
        if (status != HR_OK) {
            return status;
        }
        uint32_t total = hri_index_blocks(g->layer->heads[head]);
        for (uint32_t item = (total - slot->n_blocks) * s->parts; item < total * s->parts; item++) {
            struct hri_block_at *at = &g->layer->places[head][item];
            at->cell += at->cell != HRI_NO_CELL ? first_cell : 0;
        }
    }
    return HR_OK;
}

/* Heads are grouped side by side, one per worker. */
static hr_status_t segment_group(struct segment *g)
{
    uint32_t there = hri_device_index_heads(g->s, g->n);
    uint32_t wave = there > 0 && there < g->wave ? there : g->wave;
    bool lays = g->work == blocks_make || g->work == half_end;
    for (g->head0 = g->head_first; g->head0 < g->head_end; g->head0 += wave) {
        uint32_t n = g->head_end - g->head0 < wave ? g->head_end - g->head0 : wave;
        hr_status_t status = wave_run(g, n);
        if (status == HR_OK && lays) {
            status = wave_store(g, n);
        }
        if (status != HR_OK) {
            return status;
        }
    }
    return HR_OK;
}

/* Rows of all heads at once, for selectors that look across heads before they group. */
static hr_status_t segment_prepare(struct segment *g)
{
    hr_sequence_t *s = g->s;
    if (!hri_index_prepares(&s->recipe)) {
        return HR_OK;
    }
    size_t k_floats = (size_t)g->n * s->dk, v_floats = (size_t)g->n * s->dv;
    float *k = hri_aligned(&s->runtime->alloc, 64, s->n_kv * (k_floats + v_floats) * sizeof *k);
    if (k == NULL) {
        return hri_alloc_status();
    }
    float *v = k + s->n_kv * k_floats;
    for (uint32_t h = 0; h < s->n_kv; h++) {
        struct group_slot slot = {.k = k + h * k_floats, .v = v + h * v_floats};
        rows_to_float(g, h, &slot);
    }
    hr_status_t status =
        hri_index_prepare(g->layer->heads, s->n_kv, k, v, g->n, g->first - s->n_sink);
    hri_free(&s->runtime->alloc, k);
    return status;
}

static size_t take(size_t *offset, size_t bytes)
{
    size_t at = *offset;
    *offset += hri_round_up(bytes, 64);
    return at;
}

/* One allocation for the whole segment, kept for the next. */
static hr_status_t segment_memory(struct segment *g)
{
    hr_sequence_t *s = g->s;
    uint32_t n = g->n, wave = s->runtime->n_workers < s->n_kv ? s->runtime->n_workers : s->n_kv;
    struct hri_index_options io;
    hri_index_options_fill(s, g->layer, &io);
    uint32_t blocks = hri_index_blocks_bound(&s->recipe, s->dk, s->dv, n, 1);
    size_t workspace = hri_index_workspace_bytes(&io, n), size = 0;
    size_t rows = take(&size, (size_t)s->n_kv * n * s->row_bytes),
           slots = take(&size, wave * sizeof(struct group_slot));
    size_t first = size;
    size_t k = take(&size, (size_t)n * s->dk * sizeof(float)),
           v = take(&size, (size_t)n * s->dv * sizeof(float));
    size_t ws = take(&size, workspace), order = take(&size, n * sizeof(uint32_t));
    size_t block_rows = take(&size, (blocks + 1) * sizeof(uint32_t)),
           cells = take(&size, (size_t)blocks * s->parts * s->block_cell_bytes);
    size_t wide = take(&size,
                       (size_t)s->block_rows_max * (s->dk > s->dv ? s->dk : s->dv) * sizeof(float)),
           codes = take(&size, (size_t)s->block_rows_max * s->code_bytes);
    size_t each = size - first;
    unsigned char *base = hri_scratch_get(&s->runtime->group, first + wave * each);
    if (base == NULL) {
        return hri_alloc_status();
    }
    g->rows = base + rows;
    g->wave = wave;
    g->slots = (struct group_slot *)(void *)(base + slots);
    for (uint32_t i = 0; i < wave; i++) {
        unsigned char *b = base + i * each;
        g->slots[i] = (struct group_slot){.k = (float *)(void *)(b + k),
                                          .v = (float *)(void *)(b + v),
                                          .workspace = b + ws,
                                          .order = (uint32_t *)(void *)(b + order),
                                          .block_rows = (uint32_t *)(void *)(b + block_rows),
                                          .wide = (float *)(void *)(b + wide),
                                          .codes = b + codes,
                                          .cells = b + cells};
    }
    return HR_OK;
}

static void body_grow(struct hri_layer *layer, uint32_t n)
{
    layer->body_end += n;
    if (layer->settled != NULL) {
        /* There is room for all (sequence.c); should there not be, two segments count as one. */
        layer->n_settled += layer->n_settled < layer->settled_max;
        layer->settled[layer->n_settled - 1] = layer->body_end;
    }
}

/* What a failed attempt did to the heads goes. */
static void segment_undo(const struct segment *g, const uint32_t *blocks, uint32_t rows,
                         uint32_t cells)
{
    struct hri_layer *layer = g->layer;
    for (uint32_t h = g->head_first; h < g->head_end; h++) {
        if (layer->indexed) {
            hri_index_truncate(layer->heads[h], blocks[h]);
        } else if (hri_index_rows(layer->heads[h]) > rows) {
            hri_index_truncate_rows(layer->heads[h], rows);
        }
    }
    if (layer->indexed) {
        (void)hri_lane_truncate(layer->block_lane, cells);
    }
}

/* Does the work of heads [head_first, head_end) on the n tokens after the body. blocks_out[h]: how many there were. */
static hr_status_t segment_make(hr_sequence_t *s, struct hri_layer *layer, uint32_t n,
                                uint32_t head_first, uint32_t head_end, head_work_fn work,
                                uint32_t *blocks_out)
{
    hr_status_t status = hri_layer_own(s, layer);
    if (status != HR_OK) {
        return status;
    }
    struct segment g = {.s = s,
                        .layer = layer,
                        .first = layer->body_end,
                        .n = n,
                        .head_first = head_first,
                        .head_end = head_end,
                        .work = work};
    struct hr_attend_report unseen = {0};
    uint32_t cells = layer->indexed ? hri_lane_cells(layer->block_lane) : 0;
    uint32_t rows = hri_index_rows(layer->heads[0]);
    uint8_t only[HR_HEADS_MAX] = {0};
    for (uint32_t h = head_first; h < head_end; h++) {
        only[h] = 1;
        blocks_out[h] = hri_index_blocks(layer->heads[h]);
    }
    status = segment_memory(&g);
    if (status == HR_OK) {
        status = hri_stream_heads(s, layer, g.first, g.first + n, only, 0, copy_visit, &g, &unseen);
    }
    if (status == HR_OK) {
        status = segment_prepare(&g);
    }
    if (status == HR_OK) {
        status = segment_group(&g);
    }
    if (status != HR_OK) {
        char message[HRI_ERROR_BYTES_MAX];
        hri_error_get(message, sizeof message);
        segment_undo(&g, blocks_out, rows, cells);
        return hri_error_set(status, "layer %u: tokens %u to %u not indexed: %s",
                             (unsigned)(layer - s->layers), g.first, g.first + n - 1, message);
    }
    for (uint32_t h = head_first; h < head_end && s->frames != NULL; h++) {
        hri_frames_expect(s->frames,
                          (hri_index_blocks(layer->heads[h]) - blocks_out[h]) * s->parts);
    }
    return HR_OK;
}

/* -- a segment whose heads are grouped in turn, before it leaves the window -- */

static uint32_t heads_ahead(const hr_sequence_t *s, const struct hri_layer *layer)
{
    uint32_t n = 0;
    while (layer->indexed && n < s->n_kv && hri_index_rows_ahead(layer->heads[n]) > 0) {
        n++;
    }
    return n;
}

uint32_t hri_layer_ahead(const struct hri_layer *layer)
{
    return layer->indexed ? hri_index_rows_ahead(layer->heads[0]) : 0;
}

/* Heads that are fitted together, whatever the number of threads, on which the result must not depend: on two they take as long as one
 * alone. The rest takes longer, and longer still beside another's: that is done for one head at a time. */
#define FIT_HEADS 2u

/* Tokens from one head's turn to the next at the least for a head to be grouped in two of them. */
#define HALVES_GAP 4u

/* A step's share of the work on the next segment: heads [first, end) are grouped, or only fitted. */
struct ahead {
    uint32_t first, end;
    bool fits;
};

/* How many of n turns came `passed` tokens after the first, all of them coming within `lead` tokens. */
static uint32_t turns_passed(uint32_t n, int64_t passed, uint32_t lead)
{
    int64_t came = passed < 0 ? 0 : 1 + passed * n / lead;
    return came < n ? (uint32_t)came : n;
}

/* What a layer has to do `passed` tokens after the first of `lead` at which that may begin, `made` heads being grouped: heads take turns,
 * first with their fits, half way to the next turn with the rest, and layers begin at different tokens. Those that are fitted together
 * are at the first one's turn. A fit whose token no step had is made when its head is grouped. */
static struct ahead ahead_of(uint32_t n_heads, uint32_t layer, uint32_t made, int64_t passed,
                             uint32_t lead)
{
    uint32_t gap = lead > n_heads ? lead / n_heads : 1, half = gap / 2;
    if (made == n_heads) {
        return (struct ahead){.first = made, .end = made};
    }
    passed -= layer % (gap - half);
    uint32_t grouped = turns_passed(n_heads, passed - half, lead);
    if (grouped > made) {
        return (struct ahead){.first = made, .end = grouped};
    }
    bool now = made % FIT_HEADS == 0 && turns_passed(n_heads, passed, lead) > made &&
               turns_passed(n_heads, passed - 1, lead) <= made;
    uint32_t end = made + FIT_HEADS < n_heads ? made + FIT_HEADS : n_heads;
    return (struct ahead){.first = made, .end = now ? end : made, .fits = true};
}

/* Blocks made ahead are hidden. */
static hr_status_t heads_make_ahead(hr_sequence_t *s, struct hri_layer *layer, uint32_t n,
                                    uint32_t first, uint32_t end, head_work_fn work)
{
    uint32_t blocks[HR_HEADS_MAX];
    hr_status_t status = segment_make(s, layer, n, first, end, work, blocks);
    for (uint32_t h = first; h < end && status == HR_OK; h++) {
        if (hri_index_blocks(layer->heads[h]) > blocks[h]) {
            hri_index_hide(layer->heads[h], blocks[h]);
        }
    }
    if (status == HR_OK && s->part != NULL && work != fit_make) {
        hri_device_shape_changed(s, layer);
    }
    return status;
}

hr_status_t hri_half_create(hr_sequence_t *s, struct hri_layer *l)
{
    uint32_t n = s->decode_segment;
    memset(&l->half, 0, sizeof l->half);
    if (!l->indexed || !hri_index_makes_ahead(&s->recipe) || n < 2) {
        return HR_OK;
    }
    l->half.order = hri_array(&s->runtime->alloc, 3 * (size_t)n, sizeof *l->half.order);
    if (l->half.order == NULL) {
        return hri_alloc_status();
    }
    l->half.block_rows = l->half.order + n;
    l->half.weight = (float *)(void *)(l->half.block_rows + n);
    l->half.n_max = n;
    return HR_OK;
}

hr_status_t hri_settle_half(hr_sequence_t *s, struct hri_layer *layer)
{
    struct hri_half *half = &layer->half;
    if (half->n == 0) {
        return HR_OK;
    }
    hr_status_t status = heads_make_ahead(s, layer, half->n, half->head, half->head + 1, half_end);
    half->n = 0; /* after a failure the head is grouped anew */
    return status;
}

hr_status_t hri_settle_halves(hr_sequence_t *s)
{
    hr_status_t status = HR_OK;
    for (uint32_t i = 0; i < s->n_layers && status == HR_OK; i++) {
        status = hri_settle_half(s, &s->layers[i]);
    }
    return status;
}

/* Rows of the next segment that are still in the window, where steps attend them exactly, can be grouped already; all its blocks are
 * hidden until the segment is full, as if it had been grouped then, but no step has to group all heads. */
static hr_status_t segment_ahead(hr_sequence_t *s, struct hri_layer *layer, uint32_t n,
                                 bool *any_out)
{
    uint32_t lead = s->n_window < n ? s->n_window : n;
    uint32_t begin = layer->body_end + n + s->n_window - lead; /* tokens of the layer then */
    if (layer->half.n > 0) {
        *any_out = true;
        hr_status_t status = hri_settle_half(s, layer);
        if (status != HR_OK) {
            return status;
        }
    }
    if (!layer->indexed || !hri_index_makes_ahead(&s->recipe) || lead == 0 || n > s->segment ||
        layer->body_end < s->n_sink || layer->n_tokens < begin) {
        return HR_OK;
    }
    struct ahead a = ahead_of(s->n_kv, (uint32_t)(layer - s->layers), heads_ahead(s, layer),
                              layer->n_tokens - begin, lead);
    if (a.first >= a.end) {
        return HR_OK;
    }
    *any_out = true;
    /* One head alone is ended at the next token, where no other has its turn then. */
    bool halves =
        !a.fits && a.end - a.first == 1 && lead / s->n_kv >= HALVES_GAP && n <= layer->half.n_max;
    hr_status_t status = heads_make_ahead(s, layer, n, a.first, a.end,
                                          a.fits   ? fit_make
                                          : halves ? half_begin
                                                   : blocks_make);
    if (status == HR_OK && halves) {
        layer->half.head = a.first;
        layer->half.n = n;
    }
    return status;
}

static hr_status_t segment_settle(hr_sequence_t *s, struct hri_layer *layer, uint32_t n)
{
    /* Where there is nothing to group, the window is everybody's all the same. */
    bool grouped = layer->indexed || layer->adds_rows;
    uint32_t made = heads_ahead(s, layer), blocks[HR_HEADS_MAX];
    hr_status_t status = HR_OK;
    if (grouped && made < s->n_kv) {
        status = segment_make(s, layer, n, made, s->n_kv, layer->indexed ? blocks_make : rows_add,
                              blocks);
    } else if (grouped) {
        status = hri_layer_own(s, layer);
    }
    if (status != HR_OK) {
        return status;
    }
    for (uint32_t h = 0; h < made; h++) {
        hri_index_show(layer->heads[h]);
    }
    body_grow(layer, n);
    return HR_OK;
}

hr_status_t hri_settle_ends(hr_sequence_t *s, struct hri_layer *layer, uint32_t n)
{
    hr_status_t status = HR_OK;
    layer->n_settled = 0;
    for (uint32_t i = 0; i < n && status == HR_OK; i++) {
        status = segment_settle(s, layer, layer->settled[i] - layer->body_end);
    }
    return status;
}

hr_status_t hri_settle(hr_sequence_t *s, struct hri_layer *layer, uint32_t least, bool near)
{
    uint64_t t0 = hri_now_ns();
    bool any = false;
    while (layer->n_tokens > s->n_window && layer->body_end < layer->n_tokens - s->n_window) {
        uint32_t waiting = layer->n_tokens - s->n_window - layer->body_end;
        bool out_of_reach = near && layer->body_end < layer->tail_first;
        if (layer->body_end < s->n_sink || (waiting < least && !out_of_reach)) {
            break;
        }
        any = true;
        if (hri_canceled(s)) {
            return hri_error_set(HR_ERR_CANCELED, "indexing: canceled");
        }
        hr_status_t status = hri_settle_half(s, layer);
        if (status != HR_OK) {
            return status;
        }
        uint32_t n = hri_layer_ahead(layer);
        if (n == 0) {
            n = waiting < s->segment ? waiting : s->segment;
        }
        status = segment_settle(s, layer, n);
        if (status != HR_OK) {
            return status;
        }
    }
    if (near) {
        hr_status_t status = segment_ahead(s, layer, least, &any);
        if (status != HR_OK) {
            return status;
        }
    }
    if (any) {
        uint64_t spent = hri_now_ns() - t0;
        s->index_ns += spent;
        s->time_ns[HRI_INDEX] += spent;
    }
    return HR_OK;
}

hr_status_t hr_sequence_settle(hr_sequence_t *s, uint32_t layer)
{
    if (s == NULL || layer >= s->n_layers) {
        return hri_error_set(HR_ERR_INVALID, "hr_sequence_settle: %s",
                             s == NULL ? "no sequence" : "no such layer");
    }
    struct hri_layer *l = &s->layers[layer];
    uint64_t before = s->time_ns[HRI_INDEX];
    hri_cancel_begin(s);
    hr_status_t status = l->exact ? HR_OK : hri_settle(s, l, s->decode_segment, true);
    s->time_ns[HRI_INDEX] = before; /* asked for by itself: no part of the next step's time */
    return status;
}
