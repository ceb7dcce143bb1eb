/* What the selectors with centroids share in a step: scratch, weights, taking blocks within a
 * budget. */
#include "base/arena.h"
#include "base/assert.h"
#include "index/head.h"

/* Blocks that do not fit are passed over this many times before the rest of the budget is left
 * unspent. */
#define PASSED_OVER_MAX 64u

size_t hri_step_bytes(const struct hri_index_options *o)
{
    size_t stride = hri_lanes_up(o->blocks_max), g = o->g;
    return (2 * g + 1) * stride * sizeof(float) + 2 * g * o->v_dim * sizeof(float) +
           3 * HR_GROUP_MAX * sizeof(float) + stride * (sizeof(struct hri_ranked) + 1) + 12 * 64;
}

struct hri_step hri_step_at(const struct hri_index_head *head, const struct hri_select_in *in)
{
    const struct hri_index_options *o = &head->options;
    struct hri_arena arena;
    struct hri_step step = {.stride = hri_lanes_up(head->n_blocks)};
    hri_arena_init_buffer(&arena, in->scratch, hri_step_bytes(o));
    step.dots = hri_arena_array(&arena, o->g * step.stride, sizeof(float));
    HRI_ASSERT(step.dots == hri_step_dots(in));
    step.weight = hri_arena_array(&arena, o->g * step.stride, sizeof(float));
    step.sum = hri_arena_array(&arena, (size_t)o->g * o->v_dim, sizeof(float));
    step.shift = hri_arena_array(&arena, (size_t)o->g * o->v_dim, sizeof(float));
    step.top = hri_arena_array(&arena, HR_GROUP_MAX, sizeof(float));
    step.total = hri_arena_array(&arena, HR_GROUP_MAX, sizeof(float));
    step.variance = hri_arena_array(&arena, HR_GROUP_MAX, sizeof(float));
    step.work = hri_arena_array(&arena, step.stride, sizeof(float));
    step.ranked = hri_arena_array(&arena, step.stride, sizeof(struct hri_ranked));
    step.mark = hri_arena_array(&arena, step.stride, 1);
    HRI_ASSERT(head->n_blocks == 0 || step.mark != NULL);
    return step;
}

bool hri_take_one(const struct hri_index_head *head, const struct hri_select_in *in, uint32_t item,
                  struct hri_purse *purse, struct hri_select_out *out)
{
    uint64_t bytes = (uint64_t)hri_index_item_rows(head, item) * in->row_bytes, cost = bytes;
    uint8_t place = in->place ? in->place[item] : HRI_PLACE_HOST;
    uint64_t *left = &purse->move_bytes;
    if (place == HRI_PLACE_FRAME && bytes <= purse->reuse_bytes)
        left = &purse->reuse_bytes;
    else if (place == HRI_PLACE_FILE)
        cost = in->cell_bytes; /* the file gives whole cells */
    if (cost > *left)
        return false;
    out->items[out->n_items++] = item;
    out->bytes += bytes;
    *left -= cost;
    return true;
}

bool hri_take_blocks(const struct hri_index_head *head, const struct hri_select_in *in,
                     const struct hri_take *take, struct hri_select_out *out)
{
    struct hri_purse purse = {take->budget_bytes, take->reuse_bytes};
    uint32_t passed_over = 0;
    uint64_t block_bytes = 1 + (uint64_t)head->n_rows * in->row_bytes / (head->n_blocks + 1);
    /* Sorted in pieces: the first is about what the budget holds, so the rest is rarely looked at.
     */
    for (uint32_t begin = 0, end;
         begin < take->n && purse.move_bytes + purse.reuse_bytes >= in->row_bytes; begin = end) {
        uint64_t guess = (purse.move_bytes + purse.reuse_bytes) / block_bytes + 16;
        end = guess < take->n - begin ? begin + (uint32_t)guess : take->n;
        hri_rank_select(take->ranked + begin, take->n - begin, end - begin);
        hri_rank_sort(take->ranked + begin, end - begin);
        for (uint32_t i = begin; i < end; i++) {
            if (out->n_items == out->items_max || passed_over == PASSED_OVER_MAX)
                return false;
            if (!hri_take_one(head, in, take->ranked[i].item, &purse, out))
                passed_over++;
            else if (take->enough && take->enough(take->context, take->ranked[i].item))
                return true;
        }
    }
    return false;
}
