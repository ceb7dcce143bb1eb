/* One index head with its rows, driven as the runtime drives it: group, code, select, refine,
 * estimate. For tests and tools. */
#ifndef TESTS_INDEX_BENCH_HEAD_H
#define TESTS_INDEX_BENCH_HEAD_H

#include "index/index.h"

struct bench_head {
    struct hri_index_options options;
    struct hri_index_head *head;
    struct hri_alloc memory;
    const float *k, *v; /* body rows, the caller's */
    uint32_t n;
    uint32_t *order; /* [n] */
    uint32_t *first; /* [blocks + 1] a block's first entry in order */
    int8_t *codes;   /* [n][k_dim + v_dim] in block order */
    void *scratch;
    uint32_t *items;
    struct hri_row_ref *rows; /* [n] */
    float *row_scores;        /* [g][n] */
};

struct bench_geometry {
    const char *recipe;
    uint32_t g, k_dim, v_dim;
    struct hr_rope rope;
    uint32_t horizon_tokens;
    float soft_cap;
    bool rows_in_host; /* so that rests are kept */
};

/* seen [n_seen][g][k_dim], scaled, from position first_seen on (n_seen may be 0). Rows are grouped
 * in segments of segment_rows (0: one). Exits the program when something fails. */
void bench_head_init(struct bench_head *b, const struct bench_geometry *geometry, const float *k,
                     const float *v, uint32_t n, const float *seen, uint32_t n_seen,
                     uint32_t first_seen, uint32_t position_end, uint32_t segment_rows);
void bench_head_fini(struct bench_head *b);

/* One step: part holds sink and window on entry (m, l, o), everything on return. q [g][k_dim]
 * scaled. */
void bench_head_step(struct bench_head *b, const float *q, uint64_t budget_bytes, double tolerance,
                     const uint8_t *place, struct hri_partial *part, struct hri_select_out *out);

/* Attention over n rows by the definition, in double, added to part. */
void bench_attend(const float *q, uint32_t g, uint32_t dk, uint32_t dv, const float *k,
                  const float *v, uint32_t n, float soft_cap, struct hri_partial *part);

#endif
