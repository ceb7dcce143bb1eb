/* What recipes drew at random, for tests/reference/recipes_rows.py: the library's results are not among it, but for the edges of a graph,
 * which are judged as such. */
#ifndef TESTS_RUNTIME_RECIPE_STATE_H
#define TESTS_RUNTIME_RECIPE_STATE_H

#include <headrace/headrace.h>
#include <stddef.h>

void file_write(const char *folder, const char *name, const void *data, size_t bytes);
/* Once after the prompt was settled, once at the end ("prompt", "end"). */
void recipe_state_write(const hr_sequence_t *sequence, const char *folder, const char *when);

#endif
