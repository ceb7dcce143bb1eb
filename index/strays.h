/* Rows that sketches say nothing of (docs/algorithm.md, level 1).
 *
 * A basis codes the directions in which most rows of a segment differ. A row that differs in others, one line in a text that repeats
 * itself, loses most of its residual there, and no query that was seen says that this matters: what is missed is the larger the more a
 * query looks for just this row. So rows that their sketch misses by a multiple of what it misses of others keep their residual on the
 * device, int8. On prose that is about one row in a thousand.
 *
 * They ascend by block, then by row. Threads: as a head's tables.
 */
#ifndef HRI_INDEX_STRAYS_H
#define HRI_INDEX_STRAYS_H

#include "index/selector_ops.h"

/* At most one row in so many of a segment. */
#define HRI_STRAY_ROWS 32u

struct hri_strays {
    uint32_t n, max;
    uint32_t *block; /* [max] device */
    uint8_t *row;    /* [max] device: its place in the block */
    float *step;     /* [max] device */
    int8_t *key;     /* [max][k_dim] device: k - m over step */
};

struct hri_image;
struct hri_index_head;

uint32_t hri_strays_max(const struct hri_index_options *options);
/* Device bytes of n of them. */
uint64_t hri_strays_bytes(const struct hri_index_options *options, uint32_t n);
/* False: no memory. */
bool hri_strays_create(const struct hri_index_options *options, struct hri_strays *strays);
void hri_strays_destroy(const struct hri_index_options *options, struct hri_strays *strays);
/* Of a segment whose blocks are summarised and begin with number head->n_blocks: the rows whose code in missed[n] (one for each row in block
 * order) lies above `least`, the largest ones first where there are too many. What was kept has its code set to 0. Returns how many. */
uint32_t hri_strays_add(struct hri_index_head *head, const struct hri_segment *segment,
                        uint32_t least, uint8_t *missed);
/* Drops those of blocks that are gone. */
void hri_strays_truncate(struct hri_strays *strays, uint32_t n_blocks);
/* The first from the i-th on that lies in `block` or after it. */
uint32_t hri_strays_from(const struct hri_strays *strays, uint32_t i, uint32_t block);
void hri_strays_image(struct hri_index_head *head, struct hri_image *image);

#endif
