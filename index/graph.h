/* A graph over keys, walked best first (the idea of RoarGraph, which RetrievalAttention uses). Its edges come from two sides:
 * the nearest keys of sample queries, joined to one another, since queries are not distributed like keys and a graph of keys alone
 * leads them astray; and each key's own neighbours, so that every key can be reached from the entry. */
#ifndef HRI_INDEX_GRAPH_H
#define HRI_INDEX_GRAPH_H

#include "index/head.h"

struct hri_graph {
    uint32_t d, degree; /* edges a node keeps when it is pruned; it may have twice as many */
    uint32_t n, capacity;
    hr_dtype_t dtype;
    size_t key_bytes;
    unsigned char *key; /* [n][d] */
    float *half;        /* [n] half of the key's square: turns products into distances */
    uint32_t *edge;     /* [n][2 degree] */
    uint16_t *n_edges;  /* [n] */
    uint32_t entry;
};

hr_status_t hri_graph_create(struct hri_graph *graph, const struct hri_index_options *options,
                             uint32_t degree);
void hri_graph_destroy(struct hri_graph *graph, const struct hri_index_options *options);
uint64_t hri_graph_bytes(const struct hri_graph *graph);
/* Drops the nodes >= n and the edges to them. */
void hri_graph_truncate(struct hri_graph *graph, uint32_t n);

/* Adds keys [n][d], and edges: from the samples [n_queries][d], `neighbours` nearest keys each, and from the keys'
 * own neighbours, found by walks of width `beam`. */
struct hri_graph_add {
    const float *key, *query;
    uint32_t n, n_queries, neighbours, beam;
};
hr_status_t hri_graph_add(struct hri_graph *graph, const struct hri_index_options *options,
                          const struct hri_graph_add *add);

/* A walk: memory for it, and what it saw. */
struct hri_walk {
    float *logits; /* [g][rows] of every row in visited[] */
    size_t stride;
    uint8_t *known;    /* [rows] logits are there */
    uint8_t *seen;     /* [rows] by this query head's walk */
    uint32_t *visited; /* [rows] in the order of the first visit */
    uint32_t n_visited;
    struct hri_ranked *waiting; /* [rows] a heap, best on top */
    struct hri_ranked *best;    /* [rows] a heap, worst on top */
    uint32_t n_best;
};
size_t hri_walk_bytes(uint32_t rows_max, uint32_t g);
struct hri_walk hri_walk_at(void *memory, uint32_t rows_max, uint32_t g);
/* Forgets what was visited; n rows. */
void hri_walk_clear(struct hri_walk *walk, uint32_t n);
/* Walks for query head h of q [g][d] until nothing waiting is better than the `beam` best. by_distance: nearest, not largest
 * product. best[n_best] in any order. */
void hri_graph_walk(const struct hri_graph *graph, const struct hri_kernels *kernels,
                    const float *q, uint32_t g, uint32_t h, uint32_t beam, bool by_distance,
                    struct hri_walk *walk);

#endif
