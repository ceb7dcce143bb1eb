/* Products of a few rows of activations: what a token's linear layers are.
 *
 * Bytes: every weight is read once, 16 bytes a lane, and nothing else weighs. A warp has 4 rows of a matrix, so that
 * 8 activations, which come from the first-level cache, serve 4 loads of weights; with more rows of activations the
 * weights stay in registers. Up to about 4 rows the limit is the memory's rate, from there on the 2 m instructions per weight
 * (at m = 16 about as long on an H100). Products with the same activations (q, k and v; gate and up) are one launch. Where they
 * have too few rows for the machine, the columns are split, and the last block to arrive adds the parts in order. */
#include "kernels/cuda/common.cuh"

#define THREADS      128u
#define WARPS        (THREADS / 32)
#define WARP_ROWS    4u /* of weights */
#define BLOCK_ROWS   (WARPS * WARP_ROWS)
#define STEP         256u /* columns that a warp reads at once */
#define SPLITS_MAX   16u
#define SPLIT_STEPS  2u /* the least of a part */
#define BLOCKS_OF_SM 8u

struct place { /* where rows of a block lie */
    uint32_t product, row;
};

/* Products follow one another in whole blocks of rows. */
static __device__ __forceinline__ struct place find_rows(const struct hri_cuda_linear_args &a,
                                                         uint32_t block)
{
    struct place p = {0, block * BLOCK_ROWS};
    for (; p.product + 1 < a.n_products; p.product++) {
        const uint32_t padded = hri_div_up(a.products[p.product].rows, BLOCK_ROWS) * BLOCK_ROWS;
        if (p.row < padded)
            break;
        p.row -= padded;
    }
    return p;
}

static __device__ __forceinline__ void unpack(const uint4 x, float w[8])
{
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
    HRI_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        w[2 * i] = __uint_as_float(words[i] << 16);
        w[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

/* sums[r][i] of the warp's rows r and activations i over columns [begin, end); whole in every lane. */
template <uint32_t M>
static __device__ __forceinline__ void dots(const struct hri_cuda_linear_args &a,
                                            const struct hri_cuda_product &p, uint32_t row,
                                            uint32_t begin, uint32_t end, float sums[WARP_ROWS][M])
{
    HRI_UNROLL
    for (uint32_t r = 0; r < WARP_ROWS; r++)
        HRI_UNROLL
    for (uint32_t i = 0; i < M; i++)
        sums[r][i] = 0;
    for (uint32_t j = begin + hri_lane() * 8; j < end; j += STEP) {
        float w[WARP_ROWS][8];
        HRI_UNROLL
        for (uint32_t r = 0; r < WARP_ROWS; r++) {
            /* A row that is not there is the last one again. */
            const uint32_t at = min(row + r, p.rows - 1);
            unpack(hri_load_stream(p.w + (size_t)at * a.cols + j), w[r]);
        }
        HRI_UNROLL
        for (uint32_t i = 0; i < M; i++) {
            const float4 *from = (const float4 *)(a.x + (size_t)min(i, a.m - 1) * a.cols + j);
            const float4 low = from[0], high = from[1];
            HRI_UNROLL
            for (uint32_t r = 0; r < WARP_ROWS; r++) {
                float s = sums[r][i];
                s = fmaf(w[r][0], low.x, s);
                s = fmaf(w[r][1], low.y, s);
                s = fmaf(w[r][2], low.z, s);
                s = fmaf(w[r][3], low.w, s);
                s = fmaf(w[r][4], high.x, s);
                s = fmaf(w[r][5], high.y, s);
                s = fmaf(w[r][6], high.z, s);
                sums[r][i] = fmaf(w[r][7], high.w, s);
            }
        }
    }
    HRI_UNROLL
    for (uint32_t r = 0; r < WARP_ROWS; r++)
        HRI_UNROLL
    for (uint32_t i = 0; i < M; i++)
        sums[r][i] = hri_warp_sum(sums[r][i]);
}

/* The parts of a block's rows, in the order of their columns. */
static __device__ void parts_add(const struct hri_cuda_linear_args &a,
                                 const struct hri_cuda_product &p, uint32_t row, uint32_t m,
                                 const float *parts)
{
    const size_t one = (size_t)m * BLOCK_ROWS;
    for (uint32_t i = threadIdx.x; i < a.m * BLOCK_ROWS; i += THREADS) {
        const uint32_t r = row + i % BLOCK_ROWS;
        if (r >= p.rows)
            continue;
        float y = p.bias ? p.bias[r] : 0.0f;
        for (uint32_t s = 0; s < gridDim.y; s++)
            y += parts[s * one + i];
        p.y[(size_t)(i / BLOCK_ROWS) * p.rows + r] = y;
    }
}

template <uint32_t M>
static __global__ void __launch_bounds__(THREADS)
    linear_kernel(struct hri_cuda_linear_args a, uint32_t split_cols)
{
    HRI_SHARED(uint32_t, last, 1);
    const struct place at = find_rows(a, blockIdx.x);
    const struct hri_cuda_product &p = a.products[at.product];
    const uint32_t first = hri_warp() * WARP_ROWS, row = at.row + first;
    const uint32_t begin = blockIdx.y * split_cols, end = min(begin + split_cols, a.cols);
    float sums[WARP_ROWS][M];
    dots<M>(a, p, row, begin, end, sums);
    float *parts = a.work + (size_t)blockIdx.x * gridDim.y * M * BLOCK_ROWS;
    HRI_UNROLL
    for (uint32_t r = 0; r < WARP_ROWS; r++)
        HRI_UNROLL
    for (uint32_t i = 0; i < M; i++) {
        if (hri_lane() != (r * M + i) % 32 || i >= a.m)
            continue;
        if (gridDim.y > 1)
            parts[((size_t)blockIdx.y * M + i) * BLOCK_ROWS + first + r] = sums[r][i];
        else if (row + r < p.rows)
            p.y[(size_t)i * p.rows + row + r] = (p.bias ? p.bias[row + r] : 0.0f) + sums[r][i];
    }
    if (gridDim.y == 1)
        return;
    if (!hri_last_to_arrive(a.arrived + blockIdx.x, gridDim.y, last))
        return;
    parts_add(a, p, at.row, M, parts);
}

/* As many as keep the machine busy, with SPLIT_STEPS steps of columns in each. */
static uint32_t splits_of(uint32_t blocks, uint32_t cols)
{
    const uint32_t steps = hri_div_up(cols, STEP);
    uint32_t n = hri_cuda_get_machine().sm_count * BLOCKS_OF_SM / blocks;
    n = n > SPLITS_MAX ? SPLITS_MAX : n;
    n = n > steps / SPLIT_STEPS ? steps / SPLIT_STEPS : n;
    return n < 1 ? 1 : n;
}

template <uint32_t M>
static int launch(const struct hri_cuda_linear_args *a, uint32_t blocks, void *stream)
{
    const uint32_t splits = splits_of(blocks, a->cols);
    const uint32_t split_cols = hri_div_up(hri_div_up(a->cols, STEP), splits) * STEP;
    return HRI_LAUNCH(linear_kernel<M>, dim3(blocks, hri_div_up(a->cols, split_cols)), THREADS, 0,
                      stream, *a, split_cols);
}

static uint32_t padded_m(uint32_t m)
{
    return m <= 1 ? 1 : m <= 2 ? 2 : m <= 4 ? 4 : m <= 8 ? 8 : 16;
}

/* Where columns are split there are no more parts than that. */
static size_t parts_most()
{
    return (size_t)hri_cuda_get_machine().sm_count * BLOCKS_OF_SM;
}

extern "C" size_t hri_cuda_linear_work(uint32_t m)
{
    return parts_most() * padded_m(m) * BLOCK_ROWS;
}

extern "C" size_t hri_cuda_linear_counters(void)
{
    return parts_most();
}

extern "C" int hri_cuda_linear(const struct hri_cuda_linear_args *linear, void *stream)
{
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < linear->n_products; i++)
        blocks += hri_div_up(linear->products[i].rows, BLOCK_ROWS);
    if (blocks == 0 || linear->m == 0)
        return 0;
    switch (padded_m(linear->m)) {
    case 1:
        return launch<1>(linear, blocks, stream);
    case 2:
        return launch<2>(linear, blocks, stream);
    case 4:
        return launch<4>(linear, blocks, stream);
    case 8:
        return launch<8>(linear, blocks, stream);
    default:
        return launch<16>(linear, blocks, stream);
    }
}
