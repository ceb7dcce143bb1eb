#include "cli/logits.h"

#include <math.h>

uint32_t cli_argmax(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return (uint32_t)best;
}

double cli_log_sum_exp(const float *logits, size_t n)
{
    double max = logits[cli_argmax(logits, n)], sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp(logits[i] - max);
    return max + log(sum);
}

double cli_kl(const float *logits_p, const float *logits_q, size_t n)
{
    double p_sum = cli_log_sum_exp(logits_p, n), q_sum = cli_log_sum_exp(logits_q, n), kl = 0;
    for (size_t i = 0; i < n; i++) {
        double log_p = logits_p[i] - p_sum;
        kl += exp(log_p) * (log_p - (logits_q[i] - q_sum));
    }
    return kl > 0 ? kl : 0; /* rounding may leave -1e-17 */
}

double cli_nll(const float *logits, size_t n, uint32_t target)
{
    return cli_log_sum_exp(logits, n) - logits[target];
}
