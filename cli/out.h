/* Where the tool writes: text on standard output, progress and messages on standard error; with
 * --json - the JSON has standard output to itself and the text goes to standard error as well. */
#ifndef CLI_OUT_H
#define CLI_OUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <headrace/status.h>

/* The stream for text. Standard output unless moved. */
FILE *cli_out(void);
void cli_out_move_to_stderr(void);
/* No progress; messages about failures still come. */
void cli_out_set_quiet(bool quiet);
bool cli_out_is_quiet(void);

/* "headrace: message" on standard error; returns CLI_EXIT_FAILED. */
int cli_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The library's message, after what was being tried: "headrace: WHAT: message". Returns
 * CLI_EXIT_FAILED. */
int cli_fail_status(const char *what, hr_status_t status);
void cli_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A line of progress on standard error, unless quiet. */
void cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A bar on a terminal, a line at every tenth part elsewhere. */
struct cli_progress {
    const char *label; /* "prefill" */
    const char *unit;  /* "tokens" */
    uint64_t total;
    uint64_t start_ns, shown_ns;
    unsigned tenth;
};
void cli_progress_begin(struct cli_progress *progress, const char *label, const char *unit,
                        uint64_t total);
void cli_progress_update(struct cli_progress *progress, uint64_t done);
/* Leaves one line with the total and the rate. */
void cli_progress_end(struct cli_progress *progress, uint64_t done);
/* Ends a half-drawn bar, so that a message starts on a line of its own. */
void cli_out_end_progress(void);

/* Flushes standard output: 0, or CLI_EXIT_FAILED with a message when it could not be written. */
int cli_out_close(void);

uint64_t cli_now_ns(void);

/* "12.3 us" and so on into text (at least 16 bytes). */
char *cli_format_ns(uint64_t ns, char *text, size_t text_bytes);
/* 1234567 -> "1,234,567" (at least 28 bytes). */
char *cli_format_count(uint64_t count, char *text, size_t text_bytes);
/* A share as a percentage with three significant digits: "0.98%". */
char *cli_format_share(double share, char *text, size_t text_bytes);

#endif
