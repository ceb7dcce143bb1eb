/* A session's insides, shared by session.c (life, prefill, decode) and forward.c (the layers). */
#ifndef HRE_SESSION_H
#define HRE_SESSION_H

#include "engine/model.h"

/* A sequence's token as one graph (device_step.c). */
struct hre_device_graph {
    hr_step_graph_t *graph; /* NULL: none was made yet, or, if refused, ever */
    int refused;
};

struct hre_session {
    struct hre_model *model;
    hr_sequence_t **sequences; /* [n_sequences] */
    uint32_t *lengths;         /* [n_sequences] tokens held */
    uint32_t *last_ids;        /* [n_sequences] the newest token, for models that smear */
    uint32_t n_sequences;
    uint32_t tokens_max;
    uint32_t chunk_tokens;
    int broken; /* an error left layers unequally long */

    /* Scratch for chunk_tokens rows, one allocation. */
    float *memory;
    uint64_t memory_bytes;
    float *x, *h;                    /* [chunk][width] */
    float *q, *k, *v, *att;          /* [chunk][heads * dim] */
    float *gate, *up;                /* [chunk][ffn_width] */
    float *cosine, *sine;            /* [n_ropes][chunk][n_rot / 2] */
    float *logits;                   /* allocated when all logits are asked for */
    struct hre_device_graph *graphs; /* [n_sequences] of a model on a GPU */
    struct hre_session_stats stats;
};

struct pass_times {
    uint64_t append_ns, attend_ns;
};

/* Some tokens on their way through the model. */
struct hre_pass {
    const uint32_t *ids;
    uint32_t n;              /* at most chunk_tokens */
    uint32_t first_sequence; /* attended with this one; */
    uint32_t n_sequences;    /* K and V are appended to these, equally long */
    uint32_t rows_needed;    /* of the last layer's output, counted from the end; may be 0 */
    struct hr_attend_options attend;
    const struct hre_decode_options *decode; /* NULL: a prompt */
    uint64_t begin_ns;                       /* of its deadline */
    struct hr_attend_report *sum;            /* counts added up, or NULL */
    const struct hre_prefill_options
        *watch; /* its rows are called; needs all of rows_needed; or NULL */
    struct pass_times times;
};

/* Leaves the last layer's rows_needed rows, normed for the output matrix, at session->h. */
hr_status_t hre_forward(struct hre_session *session, struct hre_pass *pass);

/* Positions whose logits are computed at a time. */
#define HRE_LOGIT_ROWS 64
/* Logits of n of the rows that a pass left, from the first-th on: out [n][vocab]. */
hr_status_t hre_logits(struct hre_session *session, uint32_t first, uint32_t n, float *out);

/* Parts of a layer, on the host's side of it: session->q, k and v have the pass's rows. */
hr_status_t hre_append(struct hre_session *session, struct hre_pass *pass, uint32_t layer);
/* Queries that the call of hre_attend with the last n_queries of them does not show to the recipes. */
hr_status_t hre_show(struct hre_session *session, const struct hre_pass *pass, uint32_t layer,
                     uint32_t n_queries);
hr_status_t hre_attend(struct hre_session *session, struct hre_pass *pass, uint32_t layer,
                       uint32_t n_queries);

uint64_t hre_now_ns(void);

#endif
