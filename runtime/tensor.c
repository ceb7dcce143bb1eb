/* Tensors of the public API: checks, loads of queries, stores of outputs. */
#include "runtime/sequence.h"

#include "base/error.h"
#include <math.h>
#include <string.h>

struct hr_tensor hr_tensor_make(void *data, hr_dtype_t dtype, uint32_t n_tokens, uint32_t n_heads,
                                uint32_t dim)
{
    struct hr_tensor t = {
        .data = data, .dtype = dtype, .shape = {n_tokens, n_heads, dim}, .strides = {0, 0, 0}};
    return t;
}

size_t hr_dtype_bytes(hr_dtype_t dtype)
{
    switch (dtype) {
    case HR_DTYPE_F32:
        return 4;
    case HR_DTYPE_F16:
    case HR_DTYPE_BF16:
        return 2;
    }
    return 0;
}

const char *hr_dtype_name(hr_dtype_t dtype)
{
    switch (dtype) {
    case HR_DTYPE_F32:
        return "f32";
    case HR_DTYPE_F16:
        return "f16";
    case HR_DTYPE_BF16:
        return "bf16";
    }
    return "?";
}

hr_status_t hri_tensor_check(const struct hr_tensor *t, const char *name, uint32_t n_tokens,
                             uint32_t n_heads, uint32_t dim)
{
    if (t == NULL || t->data == NULL) {
        return hri_error_set(HR_ERR_INVALID, "%s: no tensor or no data", name);
    }
    if (hr_dtype_bytes(t->dtype) == 0) {
        return hri_error_set(HR_ERR_DTYPE, "%s: dtype %d is none of f32, f16, bf16", name,
                             (int)t->dtype);
    }
    if (t->shape[0] != n_tokens || t->shape[1] != n_heads || t->shape[2] != dim) {
        return hri_error_set(HR_ERR_SHAPE, "%s: shape [%u][%u][%u] where [%u][%u][%u] is needed",
                             name, t->shape[0], t->shape[1], t->shape[2], n_tokens, n_heads, dim);
    }
    bool contiguous = t->strides[0] == 0 && t->strides[1] == 0 && t->strides[2] == 0;
    if (!contiguous && (t->strides[2] != 1 || (n_heads > 1 && t->strides[1] == 0) ||
                        (n_tokens > 1 && t->strides[0] == 0))) {
        return hri_error_set(
            HR_ERR_SHAPE,
            "%s: strides [%lld][%lld][%lld]: the last must be 1, the others not 0 (or all 0)", name,
            (long long)t->strides[0], (long long)t->strides[1], (long long)t->strides[2]);
    }
    return HR_OK;
}

hr_status_t hri_queries_load(hr_sequence_t *s, const struct hri_layer *layer,
                             const struct hr_tensor *q, uint32_t first, uint32_t n,
                             uint32_t position, float *dst)
{
    const struct hri_kernels *kern = s->runtime->kernels;
    for (uint32_t i = 0; i < n; i++) {
        float log_n = logf((float)(position + i + 1));
        for (uint32_t h = 0; h < s->n_q; h++) {
            const unsigned char *src = hri_tensor_row(q, first + i, h);
            size_t bad = kern->find_nonfinite(src, q->dtype, s->dk);
            if (bad < s->dk) {
                return hri_error_set(HR_ERR_NONFINITE,
                                     "q: token %u, head %u, dimension %zu is not finite", first + i,
                                     h, bad);
            }
            float *row = dst + (((size_t)(h / s->g) * n + i) * s->g + h % s->g) * s->dk;
            kern->to_f32(row, src, q->dtype, s->dk);
            float factor = hri_query_factor(s, layer, h, log_n);
            for (uint32_t j = 0; j < s->dk; j++) {
                row[j] *= factor;
            }
        }
    }
    return HR_OK;
}

void hri_out_store(const hr_sequence_t *s, struct hr_tensor *out, uint32_t token, uint32_t head,
                   const float *src)
{
    union {
        const unsigned char *in;
        unsigned char *out;
    } row = {.in = hri_tensor_row(out, token, head)};
    s->runtime->kernels->from_f32(row.out, src, out->dtype, s->dv);
}
