/* Queries made ready for a step: as two int8 terms, through each head's shape, in the bases of the
 * sketches.
 *
 * Bytes: a head's shape (about 5 KiB at d = 128) and bases (18 KiB each) from L2, once per query or
 * per 4 queries. The limit is the launch; the kernels run beside the attention over the window. */
#include "kernels/cuda/common.cuh"

#define THREADS  128u
#define RANK_MAX 64u

static __device__ __forceinline__ float block_max(float *part, float x)
{
    x = hri_warp_max(x);
    __syncthreads();
    if (hri_lane() == 0)
        part[hri_warp()] = x;
    __syncthreads();
    float most = part[0];
    for (uint32_t w = 1; w < THREADS / 32; w++)
        most = fmaxf(most, part[w]);
    return most;
}

/* q = step (128 high + low), as kernels/cpu/query_i8.h. */
static __device__ __forceinline__ void write_terms(const float *q, uint32_t dk, float largest,
                                                   int8_t *codes, float *step_out)
{
    const int most = 128 * 126;
    const uint32_t up = hri_cuda_dk_up(dk);
    const float step = largest < HRI_STEP_MIN ? 0.0f : largest / (float)most;
    const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
    for (uint32_t j = threadIdx.x; j < up; j += THREADS) {
        int value = j < dk ? __float2int_rn(q[j] * inverse) : 0;
        value = value > most ? most : value < -most ? -most : value;
        const int high = (value + 64) >> 7;
        codes[j] = (int8_t)high;
        codes[up + j] = (int8_t)(value - 128 * high);
    }
    if (threadIdx.x == 0)
        *step_out = step;
}

/* out[r] = scale[r] (q . m[r]), a warp per row. */
static __device__ __forceinline__ void rows_dot(const float *q, uint32_t dk, const int8_t *m,
                                                const float *scale, uint32_t rank, float *out)
{
    for (uint32_t r = hri_warp(); r < rank; r += THREADS / 32) {
        float sum = 0;
        for (uint32_t j = hri_lane() * 4; j < dk; j += 128) {
            const uint32_t word = *(const uint32_t *)(m + (size_t)r * dk + j);
            for (uint32_t t = 0; t < 4; t++)
                sum += q[j + t] * (float)(int8_t)(word >> (8 * t));
        }
        sum = hri_warp_sum(sum);
        if (hri_lane() == 0)
            out[r] = sum * scale[r];
    }
}

static __global__ void __launch_bounds__(THREADS)
    query_kernel(const float *queries, struct hri_cuda_heads heads, struct hri_cuda_shape shape,
                 struct hri_cuda_query_out out)
{
    HRI_SHARED(float, q, HR_HEAD_DIM_MAX);
    HRI_SHARED(float, part, THREADS / 32);
    HRI_SHARED(float, row, RANK_MAX);
    const uint32_t g = blockIdx.x, h = blockIdx.y, dk = heads.dk, t = threadIdx.x;
    const bool there = g < heads.g; /* the others fill the int8 terms up with 0 */
    const size_t at = (size_t)h * heads.g + g, at_up = (size_t)h * hri_cuda_g_up(heads.g) + g;
    float largest = 0, common = 0;
    for (uint32_t j = t; j < dk; j += THREADS) {
        q[j] = there ? queries[at * dk + j] : 0.0f;
        largest = fmaxf(largest, fabsf(q[j]));
        if (shape.k_mean)
            common += q[j] * shape.k_mean[(size_t)h * dk + j];
    }
    largest = block_max(part, largest);
    write_terms(q, dk, largest, out.i8.codes + at_up * 2 * hri_cuda_dk_up(dk), out.i8.step + at_up);
    if (!there)
        return;
    if (out.common) {
        common = hri_block_sum(part, common, THREADS / 32);
        if (t == 0)
            out.common[at] = common;
    }
    if (out.variance) {
        rows_dot(q, dk, shape.f + (size_t)h * shape.rank_c * dk,
                 shape.f_scale + (size_t)h * shape.rank_c, shape.rank_c, row);
        __syncthreads();
        const float sum =
            hri_block_sum(part, t < shape.rank_c ? row[t] * row[t] : 0.0f, THREADS / 32);
        if (t == 0)
            out.variance[at] = sum;
        __syncthreads();
    }
    if (out.shift) {
        rows_dot(q, dk, shape.w + (size_t)h * shape.rank_d * dk,
                 shape.w_scale + (size_t)h * shape.rank_d, shape.rank_d, row);
        __syncthreads();
        for (uint32_t j = t; j < heads.dv; j += THREADS) {
            float sum = 0;
            for (uint32_t r = 0; r < shape.rank_d; r++)
                sum += row[r] * shape.u_scale[(size_t)h * shape.rank_d + r] *
                       (float)shape.u[((size_t)h * shape.rank_d + r) * heads.dv + j];
            out.shift[at * heads.dv + j] = sum;
        }
    }
}

extern "C" int hri_cuda_query(const float *q, struct hri_cuda_heads heads,
                              const struct hri_cuda_shape *shape,
                              const struct hri_cuda_query_out *out, void *stream)
{
    if (heads.n == 0)
        return 0;
    return HRI_LAUNCH(query_kernel, dim3(hri_cuda_g_up(heads.g), heads.n), THREADS, 0, stream, q,
                      heads, *shape, *out);
}

/* ------------------------------------------------------------------------------- bases of sketches
 * A block of threads turns 4 queries of a head into one basis. Eight lanes share a row of the
 * basis, 16 bytes each; the queries lie in shared memory. */
#define CHUNK 4u /* queries */

struct turned {
    float q[CHUNK][HR_HEAD_DIM_MAX], x[CHUNK][HR_HEAD_DIM_MAX], missed[CHUNK][HR_HEAD_DIM_MAX];
};

static __device__ __forceinline__ void
turn_row(struct turned *s, const struct hri_cuda_basis *basis, uint32_t dk, uint32_t c)
{
    float sum[CHUNK] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint32_t j = hri_lane() % 8 * 16; c < dk && j < dk; j += 128) {
        const uint4 codes = *(const uint4 *)(basis->query + (size_t)c * dk + j);
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
        for (uint32_t i = 0; i < 16; i++) {
            const float code = (float)(int8_t)(words[i / 4] >> (i % 4 * 8));
            for (uint32_t g = 0; g < CHUNK; g++)
                sum[g] += code * s->q[g][j + i];
        }
    }
    for (uint32_t g = 0; g < CHUNK; g++)
        for (int bit = 4; bit > 0; bit >>= 1)
            sum[g] += __shfl_xor_sync(HRI_ALL_LANES, sum[g], bit);
    if (c >= dk || hri_lane() % 8 != 0)
        return;
    for (uint32_t g = 0; g < CHUNK; g++) {
        const float x = sum[g] * basis->query_scale[c];
        s->missed[g][c] = x * x * basis->missed[c];
        if (c < basis->n4 + basis->n2)
            s->x[g][c] = x * basis->step[c];
    }
}

/* A warp: x[0..n) as scale * out, |out| <= 127 (kernels/sketch.c). */
static __device__ __forceinline__ float quantise(const float *x, uint32_t n, int8_t *out,
                                                 int *sum_out)
{
    float largest = 0;
    for (uint32_t i = hri_lane(); i < n; i += 32)
        largest = fmaxf(largest, fabsf(x[i]));
    largest = hri_warp_max(largest);
    const bool good = largest >= HRI_STEP_MIN && largest <= HRI_LOGIT_MAX;
    const float inverse = good ? 127.0f / largest : 0.0f;
    unsigned sum = 0;
    for (uint32_t i = hri_lane(); i < n; i += 32) {
        const int value = good ? __float2int_rn(x[i] * inverse) : 0;
        out[i] = (int8_t)value;
        sum += (unsigned)value;
    }
    *sum_out = (int)__reduce_add_sync(HRI_ALL_LANES, sum);
    return good ? largest / 127.0f : 0.0f;
}

static __global__ void __launch_bounds__(THREADS)
    query_sketch_kernel(const float *queries, struct hri_cuda_heads heads,
                        const struct hri_cuda_basis *bases, uint32_t n_bases, const uint32_t *there,
                        struct hri_cuda_sketch_query *out, float *rest)
{
    HRI_SHARED(struct turned, s, 1);
    const uint32_t b = blockIdx.x, first = blockIdx.y * CHUNK, h = blockIdx.z, dk = heads.dk;
    if (there && b >= there[h])
        return;
    const struct hri_cuda_basis basis = bases[(size_t)h * n_bases + b];
    for (uint32_t i = threadIdx.x; i < CHUNK * dk; i += THREADS) {
        const uint32_t g = first + i / dk;
        s->q[i / dk][i % dk] =
            g < heads.g ? queries[((size_t)h * heads.g + g) * dk + i % dk] : 0.0f;
    }
    __syncthreads();
    for (uint32_t c = 0; c < dk; c += THREADS / 8)
        turn_row(s, &basis, dk, c + threadIdx.x / 8);
    __syncthreads();
    const uint32_t w = hri_warp(), g = first + w;
    if (g >= heads.g)
        return;
    struct hri_cuda_sketch_query *to = out + (size_t)h * n_bases + b;
    int sum4, sum2;
    const float scale4 = quantise(s->x[w], basis.n4, to->q4[g], &sum4);
    const float scale2 = quantise(s->x[w] + basis.n4, basis.n2, to->q2[g], &sum2);
    float missed = 0;
    for (uint32_t c = hri_lane(); c < dk; c += 32)
        missed += s->missed[w][c];
    missed = hri_warp_sum(missed);
    if (hri_lane() != 0)
        return;
    to->scale4[g] = scale4;
    to->scale2[g] = scale2;
    to->offset[g] = -7.5f * scale4 * (float)sum4 - 1.5f * scale2 * (float)sum2;
    rest[((size_t)h * n_bases + b) * heads.g + g] = missed;
}

extern "C" int hri_cuda_query_sketch(const float *q, struct hri_cuda_heads heads,
                                     const struct hri_cuda_basis *bases, uint32_t n_bases,
                                     const uint32_t *there, struct hri_cuda_sketch_query *queries,
                                     float *rest, void *stream)
{
    if (heads.n == 0 || n_bases == 0)
        return 0;
    return HRI_LAUNCH(query_sketch_kernel, dim3(n_bases, hri_div_up(heads.g, CHUNK), heads.n),
                      THREADS, 0, stream, q, heads, bases, n_bases, there, queries, rest);
}

static __global__ void __launch_bounds__(THREADS)
    scale_kernel(const float *q, const float *factor, uint32_t dk, float *out)
{
    const float scale = factor[blockIdx.x];
    for (uint32_t j = threadIdx.x; j < dk; j += THREADS)
        out[(size_t)blockIdx.x * dk + j] = scale * q[(size_t)blockIdx.x * dk + j];
}

extern "C" int hri_cuda_scale(const float *q, const float *factor, uint32_t n_q, uint32_t dk,
                              float *out, void *stream)
{
    if (n_q == 0)
        return 0;
    return HRI_LAUNCH(scale_kernel, n_q, THREADS, 0, stream, q, factor, dk, out);
}
