/* A grouped segment becomes blocks: summaries, and int8 rows as differences from them.
 *
 * One thread block per block of rows, two neighbouring dimensions per thread, so that a row is read
 * as one coalesced run. The rows are read three times (mean, largest difference, codes), the second
 * and third time from L1 or L2: 32 rows of 512 bytes are 16 KiB. Sums are double, as on the CPU, so
 * that codes are equal; there are two additions per row and thread, which even a GPU without double
 * units hides behind the loads. The limit is one read of the rows and the write of half as much. */
#include "kernels/cuda/common.cuh"

struct pair {
    float x, y;
};

static __device__ __forceinline__ struct pair pair_load(const void *row, hr_dtype_t dtype,
                                                        uint32_t j)
{
    if (dtype == HR_DTYPE_F32) {
        const float2 both = *(const float2 *)((const float *)row + j);
        return {both.x, both.y};
    }
    const uint32_t both = *(const uint32_t *)((const uint16_t *)row + j);
    const uint16_t low = (uint16_t)both, high = (uint16_t)(both >> 16);
    if (dtype == HR_DTYPE_F16)
        return {hri_f16_to_f32(low), hri_f16_to_f32(high)};
    return {hri_bf16_to_f32(low), hri_bf16_to_f32(high)};
}

/* Of all threads of one side (0: keys, 1: values): the largest x >= 0. `most` is [2] in shared
 * memory; positive floats are ordered like their bits. */
static __device__ __forceinline__ float side_max(unsigned *most, uint32_t side, float x)
{
    __syncthreads();
    if (threadIdx.x < 2)
        most[threadIdx.x] = 0;
    __syncthreads();
    atomicMax(&most[side], __float_as_uint(x));
    __syncthreads();
    return __uint_as_float(most[side]);
}

static __device__ __forceinline__ float step_of(float largest)
{
    return largest < HRI_STEP_MIN ? 0.0f : largest / 127.0f;
}

static __device__ __forceinline__ int code_of(float x, float inverse)
{
    return (int)fminf(fmaxf(rintf(__fmul_rn(x, inverse)), -127.0f), 127.0f);
}

static __global__ void __launch_bounds__(256)
    pack_kernel(struct hri_cuda_pack_args p, struct hri_cuda_heads heads)
{
    HRI_SHARED(unsigned, most, 2);
    const uint32_t h = blockIdx.y, b = p.first_block + blockIdx.x, width = heads.dk + heads.dv;
    const uint32_t j = threadIdx.x * 2, side = j < heads.dk ? 0 : 1;
    const uint32_t *begin = p.block_begin + (size_t)h * (p.n_blocks + 1) + blockIdx.x;
    const uint32_t first = begin[0], n = begin[1] - first;
    const uint32_t *order = p.order + (size_t)h * p.n + first;
    const size_t row_bytes = (size_t)width * hri_dtype_size(p.dtype);
    const unsigned char *rows = (const unsigned char *)p.rows + (size_t)h * p.n * row_bytes;

    double sum_x = 0, sum_y = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct pair at = pair_load(rows + order[i] * row_bytes, p.dtype, j);
        sum_x += (double)at.x;
        sum_y += (double)at.y;
    }
    struct pair centre = {n ? (float)(sum_x / n) : 0.0f, n ? (float)(sum_y / n) : 0.0f};
    struct pair mean = {0.0f, 0.0f};
    if (side == 0) {
        mean = {p.k_mean[(size_t)h * heads.dk + j], p.k_mean[(size_t)h * heads.dk + j + 1]};
        centre = {__fsub_rn(centre.x, mean.x), __fsub_rn(centre.y, mean.y)};
    }

    /* The summary, and the centre as it reads back. */
    float step = step_of(side_max(most, side, fmaxf(fabsf(centre.x), fabsf(centre.y))));
    float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    const int cx = code_of(centre.x, inverse), cy = code_of(centre.y, inverse);
    const size_t block = (size_t)h * p.blocks_max + b;
    if (side == 0) {
        uint8_t *lane = p.k_codes + ((size_t)h * p.blocks_max + b / 16 * 16) * heads.dk +
                        b % 16 * 4 + j / 4 * 64 + j % 4;
        lane[0] = (uint8_t)(cx + 128);
        lane[1] = (uint8_t)(cy + 128);
    } else {
        int8_t *codes = p.v_codes + block * heads.dv + (j - heads.dk);
        codes[0] = (int8_t)cx;
        codes[1] = (int8_t)cy;
    }
    if (j == 0)
        p.k_scale[block] = step;
    else if (j == heads.dk)
        p.v_scale[block] = step;
    centre = {__fadd_rn(__fmul_rn((float)cx, step), mean.x),
              __fadd_rn(__fmul_rn((float)cy, step), mean.y)};

    if (p.centres != NULL)
        *(float2 *)(p.centres + block * width + j) = make_float2(centre.x, centre.y);
    for (uint32_t i = threadIdx.x; p.block_of != NULL && i < n; i += blockDim.x)
        p.block_of[(size_t)h * p.n + first + i] = blockIdx.x;

    float largest = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        const struct pair at = pair_load(rows + order[i] * row_bytes, p.dtype, j);
        largest = fmaxf(largest,
                        fmaxf(fabsf(__fsub_rn(at.x, centre.x)), fabsf(__fsub_rn(at.y, centre.y))));
    }
    step = step_of(side_max(most, side, largest));
    inverse = step > 0.0f ? 1.0f / step : 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        const struct pair at = pair_load(rows + order[i] * row_bytes, p.dtype, j);
        const int x = code_of(__fsub_rn(at.x, centre.x), inverse);
        const int y = code_of(__fsub_rn(at.y, centre.y), inverse);
        *(uint16_t *)(p.codes + ((size_t)h * p.n + first + i) * width + j) =
            (uint16_t)((uint32_t)(x & 255) | (uint32_t)(y & 255) << 8);
    }
    if (j == 0) {
        p.k_step[block] = step;
        p.block_rows[block] = (uint8_t)n;
    } else if (j == heads.dk) {
        p.v_step[block] = step;
    }
}

extern "C" int hri_cuda_pack(const struct hri_cuda_pack_args *pack, struct hri_cuda_heads heads,
                             void *stream)
{
    if (pack->n_blocks == 0 || heads.n == 0)
        return 0;
    return HRI_LAUNCH(pack_kernel, dim3(pack->n_blocks, heads.n), (heads.dk + heads.dv) / 2, 0,
                      stream, *pack, heads);
}

/* ---------------------------------------------------------------------------------------- sketches
 * A thread makes one lane's word of one line: 8 or 16 coordinates. A warp has 16 rows of two lines,
 * so that it writes two whole lines and reads whole sectors. */
#define SKETCH_THREADS 128u

static __device__ __forceinline__ uint32_t sketch_code(float z, float inv_step, float middle,
                                                       float most)
{
    float x = fmaf(z, inv_step, middle);
    x = x > 0.0f ? x : 0.0f; /* a NaN becomes 0 */
    return (uint32_t)__float2int_rn(x < most ? x : most);
}

static __global__ void __launch_bounds__(SKETCH_THREADS)
    pack_sketch_kernel(struct hri_cuda_pack_sketch_args p)
{
    const uint32_t lines4 = p.n4 / 8, lines = lines4 + p.n2 / 16, h = blockIdx.y;
    const uint32_t first_group = p.first_row / 16, lane = threadIdx.x % 16;
    const uint32_t last_group = (p.first_row + p.n - 1) / 16;
    for (uint32_t i = (blockIdx.x * SKETCH_THREADS + threadIdx.x) / 16;
         i < (last_group - first_group + 1) * lines; i += gridDim.x * SKETCH_THREADS / 16) {
        const uint32_t group = first_group + i / lines, line = i % lines, row = group * 16 + lane;
        if (row < p.first_row || row >= p.first_row + p.n)
            continue;
        const bool wide = line < lines4;
        const uint32_t first = wide ? line * 8 : p.n4 + (line - lines4) * 16;
        const float *z = p.z + ((size_t)h * p.n + row - p.first_row) * p.z_stride + first;
        const float *inverse = p.inv_step + (size_t)h * (p.n4 + p.n2) + first;
        uint32_t word = 0;
        for (uint32_t t = 0; t < (wide ? 8u : 16u); t++) {
            const uint32_t code = wide ? sketch_code(z[t], inverse[t], 7.5f, 15.0f)
                                       : sketch_code(z[t], inverse[t], 1.5f, 3.0f);
            word |= code << (t % 4 * 8 + t / 4 * (wide ? 4 : 2));
        }
        *(uint32_t *)(p.codes + h * p.codes_stride + ((size_t)group * lines + line) * 64 +
                      lane * 4) = word;
    }
}

extern "C" int hri_cuda_pack_sketch(const struct hri_cuda_pack_sketch_args *pack, uint32_t n_heads,
                                    void *stream)
{
    const uint32_t lines = pack->n4 / 8 + pack->n2 / 16;
    if (pack->n == 0 || n_heads == 0 || lines == 0)
        return 0;
    const uint32_t groups = (pack->first_row + pack->n - 1) / 16 - pack->first_row / 16 + 1;
    return HRI_LAUNCH(pack_sketch_kernel,
                      dim3(hri_div_up(groups * lines * 16, SKETCH_THREADS), n_heads),
                      SKETCH_THREADS, 0, stream, *pack);
}
