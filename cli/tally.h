/* Step reports added up, and how they are shown. */
#ifndef CLI_TALLY_H
#define CLI_TALLY_H

#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "engine/engine.h"

struct cli_tally {
    uint64_t steps;
    struct hr_attend_report
        sum; /* counts, bytes and times added; errors added (divide by steps), _max: largest */
    uint64_t total_ns, linear_ns, append_ns, attend_ns;
};
void cli_tally_add(struct cli_tally *tally, const struct hre_step_report *step);

/* The first report after a prefill also tells what storing and grouping took since the prefill's
 * last attention; that was counted with the prefill and is taken out here. */
void cli_step_without_prefill(struct hre_step_report *step);

/* The block of lines "per step": levels, blocks, moved, error, time. window: say the mean over
 * how many steps. */
void cli_tally_print(FILE *file, const struct cli_tally *tally);
/* The same as means per step. */
cJSON *cli_tally_json(const struct cli_tally *tally);
/* One step by itself. */
cJSON *cli_step_json(const struct hre_step_report *step);

/* "tier  held  peak  cap" of a runtime; names what the file tier did. */
void cli_tiers_print(FILE *file, const struct hr_runtime_stats *stats);
cJSON *cli_tiers_json(const struct hr_runtime_stats *stats);

#endif
