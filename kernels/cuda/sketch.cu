/* Sketched rows, level 1: their scores, and the weighted sums of their codes.
 *
 * A line of 64 bytes holds 8 (4 bits) or 16 (2 bits) dimensions of 16 rows; a shift and a mask of it
 * are int8 operands of the matrix units. Scoring: a warp takes two groups of 16 rows, a quad of
 * lanes 4 neighbouring rows, a lane 16 bytes of every fourth line; columns are up to 8 query heads
 * (more read the codes again, from L1). Bytes per row: n4/2 + n2/4 read, 4 per query head written.
 * The limit is memory: at 2 bits and d = 128 a warp issues about 60 instructions for 1 KiB of codes
 * and 512 bytes of scores. */
#include "kernels/cuda/common.cuh"

#define THREADS 256u
#define WARPS   (THREADS / 32)
#define NONE    HRI_CUDA_NONE

struct score_sums {
    int low4[4], high4[4], low2[4], high2[4]; /* rows 0 and 1, rows 2 and 3 of the quad */
};

static __device__ __forceinline__ uint4 masked(uint4 x, uint32_t shift, uint32_t mask)
{
    return make_uint4(x.x >> shift & mask, x.y >> shift & mask, x.z >> shift & mask,
                      x.w >> shift & mask);
}

/* Two neighbouring runs of 4 dimensions. */
static __device__ __forceinline__ void multiply(int low[4], int high[4], uint4 k, uint4 k4,
                                                uint32_t q, uint32_t q4)
{
    const uint32_t first[4] = {k.x, k.y, k4.x, k4.y}, second[4] = {k.z, k.w, k4.z, k4.w};
    const uint32_t b[2] = {q, q4};
    hri_mma_s8(low, first, b);
    hri_mma_s8(high, second, b);
}

static __device__ __forceinline__ void score_group(const uint8_t *codes, bool there, uint32_t n4,
                                                   uint32_t n2, const int8_t *q4, const int8_t *q2,
                                                   struct score_sums *sums)
{
    const uint32_t col = hri_lane() % 4, lines4 = n4 / 8, lines2 = n2 / 16;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    HRI_UNROLL_4
    for (uint32_t s = 0; s < lines4; s += 4) {
        const bool in = s + col < lines4;
        const uint4 x = in && there ? *(const uint4 *)(codes + (s + col) * 64) : zero;
        const uint2 q = in ? *(const uint2 *)(q4 + (s + col) * 8) : make_uint2(0, 0);
        multiply(sums->low4, sums->high4, masked(x, 0, 0x0f0f0f0fu), masked(x, 4, 0x0f0f0f0fu), q.x,
                 q.y);
    }
    codes += (size_t)lines4 * 64;
    HRI_UNROLL_4
    for (uint32_t s = 0; s < lines2; s += 4) {
        const bool in = s + col < lines2;
        const uint4 x = in && there ? *(const uint4 *)(codes + (s + col) * 64) : zero;
        const uint4 q = in ? *(const uint4 *)(q2 + (s + col) * 16) : zero;
        multiply(sums->low2, sums->high2, masked(x, 0, 0x03030303u), masked(x, 2, 0x03030303u), q.x,
                 q.y);
        multiply(sums->low2, sums->high2, masked(x, 4, 0x03030303u), masked(x, 6, 0x03030303u), q.z,
                 q.w);
    }
}

static __global__ void __launch_bounds__(THREADS)
    score_sketch_kernel(struct hri_cuda_sketch_list list,
                        const struct hri_cuda_sketch_query *queries, struct hri_cuda_heads heads,
                        float *out, size_t stride)
{
    const uint32_t h = blockIdx.y, quad = hri_lane() / 4, col = hri_lane() % 4;
    const uint32_t n = list.n_pairs[h];
    for (uint32_t p = blockIdx.x * WARPS + hri_warp(); p < n; p += gridDim.x * WARPS) {
        const uint32_t b = list.pair_basis[(size_t)h * list.pairs_max + p];
        const uint32_t group = list.groups[((size_t)h * list.pairs_max + p) * 2 + quad / 4];
        const struct hri_cuda_basis *basis = list.bases + (size_t)h * list.n_bases + b;
        const struct hri_cuda_sketch_query *q = queries + (size_t)h * list.n_bases + b;
        const bool there = group != NONE;
        const uint8_t *codes = list.codes + h * list.codes_stride +
                               (there ? (size_t)group * list.lines * 64 : 0) + quad % 4 * 16;
        for (uint32_t first = 0; first < heads.g; first += 8) {
            struct score_sums s = {};
            score_group(codes, there, basis->n4, basis->n2, q->q4[first + quad],
                        q->q2[first + quad], &s);
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t g = first + col * 2 + i;
                if (!there || g >= heads.g)
                    continue;
                const float a = q->scale4[g], c = q->scale2[g], d = q->offset[g];
                const float4 x =
                    make_float4(fmaf(a, (float)s.low4[i], fmaf(c, (float)s.low2[i], d)),
                                fmaf(a, (float)s.low4[i + 2], fmaf(c, (float)s.low2[i + 2], d)),
                                fmaf(a, (float)s.high4[i], fmaf(c, (float)s.high2[i], d)),
                                fmaf(a, (float)s.high4[i + 2], fmaf(c, (float)s.high2[i + 2], d)));
                *(float4 *)(out + ((size_t)h * heads.g + g) * stride + (size_t)group * 16 +
                            quad % 4 * 4) = x;
            }
        }
    }
}

static uint32_t splits(uint32_t n_heads)
{
    return hri_splits(n_heads, 4, 256);
}

extern "C" int hri_cuda_score_sketch(const struct hri_cuda_sketch_list *list,
                                     const struct hri_cuda_sketch_query *queries,
                                     struct hri_cuda_heads heads, float *out, size_t stride,
                                     void *stream)
{
    const uint32_t most = hri_div_up(list->pairs_max, WARPS);
    uint32_t n = splits(heads.n);
    n = n < most ? n : most;
    if (n == 0 || heads.n == 0)
        return 0;
    return HRI_LAUNCH(score_sketch_kernel, dim3(n, heads.n), THREADS, 0, stream, *list, queries,
                      heads, out, stride);
}

/* -------------------------------------------------------------------------------------------- sums
 * sum over rows of w c: weights as A (rows of the product: 8 query heads, their bfloat16 parts above
 * and what those leave out below, together 16 bits), codes as B. A thread block has 8 lines of one
 * kind of one basis, a lane the same 16 bytes as above of one of them; bytes of two rows are put
 * side by side, and c | 0x4300 is 128 + c as bfloat16, from which 136 or 130 is taken. What lies
 * between that and 7.5 or 1.5 is half the sum of the weights. About 3 instructions make an operand
 * of 16 rows x 8 lines; codes and weights are read once: memory, again. Partial sums go to `work`
 * and the last block to arrive adds them in order. */
#define SUM_LINES  8u
#define SUM_WIDTH  (SUM_LINES * 16) /* dimensions of 8 lines, at most */
#define SUM_HEADS  8u
#define SUM_FLOATS (SUM_HEADS * SUM_WIDTH)

struct sum_place {
    uint32_t h, basis, first_line, n_lines, first_head;
    bool wide; /* 4 bits */
};

static __device__ __forceinline__ uint32_t bf16_pair(float x, float y)
{
    return (uint32_t)hri_f32_to_bf16(x) | (uint32_t)hri_f32_to_bf16(y) << 16;
}

/* Byte t of rows 2i and 2i + 1 as bfloat16, less the middle. */
template <bool WIDE>
static __device__ __forceinline__ uint32_t code_pair(uint32_t x, uint32_t y, uint32_t t,
                                                     uint32_t shift)
{
    const uint32_t bytes = __byte_perm(x, y, t | t << 4 | (4 + t) << 8 | (4 + t) << 12) >> shift;
    const uint32_t mask = WIDE ? 0x000f000fu : 0x00030003u;
    return hri_bf16x2_sub((bytes & mask) | 0x43004300u, WIDE ? 0x43084308u : 0x43024302u);
}

template <bool WIDE>
static __device__ void
sum_pairs(const struct hri_cuda_sketch_list &list, const struct hri_cuda_sketch_sum &a,
          const struct hri_cuda_heads &heads, const struct sum_place &at, float *shared)
{
    const uint32_t FIELDS = WIDE ? 2 : 4;
    const uint32_t quad = hri_lane() / 4, col = hri_lane() % 4, g = at.first_head + quad;
    float acc[FIELDS * 4][4], weight_sum = 0;
    for (uint32_t i = 0; i < FIELDS * 4; i++)
        acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.0f;
    const uint8_t *codes =
        list.codes + at.h * list.codes_stride + (size_t)(at.first_line + quad) * 64 + col * 16;
    const float *weights =
        a.w + ((size_t)at.h * heads.g + (g < heads.g ? g : 0)) * a.stride + col * 4;
    const uint32_t n = list.n_pairs[at.h];
    for (uint32_t i = blockIdx.x * WARPS + hri_warp(); i < 2 * n; i += gridDim.x * WARPS) {
        const uint32_t group = list.groups[(size_t)at.h * list.pairs_max * 2 + i];
        if (group == NONE || list.pair_basis[(size_t)at.h * list.pairs_max + i / 2] != at.basis)
            continue;
        float4 w = make_float4(0, 0, 0, 0);
        if (g < heads.g)
            w = *(const float4 *)(weights + (size_t)group * 16);
        if (!__any_sync(HRI_ALL_LANES, w.x != 0 || w.y != 0 || w.z != 0 || w.w != 0))
            continue;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (quad < at.n_lines)
            x = *(const uint4 *)(codes + (size_t)group * list.lines * 64);
        weight_sum += (w.x + w.y) + (w.z + w.w);
        const uint32_t weight[4] = {bf16_pair(w.x, w.y),
                                    bf16_pair(w.x - hri_bf16_to_f32(hri_f32_to_bf16(w.x)),
                                              w.y - hri_bf16_to_f32(hri_f32_to_bf16(w.y))),
                                    bf16_pair(w.z, w.w),
                                    bf16_pair(w.z - hri_bf16_to_f32(hri_f32_to_bf16(w.z)),
                                              w.w - hri_bf16_to_f32(hri_f32_to_bf16(w.w)))};
        HRI_UNROLL
        for (uint32_t j = 0; j < FIELDS * 4; j++) {
            const uint32_t shift = j / 4 * (WIDE ? 4 : 2);
            const uint32_t b[2] = {code_pair<WIDE>(x.x, x.y, j % 4, shift),
                                   code_pair<WIDE>(x.z, x.w, j % 4, shift)};
            hri_mma<HRI_BF16>(acc[j], weight, b);
        }
    }
    /* The quad's 4 lanes have different rows of the same head. */
    weight_sum = 0.5f * hri_quad_sum(weight_sum);
    for (uint32_t w = 0; w < WARPS; w++) { /* one warp after the other: always the same sum */
        __syncthreads();
        if (hri_warp() != w)
            continue;
        HRI_UNROLL
        for (uint32_t j = 0; j < FIELDS * 4; j++)
            for (uint32_t i = 0; i < 2; i++) {
                float *to = shared + quad * SUM_WIDTH + (col * 2 + i) * FIELDS * 4 + j;
                const float x = (acc[j][i] + acc[j][i + 2]) + weight_sum;
                *to = w == 0 ? x : *to + x;
            }
    }
    __syncthreads();
}

static __device__ __forceinline__ bool place_of(const struct hri_cuda_sketch_list &list,
                                                uint32_t chunks, struct sum_place *at)
{
    at->h = blockIdx.y;
    at->basis = blockIdx.z / chunks % list.n_bases;
    at->first_head = blockIdx.z / chunks / list.n_bases * SUM_HEADS;
    if (list.there && at->basis >= list.there[at->h])
        return false;
    const struct hri_cuda_basis *basis = list.bases + (size_t)at->h * list.n_bases + at->basis;
    const uint32_t lines4 = basis->n4 / 8, chunk = blockIdx.z % chunks;
    const uint32_t chunks4 = hri_div_up(lines4, SUM_LINES);
    at->wide = chunk < chunks4;
    const uint32_t end = at->wide ? lines4 : list.lines;
    at->first_line = at->wide ? chunk * SUM_LINES : lines4 + (chunk - chunks4) * SUM_LINES;
    at->n_lines = end > at->first_line ? min(end - at->first_line, SUM_LINES) : 0;
    return at->n_lines > 0;
}

static __global__ void __launch_bounds__(THREADS)
    sum_sketch_kernel(struct hri_cuda_sketch_list list, struct hri_cuda_sketch_sum a,
                      struct hri_cuda_heads heads, uint32_t chunks)
{
    HRI_SHARED(float, shared, SUM_FLOATS);
    HRI_SHARED(unsigned, last, 1);
    struct sum_place at;
    if (!place_of(list, chunks, &at))
        return; /* all blocks of this place do */
    if (at.wide)
        sum_pairs<true>(list, a, heads, at, shared);
    else
        sum_pairs<false>(list, a, heads, at, shared);
    const uint32_t per_line = at.wide ? 8 : 16;
    const size_t number = (size_t)blockIdx.y * gridDim.z + blockIdx.z;
    float *work = a.work + number * gridDim.x * SUM_FLOATS;
    for (uint32_t i = threadIdx.x; i < SUM_FLOATS; i += THREADS)
        if (i % SUM_WIDTH < SUM_LINES * per_line)
            work[(size_t)blockIdx.x * SUM_FLOATS + i] = shared[i];
    if (!hri_last_to_arrive(a.arrived + number, gridDim.x, last))
        return;
    const uint32_t n4 = list.bases[(size_t)at.h * list.n_bases + at.basis].n4;
    const uint32_t first = at.wide ? at.first_line * 8 : n4 + (at.first_line - n4 / 8) * 16;
    for (uint32_t i = threadIdx.x; i < SUM_FLOATS; i += THREADS) {
        const uint32_t g = at.first_head + i / SUM_WIDTH, j = i % SUM_WIDTH;
        if (g >= heads.g || j >= at.n_lines * per_line)
            continue;
        float sum = 0;
        for (uint32_t s = 0; s < gridDim.x; s++)
            sum += work[(size_t)s * SUM_FLOATS + i];
        a.sum[(((size_t)at.h * list.n_bases + at.basis) * heads.g + g) * HR_HEAD_DIM_MAX + first +
              j] = sum;
    }
}

static uint32_t chunks_most(uint32_t lines)
{
    return (lines + 2 * (SUM_LINES - 1)) / SUM_LINES;
}

static uint32_t places(struct hri_cuda_heads heads, uint32_t n_bases, uint32_t lines)
{
    return n_bases * chunks_most(lines) * hri_div_up(heads.g, SUM_HEADS);
}

extern "C" size_t hri_cuda_sum_sketch_counters(struct hri_cuda_heads heads, uint32_t n_bases,
                                               uint32_t lines)
{
    return (size_t)heads.n * places(heads, n_bases, lines);
}

/* Every place looks through the whole list for its basis: where there are many, few share one. */
static uint32_t sum_splits(uint32_t n_heads, uint32_t n_bases)
{
    return hri_splits(n_heads * (n_bases < 8 ? n_bases : 8), 2, 64);
}

extern "C" size_t hri_cuda_sum_sketch_work(struct hri_cuda_heads heads, uint32_t n_bases,
                                           uint32_t lines)
{
    return hri_cuda_sum_sketch_counters(heads, n_bases, lines) * sum_splits(heads.n, n_bases) *
           SUM_FLOATS;
}

extern "C" int hri_cuda_sum_sketch(const struct hri_cuda_sketch_list *list,
                                   const struct hri_cuda_sketch_sum *sum,
                                   struct hri_cuda_heads heads, void *stream)
{
    const uint32_t n = places(heads, list->n_bases, list->lines);
    if (heads.n == 0 || n == 0)
        return 0;
    return HRI_LAUNCH(sum_sketch_kernel, dim3(sum_splits(heads.n, list->n_bases), heads.n, n),
                      THREADS, 0, stream, *list, *sum, heads, chunks_most(list->lines));
}
