/* Single rows of blocks: their order, and their attention from int8 codes that lie anywhere. */
#include "index/ladder.h"

#include <math.h>
#include <string.h>

#define CHUNK 128u /* rows attended at a time */

static int row_order(const struct hri_row_ref *a, const struct hri_row_ref *b)
{
    return a->block != b->block ? (a->block < b->block ? -1 : 1)
                                : (a->row > b->row) - (a->row < b->row);
}

/* Shell sort: few rows, and the C library's sort may allocate. */
void hri_ladder_rows_sort(struct hri_row_ref *rows, uint32_t n)
{
    static const uint32_t gaps[] = {29524, 9841, 3280, 1093, 364, 121, 40, 13, 4, 1};
    for (size_t k = 0; k < sizeof gaps / sizeof *gaps; k++)
        for (uint32_t i = gaps[k]; i < n; i++) {
            struct hri_row_ref row = rows[i];
            uint32_t j = i;
            for (; j >= gaps[k] && row_order(&row, &rows[j - gaps[k]]) < 0; j -= gaps[k])
                rows[j] = rows[j - gaps[k]];
            rows[j] = row;
        }
}

static void rows_attend(const struct hri_index_head *head, const struct hri_select_in *in,
                        const struct hri_step *step, const struct hri_row_ref *rows, uint32_t n,
                        const int8_t *const *codes, struct hri_partial *part)
{
    const struct hri_index_options *o = &head->options;
    float logit[HR_GROUP_MAX * CHUNK], k_step[CHUNK], v_step[CHUNK], v_scale[CHUNK];
    float l[HR_GROUP_MAX], m[HR_GROUP_MAX], sum[HR_GROUP_MAX * HR_HEAD_DIM_MAX];
    const int8_t *centre[CHUNK];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t b = rows[i].block;
        k_step[i] = head->k_step[b];
        v_step[i] = head->v_step[b];
        v_scale[i] = head->summary.v_scale[b];
        centre[i] = head->summary.v_codes + (size_t)b * o->v_dim;
    }
    o->kernels->score_gather_i8(in->q, o->g, o->k_dim, codes, k_step, n, logit, CHUNK);
    for (uint32_t g = 0; g < o->g; g++) {
        float *x = logit + g * CHUNK;
        for (uint32_t i = 0; i < n; i++)
            x[i] += step->dots[g * step->stride + rows[i].block];
        for (uint32_t i = 0; o->soft_cap > 0 && i < n; i++)
            x[i] = o->soft_cap * tanhf(x[i] / o->soft_cap);
        m[g] = o->kernels->max(x, n);
        l[g] = o->kernels->exp_sum(x, m[g], x, n);
    }
    memset(sum, 0, (size_t)o->g * o->v_dim * sizeof(float));
    o->kernels->sum_gather_i8(logit, CHUNK, o->g, o->k_dim, o->v_dim, codes, v_step, n, sum);
    o->kernels->sum_gather_i8(logit, CHUNK, o->g, 0, o->v_dim, centre, v_scale, n, sum);
    struct hri_partial rows_part = {m, l, sum};
    hri_partial_merge(part, &rows_part, o->g, o->v_dim);
}

void hri_ladder_attend_rows(const struct hri_index_head *head, const struct hri_select_in *in,
                            const struct hri_step *step, const struct hri_select_out *out,
                            const int8_t *const *codes, struct hri_partial *part)
{
    for (uint32_t i = 0; i < out->n_rows; i += CHUNK) {
        uint32_t n = out->n_rows - i < CHUNK ? out->n_rows - i : CHUNK;
        rows_attend(head, in, step, out->rows + i, n, codes + i, part);
    }
}
