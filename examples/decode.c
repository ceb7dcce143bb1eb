/* The smallest program that decodes through Headrace: a made-up model with one layer, 4 query
 * heads on 2 kv-heads of 64. It reads a prompt, then decodes; each step appends one row, attends
 * by the recipe, and is compared with attention over everything. */
#include <headrace/headrace.h>
#include <stdint.h>
#include <stdio.h>

enum { Q_HEADS = 4, KV_HEADS = 2, DIM = 64, PROMPT = 8192, CHUNK = 512, STEPS = 16, TOPICS = 64 };

/* The "model": a token has a topic; keys and values of a topic are alike, and a query looks for
 * one topic. */
static uint64_t state = 1;
static float uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(state >> 40) * 0x1p-23f - 1;
}
static float topics[2][TOPICS][DIM];
static float k[CHUNK][KV_HEADS][DIM], v[CHUNK][KV_HEADS][DIM], q[CHUNK][Q_HEADS][DIM],
    out[CHUNK][Q_HEADS][DIM];

static void compute(uint32_t n_tokens)
{
    for (uint32_t t = 0; t < n_tokens; t++) {
        uint32_t topic = (uint32_t)((uniform() + 1) * TOPICS / 2) % TOPICS;
        uint32_t wanted = (uint32_t)((uniform() + 1) * TOPICS / 2) % TOPICS;
        for (int i = 0; i < DIM; i++) {
            for (int h = 0; h < KV_HEADS; h++) {
                k[t][h][i] = topics[0][topic][i] + 0.5f * uniform();
                v[t][h][i] = topics[1][topic][i] + 0.5f * uniform();
            }
            for (int h = 0; h < Q_HEADS; h++)
                q[t][h][i] = 2 * topics[0][wanted][i] + 0.5f * uniform();
        }
    }
}

/* Appends n_tokens rows and attends their queries: many exactly, one by the recipe. */
static hr_status_t forward(hr_sequence_t *sequence, uint32_t n_tokens,
                           const struct hr_attend_options *options, struct hr_attend_report *report)
{
    struct hr_tensor kt = hr_tensor_make(k, HR_DTYPE_F32, n_tokens, KV_HEADS, DIM);
    struct hr_tensor vt = hr_tensor_make(v, HR_DTYPE_F32, n_tokens, KV_HEADS, DIM);
    struct hr_tensor qt = hr_tensor_make(q, HR_DTYPE_F32, n_tokens, Q_HEADS, DIM);
    struct hr_tensor ot = hr_tensor_make(out, HR_DTYPE_F32, n_tokens, Q_HEADS, DIM);
    hr_status_t status = hr_sequence_append(sequence, 0, &kt, &vt, NULL);
    return status == HR_OK ? hr_sequence_attend(sequence, 0, &qt, options, &ot, report, NULL)
                           : status;
}

static hr_status_t decode(hr_sequence_t *sequence)
{
    struct hr_attend_options options;
    struct hr_attend_report report;
    hr_attend_options_init(&options);
    for (uint32_t done = 0; done < PROMPT; done += CHUNK) {
        compute(CHUNK);
        hr_status_t status = forward(sequence, CHUNK, &options, NULL);
        if (status != HR_OK)
            return status;
    }
    options.check_exact = 1; /* also attend over everything, to compare: not for daily use */
    for (int step = 0; step < STEPS; step++) {
        compute(1);
        hr_status_t status = forward(sequence, 1, &options, &report);
        if (status != HR_OK)
            return status;
        printf("step %2d: selected %5.2f%% of %llu bytes, error predicted %.4f, true %.4f\n", step,
               100.0 * (double)report.bytes_selected / (double)report.body_bytes,
               (unsigned long long)report.body_bytes, report.predicted_error, report.true_error);
    }
    return HR_OK;
}

int main(void)
{
    struct hr_runtime_options runtime_options;
    struct hr_sequence_options options;
    hr_runtime_t *runtime = NULL;
    hr_sequence_t *sequence = NULL;
    for (int i = 0; i < 2 * TOPICS * DIM; i++)
        topics[i % 2][i / 2 % TOPICS][i / 2 / TOPICS] = uniform();
    hr_runtime_options_init(&runtime_options);
    hr_sequence_options_init(&options);
    options.n_layers = 1;
    options.n_q_heads = Q_HEADS;
    options.n_kv_heads = KV_HEADS;
    options.k_dim = options.v_dim = DIM;
    options.tokens_max = PROMPT + STEPS;
    options.moved = 0.02;
    hr_status_t status = hr_runtime_create(&runtime_options, &runtime);
    status = status == HR_OK ? hr_sequence_create(runtime, &options, &sequence) : status;
    status = status == HR_OK ? decode(sequence) : status;
    if (status != HR_OK)
        fprintf(stderr, "decode: %s: %s\n", hr_status_name(status), hr_last_error());
    hr_sequence_destroy(sequence);
    hr_runtime_destroy(runtime);
    return status == HR_OK ? 0 : 1;
}
