/* What is left of a segment's rows around their blocks' centres: turned by a matrix, squared by blocks, their second moment, and what
 * sketches miss of it.
 *
 * Turning and moments are products of float32 with tiles of 64 x 64 numbers per thread block, 16 per thread, 16 columns (or rows) in
 * shared memory at a time; residuals are made when rows are loaded, so that they are never in memory. Each number is summed by one
 * thread in order. The float units are the limit: 8,192 rows of d = 128 are 0.13 G multiply-adds a turn and 0.34 G for the moment (ten
 * of sixteen tiles; the others are mirror images). Reads: a turn reads keys once per 64 columns of its output, the moment every row once
 * per tile row and tile column, from L2 where the segment fits. */
#include "kernels/cuda/attend_tile.cuh"

#define THREADS 256u
#define WARPS   (THREADS / 32)
#define TILE    64u
#define DEEP    16u

/* Four elements of a row less those of its block's centre; zeros beyond `width`. */
template <hri_half_kind KIND>
static __device__ __forceinline__ void residual4(const struct hri_cuda_residual_args &p, uint32_t h,
                                                 uint32_t row, uint32_t column, uint32_t width,
                                                 float out[4])
{
    HRI_UNROLL
    for (uint32_t i = 0; i < 4; i++)
        out[i] = 0;
    if (row >= p.n || column >= width)
        return;
    const size_t place = (size_t)h * p.n + row;
    const uint16_t *x =
        (const uint16_t *)p.rows + ((size_t)h * p.n + p.order[place]) * width + column;
    const float4 c =
        *(const float4 *)(p.centres + ((size_t)h * p.blocks_max + p.block_of[place]) * width +
                          column);
    const uint2 both = *(const uint2 *)x;
    out[0] = __fsub_rn(hri_half_part<KIND>(both.x, 0), c.x);
    out[1] = __fsub_rn(hri_half_part<KIND>(both.x, 1), c.y);
    out[2] = __fsub_rn(hri_half_part<KIND>(both.y, 0), c.z);
    out[3] = __fsub_rn(hri_half_part<KIND>(both.y, 1), c.w);
}

/* sum[i][j] += a[row + 16 i][c] b[column + 16 j][c] over DEEP c. */
static __device__ __forceinline__ void tile_add(const float (*a)[DEEP + 1],
                                                const float (*b)[DEEP + 1], float sum[4][4])
{
    const uint32_t row = threadIdx.x / 16, column = threadIdx.x % 16;
    HRI_UNROLL_4
    for (uint32_t c = 0; c < DEEP; c++) {
        float x[4], y[4];
        for (uint32_t i = 0; i < 4; i++) {
            x[i] = a[row + 16 * i][c];
            y[i] = b[column + 16 * i][c];
        }
        for (uint32_t i = 0; i < 4; i++)
            for (uint32_t j = 0; j < 4; j++)
                sum[i][j] += x[i] * y[j];
    }
}

/* ------------------------------------------------------------------------------------------ turned */
struct tile_shared {
    float a[TILE][DEEP + 1], b[TILE][DEEP + 1];
};

template <hri_half_kind KIND>
static __global__ void __launch_bounds__(THREADS)
    turn_kernel(struct hri_cuda_residual_args p, const float *matrix, float *z,
                struct hri_cuda_heads heads)
{
    HRI_SHARED(struct tile_shared, shared, 1);
    const uint32_t h = blockIdx.z, first = blockIdx.x * TILE, out = blockIdx.y * TILE, d = heads.dk;
    const uint32_t row = threadIdx.x / 4, part = threadIdx.x % 4 * 4;
    const float *m = matrix + (size_t)h * d * d;
    float sum[4][4] = {}, x[4];
    for (uint32_t column = 0; column < d; column += DEEP) {
        __syncthreads();
        residual4<KIND>(p, h, first + row, column + part, d + heads.dv, x);
        const float4 y = out + row < d
                             ? *(const float4 *)(m + (size_t)(out + row) * d + column + part)
                             : make_float4(0, 0, 0, 0);
        for (uint32_t i = 0; i < 4; i++)
            shared->a[row][part + i] = x[i];
        shared->b[row][part] = y.x;
        shared->b[row][part + 1] = y.y;
        shared->b[row][part + 2] = y.z;
        shared->b[row][part + 3] = y.w;
        __syncthreads();
        tile_add(shared->a, shared->b, sum);
    }
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t at = first + threadIdx.x / 16 + 16 * i,
                           o = out + threadIdx.x % 16 + 16 * j;
            if (at < p.n && o < d)
                z[((size_t)h * p.n + at) * d + o] = sum[i][j];
        }
}

extern "C" int hri_cuda_residual_turn(const struct hri_cuda_residual_args *residual,
                                      const float *matrix, float *z, struct hri_cuda_heads heads,
                                      void *stream)
{
    if (residual->n == 0 || heads.n == 0)
        return 0;
    const dim3 grid(hri_div_up(residual->n, TILE), hri_div_up(heads.dk, TILE), heads.n);
    if (residual->dtype == HR_DTYPE_F16)
        return HRI_LAUNCH((turn_kernel<HRI_F16>), grid, THREADS, 0, stream, *residual, matrix, z,
                          heads);
    return HRI_LAUNCH((turn_kernel<HRI_BF16>), grid, THREADS, 0, stream, *residual, matrix, z,
                      heads);
}

/* ----------------------------------------------------------------------------------------- squares
 * A thread block per block of rows, a warp per row. */
static __device__ __forceinline__ float row_square(const float *x, uint32_t d)
{
    float sum = 0;
    for (uint32_t j = hri_lane(); j < d; j += 32)
        sum += x[j] * x[j];
    return hri_warp_sum(sum);
}

static __global__ void __launch_bounds__(THREADS)
    squares_kernel(struct hri_cuda_residual_args p, const float *z, float *sum_out, float *most_out,
                   uint32_t d)
{
    HRI_SHARED(float, parts, WARPS * 2);
    const uint32_t h = blockIdx.y, b = blockIdx.x;
    const uint32_t *begin = p.block_begin + (size_t)h * (p.n_blocks + 1) + b;
    float sum = 0, most = 0;
    for (uint32_t row = begin[0] + hri_warp(); row < begin[1]; row += WARPS) {
        const float square = row_square(z + ((size_t)h * p.n + row) * d, d);
        sum += square;
        most = fmaxf(most, square);
    }
    if (hri_lane() == 0) {
        parts[hri_warp()] = sum;
        parts[WARPS + hri_warp()] = most;
    }
    __syncthreads();
    if (threadIdx.x > 0)
        return;
    for (uint32_t w = 1; w < WARPS; w++) {
        sum += parts[w];
        most = fmaxf(most, parts[WARPS + w]);
    }
    sum_out[(size_t)h * p.blocks_max + b] = sum;
    most_out[(size_t)h * p.blocks_max + b] = most;
}

extern "C" int hri_cuda_residual_squares(const struct hri_cuda_residual_args *residual,
                                         const float *z, float *sum, float *most,
                                         struct hri_cuda_heads heads, void *stream)
{
    if (residual->n_blocks == 0 || heads.n == 0)
        return 0;
    return HRI_LAUNCH(squares_kernel, dim3(residual->n_blocks, heads.n), THREADS, 0, stream,
                      *residual, z, sum, most, heads.dk);
}

/* ------------------------------------------------------------------------------------------ moment */
template <hri_half_kind KIND>
static __global__ void __launch_bounds__(THREADS)
    moment_kernel(struct hri_cuda_residual_args p, float *moment, uint32_t width)
{
    HRI_SHARED(struct tile_shared, shared, 1);
    const uint32_t h = blockIdx.z, left = blockIdx.x * TILE, top = blockIdx.y * TILE;
    const uint32_t row = threadIdx.x / 16, part = threadIdx.x % 16 * 4;
    float sum[4][4] = {}, x[4];
    if (left > top) /* that tile is this one's mirror image */
        return;
    for (uint32_t first = 0; first < p.n; first += DEEP) {
        __syncthreads();
        residual4<KIND>(p, h, first + row, top + part, width, x);
        for (uint32_t i = 0; i < 4; i++)
            shared->a[part + i][row] = x[i];
        residual4<KIND>(p, h, first + row, left + part, width, x);
        for (uint32_t i = 0; i < 4; i++)
            shared->b[part + i][row] = x[i];
        __syncthreads();
        tile_add(shared->a, shared->b, sum);
    }
    float *to = moment + (size_t)h * width * width;
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t a = top + threadIdx.x / 16 + 16 * i,
                           b = left + threadIdx.x % 16 + 16 * j;
            if (a < width && b < width) {
                to[(size_t)a * width + b] = sum[i][j];
                if (left < top)
                    to[(size_t)b * width + a] = sum[i][j];
            }
        }
}

extern "C" int hri_cuda_residual_moment(const struct hri_cuda_residual_args *residual,
                                        float *moment, struct hri_cuda_heads heads, void *stream)
{
    const uint32_t width = heads.dk + heads.dv, tiles = hri_div_up(width, TILE);
    if (heads.n == 0)
        return 0;
    if (residual->dtype == HR_DTYPE_F16)
        return HRI_LAUNCH((moment_kernel<HRI_F16>), dim3(tiles, tiles, heads.n), THREADS, 0, stream,
                          *residual, moment, width);
    return HRI_LAUNCH((moment_kernel<HRI_BF16>), dim3(tiles, tiles, heads.n), THREADS, 0, stream,
                      *residual, moment, width);
}

/* ------------------------------------------------------------------------------------------ missed
 * As index/sketch.c: a thread block per block of rows, first a thread per coordinate for the block's
 * gain, then a warp per row. Codes are read nowhere: a coordinate is rounded again. */
struct missed_shared {
    double whole[THREADS], square[THREADS], product[THREADS];
    float mean[HR_HEAD_DIM_MAX];
    float gain;
};

/* hri_sketch_round of one coordinate. */
static __device__ __forceinline__ float rounded(float z, float step, float most)
{
    const float middle = 0.5f * most;
    float code = step > 0 ? rintf(__fadd_rn(z / step, middle)) : middle;
    code = code < 0 ? 0 : code > most ? most : code;
    return __fmul_rn(__fsub_rn(code, middle), step);
}

static __device__ __forceinline__ float most_of(const struct hri_cuda_missed_args &p, uint32_t j)
{
    return j < p.n4 ? 15.0f : 3.0f;
}

/* What the rows' coded coordinates are to be taken by, in 1/128. */
static __device__ uint32_t gain_code(const struct hri_cuda_missed_args &p, uint32_t first,
                                     uint32_t end, struct missed_shared *s)
{
    const uint32_t j = threadIdx.x, n = end - first;
    double square = 0, product = 0, whole = 0;
    float sum = 0, z_sum = 0;
    if (j < p.n4 + p.n2) {
        const float step = p.step[j], most = most_of(p, j);
        for (uint32_t row = first; row < end; row++) {
            const float z = p.z[(size_t)row * p.dk + j], y = rounded(z, step, most);
            sum += y;
            z_sum += z;
            square += (double)y * (double)y;
            product += (double)y * (double)z;
        }
        whole = square;
        s->mean[j] = sum / (float)n;
        square -= (double)sum * (double)sum / n;
        product -= (double)sum * (double)z_sum / n;
    }
    s->whole[j] = whole;
    s->square[j] = square;
    s->product[j] = product;
    for (uint32_t half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (j < half) {
            s->whole[j] += s->whole[j + half];
            s->square[j] += s->square[j + half];
            s->product[j] += s->product[j + half];
        }
    }
    if (j == 0) {
        const double gain =
            s->square[0] > 1e-6 * s->whole[0] ? 128.0 * s->product[0] / s->square[0] : 0;
        s->gain = (float)(gain > 255 ? 255 : gain > 0 ? rint(gain) : 0);
    }
    __syncthreads();
    return (uint32_t)s->gain;
}

static __device__ __forceinline__ void row_missed(const struct hri_cuda_missed_args &p,
                                                  uint32_t row, const struct missed_shared *s)
{
    const float *z = p.z + (size_t)row * p.dk, gain = s->gain / 128.0f;
    float all = 0, missed = 0, plain = 0;
    for (uint32_t j = hri_lane(); j < p.dk; j += 32) {
        float x = z[j];
        all += x * x;
        if (j < p.n4 + p.n2)
            x -= gain * (rounded(x, p.step[j], most_of(p, j)) - s->mean[j]);
        missed += x * x;
        plain += x * x * p.length[j];
    }
    all = hri_warp_sum(all);
    missed = hri_warp_sum(missed);
    plain = hri_warp_sum(plain);
    if (hri_lane() == 0) {
        p.far[row] = all;
        p.missed[row] = missed;
        p.plain[row] = plain;
    }
}

template <hri_half_kind KIND>
static __device__ __forceinline__ void row_value(const struct hri_cuda_missed_args &p,
                                                 uint32_t block, uint32_t row)
{
    const uint32_t width = p.dk + p.dv;
    const uint16_t *v = (const uint16_t *)p.rows + (size_t)p.order[row] * width + p.dk;
    const float *centre = p.centres + (size_t)block * width + p.dk;
    float sum = 0;
    for (uint32_t j = hri_lane(); j < p.dv; j += 32) {
        const float x = hri_half_part<KIND>(v[j], 0) - centre[j];
        sum += x * x;
    }
    sum = hri_warp_sum(sum);
    if (hri_lane() == 0)
        p.value[row] = sum;
}

template <hri_half_kind KIND>
static __global__ void __launch_bounds__(THREADS) missed_kernel(struct hri_cuda_missed_args p)
{
    HRI_SHARED(struct missed_shared, shared, 1);
    const uint32_t b = blockIdx.x, first = p.block_begin[b], end = p.block_begin[b + 1];
    if (first == end)
        return;
    const uint32_t gain = gain_code(p, first, end, shared);
    if (threadIdx.x == 0)
        p.gain[b] = (uint8_t)gain;
    for (uint32_t row = first + hri_warp(); row < end; row += WARPS) {
        row_missed(p, row, shared);
        row_value<KIND>(p, b, row);
    }
}

extern "C" int hri_cuda_missed(const struct hri_cuda_missed_args *missed, void *stream)
{
    if (missed->n_blocks == 0)
        return 0;
    if (missed->dtype == HR_DTYPE_F16)
        return HRI_LAUNCH((missed_kernel<HRI_F16>), missed->n_blocks, THREADS, 0, stream, *missed);
    return HRI_LAUNCH((missed_kernel<HRI_BF16>), missed->n_blocks, THREADS, 0, stream, *missed);
}
