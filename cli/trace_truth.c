/* Full attention in double. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/eval_trace.h"
#include "cli/out.h"

#define CHAINS 8

/* Several chains, so that additions do not wait for each other. n is a multiple of them: head_dim is one of 8. */
static double dot(const float *a, const float *b, uint32_t n)
{
    double sum[CHAINS] = {0};
    for (uint32_t i = 0; i + CHAINS <= n; i += CHAINS)
        for (uint32_t j = 0; j < CHAINS; j++)
            sum[j] += (double)a[i + j] * b[i + j];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* weights [n] <- softmax(scale q k); out <- their sum over v. */
static void attend(const float *q, const float *k, const float *v, uint32_t n, uint32_t d,
                   double scale, double *weights, double *out)
{
    double top = -INFINITY, total = 0;
    for (uint32_t i = 0; i < n; i++) {
        weights[i] = scale * dot(q, k + (size_t)i * d, d);
        top = weights[i] > top ? weights[i] : top;
    }
    for (uint32_t i = 0; i < n; i++)
        total += weights[i] = exp(weights[i] - top);
    memset(out, 0, d * sizeof *out);
    for (uint32_t i = 0; i < n; i++) {
        weights[i] /= total;
        for (uint32_t j = 0; j < d; j++)
            out[j] += weights[i] * v[(size_t)i * d + j];
    }
}

struct work {
    float *k, *v;    /* [n_tokens][head_dim] of one kv-head */
    double *weights; /* [n_tokens] */
};

static void one_head(const struct cli_trace *t, uint32_t kv_head, const struct work *work,
                     struct cli_trace_truth *truth)
{
    const struct cli_trace_meta *m = &t->meta;
    uint32_t group = m->n_q_heads / m->n_kv_heads, d = m->head_dim;
    size_t rows = (size_t)m->n_tokens * d;
    for (size_t i = 0; i < rows; i++) {
        work->k[i] = cli_float_from_half(t->k[kv_head * rows + i]);
        work->v[i] = cli_float_from_half(t->v[kv_head * rows + i]);
    }
    for (uint32_t h = kv_head * group; h < (kv_head + 1) * group; h++) {
        for (uint32_t i = 0; i < m->scored.n; i++) {
            size_t at = ((size_t)h * m->scored.n + i) * d;
            uint32_t n = m->scored.at[i] + 1;
            float *mass = truth->mass + ((size_t)i * m->n_q_heads + h) * m->n_tokens;
            attend(t->q + at, work->k, work->v, n, d, m->scale, work->weights, truth->out + at);
            for (uint32_t j = 0; j < n; j++)
                mass[j] = (float)work->weights[j];
        }
    }
}

int cli_trace_truth_make(const struct cli_trace *t, struct cli_trace_truth *truth_out)
{
    const struct cli_trace_meta *m = &t->meta;
    size_t steps = (size_t)m->n_q_heads * m->scored.n;
    struct cli_trace_truth truth = {.out = calloc(steps * m->head_dim, sizeof *truth.out),
                                    .mass = calloc(steps * m->n_tokens, sizeof *truth.mass)};
    struct work work = {.k = calloc((size_t)m->n_tokens * m->head_dim, sizeof *work.k),
                        .v = calloc((size_t)m->n_tokens * m->head_dim, sizeof *work.v),
                        .weights = malloc(m->n_tokens * sizeof *work.weights)};
    bool ok = truth.out && truth.mass && work.k && work.v && work.weights;
    for (uint32_t h = 0; ok && h < m->n_kv_heads; h++)
        one_head(t, h, &work, &truth);
    free(work.k);
    free(work.v);
    free(work.weights);
    if (ok) {
        *truth_out = truth;
        return 0;
    }
    cli_trace_truth_fini(&truth);
    return cli_fail("'%s': out of memory for full attention of %u queries over %u rows", t->path,
                    m->scored.n, m->n_tokens);
}

void cli_trace_truth_fini(struct cli_trace_truth *truth)
{
    free(truth->out);
    free(truth->mass);
    memset(truth, 0, sizeof *truth);
}
