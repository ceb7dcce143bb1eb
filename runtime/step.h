/* What the parts of a step share: step.c makes the moves, step_report.c tells what they did. */
#ifndef HRI_RUNTIME_STEP_H
#define HRI_RUNTIME_STEP_H

#include "runtime/sequence.h"

struct step {
    hr_sequence_t *s;
    struct hri_layer *layer;
    uint32_t layer_index, position;
    uint64_t budget_bytes; /* of one kv-head, as an equal share */
    const float *part;     /* [n_kv] of such a share, or NULL */
    uint64_t time_ns;      /* of the current move */
    struct hri_limits limits;
    struct hr_attend_report *report;
};

/* Where the single rows lie that a head refines, all of them in host memory. */
hr_status_t hri_step_rows_find(const struct step *st, uint32_t head);
/* Begins to bring what all heads chose; waits for all that was begun, whatever status says. Blocks that do not come stay where they are
 * estimated. */
hr_status_t hri_step_fetch_begin(struct step *st);
hr_status_t hri_step_fetch_wait(struct step *st, hr_status_t status);
/* What levels, tiers and heads had to do with it, into st->report. */
void hri_step_report(struct step *st);

#endif
