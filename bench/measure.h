/* Measuring two things in turns. */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include "base/threads.h"
#include "bench/bench.h"

#define HRB_ROUNDS_MAX 512

/* Runs the thing once and returns how long it took in seconds; a negative number is a failure. */
typedef double (*hrb_run_fn)(void *context);

struct hrb_pair {
    unsigned rounds;
    double a_median, b_median; /* seconds of one run */
    double a_p99;
    double ratio;  /* median of b / a over rounds: how many times faster a is */
    double spread; /* two standard errors of that median, as a share of it */
};

/* Rounds of A B B A after one untimed run of each: 0, or 1 when a run failed or the user stopped
 * before the first round. */
int hrb_measure(const struct hrb_options *options, unsigned rounds, hrb_run_fn a, void *a_context,
                hrb_run_fn b, void *b_context, struct hrb_pair *pair_out);

double hrb_median(double *values, size_t n);               /* sorts */
double hrb_percentile(double *values, size_t n, double p); /* sorts; p in [0, 1] */
/* Two standard errors of the median as a share of it, from the quartiles; sorts. */
double hrb_spread(double *values, size_t n);
double hrb_seconds(void);
/* How long the pool takes for these tasks. */
double hrb_pool_seconds(struct hri_pool *pool, hri_task_fn task, void *context, unsigned n_tasks);

/* result->reason, and the code to return. */
int hrb_skip(struct hrb_result *result, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
int hrb_failed(struct hrb_result *result, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Fills value and limit as `amount` over the medians of a pair (a: the code, b: the limit), in `unit`. */
void hrb_result_per_second(struct hrb_result *result, const struct hrb_pair *pair, double amount,
                           const char *unit);
/* Fills value and limit as times, `scale` to a second. */
void hrb_result_time(struct hrb_result *result, const struct hrb_pair *pair, double scale,
                     const char *unit);
/* Fills value and limit as rates of bytes per second from a pair (a: the code, b: the limit). */
void hrb_result_rate(struct hrb_result *result, const struct hrb_pair *pair, uint64_t bytes);

#endif
