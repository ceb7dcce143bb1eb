/* Which items are refined: the best whose costs fit a budget, until the error is small enough.
 *
 * A thread block per head finds each class's last candidate by its key, most significant bits first:
 * histograms of costs over 11, 10 and 10 bits of the keys (all positive, so that they are ordered
 * like their bits), and where the sum from the top passes the budget. Items with that very key are
 * taken in the order of their indices. The tolerance is found likewise from what the candidates
 * remove of the error, in parts of 2^-40 of all of it. All sums are of integers: the order in which
 * threads add does not matter.
 *
 * Bytes: 4 to 13 per item, three to six times, from L2; the limit is the rate of one SM (about 64
 * bytes a cycle): 4,096 blocks of a 128K sequence take about 2 us by that count, dominated by
 * barriers; 32K rows about 10. */
#include "kernels/cuda/common.cuh"

#define THREADS  512u
#define WARPS    (THREADS / 32)
#define BINS     2048u
#define TIES_MAX 1024u
#define PARTS    1099511627776.0f /* 2^40 */

typedef unsigned long long u64;

/* An item is in when its key is above, or equal and its index below end. */
struct cutoff {
    uint32_t key, end;
};
struct shared {
    u64 bins[2][BINS];
    u64 scan[WARPS];
    uint32_t ties[TIES_MAX];
    struct cutoff cut[3]; /* of the classes; of the tolerance */
    u64 limit[2];
    uint32_t prefix[2], n_ties[2], all[2], n_out;
    u64 removed;
};

static __device__ __forceinline__ bool inside(struct cutoff c, uint32_t key, uint32_t i)
{
    return key > c.key || (key == c.key && i < c.end);
}

static __device__ __forceinline__ u64 shuffle_up(u64 x, uint32_t delta)
{
    return __shfl_up_sync(HRI_ALL_LANES, x, delta);
}

/* Sum of x over this thread and those before it; *all_out over all. Between uses: a barrier. */
static __device__ u64 scan(u64 x, struct shared *s, u64 *all_out)
{
    for (uint32_t d = 1; d < 32; d *= 2) {
        const u64 below = shuffle_up(x, d);
        x += hri_lane() >= d ? below : 0;
    }
    if (hri_lane() == 31)
        s->scan[hri_warp()] = x;
    __syncthreads();
    u64 before = 0, all = 0;
    for (uint32_t w = 0; w < WARPS; w++) {
        before += w < hri_warp() ? s->scan[w] : 0;
        all += s->scan[w];
    }
    __syncthreads();
    *all_out = all;
    return before + x;
}

struct item {
    uint32_t key, class_;
    u64 weight;
};

/* The head's arrays, and which sum is being made: of costs, or of the error. */
struct view {
    const float *key, *error;
    const uint32_t *cost;
    const uint8_t *class_;
    uint32_t n;
    float parts; /* 2^40 over the error before */
};

static __device__ __forceinline__ u64 error_parts(const struct view &v, uint32_t i)
{
    return (u64)(v.error[i] * v.parts + 0.5f);
}

/* False for items that do not count. */
template <bool TOLERANCE>
static __device__ __forceinline__ bool item_at(const struct view &v, const struct shared *s,
                                               uint32_t i, struct item *out)
{
    const float key = v.key[i];
    if (!(key > 0.0f))
        return false;
    out->key = __float_as_uint(key);
    out->class_ = v.class_ ? v.class_[i] & 1u : 0u;
    if (TOLERANCE) {
        if (!inside(s->cut[out->class_], out->key, i))
            return false;
        out->class_ = 0;
        out->weight = error_parts(v, i);
    } else {
        out->weight = v.cost ? v.cost[i] : 1u;
    }
    return true;
}

/* The bin, from the top, in which the sum passes the limit; what lies above is taken off it. */
static __device__ void find_bin(struct shared *s, uint32_t c, uint32_t pass)
{
    const uint32_t n_bins = pass == 0 ? BINS : 1024u, each = n_bins / THREADS;
    u64 mine = 0, all;
    for (uint32_t k = 0; k < each; k++)
        mine += s->bins[c][n_bins - 1 - (threadIdx.x * each + k)];
    u64 above = scan(mine, s, &all) - mine;
    const u64 limit = s->limit[c];
    if (threadIdx.x == 0 && all <= limit)
        s->all[c] = 1; /* only in the first pass */
    __syncthreads();
    for (uint32_t k = 0; k < each; k++) {
        const uint32_t bin = n_bins - 1 - (threadIdx.x * each + k);
        const u64 here = s->bins[c][bin];
        if (above <= limit && above + here > limit) {
            s->prefix[c] = pass == 0 ? bin : s->prefix[c] << 10 | bin;
            s->limit[c] = limit - above;
        }
        above += here;
    }
    __syncthreads();
}

/* Of the items with the last key, those before the returned index are in. */
template <bool TOLERANCE>
static __device__ void cut_ties(const struct view &v, struct shared *s, uint32_t c)
{
    struct cutoff *cut = &s->cut[TOLERANCE ? 2 : c];
    struct item it;
    if (threadIdx.x == 0) {
        cut->key = s->all[c] ? 0 : s->prefix[c];
        cut->end = 0;
        s->n_ties[c] = 0;
    }
    __syncthreads();
    if (s->all[c])
        return;
    const uint32_t key = s->prefix[c];
    const u64 limit = s->limit[c];
    for (uint32_t i = threadIdx.x; i < v.n; i += THREADS)
        if (item_at<TOLERANCE>(v, s, i, &it) && it.class_ == c && it.key == key) {
            const uint32_t at = atomicAdd(&s->n_ties[c], 1u);
            if (at < TIES_MAX)
                s->ties[at] = i;
        }
    __syncthreads();
    const uint32_t n = s->n_ties[c];
    if (n <= TIES_MAX) { /* few: each tie sums those before it */
        for (uint32_t j = threadIdx.x; j < n; j += THREADS) {
            u64 before = 0, weight = 0;
            for (uint32_t k = 0; k < n; k++) {
                if (s->ties[k] <= s->ties[j] && item_at<TOLERANCE>(v, s, s->ties[k], &it)) {
                    before += k != j ? it.weight : 0;
                    weight = k == j ? it.weight : weight;
                }
            }
            if (before + (TOLERANCE ? 0 : weight) <= limit)
                atomicMax(&cut->end, s->ties[j] + 1);
        }
        __syncthreads();
        return;
    }
    u64 carry = 0;
    for (uint32_t first = 0; first < v.n; first += THREADS) {
        const uint32_t i = first + threadIdx.x;
        const bool tie =
            i < v.n && item_at<TOLERANCE>(v, s, i, &it) && it.class_ == c && it.key == key;
        u64 all;
        const u64 sum = carry + scan(tie ? it.weight : 0, s, &all);
        if (tie && sum - (TOLERANCE ? it.weight : 0) <= limit)
            atomicMax(&cut->end, i + 1);
        carry += all;
    }
    __syncthreads();
}

/* Cutoffs for the limits in s->limit: of both classes by costs, or of the candidates by error. */
template <bool TOLERANCE>
static __device__ void find_cutoffs(const struct view &v, struct shared *s)
{
    const uint32_t classes = TOLERANCE ? 1 : 2;
    for (uint32_t pass = 0; pass < 3; pass++) {
        const uint32_t shift = 20 - 10 * pass;
        for (uint32_t i = threadIdx.x; i < 2 * BINS; i += THREADS)
            s->bins[i / BINS][i % BINS] = 0;
        if (threadIdx.x < 2 && pass == 0)
            s->all[threadIdx.x] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < v.n; i += THREADS) {
            struct item it;
            if (!item_at<TOLERANCE>(v, s, i, &it) || s->all[it.class_])
                continue;
            if (pass > 0 && it.key >> (shift + 10) != s->prefix[it.class_])
                continue;
            const uint32_t bin = pass == 0 ? it.key >> 20 : it.key >> shift & 1023;
            atomicAdd(&s->bins[it.class_][bin], it.weight);
        }
        __syncthreads();
        for (uint32_t c = 0; c < classes; c++)
            if (!s->all[c])
                find_bin(s, c, pass);
        __syncthreads();
    }
    for (uint32_t c = 0; c < classes; c++)
        cut_ties<TOLERANCE>(v, s, c);
    __syncthreads();
}

/* Lists what is inside all cutoffs, in order. */
static __device__ void list_items(const struct view &v, const struct hri_cuda_select_args &a,
                                  struct shared *s, uint32_t h, bool tolerance)
{
    uint32_t carry = 0;
    u64 removed = 0;
    for (uint32_t first = 0; first < v.n; first += THREADS) {
        const uint32_t i = first + threadIdx.x;
        struct item it;
        const bool in = i < v.n && item_at<false>(v, s, i, &it) &&
                        inside(s->cut[it.class_], it.key, i) &&
                        (!tolerance || inside(s->cut[2], it.key, i));
        if (in && v.error)
            removed += error_parts(v, i);
        const uint32_t ballot = __ballot_sync(HRI_ALL_LANES, in);
        if (hri_lane() == 0)
            s->scan[hri_warp()] = (u64)__popc(ballot);
        __syncthreads();
        uint32_t at = carry + (uint32_t)__popc(ballot & ((1u << hri_lane()) - 1));
        for (uint32_t w = 0; w < WARPS; w++) {
            at += w < hri_warp() ? (uint32_t)s->scan[w] : 0;
            carry += (uint32_t)s->scan[w];
        }
        if (in && at < a.items_max)
            a.items[(size_t)h * a.items_max + at] = i;
        __syncthreads();
    }
    if (v.error && removed)
        atomicAdd(&s->removed, removed);
    if (threadIdx.x == 0)
        a.n_items[h] = carry < a.items_max ? carry : a.items_max;
}

static __global__ void __launch_bounds__(THREADS) select_kernel(struct hri_cuda_select_args a)
{
    HRI_SHARED(struct shared, s, 1);
    const uint32_t h = blockIdx.x;
    const size_t at = (size_t)h * a.stride;
    struct view v = {a.key + at,
                     a.error ? a.error + at : NULL,
                     a.cost ? a.cost + at : NULL,
                     a.class_ ? a.class_ + at : NULL,
                     a.n[h],
                     0.0f};
    const float left = a.error ? a.left[h] : 0.0f;
    v.parts = left > 0.0f ? PARTS / left : 0.0f;
    if (threadIdx.x < 2)
        s->limit[threadIdx.x] = a.budget[(size_t)h * 2 + threadIdx.x];
    if (threadIdx.x == 0)
        s->removed = 0;
    __syncthreads();
    find_cutoffs<false>(v, s);
    const bool tolerance = a.error && a.enough[h] > 0.0f;
    if (tolerance) {
        /* Taken while what is better removes less than this. */
        const float excess = left > 0.0f ? (left - a.enough[h]) * v.parts : 0.0f;
        if (threadIdx.x == 0)
            s->limit[0] = excess > 0.0f ? (u64)ceilf(excess) - 1 : 0;
        __syncthreads();
        if (excess > 0.0f) {
            find_cutoffs<true>(v, s);
        } else {
            if (threadIdx.x == 0)
                s->cut[2] = {0x7fffffffu, 0};
            __syncthreads();
        }
    }
    list_items(v, a, s, h, tolerance);
    __syncthreads();
    if (threadIdx.x == 0 && a.left_out && a.error)
        a.left_out[h] = fmaxf(left - (v.parts > 0.0f ? (float)s->removed / v.parts : 0.0f), 0.0f);
}

extern "C" int hri_cuda_select(const struct hri_cuda_select_args *select, uint32_t n_heads,
                               void *stream)
{
    if (n_heads == 0)
        return 0;
    return HRI_LAUNCH(select_kernel, n_heads, THREADS, 0, stream, *select);
}
