/* Jobs of segments (index/job.h) on the device, for the heads of a layer side by side. Inside of the runtime.
 *
 * Rows are copied there once per segment and head; what comes back is what the host keeps: points and assignments, summaries, int8 rows,
 * sketches. Fits, eigenvectors, cuts and lists stay with the workers, between the jobs.
 *
 * Memory: device_bytes that no sequence has taken, for as many heads as there are workers, or half as many and so on; released when a
 * sequence or a graph needs it. Where there is none, or the device is lost, the CPU does all jobs, and where one fails, that one and what
 * follows of the segment.
 *
 * Threads: the owner of the sequence, but hri_device_index_take and _codes, which touch one head's results alone: any, between two calls of the owner. */
#ifndef HRI_RUNTIME_DEVICE_INDEX_H
#define HRI_RUNTIME_DEVICE_INDEX_H

#include "index/job.h"
#include "runtime/sequence.h"

/* Heads that may be added at once; 0: not on the device. */
uint32_t hri_device_index_heads(hr_sequence_t *s, uint32_t n_rows);
/* Rows [n_heads][n][row_bytes] of the heads that are added now, n_heads at most as many as that. They stay until the next wait. */
hr_status_t hri_device_index_begin(hr_sequence_t *s, const void *rows, uint32_t n,
                                   uint32_t n_heads);
/* Does the jobs of these heads, which must all be of one kind, and waits. After an error nothing of them is done. */
hr_status_t hri_device_index_run(hr_sequence_t *s, const struct hri_index_job *const *jobs,
                                 uint32_t n_heads);
/* Enters the results of head i's job. */
void hri_device_index_take(const hr_sequence_t *s, uint32_t i, const struct hri_index_job *job);
/* int8 rows of head i in block order [n][dk + dv] and steps of its blocks, as of the last pack; false: there was none. */
struct hri_device_coded {
    const int8_t *codes;
    const float *k_step, *v_step;
};
bool hri_device_index_codes(const hr_sequence_t *s, uint32_t i, struct hri_device_coded *coded_out);
/* Before device memory is asked for: gives way where fewer than `bytes` are left. */
void hri_device_index_yield(hr_runtime_t *rt, uint64_t bytes);

#endif
