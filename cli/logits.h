/* Two next-token distributions compared, in double from all logits. */
#ifndef CLI_LOGITS_H
#define CLI_LOGITS_H

#include <stddef.h>
#include <stdint.h>

double cli_log_sum_exp(const float *logits /* [n] */, size_t n);
uint32_t cli_argmax(const float *logits, size_t n); /* ties: the lowest index */
/* sum p (log p - log q), p from logits_p, q from logits_q. */
double cli_kl(const float *logits_p, const float *logits_q, size_t n);
/* -log p(target). */
double cli_nll(const float *logits, size_t n, uint32_t target);

#endif
