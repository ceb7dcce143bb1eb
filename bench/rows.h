/* Rows and queries of the decode benchmarks: clusters with known answers, or a recorded trace tiled with rotated copies of itself. */
#ifndef BENCH_ROWS_H
#define BENCH_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include <headrace/headrace.h>

#define HRB_ROWS_CHUNK 1024 /* rows and queries of one call, at most */

/* What to do next while the text is read: append n rows, then show the queries of the newest `queries` of them. */
struct hrb_rows_chunk {
    uint32_t n, queries;
};

/* What comes before a step: the text is cut to `length` rows, then `rows` are appended that no step is asked for. */
struct hrb_rows_before {
    uint32_t length, rows;
};

struct hrb_rows {
    uint32_t q_heads, kv_heads, dim;
    hr_dtype_t dtype;           /* of k and v, 16 bits each */
    float scale;                /* 0: 1/sqrt(dim) */
    const struct hr_rope *rope; /* NULL: not told */
    uint32_t tokens;            /* before the first step */
    uint32_t error_steps;       /* steps whose errors are a fair mean */

    struct hrb_rows_chunk (*chunk)(const struct hrb_rows *self, uint32_t done);
    /* The next n rows: k, v [n][kv_heads][dim]. */
    void (*make)(struct hrb_rows *self, uint32_t n, uint16_t *k, uint16_t *v);
    /* The queries of the n rows made last, as chunk has them: q [n][q_heads][dim]. */
    void (*shown)(struct hrb_rows *self, uint32_t n, float *q);
    struct hrb_rows_before (*before)(struct hrb_rows *self, uint32_t length);
    /* The next step is the first one again, where steps are given. */
    void (*rewind)(struct hrb_rows *self);
    /* Of the step whose row is made next: q [q_heads][dim]. */
    void (*query)(struct hrb_rows *self, float *q);
    void (*free)(struct hrb_rows *self);
};

/* NULL: out of memory. */
struct hrb_rows *hrb_rows_clusters(uint32_t tokens, uint32_t clusters);

/* What distractors are to the queries, by one query of every head in double precision. */
struct hrb_rows_truth {
    double copies;      /* copies of the trace, the cut-off one counted in part */
    double copies_mass; /* share of the attention that falls on them, mean over heads */
    float
        *out; /* [q_heads][dim] attention of the first step's queries over all rows; the caller's */
};

/* NULL with the reason: no trace, or it does not fit the length. */
struct hrb_rows *hrb_rows_trace(const char *dir, uint32_t tokens, char *why, size_t why_bytes);
/* Reads the whole text once; the rows are then as before. False: out of memory. */
bool hrb_rows_trace_truth(struct hrb_rows *self, struct hrb_rows_truth *truth);

#endif
