/* What keeping the index costs a decode: append, store and grouping as a share of all steps, and the worst step beside the median. */
#include <string.h>

#include "bench/measure.h"
#include "bench/subjects.h"
#include "cli/plan_measure.h"

#define TOKENS     16384u
#define STEPS      600u /* a decode segment and more */
#define REPEATS    3u   /* runs of the same steps */
#define SHARE_GOAL 0.05
#define WORST_GOAL 3.0

static double sum(const double *x, unsigned n)
{
    double all = 0;
    for (unsigned i = 0; i < n; i++)
        all += x[i];
    return all;
}

static int trace_once(const struct plan_probe_options *o, double *append_s, double *step_s)
{
    struct plan_probe *probe = NULL;
    int code = plan_probe_open(o, &probe) || plan_probe_grow(probe, TOKENS) ||
               plan_probe_trace(probe, STEPS, append_s, step_s);
    plan_probe_close(probe);
    return code;
}

/* Steps are the same in every run: what only one of them shows, other programs did. */
static int trace(const struct plan_probe_options *o, double *append_s, double *step_s)
{
    double append_now[STEPS], step_now[STEPS];
    for (unsigned r = 0; r < REPEATS; r++) {
        if (trace_once(o, append_now, step_now))
            return 1;
        for (unsigned i = 0; i < STEPS; i++) {
            append_s[i] = r == 0 || append_now[i] < append_s[i] ? append_now[i] : append_s[i];
            step_s[i] = r == 0 || step_now[i] < step_s[i] ? step_now[i] : step_s[i];
        }
    }
    return 0;
}

int hrb_append_step(const struct hrb_benchmark *self, const struct hrb_options *options,
                    struct hrb_result *result)
{
    double append_s[STEPS], step_s[STEPS];
    const struct plan_probe_options o = {.shape = {1, 8, 4, 128, 2},
                                         .moved = 0.01,
                                         .sketch = 2,
                                         .tokens_max = TOKENS + 2 * STEPS,
                                         .threads = options->n_threads,
                                         .stop = options->stop};
    (void)self;
    if (trace(&o, append_s, step_s))
        return hrb_failed(result, "a step failed");
    double share = sum(append_s, STEPS) / sum(step_s, STEPS);
    double median = hrb_median(step_s, STEPS), worst = step_s[STEPS - 1];
    double by_share = SHARE_GOAL / share, by_worst = WORST_GOAL * median / worst;
    result->value = share * 100;
    result->limit = SHARE_GOAL * 100;
    result->unit = "%";
    result->ratio = by_share < by_worst ? by_share : by_worst;
    result->rounds = STEPS;
    result->limit_is =
        "5 % of the steps, and a worst step of 3 medians; the ratio is the nearer one's";
    result->details = cJSON_CreateObject();
    cJSON_AddNumberToObject(result->details, "median_ms", median * 1e3);
    cJSON_AddNumberToObject(result->details, "worst_ms", worst * 1e3);
    cJSON_AddNumberToObject(result->details, "worst_over_median", worst / median);
    return 0;
}
