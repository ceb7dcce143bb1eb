/* What is machine code on a GPU: matrix products, asynchronous and bulk copies, byte permutes on
 * pairs of 16-bit floats. Each has a plain version for the emulator, so that a kernel is written
 * once.
 *
 * Fragments. hri_mma (16-bit floats) multiplies A [16][16] by B [16][8] into float C [16][8];
 * hri_mma_s8 multiplies int8 A [16][32] by B [32][8] into int C. With row = lane / 4 and
 * col = lane % 4, a register holds 4 bytes that are neighbours along k:
 *     A a[0]: row,     k of col      a[1]: row + 8, k of col
 *       a[2]: row,     k of col + 4  a[3]: row + 8, k of col + 4
 *     B b[0]: k of col, column row   b[1]: k of col + 4, column row
 *     C c[0], c[1]: row, columns 2 col and 2 col + 1;   c[2], c[3]: row + 8
 * "k of j" is the j-th group of 4 bytes. The order of k is the caller's as long as A and B agree. */
#ifndef HRI_CUDA_DEVICE_CUH
#define HRI_CUDA_DEVICE_CUH

#include "kernels/cuda/cuda.cuh"

enum hri_half_kind { HRI_F16 = 1, HRI_BF16 = 2 }; /* as hr_dtype_t */

#ifdef HRI_EMU

template <class T, int N> struct hri_fragment {
    T at[N];
};

template <hri_half_kind KIND> static inline float hri_half_at(uint32_t pair, unsigned i)
{
    const uint16_t bits = (uint16_t)(pair >> (16 * i));
    return KIND == HRI_BF16 ? hri_f32_from_bf16(bits) : hri_f32_from_f16(bits);
}

template <hri_half_kind KIND>
static inline void hri_mma(float c[4], const uint32_t a[4], const uint32_t b[2], EMU_HERE)
{
    const hri_fragment<uint32_t, 6> mine = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    const unsigned char *lanes =
        emu::exchange(emu::MMA, EMU_FULL_MASK, &mine, sizeof mine, EMU_WHERE);
    const unsigned lane = emu::lane_id();
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
        float sum = 0; /* products are exact in float, and added in float */
        for (unsigned k = 0; k < 16; k++) {
            const auto from = emu::from_lane<hri_fragment<uint32_t, 6>>(lanes, row * 4 + k % 8 / 2);
            const auto with =
                emu::from_lane<hri_fragment<uint32_t, 6>>(lanes, column * 4 + k % 8 / 2);
            sum += hri_half_at<KIND>(from.at[i / 2 + k / 8 * 2], k % 2) *
                   hri_half_at<KIND>(with.at[4 + k / 8], k % 2);
        }
        c[i] += sum;
    }
}

static inline void hri_mma_s8(int c[4], const uint32_t a[4], const uint32_t b[2], EMU_HERE)
{
    const hri_fragment<uint32_t, 6> mine = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    const unsigned char *lanes =
        emu::exchange(emu::MMA, EMU_FULL_MASK, &mine, sizeof mine, EMU_WHERE);
    const unsigned lane = emu::lane_id();
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 8; k++) {
            const auto from = emu::from_lane<hri_fragment<uint32_t, 6>>(lanes, row * 4 + k % 4);
            const auto with = emu::from_lane<hri_fragment<uint32_t, 6>>(lanes, column * 4 + k % 4);
            c[i] = __dp4a((int)from.at[i / 2 + k / 4 * 2], (int)with.at[4 + k / 4], c[i]);
        }
    }
}

/* x - y of two pairs of bfloat16; here always exact. */
static inline uint32_t hri_bf16x2_sub(uint32_t x, uint32_t y)
{
    uint32_t result = 0;
    for (unsigned i = 0; i < 2; i++)
        result |=
            (uint32_t)hri_bf16_from_f32(hri_half_at<HRI_BF16>(x, i) - hri_half_at<HRI_BF16>(y, i))
            << (16 * i);
    return result;
}

static inline void hri_copy_async16(void *shared, const void *global, unsigned filled, EMU_HERE)
{
    emu::copy_async(shared, global, 16, filled, EMU_WHERE);
}
static inline void hri_copy_commit()
{
    emu::copy_commit();
}
template <int PENDING> static inline void hri_copy_wait(EMU_HERE)
{
    emu::copy_wait(PENDING, EMU_WHERE);
}
static inline void hri_mbarrier_init(uint64_t *bar, unsigned arrivals, EMU_HERE)
{
    emu::mbarrier_init(bar, arrivals, EMU_WHERE);
}
static inline void hri_mbarrier_expect(uint64_t *bar, uint32_t bytes, EMU_HERE)
{
    emu::mbarrier_expect(bar, bytes, EMU_WHERE);
}
static inline void hri_mbarrier_wait(uint64_t *bar, unsigned phase, EMU_HERE)
{
    emu::mbarrier_wait(bar, phase, EMU_WHERE);
}
static inline void hri_bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar,
                                 EMU_HERE)
{
    emu::bulk_load(shared, global, bytes, bar, EMU_WHERE);
}
static inline void hri_bulk_store(void *global, const void *shared, uint32_t bytes, EMU_HERE)
{
    emu::bulk_store(global, shared, bytes, EMU_WHERE);
}
static inline void hri_bulk_commit()
{
    emu::copy_commit();
}
template <int PENDING> static inline void hri_bulk_wait_read(EMU_HERE)
{
    emu::copy_wait(PENDING, EMU_WHERE);
}
template <int PENDING> static inline void hri_bulk_wait(EMU_HERE)
{
    emu::copy_wait(PENDING, EMU_WHERE);
}
static inline void hri_fence_async()
{
}
/* Flags that the host reads and writes while the kernel runs, and what they guard. */
static inline uint32_t hri_load_system(const uint32_t *flag, EMU_HERE)
{
    return emu::load_system(flag, EMU_WHERE);
}
static inline void hri_store_system(uint32_t *flag, uint32_t x, EMU_HERE)
{
    emu::store_system(flag, x, EMU_WHERE);
}
static inline uint4 hri_load_volatile(const void *p, EMU_HERE)
{
    emu::touch_read(p, 16, EMU_WHERE);
    return *(const uint4 *)p;
}
static inline uint64_t hri_now_ns()
{
    return emu::now_ns();
}
static inline uint4 hri_load_stream(const void *p, EMU_HERE)
{
    emu::touch_read(p, 16, EMU_WHERE); /* a compiler may load parts of it only */
    return *(const uint4 *)p;
}

#else /* nvcc */

template <hri_half_kind KIND>
static __device__ __forceinline__ void hri_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    if (KIND == HRI_BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ void hri_mma_s8(int c[4], const uint32_t a[4],
                                                  const uint32_t b[2])
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ uint32_t hri_bf16x2_sub(uint32_t x, uint32_t y)
{
    uint32_t result; /* y times -1 plus x: sm_80 has no other */
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(y), "r"(0xbf80bf80u), "r"(x));
    return result;
}

static __device__ __forceinline__ uint32_t hri_shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
/* 16 bytes, of which the first `filled` (0 or 16) come from global memory and the others are 0. */
static __device__ __forceinline__ void hri_copy_async16(void *shared, const void *global,
                                                        unsigned filled)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(hri_shared_address(shared)),
                 "l"(global), "r"(filled)
                 : "memory");
}
static __device__ __forceinline__ void hri_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until at most PENDING of the groups this thread committed are under way. */
template <int PENDING> static __device__ __forceinline__ void hri_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Bulk copies, sm_90 and later; kernels that use them are only launched there. */
static __device__ __forceinline__ void hri_mbarrier_init(uint64_t *bar, unsigned arrivals)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(hri_shared_address(bar)),
                 "r"(arrivals)
                 : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
static __device__ __forceinline__ void hri_mbarrier_expect(uint64_t *bar, uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(hri_shared_address(bar)),
        "r"(bytes)
        : "memory");
#endif
}
static __device__ __forceinline__ void hri_mbarrier_wait(uint64_t *bar, unsigned phase)
{
#if __CUDA_ARCH__ >= 900
    uint32_t done = 0;
    while (!done)
        asm volatile("{\n"
                     ".reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n"
                     "}"
                     : "=r"(done)
                     : "r"(hri_shared_address(bar)), "r"(phase)
                     : "memory");
#endif
}
static __device__ __forceinline__ void hri_bulk_load(void *shared, const void *global,
                                                     uint32_t bytes, uint64_t *bar)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(hri_shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(hri_shared_address(bar))
                 : "memory");
#endif
}
static __device__ __forceinline__ void hri_bulk_store(void *global, const void *shared,
                                                      uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
                 "r"(hri_shared_address(shared)), "r"(bytes)
                 : "memory");
#endif
}
static __device__ __forceinline__ void hri_bulk_commit()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}
/* Until the sources of all but PENDING groups may be written again. */
template <int PENDING> static __device__ __forceinline__ void hri_bulk_wait_read()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
#endif
}
template <int PENDING> static __device__ __forceinline__ void hri_bulk_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}
/* Before a bulk copy reads what this thread wrote to shared memory. */
static __device__ __forceinline__ void hri_fence_async()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/* Flags that the host reads and writes while the kernel runs, and what they guard. */
static __device__ __forceinline__ uint32_t hri_load_system(const uint32_t *flag)
{
    uint32_t x;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(x) : "l"(flag) : "memory");
    return x;
}
static __device__ __forceinline__ void hri_store_system(uint32_t *flag, uint32_t x)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(flag), "r"(x) : "memory");
}
/* Not from a cache. */
static __device__ __forceinline__ uint4 hri_load_volatile(const void *p)
{
    uint4 x;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(p)
                 : "memory");
    return x;
}
static __device__ __forceinline__ uint64_t hri_now_ns()
{
    uint64_t x;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(x));
    return x;
}
/* 16 bytes that are read once: not kept in L1. */
static __device__ __forceinline__ uint4 hri_load_stream(const void *p)
{
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(p));
    return x;
}

#endif

#endif
