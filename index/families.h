/* Families: blocks of a long text whose summaries are alike, whichever segments they come from (docs/algorithm.md, Families).
 *
 * A step looks at the families first and only then at the blocks of those that matter, so that what it reads of the summaries does not
 * grow in step with the text. A family is to its blocks what a block is to its rows: mean key and value, spread, a shape that all
 * families of the head share. Blocks are put into families a brood at a time, oldest first: HRI_BROOD_LEAST of them, and where that makes
 * HRI_BROOD_BLOCKS with the small broods before it, all of these anew, since more blocks have more that are alike. A brood of
 * HRI_BROOD_BLOCKS never changes. Blocks of no brood yet are looked at one by one.
 *
 * For headrace without sketches, in sequences of at least HRI_FAMILIES_LEAST blocks per head. */
#ifndef HRI_INDEX_FAMILIES_H
#define HRI_INDEX_FAMILIES_H

#include "index/head.h"

#define HRI_BROOD_BLOCKS   1024u
#define HRI_BROOD_LEAST    256u
#define HRI_FAMILIES_LEAST 2048u

struct hri_brood {
    uint32_t blocks_end, families_end;
};

struct hri_families {
    struct hri_index_head top; /* its blocks are families, its rows are blocks: summary and shape */
    uint32_t n, n_broods;      /* families; broods */
    struct hri_brood *brood;   /* [broods_max] */
    uint32_t *first;  /* [families_max + 1] a family's blocks are member[first[f]..first[f + 1]) */
    uint32_t *member; /* [blocks_max up to 16] */
    uint32_t *rows;   /* [families_max] of all its blocks */
    float *per_block, *per_row; /* [families_max] one over how many it has */
    uint16_t *within;           /* [families_max] bfloat16, mean spread of its blocks */
    /* What scoring needs of the members, in this order, so that a family is one run: packed as kernels.h says. */
    uint8_t *k_codes;
    float *k_scale;
};

/* Whether heads of these options have them. */
bool hri_families_wanted(const struct hri_index_options *options);
uint32_t hri_families_max(const struct hri_index_options *options);
uint64_t hri_families_bytes(const struct hri_index_options *options); /* device */
uint64_t hri_families_held(const struct hri_index_head *head);
/* head->families, which stays NULL where they are not wanted. */
hr_status_t hri_families_create(struct hri_index_head *head);
void hri_families_destroy(struct hri_index_head *head);

/* Makes a brood of blocks that have none while there are enough; before a segment's blocks are added. work: 64-byte aligned. */
size_t hri_families_work_bytes(const struct hri_index_options *options);
hr_status_t hri_families_grow(struct hri_index_head *head, void *work);
/* Broods with blocks that are gone go too. */
void hri_families_truncate(struct hri_index_head *head);
/* Families of blocks that are not hidden: how many, and how many blocks those are. */
uint32_t hri_families_seen(const struct hri_index_head *head, uint32_t *n_blocks_out);
struct hri_image;
void hri_families_image(struct hri_index_head *head, struct hri_image *image);

/* -- a step -- */

/* What a step looks at: the blocks of open families, and those of none, as a head of their own. What closed families stand for is in
 * `near`, as if it had been attended. */
struct hri_seen {
    bool some; /* false: all blocks are looked at, and nothing below holds */
    struct hri_index_head head;
    struct hri_select_in
        in; /* near, place and scratch are of this view; its dots, variances and shifts are there */
    uint32_t *block;  /* [head.n_blocks] their numbers */
    uint32_t *chosen; /* [n_chosen] places in the view of what was chosen */
    uint32_t n_chosen;
    uint32_t n_families; /* looked at */
    uint32_t n_closed;   /* blocks of closed families */
    struct hri_partial near, closed;
    float left
        [HR_GROUP_MAX]; /* sum over closed families of share^2 times their rate, as predicted errors are made of */
    float drift[HR_GROUP_MAX]; /* and of what their shares may be off by in common */
};
/* Bytes of a step's scratch, dots and everything. */
size_t hri_families_step_bytes(const struct hri_index_options *options);
/* Looks at the families; NULL: nearly all blocks matter, or there are no families. Dots of the blocks seen are where hri_step_dots
 * says. */
struct hri_seen *hri_families_look(const struct hri_index_head *head,
                                   const struct hri_select_in *in);
/* Bytes of level 0 that it read: families, and the summaries of blocks that were seen. */
uint64_t hri_families_bytes_seen(const struct hri_seen *seen);
/* What the last look with this scratch saw; NULL as above. */
struct hri_seen *hri_families_seen_last(const struct hri_index_head *head,
                                        const struct hri_select_in *in);

#endif
