/* A step of a head with sketches: which blocks' sketches are read, which rows or blocks are refined, and the estimate of the rest
 * (docs/algorithm.md, level 1). Works on what level 0 left in the step: dots and weights. */
#ifndef HRI_INDEX_LADDER_H
#define HRI_INDEX_LADDER_H

#include "index/head.h"

size_t hri_ladder_bytes(const struct hri_index_options *options);

/* What level 0 knows. rates: per block and query head the expected squared error that it leaves per squared share of the total, and
 * the same with the tails lifted, for ranking. output: with the weights as they are now, size, the values' distance and that of their mean; shifted [v_dim]: by what the
 * weighted values are known to differ from the blocks' means. */
struct hri_ladder_in {
    const struct hri_select_in *in;
    struct hri_step *step;
    void (*rates)(const struct hri_index_head *head, const struct hri_step *step, uint32_t g,
                  float *rate, float *lifted);
    void (*output)(const struct hri_index_head *head, const struct hri_select_in *in,
                   const struct hri_step *step, uint32_t g, const float *shifted, float *far_out,
                   float *common_out, float *size_out);
};
hr_status_t hri_ladder_select(struct hri_index_head *head, const struct hri_ladder_in *ladder,
                              struct hri_select_out *out);
/* What the last select with this scratch knows of a block: its summary alone; its rows' sketches; or those too, found to weigh so
 * little together that none is looked at singly. */
enum hri_ladder_known { HRI_KNOWN_SUMMARY, HRI_KNOWN_ROWS, HRI_KNOWN_LIGHT };
enum hri_ladder_known hri_ladder_known(const struct hri_index_head *head,
                                       const struct hri_select_in *in, uint32_t block);
/* What of a row it took: nothing, the rest of its value (index/rests.h), all of it. Of parts that were taken nothing is said. */
enum hri_taken { HRI_TAKEN_NOT, HRI_TAKEN_REST, HRI_TAKEN_ROW };
enum hri_taken hri_ladder_taken(const struct hri_index_head *head, const struct hri_select_in *in,
                                uint32_t block, uint32_t row);
/* By what factor audits corrected what level 0 has of the weights of blocks that are not known better (1: no evidence). */
float hri_ladder_corrected(const struct hri_index_head *head, const struct hri_select_in *in,
                           uint32_t g);
/* Of everything that was not chosen in out; returns how many items that are. */
uint32_t hri_ladder_estimate(const struct hri_index_head *head, const struct hri_select_in *in,
                             struct hri_step *step, const struct hri_select_out *out,
                             struct hri_partial *part);
/* Of items that were chosen and did not come, from their rows' sketches, after the estimate. error_out [G]: the relative error that they
 * leave. */
void hri_ladder_late(const struct hri_index_head *head, const struct hri_select_in *in,
                     struct hri_step *step, const uint32_t *items, uint32_t n,
                     struct hri_partial *part, float *error_out);
/* By block, then by row. */
void hri_ladder_rows_sort(struct hri_row_ref *rows, uint32_t n);
void hri_ladder_attend_rows(const struct hri_index_head *head, const struct hri_select_in *in,
                            const struct hri_step *step, const struct hri_select_out *out,
                            const int8_t *const *codes, struct hri_partial *part);

#endif
