/* The functions behind the table in bench.c. */
#ifndef BENCH_SUBJECTS_H
#define BENCH_SUBJECTS_H

#include "bench/bench.h"

#define HRB_SUBJECT(name)                                                                          \
    int name(const struct hrb_benchmark *self, const struct hrb_options *options,                  \
             struct hrb_result *result)

HRB_SUBJECT(hrb_attention_read); /* variant: query heads per kv-head, + 100 for bf16 rows */
HRB_SUBJECT(
    hrb_exact); /* variant: head dim + 1000 * query heads per kv-head, + 10000 for bf16 rows */
HRB_SUBJECT(hrb_summary_score); /* variant: query heads per kv-head */
HRB_SUBJECT(hrb_sketch_score);  /* variant: 100 or 200 (1 or 2 bits) + query heads */
HRB_SUBJECT(hrb_sketch_full);   /* variant: share of the sketches in percent */
HRB_SUBJECT(hrb_file_read);     /* variant: KiB of a read + 1000 * queue depth */
HRB_SUBJECT(hrb_file_write);    /* variant: 0 cells into the file tier, 1 a saved session */
HRB_SUBJECT(hrb_decode_step);   /* variant: tokens */
HRB_SUBJECT(hrb_decode_step_fine);
HRB_SUBJECT(hrb_decode_2pct);       /* variant: tokens */
HRB_SUBJECT(hrb_decode_2pct_file);  /* variant: tokens */
HRB_SUBJECT(hrb_decode_trace);      /* variant: tokens */
HRB_SUBJECT(hrb_decode_trace_file); /* variant: tokens */
HRB_SUBJECT(hrb_engine);            /* variant: 0 prefill, else tokens before decoding */
HRB_SUBJECT(hrb_sdpa);              /* variant: 0 decode, 1 prefill, + 10 for bf16 rows */
HRB_SUBJECT(hrb_plan);              /* variant: 1 rows in the file, 0 in host memory */
HRB_SUBJECT(hrb_gather); /* variant: 0 int8 blocks, 1 bf16 blocks, 2 int8 rows, 3 bf16 rows */
HRB_SUBJECT(
    hrb_bytes); /* variant: 0 CRC-32C, 1 bf16 to f32, 2 f32 to bf16, 3 f32 to int8, 4 scores of bf16 rows */
HRB_SUBJECT(hrb_prefill_tile);
HRB_SUBJECT(hrb_ingest);
HRB_SUBJECT(hrb_select);
HRB_SUBJECT(hrb_append_step);
HRB_SUBJECT(hrb_step_writes);
HRB_SUBJECT(hrb_fork);
HRB_SUBJECT(hrb_run_memory);
/* On a GPU. */
HRB_SUBJECT(hrb_device_gather); /* variant: bytes of a block */
HRB_SUBJECT(hrb_device_decode); /* variant: rows of a head */
HRB_SUBJECT(hrb_device_index);  /* variant: rows of a segment */
HRB_SUBJECT(hrb_device_sparse);
HRB_SUBJECT(hrb_device_mover);
/* variant: Ki tokens */
HRB_SUBJECT(hrb_device_choice);
HRB_SUBJECT(hrb_device_sketch);
HRB_SUBJECT(hrb_device_token);
HRB_SUBJECT(hrb_device_token_summaries);
HRB_SUBJECT(hrb_device_token_full);
HRB_SUBJECT(hrb_device_token_sdpa);
HRB_SUBJECT(hrb_device_graph);

#endif
