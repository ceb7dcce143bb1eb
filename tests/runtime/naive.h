/* A sequence as anyone would write it: all rows in memory, attention in double. The independent reference of the runtime's tests. */
#ifndef TESTS_RUNTIME_NAIVE_H
#define TESTS_RUNTIME_NAIVE_H

#include <headrace/headrace.h>
#include <stdbool.h>

struct shape {
    uint32_t n_layers, n_q, n_kv, dk, dv;
    hr_dtype_t dtype;
    uint32_t sliding; /* of layer 0; the others see everything */
    float soft_cap, log_n;
    hr_rope_layout_t rope;
};

/* Rows of one layer as the library should hold them: rounded to the dtype. */
struct naive {
    struct shape shape;
    uint32_t n, tokens_max;
    float *k, *v; /* [tokens_max][n_kv][dim] */
};

struct random {
    uint64_t state;
};
double random_uniform(struct random *r); /* [0, 1) */
double random_normal(struct random *r);

void naive_init(struct naive *a, const struct shape *shape, uint32_t tokens_max);
void naive_fini(struct naive *a);
/* Rows with clusters: keys near one of n_topics directions, values with a mean; what real keys look like. */
void rows_make(struct random *r, const struct shape *shape, uint32_t n, float *k, float *v);
void queries_make(struct random *r, const struct shape *shape, uint32_t n, float *q);
void naive_append(struct naive *a, const float *k, const float *v, uint32_t n);
/* Output of the newest n queries, [n][n_q][dv]. */
void naive_attend(const struct naive *a, uint32_t layer, const float *q, uint32_t n, double *out);
/* Largest over query heads and tokens of |got - want| / |want|. */
double error_max(const float *got, const double *want, uint32_t n_vectors, uint32_t dv);
double error_mean(const float *got, const double *want, uint32_t n_vectors, uint32_t dv);

void options_for(const struct shape *shape, uint32_t tokens_max, const char *recipe, double moved,
                 struct hr_sequence_options *options_out);
hr_runtime_t *runtime_make(uint64_t device_bytes, uint64_t host_bytes, const char *file_dir,
                           uint64_t file_bytes, hr_io_mode_t io);
/* Rows [first, first + n) of k, v [..][n_kv][dim] into a layer; queries [first, first + n) of q [..][n_q][dk], out [n][n_q][dv]. report may
 * be NULL; where it is not, the true error is measured, too. */
hr_status_t rows_append(hr_sequence_t *s, const struct shape *shape, uint32_t layer, const float *k,
                        const float *v, uint32_t first, uint32_t n);
hr_status_t queries_attend(hr_sequence_t *s, const struct shape *shape, uint32_t layer,
                           hr_attend_mode_t mode, const float *q, uint32_t first, uint32_t n,
                           float *out, struct hr_attend_report *report);
/* |a - b| / |b|. */
double apart(const float *a, const float *b, size_t n);
/* The i-th recipe needs no argument. */
bool recipe_is_plain(size_t i);
/* It attends whole heads or everything, whatever the budget: rows stream past. */
bool recipe_streams(const char *name);
/* A folder on a real disk for the file tier. */
const char *disk_dir(void);

#endif
