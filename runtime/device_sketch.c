/* Sketches on the device: their memory, brought up to date with the host's when a segment was grouped. */
#include "runtime/device_part.h"

#include "index/view.h"

/* -- sizes -- */

void hri_device_sketch_sizes(const hr_sequence_t *s, struct hri_device_sketch_sizes *z)
{
    const struct hri_sketch *sketch = NULL;
    *z = (struct hri_device_sketch_sizes){0};
    for (uint32_t i = 0; i < s->n_layers && sketch == NULL; i++) {
        sketch = s->layers[i].indexed ? hri_index_view(s->layers[i].heads[0]).sketch : NULL;
    }
    if (sketch == NULL) {
        return;
    }
    const uint32_t coded = 16 * sketch->lines;
    *z = (struct hri_device_sketch_sizes){.lines = sketch->lines,
                                          .bases_max = sketch->bases_max,
                                          .lanes = sketch->lanes_max,
                                          .coded_max = coded < s->dk ? coded : s->dk,
                                          .lone_max = sketch->lone_max,
                                          .strays_max = sketch->strays.max,
                                          .pairs_max = sketch->lanes_max / 32 + sketch->bases_max};
}

void hri_device_sketch_carve(const struct hri_device_part *p, struct hri_device_carve *c,
                             struct hri_device_sketches *k)
{
    const struct hri_device_sketch_sizes *z = &p->sizes;
    const size_t h = p->heads.n, blocks = h * p->blocks_max, bases = h * z->bases_max;
    const size_t dk = p->heads.dk, lone = h * z->lone_max, strays = h * z->strays_max;
    k->codes = hri_device_carve(c, h * (z->lanes / 16), (size_t)z->lines * 64);
    k->first_lane = hri_device_carve(c, blocks, sizeof *k->first_lane);
    k->first_stray = hri_device_carve(c, blocks, sizeof *k->first_stray);
    k->basis_of = hri_device_carve(c, blocks, sizeof *k->basis_of);
    k->miss = hri_device_carve(c, blocks, 1);
    k->gain = hri_device_carve(c, blocks, 1);
    k->value_miss = hri_device_carve(c, blocks, 1);
    k->bases = hri_device_carve(c, bases, sizeof *k->bases);
    k->query = hri_device_carve(c, bases * dk, dk);
    k->value = hri_device_carve(c, bases * z->coded_max, p->heads.dv);
    k->query_scale = hri_device_carve(c, bases * dk, sizeof(float));
    k->missed = hri_device_carve(c, bases * dk, sizeof(float));
    k->step = hri_device_carve(c, bases * z->coded_max, sizeof(float));
    k->value_scale = hri_device_carve(c, bases * z->coded_max, sizeof(float));
    k->lone_lane = hri_device_carve(c, lone, sizeof *k->lone_lane);
    k->lone_item = hri_device_carve(c, lone, sizeof *k->lone_item);
    k->lone_miss = hri_device_carve(c, lone, 1);
    k->stray_block = hri_device_carve(c, strays, sizeof *k->stray_block);
    k->stray_row = hri_device_carve(c, strays, 1);
    k->stray_step = hri_device_carve(c, strays, sizeof *k->stray_step);
    k->stray_key = hri_device_carve(c, strays, dk);
}

void hri_device_sketch_work_carve(const struct hri_device_part *p, struct hri_device_carve *c,
                                  struct hri_device_sketch_work *w)
{
    const struct hri_device_sketch_sizes *z = &p->sizes;
    const struct hri_launchers *launch = p->launch;
    const size_t h = p->heads.n, q = h * p->heads.g, blocks = q * p->blocks_max;
    const size_t bases = h * z->bases_max,
                 counters = launch->sum_sketch_counters(p->heads, z->bases_max, z->lines);
    w->queries = hri_device_carve(c, bases, sizeof *w->queries);
    w->rest = hri_device_carve(c, bases * p->heads.g, sizeof(float));
    w->x = hri_device_carve(c, q * z->lanes, sizeof(float));
    w->w = hri_device_carve(c, q * z->lanes, sizeof(float));
    w->focus = hri_device_carve(c, blocks, sizeof(float));
    w->left_mass = hri_device_carve(c, blocks, sizeof(float));
    w->left_square = hri_device_carve(c, blocks, sizeof(float));
    w->size = hri_device_carve(c, q, sizeof(float));
    w->list.groups = hri_device_carve(c, h * z->pairs_max * 2, sizeof(uint32_t));
    w->list.pair_basis = hri_device_carve(c, h * z->pairs_max, sizeof(uint32_t));
    w->list.n_pairs = hri_device_carve(c, h, sizeof(uint32_t));
    w->list.work = hri_device_carve(c, h * p->blocks_max, sizeof(uint32_t));
    w->list.pairs_max = z->pairs_max;
    w->sum = hri_device_carve(c, bases * p->heads.g * HR_HEAD_DIM_MAX, sizeof(float));
    w->sum_work = hri_device_carve(c, launch->sum_sketch_work(p->heads, z->bases_max, z->lines),
                                   sizeof(float));
    w->sum_arrived = hri_device_carve(c, counters, sizeof(uint32_t));
    w->value_work = hri_device_carve(c, bases * p->heads.g * p->heads.dv, sizeof(float));
    w->value_arrived = hri_device_carve(c, h, sizeof(uint32_t));
    w->worth = hri_device_carve(c, h * HRI_WORTH_BINS, sizeof(uint32_t));
    w->added = hri_device_carve(c, q * p->heads.dv, sizeof(float));
}

/* -- keeping up with the host -- */

struct upload { /* of one head */
    struct hri_device_part *p;
    const struct hri_sketch *sketch;
    const struct hri_device_sketches *to;
    uint32_t head, first, end; /* blocks */
    hr_status_t status;
};

/* Entries [first, end) of the head's part of an array that has `max` a head. */
static void put(struct upload *u, void *array, const void *from, uint32_t max, uint32_t first,
                uint32_t end, size_t bytes)
{
    if (u->status == HR_OK && end > first) {
        unsigned char *to = (unsigned char *)array + ((size_t)u->head * max + first) * bytes;
        u->status = hri_device_copy(u->p->device, to, (const unsigned char *)from + first * bytes,
                                    (end - first) * bytes);
    }
}

/* A basis by its number; coded: coordinates that have bits. */
static void basis_put(struct upload *u, uint32_t k)
{
    const struct hri_device_sketch_sizes *z = &u->p->sizes;
    const struct hri_device_sketches *to = u->to;
    const struct hri_basis *b = &u->sketch->bases[k];
    const size_t dk = u->p->heads.dk, dv = u->p->heads.dv, at = (size_t)u->head * z->bases_max + k;
    const struct hri_cuda_basis basis = {.query = to->query + at * dk * dk,
                                         .query_scale = to->query_scale + at * dk,
                                         .step = to->step + at * z->coded_max,
                                         .missed = to->missed + at * dk,
                                         .n4 = b->n4,
                                         .n2 = b->n2,
                                         .value = to->value + at * z->coded_max * dv,
                                         .value_scale = to->value_scale + at * z->coded_max,
                                         .value_rest = b->value_rest};
    const struct {
        const void *to, *from;
        size_t bytes;
    } copies[] = {{basis.query, b->query, dk * dk},
                  {basis.query_scale, b->query_scale, dk * sizeof(float)},
                  {basis.step, b->step, b->n * sizeof(float)},
                  {basis.missed, b->missed, dk * sizeof(float)},
                  {basis.value, b->value, b->n * dv},
                  {basis.value_scale, b->value_scale, b->n * sizeof(float)},
                  {to->bases + at, &basis, sizeof basis}};
    for (size_t i = 0; i < sizeof copies / sizeof *copies && u->status == HR_OK; i++) {
        u->status = hri_device_copy(u->p->device, (void *)(uintptr_t)copies[i].to, copies[i].from,
                                    copies[i].bytes);
    }
}

/* The new blocks' bases: those that begin with them, and their numbers by block. */
static void bases_put(struct upload *u)
{
    const struct hri_sketch *k = u->sketch;
    uint16_t *number = (uint16_t *)u->p->numbers;
    uint32_t basis = 0;
    for (uint32_t b = 0; b < u->end; b++) {
        while (basis + 1 < k->n_bases && k->bases[basis + 1].first_block <= b) {
            basis++;
        }
        number[b] = (uint16_t)basis;
    }
    put(u, u->to->basis_of, number, u->p->blocks_max, u->first, u->end, sizeof *number);
    for (uint32_t i = 0; i < k->n_bases; i++) {
        if (k->bases[i].first_block >= u->first) {
            basis_put(u, i);
        }
    }
}

static void codes_put(struct upload *u, const uint8_t *block_rows)
{
    const struct hri_sketch *k = u->sketch;
    const uint32_t lanes = k->first_lane[u->end - 1] + block_rows[u->end - 1];
    put(u, u->to->codes, k->codes, u->p->sizes.lanes / 16, k->first_lane[u->first] / 16,
        (lanes + 15) / 16, (size_t)u->p->sizes.lines * 64);
    put(u, u->to->first_lane, k->first_lane, u->p->blocks_max, u->first, u->end,
        sizeof *k->first_lane);
    put(u, u->to->miss, k->miss, u->p->blocks_max, u->first, u->end, 1);
    put(u, u->to->gain, k->gain, u->p->blocks_max, u->first, u->end, 1);
    put(u, u->to->value_miss, k->value_miss, u->p->blocks_max, u->first, u->end, 1);
}

static void lone_put(struct upload *u, const uint8_t *block_rows, uint32_t part_rows)
{
    const struct hri_sketch *k = u->sketch;
    const struct hri_device_sketches *to = u->to;
    const uint32_t max = u->p->sizes.lone_max;
    uint32_t first = 0, block = u->first, *item = u->p->numbers;
    while (first < k->n_lone && k->lone_lane[first] < k->first_lane[u->first]) {
        first++;
    }
    for (uint32_t i = first; i < k->n_lone; i++) {
        while (k->lone_lane[i] >= k->first_lane[block] + block_rows[block]) {
            block++;
        }
        item[i] = block * u->p->parts + (k->lone_lane[i] - k->first_lane[block]) / part_rows;
    }
    put(u, to->lone_lane, k->lone_lane, max, first, k->n_lone, sizeof *k->lone_lane);
    put(u, to->lone_item, item, max, first, k->n_lone, sizeof *item);
    put(u, to->lone_miss, k->lone_miss, max, first, k->n_lone, 1);
}

static void strays_put(struct upload *u)
{
    const struct hri_strays *s = &u->sketch->strays;
    const struct hri_device_sketches *to = u->to;
    const uint32_t max = u->p->sizes.strays_max, first = hri_strays_from(s, 0, u->first);
    uint32_t *of_block = u->p->numbers;
    for (uint32_t b = u->first, i = first; b < u->end; b++) {
        i = hri_strays_from(s, i, b);
        of_block[b] = i;
    }
    put(u, to->first_stray, of_block, u->p->blocks_max, u->first, u->end, sizeof *of_block);
    put(u, to->stray_block, s->block, max, first, s->n, sizeof *s->block);
    put(u, to->stray_row, s->row, max, first, s->n, 1);
    put(u, to->stray_step, s->step, max, first, s->n, sizeof *s->step);
    put(u, to->stray_key, s->key, max, first, s->n, u->p->heads.dk);
}

hr_status_t hri_device_sketch_put(struct hri_device_part *p, const struct hri_index_head *head,
                                  uint32_t number, uint32_t first,
                                  const struct hri_device_sketches *to)
{
    const struct hri_index_view v = hri_index_view(head);
    struct upload u = {
        .p = p, .sketch = v.sketch, .to = to, .head = number, .first = first, .end = v.n_blocks};
    if (first < u.end) {
        bases_put(&u);
        codes_put(&u, v.block_rows);
        lone_put(&u, v.block_rows, p->part_rows);
        strays_put(&u);
    }
    return u.status;
}

uint64_t hri_device_sketch_read_bytes(const struct hri_index_head *head)
{
    const struct hri_index_view v = hri_index_view(head);
    if (v.sketch == NULL || v.n_blocks == 0) {
        return 0;
    }
    const uint32_t lanes = v.sketch->first_lane[v.n_blocks - 1] + v.block_rows[v.n_blocks - 1];
    return (uint64_t)(lanes + 15) / 16 * v.sketch->lines * 64;
}
