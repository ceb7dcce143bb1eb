/* Which frames hold the blocks that were chosen, and which are given up for those that none holds.
 *
 * One thread block does a turn of all heads of a layer: marks the hits, then hands out frames to the
 * misses in order. The clock looks at as many frames at a time as there are threads and does exactly
 * what a hand that moves frame by frame would: a frame of this turn is passed; one with its bit set
 * loses the bit and is passed; another is taken.
 *
 * Bytes: 8 per item, 9 per frame the hand passes. A few thousand of each at most: the limit is the
 * latency of about ten dependent trips to L2, 5 to 10 us; it runs while the window is attended. */
#include "kernels/cuda/common.cuh"

#define THREADS 512u
#define WARPS   (THREADS / 32)
#define NONE    HRI_CUDA_NONE

struct shared {
    uint32_t victims[THREADS];
    uint32_t scan[WARPS];
    uint32_t hits, hand, turn, n_found, end, n_free;
};

/* How many flags are set in threads before this one; *all_out in all. */
static __device__ __forceinline__ uint32_t rank_of(bool flag, struct shared *s, uint32_t *all_out)
{
    const uint32_t ballot = __ballot_sync(HRI_ALL_LANES, flag);
    if (hri_lane() == 0)
        s->scan[hri_warp()] = (uint32_t)__popc(ballot);
    __syncthreads();
    uint32_t rank = (uint32_t)__popc(ballot & ((1u << hri_lane()) - 1)), all = 0;
    for (uint32_t w = 0; w < WARPS; w++) {
        rank += w < hri_warp() ? s->scan[w] : 0;
        all += s->scan[w];
    }
    __syncthreads();
    *all_out = all;
    return rank;
}

static __device__ void mark_hits(const struct hri_cuda_residency &table,
                                 const struct hri_cuda_resolve_args &a, struct shared *s,
                                 uint32_t n_heads)
{
    for (uint32_t p = threadIdx.x; p < n_heads * a.items_max; p += THREADS) {
        const uint32_t h = p / a.items_max, k = p % a.items_max;
        if (k >= a.n_items[h])
            continue;
        const uint32_t f = table.frame_of[(size_t)h * table.blocks_max + a.items[p]];
        a.frames[p] = f;
        if (f == NONE)
            continue;
        table.last_turn[f] = s->turn;
        table.referenced[f] = 1;
        atomicAdd(&s->hits, 1u);
    }
    __syncthreads();
}

/* The next `need` frames that the clock gives up, into s->victims; there are as many. */
static __device__ void sweep(const struct hri_cuda_residency &table, struct shared *s,
                             uint32_t need)
{
    const uint32_t width = table.n_frames < THREADS ? table.n_frames : THREADS, t = threadIdx.x;
    uint32_t found = 0;
    while (found < need) {
        const uint32_t hand = s->hand;
        const uint32_t f = (uint32_t)(((unsigned long long)hand + t) % table.n_frames);
        const bool open = t < width && table.last_turn[f] != s->turn;
        const bool marked = open && table.referenced[f];
        uint32_t all;
        const uint32_t rank = found + rank_of(open && !marked, s, &all);
        if (t == 0)
            s->end = width; /* how far the hand goes */
        __syncthreads();
        const bool taken = open && !marked && rank < need;
        if (taken) {
            s->victims[rank] = f;
            table.last_turn[f] = s->turn;
            if (rank + 1 == need)
                s->end = t + 1;
        }
        __syncthreads();
        if (marked && t < s->end)
            table.referenced[f] = 0;
        found = found + all < need ? found + all : need;
        if (t == 0)
            s->hand = (uint32_t)(((unsigned long long)hand + s->end) % table.n_frames);
        __syncthreads();
    }
}

static __device__ __forceinline__ void take_frame(const struct hri_cuda_residency &table,
                                                  uint32_t f, uint32_t h, uint32_t block)
{
    const uint32_t before = table.holds[f];
    if (before != NONE)
        table.frame_of[before] = NONE;
    table.holds[f] = h * table.blocks_max + block;
    table.referenced[f] = 1;
}

static __global__ void __launch_bounds__(THREADS)
    resolve_kernel(struct hri_cuda_residency table, struct hri_cuda_resolve_args a,
                   uint32_t n_heads)
{
    HRI_SHARED(struct shared, s, 1);
    if (threadIdx.x == 0) {
        s->hits = 0;
        s->hand = *table.hand;
        s->turn = *table.turn + 1;
    }
    __syncthreads();
    mark_hits(table, a, s, n_heads);
    uint32_t open = table.n_frames - s->hits, n_jobs = 0, n_late = 0;
    for (uint32_t first = 0; first < n_heads * a.items_max; first += THREADS) {
        const uint32_t p = first + threadIdx.x, h = p / a.items_max;
        const bool miss = h < n_heads && p % a.items_max < a.n_items[h] && a.frames[p] == NONE;
        uint32_t all;
        const uint32_t rank = rank_of(miss, s, &all);
        uint32_t need = all < open ? all : open;
        need = need < a.jobs_max - n_jobs ? need : a.jobs_max - n_jobs;
        sweep(table, s, need);
        const uint32_t block = miss ? a.items[p] : 0,
                       f = miss && rank < need ? s->victims[rank] : NONE;
        if (f != NONE) {
            take_frame(table, f, h, block);
            a.frames[p] = f;
            a.jobs[n_jobs + rank] = {h, block, f, p % a.items_max};
        }
        __syncthreads(); /* all blocks that gave up a frame are out before others come in */
        if (f != NONE)
            table.frame_of[(size_t)h * table.blocks_max + block] = f;
        __syncthreads();
        open -= need;
        n_jobs += need;
        n_late += all - need;
    }
    if (threadIdx.x != 0)
        return;
    *table.hand = s->hand;
    *table.turn = s->turn;
    *a.n_jobs = n_jobs;
    a.counts[0] += s->hits;
    a.counts[1] += n_jobs;
    a.counts[2] += n_late;
}

static __global__ void __launch_bounds__(THREADS)
    clear_kernel(struct hri_cuda_residency table, uint32_t n_entries)
{
    const uint32_t step = gridDim.x * THREADS;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < n_entries; i += step)
        table.frame_of[i] = NONE;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < table.n_frames; i += step) {
        table.holds[i] = NONE;
        table.last_turn[i] = 0;
        table.referenced[i] = 0;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0)
        *table.hand = *table.turn = 0;
}

static __global__ void __launch_bounds__(THREADS)
    drop_kernel(struct hri_cuda_residency table, const struct hri_cuda_job *jobs, const uint32_t *n,
                uint32_t *frames, uint32_t items_max)
{
    for (uint32_t i = threadIdx.x; i < *n; i += THREADS) {
        const uint32_t f = jobs[i].frame;
        const uint32_t entry = jobs[i].head * table.blocks_max + jobs[i].block;
        if (frames)
            frames[(size_t)jobs[i].head * items_max + jobs[i].item] = NONE;
        if (table.holds[f] != entry)
            continue;
        table.frame_of[entry] = NONE;
        table.holds[f] = NONE;
        table.referenced[f] = 0;
    }
}

extern "C" int hri_cuda_residency_clear(const struct hri_cuda_residency *table, uint32_t n_heads,
                                        void *stream)
{
    const uint32_t n = n_heads * table->blocks_max,
                   most = n > table->n_frames ? n : table->n_frames;
    const uint32_t blocks = hri_div_up(most ? most : 1, THREADS * 4);
    return HRI_LAUNCH(clear_kernel, blocks < 1024 ? blocks : 1024, THREADS, 0, stream, *table, n);
}

extern "C" int hri_cuda_residency_drop(const struct hri_cuda_residency *table,
                                       const struct hri_cuda_job *jobs, const uint32_t *n,
                                       void *stream)
{
    return HRI_LAUNCH(drop_kernel, 1, THREADS, 0, stream, *table, jobs, n, (uint32_t *)NULL, 0u);
}

extern "C" int hri_cuda_resolve_late(const struct hri_cuda_residency *table,
                                     const struct hri_cuda_resolve_args *resolve,
                                     const struct hri_cuda_job *late, const uint32_t *n,
                                     void *stream)
{
    return HRI_LAUNCH(drop_kernel, 1, THREADS, 0, stream, *table, late, n, resolve->frames,
                      resolve->items_max);
}

extern "C" int hri_cuda_resolve(const struct hri_cuda_residency *table,
                                const struct hri_cuda_resolve_args *resolve, uint32_t n_heads,
                                void *stream)
{
    if (n_heads == 0 || resolve->items_max == 0)
        return 0;
    return HRI_LAUNCH(resolve_kernel, 1, THREADS, 0, stream, *table, *resolve, n_heads);
}
