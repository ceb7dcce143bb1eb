/* What refining parts of blocks would be worth by their rows' sketches, and what a step leaves.
 *
 * worth: a warp per block; rows are looked at one by one where the block weighs something, others share what their block
 * is worth. Then a thread block per head raises the parts with lone rows and sums the error. predict: a thread block per
 * query head. Bytes: 4 per query head and row that is looked at, 12 per block, 13 written per part. The limit is the launch
 * at 8K tokens; beyond, memory. Sums are made in a fixed order. */
#include "kernels/cuda/rows.cuh"

#define THREADS      256u
#define WARPS        (THREADS / 32)
#define HEAD_THREADS 512u
#define HEAD_WARPS   (HEAD_THREADS / 32)
#define NEGLIGIBLE                                                                                 \
    1e-3f /* so much do all blocks together weigh at most whose rows are not looked at */
#define KEY_MIN    1e-37f
#define LONE_REACH 1.4f /* as index/ladder.c */
#define LONE_TAIL  20.0f

/* Relative squared error that a row's sketch leaves: its weight for query head `head`, squared, times the factor. */
static __device__ __forceinline__ float row_error(const struct hri_cuda_rows &r, size_t head,
                                                  uint32_t lane, float factor)
{
    const float share = hri_exp(r.x[head * r.lanes + lane] - r.top[head]) / r.total[head];
    return factor * share * share;
}

/* Bin by the exponent. */
static __device__ __forceinline__ uint32_t bin_of(float worth)
{
    return worth > 0 ? __float_as_uint(worth) >> 23 : 0;
}

static __device__ void block_worth(const struct hri_cuda_rows &r,
                                   const struct hri_cuda_worth_rows_args &a,
                                   const struct hri_cuda_heads &heads, uint32_t h, uint32_t b,
                                   uint32_t *bins)
{
    const size_t at = hri_rows_block(r, h, b);
    const uint32_t n = r.rows[at], lane0 = r.first_lane[at];
    const struct hri_cuda_rows_least least = {NEGLIGIBLE, 1};
    const bool singly = hri_rows_weighty(r, heads, least, h, b);
    float whole = 0;
    for (uint32_t g = 0; !singly && g < heads.g; g++) {
        const size_t head = (size_t)h * heads.g + g;
        const float share = hri_rows_share(r, head, b);
        whole += hri_row_factor(r, heads, a.factor, a.size, h, b, g) * share * share *
                 r.focus[head * r.stride + b];
    }
    for (uint32_t p = 0; p < r.parts; p++) {
        const size_t item = at * r.parts + p;
        const uint32_t rows = hri_part_rows(r, n, p), cost = rows * a.row_bytes;
        float error = whole * (float)rows / (float)n;
        for (uint32_t i = hri_lane(); singly && i < hri_div_up(rows, 32) * 32; i += 32) {
            float row = 0;
            for (uint32_t g = 0; i < rows && g < heads.g; g++)
                row += row_error(r, (size_t)h * heads.g + g, lane0 + p * r.part_rows + i,
                                 hri_row_factor(r, heads, a.factor, a.size, h, b, g));
            error += hri_warp_sum(row);
        }
        if (hri_lane() != 0)
            continue;
        if (singly && rows > 0)
            atomicAdd(bins + bin_of(error / (float)rows), rows);
        a.key[item] = rows > 0 ? fmaxf(error / (float)cost, KEY_MIN) : 0.0f;
        a.error[item] = error;
        a.cost[item] = cost;
        a.class_[item] = a.frame_of && a.frame_of[item] != HRI_CUDA_NONE;
    }
}

static_assert(THREADS == HRI_CUDA_WORTH_BINS, "a thread has a bin");

static __global__ void __launch_bounds__(THREADS)
    worth_rows_kernel(struct hri_cuda_rows r, struct hri_cuda_worth_rows_args a,
                      struct hri_cuda_heads heads)
{
    HRI_SHARED(uint32_t, bins, HRI_CUDA_WORTH_BINS);
    const uint32_t h = blockIdx.y, n = r.n[h], t = threadIdx.x;
    bins[t] = 0;
    __syncthreads();
    for (uint32_t b = blockIdx.x * WARPS + hri_warp(); b < n; b += gridDim.x * WARPS)
        block_worth(r, a, heads, h, b, bins);
    __syncthreads();
    if (bins[t] > 0)
        atomicAdd(a.bins_work + h * HRI_CUDA_WORTH_BINS + t, bins[t]);
}

/* By what lone row i of block b promises more than its sketch says. */
static __device__ __forceinline__ float lone_lift(const struct hri_cuda_rows &r,
                                                  const struct hri_cuda_worth_rows_args &a,
                                                  const struct hri_cuda_heads &heads, uint32_t h,
                                                  size_t i, uint32_t b)
{
    const uint32_t basis = r.basis_of[hri_rows_block(r, h, b)];
    float plain = 0, lifted = 0;
    for (uint32_t g = 0; g < heads.g; g++) {
        const float rest = r.rest[((size_t)h * r.n_bases + basis) * heads.g + g];
        const float reach = LONE_REACH * sqrtf(hri_miss_of(a.lone.miss[i]) * rest);
        const float error = row_error(r, (size_t)h * heads.g + g, a.lone.lane[i],
                                      hri_row_factor(r, heads, a.factor, a.size, h, b, g));
        plain += error;
        lifted += error * hri_exp(2 * fminf(reach, LONE_TAIL));
    }
    return fmaxf(lifted - plain, 0.0f);
}

/* What all rows leave by being off in common, squared, summed over the group. */
static __device__ float drift_left(const struct hri_cuda_rows &r,
                                   const struct hri_cuda_worth_rows_args &a,
                                   const struct hri_cuda_heads &heads, uint32_t h, float *part)
{
    float left = 0;
    for (uint32_t g = 0; g < heads.g; g++) {
        const size_t head = (size_t)h * heads.g + g;
        float drift = 0;
        for (uint32_t b = threadIdx.x; b < r.n[h]; b += HEAD_THREADS)
            drift += hri_rows_share(r, head, b) * hri_row_drift(r, heads, h, b, g);
        drift = hri_block_sum(part, drift, HEAD_WARPS);
        left += drift * drift * a.common[head];
    }
    return left;
}

static __global__ void __launch_bounds__(HEAD_THREADS)
    lone_rows_kernel(struct hri_cuda_rows r, struct hri_cuda_worth_rows_args a,
                     struct hri_cuda_heads heads)
{
    HRI_SHARED(float, part, HEAD_WARPS);
    const uint32_t h = blockIdx.x, n_lone = a.lone.n[h], n = r.n[h] * r.parts;
    const uint32_t *item_of = a.lone.item + (size_t)h * a.lone.max;
    const size_t items = (size_t)h * r.blocks_max * r.parts;
    for (uint32_t i = threadIdx.x; i < n_lone; i += HEAD_THREADS) {
        const uint32_t item = item_of[i];
        if (i > 0 && item_of[i - 1] == item)
            continue; /* the first of a part does them all */
        float lift = 0;
        for (uint32_t k = i; k < n_lone && item_of[k] == item; k++)
            lift += lone_lift(r, a, heads, h, (size_t)h * a.lone.max + k, item / r.parts);
        a.key[items + item] += lift / (float)a.cost[items + item];
    }
    float left = 0;
    for (uint32_t i = threadIdx.x; i < n; i += HEAD_THREADS)
        left += a.error[items + i];
    left = hri_block_sum(part, left, HEAD_WARPS);
    if (a.common)
        left += drift_left(r, a, heads, h, part);
    if (threadIdx.x == 0)
        a.left[h] = left;
    for (uint32_t i = threadIdx.x; i < HRI_CUDA_WORTH_BINS; i += HEAD_THREADS) {
        a.bins[h * HRI_CUDA_WORTH_BINS + i] = a.bins_work[h * HRI_CUDA_WORTH_BINS + i];
        a.bins_work[h * HRI_CUDA_WORTH_BINS + i] = 0;
    }
}

extern "C" int hri_cuda_worth_rows(const struct hri_cuda_rows *rows,
                                   const struct hri_cuda_worth_rows_args *worth,
                                   struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0 || rows->blocks_max == 0)
        return 0;
    const uint32_t n = hri_splits(heads.n, 4, 256), most = hri_div_up(rows->blocks_max, WARPS);
    const int error = HRI_LAUNCH(worth_rows_kernel, dim3(n < most ? n : most, heads.n), THREADS, 0,
                                 stream, *rows, *worth, heads);
    if (error)
        return error;
    return HRI_LAUNCH(lone_rows_kernel, heads.n, HEAD_THREADS, 0, stream, *rows, *worth, heads);
}

/* ---------------------------------------------------------------------------------------- predict */

/* What the sketches of a part leave, for one query head. */
static __device__ float part_error(const struct hri_cuda_rows &r,
                                   const struct hri_cuda_predict_rows_args &a,
                                   const struct hri_cuda_heads &heads, uint32_t h, uint32_t g,
                                   uint32_t b, uint32_t p)
{
    const size_t at = hri_rows_block(r, h, b);
    const uint32_t rows = hri_part_rows(r, r.rows[at], p);
    const uint32_t lane = r.first_lane[at] + p * r.part_rows;
    const float factor = hri_row_factor(r, heads, a.factor, a.size, h, b, g);
    float sum = 0;
    for (uint32_t i = 0; i < rows; i++)
        sum += row_error(r, (size_t)h * heads.g + g, lane + i, factor);
    return sum;
}

static __global__ void __launch_bounds__(THREADS)
    predict_rows_kernel(struct hri_cuda_rows r, struct hri_cuda_predict_rows_args a,
                        struct hri_cuda_heads heads)
{
    HRI_SHARED(float, part, WARPS);
    HRI_SHARED(uint32_t, counts, HRI_CUDA_PREDICT_COUNTS);
    const uint32_t h = blockIdx.y, g = blockIdx.x, n = r.n[h], t = threadIdx.x;
    const size_t head = (size_t)h * heads.g + g, items = (size_t)h * r.blocks_max * r.parts;
    const float total = r.total[head];
    if (t < HRI_CUDA_PREDICT_COUNTS)
        counts[t] = 0;
    float left = 0, late = 0, drift = 0;
    for (uint32_t b = t; b < n; b += THREADS) {
        drift += hri_exp(a.left_mass[head * r.stride + b] - r.top[head]) / total *
                 hri_row_drift(r, heads, h, b, g);
        left += hri_row_factor(r, heads, a.factor, a.size, h, b, g) *
                (a.left_square[head * r.stride + b] / (total * total));
    }
    __syncthreads();
    for (uint32_t i = t; i < a.n_items[h]; i += THREADS) {
        const size_t at = (size_t)h * a.items_max + i;
        const uint32_t item = a.items[at], b = item / r.parts, p = item % r.parts;
        const bool came = a.frames_of[at] != HRI_CUDA_NONE;
        if (!came)
            late += part_error(r, a, heads, h, g, b, p);
        const uint32_t kind = !came ? 2 : a.class_[items + item] ? 1 : 0;
        atomicAdd(&counts[kind], 1u);
        atomicAdd(&counts[kind + 3], hri_part_rows(r, r.rows[hri_rows_block(r, h, b)], p));
    }
    left = hri_block_sum(part, left, WARPS);
    late = hri_block_sum(part, late, WARPS);
    drift = hri_block_sum(part, drift, WARPS);
    if (t == 0) {
        a.predicted[head] = sqrtf(left + drift * drift * a.common[head]);
        a.late[head] = sqrtf(late);
    }
    __syncthreads();
    if (g == 0 && t < HRI_CUDA_PREDICT_COUNTS) {
        const bool refined = t % 3 == 0; /* hits are among them */
        a.counts[h * HRI_CUDA_PREDICT_COUNTS + t] = counts[t] + (refined ? counts[t + 1] : 0);
    }
}

extern "C" int hri_cuda_predict_rows(const struct hri_cuda_rows *rows,
                                     const struct hri_cuda_predict_rows_args *predict,
                                     struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0)
        return 0;
    return HRI_LAUNCH(predict_rows_kernel, dim3(heads.g, heads.n), THREADS, 0, stream, *rows,
                      *predict, heads);
}
