/* Exact rows of a sequence in a GPU's memory, for queries that attend all of a layer's rows one token at a time: `full`, layers with
 * sliding windows, a recipe's dense layers, and what a caller asks to be exact. Inside of the runtime.
 *
 * A layer has the rows of its first tokens, as far as its share of the device's budget goes, or all of its sliding window:
 *
 *   0                 capacity                  length
 *   | rows on the GPU | rows of the host's tiers |      both are attended at once, each where they lie;
 *                                                       their outputs are merged by log-sum-exp
 *
 * The host keeps all rows as ever (log, tail): they are what is saved and forked, and what is attended when the GPU is lost.
 * The memory is what nothing else wants: it is asked for last, never refused, and goes when a sequence that is created has no room
 * for what its steps need.
 *
 * Threads: as the sequence. */
#ifndef HRI_RUNTIME_DEVICE_ROWS_H
#define HRI_RUNTIME_DEVICE_ROWS_H

#include "runtime/device_part.h"

/* Of a layer and token, on the host and on the device alike. */
struct hri_held_in {
    uint32_t *near; /* [3]: rows attended, the first one's and the new row's place in the ring */
    float *q;       /* [H][G][dk] scaled */
    float *scale;   /* [H][G] of queries that are on the device already (step_graph.c) */
    unsigned char *row; /* [H][row_bytes] the new row */
    size_t bytes;
};
struct hri_held_out {
    float *out, *lse;   /* [H][G][dv], [H][G] */
    float *q;           /* [H][G][dk] scaled, and */
    unsigned char *row; /* [H][row_bytes] the new row, where the device has made them */
    size_t bytes;
};

struct hri_held_layer {
    struct hri_device_memory memory; /* [H][capacity][row_bytes], token t in row t % capacity */
    uint32_t capacity;               /* rows, whole pages of the log; 0: none */
    uint32_t first, end;             /* tokens whose rows are there */
    bool asked;                      /* for memory: that is done once */
    struct hri_held_in in;
    struct hri_held_out out;
};

struct hri_device_rows {
    struct hri_device_rows *next; /* of the runtime's */
    hr_sequence_t *s;
    struct hri_device *device;
    const struct hri_launchers *launch;
    struct hri_cuda_heads heads;
    struct hri_device_memory memory; /* of all layers' in and out, and: */
    float *work;
    uint32_t *arrived, *bad;
    struct hri_device_buffer host;
    struct hri_held_in *ins; /* [n_layers] on the host, one after the other */
    struct hri_held_out *outs;
    struct hri_held_layer *layers; /* [n_layers] */
    void *event;                   /* after what was last launched on a caller's stream */
    bool is_read;                  /* and may still read rows */
    bool given_up;                 /* after a failure: the host attends everything */
};

/* Memory for the layers that always attend everything, if the runtime has a GPU and the rows can be attended there. What does not
 * fit is left out; HR_ERR_NOMEM is the host's memory alone. */
hr_status_t hri_held_attach(hr_sequence_t *s);
void hri_held_detach(hr_sequence_t *s);
/* As hri_device_attach; where there is no room for what steps need, exact rows make some. */
hr_status_t hri_held_attach_steps(hr_sequence_t *s);
/* One line of the log about what has no kernels, if anything: with a GPU. */
void hri_held_say_lacks(const hr_sequence_t *s);
/* All sequences of the runtime give their rows' memory back. False: there was none. */
bool hri_held_give_way(hr_runtime_t *rt);

/* Starts the attention of one query [H][G][dk], scaled, over the rows of tokens [first, *end_out), which are the first ones of [first,
 * end), and returns without waiting. False: none are there, nothing was started. */
bool hri_held_begin(hr_sequence_t *s, struct hri_layer *layer, const float *q, uint32_t first,
                    uint32_t end, struct hr_attend_report *report, uint32_t *end_out);
/* Waits for it: the output [H][G][dv] and its log-sum-exps [H][G], valid until the layer's next query. After an error the host must attend
 * these rows itself; the device is not asked again. */
hr_status_t hri_held_end(hr_sequence_t *s, struct hri_layer *layer, const float **out,
                         const float **lse);
/* Rows of tokens [0, *end_out) for queries of a prompt whose rows end at `end`: [H] times *stride_out bytes apart, once they are all there.
 * NULL: none are, or the layer sees a window. What was launched on `stream` to read them is told by hri_held_read. */
const void *hri_held_prompt(hr_sequence_t *s, struct hri_layer *layer, uint32_t end,
                            struct hr_attend_report *report, uint32_t *end_out, size_t *stride_out);
void hri_held_read(hr_sequence_t *s, void *stream);
/* After a prompt: brings what fits of the layer's rows, so that the next token need not. */
void hri_held_follow(hr_sequence_t *s, struct hri_layer *layer);
/* -- for step_graph.c: a token of a layer whose rows are all there -- */
bool hri_held_whole(const hr_sequence_t *s, uint32_t layer_index);
/* Brings the rows before the token, and fills what its launches read. HR_ERR_UNSUPPORTED: the layer's rows have given way. */
hr_status_t hri_held_token_begin(hr_sequence_t *s, uint32_t layer_index, uint32_t position,
                                 struct hr_attend_report *report);
/* All launches of a layer whose q, k and v [n_q][dk], [H][dk], [H][dv] are on the device. Returns the error. */
int hri_held_launch(const hr_sequence_t *s, uint32_t layer_index, const float *q, const float *k,
                    const float *v);
/* The host has the token's row, too. */
void hri_held_token_end(hr_sequence_t *s, uint32_t layer_index, uint32_t position,
                        struct hr_attend_report *report);
/* Inputs of all layers there, outputs of all back, on the stream. */
hr_status_t hri_held_put(hr_sequence_t *s);
hr_status_t hri_held_take(hr_sequence_t *s);

/* After a truncate: what is gone on the host is gone there. */
void hri_held_cut(hr_sequence_t *s);
/* Bytes of rows on the device. */
uint64_t hri_held_bytes(const hr_sequence_t *s);

#endif
