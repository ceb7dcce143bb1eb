/* The rates of this machine as a step of the library has them: a layer with the plan's heads, filled with rows in clusters to two
 * lengths, steps timed at both. */
#ifndef CLI_PLAN_MEASURE_H
#define CLI_PLAN_MEASURE_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/plan_model.h"

/* Medians over the steps of one layer at one length. */
struct plan_sample {
    uint64_t tokens;
    double step_s; /* all stages */
    double stage_s[HR_STAGES];
    double level_bytes[HR_LEVELS], host_bytes, file_bytes; /* per step */
    double summary_held, sketch_held;
    double exact_bps; /* exact attention over the same rows, bytes a second */
};

/* A layer that grows. */
struct plan_probe;
struct plan_probe_options {
    struct plan_shape shape; /* layers does not matter: one is made */
    double moved;
    unsigned sketch;
    uint32_t tokens_max;
    const char *file_dir; /* NULL: rows lie in the host tier */
    uint32_t threads;     /* 0: one per core */
    bool (*stop)(void);   /* NULL: never */
};
/* Messages of failures are printed here (cli_fail); 0 or an exit code. */
int plan_probe_open(const struct plan_probe_options *options, struct plan_probe **probe_out);
void plan_probe_close(struct plan_probe *probe); /* NULL is fine */
/* Appends up to `tokens` in all and groups them. */
int plan_probe_grow(struct plan_probe *probe, uint32_t tokens);
/* Times n decode steps. */
int plan_probe_steps(struct plan_probe *probe, unsigned n, struct plan_sample *sample_out);
/* Makes n steps: append_s[i] what a token's append, store and grouping took, step_s[i] all of it. */
int plan_probe_trace(struct plan_probe *probe, unsigned n, double *append_s, double *step_s);
/* Appends rows until a decode segment was grouped: seconds per row and kv-head. */
int plan_probe_index(struct plan_probe *probe, double *s_per_row_out);

/* Costs that go through two samples, the second at the greater length; work and times that do not grow
 * give a cost without a slope. */
struct plan_cost plan_cost_through(double bytes_a, double s_a, double bytes_b, double s_b);
/* Rates that follow from samples; `file`: of a probe with a file tier. */
void plan_rates_fit(const struct plan_sample *a, const struct plan_sample *b, bool file,
                    struct plan_rates *rates);

#define PLAN_MEASURE_SHORT 16384u
#define PLAN_MEASURE_LONG  65536u
/* All of it: both lengths in host memory, and again with a file where file_dir is given. Sets the machine's
 * bandwidths to what was seen. 0 or an exit code. */
int plan_measure(const struct plan_probe_options *options, struct plan_machine *machine,
                 struct plan_rates *rates_out);

#endif
