/* Sketched rows of a step, level 1: from the scores of their sketches to weights, and to what they add to the output.
 *
 * weigh: a warp per block makes logits of its rows' scores, puts those of its strays in their place, and sums the block.
 * total: a thread block per query head. list: a thread block per head lists the groups of the blocks that count by their
 * rows, pair by pair of one basis; its places come from sums over the blocks before, so that the list is always the
 * same. fill: a warp per block writes weights where the list points. values: a thread block per basis and head.
 *
 * Bytes: per row and query head 4 read and 4 written by weigh; list and fill read 4 per block and query head and touch
 * rows of listed blocks alone, which are few where attention is sharp. The limit is memory for weigh, the launch for the
 * others. Sums are made in a fixed order. */
#include "kernels/cuda/rows.cuh"

#define THREADS         256u
#define WARPS           (THREADS / 32)
#define NONE            HRI_CUDA_NONE
#define HALF_MISSED_MAX 1.0f /* as index/ladder_read.c */
#define BASES_MAX       513u /* and the end: index/sketch.h */
#define LIST_THREADS    512u
#define LIST_WARPS      (LIST_THREADS / 32)

static uint32_t warps_grid(uint32_t n_heads, uint32_t n_blocks)
{
    const uint32_t n = hri_splits(n_heads, 4, 256), most = hri_div_up(n_blocks, WARPS);
    return n < most ? n : most;
}

/* ------------------------------------------------------------------------------------------ weigh */

/* Logits of the strays of block b, by the whole warp. */
static __device__ void strays_put(const struct hri_cuda_rows &r, const struct hri_cuda_strays &s,
                                  const float *q, const float *dots, float soft_cap,
                                  const struct hri_cuda_heads &heads, uint32_t h, uint32_t b)
{
    const uint32_t n = s.n[h], lane0 = r.first_lane[hri_rows_block(r, h, b)];
    for (uint32_t i = s.first[hri_rows_block(r, h, b)]; i < n; i++) {
        const size_t at = (size_t)h * s.max + i;
        if (s.block[at] != b)
            return;
        for (uint32_t g = 0; g < heads.g; g++) {
            const size_t head = (size_t)h * heads.g + g;
            float sum = 0;
            for (uint32_t j = hri_lane(); j < heads.dk; j += 32)
                sum += q[head * heads.dk + j] * (float)s.key[at * heads.dk + j];
            sum = hri_warp_sum(sum);
            if (hri_lane() == 0)
                r.x[head * r.lanes + lane0 + s.row[at]] =
                    hri_capped(dots[head * r.stride + b] + s.step[at] * sum, soft_cap);
        }
    }
}

static __device__ void block_weigh(const struct hri_cuda_rows &r, size_t head, uint32_t b,
                                   uint32_t lane0, uint32_t n)
{
    const float *x = r.x + head * r.lanes + lane0;
    float most = HRI_NEGATIVE, sum = 0, squares = 0;
    for (uint32_t i = hri_lane(); i < n; i += 32)
        most = fmaxf(most, x[i]);
    most = hri_warp_max(most);
    for (uint32_t i = hri_lane(); i < n; i += 32) {
        const float w = hri_exp(x[i] - most);
        sum += w;
        squares += w * w;
    }
    sum = hri_warp_sum(sum);
    squares = hri_warp_sum(squares);
    if (hri_lane() != 0)
        return;
    r.log_mass[head * r.stride + b] = most + logf(sum);
    r.focus[head * r.stride + b] = squares / (sum * sum);
}

static __device__ uint32_t strays_of(const struct hri_cuda_rows &r,
                                     const struct hri_cuda_strays &strays, uint32_t h, uint32_t b)
{
    const uint32_t first = strays.first[hri_rows_block(r, h, b)];
    uint32_t end = first;
    while (end < strays.n[h] && strays.block[(size_t)h * strays.max + end] == b)
        end++;
    return end - first;
}

/* x of a block, whose strays' are dot and their keys', less what they have for a mean, which is 0 of true ones. */
static __device__ float rows_mean(const float *x, uint32_t n, uint32_t n_strays, float dot)
{
    float sum = 0;
    for (uint32_t i = hri_lane(); i < n; i += 32)
        sum += x[i];
    sum = hri_warp_sum(sum) - (float)n_strays * dot;
    return n > n_strays ? sum / (float)(n - n_strays) : 0.0f;
}

static __global__ void __launch_bounds__(THREADS)
    weigh_rows_kernel(struct hri_cuda_rows r, struct hri_cuda_strays strays, const float *q,
                      const float *dots, float soft_cap, struct hri_cuda_heads heads)
{
    const uint32_t h = blockIdx.y, n_blocks = r.n[h];
    for (uint32_t b = blockIdx.x * WARPS + hri_warp(); b < n_blocks; b += gridDim.x * WARPS) {
        const size_t at = hri_rows_block(r, h, b);
        const uint32_t lane0 = r.first_lane[at], n = r.rows[at];
        const uint32_t n_strays = strays_of(r, strays, h, b);
        for (uint32_t g = 0; g < heads.g; g++) {
            float *x = r.x + ((size_t)h * heads.g + g) * r.lanes + lane0;
            for (uint32_t i = hri_lane(); i < n; i += 32)
                x[i] *= (float)r.gain[at] / 128.0f;
        }
        __syncwarp();
        strays_put(r, strays, q, dots, 0.0f, heads, h, b);
        __syncwarp();
        for (uint32_t g = 0; g < heads.g; g++) {
            const size_t head = (size_t)h * heads.g + g;
            const float dot = dots[head * r.stride + b];
            const float half = fminf(0.5f * hri_rows_missed(r, heads, h, b, g), HALF_MISSED_MAX);
            float *x = r.x + head * r.lanes + lane0;
            const float mean = rows_mean(x, n, n_strays, dot);
            for (uint32_t i = hri_lane(); i < n; i += 32)
                x[i] = hri_capped(dot + x[i] - mean, soft_cap) + half;
        }
        __syncwarp();
        strays_put(r, strays, q, dots, soft_cap, heads, h, b);
        __syncwarp();
        for (uint32_t g = 0; g < heads.g; g++)
            block_weigh(r, (size_t)h * heads.g + g, b, lane0, n);
    }
}

extern "C" int hri_cuda_weigh_rows(const struct hri_cuda_rows *rows,
                                   const struct hri_cuda_strays *strays, const float *q,
                                   const float *dots, float soft_cap, struct hri_cuda_heads heads,
                                   void *stream)
{
    if (heads.n == 0 || rows->blocks_max == 0)
        return 0;
    return HRI_LAUNCH(weigh_rows_kernel, dim3(warps_grid(heads.n, rows->blocks_max), heads.n),
                      THREADS, 0, stream, *rows, *strays, q, dots, soft_cap, heads);
}

/* ------------------------------------------------------------------------------------------ total */

static __global__ void __launch_bounds__(THREADS)
    total_rows_kernel(struct hri_cuda_rows r, const float *near_lse, float *top, float *total,
                      struct hri_cuda_heads heads)
{
    HRI_SHARED(float, part, WARPS);
    const uint32_t h = blockIdx.y, n = r.n[h];
    const size_t head = (size_t)h * heads.g + blockIdx.x;
    const float *x = r.log_mass + head * r.stride;
    float most = near_lse[head], sum = 0;
    for (uint32_t b = threadIdx.x; b < n; b += THREADS)
        most = fmaxf(most, x[b]);
    most = hri_warp_max(most);
    if (hri_lane() == 0)
        part[hri_warp()] = most;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++)
        most = fmaxf(most, part[w]);
    __syncthreads();
    for (uint32_t b = threadIdx.x; b < n; b += THREADS)
        sum += hri_exp(x[b] - most);
    sum = hri_block_sum(part, sum, WARPS);
    if (threadIdx.x != 0)
        return;
    top[head] = most;
    total[head] = most > HRI_NEGATIVE ? sum + hri_exp(near_lse[head] - most) : 0.0f;
}

extern "C" int hri_cuda_total_rows(const struct hri_cuda_rows *rows, const float *near_lse,
                                   float *top, float *total, struct hri_cuda_heads heads,
                                   void *stream)
{
    if (heads.n == 0)
        return 0;
    return HRI_LAUNCH(total_rows_kernel, dim3(heads.g, heads.n), THREADS, 0, stream, *rows,
                      near_lse, top, total, heads);
}

/* ------------------------------------------------------------------------------------------- list */

struct groups {
    uint32_t first, end;
};

static __device__ __forceinline__ struct groups groups_of(const struct hri_cuda_rows &r, size_t at)
{
    const uint32_t lane = r.first_lane[at];
    return {lane / 16, (lane + r.rows[at] + 15) / 16};
}

/* The groups that block b adds to the list: without the first, if a block before it has listed that. */
static __device__ __forceinline__ struct groups groups_add(const struct hri_cuda_rows &r,
                                                           const struct hri_cuda_heads &heads,
                                                           const struct hri_cuda_rows_least &least,
                                                           uint32_t h, uint32_t b)
{
    struct groups mine = groups_of(r, hri_rows_block(r, h, b));
    if (!hri_rows_weighty(r, heads, least, h, b))
        return {mine.first, mine.first};
    for (uint32_t i = b; i-- > 0;) {
        if (groups_of(r, hri_rows_block(r, h, i)).end <= mine.first)
            break;
        if (hri_rows_weighty(r, heads, least, h, i)) {
            mine.first++;
            break;
        }
    }
    return mine;
}

/* Sum of x over the threads before this one; *all_out over all. */
static __device__ uint32_t sum_before(uint32_t *part, uint32_t x, uint32_t *all_out)
{
    uint32_t sum = x;
    for (uint32_t d = 1; d < 32; d *= 2) {
        const uint32_t below = __shfl_up_sync(HRI_ALL_LANES, sum, d);
        sum += hri_lane() >= d ? below : 0;
    }
    if (hri_lane() == 31)
        part[hri_warp()] = sum;
    __syncthreads();
    uint32_t before = 0, all = 0;
    for (uint32_t w = 0; w < LIST_WARPS; w++) {
        before += w < hri_warp() ? part[w] : 0;
        all += part[w];
    }
    __syncthreads();
    *all_out = all;
    return before + sum - x;
}

static __global__ void __launch_bounds__(LIST_THREADS)
    list_rows_kernel(struct hri_cuda_rows r, struct hri_cuda_rows_least least,
                     struct hri_cuda_rows_list list, struct hri_cuda_heads heads)
{
    HRI_SHARED(uint32_t, part, LIST_WARPS);
    HRI_SHARED(uint32_t, begin, BASES_MAX);      /* groups listed before a basis, */
    HRI_SHARED(uint32_t, pair_begin, BASES_MAX); /* and pairs */
    const uint32_t h = blockIdx.x, n = r.n[h], t = threadIdx.x;
    const uint16_t *basis_of = r.basis_of + (size_t)h * r.blocks_max;
    const uint32_t n_bases = n > 0 ? basis_of[n - 1] + 1u : 0;
    uint32_t *before = list.work + (size_t)h * r.blocks_max;
    uint32_t *groups = list.groups + (size_t)h * list.pairs_max * 2;
    uint32_t *pair_basis = list.pair_basis + (size_t)h * list.pairs_max;
    uint32_t carry = 0, all;
    for (uint32_t first = 0; first < n; first += LIST_THREADS) {
        const uint32_t b = first + t;
        struct groups mine = {0, 0};
        if (b < n)
            mine = groups_add(r, heads, least, h, b);
        const uint32_t sum = carry + sum_before(part, mine.end - mine.first, &all);
        if (b < n)
            before[b] = sum;
        if (b < n && (b == 0 || basis_of[b] != basis_of[b - 1]))
            begin[basis_of[b]] = sum;
        carry += all;
    }
    if (t == 0)
        begin[n_bases] = carry;
    __syncthreads();
    carry = 0;
    for (uint32_t first = 0; first < n_bases; first += LIST_THREADS) {
        const uint32_t k = first + t, count = k < n_bases ? begin[k + 1] - begin[k] : 0;
        const uint32_t sum = carry + sum_before(part, (count + 1) / 2, &all);
        if (k < n_bases) {
            pair_begin[k] = sum;
            if (count % 2 == 1)
                groups[2 * sum + count] = NONE;
        }
        carry += all;
    }
    __syncthreads();
    if (t == 0)
        list.n_pairs[h] = carry;
    for (uint32_t b = t; b < n; b += LIST_THREADS) {
        const uint32_t k = basis_of[b];
        const struct groups mine = groups_add(r, heads, least, h, b);
        uint32_t to = 2 * pair_begin[k] + before[b] - begin[k];
        for (uint32_t i = mine.first; i < mine.end; i++, to++) {
            groups[to] = i;
            if (to % 2 == 0)
                pair_basis[to / 2] = k;
        }
    }
}

extern "C" int hri_cuda_list_rows(const struct hri_cuda_rows *rows,
                                  struct hri_cuda_rows_least least,
                                  const struct hri_cuda_rows_list *list,
                                  struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0)
        return 0;
    return HRI_LAUNCH(list_rows_kernel, heads.n, LIST_THREADS, 0, stream, *rows, least, *list,
                      heads);
}

/* ------------------------------------------------------------------------------------------- fill */

static __device__ __forceinline__ void lanes_clear(const struct hri_cuda_rows &r, float *w,
                                                   const struct hri_cuda_heads &heads, uint32_t h,
                                                   uint32_t first, uint32_t end)
{
    for (uint32_t g = 0; g < heads.g; g++)
        for (uint32_t i = first + hri_lane(); i < end; i += 32)
            w[((size_t)h * heads.g + g) * r.lanes + i] = 0.0f;
}

/* In the groups of a listed block, the lanes of blocks that are not and those of no block weigh nothing. */
static __device__ void neighbours_clear(const struct hri_cuda_rows &r, float *w,
                                        const struct hri_cuda_heads &heads,
                                        const struct hri_cuda_rows_least &least, uint32_t h,
                                        uint32_t b)
{
    const size_t at = hri_rows_block(r, h, b);
    const struct groups mine = groups_of(r, at);
    const uint32_t begin = mine.first * 16, end = mine.end * 16, n = r.n[h];
    for (uint32_t i = b; i-- > 0;) {
        const size_t other = hri_rows_block(r, h, i);
        const uint32_t lane = r.first_lane[other], last = lane + r.rows[other];
        if (last <= begin)
            break;
        if (!hri_rows_weighty(r, heads, least, h, i))
            lanes_clear(r, w, heads, h, max(lane, begin), last);
    }
    uint32_t used = r.first_lane[at] + r.rows[at];
    for (uint32_t i = b + 1; i < n; i++) {
        const size_t other = hri_rows_block(r, h, i);
        const uint32_t lane = r.first_lane[other];
        if (lane >= end)
            break;
        used = lane + r.rows[other];
        if (!hri_rows_weighty(r, heads, least, h, i))
            lanes_clear(r, w, heads, h, lane, min(used, end));
    }
    lanes_clear(r, w, heads, h, used, end);
}

struct sums {
    float mass, square;
};

/* Weights of the rows that are left of a block; written where it is listed. */
static __device__ __forceinline__ struct sums
rows_fill(const struct hri_cuda_rows &r, const uint8_t *mark, float *w, size_t head, size_t at)
{
    const uint32_t lane0 = r.first_lane[at], n = r.rows[at];
    const float top = r.top[head];
    struct sums s = {0, 0};
    for (uint32_t i = hri_lane(); i < n; i += 32) {
        const size_t to = head * r.lanes + lane0 + i;
        const float x = !mark || mark[i / r.part_rows] ? hri_exp(r.x[to] - top) : 0.0f;
        if (w)
            w[to] = x;
        s.mass += x;
        s.square += x * x;
    }
    return {hri_warp_sum(s.mass), hri_warp_sum(s.square)};
}

static __global__ void __launch_bounds__(THREADS)
    fill_rows_kernel(struct hri_cuda_rows r, struct hri_cuda_rows_least least,
                     struct hri_cuda_rows_fill a, struct hri_cuda_heads heads)
{
    const uint32_t h = blockIdx.y, n_blocks = r.n[h];
    for (uint32_t b = blockIdx.x * WARPS + hri_warp(); b < n_blocks; b += gridDim.x * WARPS) {
        const size_t at = hri_rows_block(r, h, b);
        const uint8_t *mark = a.mark ? a.mark + at * r.parts : NULL;
        const bool listed = hri_rows_weighty(r, heads, least, h, b);
        bool whole = true; /* nothing of it is refined */
        for (uint32_t p = 0; mark && p < r.parts; p++)
            whole = whole && (mark[p] || hri_part_rows(r, r.rows[at], p) == 0);
        for (uint32_t g = 0; g < heads.g; g++) {
            const size_t head = (size_t)h * heads.g + g, to = head * r.stride + b;
            const float mass = hri_exp(r.log_mass[to] - r.top[head]);
            struct sums s = {mass, mass * mass * r.focus[to]};
            if (listed || !whole)
                s = rows_fill(r, mark, listed ? a.w : NULL, head, at);
            if (a.left_mass && hri_lane() == 0) {
                /* Where all is left, the sum as it is known: it does not vanish under exp(top). */
                a.left_mass[to] = whole        ? r.log_mass[to]
                                  : s.mass > 0 ? logf(s.mass) + r.top[head]
                                               : HRI_NEGATIVE;
                a.left_square[to] = s.square;
            }
        }
        if (listed)
            neighbours_clear(r, a.w, heads, least, h, b);
    }
}

extern "C" int hri_cuda_fill_rows(const struct hri_cuda_rows *rows,
                                  struct hri_cuda_rows_least least,
                                  const struct hri_cuda_rows_fill *fill,
                                  struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0 || rows->blocks_max == 0)
        return 0;
    return HRI_LAUNCH(fill_rows_kernel, dim3(warps_grid(heads.n, rows->blocks_max), heads.n),
                      THREADS, 0, stream, *rows, least, *fill, heads);
}

/* ----------------------------------------------------------------------------------------- values */

static __global__ void __launch_bounds__(THREADS)
    value_rows_kernel(struct hri_cuda_rows_values a, struct hri_cuda_heads heads)
{
    HRI_SHARED(float, scaled, HR_HEAD_DIM_MAX);
    HRI_SHARED(unsigned, last, 1);
    const uint32_t k = blockIdx.x, h = blockIdx.y, j = threadIdx.x, there = a.there[h];
    const size_t one = (size_t)heads.g * heads.dv, number = (size_t)h * a.n_bases + k;
    const struct hri_cuda_basis basis = a.bases[number];
    const uint32_t n = k < there ? basis.n4 + basis.n2 : 0;
    for (uint32_t g = 0; k < there && g < heads.g; g++) {
        if (j < n)
            scaled[j] = a.sum[(number * heads.g + g) * HR_HEAD_DIM_MAX + j] * basis.value_scale[j];
        __syncthreads();
        float sum = 0;
        for (uint32_t c = 0; c < n && j < heads.dv; c++)
            sum += scaled[c] * (float)basis.value[(size_t)c * heads.dv + j];
        if (j < heads.dv)
            a.work[number * one + (size_t)g * heads.dv + j] = sum;
        __syncthreads();
    }
    if (!hri_last_to_arrive(a.arrived + h, gridDim.x, last))
        return;
    for (uint32_t i = j; i < one; i += THREADS) {
        float sum = 0;
        for (uint32_t b = 0; b < there; b++)
            sum += a.work[((size_t)h * a.n_bases + b) * one + i];
        a.out[h * one + i] = sum;
    }
}

extern "C" int hri_cuda_value_rows(const struct hri_cuda_rows_values *values,
                                   struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0 || values->n_bases == 0)
        return 0;
    return HRI_LAUNCH(value_rows_kernel, dim3(values->n_bases, heads.n), THREADS, 0, stream,
                      *values, heads);
}
