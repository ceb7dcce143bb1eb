/* What a step of a head with sketches keeps between its parts: ladder_read.c reads sketches, ladder.c says what rows are worth,
 * ladder_refine.c refines them, ladder_estimate.c sums what is left. */
#ifndef HRI_INDEX_LADDER_STATE_H
#define HRI_INDEX_LADDER_STATE_H

#include "index/ladder.h"

#include <string.h>

/* A query head whose unread blocks leave less than this, relative to the output, needs none of their sketches. */
#define HRI_UNREAD_FLOOR 0.003

/* Pending: to be read in this round. Light: read, and found to weigh so little that its weight counts with the value that level 0 gives.
 * Read: its rows count as their sketches have them. Rows: and they may matter one by one. In this order: the later, the more is known. */
enum hri_block_state { HRI_UNREAD, HRI_PENDING, HRI_LIGHT, HRI_READ, HRI_ROWS };

/* Rows whose sketches are scored at a time: their logits stay in the first cache. */
#define HRI_LADDER_CHUNK 1024u

/* The least that lies in a bin. */
static inline float hri_bin_edge(uint32_t bin)
{
    union {
        uint32_t bits;
        float x;
    } u = {bin << HRI_BIN_SHIFT};
    return u.x;
}

/* A block that is audited, for one query head: what level 0 has, and the sketches' weight over that (< 0: level 0 has none). */
struct hri_audit {
    float weight, rate, lifted, ratio;
};

/* A row that lies far out, in a block that has been read: what it may be worth. */
struct hri_lone {
    uint32_t lane, block;
    float worth;
};

struct hri_ladder {
    const struct hri_index_head *head;
    const struct hri_select_in *in;
    struct hri_step *step;
    const struct hri_ladder_in *level0; /* during select */
    size_t stride;                      /* lanes */
    float *score;                       /* [g][HRI_LADDER_CHUNK] sketched part of the logits */
    float *weight; /* [g][stride] of sketched rows, over exp(top); 0 once refined */
    float *
        worth; /* [stride] expected squared error that refining removes, relative; of blocks HRI_ROWS */
    float *square;      /* [g][step->stride] sum of a block's squared weights */
    float *factor;      /* [g][step->stride] from a squared weight of a row to its worth */
    float *block_worth; /* [step->stride] sum of its rows' worth */
    float *
        promise; /* [step->stride] the same, or what one of its rows may turn out to be worth; ROWS: the most of one */
    float *rate; /* [g][step->stride] of unread blocks: squared error per squared share */
    float *lifted; /* [g][step->stride] the same for ranking; both 0 once read */
    float *rest;   /* [bases][g] variance that a sketch of miss 1 leaves */
    float *x;      /* [bases][g][k_dim] queries in a basis */
    float *sum;    /* [g][HR_HEAD_DIM_MAX] weighted codes, a turned query */
    float *
        shifted; /* [g][v_dim] by what the sketches of heavy blocks say that their values differ from the means */
    uint32_t *groups; /* [stride / 16] */
    uint32_t *
        bins; /* [HRI_BINS] bytes of pieces of rows of blocks HRI_ROWS, by what they remove per byte */
    uint32_t bin_top;   /* none is above it */
    uint64_t bin_bytes; /* all of them */
    double others;      /* what the rows are worth of blocks that were read and are not HRI_ROWS */
    float *bin_sum;     /* [HRI_BINS] */
    uint8_t *state;     /* [blocks] enum hri_block_state */
    uint8_t *taken;     /* [stride] enum hri_taken, of rows of blocks HRI_ROWS */
    float *
        value_part; /* [blocks] of what the rows of a block that was read are worth, what their rests are; 0: there are none */
    uint32_t rest_bytes;       /* 0: no rests are kept */
    uint8_t *turned;           /* [bases] x and rest are there */
    bool rows_too;             /* single rows may be chosen */
    bool by_budget;            /* all rows can be, and a budget alone decides how many */
    bool everything;           /* the budget is enough for all rows: then none is passed over */
    bool codes_move;           /* sketches are in host memory: the budget pays for them, too */
    uint64_t codes_budget;     /* bytes of them that may still be read */
    struct hri_ranked *ranked; /* [blocks or rows; with rests two of a row] */
    struct hri_sketch_query *query;
    float *best;       /* [g] largest logit of the rows read */
    float *far, *size; /* [g] mean |v - o|^2 and |o|^2 */
    float *common;     /* [g] |mean v - o|^2 */
    float *
        variance; /* [g][step->stride] that the sketches of a block that was read miss, at most 1 */
    float *drift; /* [g] sum of weights of rows read, not refined, times that */
    float *scale, *inverse; /* [g] 1 / (size total^2), 1 / total */
    float *q_square;        /* [g] |q|^2 */
    float *codes_key,
        *codes_value; /* [g] what codes leave of a refined row, by the squares of their steps */
    uint32_t *audits, n_audits; /* [audits_max] blocks */
    struct hri_audit *audit;    /* [g][audits_max] */
    struct hri_lone *lone;      /* [sketch->lone_max] */
    uint32_t n_lone;
    float *stray;      /* [g][strays.max] what their keys add to their blocks' dots */
    uint32_t stray_at; /* the next one, while blocks are read in their order */
    float light; /* all light blocks together, as worth of single rows at most: relative, squared */
    float *corrected;   /* [g] factor on what level 0 has of unread blocks */
    double *left;       /* [g] relative squared error that is left by what is not refined */
    double *codes_left; /* [g] and by the codes of what is */
};

struct hri_ladder hri_ladder_at(const struct hri_index_head *head, const struct hri_select_in *in,
                                struct hri_step *step);

/* The first block of the next basis. */
static inline uint32_t hri_basis_end(const struct hri_index_head *head, uint32_t basis)
{
    return basis + 1 < head->sketch->n_bases ? head->sketch->bases[basis + 1].first_block
                                             : head->n_blocks;
}

/* The next block from b on that is not unread; n_blocks if there is none. Most are unread. */
static inline uint32_t hri_ladder_next(const struct hri_ladder *l, uint32_t b)
{
    uint32_t n = l->head->n_blocks;
    _Static_assert(HRI_UNREAD == 0, "eight unread blocks are a zero");
    for (uint64_t eight; b + 8 <= n; b += 8) {
        memcpy(&eight, l->state + b, sizeof eight);
        if (eight != 0)
            break;
    }
    while (b < n && l->state[b] == HRI_UNREAD)
        b++;
    return b;
}

/* What the sketches of a block miss, as a factor on their basis's. */
static inline float hri_sketch_miss(const struct hri_index_head *head, uint32_t block)
{
    return head->sketch->miss_of[head->sketch->miss[block]];
}

/* By how much they are to be taken. */
static inline float hri_sketch_gain(const struct hri_index_head *head, uint32_t block)
{
    return (float)head->sketch->gain[block] * (1 / 128.0f);
}

/* What they miss of the values. */
static inline float hri_sketch_value_miss(const struct hri_index_head *head, uint32_t block)
{
    return head->sketch->miss_of[head->sketch->value_miss[block]];
}

/* Marks the blocks whose sketches are read next, so that of what the others leave, ranked with the lift of their tails, about `part`
 * remains; all if part < 0. Returns how many are new. */
uint32_t hri_ladder_mark(struct hri_ladder *l, float part);
/* Of the marked blocks only those stay whose sketches the budget for them pays. Returns how many are marked. */
uint32_t hri_ladder_pending_pay(struct hri_ladder *l);
/* Blocks that level 0 says nothing of, because its variance is cut off. */
uint32_t hri_ladder_mark_clamped(struct hri_ladder *l);
uint32_t hri_ladder_audits_max(const struct hri_index_options *options);
/* Reads the sketches of the sample; its blocks stay unread. Returns the bytes. */
uint64_t hri_ladder_audit(struct hri_ladder *l);
struct hri_audited {
    double factor; /* by which the weights of unread blocks were corrected; 1 without evidence */
    double
        scatter; /* mean square of what a block's weight is off by, relative; 0 without evidence */
    double common; /* the same of their sum, from what the sample leaves open */
};
/* Corrects the weights of what is unread, `sum` together, by the factor that the audits find. */
struct hri_audited hri_ladder_correct(struct hri_ladder *l, uint32_t g, float sum);
/* Weights of marked blocks; tops may be raised, totals do not follow yet. */
uint64_t hri_ladder_read_pending(struct hri_ladder *l);
/* Appends to the n groups listed so far those of block b's lanes; blocks ascend, and a group they share is listed once. Returns how
 * many are listed. */
uint32_t hri_ladder_groups_add(struct hri_ladder *l, uint32_t b, uint32_t n);
/* Adds to sum [G][v_dim] what the weighted codes of the n groups listed, of basis i, stand for beside their blocks' mean values. */
void hri_ladder_values_add(struct hri_ladder *l, uint32_t i, uint32_t n, float *sum);
/* Lanes [first, end) weigh nothing. */
void hri_ladder_lanes_clear(struct hri_ladder *l, uint32_t first, uint32_t end);
/* Stray rows: scores them all; marks the blocks that weigh more by theirs than level 0 has, returns how many are new; puts what their keys
 * give over the scores of block b's sketches (blocks ascend from stray_at 0 on), returns how many they are; adds to the n that were put. */
void hri_ladder_strays_score(struct hri_ladder *l);
uint32_t hri_ladder_strays_mark(struct hri_ladder *l);
uint32_t hri_ladder_strays_put(struct hri_ladder *l, uint32_t b, float *score);
void hri_ladder_strays_lift(const struct hri_ladder *l, uint32_t n, const float *add, float *score);
/* Reads the sketches of all marked blocks; weights and totals follow. Returns the bytes read. */
uint64_t hri_ladder_read(struct hri_ladder *l);
/* The first bin with which bin_sum, from the lowest bin up and `sum` below all, exceeds `most`; HRI_BINS if all does not. */
uint32_t hri_ladder_bin_below(const struct hri_ladder *l, double sum, double most);
/* What is not refined leaves no more than the tolerance. */
bool hri_ladder_tolerance_reached(const struct hri_ladder *l);
/* Pieces of rows: none; those of block b, HRI_ROWS, too. */
void hri_ladder_bins_clear(struct hri_ladder *l);
void hri_ladder_bins_add(struct hri_ladder *l, uint32_t b);
/* The bin in which the want-th byte lies, 0 if there are not so many. */
uint32_t hri_ladder_bytes_bin(const struct hri_ladder *l, uint64_t want);
/* What the pieces beyond the first `want` bytes remove, to a few percent. */
double hri_ladder_bins_beyond(const struct hri_ladder *l, uint64_t want);
/* Takes pieces of rows for `want` bytes, where all rows lie in host memory. */
void hri_ladder_pieces_take(struct hri_ladder *l, uint64_t want, struct hri_select_out *out);
/* Takes rows and parts one by one, best first, until the purse is empty or the tolerance is reached. */
void hri_ladder_candidates_choose(struct hri_ladder *l, struct hri_purse *purse,
                                  struct hri_select_out *out);
/* What unread blocks leave: left[g] set to it; far and size measured. Returns the sum of the group. */
double hri_ladder_unread(struct hri_ladder *l);

#endif
