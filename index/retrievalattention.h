/* RetrievalAttention's state, for select_retrievalattention.c and its test. */
#ifndef HRI_INDEX_RETRIEVALATTENTION_H
#define HRI_INDEX_RETRIEVALATTENTION_H

#include "base/rng.h"
#include "index/graph.h"

struct hri_retrievalattention {
    struct hri_graph graph;
    float *query; /* [queries][k_dim] an even sample of the queries since rows were last added */
    uint32_t n_query, queries_max;
    uint64_t n_passed; /* queries that went by since then */
    bool stale;        /* the sample was used; the next query begins a new one */
    struct hri_rng rng;
};

#endif
