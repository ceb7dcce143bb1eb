/* Exact decode attention on a GPU by our own kernel: one query token over paged bfloat16 rows, HEADS kv-heads of GROUP query heads. */
#ifndef BENCH_DEVICE_DECODE_H
#define BENCH_DEVICE_DECODE_H

#include "bench/device_bed.h"

struct hrb_decode {
    struct bed bed;
    struct hri_cuda_attend_args args;
    struct hri_cuda_heads heads;
    uint16_t *rows;  /* on the host: [pages][PAGE_ROWS][2 DIM]; NULL once nobody wants them */
    uint32_t *pages; /* on the host: [HEADS][n / PAGE_ROWS] */
    float *q;        /* [HEADS GROUP][DIM] before the scale, all of them fit bfloat16 */
    uint32_t *sum;   /* in device memory */
    size_t bytes;    /* of all rows */
    uint32_t n;      /* rows of a head */
};
/* n rows of each head, in pages that lie in random order; the output of one head is compared with the CPU's. keep_rows: for hrb_decode_export.
 * -1: it is there; else the code to return. Closed in every case. */
int hrb_decode_open(struct hrb_decode *decode, uint32_t n, bool keep_rows,
                    struct hrb_result *result);
void hrb_decode_close(struct hrb_decode *decode);
/* hrb_run_fn: of the attention, and of a read of the same bytes. */
double hrb_decode_seconds(void *decode);
double hrb_decode_read_seconds(void *decode);
/* Files q, k, v in dir as bench/peers/run_torch_sdpa.py reads them, bfloat16. */
int hrb_decode_export(const struct hrb_decode *decode, const char *dir, struct hrb_result *result);
/* [HEADS GROUP][DIM] */
int hrb_decode_output(struct hrb_decode *decode, float *out, struct hrb_result *result);

#endif
