/* Families of blocks: how they are made and kept (docs/algorithm.md, Families). */
#include "index/families.h"

#include "base/arena.h"
#include "base/assert.h"
#include "base/half.h"
#include "index/group.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define BLOCKS_MEAN 8u /* of a family; at most twice as many */
#define ITERATIONS  4u

static uint32_t broods_max(const struct hri_index_options *o)
{
    return o->blocks_max / HRI_BROOD_BLOCKS + HRI_BROOD_BLOCKS / HRI_BROOD_LEAST;
}

/* Blocks that may be in families. */
static uint32_t members_max(const struct hri_index_options *o)
{
    return o->blocks_max / HRI_BROOD_LEAST * HRI_BROOD_LEAST;
}

static uint32_t members(const struct hri_families *fs)
{
    return fs->n_broods > 0 ? fs->brood[fs->n_broods - 1].blocks_end : 0;
}

bool hri_families_wanted(const struct hri_index_options *o)
{
    return hri_recipe_value(&o->recipe, "families") > 0 &&
           hri_recipe_value(&o->recipe, "sketch") <= 0 && o->soft_cap == 0 &&
           o->blocks_max >= HRI_FAMILIES_LEAST;
}

uint32_t hri_families_max(const struct hri_index_options *o)
{
    return members_max(o) / BLOCKS_MEAN;
}

/* Of the head whose blocks are families. */
static struct hri_index_options top_options(const struct hri_index_options *o)
{
    struct hri_index_options top = *o;
    top.blocks_max = hri_families_max(o);
    return top;
}

static uint64_t bytes_of(const struct hri_index_options *o, uint32_t n, uint32_t n_blocks)
{
    struct hri_index_options top = top_options(o);
    return hri_summary_bytes(&top, n) + hri_shape_bytes(&top, n) +
           n * (2 * sizeof(uint32_t) + 2 * sizeof(float) + sizeof(uint16_t)) + sizeof(uint32_t) +
           broods_max(o) * sizeof(struct hri_brood) +
           n_blocks * (sizeof(uint32_t) + sizeof(float)) + hri_centroids_bytes(n_blocks, o->k_dim);
}

uint64_t hri_families_bytes(const struct hri_index_options *o)
{
    return hri_families_wanted(o) ? bytes_of(o, hri_families_max(o), members_max(o)) : 0;
}

uint64_t hri_families_held(const struct hri_index_head *head)
{
    const struct hri_families *f = head->families;
    return f ? bytes_of(&head->options, f->n, members(f)) : 0;
}

hr_status_t hri_families_create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    if (!hri_families_wanted(o))
        return HR_OK;
    struct hri_families *f = hri_calloc(o->scratch, 1, sizeof *f);
    if (!f)
        return hri_alloc_status();
    head->families = f;
    f->top.options = top_options(o);
    uint32_t n = f->top.options.blocks_max, n_blocks = members_max(o);
    hr_status_t status = hri_summary_create(&f->top);
    if (status == HR_OK)
        status = hri_shape_create(&f->top);
    if (status != HR_OK)
        goto err;
    f->brood = hri_array(o->device, broods_max(o), sizeof *f->brood);
    f->first = hri_calloc(o->device, n + 1, sizeof(uint32_t));
    f->member = hri_array(o->device, n_blocks, sizeof(uint32_t));
    f->rows = hri_array(o->device, n, sizeof(uint32_t));
    f->per_block = hri_array(o->device, n, sizeof(float));
    f->per_row = hri_array(o->device, n, sizeof(float));
    f->within = hri_array(o->device, n, sizeof(uint16_t));
    f->k_codes = hri_aligned(o->device, 64, hri_centroids_bytes(n_blocks, o->k_dim));
    f->k_scale = hri_aligned(o->device, 64, n_blocks * sizeof(float));
    if (f->brood && f->first && f->member && f->rows && f->per_block && f->per_row && f->within &&
        f->k_codes && f->k_scale)
        return HR_OK;
    status = hri_alloc_status();
err:
    hri_families_destroy(head);
    return status;
}

void hri_families_destroy(struct hri_index_head *head)
{
    struct hri_families *f = head->families;
    struct hri_alloc *device = head->options.device;
    if (!f)
        return;
    hri_shape_destroy(&f->top);
    hri_summary_destroy(&f->top);
    hri_free(device, f->brood);
    hri_free(device, f->first);
    hri_free(device, f->member);
    hri_free(device, f->rows);
    hri_free(device, f->per_block);
    hri_free(device, f->per_row);
    hri_free(device, f->within);
    hri_free(device, f->k_codes);
    hri_free(device, f->k_scale);
    hri_free(head->options.scratch, f);
    head->families = NULL;
}

/* -- making them -- */

struct work {
    float *k, *v; /* [HRI_BROOD_BLOCKS][dim] centres of the brood's blocks */
    float *y;     /* [HRI_BROOD_BLOCKS][dims] points */
    float *weight;
    uint32_t *order, *counts;
    void *rest; /* of points, grouping, shape, one after the other */
};

static size_t rest_bytes(const struct hri_index_options *o)
{
    size_t points = hri_points_work_bytes(o->k_dim, o->v_dim);
    size_t grouping = hri_group_kmeans_work_bytes(HRI_BROOD_BLOCKS,
                                                  hri_points_dims(o->k_dim, o->v_dim), BLOCKS_MEAN);
    size_t shape = hri_shape_work_bytes(o);
    size_t most = points > grouping ? points : grouping;
    return most > shape ? most : shape;
}

size_t hri_families_work_bytes(const struct hri_index_options *o)
{
    size_t width = o->k_dim + o->v_dim + hri_points_dims(o->k_dim, o->v_dim) + 1;
    return HRI_BROOD_BLOCKS * (width * sizeof(float) + 2 * sizeof(uint32_t)) + rest_bytes(o) +
           7 * 64;
}

static struct work take_work(const struct hri_index_options *o, void *memory)
{
    struct hri_arena arena;
    struct work w;
    hri_arena_init_buffer(&arena, memory, hri_families_work_bytes(o));
    w.k = hri_arena_array(&arena, HRI_BROOD_BLOCKS, o->k_dim * sizeof(float));
    w.v = hri_arena_array(&arena, HRI_BROOD_BLOCKS, o->v_dim * sizeof(float));
    w.y = hri_arena_array(&arena, HRI_BROOD_BLOCKS,
                          hri_points_dims(o->k_dim, o->v_dim) * sizeof(float));
    w.weight = hri_arena_array(&arena, HRI_BROOD_BLOCKS, sizeof(float));
    w.order = hri_arena_array(&arena, HRI_BROOD_BLOCKS, sizeof(uint32_t));
    w.counts = hri_arena_array(&arena, HRI_BROOD_BLOCKS, sizeof(uint32_t));
    w.rest = hri_arena_array(&arena, rest_bytes(o), 1);
    HRI_ASSERT(w.rest != NULL);
    return w;
}

/* n blocks into families like rows into blocks; w->order and w->counts say which. Returns how many. */
static uint32_t brood_group(const struct hri_index_head *head, uint32_t first_block, uint32_t n,
                            const struct work *w)
{
    const struct hri_index_options *o = &head->options;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t b = first_block + i;
        hri_summary_centers(head, b, w->k + (size_t)i * o->k_dim, w->v + (size_t)i * o->v_dim);
        w->weight[i] = head->block_rows[b];
    }
    hri_points_make(&head->points, o->kernels, w->k, w->v, n, w->rest, w->y);
    struct hri_group_in in = {.kernels = o->kernels,
                              .y = w->y,
                              .weight = w->weight,
                              .n = n,
                              .d = head->points.dims,
                              .target = BLOCKS_MEAN,
                              .cap = 2 * BLOCKS_MEAN,
                              .iterations = ITERATIONS};
    return hri_group_kmeans(&in, w->rest, w->order, w->counts);
}

/* A family's mean key and value over all rows of its blocks, and what else is summed over them. */
static void family_write(struct hri_index_head *head, uint32_t f, uint32_t first_block,
                         const uint32_t *members, uint32_t n, const struct work *w)
{
    struct hri_families *fs = head->families;
    struct hri_summary *s = &fs->top.summary;
    uint32_t dk = head->options.k_dim, dv = head->options.v_dim;
    double k_sum[HR_HEAD_DIM_MAX] = {0}, v_sum[HR_HEAD_DIM_MAX] = {0}, spread = 0, rows = 0;
    float k[HR_HEAD_DIM_MAX], v[HR_HEAD_DIM_MAX], zero[HR_HEAD_DIM_MAX] = {0};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = members[i];
        double weight = head->block_rows[first_block + at];
        for (uint32_t j = 0; j < dk; j++)
            k_sum[j] += weight * (double)w->k[(size_t)at * dk + j];
        for (uint32_t j = 0; j < dv; j++)
            v_sum[j] += weight * (double)w->v[(size_t)at * dv + j];
        spread += weight * (double)hri_block_spread(head, first_block + at);
        rows += weight;
    }
    for (uint32_t j = 0; j < dk; j++)
        k[j] = (float)(k_sum[j] / rows) - s->k_mean[j];
    for (uint32_t j = 0; j < dv; j++)
        v[j] = (float)(v_sum[j] / rows);
    s->k_scale[f] = hri_centroid_pack(s->k_codes, dk, f, k);
    s->v_scale[f] =
        head->options.kernels->quantise_i8(v, dv, 1, dv, zero, s->v_codes + (size_t)f * dv, dv);
    fs->rows[f] = (uint32_t)rows;
    fs->within[f] = hri_bf16_from_f32((float)(spread / rows));
}

/* What steps need of the head's own tables and of counts, beside the families. */
static void family_derive(struct hri_families *fs, uint32_t f)
{
    fs->per_block[f] = 1 / (float)(fs->first[f + 1] - fs->first[f]);
    fs->per_row[f] = 1 / (float)fs->rows[f];
}

/* The member's summary beside those of its family. */
static void member_copy(struct hri_index_head *head, uint32_t at)
{
    struct hri_families *fs = head->families;
    const struct hri_summary *s = &head->summary;
    uint32_t dk = head->options.k_dim, b = fs->member[at];
    const uint8_t *from = s->k_codes + (size_t)(b / HRI_LANES) * HRI_LANES * dk + b % HRI_LANES * 4;
    uint8_t *to = fs->k_codes + (size_t)(at / HRI_LANES) * HRI_LANES * dk + at % HRI_LANES * 4;
    for (uint32_t j = 0; j < dk; j += 4)
        memcpy(to + (size_t)j * HRI_LANES, from + (size_t)j * HRI_LANES, 4);
    fs->k_scale[at] = s->k_scale[b];
}

/* Small broods that fill a large one with `more` blocks after them go: their blocks are put into families anew. */
static void small_leave(struct hri_families *fs, uint32_t more)
{
    if ((members(fs) + more) % HRI_BROOD_BLOCKS == 0)
        while (members(fs) % HRI_BROOD_BLOCKS != 0)
            fs->n_broods--;
    fs->n = fs->n_broods > 0 ? fs->brood[fs->n_broods - 1].families_end : 0;
}

static hr_status_t brood_make(struct hri_index_head *head, void *memory)
{
    struct hri_families *fs = head->families;
    struct work w = take_work(&head->options, memory);
    uint32_t end = members(fs) + HRI_BROOD_LEAST;
    small_leave(fs, HRI_BROOD_LEAST);
    uint32_t first_block = members(fs), at = first_block;
    uint32_t n = brood_group(head, first_block, end - first_block, &w);
    memcpy(fs->top.summary.k_mean, head->summary.k_mean, head->options.k_dim * sizeof(float));
    for (uint32_t f = 0; f < n; f++) {
        const uint32_t *own = w.order + (at - first_block);
        family_write(head, fs->n + f, first_block, own, w.counts[f], &w);
        for (uint32_t i = 0; i < w.counts[f]; i++, at++) {
            fs->member[at] = first_block + own[i];
            member_copy(head, at);
        }
        fs->first[fs->n + f + 1] = at;
        family_derive(fs, fs->n + f);
    }
    fs->top.n_blocks = fs->n;
    hr_status_t status =
        hri_shape_add(&fs->top, w.k, w.v, w.order, w.counts, n, head->points.metric, w.rest);
    if (status != HR_OK)
        return status;
    fs->n += n;
    fs->top.n_blocks = fs->n;
    fs->brood[fs->n_broods++] = (struct hri_brood){end, fs->n};
    return HR_OK;
}

hr_status_t hri_families_grow(struct hri_index_head *head, void *work)
{
    hr_status_t status = HR_OK;
    struct hri_families *fs = head->families;
    while (fs && status == HR_OK && head->n_blocks - members(fs) >= HRI_BROOD_LEAST)
        status = brood_make(head, work);
    return status;
}

void hri_families_truncate(struct hri_index_head *head)
{
    struct hri_families *fs = head->families;
    if (!fs)
        return;
    while (members(fs) > head->n_blocks)
        fs->n_broods--;
    fs->n = fs->n_broods > 0 ? fs->brood[fs->n_broods - 1].families_end : 0;
    fs->top.n_blocks = fs->n;
    if (head->n_blocks == 0)
        hri_shape_clear(&fs->top);
}

uint32_t hri_families_seen(const struct hri_index_head *head, uint32_t *n_blocks_out)
{
    const struct hri_families *fs = head->families;
    uint32_t n = fs->n_broods;
    while (n > 0 && fs->brood[n - 1].blocks_end > head->n_blocks)
        n--;
    *n_blocks_out = n > 0 ? fs->brood[n - 1].blocks_end : 0;
    return n > 0 ? fs->brood[n - 1].families_end : 0;
}

/* -- saving -- */

/* Every block of a brood is in one of its families, once. */
static bool members_right(const struct hri_families *fs, uint32_t begin, struct hri_brood brood)
{
    uint8_t seen[HRI_BROOD_BLOCKS] = {0};
    for (uint32_t i = begin; i < brood.blocks_end; i++) {
        uint32_t at = fs->member[i] - begin;
        if (at >= brood.blocks_end - begin || seen[at]++)
            return false;
    }
    return fs->first[brood.families_end] == brood.blocks_end;
}

static void broods_check(const struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_families *fs = head->families;
    struct hri_brood last = {0};
    for (uint32_t i = 0; hri_image_ok(im) && i < fs->n_broods; i++) {
        struct hri_brood b = fs->brood[i];
        hri_image_check(im,
                        b.blocks_end > last.blocks_end && b.blocks_end <= head->n_blocks &&
                            b.blocks_end - last.blocks_end <= HRI_BROOD_BLOCKS &&
                            b.blocks_end % HRI_BROOD_LEAST == 0 &&
                            b.families_end > last.families_end &&
                            b.families_end - last.families_end <=
                                (b.blocks_end - last.blocks_end) / BLOCKS_MEAN,
                        "broods do not follow each other");
        last = b;
    }
}

static void members_image(struct hri_index_head *head, struct hri_image *im)
{
    struct hri_families *fs = head->families;
    hri_image_bytes(im, fs->brood, fs->n_broods * sizeof *fs->brood);
    if (im->loads)
        broods_check(head, im);
    if (!hri_image_ok(im))
        return;
    uint32_t n = members(fs);
    fs->n = fs->n_broods > 0 ? fs->brood[fs->n_broods - 1].families_end : 0;
    fs->top.n_blocks = fs->n;
    hri_image_u32s(im, fs->first, fs->n + 1, n + 1, "a family lies beyond the blocks");
    for (uint32_t f = 0; im->loads && hri_image_ok(im) && f < fs->n; f++)
        hri_image_check(im, fs->first[f] < fs->first[f + 1], "families do not ascend");
    hri_image_check(im, fs->first[0] == 0, "families do not begin with the first block");
    hri_image_u32s(im, fs->member, n, n, "a member is no block");
    for (uint32_t i = 0; im->loads && hri_image_ok(im) && i < fs->n_broods; i++)
        hri_image_check(im,
                        members_right(fs, i > 0 ? fs->brood[i - 1].blocks_end : 0, fs->brood[i]),
                        "families do not hold their brood's blocks");
}

void hri_families_image(struct hri_index_head *head, struct hri_image *im)
{
    struct hri_families *fs = head->families;
    if (!fs)
        return;
    hri_image_u32(im, &fs->n_broods, broods_max(&head->options),
                  "more broods than there are blocks for");
    members_image(head, im);
    if (!hri_image_ok(im))
        return;
    hri_image_u32s(im, fs->rows, fs->n, UINT32_MAX, "");
    hri_image_bytes(im, fs->within, fs->n * sizeof *fs->within);
    for (uint32_t f = 0; im->loads && hri_image_ok(im) && f < fs->n; f++)
        hri_image_check(im, fs->rows[f] > 0 && isfinite(hri_f32_from_bf16(fs->within[f])),
                        "a family has no rows or no spread");
    hri_summary_image(&fs->top, im);
    hri_shape_image(&fs->top, im);
    for (uint32_t f = 0; im->loads && hri_image_ok(im) && f < fs->n; f++)
        family_derive(fs, f);
    for (uint32_t at = 0; im->loads && hri_image_ok(im) && at < members(fs); at++)
        member_copy(head, at);
}
