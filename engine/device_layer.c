/* The launches of a layer. Few rows of activations are float32, many bfloat16: the products decide. */
#include "engine/device.h"

struct hre_device_rows hre_device_rows_for(const struct hre_device *d, uint32_t n)
{
    return n <= HRI_CUDA_LINEAR_ROWS_MAX ? (struct hre_device_rows){d->few, HR_DTYPE_F32}
                                         : (struct hre_device_rows){d->half, HR_DTYPE_BF16};
}

/* Several matrices with the same rows. */
struct product {
    const struct hre_device_weight *w;
    float *y;
};

/* By cuBLAS; false: not. It is given up at the first failure, which is not the device's: that would come out of the next launch. */
static bool blas_product(struct hre_device *d, const struct hri_cuda_matmul_args *a, int *error_out)
{
    const struct hri_cuda_product *p = &a->product;

    if (!d->blas || d->blas_failed) {
        return false;
    }
    *error_out = p->bias ? d->launch->repeat(p->bias, a->m, p->rows, p->y, d->stream) : 0;
    if (*error_out != 0) {
        return true;
    }
    int status = hri_cublas_matmul(d->blas, a, p->bias != NULL);
    if (status != 0) {
        hri_log_warn(&d->log, "%s gave status %d; its products are done without it",
                     hri_cublas_name(d->blas), status);
        d->blas_failed = true;
    }
    return status == 0;
}

static int products(struct hre_device *d, struct hre_device_rows x, uint32_t m,
                    const struct product *list, uint32_t n, void *stream)
{
    struct hri_cuda_linear_args few = {.x = x.data,
                                       .m = m,
                                       .cols = list[0].w->cols,
                                       .n_products = n,
                                       .work = d->linear_work,
                                       .arrived = d->linear_arrived};

    for (uint32_t i = 0; i < n; i++) {
        const struct hre_device_weight *w = list[i].w;
        few.products[i] = (struct hri_cuda_product){w->w, w->bias, list[i].y, w->rows};
    }
    if (x.dtype == HR_DTYPE_F32) {
        return d->launch->linear(&few, stream);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct hri_cuda_matmul_args many = {
            .x = x.data, .m = m, .cols = few.cols, .product = few.products[i]};
        int error = 0;

        if (!blas_product(d, &many, &error)) {
            error = d->launch->matmul(&many, stream);
        }
        HRE_LAUNCHED(error);
    }
    return 0;
}

int hre_device_product(struct hre_device *d, struct hre_device_rows x, uint32_t m,
                       const struct hre_device_weight *w, float *y, void *stream)
{
    return products(d, x, m, &(struct product){w, y}, 1, stream);
}

static int norm(const hre_model_t *model, const struct hre_device_norm *norm, float *x,
                const float *delta, struct hre_device_rows y, uint32_t n, void *stream)
{
    struct hri_cuda_norm_args args = {.x = x,
                                      .delta = delta,
                                      .weight = norm->weight,
                                      .bias = norm->bias,
                                      .eps = model->norm_eps,
                                      .width = model->info.width,
                                      .y = y.data,
                                      .y_dtype = y.dtype};

    return model->device->launch->norm(&args, n, stream);
}

int hre_device_embed(const hre_model_t *model, uint32_t n, void *stream)
{
    const struct hre_device *d = model->device;
    struct hri_cuda_embed_args args = {.table = d->embedding.w,
                                       .ids = d->ids,
                                       .smear = d->smear,
                                       .x = d->x,
                                       .width = model->info.width};

    return d->launch->embed(&args, n, stream);
}

int hre_device_layer_begin(const hre_model_t *model, uint32_t layer, const float *delta, uint32_t n,
                           struct hre_device_qkv to, void *stream)
{
    struct hre_device *d = model->device;
    const struct hre_model_info *info = &model->info;
    const struct hre_device_layer *l = &d->layers[layer];
    const struct product list[] = {{&l->q, to.q}, {&l->k, to.k}, {&l->v, to.v}};
    struct hre_device_rows y = hre_device_rows_for(d, n);
    const size_t table = (size_t)model->layers[layer].rope * d->rows_max * (info->n_rot / 2);
    struct hri_cuda_rope_args rope = {.q = to.q,
                                      .k = to.k,
                                      .n_q = info->n_q_heads,
                                      .n_kv = info->n_kv_heads,
                                      .dim = info->k_dim,
                                      .n_rot = info->n_rot,
                                      .layout = info->rope_layout,
                                      .cosine = d->cosine + table,
                                      .sine = d->sine + table};

    HRE_LAUNCHED(norm(model, &l->attn_norm, d->x, delta, y, n, stream));
    HRE_LAUNCHED(products(d, y, n, list, 3, stream));
    return d->launch->rope(&rope, n, stream);
}

int hre_device_layer_end(const hre_model_t *model, uint32_t layer, struct hre_device_rows att,
                         float *x, uint32_t n, void *stream)
{
    struct hre_device *d = model->device;
    const struct hre_device_layer *l = &d->layers[layer];
    const struct product wide[] = {{&l->up, d->up}, {&l->gate, d->gate}};
    const uint32_t gated = l->gate.w != NULL;
    struct hre_device_rows y = hre_device_rows_for(d, n);

    HRE_LAUNCHED(hre_device_product(d, att, n, &l->output, d->h, stream));
    HRE_LAUNCHED(norm(model, &l->ffn_norm, x, d->h, y, n, stream));
    HRE_LAUNCHED(products(d, y, n, wide, 1 + gated, stream));
    HRE_LAUNCHED(d->launch->activate(gated ? d->gate : NULL, d->up,
                                     (size_t)n * model->info.ffn_width, y.data, y.dtype, stream));
    return hre_device_product(d, y, n, &l->down, d->h, stream);
}

int hre_device_output_norm(const hre_model_t *model, float *x, const float *delta, uint32_t n,
                           void *stream)
{
    const struct hre_device *d = model->device;

    return norm(model, &d->output_norm, x, delta, hre_device_rows_for(d, n), n, stream);
}
