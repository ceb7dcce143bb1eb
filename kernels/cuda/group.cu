/* A segment's rows as points (index/points.h), and k-means of these.
 *
 * Points: 32 numbers of a row, sums over its keys' or its values' columns. A thread block has 128 rows; 16 columns of all of them and of the axes
 * lie in shared memory at a time. A warp has four axes, so that keys' columns cost nothing where its axes are values'. This is the one
 * read of K and V; all that follows reads points, 128 bytes a row, which stay in L2 (1 MiB per head for 8,192 rows).
 *
 * Assignment: a thread per point, its 32 numbers in registers, 32 centres at a time in shared memory. Differences are squared as they
 * are, as on the CPU: |c|^2 / 2 - x.c would lose what lies between points far from zero.
 *
 * Centres: a thread block per centre reads all assignments and adds its points, a warp a run of rows, a lane a dimension, runs in
 * order, so that sums do not depend on the order of threads. Reads: 4 bytes per row and centre from L2 (102 centres of 8,192 rows: 3.3 MiB).
 *
 * Work per row: 32 (dk + dv) / 2 for points, 64 per centre and assignment. 8,192 rows of d = 128 with 102 centres, three iterations
 * and two more assignments: 0.03 G + 0.13 G multiply-adds per head. By that count one head keeps an SM's float units busy for some 0.6 ms; 64 and more thread
 * blocks per head share it. */
#include "kernels/cuda/attend_tile.cuh"

#define THREADS 256u
#define WARPS   (THREADS / 32)
#define DIMS    HRI_CUDA_POINT_DIMS

/* ------------------------------------------------------------------------------------------ points */
#define ROWS    128u /* of a thread block */
#define COLUMNS 16u  /* at a time */

struct points_shared {
    float x[ROWS][COLUMNS + 1];
    float a[DIMS][COLUMNS];
};

template <hri_half_kind KIND>
static __device__ __forceinline__ void load_rows(struct points_shared *s, const unsigned char *rows,
                                                 size_t row_bytes, uint32_t n, uint32_t column)
{
    const uint32_t row = threadIdx.x / 2, half = threadIdx.x % 2 * 8;
    const uint4 p = row < n ? *(const uint4 *)(rows + row * row_bytes + (column + half) * 2)
                            : make_uint4(0, 0, 0, 0);
    const uint32_t words[4] = {p.x, p.y, p.z, p.w};
    HRI_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        s->x[row][half + 2 * i] = hri_half_part<KIND>(words[i], 0);
        s->x[row][half + 2 * i + 1] = hri_half_part<KIND>(words[i], 1);
    }
}

template <hri_half_kind KIND>
static __global__ void __launch_bounds__(THREADS)
    points_kernel(struct hri_cuda_points_args p, struct hri_cuda_heads heads)
{
    HRI_SHARED(struct points_shared, shared, 1);
    const uint32_t h = blockIdx.y, first = blockIdx.x * ROWS, n = min(p.n - first, ROWS);
    const uint32_t width = heads.dk + heads.dv, axis = hri_warp() * 4, lane = hri_lane();
    const uint32_t n_k = p.n_k[h];
    const size_t row_bytes = (size_t)width * 2;
    const unsigned char *rows =
        (const unsigned char *)p.rows + ((size_t)h * p.n + first) * row_bytes;
    const float *axes = p.axes + (size_t)h * DIMS * width;
    float sum[4][4] = {};
    for (uint32_t column = 0; column < width; column += COLUMNS) {
        const bool keys = column < heads.dk;
        __syncthreads();
        load_rows<KIND>(shared, rows, row_bytes, n, column);
        for (uint32_t i = threadIdx.x; i < DIMS * COLUMNS; i += THREADS)
            shared->a[i / COLUMNS][i % COLUMNS] =
                axes[(size_t)(i / COLUMNS) * width + column + i % COLUMNS];
        __syncthreads();
        if (keys ? axis >= n_k : axis + 4 <= n_k) /* the same for the whole warp */
            continue;
        HRI_UNROLL_4
        for (uint32_t c = 0; c < COLUMNS; c++) {
            float x[4], a[4];
            for (uint32_t i = 0; i < 4; i++) {
                x[i] = shared->x[lane + 32 * i][c];
                a[i] = shared->a[axis + i][c];
            }
            for (uint32_t i = 0; i < 4; i++)
                for (uint32_t j = 0; j < 4; j++)
                    sum[i][j] += x[i] * a[j];
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t row = lane + 32 * i;
        if (row < n)
            *(float4 *)(p.y + ((size_t)h * p.n + first + row) * DIMS + axis) =
                make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    }
}

extern "C" int hri_cuda_group_points(const struct hri_cuda_points_args *points,
                                     struct hri_cuda_heads heads, void *stream)
{
    if (points->n == 0 || heads.n == 0)
        return 0;
    const dim3 grid(hri_div_up(points->n, ROWS), heads.n);
    if (points->dtype == HR_DTYPE_F16)
        return HRI_LAUNCH((points_kernel<HRI_F16>), grid, THREADS, 0, stream, *points, heads);
    return HRI_LAUNCH((points_kernel<HRI_BF16>), grid, THREADS, 0, stream, *points, heads);
}

/* ---------------------------------------------------------------------------------------- clusters */
static __global__ void __launch_bounds__(THREADS) begin_kernel(struct hri_cuda_clusters c)
{
    const uint32_t h = blockIdx.y, i = blockIdx.x * THREADS + threadIdx.x, k = c.k[h];
    if (i >= k * DIMS)
        return;
    const uint32_t row = (uint32_t)((uint64_t)(i / DIMS) * c.n / k) + c.n / k / 2;
    c.centres[(size_t)h * c.k_max * DIMS + i] = c.y[((size_t)h * c.n + row) * DIMS + i % DIMS];
}

extern "C" int hri_cuda_group_begin(const struct hri_cuda_clusters *clusters, uint32_t n_heads,
                                    void *stream)
{
    if (clusters->n == 0 || clusters->k_max == 0 || n_heads == 0)
        return 0;
    const dim3 grid(hri_div_up(clusters->k_max * DIMS, THREADS), n_heads);
    return HRI_LAUNCH(begin_kernel, grid, THREADS, 0, stream, *clusters);
}

#define CENTRES 32u /* in shared memory at a time */

static __global__ void __launch_bounds__(THREADS) assign_kernel(struct hri_cuda_clusters c)
{
    HRI_SHARED(float, centre, CENTRES *DIMS);
    const uint32_t h = blockIdx.y, row = blockIdx.x * THREADS + threadIdx.x, k = c.k[h];
    const float *y = c.y + ((size_t)h * c.n + min(row, c.n - 1)) * DIMS;
    float x[DIMS], least = INFINITY;
    uint32_t nearest = 0; /* of a point that is no number: the first */
    HRI_UNROLL
    for (uint32_t j = 0; j < DIMS; j += 4) {
        const float4 part = *(const float4 *)(y + j);
        x[j] = part.x, x[j + 1] = part.y, x[j + 2] = part.z, x[j + 3] = part.w;
    }
    for (uint32_t first = 0; first < k; first += CENTRES) {
        const uint32_t n = min(k - first, CENTRES);
        const float *from = c.centres + ((size_t)h * c.k_max + first) * DIMS;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n * DIMS; i += THREADS)
            centre[i] = from[i];
        __syncthreads();
        for (uint32_t i = 0; i < n; i++) {
            float part[4] = {};
            HRI_UNROLL
            for (uint32_t j = 0; j < DIMS; j += 4) {
                const float4 at = *(const float4 *)(centre + i * DIMS + j);
                const float d[4] = {x[j] - at.x, x[j + 1] - at.y, x[j + 2] - at.z, x[j + 3] - at.w};
                for (uint32_t t = 0; t < 4; t++)
                    part[t] += d[t] * d[t];
            }
            const float distance = (part[0] + part[1]) + (part[2] + part[3]);
            if (distance < least) {
                least = distance;
                nearest = first + i;
            }
        }
    }
    if (row < c.n)
        c.nearest[(size_t)h * c.n + row] = nearest;
}

extern "C" int hri_cuda_group_assign(const struct hri_cuda_clusters *clusters, uint32_t n_heads,
                                     void *stream)
{
    if (clusters->n == 0 || clusters->k_max == 0 || n_heads == 0)
        return 0;
    const dim3 grid(hri_div_up(clusters->n, THREADS), n_heads);
    return HRI_LAUNCH(assign_kernel, grid, THREADS, 0, stream, *clusters);
}

struct move_shared {
    float sum[WARPS][DIMS];
    uint32_t count[WARPS];
};

static __global__ void __launch_bounds__(THREADS) move_kernel(struct hri_cuda_clusters c)
{
    HRI_SHARED(struct move_shared, shared, 1);
    const uint32_t h = blockIdx.y, centre = blockIdx.x, lane = hri_lane(), warp = hri_warp();
    const uint32_t *nearest = c.nearest + (size_t)h * c.n;
    const float *y = c.y + (size_t)h * c.n * DIMS;
    const uint32_t run = hri_div_up(hri_div_up(c.n, WARPS), 32) * 32,
                   end = min(c.n, (warp + 1) * run);
    float sum = 0;
    uint32_t count = 0;
    if (centre >= c.k[h])
        return;
    for (uint32_t first = warp * run; first < end; first += 32) {
        const uint32_t row = first + lane;
        uint32_t mine =
            __ballot_sync(HRI_ALL_LANES, row < end && nearest[min(row, end - 1)] == centre);
        count += __popc(mine);
        for (; mine != 0; mine &= mine - 1)
            sum += y[(size_t)(first + __ffs((int)mine) - 1) * DIMS + lane];
    }
    shared->sum[warp][lane] = sum;
    if (lane == 0)
        shared->count[warp] = count;
    __syncthreads();
    if (warp != 0)
        return;
    sum = 0;
    count = 0;
    for (uint32_t w = 0; w < WARPS; w++) {
        sum += shared->sum[w][lane];
        count += shared->count[w];
    }
    const size_t at = (size_t)h * c.k_max + centre;
    if (count > 0) /* else it stays where it is */
        c.centres[at * DIMS + lane] = sum * (1.0f / (float)count);
    if (lane == 0)
        c.counts[at] = count;
}

extern "C" int hri_cuda_group_move(const struct hri_cuda_clusters *clusters, uint32_t n_heads,
                                   void *stream)
{
    if (clusters->n == 0 || clusters->k_max == 0 || n_heads == 0)
        return 0;
    return HRI_LAUNCH(move_kernel, dim3(clusters->k_max, n_heads), THREADS, 0, stream, *clusters);
}
