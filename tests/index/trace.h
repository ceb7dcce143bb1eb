/* Reading a recorded attention trace: k.npy, v.npy [kv_heads][tokens][d] float16; q.npy, q_seen.npy
 * [q_heads][positions][d] float32; meta.json with the geometry. */
#ifndef TESTS_INDEX_TRACE_H
#define TESTS_INDEX_TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct trace {
    char name[256];
    uint32_t n_q_heads, n_kv_heads, d, n_tokens, n_q, n_seen;
    float *k, *v; /* [n_kv_heads][n_tokens][d] */
    float *q;     /* [n_q_heads][n_q][d] */
    float *seen;  /* [n_q_heads][n_seen][d] */
    uint32_t *q_position, *seen_position;
    double rope_base; /* 0: none; layout half, all dimensions rotated */
};
/* False with a line on standard error if something is missing or does not fit. */
bool trace_load(const char *dir, struct trace *trace);
void trace_free(struct trace *trace);

#endif
