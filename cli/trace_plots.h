/* The pictures of eval trace's page. */
#ifndef CLI_TRACE_PLOTS_H
#define CLI_TRACE_PLOTS_H

#include <stdio.h>

#include "cli/eval_trace.h"

#define CLI_TRACE_EXACT 1e-5 /* below, an output counts as exact: no place for it on log axes */

struct cli_trace_page {
    FILE *file;
    const struct cli_trace_eval *eval;
    size_t order[CLI_LIST_MAX],
        n; /* recipes, best first; an index into it also gives a recipe's colour */
    size_t traces[CLI_OPERANDS_MAX], n_traces; /* by layer */
};

/* Mean error against bytes. trace SIZE_MAX: all. held: summaries and sketches count too. */
void cli_trace_curves(const struct cli_trace_page *page, size_t trace, bool held, double width,
                      double height, bool named);
/* One recipe: a row for each trace, a column for each query head. */
void cli_trace_heat(const struct cli_trace_page *page, size_t recipe, size_t moved, double min,
                    double max);
/* Smallest and largest of all cells at a budget; false if there are none. */
bool cli_trace_heat_range(const struct cli_trace_page *page, size_t moved, double *min,
                          double *max);
void cli_trace_heat_legend(const struct cli_trace_page *page, double min, double max);
/* One recipe's predicted errors against the true ones, all traces and budgets. False if it predicts nothing. */
bool cli_trace_scatter(const struct cli_trace_page *page, size_t recipe);

#endif
