/* k-means into fewer clusters than there may be blocks; then every cluster above the cap is cut,
 * and what blocks are left go to the clusters with the largest weighted sum of squares; at last
 * rows move to the nearest block that has room. */
#include "base/alloc.h"
#include "base/arena.h"
#include "base/assert.h"
#include "index/group.h"
#include "index/sort.h"

#include <math.h>
#include <string.h>

/* Clusters as a share of the blocks: the rest is for cuts. By measurement (docs/algorithm.md). */
#define CLUSTER_SHARE  0.6
#define CUT_ITERATIONS 3

/* A run of order[]: one cluster, or a part of one. */
struct range {
    uint32_t first, n;
    float error; /* weighted sum of squared distances from its mean */
};

struct work {
    float *centroids;          /* [k][d] */
    float *sums;               /* [k][d] */
    uint32_t *counts;          /* [k] */
    uint32_t *nearest;         /* [n] */
    uint32_t *block;           /* [n] */
    struct range *ranges;      /* [blocks_max] */
    struct hri_ranked *ranked; /* [n] */
    float *pair;               /* [2][d] */
    float *mean;               /* [d] */
    uint32_t spare;            /* blocks beyond those that the caps ask for */
};

size_t hri_group_kmeans_work_bytes(uint32_t n, uint32_t d, uint32_t target)
{
    size_t k = hri_group_blocks_max(n, target) + 1, pad = 64;
    return 2 * (k * d * sizeof(float) + pad) + k * sizeof(uint32_t) + pad +
           2 * (n * sizeof(uint32_t) + pad) + k * sizeof(struct range) + pad +
           n * sizeof(struct hri_ranked) + pad + 3 * d * sizeof(float) + 2 * pad;
}

static struct work take_work(void *memory, uint32_t n, uint32_t d, uint32_t target)
{
    struct hri_arena arena;
    size_t k = hri_group_blocks_max(n, target) + 1;
    hri_arena_init_buffer(&arena, memory, hri_group_kmeans_work_bytes(n, d, target));
    struct work w = {0};
    w.centroids = hri_arena_array(&arena, k * d, sizeof(float));
    w.sums = hri_arena_array(&arena, k * d, sizeof(float));
    w.counts = hri_arena_array(&arena, k, sizeof(uint32_t));
    w.nearest = hri_arena_array(&arena, n, sizeof(uint32_t));
    w.block = hri_arena_array(&arena, n, sizeof(uint32_t));
    w.ranges = hri_arena_array(&arena, k, sizeof(struct range));
    w.ranked = hri_arena_array(&arena, n, sizeof(struct hri_ranked));
    w.pair = hri_arena_array(&arena, 2 * (size_t)d, sizeof(float));
    w.mean = hri_arena_array(&arena, d, sizeof(float));
    HRI_ASSERT(w.mean != NULL);
    return w;
}

static float distance(const float *a, const float *b, uint32_t d)
{
    float sum = 0;
    for (uint32_t i = 0; i < d; i++)
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

static void to_unit(float *x, uint32_t d)
{
    float square = 0;
    for (uint32_t i = 0; i < d; i++)
        square += x[i] * x[i];
    float inverse = 1 / (sqrtf(square) + 1e-9f);
    for (uint32_t i = 0; i < d; i++)
        x[i] *= inverse;
}

static void sum_clusters(const struct hri_group_in *in, uint32_t k, struct work *w)
{
    memset(w->sums, 0, (size_t)k * in->d * sizeof(float));
    memset(w->counts, 0, k * sizeof *w->counts);
    for (uint32_t i = 0; i < in->n; i++) {
        float *sum = w->sums + (size_t)w->nearest[i] * in->d;
        const float *y = in->y + (size_t)i * in->d;
        w->counts[w->nearest[i]]++;
        for (uint32_t j = 0; j < in->d; j++)
            sum[j] += y[j];
    }
}

/* A cluster that lost all its rows keeps its centroid. */
static void move_centroids(const struct hri_group_in *in, uint32_t k, struct work *w)
{
    for (uint32_t c = 0; c < k; c++) {
        float inverse = w->counts[c] ? 1 / (float)w->counts[c] : 0;
        for (uint32_t j = 0; w->counts[c] && j < in->d; j++)
            w->centroids[(size_t)c * in->d + j] = w->sums[(size_t)c * in->d + j] * inverse;
    }
}

static void cluster(const struct hri_group_in *in, uint32_t k, struct work *w)
{
    uint32_t d = in->d;
    for (uint32_t c = 0; c < k; c++) {
        uint32_t row = hri_group_first_row(in->n, k, c);
        memcpy(w->centroids + (size_t)c * d, in->y + (size_t)row * d, d * sizeof(float));
    }
    for (uint32_t i = 0; i < in->iterations; i++) {
        for (uint32_t c = 0; in->spherical && c < k; c++)
            to_unit(w->centroids + (size_t)c * d, d);
        in->kernels->nearest(in->y, in->n, w->centroids, k, d, w->nearest, NULL);
        sum_clusters(in, k, w);
        move_centroids(in, k, w);
    }
}

static uint32_t pieces(uint32_t rows, uint32_t cap)
{
    return (rows + cap - 1) / cap;
}

/* Merges the smallest clusters into their neighbours until cutting the large ones fits the number
 * of blocks. Rare: it takes many tiny clusters beside a few huge ones. */
static void merge_small(const struct hri_group_in *in, uint32_t k, uint32_t blocks_max,
                        struct work *w)
{
    uint32_t needed = 0;
    for (uint32_t c = 0; c < k; c++)
        needed += pieces(w->counts[c], in->cap);
    while (needed > blocks_max) {
        uint32_t small = k, into = k;
        float best = INFINITY;
        for (uint32_t c = 0; c < k; c++)
            if (w->counts[c] && (small == k || w->counts[c] < w->counts[small]))
                small = c;
        for (uint32_t c = 0; c < k; c++) {
            const float *a = w->centroids + (size_t)c * in->d,
                        *b = w->centroids + (size_t)small * in->d;
            float far = w->counts[c] && c != small ? distance(a, b, in->d) : INFINITY;
            if (far < best || (into == k && w->counts[c] && c != small)) {
                best = far;
                into = c;
            }
        }
        needed -= pieces(w->counts[small], in->cap) + pieces(w->counts[into], in->cap);
        w->counts[into] += w->counts[small];
        w->counts[small] = 0;
        needed += pieces(w->counts[into], in->cap);
        for (uint32_t i = 0; i < in->n; i++)
            w->nearest[i] = w->nearest[i] == small ? into : w->nearest[i];
    }
}

/* order[] by cluster, one range per cluster that has rows. */
static uint32_t make_ranges(const struct hri_group_in *in, uint32_t k, struct work *w,
                            uint32_t *order)
{
    uint32_t n_ranges = 0, first = 0;
    for (uint32_t c = 0; c < k; c++) {
        uint32_t rows = w->counts[c];
        w->counts[c] = first; /* from here on: where the cluster's next row goes */
        if (rows)
            w->ranges[n_ranges++] = (struct range){first, rows, 0};
        first += rows;
    }
    for (uint32_t i = 0; i < in->n; i++)
        order[w->counts[w->nearest[i]]++] = i;
    return n_ranges;
}

static void range_mean(const struct hri_group_in *in, const uint32_t *rows, uint32_t n, float *mean)
{
    memset(mean, 0, in->d * sizeof *mean);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < in->d; j++)
            mean[j] += in->y[(size_t)rows[i] * in->d + j];
    for (uint32_t j = 0; j < in->d; j++)
        mean[j] /= (float)n;
}

static float range_error(const struct hri_group_in *in, const uint32_t *rows, uint32_t n,
                         struct work *w)
{
    float error = 0;
    range_mean(in, rows, n, w->mean);
    for (uint32_t i = 0; i < n; i++)
        error += (in->weight ? in->weight[rows[i]] : 1) *
                 distance(in->y + (size_t)rows[i] * in->d, w->mean, in->d);
    return error;
}

static uint32_t farthest(const struct hri_group_in *in, const uint32_t *rows, uint32_t n,
                         const float *from)
{
    uint32_t best = 0;
    float best_distance = -1;
    for (uint32_t i = 0; i < n; i++) {
        float far = distance(in->y + (size_t)rows[i] * in->d, from, in->d);
        if (far > best_distance) {
            best_distance = far;
            best = i;
        }
    }
    return rows[best];
}

/* Ranks the rows by how much nearer they are to the pair's first centre; returns how many are
 * nearer to it. */
static uint32_t rank_by_pair(const struct hri_group_in *in, const uint32_t *rows, uint32_t n,
                             struct work *w)
{
    uint32_t d = in->d, nearer = 0;
    for (uint32_t i = 0; i < n; i++) {
        const float *y = in->y + (size_t)rows[i] * d;
        float lean = distance(y, w->pair + d, d) - distance(y, w->pair, d);
        w->ranked[i] = (struct hri_ranked){lean, rows[i]};
        nearer += lean > 0;
    }
    hri_rank_sort(w->ranked, n);
    return nearer;
}

/* How many blocks more than before a cut of n rows at `left` asks for. */
static uint32_t cost_of_cut(uint32_t n, uint32_t left, uint32_t cap)
{
    return pieces(left, cap) + pieces(n - left, cap) - pieces(n, cap);
}

/* The cut nearest to `wanted` that there are blocks for. */
static uint32_t fitting_cut(uint32_t n, uint32_t cap, uint32_t wanted, uint32_t spare)
{
    wanted = wanted < 1 ? 1 : wanted > n - 1 ? n - 1 : wanted;
    if (cost_of_cut(n, wanted, cap) <= spare)
        return wanted;
    uint32_t total = pieces(n, cap),
             left = pieces(wanted, cap) < total ? pieces(wanted, cap) : total - 1;
    uint32_t low = n > (total - left) * cap ? n - (total - left) * cap : 1,
             high = left * cap < n - 1 ? left * cap : n - 1;
    return wanted < low ? low : wanted > high ? high : wanted;
}

/* Cuts a range in two by 2-means; the second part becomes a range of its own. */
static void cut(const struct hri_group_in *in, uint32_t at, uint32_t n_ranges, struct work *w,
                uint32_t *order)
{
    struct range *r = &w->ranges[at];
    uint32_t *rows = order + r->first, d = in->d, left = r->n / 2;
    range_mean(in, rows, r->n, w->mean);
    uint32_t a = farthest(in, rows, r->n, w->mean);
    uint32_t b = farthest(in, rows, r->n, in->y + (size_t)a * d);
    memcpy(w->pair, in->y + (size_t)a * d, d * sizeof(float));
    memcpy(w->pair + d, in->y + (size_t)b * d, d * sizeof(float));
    for (int i = 0; i < CUT_ITERATIONS; i++) {
        left = fitting_cut(r->n, in->cap, rank_by_pair(in, rows, r->n, w), w->spare);
        for (uint32_t j = 0; j < r->n; j++)
            rows[j] = w->ranked[j].item;
        range_mean(in, rows, left, w->pair);
        range_mean(in, rows + left, r->n - left, w->pair + d);
    }
    w->spare -= cost_of_cut(r->n, left, in->cap);
    w->ranges[n_ranges] = (struct range){r->first + left, r->n - left, 0};
    r->n = left;
    for (uint32_t i = at;; i = n_ranges) {
        w->ranges[i].error = range_error(in, order + w->ranges[i].first, w->ranges[i].n, w);
        if (i == n_ranges)
            break;
    }
}

/* The range with the largest error among those that may be cut; n_ranges if there is none. */
static uint32_t worst_range(const struct work *w, uint32_t n_ranges, uint32_t cap)
{
    uint32_t worst = n_ranges;
    for (uint32_t i = 0; i < n_ranges; i++) {
        const struct range *r = &w->ranges[i];
        bool may = r->n > cap || (w->spare > 0 && r->n > 1 && r->error > 0);
        if (may && (worst == n_ranges || r->error > w->ranges[worst].error))
            worst = i;
    }
    return worst;
}

static uint32_t cut_all(const struct hri_group_in *in, uint32_t n_ranges, uint32_t blocks_max,
                        struct work *w, uint32_t *order)
{
    w->spare = blocks_max;
    for (uint32_t i = 0; i < n_ranges; i++) {
        w->ranges[i].error = range_error(in, order + w->ranges[i].first, w->ranges[i].n, w);
        w->spare -= pieces(w->ranges[i].n, in->cap);
    }
    for (;;) {
        uint32_t worst = worst_range(w, n_ranges, in->cap);
        if (worst == n_ranges)
            return n_ranges;
        cut(in, worst, n_ranges++, w, order);
    }
}

static void ranges_centre(const struct hri_group_in *in, uint32_t n_ranges, struct work *w,
                          const uint32_t *order)
{
    for (uint32_t r = 0; r < n_ranges; r++) {
        const struct range *range = &w->ranges[r];
        range_mean(in, order + range->first, range->n, w->centroids + (size_t)r * in->d);
        w->counts[r] = range->n;
        for (uint32_t i = 0; i < range->n; i++)
            w->block[order[range->first + i]] = r;
    }
}

static void sort_rows(uint32_t *rows, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        uint32_t row = rows[i], j = i;
        for (; j > 0 && rows[j - 1] > row; j--)
            rows[j] = rows[j - 1];
        rows[j] = row;
    }
}

/* Ranges in the order of their place in order[], so that parts of a cluster are neighbours in
 * storage. */
static void write_blocks(const struct work *w, uint32_t n_ranges, uint32_t n, uint32_t *scratch,
                         uint32_t *order, uint32_t *block_rows)
{
    uint32_t b = 0;
    memset(scratch, 0, n * sizeof *scratch);
    for (uint32_t i = 0; i < n_ranges; i++)
        scratch[w->ranges[i].first] = w->ranges[i].n;
    for (uint32_t first = 0; first < n; first += scratch[first]) {
        sort_rows(order + first, scratch[first]);
        block_rows[b++] = scratch[first];
    }
}

uint32_t hri_group_clusters_begin(uint32_t n, uint32_t target)
{
    uint32_t blocks_max = hri_group_blocks_max(n, target);
    uint32_t k = (uint32_t)(CLUSTER_SHARE * blocks_max);
    return blocks_max <= 1 ? 0 : k ? k : 1;
}

struct hri_group_tables hri_group_tables(uint32_t n, uint32_t d, uint32_t target, void *work)
{
    struct work w = take_work(work, n, d, target);
    return (struct hri_group_tables){w.centroids, w.counts, w.nearest};
}

void hri_group_cluster(const struct hri_group_in *in, uint32_t k, void *work)
{
    struct work w = take_work(work, in->n, in->d, in->target);
    cluster(in, k, &w);
}

uint32_t hri_group_cut(const struct hri_group_in *in, uint32_t k, void *work, uint32_t *order)
{
    struct work w = take_work(work, in->n, in->d, in->target);
    uint32_t blocks_max = hri_group_blocks_max(in->n, in->target);
    merge_small(in, k, blocks_max, &w);
    uint32_t n_ranges = make_ranges(in, k, &w, order);
    return cut_all(in, n_ranges, blocks_max, &w, order);
}

void hri_group_centre(const struct hri_group_in *in, uint32_t n_ranges, void *work,
                      const uint32_t *order)
{
    struct work w = take_work(work, in->n, in->d, in->target);
    ranges_centre(in, n_ranges, &w, order);
}

/* Cuts are made one by one, this puts right what they did to each other's neighbours. */
uint32_t hri_group_move(const struct hri_group_in *in, uint32_t n_ranges, void *work,
                        uint32_t *order)
{
    struct work w = take_work(work, in->n, in->d, in->target);
    for (uint32_t i = 0; i < in->n; i++) {
        uint32_t to = w.nearest[i];
        if (w.counts[to] < in->cap) {
            w.counts[w.block[i]]--;
            w.counts[to]++;
        } else {
            w.nearest[i] = w.block[i];
        }
    }
    return make_ranges(in, n_ranges, &w, order);
}

void hri_group_end(const struct hri_group_in *in, uint32_t n_ranges, void *work, uint32_t *order,
                   uint32_t *block_rows)
{
    struct work w = take_work(work, in->n, in->d, in->target);
    write_blocks(&w, n_ranges, in->n, w.nearest, order, block_rows);
}

uint32_t hri_group_kmeans(const struct hri_group_in *in, void *work, uint32_t *order,
                          uint32_t *block_rows)
{
    uint32_t k = hri_group_clusters_begin(in->n, in->target);
    if (k == 0)
        return hri_group_consecutive(in->n, in->target, order, block_rows);
    struct hri_group_tables t = hri_group_tables(in->n, in->d, in->target, work);
    hri_group_cluster(in, k, work);
    uint32_t n_ranges = hri_group_cut(in, k, work, order);
    for (uint32_t i = 0; i < HRI_GROUP_MOVES; i++) {
        hri_group_centre(in, n_ranges, work, order);
        in->kernels->nearest(in->y, in->n, t.centroids, n_ranges, in->d, t.nearest, NULL);
        n_ranges = hri_group_move(in, n_ranges, work, order);
    }
    hri_group_end(in, n_ranges, work, order, block_rows);
    return n_ranges;
}

uint32_t hri_group_clusters(const struct hri_group_in *in, void *work, uint32_t *order,
                            uint32_t *cluster_rows)
{
    struct work w = take_work(work, in->n, in->d, in->target);
    uint32_t k = in->n / in->target ? in->n / in->target : 1;
    cluster(in, k, &w);
    uint32_t n_ranges = make_ranges(in, k, &w, order);
    for (uint32_t i = 0; i < n_ranges; i++)
        cluster_rows[i] = w.ranges[i].n;
    return n_ranges;
}
