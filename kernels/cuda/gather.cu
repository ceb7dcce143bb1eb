/* Blocks that no frame held, from mapped pinned host memory into their frames.
 *
 * The limit is the bus: 53 GB/s (PCIe 5) times 1.5 us of latency are 80 KB that must be on their way
 * at any time, and no more than a few SMs may be taken from the work beside it. From sm_90 on one
 * thread per block of threads keeps 8 bulk copies of 8 KiB under way into shared memory and bulk
 * copies them on into the frames; no register and no other thread is needed. Before, 512 threads
 * have 4 loads of 16 bytes each under way. Either way 4 thread blocks hold more than the 80 KB. */
#include "kernels/cuda/common.cuh"

#define BLOCKS       4u
#define STAGES       8u
#define STAGE_BYTES  8192u
#define BULK_SHARED  (STAGES * STAGE_BYTES)
#define BULK_THREADS 32u
#define LOAD_THREADS 512u
#define LOADS        4u

struct piece {
    const unsigned char *from;
    unsigned char *to;
    uint32_t bytes; /* 0: nothing there */
};

/* The first `first` bytes of a job are left out, and what is beyond `most` after that. */
static __device__ __forceinline__ struct piece piece_of(const struct hri_cuda_gather_args &a,
                                                        uint32_t job, uint32_t first, uint32_t most)
{
    const struct hri_cuda_job j = a.jobs[job];
    const size_t at = (size_t)j.head * a.blocks_max + j.block;
    const uint32_t bytes = a.bytes ? a.bytes[at] : a.frame_bytes;
    const uint32_t left = bytes > first ? bytes - first : 0;
    return {a.host + a.host_offset[at] + first, a.frames + (size_t)j.frame * a.frame_bytes + first,
            left < most ? left : most};
}

static __device__ __forceinline__ struct piece piece_number(const struct hri_cuda_gather_args &a,
                                                            uint32_t per_job, uint32_t i)
{
    return piece_of(a, i / per_job, i % per_job * STAGE_BYTES, STAGE_BYTES);
}

static __global__ void __launch_bounds__(BULK_THREADS)
    gather_bulk_kernel(struct hri_cuda_gather_args a)
{
    HRI_SHARED_DYNAMIC(stages);
    HRI_SHARED(uint64_t, bars, STAGES);
    if (threadIdx.x != 0)
        return;
    const uint32_t per_job = hri_div_up(a.frame_bytes, STAGE_BYTES);
    const uint32_t n = *a.n_jobs * per_job;
    /* This block's pieces: number blockIdx.x, and so on in steps of the grid. */
    const uint32_t mine = n > blockIdx.x ? hri_div_up(n - blockIdx.x, gridDim.x) : 0;
    for (uint32_t s = 0; s < STAGES; s++)
        hri_mbarrier_init(bars + s, 1);
    uint32_t issued = 0;
    for (uint32_t i = 0; i < mine; i++) {
        /* A stage is free again when the copy out of it has read it: all but the last have. */
        for (; issued < mine && issued < i + STAGES - 1; issued++) {
            const struct piece p = piece_number(a, per_job, blockIdx.x + issued * gridDim.x);
            uint64_t *bar = bars + issued % STAGES;
            hri_mbarrier_expect(bar, p.bytes);
            if (p.bytes)
                hri_bulk_load(stages + issued % STAGES * STAGE_BYTES, p.from, p.bytes, bar);
        }
        const struct piece p = piece_number(a, per_job, blockIdx.x + i * gridDim.x);
        hri_mbarrier_wait(bars + i % STAGES, i / STAGES & 1);
        if (p.bytes)
            hri_bulk_store(p.to, stages + i % STAGES * STAGE_BYTES, p.bytes);
        hri_bulk_commit();
        hri_bulk_wait_read<1>();
    }
    hri_bulk_wait<0>();
}

static __global__ void __launch_bounds__(LOAD_THREADS)
    gather_loads_kernel(struct hri_cuda_gather_args a)
{
    const uint32_t per_job = a.frame_bytes / 16, n = *a.n_jobs * per_job;
    const uint32_t tile = LOAD_THREADS * LOADS;
    for (uint32_t first = blockIdx.x * tile; first < n; first += gridDim.x * tile) {
        struct piece p[LOADS];
        uint4 x[LOADS];
        HRI_UNROLL
        for (uint32_t k = 0; k < LOADS; k++) {
            const uint32_t i = first + k * LOAD_THREADS + threadIdx.x;
            p[k].bytes = 0;
            if (i < n)
                p[k] = piece_of(a, i / per_job, i % per_job * 16, 16);
            if (p[k].bytes)
                x[k] = hri_load_stream(p[k].from);
        }
        HRI_UNROLL
        for (uint32_t k = 0; k < LOADS; k++)
            if (p[k].bytes)
                *(uint4 *)p[k].to = x[k];
    }
}

extern "C" int hri_cuda_gather(const struct hri_cuda_gather_args *gather, uint32_t n_blocks,
                               enum hri_cuda_path path, void *stream)
{
    const uint32_t blocks = n_blocks ? n_blocks : BLOCKS;
    const bool bulk = path == HRI_CUDA_PATH_BULK ||
                      (path == HRI_CUDA_PATH_AUTO && hri_cuda_get_machine().arch >= 90);
    if (!bulk)
        return HRI_LAUNCH(gather_loads_kernel, blocks, LOAD_THREADS, 0, stream, *gather);
    const int error = HRI_ALLOW_SHARED(gather_bulk_kernel, BULK_SHARED);
    if (error)
        return error;
    return HRI_LAUNCH(gather_bulk_kernel, blocks, BULK_THREADS, BULK_SHARED, stream, *gather);
}
