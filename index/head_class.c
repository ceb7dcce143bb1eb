#include "index/head_class.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

bool hri_gate_retrieves(const struct hri_index_options *o, double threshold, double share)
{
    if (!(share > 0) || !o->gates)
        return o->gate >= threshold;
    size_t n = (size_t)o->n_layers * o->n_heads, larger = 0;
    for (size_t i = 0; i < n; i++)
        larger += o->gates[i] > o->gate;
    return o->gate > 0 && (double)larger < share * (double)n;
}

hr_status_t hri_samples_create(struct hri_samples *samples, const struct hri_index_options *o)
{
    *samples = (struct hri_samples){0};
    samples->q =
        hri_array(o->scratch, (size_t)HRI_SAMPLES_MAX * o->g * o->k_dim, sizeof *samples->q);
    return samples->q ? HR_OK : hri_alloc_status();
}

void hri_samples_destroy(struct hri_samples *samples, const struct hri_index_options *o)
{
    hri_free(o->scratch, samples->q);
    *samples = (struct hri_samples){0};
}

void hri_samples_observe(struct hri_samples *samples, const struct hri_index_options *o,
                         const float *q, uint32_t n, uint32_t first_position)
{
    size_t width = (size_t)o->g * o->k_dim;
    uint32_t stride = n / HRI_SAMPLES_PER_CALL ? n / HRI_SAMPLES_PER_CALL : 1;
    for (uint32_t i = (n - 1) % stride; n > 1 && i < n; i += stride) {
        memcpy(samples->q + samples->next * width, q + i * width, width * sizeof *q);
        samples->position[samples->next] = first_position + i;
        samples->next = (samples->next + 1) % HRI_SAMPLES_MAX;
        samples->n += samples->n < HRI_SAMPLES_MAX;
    }
}

/* One query vector over n rows: weights (sum 1) into w. */
static void attend_one(const struct hri_index_options *o, const float *q, const float *k,
                       uint32_t n, float *w)
{
    struct hri_rows rows = {
        .base = k, .stride_bytes = o->k_dim * sizeof *k, .n = n, .dtype = HR_DTYPE_F32};
    o->kernels->score_rows(q, 1, o->k_dim, rows, o->soft_cap, w, n);
    float total = o->kernels->exp_sum(w, o->kernels->max(w, n), w, n);
    for (uint32_t i = 0; i < n; i++)
        w[i] /= total;
}

static void weigh_values(const struct hri_index_options *o, const float *w, const float *v,
                         uint32_t n, float *out)
{
    double sum[HR_HEAD_DIM_MAX] = {0};
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < o->v_dim; j++)
            sum[j] += (double)w[i] * v[(size_t)i * o->v_dim + j];
    for (uint32_t j = 0; j < o->v_dim; j++)
        out[j] = (float)sum[j];
}

uint32_t hri_samples_attend(const struct hri_samples *samples, const struct hri_index_options *o,
                            const float *k, const float *v, uint32_t n, uint32_t first_row,
                            uint32_t window, double *far, float *out, float *row_mass, float *work)
{
    uint32_t found = 0, first = o->n_sink + first_row;
    for (uint32_t s = 0; s < samples->n; s++) {
        uint32_t position = samples->position[s];
        if (position < first || position >= first + n)
            continue;
        uint32_t seen = position - first + 1, back = seen > window ? seen - window : 0;
        double share = 0;
        for (uint32_t g = 0; g < o->g; g++) {
            attend_one(o, samples->q + ((size_t)s * o->g + g) * o->k_dim, k, seen, work);
            for (uint32_t i = 0; i < back; i++)
                share += work[i];
            for (uint32_t i = 0; row_mass && i < seen; i++)
                row_mass[i] += work[i];
            if (out)
                weigh_values(o, work, v, seen, out + ((size_t)found * o->g + g) * o->v_dim);
        }
        far[found++] = share / o->g;
    }
    return found;
}

void hri_class_top(const double *score, uint32_t n, double share, bool *retrieves)
{
    uint32_t wanted = (uint32_t)ceil(share * n - 1e-9);
    for (uint32_t h = 0; h < n; h++) {
        uint32_t better = 0;
        for (uint32_t i = 0; i < n; i++)
            better += score[i] > score[h] || (!(score[h] > score[i]) && i < h);
        retrieves[h] = better < wanted;
    }
}

hr_status_t hri_class_by_reach(struct hri_index_head *const *heads, uint32_t n_heads,
                               const struct hri_samples *const *samples, const float *k,
                               const float *v, uint32_t n, uint32_t first_row, double share,
                               bool *retrieves, bool *measured_out)
{
    const struct hri_index_options *o = &heads[0]->options;
    uint32_t window = (uint32_t)hri_recipe_value(&o->recipe, "window");
    double far[HRI_SAMPLES_MAX], reach[HR_HEADS_MAX];
    float *work = hri_array(o->scratch, n + (size_t)1, sizeof *work);
    if (!work)
        return hri_alloc_status();
    *measured_out = true;
    for (uint32_t h = 0; h < n_heads; h++) {
        uint32_t found = hri_samples_attend(samples[h], o, k + (size_t)h * n * o->k_dim,
                                            v + (size_t)h * n * o->v_dim, n, first_row, window, far,
                                            NULL, NULL, work);
        reach[h] = 0;
        for (uint32_t i = 0; i < found; i++)
            reach[h] += far[i] / found;
        *measured_out &= found > 0;
    }
    hri_free(o->scratch, work);
    if (*measured_out)
        hri_class_top(reach, n_heads, share, retrieves);
    return HR_OK;
}

void hri_samples_image(struct hri_samples *samples, const struct hri_index_options *o,
                       struct hri_image *im)
{
    hri_image_u32(im, &samples->n, HRI_SAMPLES_MAX, "too many samples");
    hri_image_u32(im, &samples->next, HRI_SAMPLES_MAX - 1, "no such sample");
    hri_image_u32s(im, samples->position, samples->n, UINT32_MAX, "no such position");
    hri_image_floats(im, samples->q, (size_t)samples->n * o->g * o->k_dim);
}
