/* Kernels that are right, and the same with one fault each: what the emulator must find. The faults
 * are marked; tests/emu/test_emulator.c knows their lines by the marks. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/device.cuh"
#include "tests/emu/faulty.h"

#define THREADS 64

/* Sums of 64 numbers, by shared memory and warp shuffles. */
static __global__ void sum_kernel(const float *x, float *out, uint32_t n, int fault)
{
    HRI_SHARED(float, part, THREADS);
    const uint32_t t = threadIdx.x;
    if (fault != FAULT_UNWRITTEN || t != 5)
        part[t] = t < n ? x[t] : 0.0f; /* mark: write */
    if (fault != FAULT_NO_BARRIER)
        __syncthreads();
    float sum = 0;
    if (t < 32) {
        sum = part[t] + part[t + 32]; /* mark: read */
        for (int bit = 16; bit > 0; bit /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    }
    if (t == 0)
        *out = sum; /* mark: store */
}

static __global__ void barrier_kernel(float *out, int fault)
{
    if (fault == FAULT_DIVERGENT && threadIdx.x >= 40) {
        __syncthreads(); /* mark: other barrier */
    } else if (fault == FAULT_EARLY_RETURN && threadIdx.x >= 40) {
        return;
    } else {
        __syncthreads(); /* mark: barrier */
    }
    if (fault == FAULT_SHUFFLE && threadIdx.x % 2)
        __syncwarp(); /* mark: lonely */
    else if (fault == FAULT_SHUFFLE)
        out[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0); /* mark: shuffle */
    out[threadIdx.x] = 1.0f;
}

static __global__ void bounds_kernel(const float *x, float *out, uint32_t n, int fault)
{
    HRI_SHARED(float, part, THREADS);
    const uint32_t t = threadIdx.x, over = t == THREADS - 1 ? 1 : 0;
    part[fault == FAULT_SHARED_BOUNDS ? t + over : t] = 0; /* mark: shared write */
    __syncthreads();
    const float y = x[fault == FAULT_READ_BOUNDS && over ? n : t]; /* mark: far read */
    const uint32_t to = fault == FAULT_WRITE_BOUNDS && over ? n + 3 : t;
    out[to] = y + part[t]; /* mark: far write */
    if (fault == FAULT_ALIGNMENT)
        out[t] = (float)hri_load_stream(x + 1).y; /* mark: misaligned */
}

/* Rows come through shared memory by asynchronous copies. */
static __global__ void async_kernel(const float *x, float *out, int fault)
{
    HRI_SHARED(float4, tile, THREADS);
    const uint32_t t = threadIdx.x;
    hri_copy_async16(tile + t, x + 4 * t, 16);
    hri_copy_commit();
    if (fault != FAULT_NO_WAIT)
        hri_copy_wait<0>();
    __syncthreads();
    const float4 y = tile[THREADS - 1 - t]; /* mark: tile read */
    out[t] = y.x + y.y + y.z + y.w;
    if (fault == FAULT_NO_WAIT)
        hri_copy_wait<0>();
}

/* A bulk copy into shared memory and one out of it. */
static __global__ void bulk_kernel(const float *x, float *out, int fault)
{
    HRI_SHARED(float4, tile, THREADS);
    HRI_SHARED(uint64_t, bar, 1);
    const uint32_t t = threadIdx.x, bytes = THREADS * 16;
    if (t == 0)
        hri_mbarrier_init(bar, 1);
    __syncthreads();
    if (t == 0) {
        hri_mbarrier_expect(bar, fault == FAULT_BULK_BYTES ? bytes + 16 : bytes);
        hri_bulk_load(tile, x, bytes, bar);
    }
    if (fault != FAULT_NO_WAIT)
        hri_mbarrier_wait(bar, 0);
    float4 y = tile[THREADS - 1 - t]; /* mark: bulk read */
    __syncthreads();
    tile[t] = make_float4(y.x + 1, y.y, y.z, y.w);
    hri_fence_async();
    __syncthreads();
    if (t == 0) {
        hri_bulk_store(out, tile, bytes);
        hri_bulk_commit();
        hri_bulk_wait<0>();
    }
}

/* Every block adds its part; the last one to arrive writes the sum. */
static __global__ void last_block_kernel(const float *x, float *parts, unsigned *arrived,
                                         float *out)
{
    HRI_SHARED(unsigned, last, 1);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = x[blockIdx.x];
        __threadfence();
        *last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!*last || threadIdx.x != 0)
        return;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++)
        sum += parts[i];
    *out = sum;
}

extern "C" int faulty_sum(const float *x, float *out, uint32_t n, int fault)
{
    return HRI_LAUNCH(sum_kernel, 1, THREADS, 0, nullptr, x, out, n, fault);
}
extern "C" int faulty_barrier(float *out, int fault)
{
    return HRI_LAUNCH(barrier_kernel, 1, THREADS, 0, nullptr, out, fault);
}
extern "C" int faulty_bounds(const float *x, float *out, uint32_t n, int fault)
{
    return HRI_LAUNCH(bounds_kernel, 1, THREADS, 0, nullptr, x, out, n, fault);
}
extern "C" int faulty_async(const float *x, float *out, int fault)
{
    return HRI_LAUNCH(async_kernel, 1, THREADS, 0, nullptr, x, out, fault);
}
extern "C" int faulty_bulk(const float *x, float *out, int fault)
{
    return HRI_LAUNCH(bulk_kernel, 1, THREADS, 0, nullptr, x, out, fault);
}
extern "C" int faulty_last_block(const float *x, float *parts, unsigned *arrived, float *out,
                                 uint32_t blocks)
{
    return HRI_LAUNCH(last_block_kernel, blocks, THREADS, 0, nullptr, x, parts, arrived, out);
}
extern "C" int faulty_launch(uint32_t threads, size_t shared_bytes)
{
    return HRI_LAUNCH(barrier_kernel, 1, threads, shared_bytes, nullptr, (float *)nullptr,
                      FAULT_NONE);
}

/* Products of small integers and of bfloat16 by the matrix units, one warp. */
static __global__ void mma_s8_kernel(const int8_t *a, const int8_t *b, int *c)
{
    const uint32_t lane = threadIdx.x, row = lane / 4, k = lane % 4 * 4;
    uint32_t x[4], y[2];
    int sum[4] = {0, 0, 0, 0};
    x[0] = *(const uint32_t *)(a + row * 32 + k);
    x[1] = *(const uint32_t *)(a + (row + 8) * 32 + k);
    x[2] = *(const uint32_t *)(a + row * 32 + k + 16);
    x[3] = *(const uint32_t *)(a + (row + 8) * 32 + k + 16);
    y[0] = *(const uint32_t *)(b + row * 32 + k); /* b by columns */
    y[1] = *(const uint32_t *)(b + row * 32 + k + 16);
    hri_mma_s8(sum, x, y);
    for (int i = 0; i < 4; i++)
        c[(row + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
static __global__ void mma_bf16_kernel(const uint16_t *a, const uint16_t *b, float *c, int f16)
{
    const uint32_t lane = threadIdx.x, row = lane / 4, k = lane % 4 * 2;
    uint32_t x[4], y[2];
    float sum[4] = {0, 0, 0, 0};
    x[0] = *(const uint32_t *)(a + row * 16 + k);
    x[1] = *(const uint32_t *)(a + (row + 8) * 16 + k);
    x[2] = *(const uint32_t *)(a + row * 16 + k + 8);
    x[3] = *(const uint32_t *)(a + (row + 8) * 16 + k + 8);
    y[0] = *(const uint32_t *)(b + row * 16 + k);
    y[1] = *(const uint32_t *)(b + row * 16 + k + 8);
    if (f16)
        hri_mma<HRI_F16>(sum, x, y);
    else
        hri_mma<HRI_BF16>(sum, x, y);
    for (int i = 0; i < 4; i++)
        c[(row + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
extern "C" int faulty_mma_s8(const int8_t *a, const int8_t *b, int *c)
{
    return HRI_LAUNCH(mma_s8_kernel, 1, 32, 0, nullptr, a, b, c);
}
extern "C" int faulty_mma_16(const uint16_t *a, const uint16_t *b, float *c, int f16)
{
    return HRI_LAUNCH(mma_bf16_kernel, 1, 32, 0, nullptr, a, b, c, f16);
}
