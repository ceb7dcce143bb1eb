/* Whole layers on a GPU: a sequence of LAYERS layers whose tokens go through one graph, as hr_step_graph's do. The text is indexed once,
 * for the first layer; the others have copies of their own of what the device keeps (so that none finds its bytes in a cache), share
 * its blocks in host memory, and are asked other queries. */
#ifndef BENCH_DEVICE_STEPS_H
#define BENCH_DEVICE_STEPS_H

#include "base/rng.h"
#include "bench/device_bed.h"
#include "runtime/device_part.h"

#define HRB_TURNS 16u /* tokens whose queries are kept; they are asked forwards and backwards */

struct hrb_steps {
    struct bed bed; /* without memory of its own */
    hr_runtime_t *rt;
    hr_sequence_t *seq;
    uint32_t tokens, n_layers, n_turns;
    struct hri_rng rng;
    float *q;                       /* [n_layers][HEADS][GROUP][DIM] of the last token */
    struct hr_attend_report report; /* of a step of the first layer, beside exact attention */
    void *token, *choice;         /* graphs over all layers: of all launches, of score to resolve */
    struct hri_device_buffer ins; /* [n_turns] input of all layers */
    size_t in_bytes, out_bytes;   /* of all layers */
    uint32_t calls;
    double turned; /* how far the queries turn from token to token: 0 not at all, 1 wholly */
};
/* -1: it is there; else the code to return. Closed in every case. */
int hrb_steps_open(struct hrb_steps *steps, const struct hrb_options *options, uint32_t tokens,
                   const char *recipe, struct hrb_result *result);
void hrb_steps_close(struct hrb_steps *steps);
/* Turns the queries so fast that about hit_rate of the rows that are refined lie in frames already. -1 or the code to return;
 * hit_rate_out: what it came to. */
int hrb_steps_turn(struct hrb_steps *steps, double hit_rate, double *hit_rate_out,
                   struct hrb_result *result);

/* hrb_run_fn, seconds of all layers: a token with its input and output, as one graph; the same launches one by one; the choice alone. */
double hrb_steps_token_seconds(void *steps);
double hrb_steps_graph_seconds(void *steps); /* without input and output */
double hrb_steps_loose_seconds(void *steps);
double hrb_steps_choice_seconds(void *steps);
/* Of all layers' summaries, a read. */
double hrb_steps_read_seconds(void *steps);

#endif
