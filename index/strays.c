#include "index/strays.h"

#include "index/head.h"
#include "index/image.h"

uint32_t hri_strays_max(const struct hri_index_options *o)
{
    return o->rows_max / HRI_STRAY_ROWS + 1;
}

uint64_t hri_strays_bytes(const struct hri_index_options *o, uint32_t n)
{
    return (uint64_t)n * (o->k_dim + sizeof(uint32_t) + sizeof(uint8_t) + sizeof(float));
}

bool hri_strays_create(const struct hri_index_options *o, struct hri_strays *s)
{
    s->n = 0;
    s->max = hri_strays_max(o);
    s->block = hri_array(o->device, s->max, sizeof *s->block);
    s->row = hri_array(o->device, s->max, 1);
    s->step = hri_array(o->device, s->max, sizeof *s->step);
    s->key = hri_aligned(o->device, 64, (size_t)s->max * o->k_dim);
    return s->block && s->row && s->step && s->key;
}

void hri_strays_destroy(const struct hri_index_options *o, struct hri_strays *s)
{
    hri_free(o->device, s->block);
    hri_free(o->device, s->row);
    hri_free(o->device, s->step);
    hri_free(o->device, s->key);
}

/* The code above which there are at most `room` rows, `least` or more. */
static uint32_t code_above(const uint8_t *missed, uint32_t n, uint32_t least, uint32_t room)
{
    uint32_t count[256] = {0}, code = 255, taken = 0;
    for (uint32_t i = 0; i < n; i++)
        count[missed[i]]++;
    for (; code > least && taken + count[code] <= room; code--)
        taken += count[code];
    return code;
}

static void keep(struct hri_index_head *head, uint32_t block, uint32_t row, const float *k,
                 const float *center)
{
    struct hri_strays *s = &head->sketch->strays;
    uint32_t d = head->options.k_dim;
    s->block[s->n] = block;
    s->row[s->n] = (uint8_t)row;
    s->step[s->n] =
        head->options.kernels->quantise_i8(k, d, 1, d, center, s->key + (size_t)s->n * d, d);
    s->n++;
}

uint32_t hri_strays_add(struct hri_index_head *head, const struct hri_segment *segment,
                        uint32_t least, uint8_t *missed)
{
    struct hri_strays *s = &head->sketch->strays;
    uint32_t d = head->options.k_dim, before = s->n, room = segment->n / HRI_STRAY_ROWS + 1;
    float k_center[HR_HEAD_DIM_MAX], v_center[HR_HEAD_DIM_MAX];
    room = room < s->max - s->n ? room : s->max - s->n;
    uint32_t above = code_above(missed, segment->n, least, room);
    for (uint32_t b = 0, at = 0; b < segment->n_blocks; b++) {
        bool centred = false;
        for (uint32_t i = 0; i < segment->block_rows[b]; i++, at++) {
            if (missed[at] <= above)
                continue;
            if (!centred)
                hri_summary_centers(head, head->n_blocks + b, k_center, v_center);
            centred = true;
            keep(head, head->n_blocks + b, i, segment->k + (size_t)segment->order[at] * d,
                 k_center);
            missed[at] = 0;
        }
    }
    return s->n - before;
}

void hri_strays_truncate(struct hri_strays *s, uint32_t n_blocks)
{
    while (s->n > 0 && s->block[s->n - 1] >= n_blocks)
        s->n--;
}

uint32_t hri_strays_from(const struct hri_strays *s, uint32_t i, uint32_t block)
{
    while (i < s->n && s->block[i] < block)
        i++;
    return i;
}

void hri_strays_image(struct hri_index_head *head, struct hri_image *im)
{
    struct hri_strays *s = &head->sketch->strays;
    hri_image_u32(im, &s->n, s->max, "too many stray rows");
    hri_image_u32s(im, s->block, s->n, head->n_blocks, "a stray row of no block");
    hri_image_bytes(im, s->row, s->n);
    for (uint32_t i = 0; im->loads && hri_image_ok(im) && i < s->n; i++) {
        uint32_t b = s->block[i];
        bool after =
            i == 0 || b > s->block[i - 1] || (b == s->block[i - 1] && s->row[i] > s->row[i - 1]);
        hri_image_check(im, after && s->row[i] < head->block_rows[b], "a stray row is misplaced");
    }
    hri_image_floats(im, s->step, s->n);
    hri_image_bytes(im, s->key, (size_t)s->n * head->options.k_dim);
}
