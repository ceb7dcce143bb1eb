/* The scores of all summaries, level 0, and the softmax over them.
 *
 * The centroids' codes lie as kernels.h says, 4 dimensions of 16 blocks to a line of 64 bytes, which
 * is what the int8 matrix units want: a quad of lanes owns 4 neighbouring blocks, each lane loads
 * 16 bytes (4 blocks x 4 dimensions) of two lines per 32 dimensions, and a warp's loads are runs of
 * 256 bytes. The columns of a product are 4 query heads x 2 int8 terms of the query (query.cu), so
 * that lane l ends up with both terms of head l % 4 for its quad's 4 blocks: one 16-byte store of
 * scores. More than 4 heads use the loaded codes again.
 *
 * Bytes per block: dk read, 8 per query head written, 7 of steps, spread and rows. The limit is
 * memory: at d = 128 and 4 heads a warp issues about 40 instructions for 4 KiB, and 8 KiB per warp
 * are in flight. The softmax is merged by the last thread block of a head to arrive, in the order of
 * the blocks. */
#include "kernels/cuda/common.cuh"

#define THREADS     256u
#define WARPS       (THREADS / 32)
#define TILE        32u /* blocks a warp scores at a time */
#define CHUNKS      (HR_GROUP_MAX / 4)
#define PAD         16u /* bytes between queries in shared memory, so that lanes meet other banks */
#define HALF_MAX    3.0f
#define SPLITS_MOST 128u

struct running {
    float m[CHUNKS], l[CHUNKS]; /* of query heads 4 chunk + lane % 4 */
};

struct tile_facts { /* of the lane's 4 blocks */
    float scale[4], spread[4], log_rows[4];
};

static __device__ __forceinline__ struct tile_facts
load_facts(const struct hri_cuda_summaries &s, size_t at, uint32_t b, uint32_t n, bool masses)
{
    struct tile_facts f;
    const float4 scale = *(const float4 *)(s.k_scale + at);
    f.scale[0] = scale.x, f.scale[1] = scale.y, f.scale[2] = scale.z, f.scale[3] = scale.w;
    uint2 spread = make_uint2(0, 0);
    uint32_t rows = 0;
    if (masses) {
        if (s.spread)
            spread = *(const uint2 *)(s.spread + at);
        rows = *(const uint32_t *)(s.rows + at);
    }
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t r = b + i < n ? rows >> (8 * i) & 255 : 0;
        f.spread[i] = hri_bf16_to_f32((uint16_t)((i < 2 ? spread.x : spread.y) >> (16 * (i % 2))));
        f.log_rows[i] = r ? logf((float)r) : HRI_NEGATIVE;
    }
    return f;
}

static __device__ __forceinline__ float log_mass(float dot, float variance, float log_rows,
                                                 float soft_cap)
{
    if (soft_cap > 0.0f) { /* the cap bends the logits: their spread shrinks with its slope */
        const float bent = tanhf(dot / soft_cap), slope = 1.0f - bent * bent;
        dot = soft_cap * bent;
        variance *= slope * slope;
    }
    return dot + fminf(0.5f * variance, HALF_MAX) + log_rows;
}

/* The softmaxes of a warp's lanes for one head, from the 8 lanes that have it. */
static __device__ __forceinline__ void merge_lanes(float &m, float &l)
{
    for (int bit = 4; bit < 32; bit <<= 1) {
        const float m2 = __shfl_xor_sync(HRI_ALL_LANES, m, bit);
        const float l2 = __shfl_xor_sync(HRI_ALL_LANES, l, bit);
        hri_softmax_merge(m, l, m2, l2);
    }
}

/* STEPS: dk in steps of 32, rounded up. */
template <uint32_t STEPS>
static __device__ __forceinline__ void
score_tile(const struct hri_cuda_score_args &a, const struct hri_cuda_summaries &s,
           const struct hri_cuda_heads &heads, const int8_t *queries, uint32_t h, uint32_t n,
           uint32_t tile, struct running *run)
{
    const uint32_t lane = hri_lane(), quad = lane / 4, col = lane % 4;
    const uint32_t b = tile * TILE + quad * 4, lines = heads.dk / 4, up = hri_cuda_dk_up(heads.dk);
    const bool there = b / 16 * 16 < n; /* lines of 16 blocks are whole or absent */
    const size_t at = (size_t)h * s.blocks_max + b;
    uint4 x[STEPS], y[STEPS]; /* lines col and col + 4 of each step */
    const uint8_t *codes =
        s.k_codes + ((size_t)h * s.blocks_max + b / 16 * 16) * heads.dk + b % 16 * 4;
    HRI_UNROLL
    for (uint32_t k = 0; k < STEPS; k++) {
        x[k] = y[k] = make_uint4(0x80808080u, 0x80808080u, 0x80808080u, 0x80808080u);
        if (there)
            x[k] = hri_load_stream(codes + (8 * k + col) * 64);
        if (there && 8 * k + 4 < lines)
            y[k] = hri_load_stream(codes + (8 * k + 4 + col) * 64);
    }
    struct tile_facts facts = {};
    if (there)
        facts = load_facts(s, at, b, n, a.log_mass != NULL);
    HRI_UNROLL
    for (uint32_t k = 0; k < STEPS; k++) { /* 128 means 0 */
        x[k] = make_uint4(x[k].x ^ 0x80808080u, x[k].y ^ 0x80808080u, x[k].z ^ 0x80808080u,
                          x[k].w ^ 0x80808080u);
        y[k] = make_uint4(y[k].x ^ 0x80808080u, y[k].y ^ 0x80808080u, y[k].z ^ 0x80808080u,
                          y[k].w ^ 0x80808080u);
    }
    HRI_UNROLL
    for (uint32_t c = 0; c < CHUNKS; c++) {
        if (c * 4 >= heads.g)
            break;
        int low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0}; /* blocks 0 and 1, blocks 2 and 3 */
        const int8_t *q = queries + (c * 8 + quad) * (up + PAD) + col * 4;
        HRI_UNROLL
        for (uint32_t k = 0; k < STEPS; k++) {
            const uint32_t bq[2] = {*(const uint32_t *)(q + 32 * k),
                                    *(const uint32_t *)(q + 32 * k + 16)};
            const uint32_t first[4] = {x[k].x, x[k].y, y[k].x, y[k].y};
            const uint32_t second[4] = {x[k].z, x[k].w, y[k].z, y[k].w};
            hri_mma_s8(low, first, bq);
            hri_mma_s8(high, second, bq);
        }
        const uint32_t g = c * 4 + col;
        if (!there || g >= heads.g)
            continue;
        const size_t to = ((size_t)h * heads.g + g) * a.stride + b;
        const float step = a.q.step[(size_t)h * hri_cuda_g_up(heads.g) + g];
        const float common = a.common ? a.common[(size_t)h * heads.g + g] : 0.0f;
        float dot[4];
        for (uint32_t i = 0; i < 4; i++) {
            const int sum =
                i < 2 ? 128 * low[2 * i] + low[2 * i + 1] : 128 * high[2 * i - 4] + high[2 * i - 3];
            dot[i] = fmaf(step * facts.scale[i], (float)sum, common);
        }
        *(float4 *)(a.dots + to) = make_float4(dot[0], dot[1], dot[2], dot[3]);
        if (!a.log_mass)
            continue;
        const float variance = a.variance ? a.variance[(size_t)h * heads.g + g] : 0.0f;
        float most = run->m[c], sum = 0;
        for (uint32_t i = 0; i < 4; i++) {
            dot[i] = log_mass(dot[i], variance * facts.spread[i], facts.log_rows[i], a.soft_cap);
            most = fmaxf(most, dot[i]);
        }
        *(float4 *)(a.log_mass + to) = make_float4(dot[0], dot[1], dot[2], dot[3]);
        for (uint32_t i = 0; i < 4 && most > HRI_NEGATIVE; i++)
            sum += hri_exp(dot[i] - most);
        if (most > HRI_NEGATIVE)
            run->l[c] = run->l[c] * hri_exp(run->m[c] - most) + sum;
        run->m[c] = most;
    }
}

/* Softmaxes of the thread block's warps, one per query head, to its place in `work`; the last block
 * of the head merges them. */
static __device__ void finish(const struct hri_cuda_score_args &a,
                              const struct hri_cuda_heads &heads, uint32_t h, struct running *run)
{
    HRI_SHARED(float2, warps, WARPS * HR_GROUP_MAX);
    HRI_SHARED(unsigned, last, 1);
    const uint32_t up = hri_cuda_g_up(heads.g);
    HRI_UNROLL
    for (uint32_t c = 0; c < CHUNKS; c++) {
        merge_lanes(run->m[c], run->l[c]);
        if (hri_lane() < 4)
            warps[hri_warp() * HR_GROUP_MAX + c * 4 + hri_lane()] =
                make_float2(run->m[c], run->l[c]);
    }
    __syncthreads();
    float2 *work = (float2 *)a.work + (size_t)h * gridDim.x * up;
    if (threadIdx.x < heads.g) {
        float2 sum = warps[threadIdx.x];
        for (uint32_t w = 1; w < WARPS; w++) {
            const float2 other = warps[w * HR_GROUP_MAX + threadIdx.x];
            hri_softmax_merge(sum.x, sum.y, other.x, other.y);
        }
        work[blockIdx.x * up + threadIdx.x] = sum;
    }
    if (!hri_last_to_arrive(a.arrived + h, gridDim.x, last) || threadIdx.x >= heads.g)
        return;
    const size_t at = (size_t)h * heads.g + threadIdx.x;
    float m = HRI_NEGATIVE, l = 0;
    if (a.near_m && a.near_l[at] > 0.0f) {
        m = a.near_m[at];
        l = a.near_l[at];
    }
    for (uint32_t i = 0; i < gridDim.x; i++) {
        const float2 other = work[i * up + threadIdx.x];
        hri_softmax_merge(m, l, other.x, other.y);
    }
    a.top[at] = m;
    a.total[at] = l;
}

template <uint32_t STEPS>
static __global__ void __launch_bounds__(THREADS)
    score_kernel(struct hri_cuda_score_args a, struct hri_cuda_summaries s,
                 struct hri_cuda_heads heads)
{
    HRI_SHARED_DYNAMIC(shared); /* [g_up][2][dk_up + PAD] */
    int8_t *queries = (int8_t *)shared;
    const uint32_t h = blockIdx.y, n = s.n[h], up = hri_cuda_dk_up(heads.dk);
    const uint32_t terms = hri_cuda_g_up(heads.g) * 2;
    const int8_t *from = a.q.codes + (size_t)h * terms * up;
    for (uint32_t i = threadIdx.x * 16; i < terms * up; i += THREADS * 16)
        *(uint4 *)(queries + i / up * (up + PAD) + i % up) = *(const uint4 *)(from + i);
    __syncthreads();
    struct running run;
    for (uint32_t c = 0; c < CHUNKS; c++) {
        run.m[c] = HRI_NEGATIVE;
        run.l[c] = 0;
    }
    const uint32_t n_tiles = hri_div_up(n, TILE);
    for (uint32_t tile = blockIdx.x * WARPS + hri_warp(); tile < n_tiles; tile += gridDim.x * WARPS)
        score_tile<STEPS>(a, s, heads, queries, h, n, tile, &run);
    if (a.log_mass)
        finish(a, heads, h, &run);
}

static uint32_t splits(struct hri_cuda_heads heads)
{
    return hri_splits(heads.n, 2, SPLITS_MOST);
}

extern "C" size_t hri_cuda_score_work(struct hri_cuda_heads heads)
{
    return (size_t)heads.n * splits(heads) * hri_cuda_g_up(heads.g) * 2;
}

extern "C" int hri_cuda_score(const struct hri_cuda_score_args *score,
                              const struct hri_cuda_summaries *summaries,
                              struct hri_cuda_heads heads, void *stream)
{
    const uint32_t most = hri_div_up(summaries->blocks_max, TILE * WARPS);
    uint32_t n = splits(heads);
    n = n < most ? n : most;
    if (n == 0 || heads.n == 0)
        return 0;
    const dim3 grid(n, heads.n);
    const size_t shared = (size_t)hri_cuda_g_up(heads.g) * 2 * (hri_cuda_dk_up(heads.dk) + PAD);
#define CASE_OF(steps)                                                                             \
    case steps:                                                                                    \
        return HRI_LAUNCH((score_kernel<steps>), grid, THREADS, shared, stream, *score,            \
                          *summaries, heads)
    switch (hri_div_up(heads.dk, 32)) {
        HRI_CASES_1_TO_8(CASE_OF);
    }
#undef CASE_OF
}
