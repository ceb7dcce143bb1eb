/*
 * Which frames to replace: hit rates of a few policies on access streams shaped like decoding.
 * Prints the table of docs/decisions/0002-frame-replacement.md. Build and run: ninja sim_frames &&
 * tests/sim_frames
 *
 * A stream: 30 layers x 3 heads are lanes of 256 blocks. A token visits the layers in order; in
 * each, every head asks for BLOCKS_PER_HEAD blocks. Some stay from the token before (what a text is
 * about changes slowly), some are drawn from the head's own Zipf order (heavy hitters), the rest
 * from anywhere; now and then the order drifts.
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

#define LAYERS          30
#define HEADS           3
#define LANES           (LAYERS * HEADS)
#define BLOCKS          256
#define BLOCKS_PER_HEAD 5
#define TOKENS          600
#define WARM_TOKENS     100
#define KEYS            (LANES * BLOCKS)
#define NONE            -1

struct stream {
    const char *name;
    double keep;      /* share kept from the token before */
    double uniform;   /* of the rest, share drawn from anywhere */
    double exponent;  /* of Zipf */
    int drift_tokens; /* two ranks of every head swap so often */
};

static const struct stream streams[] = {
    {"steady", 0.6, 0.05, 1.0, 50},
    {"drifting", 0.6, 0.10, 0.8, 2},
    {"peaked", 0.3, 0.05, 1.3, 20},
    {"flat", 0.3, 0.30, 0.5, 20},
};

/* ---------------------------------------------------------------------------------------- pools */

struct frame {
    int key, prev, next;
    long pinned; /* step of its last use */
    int segment; /* segmented LRU: 0 probation, 1 protected */
    bool mark;
};

struct list {
    int oldest, newest, n;
};

struct pool {
    int n_frames, n_used, hand;
    struct frame *frames;
    int *where; /* [KEYS] */
    struct list lists[2];
};

static void unlink_frame(struct pool *p, int f)
{
    struct list *l = &p->lists[p->frames[f].segment];
    int prev = p->frames[f].prev, next = p->frames[f].next;
    *(prev == NONE ? &l->oldest : &p->frames[prev].next) = next;
    *(next == NONE ? &l->newest : &p->frames[next].prev) = prev;
    l->n--;
}

static void link_newest(struct pool *p, int f, int segment)
{
    struct list *l = &p->lists[segment];
    p->frames[f].segment = segment;
    p->frames[f].next = NONE;
    p->frames[f].prev = l->newest;
    *(l->newest == NONE ? &l->oldest : &p->frames[l->newest].next) = f;
    l->newest = f;
    l->n++;
}

static int oldest_unpinned(struct pool *p, int segment, long step)
{
    int f = p->lists[segment].oldest;
    while (f != NONE && p->frames[f].pinned == step)
        f = p->frames[f].next;
    return f;
}

struct policy {
    const char *name;
    void (*insert)(struct pool *, int f);
    void (*hit)(struct pool *, int f);
    int (*victim)(struct pool *, long step);
};

static void lru_insert(struct pool *p, int f)
{
    link_newest(p, f, 0);
}

static void lru_hit(struct pool *p, int f)
{
    unlink_frame(p, f);
    link_newest(p, f, 0);
}

static int lru_victim(struct pool *p, long step)
{
    int f = oldest_unpinned(p, 0, step);
    if (f != NONE)
        unlink_frame(p, f);
    return f;
}

static void clock_insert(struct pool *p, int f)
{
    p->frames[f].mark = false;
}

static void clock_hit(struct pool *p, int f)
{
    p->frames[f].mark = true;
}

static int clock_victim(struct pool *p, long step)
{
    for (int i = 0; i < 3 * p->n_frames; i++) {
        int f = p->hand;
        p->hand = (p->hand + 1) % p->n_frames;
        if (p->frames[f].pinned == step)
            continue;
        if (!p->frames[f].mark)
            return f;
        p->frames[f].mark = false;
    }
    return NONE;
}

static void slru_hit(struct pool *p, int f)
{
    unlink_frame(p, f);
    link_newest(p, f, 1);
    while (p->lists[1].n > p->n_frames / 2) {
        int down = p->lists[1].oldest;
        unlink_frame(p, down);
        link_newest(p, down, 0);
    }
}

static int slru_victim(struct pool *p, long step)
{
    int f = oldest_unpinned(p, 0, step);
    if (f == NONE)
        f = oldest_unpinned(p, 1, step);
    if (f != NONE)
        unlink_frame(p, f);
    return f;
}

static void random_insert(struct pool *p, int f)
{
    (void)p;
    (void)f;
}

static int random_victim(struct pool *p, long step)
{
    static struct hri_rng rng = {{1, 2, 3, 4}};
    for (int i = 0; i < 64; i++) {
        int f = (int)hri_rng_below(&rng, (uint64_t)p->n_frames);
        if (p->frames[f].pinned != step)
            return f;
    }
    return NONE;
}

static int newest_unpinned(struct pool *p, long step)
{
    int f = p->lists[0].newest;
    while (f != NONE && p->frames[f].pinned == step)
        f = p->frames[f].prev;
    return f;
}

/* LRU, but where even the oldest frame was used since the last token the pool is smaller than the
 * loop over the layers. */
static int loop_victim(struct pool *p, long step)
{
    int f = oldest_unpinned(p, 0, step);
    if (f != NONE && p->frames[f].pinned > step - LAYERS)
        f = newest_unpinned(p, step);
    if (f != NONE)
        unlink_frame(p, f);
    return f;
}

static const struct policy policies[] = {
    {"lru", lru_insert, lru_hit, lru_victim},
    {"clock", clock_insert, clock_hit, clock_victim},
    {"segmented", lru_insert, slru_hit, slru_victim},
    {"lru, newest in a loop", lru_insert, lru_hit, loop_victim},
    {"random", random_insert, random_insert, random_victim},
};

static bool use(struct pool *p, const struct policy *policy, int key, long step)
{
    int f = p->where[key];
    if (f != NONE) {
        policy->hit(p, f);
        p->frames[f].pinned = step;
        return true;
    }
    if (p->n_used < p->n_frames) {
        f = p->n_used++;
    } else {
        f = policy->victim(p, step);
        if (f == NONE)
            return false;
        p->where[p->frames[f].key] = NONE;
    }
    p->frames[f].key = key;
    p->frames[f].pinned = step;
    p->where[key] = f;
    policy->insert(p, f);
    return false;
}

/* -------------------------------------------------------------------------------------- streams */

struct lane {
    int order[BLOCKS]; /* rank -> block */
    int last[BLOCKS_PER_HEAD];
};

static double zipf_sum[BLOCKS];

static int draw(const struct stream *stream, const struct lane *lane, struct hri_rng *rng)
{
    if (hri_rng_f64(rng) < stream->uniform)
        return (int)hri_rng_below(rng, BLOCKS);
    double at = hri_rng_f64(rng) * zipf_sum[BLOCKS - 1];
    int rank = 0;
    while (zipf_sum[rank] < at)
        rank++;
    return lane->order[rank];
}

static bool holds(const int *blocks, int n, int block)
{
    for (int i = 0; i < n; i++)
        if (blocks[i] == block)
            return true;
    return false;
}

static void next_blocks(const struct stream *stream, struct lane *lane, struct hri_rng *rng)
{
    int now[BLOCKS_PER_HEAD];
    for (int i = 0; i < BLOCKS_PER_HEAD; i++) {
        now[i] = lane->last[i];
        if (hri_rng_f64(rng) < stream->keep && !holds(now, i, now[i]))
            continue;
        do {
            now[i] = draw(stream, lane, rng);
        } while (holds(now, i, now[i]));
    }
    memcpy(lane->last, now, sizeof now);
}

static void drift(struct lane *lane, struct hri_rng *rng)
{
    uint64_t a = hri_rng_below(rng, 16), b = hri_rng_below(rng, BLOCKS);
    int block = lane->order[a];
    lane->order[a] = lane->order[b];
    lane->order[b] = block;
}

/* [TOKENS][LANES][BLOCKS_PER_HEAD] keys */
static void make_stream(const struct stream *stream, int *keys)
{
    static struct lane lanes[LANES];
    struct hri_rng rng;
    hri_rng_seed(&rng, 7);
    for (int i = 0; i < BLOCKS; i++)
        zipf_sum[i] = (i ? zipf_sum[i - 1] : 0) + pow(i + 1, -stream->exponent);
    for (int l = 0; l < LANES; l++) {
        for (int i = 0; i < BLOCKS; i++)
            lanes[l].order[i] = i;
        for (int i = BLOCKS - 1; i > 0; i--) {
            int j = (int)hri_rng_below(&rng, (uint64_t)i + 1), block = lanes[l].order[i];
            lanes[l].order[i] = lanes[l].order[j];
            lanes[l].order[j] = block;
        }
        memcpy(lanes[l].last, lanes[l].order, sizeof lanes[l].last);
    }
    for (int t = 0; t < TOKENS; t++) {
        for (int l = 0; l < LANES; l++) {
            if (t % stream->drift_tokens == 0)
                drift(&lanes[l], &rng);
            next_blocks(stream, &lanes[l], &rng);
            for (int i = 0; i < BLOCKS_PER_HEAD; i++)
                *keys++ = l * BLOCKS + lanes[l].last[i];
        }
    }
}

static double hit_rate(const struct policy *policy, const int *keys, int n_frames)
{
    struct pool p = {.n_frames = n_frames};
    p.frames = calloc((size_t)n_frames, sizeof *p.frames);
    p.where = malloc(KEYS * sizeof *p.where);
    for (int i = 0; i < KEYS; i++)
        p.where[i] = NONE;
    for (int i = 0; i < n_frames; i++)
        p.frames[i].pinned = -1;
    p.lists[0] = p.lists[1] = (struct list){NONE, NONE, 0};
    long hits = 0, n = 0, step = 0;
    for (int t = 0; t < TOKENS; t++)
        for (int layer = 0; layer < LAYERS; layer++, step++)
            for (int i = 0; i < HEADS * BLOCKS_PER_HEAD; i++) {
                bool hit = use(&p, policy, *keys++, step);
                hits += hit && t >= WARM_TOKENS;
                n += t >= WARM_TOKENS;
            }
    free(p.frames);
    free(p.where);
    return (double)hits / (double)n;
}

int main(void)
{
    static const double sizes[] = {0.25, 0.5, 1, 2, 4, 8};
    int *keys = malloc(sizeof *keys * TOKENS * LANES * BLOCKS_PER_HEAD);
    printf("| stream | policy | frames = 0.25 tokens | 0.5 | 1 | 2 | 4 | 8 "
           "|\n|---|---|---|---|---|---|---|---|\n");
    for (size_t s = 0; s < sizeof streams / sizeof streams[0]; s++) {
        make_stream(&streams[s], keys);
        for (size_t p = 0; p < sizeof policies / sizeof policies[0]; p++) {
            printf("| %s | %s |", streams[s].name, policies[p].name);
            for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
                printf(" %.3f |",
                       hit_rate(&policies[p], keys, (int)(sizes[i] * LANES * BLOCKS_PER_HEAD)));
            printf("\n");
        }
    }
    free(keys);
    return 0;
}
