#include "index/graph.h"

#include "base/arena.h"
#include "index/rows.h"
#include "index/image.h"

#include <math.h>
#include <string.h>

#define QUERIES_PER_PASS HR_GROUP_MAX
#define LIST_MAX         256u
#define SCAN_SHARE       4u /* more than a fourth of the keys is new: samples look at all keys */

/* -- life -- */

hr_status_t hri_graph_create(struct hri_graph *g, const struct hri_index_options *o,
                             uint32_t degree)
{
    *g = (struct hri_graph){.d = o->k_dim,
                            .degree = degree,
                            .dtype = o->dtype,
                            .key_bytes = o->k_dim * hr_dtype_bytes(o->dtype)};
    return HR_OK;
}

void hri_graph_destroy(struct hri_graph *g, const struct hri_index_options *o)
{
    hri_free(o->scratch, g->key);
    hri_free(o->scratch, g->half);
    hri_free(o->scratch, g->edge);
    hri_free(o->scratch, g->n_edges);
    *g = (struct hri_graph){0};
}

static uint64_t node_bytes(const struct hri_graph *g)
{
    return g->key_bytes + sizeof *g->half + 2 * (uint64_t)g->degree * sizeof *g->edge +
           sizeof *g->n_edges;
}

uint64_t hri_graph_bytes(const struct hri_graph *g)
{
    return g->capacity * node_bytes(g);
}

static void *longer(struct hri_alloc *alloc, void *old, size_t used, size_t bytes)
{
    void *p = hri_aligned(alloc, 64, bytes);
    if (p && used)
        memcpy(p, old, used);
    return p;
}

static hr_status_t grow(struct hri_graph *g, const struct hri_index_options *o, uint32_t n)
{
    size_t capacity = g->capacity + (size_t)g->capacity / 2, edges = 2 * (size_t)g->degree;
    capacity = capacity < n ? n : capacity;
    if (n <= g->capacity)
        return HR_OK;
    struct hri_graph next = *g;
    next.key = longer(o->scratch, g->key, g->n * g->key_bytes, capacity * g->key_bytes);
    next.half = longer(o->scratch, g->half, g->n * sizeof *g->half, capacity * sizeof *g->half);
    next.edge = longer(o->scratch, g->edge, g->n * edges * sizeof *g->edge,
                       capacity * edges * sizeof *g->edge);
    next.n_edges =
        longer(o->scratch, g->n_edges, g->n * sizeof *g->n_edges, capacity * sizeof *g->n_edges);
    if (!next.key || !next.half || !next.edge || !next.n_edges) {
        hri_graph_destroy(&next, o);
        return hri_alloc_status();
    }
    next.capacity = (uint32_t)capacity;
    struct hri_graph old = *g;
    hri_graph_destroy(&old, o);
    *g = next;
    return HR_OK;
}

void hri_graph_truncate(struct hri_graph *g, uint32_t n)
{
    for (uint32_t i = 0; i < n && n < g->n; i++) {
        uint32_t *edge = g->edge + (size_t)i * 2 * g->degree, kept = 0;
        for (uint32_t e = 0; e < g->n_edges[i]; e++)
            if (edge[e] < n)
                edge[kept++] = edge[e];
        g->n_edges[i] = (uint16_t)kept;
    }
    g->n = n < g->n ? n : g->n;
    g->entry = g->entry < g->n ? g->entry : 0;
}

/* -- walking -- */

size_t hri_walk_bytes(uint32_t rows_max, uint32_t g)
{
    size_t rows = hri_lanes_up(rows_max);
    return rows * (g * sizeof(float) + 2 + sizeof(uint32_t) + 2 * sizeof(struct hri_ranked)) +
           6 * 64;
}

struct hri_walk hri_walk_at(void *memory, uint32_t rows_max, uint32_t g)
{
    struct hri_arena arena;
    size_t rows = hri_lanes_up(rows_max);
    struct hri_walk w = {.stride = rows};
    hri_arena_init_buffer(&arena, memory, hri_walk_bytes(rows_max, g));
    w.logits = hri_arena_array(&arena, g * rows, sizeof(float));
    w.waiting = hri_arena_array(&arena, rows, sizeof *w.waiting);
    w.best = hri_arena_array(&arena, rows, sizeof *w.best);
    w.visited = hri_arena_array(&arena, rows, sizeof *w.visited);
    w.known = hri_arena_array(&arena, rows, 1);
    w.seen = hri_arena_array(&arena, rows, 1);
    return w;
}

void hri_walk_clear(struct hri_walk *w, uint32_t n)
{
    memset(w->known, 0, n);
    w->n_visited = 0;
}

/* Above in a heap whose top is largest (sign 1) or smallest (sign -1); equal keys: the lower item is better. */
static bool above(struct hri_ranked a, struct hri_ranked b, int sign)
{
    bool better = a.key > b.key || (a.key == b.key && a.item < b.item);
    return sign > 0 ? better : !better;
}

static void heap_push(struct hri_ranked *heap, uint32_t *n, struct hri_ranked x, int sign)
{
    uint32_t at = (*n)++;
    while (at > 0 && above(x, heap[(at - 1) / 2], sign)) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = x;
}

static struct hri_ranked heap_pop(struct hri_ranked *heap, uint32_t *n, int sign)
{
    struct hri_ranked top = heap[0], x = heap[--*n];
    uint32_t at = 0;
    for (uint32_t child; (child = 2 * at + 1) < *n; at = child) {
        if (child + 1 < *n && above(heap[child + 1], heap[child], sign))
            child++;
        if (!above(heap[child], x, sign))
            break;
        heap[at] = heap[child];
    }
    heap[at] = x;
    return top;
}

static void visit(const struct hri_graph *g, const struct hri_kernels *kernels, const float *q,
                  uint32_t n_q, uint32_t row, struct hri_walk *w)
{
    struct hri_rows rows = {.base = g->key + row * g->key_bytes,
                            .stride_bytes = g->key_bytes,
                            .n = 1,
                            .dtype = g->dtype};
    if (w->known[row])
        return;
    w->known[row] = 1;
    w->visited[w->n_visited++] = row;
    kernels->score_rows(q, n_q, g->d, rows, 0, w->logits + row, w->stride);
}

void hri_graph_walk(const struct hri_graph *g, const struct hri_kernels *kernels, const float *q,
                    uint32_t n_q, uint32_t h, uint32_t beam, bool by_distance, struct hri_walk *w)
{
    const float *logits = w->logits + h * w->stride;
    uint32_t n_waiting = 0, next[1] = {g->entry};
    memset(w->seen, 0, g->n);
    w->n_best = 0;
    for (bool first = true; g->n > 0 && beam > 0 && (first || n_waiting > 0); first = false) {
        const uint32_t *edge = next;
        uint32_t n_edges = 1;
        if (!first) {
            struct hri_ranked at = heap_pop(w->waiting, &n_waiting, 1);
            if (w->n_best == beam && !above(at, w->best[0], 1))
                break;
            edge = g->edge + (size_t)at.item * 2 * g->degree;
            n_edges = g->n_edges[at.item];
        }
        for (uint32_t e = 0; e < n_edges; e++) {
            uint32_t row = edge[e];
            if (w->seen[row])
                continue;
            w->seen[row] = 1;
            visit(g, kernels, q, n_q, row, w);
            struct hri_ranked x = {logits[row] - (by_distance ? g->half[row] : 0), row};
            if (w->n_best == beam && !above(x, w->best[0], 1))
                continue;
            heap_push(w->waiting, &n_waiting, x, 1);
            if (w->n_best == beam)
                heap_pop(w->best, &w->n_best, -1);
            heap_push(w->best, &w->n_best, x, -1);
        }
    }
}

/* -- edges -- */

struct build {
    struct hri_graph *graph;
    const struct hri_kernels *kernels;
    struct hri_walk walk;
    struct hri_ranked *ranked; /* [rows] */
    float *scores;             /* [QUERIES_PER_PASS][stride] */
    size_t stride;
    float a[HR_HEAD_DIM_MAX], b[HR_HEAD_DIM_MAX];
    float *near; /* [2 degree + beam][d] keys of the candidates while they are pruned */
};

static void key_read(const struct build *b, uint32_t row, float *x)
{
    b->kernels->to_f32(x, b->graph->key + row * b->graph->key_bytes, b->graph->dtype, b->graph->d);
}

static float distance(const float *x, const float *y, uint32_t d)
{
    float sum = 0;
    for (uint32_t j = 0; j < d; j++)
        sum += (x[j] - y[j]) * (x[j] - y[j]);
    return sum;
}

/* Of the candidates ranked[n] (rows; reordered) the nearest to `row` that are not nearer to one already kept; what room is left
 * goes to the nearest of the others. They become the row's edges. */
static void prune(struct build *b, uint32_t row, uint32_t n)
{
    struct hri_graph *g = b->graph;
    uint32_t d = g->d, kept = 0, *edge = g->edge + (size_t)row * 2 * g->degree;
    key_read(b, row, b->a);
    for (uint32_t i = 0; i < n; i++) {
        key_read(b, b->ranked[i].item, b->b);
        b->ranked[i].key = -distance(b->a, b->b, d);
    }
    hri_rank_sort(b->ranked, n);
    for (uint32_t i = 0; i < n && kept < g->degree; i++) {
        float *x = b->near + (size_t)kept * d;
        bool hidden = false;
        key_read(b, b->ranked[i].item, x);
        for (uint32_t s = 0; s < kept && !hidden; s++)
            hidden = distance(x, b->near + (size_t)s * d, d) < -b->ranked[i].key;
        if (hidden)
            continue;
        edge[kept++] = b->ranked[i].item;
        b->ranked[i].key = -INFINITY; /* taken */
    }
    for (uint32_t i = 0; i < n && kept < g->degree; i++)
        if (b->ranked[i].key > -INFINITY)
            edge[kept++] = b->ranked[i].item;
    g->n_edges[row] = (uint16_t)kept;
}

static bool edge_find(const struct hri_graph *g, uint32_t from, uint32_t to)
{
    const uint32_t *edge = g->edge + (size_t)from * 2 * g->degree;
    for (uint32_t e = 0; e < g->n_edges[from]; e++)
        if (edge[e] == to)
            return true;
    return false;
}

/* A node that becomes full is pruned to half. Overwrites ranked. */
static void edge_add(struct build *b, uint32_t from, uint32_t to)
{
    struct hri_graph *g = b->graph;
    uint32_t *edge = g->edge + (size_t)from * 2 * g->degree;
    if (from == to || edge_find(g, from, to))
        return;
    edge[g->n_edges[from]++] = to;
    if (g->n_edges[from] < 2 * g->degree)
        return;
    for (uint32_t e = 0; e < 2 * g->degree; e++)
        b->ranked[e] = (struct hri_ranked){0, edge[e]};
    prune(b, from, 2 * g->degree);
}

/* The key that a sample likes best is joined with the others it likes, both ways. */
static void project(struct build *b, const uint32_t *rows, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        edge_add(b, rows[0], rows[i]);
        edge_add(b, rows[i], rows[0]);
    }
}

/* Samples look at the keys from first_row on, and, unless these are most of them, walk the others. */
static void queries_project(struct build *b, const struct hri_graph_add *add, uint32_t first_row)
{
    struct hri_graph *g = b->graph;
    bool all = (uint64_t)add->n * SCAN_SHARE > g->n || first_row == 0;
    uint32_t begin = all ? 0 : first_row, n = g->n - begin, list[LIST_MAX];
    uint32_t most = add->neighbours < LIST_MAX ? add->neighbours : LIST_MAX;
    for (uint32_t i = 0; i < add->n_queries; i += QUERIES_PER_PASS) {
        uint32_t now =
            add->n_queries - i < QUERIES_PER_PASS ? add->n_queries - i : QUERIES_PER_PASS;
        const float *q = add->query + (size_t)i * g->d;
        struct hri_rows rows = {.base = g->key + begin * g->key_bytes,
                                .stride_bytes = g->key_bytes,
                                .n = n,
                                .dtype = g->dtype};
        b->kernels->score_rows(q, now, g->d, rows, 0, b->scores, b->stride);
        for (uint32_t j = 0; j < now; j++) {
            uint32_t found = 0;
            for (uint32_t r = 0; r < n; r++)
                b->ranked[r] = (struct hri_ranked){b->scores[j * b->stride + r], begin + r};
            if (!all) {
                hri_walk_clear(&b->walk, g->n);
                hri_graph_walk(g, b->kernels, q + (size_t)j * g->d, 1, 0, most, false, &b->walk);
                for (uint32_t r = 0; r < b->walk.n_best; r++)
                    if (b->walk.best[r].item < first_row)
                        b->ranked[n + found++] = b->walk.best[r];
            }
            uint32_t top = n + found < most ? n + found : most;
            hri_rank_select(b->ranked, n + found, top);
            hri_rank_sort(b->ranked, top);
            for (uint32_t r = 0; r < top; r++)
                list[r] = b->ranked[r].item;
            project(b, list, top);
        }
    }
}

/* A key's neighbours among those that can be reached: edges both ways. */
static void connect(struct build *b, uint32_t row, uint32_t beam)
{
    struct hri_graph *g = b->graph;
    float key[HR_HEAD_DIM_MAX];
    uint32_t n = 0, list[LIST_MAX];
    key_read(b, row, key);
    hri_walk_clear(&b->walk, g->n);
    hri_graph_walk(g, b->kernels, key, 1, 0, beam, true, &b->walk);
    for (uint32_t i = 0; i < b->walk.n_best; i++)
        if (b->walk.best[i].item != row && !edge_find(g, row, b->walk.best[i].item))
            b->ranked[n++] = b->walk.best[i];
    for (uint32_t e = 0; e < g->n_edges[row]; e++)
        b->ranked[n++] = (struct hri_ranked){0, g->edge[(size_t)row * 2 * g->degree + e]};
    prune(b, row, n);
    n = g->n_edges[row];
    memcpy(list, g->edge + (size_t)row * 2 * g->degree, n * sizeof *list);
    for (uint32_t i = 0; i < n; i++)
        edge_add(b, list[i], row);
}

/* Where a walk of any width cannot come to, an edge is made from the nearest place it comes to. */
static void reach_all(struct build *b)
{
    struct hri_graph *g = b->graph;
    uint32_t *queue = b->walk.visited, n_queue = 0, done = 0;
    uint8_t *reached = b->walk.seen;
    memset(reached, 0, g->n);
    reached[g->entry] = 1;
    queue[n_queue++] = g->entry;
    for (uint32_t row = 0; row < g->n;) {
        for (; done < n_queue; done++) {
            const uint32_t *edge = g->edge + (size_t)queue[done] * 2 * g->degree;
            for (uint32_t e = 0; e < g->n_edges[queue[done]]; e++) {
                if (!reached[edge[e]]) {
                    reached[edge[e]] = 1;
                    queue[n_queue++] = edge[e];
                }
            }
        }
        while (row < g->n && reached[row])
            row++;
        if (row == g->n)
            return;
        uint32_t from = g->entry;
        float best = INFINITY;
        key_read(b, row, b->a);
        for (uint32_t i = 0; i < n_queue; i++) {
            if (g->n_edges[queue[i]] + 1u >= 2 * g->degree)
                continue;
            key_read(b, queue[i], b->b);
            float far = distance(b->a, b->b, g->d);
            from = far < best ? queue[i] : from;
            best = fminf(best, far);
        }
        if (g->n_edges[from] + 1u >= 2 * g->degree)
            g->n_edges[from]--;
        g->edge[(size_t)from * 2 * g->degree + g->n_edges[from]++] = row;
        reached[row] = 1;
        queue[n_queue++] = row;
    }
}

/* The key nearest to the mean of the first keys. */
static void entry_choose(struct build *b)
{
    struct hri_graph *g = b->graph;
    float best = INFINITY, mean[HR_HEAD_DIM_MAX] = {0};
    for (uint32_t i = 0; i < g->n; i++) {
        key_read(b, i, b->a);
        for (uint32_t j = 0; j < g->d; j++)
            mean[j] += b->a[j] / (float)g->n;
    }
    for (uint32_t i = 0; i < g->n; i++) {
        key_read(b, i, b->a);
        float far = distance(b->a, mean, g->d);
        g->entry = far < best ? i : g->entry;
        best = fminf(best, far);
    }
}

static void keys_append(struct build *b, const struct hri_graph_add *add)
{
    struct hri_graph *g = b->graph;
    uint32_t first = g->n;
    b->kernels->from_f32(g->key + first * g->key_bytes, add->key, g->dtype, (size_t)add->n * g->d);
    g->n += add->n;
    for (uint32_t i = first; i < g->n; i++) {
        key_read(b, i, b->a);
        g->half[i] = hri_dot(b->a, b->a, g->d) / 2;
        g->n_edges[i] = 0;
    }
}

hr_status_t hri_graph_add(struct hri_graph *g, const struct hri_index_options *o,
                          const struct hri_graph_add *add)
{
    uint32_t first = g->n, n = g->n + add->n;
    struct build b = {.graph = g, .kernels = o->kernels, .stride = hri_lanes_up(n)};
    hr_status_t status = grow(g, o, n);
    if (status != HR_OK)
        return status;
    size_t walk_bytes = hri_walk_bytes(n, 1);
    void *memory = hri_aligned(o->scratch, 64, walk_bytes);
    b.ranked = hri_array(o->scratch, n + 2 * (size_t)LIST_MAX + add->beam, sizeof *b.ranked);
    b.scores = hri_aligned(o->scratch, 64, QUERIES_PER_PASS * b.stride * sizeof *b.scores);
    b.near = hri_aligned(o->scratch, 64, (size_t)g->degree * g->d * sizeof *b.near);
    if (memory && b.ranked && b.scores && b.near) {
        b.walk = hri_walk_at(memory, n, 1);
        keys_append(&b, add);
        if (first == 0)
            entry_choose(&b);
        queries_project(&b, add, first);
        for (uint32_t i = first; i < n; i++)
            connect(&b, i, add->beam);
        reach_all(&b);
    } else {
        status = hri_alloc_status();
    }
    hri_free(o->scratch, memory);
    hri_free(o->scratch, b.ranked);
    hri_free(o->scratch, b.scores);
    hri_free(o->scratch, b.near);
    return status;
}

void hri_graph_image(struct hri_graph *g, const struct hri_index_options *o, struct hri_image *im)
{
    uint32_t n = g->n;
    hri_image_u32(im, &n, o->rows_max, "more nodes than rows");
    if (im->loads && hri_image_ok(im))
        im->status = grow(g, o, n);
    hri_image_u32(im, &g->entry, n ? n - 1 : 0, "no such entry");
    if (!hri_image_ok(im))
        return;
    g->n = n;
    hri_image_bytes(im, g->key, n * g->key_bytes);
    hri_image_floats(im, g->half, n);
    hri_image_bytes(im, g->n_edges, n * sizeof *g->n_edges);
    for (uint32_t i = 0; i < n && hri_image_ok(im); i++) {
        hri_image_check(im, g->n_edges[i] <= 2 * g->degree, "a node with too many edges");
        if (hri_image_ok(im))
            hri_image_u32s(im, g->edge + (size_t)i * 2 * g->degree, g->n_edges[i], n,
                           "an edge to nowhere");
    }
}
