/*
 * Sizes, shares and durations as people write them. The tool, the recipes and the tests all read
 * them through these functions, so that "24MiB" means the same everywhere. Pure functions, safe
 * from any thread.
 *
 * All of them reject empty text, trailing junk, signs, NaN, infinity and overflow with
 * HR_ERR_INVALID and a message that quotes the text and says what was expected; outputs are
 * written only on success.
 */
#ifndef HEADRACE_PARSE_H
#define HEADRACE_PARSE_H

#include <stddef.h>
#include <stdint.h>

#include <headrace/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Bytes: "8388608", "8MB" (10^6), "8MiB" or "8Mi" (2^20), "24 MiB", "1.5GiB"; k, K, M, G, T, P, E with
 * B or iB, case of the prefix does not matter. A fraction is allowed with a unit and is rounded
 * down to whole bytes.
 */
HR_API hr_status_t hr_parse_bytes(const char *text, uint64_t *bytes_out);

/* A share from 0 to 1: "1%", "0.5 %", "0.01". */
HR_API hr_status_t hr_parse_fraction(const char *text, double *fraction_out);

/* A whole number of at least `min` and at most `max`, decimal. */
HR_API hr_status_t hr_parse_count(const char *text, uint64_t min, uint64_t max,
                                  uint64_t *count_out);

/* A finite number, sign and exponent allowed. */
HR_API hr_status_t hr_parse_real(const char *text, double *real_out);

/* A duration: "250ns", "15us", "2ms", "1.5s", "3min"; a bare number is an error, zero is fine. */
HR_API hr_status_t hr_parse_duration_ns(const char *text, uint64_t *ns_out);

/*
 * A table of head gates: one line per layer, one number per kv-head, separated by tabs, blanks or commas;
 * empty lines and lines that begin with '#' are passed over. Numbers from -0.01 to 1.01 are
 * clipped to 0..1 (trained gates overshoot a little); others are refused, as are a wrong number of lines
 * or columns. Messages name `path` (used for nothing else) and the line. gates_out [n_layers][n_heads].
 */
HR_API hr_status_t hr_parse_head_gates(const char *path, const char *text, size_t n_bytes,
                                       uint32_t n_layers, uint32_t n_heads, float *gates_out);

/* Writes "24 MiB", "1.50 GiB", "512 B" into text (at least 16 bytes); returns text. */
HR_API char *hr_format_bytes(uint64_t bytes, char *text, size_t text_bytes);

#ifdef __cplusplus
}
#endif

#endif
