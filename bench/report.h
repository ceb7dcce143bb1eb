/* What is made of the JSON of runs: tables and comparisons. Printed on cli_out(); codes are exit codes. */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include <cjson/cJSON.h>

/* Reads the JSON of a run; NULL after a message. */
cJSON *hrb_run_read(const char *path);
/* `headrace bench compare A B`: what changed beyond noise. 1 when something became worse. */
int hrb_compare(const char *path_a, const char *path_b);
/* `headrace bench report RUN`: docs/benchmarks.md on standard output. */
int hrb_report_markdown(const char *path);
/* One page with a bar per benchmark; 0 or an exit code after a message. */
int hrb_report_html(const cJSON *run, const char *path);

#endif
