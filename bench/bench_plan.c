/* `headrace plan --measured` held to the steps themselves: rates fitted at two lengths say what a step takes at a third, twice the
 * longer. All three layers are there at once and take turns, so that a busy machine is busy for all. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/measure.h"
#include "bench/subjects.h"
#include "cli/plan_measure.h"

#define PROBES 3
#define STEPS  8

struct plan_bench {
    const struct hrb_options *options;
    struct plan_probe_options probe;
    struct plan_probe *probes[PROBES];
    uint32_t tokens[PROBES];
    double predicted[HRB_ROUNDS_MAX], measured[HRB_ROUNDS_MAX], ratio[HRB_ROUNDS_MAX];
    unsigned rounds;
    struct plan last;
};

static int open_probes(struct plan_bench *b)
{
    for (unsigned i = 0; i < PROBES; i++) {
        b->probe.tokens_max = b->tokens[i] + 4096;
        if (plan_probe_open(&b->probe, &b->probes[i]) ||
            plan_probe_grow(b->probes[i], b->tokens[i]))
            return 1;
    }
    return 0;
}

static int one_round(struct plan_bench *b)
{
    struct plan_sample sample[PROBES];
    struct plan_rates rates = {0};
    bool file = b->probe.file_dir != NULL;
    struct plan_machine machine = {.device_bytes = 1e12,
                                   .host_bytes = file ? 0 : 1e12,
                                   .file_bytes = 1e12,
                                   .device_bps = 1e10,
                                   .host_bps = 1e10,
                                   .file_bps = 1e9};
    struct plan_use use = {.moved = b->probe.moved, .sketch = b->probe.sketch, .sequences = 1};
    for (unsigned i = 0; i < PROBES; i++)
        if (plan_probe_steps(b->probes[i], STEPS, &sample[i]))
            return 1;
    plan_rates_fit(&sample[0], &sample[1], file, &rates);
    plan_evaluate(&b->probe.shape, &use, &machine, &rates, sample[2].tokens, &b->last);
    double p = b->last.step_s, m = sample[2].step_s;
    b->predicted[b->rounds] = p;
    b->measured[b->rounds] = m;
    b->ratio[b->rounds++] = p < m ? p / m : m / p;
    return 0;
}

static void fill_result(struct plan_bench *b, struct hrb_result *result)
{
    result->rounds = b->rounds;
    result->value = hrb_median(b->predicted, b->rounds) * 1e3;
    result->limit = hrb_median(b->measured, b->rounds) * 1e3;
    result->ratio = hrb_median(b->ratio, b->rounds);
    result->unit = "ms";
    result->limit_is = "the steps themselves; the ratio is the smaller time over the larger";
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "fitted_at_tokens", b->tokens[0]);
    cJSON_AddNumberToObject(result->details, "and_at_tokens", b->tokens[1]);
    cJSON_AddNumberToObject(result->details, "predicted_at_tokens", b->tokens[2]);
}

int hrb_plan(const struct hrb_benchmark *self, const struct hrb_options *options,
             struct hrb_result *result)
{
    struct plan_bench b = {
        .options = options,
        .probe = {.shape = {1, 8, 4, 128, 2},
                  .moved = 0.01,
                  .sketch = 2,
                  .threads = options->n_threads,
                  .file_dir = self->variant ? options->file_dir : NULL,
                  .stop = options->stop},
        .tokens = {16384, 65536, 131072},
    };
    for (unsigned i = 0; options->quick && i < PROBES; i++)
        b.tokens[i] /= 4;
    int code = open_probes(&b);
    for (unsigned i = 0; code == 0 && i < (options->quick ? 3u : 5u) && !options->stop(); i++)
        code = one_round(&b);
    for (unsigned i = 0; i < PROBES; i++)
        plan_probe_close(b.probes[i]);
    if (code || b.rounds == 0)
        return hrb_failed(result, "a step failed: %s", hr_last_error());
    fill_result(&b, result);
    return 0;
}
