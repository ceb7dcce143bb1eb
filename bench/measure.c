#include "bench/measure.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"

double hrb_seconds(void)
{
    return (double)hri_now_ns() * 1e-9;
}

double hrb_pool_seconds(struct hri_pool *pool, hri_task_fn task, void *context, unsigned n_tasks)
{
    double start = hrb_seconds();
    hri_pool_run(pool, task, context, n_tasks);
    return hrb_seconds() - start;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double hrb_percentile(double *values, size_t n, double p)
{
    if (n == 0)
        return 0;
    qsort(values, n, sizeof *values, compare);
    size_t at = (size_t)(p * (double)n);
    return values[at < n ? at : n - 1];
}

double hrb_median(double *values, size_t n)
{
    if (n == 0)
        return 0;
    qsort(values, n, sizeof *values, compare);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/* The quartiles of a normal distribution are 1.35 deviations apart, and the median of n has 1.25 times the mean's standard error. */
double hrb_spread(double *values, size_t n)
{
    double median = hrb_median(values, n);
    if (n < 3 || median <= 0)
        return 0;
    return 2 * 1.25 / 1.35 * (values[3 * (n - 1) / 4] - values[(n - 1) / 4]) / median /
           sqrt((double)n);
}

int hrb_measure(const struct hrb_options *options, unsigned rounds, hrb_run_fn a, void *a_context,
                hrb_run_fn b, void *b_context, struct hrb_pair *pair_out)
{
    double a_times[2 * HRB_ROUNDS_MAX], b_times[HRB_ROUNDS_MAX], ratios[HRB_ROUNDS_MAX];
    unsigned n = 0;
    if (rounds > HRB_ROUNDS_MAX)
        rounds = HRB_ROUNDS_MAX;
    if (a(a_context) < 0 || b(b_context) < 0)
        return 1;
    for (; n < rounds && !options->stop(); n++) {
        double a1 = a(a_context), b1 = b(b_context), b2 = b(b_context), a2 = a(a_context);
        if (a1 < 0 || b1 < 0 || b2 < 0 || a2 < 0)
            return 1;
        a_times[2 * n] = a1;
        a_times[2 * n + 1] = a2;
        b_times[n] = 0.5 * (b1 + b2);
        ratios[n] = (b1 + b2) / (a1 + a2);
    }
    if (n == 0)
        return 1;
    pair_out->rounds = n;
    pair_out->a_p99 = hrb_percentile(a_times, 2 * n, 0.99);
    pair_out->a_median = hrb_median(a_times, 2 * n);
    pair_out->b_median = hrb_median(b_times, n);
    pair_out->ratio = hrb_median(ratios, n);
    pair_out->spread = hrb_spread(ratios, n);
    return 0;
}

int hrb_skip(struct hrb_result *result, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(result->reason, sizeof result->reason, format, list);
    va_end(list);
    result->skipped = true;
    return 0;
}

int hrb_failed(struct hrb_result *result, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(result->reason, sizeof result->reason, format, list);
    va_end(list);
    return 1;
}

void hrb_result_per_second(struct hrb_result *result, const struct hrb_pair *pair, double amount,
                           const char *unit)
{
    result->value = amount / pair->a_median;
    result->limit = amount / pair->b_median;
    result->value_p99 = amount / pair->a_p99;
    result->ratio = pair->ratio;
    result->spread = pair->spread;
    result->unit = unit;
    result->rounds = pair->rounds;
}

void hrb_result_time(struct hrb_result *result, const struct hrb_pair *pair, double scale,
                     const char *unit)
{
    result->value = pair->a_median * scale;
    result->limit = pair->b_median * scale;
    result->value_p99 = pair->a_p99 * scale;
    result->ratio = pair->ratio;
    result->spread = pair->spread;
    result->unit = unit;
    result->rounds = pair->rounds;
}

void hrb_result_rate(struct hrb_result *result, const struct hrb_pair *pair, uint64_t bytes)
{
    hrb_result_per_second(result, pair, (double)bytes * 1e-9, "GB/s");
    result->bytes = bytes;
}
