/* k-means of a segment's keys in the metric of the queries.
 *
 * Assignment: a thread block has one segment of one head. A warp keeps 32 keys (16 where dk > 128)
 * as A of the matrix units in registers, straight from memory, and all centres come past as B, both
 * terms of them, 8 at a time. Then every thread adds its two dimensions of the keys to the sums of
 * their centres: a float is only ever added to by one thread, in the order of the keys, so that the
 * result is always the same; the additions are sent off and not waited for.
 *
 * Bytes: a key once from memory (again from L1 for the sums), the centres from L1 once per 256 keys
 * (140 KiB for 273 centres at d = 128). Work per key and centre: 4 dk. The limit is L1, about twice
 * the time of the matrix units: for 8,192 keys and 273 centres some 0.2 ms per thread block by that
 * count; the segments and heads of a prompt fill the machine. */
#include "kernels/cuda/attend_tile.cuh"

#define THREADS 256u
#define WARPS   (THREADS / 32)

/* STEPS: dk in steps of 32, rounded up. */
template <uint32_t STEPS> struct group_shape {
    static const uint32_t TILES = STEPS <= 4 ? 2 : 1; /* of 16 keys, per warp */
    static const uint32_t KEYS = WARPS * TILES * 16;  /* of the thread block */
};

struct best {
    float score;
    uint32_t centre;
};

static __device__ __forceinline__ void better(struct best &b, float score, uint32_t centre)
{
    if (score > b.score || (score == b.score && centre < b.centre)) {
        b.score = score;
        b.centre = centre;
    }
}

/* Lane n, col: dimensions 32 s + 8 col .. + 7 of a key or centre; 0 beyond dk. */
static __device__ __forceinline__ uint4 piece(const unsigned char *row, uint32_t s, uint32_t dk)
{
    const uint32_t dim = 32 * s + 8 * (hri_lane() % 4);
    return dim < dk ? *(const uint4 *)(row + dim * 2) : make_uint4(0, 0, 0, 0);
}

template <hri_half_kind KIND, uint32_t STEPS>
static __device__ void assign(const unsigned char *keys, size_t row_bytes, uint32_t n,
                              const struct hri_cuda_centres &c, size_t segment, uint32_t dk,
                              uint32_t *nearest)
{
    const uint32_t TILES = group_shape<STEPS>::TILES, quad = hri_lane() / 4, col = hri_lane() % 4;
    uint4 x[TILES][2][STEPS];
    HRI_UNROLL
    for (uint32_t t = 0; t < TILES; t++)
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t key = (hri_warp() * TILES + t) * 16 + i * 8 + quad;
            HRI_UNROLL
            for (uint32_t s = 0; s < STEPS; s++)
                x[t][i][s] = piece(keys + (size_t)(key < n ? key : 0) * row_bytes, s, dk);
        }
    struct best found[TILES][2];
    for (uint32_t t = 0; t < TILES; t++)
        found[t][0] = found[t][1] = {HRI_NEGATIVE, 0xffffffffu};
    const float *bias = c.bias + segment * c.k;
    for (uint32_t first = 0; first < c.k; first += 8) {
        const uint32_t centre = first + quad < c.k ? first + quad : c.k - 1;
        const unsigned char *row =
            (const unsigned char *)(c.turned + (segment * c.k + centre) * 2 * dk);
        float sum[TILES][4] = {};
        HRI_UNROLL
        for (uint32_t s = 0; s < STEPS; s++)
            HRI_UNROLL
        for (uint32_t term = 0; term < 2; term++) {
            const uint4 y = piece(row + term * dk * 2, s, dk);
            const uint32_t b0[2] = {y.x, y.y}, b1[2] = {y.z, y.w};
            HRI_UNROLL
            for (uint32_t t = 0; t < TILES; t++) {
                const uint4 p = x[t][0][s], q = x[t][1][s];
                const uint32_t a0[4] = {p.x, q.x, p.y, q.y}, a1[4] = {p.z, q.z, p.w, q.w};
                hri_mma<KIND>(sum[t], a0, b0);
                hri_mma<KIND>(sum[t], a1, b1);
            }
        }
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t at = first + 2 * col + j;
            if (at >= c.k)
                continue;
            HRI_UNROLL
            for (uint32_t t = 0; t < TILES; t++) {
                better(found[t][0], sum[t][j] - bias[at], at);
                better(found[t][1], sum[t][j + 2] - bias[at], at);
            }
        }
    }
    HRI_UNROLL
    for (uint32_t t = 0; t < TILES; t++)
        for (uint32_t i = 0; i < 2; i++) {
            struct best b = found[t][i];
            for (int bit = 1; bit < 4; bit <<= 1) {
                const float score = __shfl_xor_sync(HRI_ALL_LANES, b.score, bit);
                const uint32_t other = __shfl_xor_sync(HRI_ALL_LANES, b.centre, bit);
                better(b, score, other);
            }
            if (col == 0) /* a key that is no number is nearest to none: the first */
                nearest[(hri_warp() * TILES + t) * 16 + i * 8 + quad] =
                    b.centre < c.k ? b.centre : 0;
        }
}

template <hri_half_kind KIND>
static __device__ __forceinline__ void add_keys(const unsigned char *keys, size_t row_bytes,
                                                uint32_t n, const uint32_t *nearest, float *sums,
                                                uint32_t dk)
{
    const uint32_t pairs = dk / 2, groups = THREADS / pairs, group = threadIdx.x / pairs;
    const uint32_t j = threadIdx.x % pairs * 2;
    if (group >= groups)
        return;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t centre = nearest[i];
        if (centre % groups != group)
            continue;
        const uint32_t both = *(const uint32_t *)(keys + i * row_bytes + j * 2);
        float *to = sums + (size_t)centre * dk + j;
        atomicAdd(to, hri_half_part<KIND>(both, 0));
        atomicAdd(to + 1, hri_half_part<KIND>(both, 1));
    }
}

template <hri_half_kind KIND, uint32_t STEPS>
static __global__ void __launch_bounds__(THREADS)
    assign_kernel(struct hri_cuda_points p, struct hri_cuda_centres c, struct hri_cuda_heads heads)
{
    HRI_SHARED(uint32_t, nearest, group_shape<STEPS>::KEYS);
    const uint32_t KEYS = group_shape<STEPS>::KEYS, h = blockIdx.y;
    const size_t segment = (size_t)h * c.n_segments + blockIdx.x;
    const size_t row_bytes = (size_t)(heads.dk + heads.dv) * 2;
    const unsigned char *rows = (const unsigned char *)p.rows + h * p.head_stride_bytes +
                                (size_t)blockIdx.x * p.n * row_bytes;
    for (uint32_t first = 0; first < p.n; first += KEYS) {
        const uint32_t n = min(p.n - first, KEYS);
        const unsigned char *keys = rows + first * row_bytes;
        assign<KIND, STEPS>(keys, row_bytes, n, c, segment, heads.dk, nearest);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            p.nearest[segment * p.n + first + i] = nearest[i];
            atomicAdd(c.counts + segment * c.k + nearest[i], 1u);
        }
        add_keys<KIND>(keys, row_bytes, n, nearest, c.sums + segment * c.k * heads.dk, heads.dk);
        __syncthreads();
    }
}

template <hri_half_kind KIND>
static int launch_assign(const struct hri_cuda_points *p, const struct hri_cuda_centres *c,
                         struct hri_cuda_heads heads, void *stream)
{
    const dim3 grid(c->n_segments, heads.n);
#define CASE_OF(steps)                                                                             \
    case steps:                                                                                    \
        return HRI_LAUNCH((assign_kernel<KIND, steps>), grid, THREADS, 0, stream, *p, *c, heads)
    switch (hri_div_up(heads.dk, 32)) {
        HRI_CASES_1_TO_8(CASE_OF);
    }
#undef CASE_OF
}

extern "C" int hri_cuda_group_assign(const struct hri_cuda_points *points,
                                     const struct hri_cuda_centres *centres,
                                     struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0 || centres->n_segments == 0 || points->n == 0 || centres->k == 0)
        return 0;
    return points->dtype == HR_DTYPE_F16 ? launch_assign<HRI_F16>(points, centres, heads, stream)
                                         : launch_assign<HRI_BF16>(points, centres, heads, stream);
}

/* ----------------------------------------------------------------------------------------- turning
 * A thread block has one segment: 8 centres at a time, a thread per dimension, S from L2 once per 8
 * centres. Turned twice, to find the largest number and then to write, which costs less than keeping
 * it. */
#define TURNED 8u

struct turn_shared {
    float centre[TURNED][HR_HEAD_DIM_MAX];
    float part[WARPS][TURNED];
    unsigned largest;
};

/* Dimension threadIdx.x of S times the 8 centres. */
static __device__ __forceinline__ void turn(const struct turn_shared *shared, const float *s,
                                            uint32_t dk, float t[TURNED])
{
    for (uint32_t i = 0; i < TURNED; i++)
        t[i] = 0;
    if (threadIdx.x >= dk)
        return;
    for (uint32_t b = 0; b < dk; b++) {
        const float x = s[(size_t)b * dk + threadIdx.x];
        for (uint32_t i = 0; i < TURNED; i++)
            t[i] += x * shared->centre[i][b];
    }
}

static __device__ __forceinline__ void load_centres(struct turn_shared *shared,
                                                    const float *centres, uint32_t n, uint32_t dk)
{
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < TURNED * dk; i += THREADS)
        shared->centre[i / dk][i % dk] = i / dk < n ? centres[i] : 0.0f;
    __syncthreads();
}

static __device__ void update_centres(const struct hri_cuda_centres &c, size_t segment, uint32_t dk,
                                      bool update)
{
    float *centres = c.centres + segment * c.k * dk, *sums = c.sums + segment * c.k * dk;
    uint32_t *counts = c.counts + segment * c.k;
    for (uint32_t i = threadIdx.x; i < c.k * dk; i += THREADS) {
        if (update && counts[i / dk] > 0)
            centres[i] = sums[i] / (float)counts[i / dk];
        sums[i] = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < c.k; i += THREADS)
        counts[i] = 0;
    __syncthreads();
}

template <hri_half_kind KIND>
static __device__ __forceinline__ void write_turned(const struct hri_cuda_centres &c, size_t centre,
                                                    uint32_t dk, float t)
{
    uint16_t *to = c.turned + centre * 2 * dk + threadIdx.x;
    const uint32_t first = hri_half_pair<KIND>(t, 0.0f);
    to[0] = (uint16_t)first;
    to[dk] = (uint16_t)hri_half_pair<KIND>(t - hri_half_part<KIND>(first, 0), 0.0f);
}

template <hri_half_kind KIND>
static __global__ void __launch_bounds__(THREADS)
    turn_kernel(struct hri_cuda_centres c, const float *metric, bool update, uint32_t dk)
{
    HRI_SHARED(struct turn_shared, shared, 1);
    const size_t segment = (size_t)blockIdx.y * c.n_segments + blockIdx.x;
    const float *s = metric + (size_t)blockIdx.y * dk * dk;
    const float *centres = c.centres + segment * c.k * dk;
    float t[TURNED], largest = 0;
    update_centres(c, segment, dk, update);
    if (threadIdx.x == 0)
        shared->largest = 0;
    for (uint32_t first = 0; first < c.k; first += TURNED) {
        load_centres(shared, centres + (size_t)first * dk, min(c.k - first, TURNED), dk);
        turn(shared, s, dk, t);
        for (uint32_t i = 0; i < TURNED; i++)
            largest = fmaxf(largest, fabsf(t[i]));
    }
    atomicMax(&shared->largest, __float_as_uint(largest));
    __syncthreads();
    largest = __uint_as_float(shared->largest);
    const float inverse = largest >= HRI_STEP_MIN ? 1.0f / largest : 0.0f;
    for (uint32_t first = 0; first < c.k; first += TURNED) {
        const uint32_t n = min(c.k - first, TURNED);
        load_centres(shared, centres + (size_t)first * dk, n, dk);
        turn(shared, s, dk, t);
        for (uint32_t i = 0; i < TURNED; i++) {
            const float x = t[i] * inverse;
            if (i < n && threadIdx.x < dk)
                write_turned<KIND>(c, segment * c.k + first + i, dk, x);
            const float product = threadIdx.x < dk ? x * shared->centre[i][threadIdx.x] : 0.0f;
            const float sum = hri_warp_sum(product);
            if (hri_lane() == 0)
                shared->part[hri_warp()][i] = sum;
        }
        __syncthreads();
        if (threadIdx.x < n) {
            float sum = 0;
            for (uint32_t w = 0; w < WARPS; w++)
                sum += shared->part[w][threadIdx.x];
            c.bias[segment * c.k + first + threadIdx.x] = 0.5f * sum;
        }
    }
}

extern "C" int hri_cuda_group_turn(const struct hri_cuda_centres *centres, const float *s,
                                   hr_dtype_t dtype, int update, struct hri_cuda_heads heads,
                                   void *stream)
{
    if (heads.n == 0 || centres->n_segments == 0 || centres->k == 0)
        return 0;
    const dim3 grid(centres->n_segments, heads.n);
    if (dtype == HR_DTYPE_F16)
        return HRI_LAUNCH((turn_kernel<HRI_F16>), grid, THREADS, 0, stream, *centres, s,
                          update != 0, heads.dk);
    return HRI_LAUNCH((turn_kernel<HRI_BF16>), grid, THREADS, 0, stream, *centres, s, update != 0,
                      heads.dk);
}
