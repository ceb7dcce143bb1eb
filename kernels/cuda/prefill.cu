/* Exact causal attention of a prompt's queries over rows that are streamed past in chunks.
 *
 * A thread block has 64 query vectors (token, head) of one kv-head, a warp 16 of them; they stay in
 * shared memory. Rows come through shared memory, up to 64 at a time, in two halves of which one is
 * filled by asynchronous copies while the other is used. Fragments are loaded 16 bytes at a time as
 * in attend_tile.cuh; keys and values have row strides that let 8 lanes meet all banks. Queries and
 * weights are rounded to the rows' type, as it is usual: about 0.4 % of a bfloat16 logit's parts.
 *
 * Work: 4 d per row and query vector; the limit is the matrix units, reached through mma.sync, which
 * on an H100 gives about 60 % of what its own instructions would. Rows are read once per 64 vectors,
 * from L2 mostly. Blocks of late tokens have the most rows and are started first. */
#include "kernels/cuda/attend_tile.cuh"

#define THREADS     128u
#define WARPS       (THREADS / 32)
#define VECTORS     64u          /* of a thread block */
#define SHARED_MOST (99u * 1024) /* what sm_86, 89 and 120 have */

struct layout {
    uint32_t q_stride, k_stride, v_stride; /* bytes of a row in shared memory */
    uint32_t tile;                         /* rows */
};

static __host__ __device__ __forceinline__ uint32_t half_bytes(const struct layout &s)
{
    return s.tile * (s.k_stride + s.v_stride);
}
static __host__ __device__ __forceinline__ uint32_t shared_bytes(const struct layout &s)
{
    return VECTORS * s.q_stride + 2 * half_bytes(s);
}

/* The state of a warp's 16 vectors: the lane's are row lane / 4 and 8 further. */
template <uint32_t CHUNKS> struct warp_state {
    float m[2], l[2], o[CHUNKS * 8][4];
};

struct vector_place {
    bool there;
    uint32_t token, head; /* of the call; query head of all */
    uint32_t begin, end;  /* rows of the chunk it sees */
};

static __device__ __forceinline__ void rows_seen(const struct hri_cuda_prefill_args &a,
                                                 uint32_t token, uint32_t *begin, uint32_t *end)
{
    const uint32_t own = a.q_first + token + 1; /* tokens up to its own */
    const uint32_t from = a.window && own > a.window ? own - a.window : 0;
    *end = own > a.rows_first ? min(own - a.rows_first, a.n_rows) : 0;
    *begin = from > a.rows_first ? min(from - a.rows_first, a.n_rows) : 0;
}

static __device__ __forceinline__ struct vector_place
vector_at(const struct hri_cuda_prefill_args &a, const struct hri_cuda_heads &heads, uint32_t h,
          uint32_t v)
{
    struct vector_place p = {v < a.n_tokens * heads.g, v / heads.g, h * heads.g + v % heads.g, 0,
                             0};
    if (p.there)
        rows_seen(a, p.token, &p.begin, &p.end);
    return p;
}

template <hri_half_kind KIND>
static __device__ void load_queries(unsigned char *to, const struct layout &s,
                                    const struct hri_cuda_prefill_args &a,
                                    const struct hri_cuda_heads &heads, uint32_t h, uint32_t first)
{
    const uint32_t pairs = (s.q_stride - 64) / 4;
    for (uint32_t i = threadIdx.x; i < VECTORS * pairs; i += THREADS) {
        const uint32_t v = i / pairs, j = i % pairs * 2;
        const struct vector_place p = vector_at(a, heads, h, first + v);
        float x = 0, y = 0;
        if (p.there && j < heads.dk) {
            const size_t at = (size_t)(p.token * a.q_token_stride + p.head * a.q_head_stride) + j;
            x = hri_element(a.q, a.q_dtype, at) * a.scale;
            y = hri_element(a.q, a.q_dtype, at + 1) * a.scale;
        }
        *(uint32_t *)(to + v * s.q_stride + j * 2) = hri_half_pair<KIND>(x, y);
    }
}

/* Starts the copies of rows first.. into a half; rows that are not there become 0. */
static __device__ void load_rows(unsigned char *half, const struct layout &s,
                                 const struct hri_cuda_prefill_args &a,
                                 const struct hri_cuda_heads &heads, uint32_t h, uint32_t first)
{
    const uint32_t k_pieces = heads.dk / 8, pieces = (heads.dk + heads.dv) / 8;
    const unsigned char *rows = (const unsigned char *)a.rows + h * a.head_stride_bytes;
    unsigned char *values = half + s.tile * s.k_stride;
    for (uint32_t i = threadIdx.x; i < s.tile * pieces; i += THREADS) {
        const uint32_t r = i / pieces, j = i % pieces;
        unsigned char *to = j < k_pieces ? half + r * s.k_stride + j * 16
                                         : values + r * s.v_stride + (j - k_pieces) * 16;
        const bool there = first + r < a.n_rows;
        hri_copy_async16(to, rows + ((size_t)(there ? first + r : 0) * pieces + j) * 16,
                         there ? 16 : 0);
    }
}

template <uint32_t CHUNKS>
static __device__ __forceinline__ void
state_load(struct warp_state<CHUNKS> &w, const struct hri_cuda_prefill_args &a,
           const struct hri_cuda_heads &heads, const struct vector_place p[2])
{
    const uint32_t col = hri_lane() % 4, n_heads = heads.n * heads.g;
    HRI_UNROLL
    for (uint32_t r = 0; r < 2; r++) {
        const size_t at = (size_t)p[r].token * n_heads + p[r].head;
        const bool has = p[r].there && !a.first;
        w.m[r] = has ? a.m[at] : HRI_NEGATIVE;
        w.l[r] = has && col == 0 ? a.l[at] : 0.0f; /* lanes of a row add theirs up at the end */
        HRI_UNROLL
        for (uint32_t i = 0; i < CHUNKS * 8; i++) {
            const uint32_t dim = 64 * (i / 8) + 16 * col + i % 8;
            const bool in = has && dim < heads.dv;
            w.o[i][2 * r] = in ? a.o[at * heads.dv + dim] : 0.0f;
            w.o[i][2 * r + 1] = in ? a.o[at * heads.dv + dim + 8] : 0.0f;
        }
    }
}

static __device__ __forceinline__ void store_element(void *to, hr_dtype_t dtype, size_t i, float x)
{
    if (dtype == HR_DTYPE_F32)
        ((float *)to)[i] = x;
    else
        ((uint16_t *)to)[i] = dtype == HR_DTYPE_F16 ? hri_f32_to_f16(x) : hri_f32_to_bf16(x);
}

template <uint32_t CHUNKS>
static __device__ __forceinline__ void
state_store(struct warp_state<CHUNKS> &w, const struct hri_cuda_prefill_args &a,
            const struct hri_cuda_heads &heads, const struct vector_place p[2])
{
    const uint32_t col = hri_lane() % 4, n_heads = heads.n * heads.g;
    HRI_UNROLL
    for (uint32_t r = 0; r < 2; r++) {
        const float l = hri_quad_sum(w.l[r]), inverse = l > 0.0f ? 1.0f / l : 0.0f;
        const size_t at = (size_t)p[r].token * n_heads + p[r].head;
        if (!p[r].there)
            continue;
        if (col == 0 && !a.last) {
            a.m[at] = w.m[r];
            a.l[at] = l;
        }
        if (col == 0 && a.last && a.lse)
            a.lse[at] = l > 0.0f ? w.m[r] + logf(l) : HRI_NEGATIVE;
        const size_t out =
            (size_t)(p[r].token * a.out_token_stride + p[r].head * a.out_head_stride);
        HRI_UNROLL
        for (uint32_t i = 0; i < CHUNKS * 8; i++)
            for (uint32_t j = 0; j < 2; j++) {
                const uint32_t dim = 64 * (i / 8) + 16 * col + 8 * j + i % 8;
                const float x = w.o[i][2 * r + j];
                if (dim < heads.dv && a.last)
                    store_element(a.out, a.out_dtype, out + dim, x * inverse);
                else if (dim < heads.dv)
                    a.o[at * heads.dv + dim] = x;
            }
    }
}

/* Logits of 16 rows: x[r][..] of vector r (0 or 1) and the lane's rows 2 col, 2 col + 1, and 8
 * further. */
template <hri_half_kind KIND>
static __device__ __forceinline__ void scores(const unsigned char *queries, uint32_t q_stride,
                                              const unsigned char *keys, uint32_t k_stride,
                                              uint32_t dk, float x[2][4])
{
    const uint32_t n = hri_lane() / 4;
    const unsigned char *const rows[2] = {keys + n * k_stride, keys + (n + 8) * k_stride};
    float first[4], second[4];
    hri_keys_product<KIND>(queries, q_stride, rows, dk, first, second);
    for (uint32_t r = 0; r < 2; r++) {
        x[r][0] = first[2 * r];
        x[r][1] = first[2 * r + 1];
        x[r][2] = second[2 * r];
        x[r][3] = second[2 * r + 1];
    }
}

template <uint32_t CHUNKS>
static __device__ __forceinline__ void weigh(struct warp_state<CHUNKS> &w, float x[2][4])
{
    float keep[2];
    for (uint32_t r = 0; r < 2; r++) {
        float most = fmaxf(fmaxf(x[r][0], x[r][1]), fmaxf(x[r][2], x[r][3]));
        most = fmaxf(hri_quad_max(most), w.m[r]);
        keep[r] = most > w.m[r] ? hri_exp(w.m[r] - most) : 1.0f;
        w.m[r] = most;
        for (uint32_t i = 0; i < 4; i++)
            x[r][i] = x[r][i] > HRI_NEGATIVE ? hri_exp(x[r][i] - most) : 0.0f;
        w.l[r] = w.l[r] * keep[r] + ((x[r][0] + x[r][1]) + (x[r][2] + x[r][3]));
    }
    if (!__any_sync(HRI_ALL_LANES, keep[0] != 1.0f || keep[1] != 1.0f))
        return;
    HRI_UNROLL
    for (uint32_t i = 0; i < CHUNKS * 8; i++) {
        w.o[i][0] *= keep[0];
        w.o[i][1] *= keep[0];
        w.o[i][2] *= keep[1];
        w.o[i][3] *= keep[1];
    }
}

template <hri_half_kind KIND, uint32_t CHUNKS>
static __device__ __forceinline__ void add_values(struct warp_state<CHUNKS> &w, const float x[2][4],
                                                  const unsigned char *values, uint32_t v_stride,
                                                  uint32_t dv)
{
    const uint32_t n = hri_lane() / 4, col = hri_lane() % 4;
    const uint32_t a[4] = {
        hri_half_pair<KIND>(x[0][0], x[0][1]), hri_half_pair<KIND>(x[1][0], x[1][1]),
        hri_half_pair<KIND>(x[0][2], x[0][3]), hri_half_pair<KIND>(x[1][2], x[1][3])};
    HRI_UNROLL
    for (uint32_t c = 0; c < CHUNKS; c++) {
        const uint32_t dim = 64 * c + 8 * n;
        uint4 v[4];
        for (uint32_t r = 0; r < 4; r++)
            v[r] =
                dim < dv
                    ? *(const uint4 *)(values + (2 * col + r % 2 + r / 2 * 8) * v_stride + dim * 2)
                    : make_uint4(0, 0, 0, 0);
        hri_values_product<KIND>(w.o + c * 8, a, v);
    }
}

/* The 16 rows from `row` of the chunk on. */
template <hri_half_kind KIND, uint32_t CHUNKS>
static __device__ __forceinline__ void
attend_rows(struct warp_state<CHUNKS> &w, const struct vector_place p[2],
            const unsigned char *queries, const struct layout &s, const unsigned char *keys,
            const unsigned char *values, const struct hri_cuda_heads &heads, uint32_t row,
            float soft_cap)
{
    const uint32_t col = hri_lane() % 4;
    const bool seen =
        (p[0].begin < row + 16 && row < p[0].end) || (p[1].begin < row + 16 && row < p[1].end);
    if (!__any_sync(HRI_ALL_LANES, seen))
        return;
    float x[2][4];
    scores<KIND>(queries, s.q_stride, keys, s.k_stride, heads.dk, x);
    for (uint32_t r = 0; r < 2; r++)
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t at = row + 2 * col + i % 2 + i / 2 * 8;
            x[r][i] =
                p[r].begin <= at && at < p[r].end ? hri_capped(x[r][i], soft_cap) : HRI_NEGATIVE;
        }
    weigh(w, x);
    add_values<KIND>(w, x, values, s.v_stride, heads.dv);
}

template <hri_half_kind KIND, uint32_t CHUNKS>
static __global__ void __launch_bounds__(THREADS)
    prefill_kernel(struct hri_cuda_prefill_args a, struct hri_cuda_heads heads, struct layout s)
{
    HRI_SHARED_DYNAMIC(shared);
    const uint32_t h = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * VECTORS;
    unsigned char *halves = shared + VECTORS * s.q_stride;
    load_queries<KIND>(shared, s, a, heads, h, first);
    const unsigned char *queries = shared + hri_warp() * 16 * s.q_stride;
    const uint32_t v = first + hri_warp() * 16 + hri_lane() / 4;
    const struct vector_place p[2] = {vector_at(a, heads, h, v), vector_at(a, heads, h, v + 8)};
    struct warp_state<CHUNKS> w;
    state_load(w, a, heads, p);

    /* Rows that any vector of the block sees: from its first token's to its last one's. */
    const uint32_t last = min(first + VECTORS, a.n_tokens * heads.g) - 1;
    uint32_t begin, end, unused;
    rows_seen(a, first / heads.g, &begin, &unused);
    rows_seen(a, last / heads.g, &unused, &end);
    begin = begin / s.tile * s.tile;
    if (begin < end)
        load_rows(halves, s, a, heads, h, begin);
    hri_copy_commit();
    for (uint32_t row = begin, half = 0; row < end; row += s.tile, half ^= 1) {
        if (row + s.tile < end)
            load_rows(halves + (half ^ 1) * half_bytes(s), s, a, heads, h, row + s.tile);
        hri_copy_commit();
        hri_copy_wait<1>();
        __syncthreads();
        const unsigned char *keys = halves + half * half_bytes(s);
        const unsigned char *values = keys + s.tile * s.k_stride;
        for (uint32_t r = 0; r < s.tile; r += 16)
            attend_rows<KIND>(w, p, queries, s, keys + r * s.k_stride, values + r * s.v_stride,
                              heads, row + r, a.soft_cap);
        __syncthreads();
    }
    state_store(w, a, heads, p);
}

static uint32_t stride_of(uint32_t bytes, uint32_t rest)
{
    return ((bytes + 127) / 128 * 128) + rest;
}

template <hri_half_kind KIND, uint32_t CHUNKS>
static int launch_chunks(const struct hri_cuda_prefill_args *a, struct hri_cuda_heads heads,
                         struct layout s, void *stream)
{
    const dim3 grid(hri_div_up(a->n_tokens * heads.g, VECTORS), heads.n);
    const int error = HRI_ALLOW_SHARED((prefill_kernel<KIND, CHUNKS>), shared_bytes(s));
    if (error)
        return error;
    return HRI_LAUNCH((prefill_kernel<KIND, CHUNKS>), grid, THREADS, shared_bytes(s), stream, *a,
                      heads, s);
}

template <hri_half_kind KIND>
static int launch(const struct hri_cuda_prefill_args *a, struct hri_cuda_heads heads,
                  struct layout s, void *stream)
{
    switch (hri_div_up(heads.dv, 64)) {
    case 1:
        return launch_chunks<KIND, 1>(a, heads, s, stream);
    case 2:
        return launch_chunks<KIND, 2>(a, heads, s, stream);
    case 3:
        return launch_chunks<KIND, 3>(a, heads, s, stream);
    default:
        return launch_chunks<KIND, 4>(a, heads, s, stream);
    }
}

extern "C" int hri_cuda_prefill(const struct hri_cuda_prefill_args *prefill,
                                struct hri_cuda_heads heads, void *stream)
{
    if (heads.n == 0 || prefill->n_tokens == 0)
        return 0;
    /* Queries are padded with 0 to whole steps of 32 dimensions. */
    struct layout s = {stride_of(heads.dk * 2, 64), stride_of(heads.dk * 2, 64),
                       stride_of(heads.dv * 2, 16), 64};
    while (shared_bytes(s) > SHARED_MOST && s.tile > 16)
        s.tile /= 2;
    return prefill->dtype == HR_DTYPE_F16 ? launch<HRI_F16>(prefill, heads, s, stream)
                                          : launch<HRI_BF16>(prefill, heads, s, stream);
}
