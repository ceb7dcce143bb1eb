/* What the engine knows of an open model. */
#ifndef HRE_MODEL_H
#define HRE_MODEL_H

#include "engine/engine.h"
#include "engine/linear.h"
#include "engine/rope.h"

struct hre_norm {
    const float *weight;
    const float *bias; /* NULL: root mean square norm; else LayerNorm */
};

struct hre_layer {
    struct hre_norm attn_norm, ffn_norm;
    struct hre_weight q, k, v, output;
    struct hre_weight gate, up, down; /* no gate: GELU instead of SwiGLU */
    uint32_t rope;                    /* index into the model's tables */
};

struct hre_model {
    hre_gguf_t *gguf;
    const struct hre_ops *ops;
    struct hre_workers *workers;
    struct hre_linear *linear;
    struct hre_model_info info;
    char *architecture, *name;

    struct hre_weight embedding, output;
    void *weights; /* where a mapped file's matrices were moved to, or NULL */
    size_t weights_bytes;
    void *row; /* scratch for a row of the embedding then */
    struct hre_norm output_norm;
    float norm_eps;
    const float *smear; /* [width] or NULL */
    struct hre_layer *layers;
    struct hre_device *device; /* where all of it runs (device.h), or NULL: here */

    struct hre_rope_table *ropes; /* [n_ropes], one per distinct base */
    uint32_t n_ropes;
    float *rope_bases; /* [n_layers] */
    uint32_t *windows; /* [n_layers] */
    int any_window;
    float *log_n;                  /* [n_layers][n_q_heads] or NULL */
    struct hr_rope *library_ropes; /* [n_layers] as the library wants them */
};

/* Fills everything from model->gguf. On failure the caller closes the model. */
hr_status_t hre_model_bind(struct hre_model *model);

/* Moves the matrices of a mapped file to memory of the model's own, in the order that model->ops reads fastest. HR_ERR_NOMEM. */
hr_status_t hre_model_move_weights(struct hre_model *model);
void hre_model_free_weights(struct hre_model *model);

/* The embedded model's file. */
const void *hre_tiny_file(size_t *bytes_out);

#endif
