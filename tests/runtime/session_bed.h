/* What tests of saved sessions share: a runtime, a sequence of two layers (heads that are exact among them), and what was got and wanted. */
#ifndef HR_TESTS_RUNTIME_SESSION_BED_H
#define HR_TESTS_RUNTIME_SESSION_BED_H

#include <stdbool.h>

#include "tests/runtime/naive.h"
#include "tests/test.h"

enum { HEADS = 4, KV = 2, D = 64, N = 1700, LAYERS = 2, MORE = 24, WIDTH = HEADS * D };

extern const struct shape session_shape;
extern float session_k[N * KV * D], session_v[N * KV * D], session_q[N * WIDTH];
extern float got[MORE * LAYERS * WIDTH], want[MORE * LAYERS * WIDTH];
extern char root[1024], dir[1100]; /* a folder of this process, and a session's in it */

void wipe(const char *path);
int setup(void **state);
int teardown(void **state);
hr_runtime_t *runtime_for(bool file);
void options_of(struct hr_sequence_options *o, const char *recipe);
hr_sequence_t *sequence_make(hr_runtime_t *rt, const char *recipe);
hr_sequence_t *sequence_open(hr_runtime_t *rt, const char *recipe);
void append(hr_sequence_t *s, uint32_t layer, uint32_t first, uint32_t n);
void attend(hr_sequence_t *s, uint32_t layer, hr_attend_mode_t mode, uint32_t first, uint32_t n,
            float *out);
void prompt(hr_sequence_t *s, uint32_t n);
void steps(hr_sequence_t *s, uint32_t first, uint32_t n, float *out);
void save(hr_sequence_t *s, hr_durability_t durability);
/* got and wanted, so many steps, bit for bit. */
void same(const char *what, uint32_t n);

#endif
