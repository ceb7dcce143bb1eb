#include "index/image.h"

#include "base/error.h"
#include "index/head.h"

#include <math.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "images are little endian");

void hri_image_refuse(struct hri_image *im, const char *what)
{
    if (im->status == HR_OK)
        im->status = hri_error_set(HR_ERR_CORRUPT, "saved index: %s", what);
}

void hri_image_check(struct hri_image *im, bool right, const char *what)
{
    if (im->loads && !right)
        hri_image_refuse(im, what);
}

void hri_image_bytes(struct hri_image *im, void *data, size_t bytes)
{
    if (im->status == HR_OK && bytes > 0)
        im->status = im->move(im->context, data, bytes);
}

void hri_image_u32(struct hri_image *im, uint32_t *x, uint32_t max, const char *what)
{
    uint32_t value = *x;
    hri_image_bytes(im, &value, sizeof value);
    hri_image_check(im, value <= max, what);
    if (im->loads && im->status == HR_OK)
        *x = value;
}

void hri_image_u64(struct hri_image *im, uint64_t *x)
{
    hri_image_bytes(im, x, sizeof *x);
}

void hri_image_flag(struct hri_image *im, bool *x)
{
    uint32_t value = *x;
    hri_image_u32(im, &value, 1, "a flag is neither 0 nor 1");
    *x = value != 0;
}

void hri_image_u32s(struct hri_image *im, uint32_t *x, size_t n, uint32_t below, const char *what)
{
    hri_image_bytes(im, x, n * sizeof *x);
    for (size_t i = 0; im->loads && im->status == HR_OK && i < n; i++)
        hri_image_check(im, x[i] < below, what);
}

void hri_image_floats(struct hri_image *im, float *x, size_t n)
{
    hri_image_bytes(im, x, n * sizeof *x);
    for (size_t i = 0; im->loads && im->status == HR_OK && i < n; i++)
        hri_image_check(im, isfinite(x[i]), "a number is not finite");
}

void hri_image_doubles(struct hri_image *im, double *x, size_t n)
{
    hri_image_bytes(im, x, n * sizeof *x);
    for (size_t i = 0; im->loads && im->status == HR_OK && i < n; i++)
        hri_image_check(im, isfinite(x[i]), "a number is not finite");
}

void hri_image_halfs(struct hri_image *im, uint16_t *x, size_t n)
{
    hri_image_bytes(im, x, n * sizeof *x);
    for (size_t i = 0; im->loads && im->status == HR_OK && i < n; i++)
        hri_image_check(im, (x[i] & 0x7c00) != 0x7c00, "a number is not finite");
}

/* -- a head -- */

static void blocks_image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    uint32_t cap = hri_index_block_rows_max(&o->recipe, o->k_dim, o->v_dim), rows = 0;
    hri_image_bytes(im, head->block_rows, head->n_blocks);
    for (uint32_t b = 0; im->loads && hri_image_ok(im) && b < head->n_blocks; b++) {
        hri_image_check(im, head->block_rows[b] >= 1 && head->block_rows[b] <= cap,
                        "a block has no rows or too many");
        rows += head->block_rows[b];
    }
    hri_image_check(im, head->n_blocks == 0 || rows == head->n_rows,
                    "blocks do not hold the rows of the body");
    if (head->k_step) {
        hri_image_floats(im, head->k_step, head->n_blocks);
        hri_image_floats(im, head->v_step, head->n_blocks);
    }
}

bool hri_index_saves(const struct hri_recipe *recipe)
{
    const struct hri_selector_ops *ops = recipe->selector->ops;
    return ops->create == NULL || ops->image != NULL;
}

static void tables_image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    hri_image_u32(im, &head->n_rows, o->rows_max, "more rows than there is room for");
    blocks_image(head, im);
    if (head->keeps_stats)
        hri_qstats_image(&head->stats, im);
    if (head->summary.k_codes)
        hri_summary_image(head, im);
    if (head->bounds.min)
        hri_bounds_image(head, im);
    if (head->shape.joint)
        hri_shape_image(head, im);
    if (head->points.metric)
        hri_points_image(&head->points, im);
    if (head->sketch)
        hri_sketch_image(head, im);
    if (head->ops->image && hri_image_ok(im))
        head->ops->image(head, im);
}

hr_status_t hri_index_image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    uint32_t seen = head->n_blocks; /* the others were made ahead */
    hri_index_show(head);
    hri_image_u32(im, &head->n_blocks, o->blocks_max, "more blocks than there is room for");
    hri_image_u32(im, &seen, head->n_blocks, "more blocks are seen than there are");
    hri_image_check(im, seen == head->n_blocks || o->recipe.selector->makes_ahead,
                    "blocks were made ahead");
    tables_image(head, im);
    if (seen < head->n_blocks)
        hri_index_hide(head, seen);
    return im->status;
}

void hri_index_link(struct hri_index_head *const *heads, uint32_t n_heads)
{
    if (heads[0]->ops->link)
        heads[0]->ops->link(heads, n_heads);
}

/* -- forks -- */

/* Selectors that remember from step to step, or point to their neighbours, have state that cannot be two heads'. */
bool hri_index_shares(const struct hri_recipe *recipe)
{
    const struct hri_selector_ops *ops = recipe->selector->ops;
    return ops->observe == NULL && ops->forget == NULL && ops->link == NULL;
}

bool hri_index_is_shared(const struct hri_index_head *head)
{
    return head->shared != NULL && *head->shared > 1;
}

hr_status_t hri_index_share(struct hri_index_head *head, const float *gates,
                            struct hri_index_head **head_out)
{
    struct hri_alloc *scratch = head->options.scratch;
    struct hri_index_head *own = hri_array(scratch, 1, sizeof *own);
    if (own == NULL)
        return hri_alloc_status();
    if (head->shared == NULL) {
        head->shared = hri_array(scratch, 1, sizeof *head->shared);
        if (head->shared == NULL) {
            hri_free(scratch, own);
            return hri_alloc_status();
        }
        *head->shared = 1;
    }
    memcpy(own, head, sizeof *own);
    own->options.gates = gates;
    hr_status_t status = head->keeps_stats ? hri_qstats_copy(&head->stats, &own->stats) : HR_OK;
    if (status != HR_OK) {
        hri_free(scratch, own);
        return status;
    }
    ++*head->shared;
    *head_out = own;
    return HR_OK;
}

struct pipe {
    unsigned char *bytes;
    size_t at, capacity; /* bytes NULL: counts */
};

static hr_status_t pipe_write(void *context, void *data, size_t bytes)
{
    struct pipe *p = context;
    if (p->bytes != NULL)
        memcpy(p->bytes + p->at, data, bytes);
    p->at += bytes;
    return HR_OK;
}

static hr_status_t pipe_read(void *context, void *data, size_t bytes)
{
    struct pipe *p = context;
    if (bytes > p->capacity - p->at)
        return hri_error_set(HR_ERR_INTERNAL, "index head: its copy ends too early");
    memcpy(data, p->bytes + p->at, bytes);
    p->at += bytes;
    return HR_OK;
}

hr_status_t hri_index_copy(struct hri_index_head *from, struct hri_index_head *to)
{
    struct hri_alloc *scratch = from->options.scratch;
    struct pipe p = {0};
    struct hri_image out = {.move = pipe_write, .context = &p};
    struct hri_image in = {.move = pipe_read, .context = &p, .loads = true};
    hr_status_t status = hri_index_image(from, &out);
    p.capacity = p.at;
    p.at = 0;
    p.bytes = status == HR_OK ? hri_array(scratch, p.capacity, 1) : NULL;
    if (status == HR_OK && p.bytes == NULL)
        status = hri_alloc_status();
    if (status == HR_OK)
        status = hri_index_image(from, &out);
    p.at = 0;
    if (status == HR_OK)
        status = hri_index_image(to, &in);
    hri_free(scratch, p.bytes);
    return status;
}
