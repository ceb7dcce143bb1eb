/* Decode attention over everything a step knows: exact rows, int8 rows in frames, summaries.
 *
 * Tiles of 16 rows are dealt to all warps of all thread blocks of a head (split-K), kind after kind;
 * attend_tile.cuh says how a warp attends one. Summaries are rows without a key: their logit is the
 * block's log mass, their value its int8 mean. An int8 row's value is its block's mean plus its
 * codes; the mean is added once per tile, with the weight of all its rows. Warps merge in shared
 * memory, thread blocks through `work`, where the last of a head to arrive merges all in order, with
 * the parts that were attended before.
 *
 * Bytes: every row once (dk + dv) times 2 or 1, a summary dv + 4 G + 7. The limit is memory: for 16
 * rows of 512 bytes a warp issues about 120 instructions and has 8 KiB on their way, and an H100
 * wants 40 KiB per SM on their way; 2 blocks of 4 warps per SM have 64. With few rows (2,048 of 8
 * heads: one tile per warp) the limit is the launch, one trip to memory and the merge. More than 8
 * query heads read the rows again, from L2. */
#include "kernels/cuda/attend_tile.cuh"

#define THREADS     128u
#define WARPS       (THREADS / 32)
#define HEADS       8u /* query heads of a thread block */
#define SPLITS_MOST 128u
#define NONE        HRI_CUDA_NONE
#define ADDED_MOST  60.0f /* that the top of sketches may lie above all rows */

/* Bytes between queries: half a line of banks apart, so that 8 lanes meet all of them. */
#define STRIDE_16 (HR_HEAD_DIM_MAX * 2 + 64)
#define STRIDE_8  (HR_HEAD_DIM_MAX + 64)

struct shared {
    unsigned char q16[16 * STRIDE_16];
    int8_t q8[16 * STRIDE_8];
    float q16_scale[HEADS], q8_step[HEADS];
    float o[HEADS * HR_HEAD_DIM_MAX]; /* of the thread block; at the end, factors of the splits */
    float m[WARPS][HEADS], l[WARPS][HEADS];
    unsigned last;
};

struct place {
    uint32_t h, first_head, n_heads; /* query heads first_head .. + n_heads of kv-head h */
    uint32_t warp, n_warps;          /* among all that have this head's tiles */
};

/* Query heads as two 16-bit terms, scaled to at most 1; a warp per head. */
template <hri_half_kind KIND>
static __device__ void load_queries_16(struct shared *s, const struct hri_cuda_attend_args &a,
                                       const struct hri_cuda_heads &heads, const struct place &at)
{
    for (uint32_t n = hri_warp(); n < HEADS; n += WARPS) {
        const bool there = n < at.n_heads;
        const float *q =
            a.q + ((size_t)at.h * heads.g + at.first_head + (there ? n : 0)) * heads.dk;
        float largest = 0;
        for (uint32_t j = hri_lane(); there && j < heads.dk; j += 32)
            largest = fmaxf(largest, fabsf(q[j]));
        largest = hri_warp_max(largest);
        const float inverse = largest >= HRI_STEP_MIN ? 1.0f / largest : 0.0f;
        if (hri_lane() == 0)
            s->q16_scale[n] = largest >= HRI_STEP_MIN ? largest : 0.0f;
        uint32_t *first = (uint32_t *)(s->q16 + n * STRIDE_16);
        uint32_t *second = (uint32_t *)(s->q16 + (n + 8) * STRIDE_16);
        for (uint32_t j = hri_lane(); j < hri_cuda_dk_up(heads.dk) / 2; j += 32) {
            const bool in = there && 2 * j < heads.dk;
            const float x = in ? q[2 * j] * inverse : 0.0f, y = in ? q[2 * j + 1] * inverse : 0.0f;
            const uint32_t pair = hri_half_pair<KIND>(x, y);
            first[j] = pair;
            second[j] = hri_half_pair<KIND>(x - hri_half_part<KIND>(pair, 0),
                                            y - hri_half_part<KIND>(pair, 1));
        }
    }
}

static __device__ void load_queries_8(struct shared *s, const struct hri_cuda_attend_args &a,
                                      const struct hri_cuda_heads &heads, const struct place &at)
{
    const uint32_t up = hri_cuda_dk_up(heads.dk), g_up = hri_cuda_g_up(heads.g);
    for (uint32_t i = threadIdx.x * 16; i < 16 * up; i += THREADS * 16) {
        const uint32_t row = i / up, n = row % 8, g = at.first_head + n;
        uint4 codes = make_uint4(0, 0, 0, 0);
        if (n < at.n_heads)
            codes = *(const uint4 *)(a.q8.codes + (((size_t)at.h * g_up + g) * 2 + row / 8) * up +
                                     i % up);
        *(uint4 *)(s->q8 + row * STRIDE_8 + i % up) = codes;
    }
    if (threadIdx.x < HEADS)
        s->q8_step[threadIdx.x] = threadIdx.x < at.n_heads
                                      ? a.q8.step[(size_t)at.h * g_up + at.first_head + threadIdx.x]
                                      : 0.0f;
}

/* ------------------------------------------------------------------------------------ exact rows */

static __device__ __forceinline__ const unsigned char *
row_at(const struct hri_cuda_run &run, uint32_t h, uint32_t first, uint32_t i, size_t row_bytes)
{
    const unsigned char *base = (const unsigned char *)run.rows + h * run.head_stride_bytes;
    if (run.pages)
        return base +
               ((size_t)run.pages[(size_t)h * run.pages_max + i / run.page_rows] * run.page_rows +
                i % run.page_rows) *
                   row_bytes;
    const uint32_t row = first + i;
    return base + (size_t)(row < run.capacity ? row : row % run.capacity) * row_bytes;
}

static __device__ __forceinline__ const unsigned char *shuffle_row(const unsigned char *row,
                                                                   uint32_t lane)
{
    return (const unsigned char *)(uintptr_t)__shfl_sync(
        HRI_ALL_LANES, (unsigned long long)(uintptr_t)row, (int)lane);
}

template <hri_half_kind KIND, uint32_t CHUNKS>
static __device__ __forceinline__ void
attend_run_tile(struct hri_warp_attention<CHUNKS> &acc, const struct shared *s,
                const struct hri_cuda_run &run, const struct hri_cuda_heads &heads,
                const struct place &at, uint32_t tile, uint32_t n, float soft_cap)
{
    const uint32_t lane = hri_lane(), quad = lane / 4, col = lane % 4;
    const size_t row_bytes = (size_t)(heads.dk + heads.dv) * 2;
    const uint32_t base = tile * HRI_TILE_ROWS, first = run.first ? *run.first : 0;
    const uint32_t mine = base + lane % 16;
    /* Rows that are not there are read as the tile's first one, and weigh nothing. */
    const unsigned char *row = row_at(run, at.h, first, mine < n ? mine : base, row_bytes);
    const unsigned char *keys[2] = {shuffle_row(row, quad), shuffle_row(row, quad + 8)};
    float x[4];
    hri_attention_scores<KIND>(s->q16, STRIDE_16, keys, heads.dk, x);
    const unsigned char *values[4];
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t r = 2 * col + i % 2 + i / 2 * 8;
        values[i] = shuffle_row(row, r) + heads.dk * 2;
        x[i] = base + r < n ? hri_capped(x[i] * s->q16_scale[quad], soft_cap) : HRI_NEGATIVE;
    }
    hri_attention_weigh(acc, x);
    hri_attention_values<KIND>(acc, x, values, heads.dv);
}

/* --------------------------------------------------------------------------- int8 rows in frames */

template <uint32_t CHUNKS>
static __device__ __forceinline__ void
attend_refined_tile(struct hri_warp_attention<CHUNKS> &acc, const struct shared *s,
                    const struct hri_cuda_attend_args &a, const struct hri_cuda_heads &heads,
                    const struct place &at, uint32_t tile)
{
    const uint32_t lane = hri_lane(), quad = lane / 4, col = lane % 4;
    const uint32_t per_item = hri_div_up(a.refined.rows_max, HRI_TILE_ROWS);
    const size_t item = (size_t)at.h * a.refined.items_max + tile / per_item;
    const uint32_t frame = a.refined.frames_of[item], base = tile % per_item * HRI_TILE_ROWS;
    if (frame == NONE)
        return; /* stays at its summary, or its sketches */
    const uint32_t parts = max(a.refined.parts, 1u), b = a.refined.items[item] / parts;
    const uint32_t before = a.refined.items[item] % parts * a.refined.rows_max;
    const size_t block = (size_t)at.h * a.blocks_max + b;
    const uint32_t n = min(a.refined.rows[block] - before, a.refined.rows_max);
    if (base >= n)
        return;
    const uint32_t width = heads.dk + heads.dv;
    const int8_t *rows = a.refined.frames + (size_t)frame * a.refined.frame_bytes;
    const int8_t *keys[2], *values[4];
    for (uint32_t i = 0; i < 2; i++)
        keys[i] = rows + (size_t)min(base + quad + 8 * i, n - 1) * width;
    float x[4], w[4];
    hri_attention_scores_i8(s->q8, STRIDE_8, keys, heads.dk, x);
    const uint32_t g = at.first_head + min(quad, at.n_heads - 1);
    const float dot = a.refined.dots[((size_t)at.h * heads.g + g) * a.stride + b];
    const float step = a.refined.k_step[block] * s->q8_step[quad];
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t r = base + 2 * col + i % 2 + i / 2 * 8;
        values[i] = rows + (size_t)min(r, n - 1) * width + heads.dk;
        x[i] = r < n ? hri_capped(fmaf(step, x[i], dot), a.soft_cap) : HRI_NEGATIVE;
    }
    hri_attention_weigh(acc, x);
    const float all = hri_quad_sum((x[0] + x[1]) + (x[2] + x[3]));
    for (uint32_t i = 0; i < 4; i++)
        w[i] = x[i] * a.refined.v_step[block];
    hri_attention_values_i8(acc, w, values, heads.dv);
    hri_attention_add_row(acc, all * a.v_scale[block], a.v_codes + block * heads.dv, heads.dv);
}

/* --------------------------------------------------------------------------------------- summaries */

/* *lean: sum of weight times spread, of the lane's own blocks. */
template <uint32_t CHUNKS>
static __device__ __forceinline__ void
attend_summary_tile(struct hri_warp_attention<CHUNKS> &acc, float *lean,
                    const struct hri_cuda_attend_args &a, const struct hri_cuda_heads &heads,
                    const struct place &at, uint32_t tile, uint32_t n)
{
    const uint32_t quad = hri_lane() / 4, col = hri_lane() % 4, first = tile * HRI_TILE_ROWS;
    const size_t blocks = (size_t)at.h * a.blocks_max;
    const size_t masses = ((size_t)at.h * heads.g + at.first_head + quad) * a.stride;
    float x[4];
    uint32_t block[4];
    bool any = false;
    for (uint32_t i = 0; i < 4; i++) {
        block[i] = first + 2 * col + i % 2 + i / 2 * 8;
        const bool in = block[i] < n && (!a.estimate.mark || a.estimate.mark[blocks + block[i]]);
        block[i] = block[i] < n ? block[i] : first;
        x[i] = in && quad < at.n_heads ? a.estimate.log_mass[masses + block[i]] : HRI_NEGATIVE;
        any |= x[i] > HRI_NEGATIVE;
    }
    if (!__any_sync(HRI_ALL_LANES, any))
        return;
    const float before = acc.m;
    hri_attention_weigh(acc, x);
    if (acc.m > before)
        *lean *= hri_exp(before - acc.m);
    const int8_t *values[4];
    for (uint32_t i = 0; i < 4; i++) {
        if (a.estimate.spread)
            *lean += x[i] * hri_bf16_to_f32(a.estimate.spread[blocks + block[i]]);
        values[i] = a.v_codes + (blocks + block[i]) * heads.dv;
        x[i] *= a.v_scale[blocks + block[i]];
    }
    hri_attention_values_i8(acc, x, values, heads.dv);
}

/* The blocks' values lean by their spread times the head's shift. */
template <uint32_t CHUNKS>
static __device__ __forceinline__ void
add_shift(struct hri_warp_attention<CHUNKS> &acc, float lean, const struct hri_cuda_attend_args &a,
          const struct hri_cuda_heads &heads, const struct place &at)
{
    const uint32_t quad = hri_lane() / 4, col = hri_lane() % 4;
    lean = hri_quad_sum(lean);
    if (!a.estimate.shift || quad >= at.n_heads)
        return;
    const float *shift =
        a.estimate.shift + ((size_t)at.h * heads.g + at.first_head + quad) * heads.dv;
    HRI_UNROLL
    for (uint32_t i = 0; i < CHUNKS * 8; i++) {
        const uint32_t dim = 64 * (i / 8) + 16 * col + i % 8;
        if (dim >= heads.dv)
            continue;
        acc.o[i][0] += lean * shift[dim];
        acc.o[i][1] += lean * shift[dim + 8];
    }
}

/* ------------------------------------------------------------------------------------------ merging */

/* The warps of the thread block, into s->o, s->m[0] and s->l[0]. */
template <uint32_t CHUNKS>
static __device__ void merge_warps(struct hri_warp_attention<CHUNKS> &acc, struct shared *s)
{
    const uint32_t quad = hri_lane() / 4, col = hri_lane() % 4, width = CHUNKS * 64;
    const float l = hri_quad_sum(acc.l);
    if (col == 0) {
        s->m[hri_warp()][quad] = acc.m;
        s->l[hri_warp()][quad] = l;
    }
    __syncthreads();
    float most = s->m[0][quad];
    for (uint32_t w = 1; w < WARPS; w++)
        most = fmaxf(most, s->m[w][quad]);
    const float factor = acc.m > HRI_NEGATIVE ? hri_exp(acc.m - most) : 0.0f;
    for (uint32_t w = 0; w < WARPS; w++) {
        if (hri_warp() == w) {
            HRI_UNROLL
            for (uint32_t i = 0; i < CHUNKS * 8; i++)
                for (uint32_t j = 0; j < 2; j++) {
                    float *to = s->o + quad * width + 64 * (i / 8) + 16 * col + 8 * j + i % 8;
                    const float x = factor * (acc.o[i][j] + acc.o[i][j + 2]);
                    *to = w == 0 ? x : *to + x;
                }
        }
        __syncthreads();
    }
    float sum = 0;
    for (uint32_t w = 0; w < WARPS; w++)
        sum += s->m[w][quad] > HRI_NEGATIVE ? s->l[w][quad] * hri_exp(s->m[w][quad] - most) : 0.0f;
    __syncthreads();
    if (hri_warp() == 0 && col == 0) {
        s->m[0][quad] = most;
        s->l[0][quad] = sum;
    }
    __syncthreads();
}

/* Of a split: [HEADS][dv] sums, then m and l of each. */
static __host__ __device__ __forceinline__ size_t split_floats(uint32_t dv)
{
    return (size_t)HEADS * (dv + 2);
}

/* All splits and the earlier parts; `factors` [splits][HEADS] lies in shared memory. */
static __device__ void merge_splits(const struct hri_cuda_attend_args &a,
                                    const struct hri_cuda_heads &heads, const struct place &at,
                                    struct shared *s, const float *work)
{
    const uint32_t n_splits = gridDim.x, dv = heads.dv;
    const size_t floats = split_floats(dv), ml = (size_t)HEADS * dv;
    const size_t head = (size_t)at.h * heads.g + at.first_head, all = (size_t)heads.n * heads.g;
    float *factors = s->o;
    if (threadIdx.x < at.n_heads) {
        const uint32_t n = threadIdx.x;
        float m = HRI_NEGATIVE, l = 0;
        for (uint32_t i = 0; i < n_splits; i++)
            m = fmaxf(m, work[i * floats + ml + n]);
        for (uint32_t p = 0; p < a.n_parts; p++)
            m = fmaxf(m, a.parts_lse[p * all + head + n]);
        for (uint32_t i = 0; i < n_splits; i++) {
            const float mi = work[i * floats + ml + n];
            const float factor = mi > HRI_NEGATIVE ? hri_exp(mi - m) : 0.0f;
            factors[i * HEADS + n] = factor;
            l += factor * work[i * floats + ml + HEADS + n];
        }
        for (uint32_t p = 0; p < a.n_parts; p++) {
            const float lse = a.parts_lse[p * all + head + n];
            l += lse > HRI_NEGATIVE ? hri_exp(lse - m) : 0.0f;
        }
        s->m[0][n] = m;
        s->l[0][n] = l;
        if (a.lse)
            a.lse[head + n] = l > 0.0f ? m + logf(l) : HRI_NEGATIVE;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < at.n_heads * dv; i += THREADS) {
        const uint32_t n = i / dv;
        float sum = 0;
        for (uint32_t k = 0; k < n_splits; k++)
            sum += factors[k * HEADS + n] * work[k * floats + i];
        for (uint32_t p = 0; p < a.n_parts; p++) {
            const float lse = a.parts_lse[p * all + head + n];
            if (lse > HRI_NEGATIVE)
                sum += hri_exp(lse - s->m[0][n]) * a.parts_out[(p * all + head) * dv + i];
        }
        if (a.added && s->l[0][n] > 0.0f)
            sum += hri_exp(fminf(a.added_top[head + n] - s->m[0][n], ADDED_MOST)) *
                   a.added[head * dv + i];
        a.out[head * dv + i] = s->l[0][n] > 0.0f ? sum / s->l[0][n] : 0.0f;
    }
}

static __device__ __forceinline__ void store_split(struct shared *s, float *work, uint32_t dv,
                                                   uint32_t width)
{
    for (uint32_t i = threadIdx.x; i < HEADS * dv; i += THREADS)
        work[i] = s->o[i / dv * width + i % dv];
    if (threadIdx.x < HEADS) {
        work[(size_t)HEADS * dv + threadIdx.x] = s->m[0][threadIdx.x];
        work[(size_t)HEADS * (dv + 1) + threadIdx.x] = s->l[0][threadIdx.x];
    }
}

template <hri_half_kind KIND, uint32_t CHUNKS>
static __global__ void __launch_bounds__(THREADS)
    attend_kernel(struct hri_cuda_attend_args a, struct hri_cuda_heads heads)
{
    HRI_SHARED(struct shared, s, 1);
    struct place at = {blockIdx.y, blockIdx.z * HEADS, heads.g - blockIdx.z * HEADS,
                       blockIdx.x * WARPS + hri_warp(), gridDim.x * WARPS};
    at.n_heads = min(at.n_heads, HEADS);
    if (a.n_runs)
        load_queries_16<KIND>(s, a, heads, at);
    if (a.refined.items)
        load_queries_8(s, a, heads, at);
    __syncthreads();
    struct hri_warp_attention<CHUNKS> acc;
    hri_attention_clear(acc);
    uint32_t tile = at.warp; /* counts on through all kinds, so that warps have equally many */
    for (uint32_t r = 0; r < a.n_runs; r++) {
        const uint32_t n = *a.runs[r].n, n_tiles = hri_div_up(n, HRI_TILE_ROWS);
        for (; tile < n_tiles; tile += at.n_warps)
            attend_run_tile<KIND>(acc, s, a.runs[r], heads, at, tile, n, a.soft_cap);
        tile -= n_tiles;
    }
    if (a.refined.items) {
        const uint32_t n_tiles =
            a.refined.n_items[at.h] * hri_div_up(a.refined.rows_max, HRI_TILE_ROWS);
        for (; tile < n_tiles; tile += at.n_warps)
            attend_refined_tile(acc, s, a, heads, at, tile);
        tile -= n_tiles;
    }
    if (a.estimate.log_mass) {
        const uint32_t n = a.estimate.n[at.h], n_tiles = hri_div_up(n, HRI_TILE_ROWS);
        float lean = 0;
        for (; tile < n_tiles; tile += at.n_warps)
            attend_summary_tile(acc, &lean, a, heads, at, tile, n);
        add_shift(acc, lean, a, heads, at);
    }
    merge_warps(acc, s);
    const size_t number = (size_t)at.h * gridDim.z + blockIdx.z;
    float *work = a.work + number * gridDim.x * split_floats(heads.dv);
    store_split(s, work + blockIdx.x * split_floats(heads.dv), heads.dv, CHUNKS * 64);
    if (!hri_last_to_arrive(a.arrived + number, gridDim.x, &s->last))
        return;
    merge_splits(a, heads, at, s, work);
}

static uint32_t head_chunks(struct hri_cuda_heads heads)
{
    return hri_div_up(heads.g, HEADS);
}

static uint32_t splits(struct hri_cuda_heads heads)
{
    return hri_splits(heads.n * head_chunks(heads), 2, SPLITS_MOST);
}

extern "C" size_t hri_cuda_attend_counters(struct hri_cuda_heads heads)
{
    return (size_t)heads.n * head_chunks(heads);
}

extern "C" size_t hri_cuda_attend_work(struct hri_cuda_heads heads)
{
    return hri_cuda_attend_counters(heads) * splits(heads) * split_floats(heads.dv);
}

template <hri_half_kind KIND>
static int launch(const struct hri_cuda_attend_args *a, struct hri_cuda_heads heads, void *stream)
{
    const dim3 grid(splits(heads), heads.n, head_chunks(heads));
    switch (hri_div_up(heads.dv, 64)) {
    case 1:
        return HRI_LAUNCH((attend_kernel<KIND, 1>), grid, THREADS, 0, stream, *a, heads);
    case 2:
        return HRI_LAUNCH((attend_kernel<KIND, 2>), grid, THREADS, 0, stream, *a, heads);
    case 3:
        return HRI_LAUNCH((attend_kernel<KIND, 3>), grid, THREADS, 0, stream, *a, heads);
    default:
        return HRI_LAUNCH((attend_kernel<KIND, 4>), grid, THREADS, 0, stream, *a, heads);
    }
}

extern "C" int hri_cuda_attend(const struct hri_cuda_attend_args *attend,
                               struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0)
        return 0;
    return attend->dtype == HR_DTYPE_F16 ? launch<HRI_F16>(attend, heads, stream)
                                         : launch<HRI_BF16>(attend, heads, stream);
}

/* -------------------------------------------------------------------------------------------- marks
 * A thread block has a run of blocks of a head and looks through the head's list for them. */
static __global__ void __launch_bounds__(256)
    mark_kernel(struct hri_cuda_refined r, const uint32_t *n_blocks, uint32_t blocks_max,
                uint8_t *mark)
{
    const uint32_t h = blockIdx.y, n = n_blocks[h], each = 1024;
    for (uint32_t first = blockIdx.x * each; first < n; first += gridDim.x * each) {
        const uint32_t end = min(first + each, n);
        uint8_t *marks = mark + (size_t)h * blocks_max;
        for (uint32_t b = first + threadIdx.x; b < end; b += 256)
            marks[b] = 1;
        __syncthreads();
        for (uint32_t k = threadIdx.x; k < r.n_items[h]; k += 256) {
            const size_t item = (size_t)h * r.items_max + k;
            const uint32_t b = r.items[item];
            if (b >= first && b < end && r.frames_of[item] != NONE)
                marks[b] = 0;
        }
        __syncthreads();
    }
}

extern "C" int hri_cuda_mark(const struct hri_cuda_refined *refined, const uint32_t *n,
                             uint32_t blocks_max, uint8_t *mark, uint32_t n_heads, void *stream)
{
    if (n_heads == 0 || blocks_max == 0)
        return 0;
    return HRI_LAUNCH(mark_kernel, dim3(hri_div_up(blocks_max, 1024), n_heads), 256, 0, stream,
                      *refined, n, blocks_max, mark);
}
