/* What a sequence has on a device with memory of its own, and its steps there. Inside of the runtime.
 *
 * The host keeps everything it keeps without a device: log, tail, summaries, blocks, statistics. They are what is
 * saved and forked, and what is left when the device is lost. The device has a copy of what a step reads
 * (window, summaries, shapes), brought up to date before each step, and frames of its own.
 *
 * A step of a layer is a list of launches that is recorded when the sequence is created and replayed for
 * every token: lengths, budgets and the query come with the token, in one copy (struct hri_device_in), and the
 * output goes back in one (struct hri_device_out).
 *
 *   near    append . query . attention over sink and window
 *   choose  score . factor . worth . select . resolve
 *   far     gather . mark . attention over all . predict
 *
 * With sketches (device_sketch.c, device_step_sketch.c) all of them are read after the scores, and what is refined is a
 * part of a block: one read of the file.
 *
 * Where the device reaches the blocks itself (pinned host memory, no file tier) all is one graph. Else the host
 * brings the misses between `choose` and `far`, with the deadline that a step on the CPU has. */
#ifndef HRI_RUNTIME_DEVICE_PART_H
#define HRI_RUNTIME_DEVICE_PART_H

#include "kernels/device.h"
#include "offload/device_tier.h"
#include "runtime/sequence.h"

/* Of a layer and token, on the host and on the device alike. */
struct hri_device_in {
    uint32_t *n_blocks;                    /* [H] */
    uint32_t *n_items;                     /* [H] parts of blocks */
    uint32_t *n_bases, *n_lone, *n_strays; /* [H] of sketches */
    uint64_t *budget;                      /* [H][2] of misses, of hits */
    float *enough;                         /* [H] */
    uint32_t *ticket;   /* one number, where the host brings misses through the mailbox; and */
    uint64_t *limit_ns; /* how long the device waits for them */
    uint32_t *
        near; /* [4]: rows of the sink, of the window, its first row and the new row's place in the ring */
    float *q;           /* [H][G][dk] scaled */
    float *scale;       /* [H][G] of queries that are on the device already (step_graph.c) */
    unsigned char *row; /* [H][row_bytes] the new row */
    size_t bytes;
};
struct hri_device_out {
    float *out, *predicted, *late; /* [H][G][dv], [H][G], [H][G] */
    uint32_t *counts;              /* [H][HRI_CUDA_PREDICT_COUNTS] */
    uint32_t *n_items;             /* [H] */
    uint32_t *worth;               /* [H][HRI_WORTH_BINS], with sketches */
    float *q;                      /* [H][G][dk] scaled, and */
    unsigned char *row;            /* [H][row_bytes] the new row, where the device has made them */
    size_t bytes;
};
/* What was chosen: asked for by few, so it goes by itself. */
struct hri_device_lists {
    uint32_t *items, *frames; /* [H][items_max] */
    size_t bytes;
};

/* A layer's sketches on the device, as index/sketch.h has them on the host. */
struct hri_device_sketches {
    uint8_t *codes;                     /* [H][lanes / 16][lines][64] */
    uint32_t *first_lane, *first_stray; /* [H][blocks_max] */
    uint16_t *basis_of;                 /* [H][blocks_max] */
    uint8_t *miss;                      /* [H][blocks_max] */
    uint8_t *gain, *value_miss;         /* the same */
    struct hri_cuda_basis *bases;       /* [H][bases_max], with pointers to: */
    int8_t *query, *value;              /* [H][bases_max][dk][dk], [coded_max][dv] */
    float *query_scale, *missed;        /* [H][bases_max][dk] */
    float *step, *value_scale;          /* [H][bases_max][coded_max] */
    uint32_t *lone_lane, *lone_item;    /* [H][lone_max] */
    uint8_t *lone_miss;                 /* [H][lone_max] */
    uint32_t *stray_block;              /* [H][strays_max] */
    uint8_t *stray_row;                 /* [H][strays_max] */
    float *stray_step;                  /* [H][strays_max] */
    int8_t *stray_key;                  /* [H][strays_max][dk] */
};

/* A layer's copy on the device: pointers into the part's memory. */
struct hri_device_layer {
    struct hri_device_in in;
    struct hri_device_out out;
    struct hri_device_lists lists;
    unsigned char *tail,
        *sink; /* [H][tail_max][row_bytes], a ring: token t in row t % tail_max; [H][n_sink][row_bytes] */
    uint8_t *k_codes, *rows, *peak;
    int8_t *v_codes;
    float *k_scale, *v_scale, *k_step, *v_step, *k_mean, *v_mean, *v_variance;
    uint16_t *spread;
    int8_t *f, *w, *u;
    float *f_scale, *w_scale, *u_scale;
    struct hri_device_sketches sketches;
    uint64_t *host_offset;   /* [H][items] */
    uint32_t *block_bytes;   /* likewise */
    uint32_t number;         /* in the tier */
    uint32_t rows_synced;    /* tokens that the ring has seen */
    uint32_t sink_synced;    /* rows */
    uint32_t *blocks_synced; /* [H] on the host */
    bool shape_stale;
    void *first, *second; /* graphs; second NULL: all in the first */
};

/* What all layers use, one after the other. */
struct hri_device_work {
    struct hri_cuda_query_out query;
    float *near_out, *near_lse, *lse, *ones, *dots, *log_mass, *top, *total, *score_work, *factor,
        *common;
    float *key, *error, *left, *left_out, *attend_work;
    uint32_t *score_arrived, *attend_arrived, *cost, *n_jobs, *counts, *bad, *zero, *n_late;
    uint8_t *class_, *mark;
    struct hri_cuda_job *jobs, *late;
};

/* The same, of sketches. */
struct hri_device_sketch_work {
    struct hri_cuda_sketch_query *queries;  /* [H][bases_max] */
    float *rest;                            /* [H][bases_max][G] */
    float *x, *w;                           /* [H][G][lanes] logits, weights */
    float *focus, *left_mass, *left_square; /* [H][G][blocks_max] */
    float *size;                            /* [H][G] */
    struct hri_cuda_rows_list list;
    float *sum, *sum_work, *value_work, *added; /* added [H][G][dv] */
    uint32_t *sum_arrived, *value_arrived;
    uint32_t *worth; /* [H][HRI_WORTH_BINS] */
};

/* Sizes of a head's sketches; lines 0: none are kept. */
struct hri_device_sketch_sizes {
    uint32_t lines, bases_max, lanes, coded_max, lone_max, strays_max, pairs_max;
};

struct hri_device_part {
    struct hri_device *device;
    const struct hri_launchers *launch;
    struct hri_device_memory memory;
    struct hri_device_tier *tier;
    struct hri_cuda_heads heads;
    uint32_t blocks_max; /* a multiple of 16 */
    uint32_t parts, part_rows,
        items; /* of a block; of blocks_max blocks: what is chosen, fetched, kept in frames */
    struct hri_device_sketch_sizes sizes;
    uint32_t rank_c, rank_d, n_frames, jobs_max, frame_bytes;
    bool direct; /* the device reads blocks itself */
    bool
        mailed; /* else: it asks for them through a mailbox; neither: between two halves of the step */
    struct hri_device_buffer host; /* of all layers with blocks, as on the device: */
    struct hri_device_in *ins;     /* [n_layers] input, one after the other */
    struct hri_device_out *outs;   /* [n_layers] output, likewise */
    struct hri_device_lists lists; /* of one layer */
    struct hri_device_work work;
    struct hri_device_sketch_work sketch_work;
    struct hri_device_layer *layers; /* [n_layers]; of layers without blocks all 0 */
    uint32_t *synced;                /* [n_layers][H] */
    uint64_t *offsets;               /* [items] on the host */
    uint32_t *bytes;
    uint32_t *numbers; /* [blocks_max or lone_max] on the host, of sketches */
    /* The mailbox and the host's side of it (device_mail.c): */
    struct hri_device_buffer box_memory;
    struct hri_cuda_mailbox box;
    uint32_t ticket, served; /* last given out; last seen */
    struct hri_read_batch batch;
    uint8_t *answered; /* [jobs_max] */
    void *event;
    struct hri_cuda_job *jobs; /* [jobs_max] on the host */
    struct hri_read *reads;
};

/* What of the sequence stays on the host for want of kernels, as a text that "on the host" completes; NULL: nothing does. */
const char *hri_device_lacks(const hr_sequence_t *s);
/* Layers with blocks. */
uint32_t hri_device_layers(const hr_sequence_t *s);
/* Memory, frames and graphs; takes the place of hri_frames_attach. HR_ERR_BUDGET (the least it needs), HR_ERR_NOMEM, HR_ERR_DEVICE. */
hr_status_t hri_device_attach(hr_sequence_t *s);
void hri_device_detach(hr_sequence_t *s);
/* After a truncate: what is gone on the host is gone there. */
void hri_device_cut(hr_sequence_t *s);
/* What the heads of a layer share has changed, though there are no more blocks to be seen. */
void hri_device_shape_changed(hr_sequence_t *s, const struct hri_layer *layer);
/* Brings the layer's copy up to date with the host, with the window's rows of tokens below `end`. */
hr_status_t hri_device_sync(hr_sequence_t *s, struct hri_layer *layer, uint32_t end);
/* -- sketches (device_sketch.c) -- */
void hri_device_sketch_sizes(const hr_sequence_t *s, struct hri_device_sketch_sizes *sizes);
void hri_device_sketch_carve(const struct hri_device_part *p, struct hri_device_carve *c,
                             struct hri_device_sketches *sketches);
void hri_device_sketch_work_carve(const struct hri_device_part *p, struct hri_device_carve *c,
                                  struct hri_device_sketch_work *work);
/* Those of blocks [first, n_blocks) of a head. */
hr_status_t hri_device_sketch_put(struct hri_device_part *p, const struct hri_index_head *head,
                                  uint32_t number, uint32_t first,
                                  const struct hri_device_sketches *to);
/* Code bytes that a step reads once. */
uint64_t hri_device_sketch_read_bytes(const struct hri_index_head *head);

/* Records the graphs of a layer (device_step.c). */
hr_status_t hri_device_record(hr_sequence_t *s, uint32_t layer_index);

/* The read that brings a block, whole, to dst. */
void hri_device_read_fill(const hr_sequence_t *s, uint32_t layer_index,
                          const struct hri_cuda_job *job, void *dst, struct hri_read *read);
/* Serves the mailbox until everything in the stream is done. Tickets first_ticket + i are of layers first_layer + i. */
struct hri_device_mail {
    uint32_t first_layer, n_layers, first_ticket;
    struct hr_attend_report *report; /* bytes are added */
    uint32_t n_lost, n_late;         /* cannot be read; had not come when the turn was over */
    hr_status_t why;                 /* of the last lost one */
};
hr_status_t hri_device_mail_serve(hr_sequence_t *s, struct hri_device_mail *mail);

/* -- parts of a step, for step_graph.c -- */
/* One token of one layer that is under way. */
struct hri_device_token {
    hr_sequence_t *s;
    struct hri_device_part *p;
    struct hri_layer *layer;
    struct hri_device_layer *d;
    struct hri_device_in *in; /* on the host */
    struct hri_device_out *out;
    uint32_t layer_index, position;
    const struct hri_limits *limits;
    struct hr_attend_report *report;
    uint32_t n_lost; /* of the late blocks */
    hr_status_t judged;
    uint64_t time_ns;
};
struct hri_device_token hri_device_token(hr_sequence_t *s, uint32_t layer_index, uint32_t position,
                                         struct hr_attend_report *report);
/* Counts, budgets and places of a token at t->position. */
void hri_device_in_fill(struct hri_device_token *t);
/* Adds to the report. */
void hri_device_report(struct hri_device_token *t);
/* All launches of a layer whose q, k and v [n_q][dk], [H][dk], [H][dv] are on the device. Returns the error. */
int hri_device_launch(const hr_sequence_t *s, uint32_t layer_index, const float *q, const float *k,
                      const float *v);
/* -- for benchmarks: with what the last step left in device memory -- */
int hri_device_launch_again(const hr_sequence_t *s, uint32_t layer_index);  /* all of a step */
int hri_device_launch_choice(const hr_sequence_t *s, uint32_t layer_index); /* score to resolve */
/* As hri_step, on the device. */
hr_status_t hri_device_step(hr_sequence_t *s, uint32_t layer_index, const float *q,
                            uint32_t position, const struct hri_limits *limits, float *out,
                            struct hr_attend_report *report);

#endif
