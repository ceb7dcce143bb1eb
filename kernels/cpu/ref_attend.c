/* Plain C: attention over exact rows and over int8 blocks. One query at a time, one row at a time,
 * in double. */
#include "base/half.h"
#include "kernels/cpu/ops.h"

#include <math.h>

static double element(const void *row, hr_dtype_t dtype, uint32_t j)
{
    switch (dtype) {
    case HR_DTYPE_F16:
        return (double)hri_f32_from_f16(((const uint16_t *)row)[j]);
    case HR_DTYPE_BF16:
        return (double)hri_f32_from_bf16(((const uint16_t *)row)[j]);
    default:
        return (double)((const float *)row)[j];
    }
}

static double capped(double logit, float soft_cap)
{
    if (soft_cap > 0.0f)
        logit = (double)soft_cap * tanh(logit / (double)soft_cap);
    return fmin(fmax(logit, -(double)HRI_LOGIT_MAX), (double)HRI_LOGIT_MAX);
}

static double row_logit(const float *q, uint32_t dk, const void *row, hr_dtype_t dtype,
                        float soft_cap)
{
    double sum = 0.0;

    for (uint32_t j = 0; j < dk; j++)
        sum += (double)q[j] * element(row, dtype, j);
    return capped(sum, soft_cap);
}

/* One query's running softmax in double. */
struct running {
    double m, l;
    double o[HRI_DIM_MAX];
};

static void running_load(struct running *run, const struct hri_partial *part, uint32_t i,
                         uint32_t dv)
{
    run->m = (double)part->m[i];
    run->l = (double)part->l[i];
    for (uint32_t j = 0; j < dv; j++)
        run->o[j] = (double)part->o[(size_t)i * dv + j];
}

static void running_store(const struct running *run, struct hri_partial *part, uint32_t i,
                          uint32_t dv)
{
    part->m[i] = (float)run->m;
    part->l[i] = (float)run->l;
    for (uint32_t j = 0; j < dv; j++)
        part->o[(size_t)i * dv + j] = (float)run->o[j];
}

/* Makes room for a logit and returns the weight of its row. */
static double running_weight(struct running *run, double logit, uint32_t dv)
{
    if (logit > run->m) {
        double shrink = run->l > 0.0 ? exp(run->m - logit) : 0.0;
        run->l *= shrink;
        for (uint32_t j = 0; j < dv; j++)
            run->o[j] *= shrink;
        /* The partial keeps m as float; using that very value keeps l and o consistent with it. */
        run->m = (double)(float)logit;
    }
    double weight = exp(logit - run->m);
    run->l += weight;
    return weight;
}

static void running_add_row(struct running *run, double logit, const void *row, hr_dtype_t dtype,
                            uint32_t dk, uint32_t dv)
{
    double weight = running_weight(run, logit, dv);

    for (uint32_t j = 0; j < dv; j++)
        run->o[j] += weight * element(row, dtype, dk + j);
}

static void attend_one(const float *q, uint32_t dk, uint32_t dv, const struct hri_rows *rows,
                       uint32_t first, uint32_t last, float soft_cap, struct hri_partial *part,
                       uint32_t i)
{
    struct running run;

    if (first >= last)
        return;
    running_load(&run, part, i, dv);
    for (size_t r = first; r < last; r++) {
        const void *row = (const char *)rows->base + r * rows->stride_bytes;
        running_add_row(&run, row_logit(q, dk, row, rows->dtype, soft_cap), row, rows->dtype, dk,
                        dv);
    }
    running_store(&run, part, i, dv);
}

void hri_ref_attend_rows(const float *q, uint32_t g, uint32_t dk, uint32_t dv, struct hri_rows rows,
                         float soft_cap, struct hri_partial *part)
{
    for (uint32_t i = 0; i < g; i++)
        attend_one(q + (size_t)i * dk, dk, dv, &rows, 0, rows.n, soft_cap, part, i);
}

void hri_ref_attend_runs(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                         const struct hri_rows *runs, uint32_t n_runs, float soft_cap,
                         struct hri_partial *part)
{
    for (uint32_t i = 0; i < n_runs; i++)
        hri_ref_attend_rows(q, g, dk, dv, runs[i], soft_cap, part);
}

void hri_ref_attend_gather(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                           const void *const *rows, uint32_t n, hr_dtype_t dtype, float soft_cap,
                           struct hri_partial *part)
{
    struct running run;

    for (uint32_t i = 0; i < g && n > 0; i++) {
        const float *query = q + (size_t)i * dk;
        running_load(&run, part, i, dv);
        for (uint32_t r = 0; r < n; r++)
            running_add_row(&run, row_logit(query, dk, rows[r], dtype, soft_cap), rows[r], dtype,
                            dk, dv);
        running_store(&run, part, i, dv);
    }
}

void hri_ref_attend_tile(const float *q, uint32_t nq, uint32_t dk, uint32_t dv,
                         struct hri_rows rows, const uint32_t *first, const uint32_t *last,
                         float soft_cap, void *scratch, struct hri_partial *part)
{
    (void)scratch;
    for (uint32_t i = 0; i < nq; i++)
        attend_one(q + (size_t)i * dk, dk, dv, &rows, first[i], last[i], soft_cap, part, i);
}

void hri_ref_score_rows(const float *q, uint32_t g, uint32_t dk, struct hri_rows rows,
                        float soft_cap, float *out, size_t out_stride)
{
    for (uint32_t i = 0; i < g; i++) {
        for (size_t r = 0; r < rows.n; r++) {
            const void *row = (const char *)rows.base + r * rows.stride_bytes;
            double logit = row_logit(q + (size_t)i * dk, dk, row, rows.dtype, soft_cap);
            out[i * out_stride + r] = (float)logit;
        }
    }
}

void hri_ref_attend_block_i8(const float *q, uint32_t g, uint32_t dk, uint32_t dv,
                             const struct hri_block_i8 *block, float soft_cap,
                             struct hri_partial *part)
{
    struct running run;

    for (uint32_t i = 0; i < g && block->n > 0; i++) {
        running_load(&run, part, i, dv);
        for (size_t r = 0; r < block->n; r++) {
            const int8_t *k = block->codes + r * (dk + dv);
            const int8_t *v = k + dk;
            double dot = 0.0;

            for (uint32_t j = 0; j < dk; j++)
                dot += (double)q[(size_t)i * dk + j] * k[j];
            double logit = capped((double)block->k_dot[i] + (double)block->k_step * dot, soft_cap);
            double weight = running_weight(&run, logit, dv);
            for (uint32_t j = 0; j < dv; j++)
                run.o[j] += weight * ((double)block->v_center[j] + (double)block->v_step * v[j]);
        }
        running_store(&run, part, i, dv);
    }
}
