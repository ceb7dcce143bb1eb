/* MagicPIG's state, for select_magicpig.c and its test. */
#ifndef HRI_INDEX_MAGICPIG_H
#define HRI_INDEX_MAGICPIG_H

#include "index/simhash.h"

struct hri_magicpig {
    struct hri_simhash hash;
    float *center; /* [k_dim] mean of the first rows that were added */
    float *length; /* [rows_max] of a key less the centre; device */
    bool has_center;
};

#endif
