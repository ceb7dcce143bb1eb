/* Products of many rows of activations, where no cuBLAS is found: tiles on the matrix units.
 *
 * A thread block makes 128 columns of the result (rows of the matrix) for 32, 64 or 128 rows of activations, a warp 32 of the
 * columns for half of the rows. Both operands come through shared memory in steps of 32 elements of k, 64 bytes a row, in three
 * stages that asynchronous copies fill while the tensor cores use another. A lane loads 16 bytes of a row, two steps' worth of
 * its fragment, and the 8 lanes of a phase meet all banks without padding: which element counts as which k is free as long as both
 * operands agree.
 *
 * Work: 2 per weight and activation row. At 128 x 128 a block reads 64 products' worth of 2 bytes per product from L2, which on an
 * H100 is about half of what mma.sync could use: cuBLAS, whose copies and products are another generation's, is to be
 * preferred there. */
#include "kernels/cuda/common.cuh"

#define THREADS   256u
#define WARPS_N   4u  /* warps side by side, */
#define WARP_COLS 32u /* each with so many columns of the result */
#define COLS      128u
#define K_STEP    32u
#define ROW_BYTES (K_STEP * 2)
#define STAGES    3u

/* TILES: 16-row tiles of a warp. */
template <uint32_t TILES> struct shape {
    static const uint32_t rows = 2 * TILES * 16; /* of activations in a block */
    static const uint32_t stage_bytes = (rows + COLS) * ROW_BYTES;
};

/* Starts the copies of elements k.. of the block's rows and columns; what is not there becomes 0. */
template <uint32_t TILES>
static __device__ __forceinline__ void load_stage(unsigned char *stage,
                                                  const struct hri_cuda_matmul_args &a,
                                                  uint32_t row, uint32_t col, uint32_t k)
{
    const uint32_t rows = shape<TILES>::rows;
    for (uint32_t i = threadIdx.x; i < (rows + COLS) * 4; i += THREADS) {
        const uint32_t r = i / 4, at = k + i % 4 * 8;
        const bool is_x = r < rows;
        const uint32_t line = is_x ? row + r : col + r - rows;
        const bool there = line < (is_x ? a.m : a.product.rows) && at < a.cols;
        const uint16_t *from = is_x ? a.x : a.product.w;
        hri_copy_async16(stage + i * 16, there ? from + (size_t)line * a.cols + at : from,
                         there ? 16 : 0);
    }
}

static __device__ __forceinline__ uint4 fragment(const unsigned char *rows, uint32_t r)
{
    return *(const uint4 *)(rows + (r + hri_lane() / 4) * ROW_BYTES + hri_lane() % 4 * 16);
}

/* c += the step's products of the warp's tiles. */
template <uint32_t TILES>
static __device__ __forceinline__ void multiply(const unsigned char *x, const unsigned char *w,
                                                float c[TILES][WARP_COLS / 8][4])
{
    uint4 b[WARP_COLS / 8];
    HRI_UNROLL
    for (uint32_t j = 0; j < WARP_COLS / 8; j++)
        b[j] = fragment(w, j * 8);
    HRI_UNROLL
    for (uint32_t i = 0; i < TILES; i++) {
        const uint4 low = fragment(x, i * 16), high = fragment(x, i * 16 + 8);
        const uint32_t first[4] = {low.x, high.x, low.y, high.y};
        const uint32_t second[4] = {low.z, high.z, low.w, high.w};
        HRI_UNROLL
        for (uint32_t j = 0; j < WARP_COLS / 8; j++) {
            const uint32_t b0[2] = {b[j].x, b[j].y}, b1[2] = {b[j].z, b[j].w};
            hri_mma<HRI_BF16>(c[i][j], first, b0);
            hri_mma<HRI_BF16>(c[i][j], second, b1);
        }
    }
}

template <uint32_t TILES>
static __device__ __forceinline__ void store(const struct hri_cuda_product &p, uint32_t m,
                                             uint32_t row, uint32_t col,
                                             const float c[TILES][WARP_COLS / 8][4])
{
    HRI_UNROLL
    for (uint32_t i = 0; i < TILES; i++)
        HRI_UNROLL
    for (uint32_t j = 0; j < WARP_COLS / 8; j++)
        HRI_UNROLL
    for (uint32_t e = 0; e < 4; e++) {
        const uint32_t r = row + i * 16 + hri_lane() / 4 + e / 2 * 8;
        const uint32_t at = col + j * 8 + hri_lane() % 4 * 2 + e % 2;
        if (r < m && at < p.rows)
            p.y[(size_t)r * p.rows + at] = c[i][j][e] + (p.bias ? p.bias[at] : 0.0f);
    }
}

template <uint32_t TILES>
static __global__ void __launch_bounds__(THREADS) matmul_kernel(struct hri_cuda_matmul_args a)
{
    HRI_SHARED_DYNAMIC(shared);
    const uint32_t rows = shape<TILES>::rows, bytes = shape<TILES>::stage_bytes;
    const uint32_t row = blockIdx.y * rows, col = blockIdx.x * COLS;
    const uint32_t my_row = hri_warp() / WARPS_N * TILES * 16;
    const uint32_t my_col = hri_warp() % WARPS_N * WARP_COLS;
    const uint32_t steps = hri_div_up(a.cols, K_STEP);
    float c[TILES][WARP_COLS / 8][4];
    HRI_UNROLL
    for (uint32_t i = 0; i < TILES; i++)
        HRI_UNROLL
    for (uint32_t j = 0; j < WARP_COLS / 8; j++)
        c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0.0f;
    for (uint32_t s = 0; s < STAGES - 1; s++) {
        if (s < steps)
            load_stage<TILES>(shared + s * bytes, a, row, col, s * K_STEP);
        hri_copy_commit();
    }
    for (uint32_t s = 0; s < steps; s++) {
        hri_copy_wait<STAGES - 2>();
        __syncthreads(); /* the stage is filled, and the one before it is no longer read */
        const uint32_t next = s + STAGES - 1;
        if (next < steps)
            load_stage<TILES>(shared + next % STAGES * bytes, a, row, col, next * K_STEP);
        hri_copy_commit();
        const unsigned char *stage = shared + s % STAGES * bytes;
        multiply<TILES>(stage + my_row * ROW_BYTES, stage + (rows + my_col) * ROW_BYTES, c);
    }
    store<TILES>(a.product, a.m, row + my_row, col + my_col, c);
}

template <uint32_t TILES> static int launch(const struct hri_cuda_matmul_args *a, void *stream)
{
    const dim3 grid(hri_div_up(a->product.rows, COLS), hri_div_up(a->m, shape<TILES>::rows));
    const uint32_t bytes = STAGES * shape<TILES>::stage_bytes;
    const int error = HRI_ALLOW_SHARED(matmul_kernel<TILES>, bytes);
    if (error)
        return error;
    return HRI_LAUNCH(matmul_kernel<TILES>, grid, THREADS, bytes, stream, *a);
}

/* Tiles as large as still give every SM one. */
extern "C" int hri_cuda_matmul(const struct hri_cuda_matmul_args *matmul, void *stream)
{
    const uint32_t sms = hri_cuda_get_machine().sm_count;
    const uint32_t across = hri_div_up(matmul->product.rows, COLS);
    if (matmul->m == 0 || across == 0)
        return 0;
    if (matmul->m > 64 && across * hri_div_up(matmul->m, 128) >= sms)
        return launch<4>(matmul, stream);
    if (matmul->m > 32 && across * hri_div_up(matmul->m, 64) >= sms)
        return launch<2>(matmul, stream);
    return launch<1>(matmul, stream);
}
