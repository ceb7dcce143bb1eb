/*
 * A model on a GPU: its weights as bfloat16 in device memory, and everything between the attention of its layers as launches there.
 *
 * The one part of the engine that includes more than the public headers: kernels/device.h, the table of launches and of what moves
 * memory. Attention stays the library's. K and V of new tokens go to the host, where the sequence keeps them as ever; how
 * queries are attended depends on what the sequence can do:
 *
 *   many, exactly           hr_sequence_attend_device, where queries and output stay on the GPU
 *   one, by the recipe      hr_step_graph: the token as one graph, with the launches of this file between the layers
 *   the rest                by the host's calls: queries go there, the output comes back
 */
#ifndef HRE_DEVICE_H
#define HRE_DEVICE_H

#include "engine/session.h"
#include "kernels/cublas.h"
#include "kernels/device.h"

/* Tokens of a prompt at a time: rows of earlier tokens come past once for all of them, so that more are better, as long as their
 * scratch is a small part of what is free. */
#define HRE_DEVICE_ROWS_LEAST 1024
#define HRE_DEVICE_ROWS_MOST  4096
#define HRE_DEVICE_ROWS_SHARE 16 /* one part in so many */

struct hre_device_weight {
    const uint16_t *w; /* [rows][cols] bfloat16; NULL: the model has none */
    const float *bias; /* [rows] or NULL */
    uint32_t rows, cols;
};

struct hre_device_norm {
    const float *weight, *bias;
};

struct hre_device_layer {
    struct hre_device_norm attn_norm, ffn_norm;
    struct hre_device_weight q, k, v, output, gate, up, down;
};

/* Activations that a product reads: float32 for few rows, bfloat16 for many. */
struct hre_device_rows {
    void *data;
    hr_dtype_t dtype;
};

struct hre_device {
    struct hri_device *device;
    const struct hri_launchers *launch;
    void *stream;
    struct hri_cublas *blas; /* or NULL; given up after its first failure */
    bool blas_failed;
    struct hri_log log;
    hr_log_fn log_fn;
    void *log_context;
    struct hri_device_memory weights, scratch;
    struct hri_device_buffer host;

    struct hre_device_weight embedding, output;
    struct hre_device_norm output_norm;
    const float *smear;
    struct hre_device_layer *layers;

    /* Scratch, of rows_max tokens; sessions take turns. */
    uint32_t rows_max;
    uint32_t *ids;        /* [rows_max + 1] */
    float *cosine, *sine; /* [n_ropes][rows_max][n_rot / 2] */
    float *x, *h;         /* [rows_max][width] */
    float *q, *k, *v;     /* [rows_max][heads * dim] */
    float *att;           /* [rows_max][heads * dim], float32 or bfloat16 */
    float *up, *gate;     /* [rows_max][ffn_width] */
    float *few;           /* [HRI_CUDA_LINEAR_ROWS_MAX][widest] */
    uint16_t *half;       /* [rows_max][widest] */
    float *logits;        /* [logit_rows][vocab] */
    float *linear_work;
    uint32_t *linear_arrived;
    void *blas_work;
    void *attend_work;
    size_t attend_work_bytes;
    struct hre_device_rows
        normed;      /* what the last layer left for the output matrix; or, of a graph, */
    bool has_logits; /* what that made of it is there already */

    /* The host's side, pinned where that is allowed: */
    uint32_t *host_ids;                         /* [rows_max + 1] */
    float *host_cosine, *host_sine;             /* [n_ropes][rows_max][n_rot / 2] */
    float *host_q, *host_k, *host_v, *host_att; /* as above */
};

/* Launches and copies are asked for in order; the first error ends it. */
#define HRE_LAUNCHED(call)                                                                         \
    do {                                                                                           \
        int hre_launch_error = (call);                                                             \
        if (hre_launch_error != 0)                                                                 \
            return hre_launch_error;                                                               \
    } while (0)

/* As hre_model_open, with a device of a test in place of CUDA's. */
hr_status_t hre_model_open_on(const char *path, const struct hre_model_options *options,
                              const struct hri_device_ops *ops, hre_model_t **model_out);

/* The model's tensors are bound and its threads there. model->device stays NULL where options name no GPU. HR_ERR_UNSUPPORTED
 * (no such device, widths that are no multiples of 8), HR_ERR_NOMEM (the message has what is needed and what is free), HR_ERR_DEVICE. */
hr_status_t hre_device_open(hre_model_t *model, const struct hre_model_options *options,
                            const struct hri_device_ops *ops);
void hre_device_close(struct hre_device *device); /* NULL is legal */

/* As hre_forward, of a session whose model is on a GPU; rows for the output matrix are left there. After an error all sequences of the
 * pass are as before it, where the host can make them so. */
hr_status_t hre_device_forward(struct hre_session *session, struct hre_pass *pass);
/* Logits of n of the rows that the pass left, from the first-th on: out [n][vocab]. */
hr_status_t hre_device_logits(struct hre_session *session, uint32_t first, uint32_t n, float *out);
/* Before a session ends. */
void hre_device_session_end(struct hre_session *session);

/* -- of device_layer.c -- */
/* The layer's queries, keys and values of n rows at x, rotated; delta is added to x first, or NULL. */
struct hre_device_qkv {
    float *q, *k, *v;
};
int hre_device_layer_begin(const hre_model_t *model, uint32_t layer, const float *delta, uint32_t n,
                           struct hre_device_qkv to, void *stream);
/* From the attention of the last n rows of x on; what is still to be added to them is left at h. */
int hre_device_layer_end(const hre_model_t *model, uint32_t layer, struct hre_device_rows att,
                         float *x, uint32_t n, void *stream);
/* The last n rows of the last layer, normed for the output matrix; delta as above. */
int hre_device_output_norm(const hre_model_t *model, float *x, const float *delta, uint32_t n,
                           void *stream);
int hre_device_embed(const hre_model_t *model, uint32_t n, void *stream);
/* y = W x, [m][rows]. */
int hre_device_product(struct hre_device *d, struct hre_device_rows x, uint32_t m,
                       const struct hre_device_weight *w, float *y, void *stream);
struct hre_device_rows hre_device_rows_for(const struct hre_device *d, uint32_t n);

/* -- of device_step.c -- */
/* Whether this pass is a token that goes as one graph; makes it if need be. */
hr_status_t hre_device_graph_ready(struct hre_session *session, const struct hre_pass *pass,
                                   bool *ready_out);
/* HR_ERR_UNSUPPORTED: nothing was done, and the graph is gone (its rows made room for others): layer by layer, then. */
hr_status_t hre_device_graph_run(struct hre_session *session, struct hre_pass *pass);
/* Tokens' ids and angles to the device. */
hr_status_t hre_device_tokens_put(struct hre_session *session, const struct hre_pass *pass);

#endif
