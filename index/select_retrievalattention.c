/* RetrievalAttention (arXiv 2409.10516): an index of keys for queries, which are distributed unlike keys. The queries of the
 * prompt, an even sample of them, name the keys they like best; these are joined to a graph (index/graph.h) that lies in
 * host memory. A step walks it best first for each query head; of all keys it met, the rows with the largest share of
 * the group's softmax are read. The rest is dropped. */
#include "index/means.h"
#include "index/params.h"
#include "index/retrievalattention.h"
#include "index/rows.h"
#include "index/image.h"

#include <string.h>

#define BEAM_BUILD 32u

static uint32_t param(const struct hri_index_options *o, const char *key)
{
    return (uint32_t)hri_recipe_value(&o->recipe, key);
}

static uint64_t host_bytes(const struct hri_index_head *head)
{
    const struct hri_retrievalattention *s = head->state;
    return hri_graph_bytes(&s->graph);
}

static void destroy(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_retrievalattention *s = head->state;
    hri_graph_destroy(&s->graph, o);
    hri_free(o->scratch, s->query);
    hri_free(o->scratch, s);
}

static hr_status_t create(struct hri_index_head *head)
{
    const struct hri_index_options *o = &head->options;
    struct hri_retrievalattention *s = hri_calloc(o->scratch, 1, sizeof *s);
    if (!s)
        return hri_alloc_status();
    head->state = s;
    s->queries_max = param(o, "queries");
    s->query = hri_array(o->scratch, (s->queries_max + (size_t)1) * o->k_dim, sizeof *s->query);
    hri_rng_seed(&s->rng, o->seed ^ (uint64_t)o->layer << 40 ^ (uint64_t)o->head << 20);
    hr_status_t status =
        s->query ? hri_graph_create(&s->graph, o, param(o, "degree")) : hri_alloc_status();
    if (status != HR_OK)
        destroy(head);
    return status;
}

/* Reservoir sampling: each query since the last add is as likely as any other to be there. */
static void observe(struct hri_index_head *head, const float *q, uint32_t n,
                    uint32_t first_position)
{
    const struct hri_index_options *o = &head->options;
    struct hri_retrievalattention *s = head->state;
    (void)first_position;
    if (s->stale) {
        s->n_query = 0;
        s->n_passed = 0;
        s->stale = false;
    }
    for (uint32_t i = 0; i < n * o->g && s->queries_max > 0; i++) {
        uint64_t at = s->n_passed++;
        if (at >= s->queries_max)
            at = hri_rng_below(&s->rng, s->n_passed);
        if (at >= s->queries_max)
            continue;
        memcpy(s->query + at * o->k_dim, q + (size_t)i * o->k_dim, o->k_dim * sizeof *q);
        s->n_query += s->n_query < s->queries_max;
    }
}

static hr_status_t add_rows(struct hri_index_head *head, const float *k, const float *v, uint32_t n,
                            uint32_t first_row, uint32_t position_end)
{
    const struct hri_index_options *o = &head->options;
    struct hri_retrievalattention *s = head->state;
    struct hri_graph_add add = {.key = k,
                                .query = s->query,
                                .n = n,
                                .n_queries = s->n_query,
                                .neighbours = param(o, "neighbours"),
                                .beam = BEAM_BUILD};
    (void)v, (void)first_row, (void)position_end;
    s->stale = true;
    return hri_graph_add(&s->graph, o, &add);
}

static void truncate_rows(struct hri_index_head *head, uint32_t n_rows)
{
    struct hri_retrievalattention *s = head->state;
    hri_graph_truncate(&s->graph, n_rows);
}

/* Scratch: the walk, then ranks. */
static size_t walk_bytes(const struct hri_index_options *o)
{
    return (hri_walk_bytes(o->rows_max, o->g) + 63) / 64 * 64;
}

static size_t scratch_bytes(const struct hri_index_options *o)
{
    return walk_bytes(o) + hri_rows_step_bytes(o);
}

static hr_status_t select_rows(struct hri_index_head *head, const struct hri_select_in *in,
                               struct hri_select_out *out)
{
    const struct hri_index_options *o = &head->options;
    struct hri_retrievalattention *s = head->state;
    struct hri_walk walk = hri_walk_at(in->scratch, o->rows_max, o->g);
    struct hri_select_in rest = *in;
    rest.scratch = (char *)in->scratch + walk_bytes(o);
    struct hri_rows_step step = hri_rows_step_at(head, &rest);
    uint32_t fit = hri_rows_fit(head, in, out), beam = param(o, "beam");
    beam = beam > fit ? beam : fit;
    hri_walk_clear(&walk, head->n_rows);
    for (uint32_t g = 0; g < o->g; g++)
        hri_graph_walk(&s->graph, o->kernels, in->q, o->g, g, beam, false, &walk);
    uint32_t n = walk.n_visited;
    for (uint32_t i = 0; i < n; i++)
        step.ranked[i] = (struct hri_ranked){0, walk.visited[i]};
    for (uint32_t g = 0; g < o->g && n; g++) {
        float *x = step.logits;
        for (uint32_t i = 0; i < n; i++)
            x[i] = walk.logits[g * walk.stride + walk.visited[i]];
        hri_soft_cap(x, n, o->soft_cap);
        hri_softmax(o->kernels, x, x, n);
        for (uint32_t i = 0; i < n; i++)
            step.ranked[i].key += x[i];
    }
    out->rows_visited = n;
    hri_rows_take(step.ranked, n, fit, in, out);
    return HR_OK;
}

static void image(struct hri_index_head *head, struct hri_image *im)
{
    const struct hri_index_options *o = &head->options;
    struct hri_retrievalattention *s = head->state;
    hri_graph_image(&s->graph, o, im);
    hri_image_check(im, s->graph.n == head->n_rows, "the graph has other rows than the body");
    hri_image_u32(im, &s->n_query, s->queries_max, "too many queries");
    hri_image_u64(im, &s->n_passed);
    hri_image_flag(im, &s->stale);
    hri_image_bytes(im, &s->rng, sizeof s->rng);
    hri_image_floats(im, s->query, hri_image_ok(im) ? (size_t)s->n_query * o->k_dim : 0);
}

static const struct hri_selector_ops ops = {
    .host_bytes = host_bytes,
    .create = create,
    .destroy = destroy,
    .scratch_bytes = scratch_bytes,
    .observe = observe,
    .select = select_rows,
    .add_rows = add_rows,
    .truncate_rows = truncate_rows,
    .image = image,
};

static const struct hri_param params_retrievalattention[] = {
    PARAM_SINK(4),
    PARAM_WINDOW(64),
    PARAM_SEGMENT(8192),
    PARAM_DECODE_SEGMENT(512),
    PARAM_DENSE(""),
    {"queries", "queries of the prompt that the graph is made from, per kv-head and segment", "",
     2048, 0, 1048576},
    {"neighbours", "keys that such a query joins", "RoarGraph, arXiv 2408.08933, section 4", 32, 1,
     256},
    {"degree", "edges of a key after pruning; it may have twice as many", "RoarGraph, section 4",
     32, 10, 100},
    {"beam", "width of a step's walk, the rows read at least", "", 64, 9, 65536},
    PARAM_END};

const struct hri_selector hri_selector_retrievalattention = {
    .name = "retrievalattention",
    .summary = "rows met on a walk through a graph of keys that the prompt's queries joined",
    .source = "RetrievalAttention, arXiv 2409.10516",
    .unit = HRI_UNIT_ROWS,
    .codec = HRI_CODEC_EXACT,
    .params = params_retrievalattention,
    .ops = &ops,
};
