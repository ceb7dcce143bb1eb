/* JSON that appears whole or not at all: written beside its place, synced, renamed. "-" is
 * standard output. */
#ifndef CLI_JSON_FILE_H
#define CLI_JSON_FILE_H

#include <stdbool.h>

#include <cjson/cJSON.h>

/* Says early that a file could not be written later, before minutes of work: 0, or an exit code
 * after a message. NULL is fine. */
int cli_json_check(const char *path);
/* Writes it and returns 0, or an exit code after a message. path NULL: nothing to do. */
int cli_json_write(const char *path, const cJSON *json);

/* Numbers as cJSON has them are doubles printed with 15 to 17 digits; these keep the tables
 * below readable. */
void cli_json_u64(cJSON *object, const char *name, unsigned long long value);
void cli_json_real(cJSON *object, const char *name,
                   double value); /* NaN and infinity become null */

#endif
