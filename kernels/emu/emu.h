/* CUDA on the CPU, for tests: what a .cu file needs of the language, its types and intrinsics. One
 * fiber per CUDA thread; emu_run.h, included by exactly one source of a program, runs them.
 *
 * A source includes kernels/cuda/cuda.cuh, which takes this header instead of CUDA's when HRI_EMU is
 * defined, and keeps to three macros of that file where the language differs: HRI_LAUNCH,
 * HRI_SHARED, HRI_SHARED_DYNAMIC. Everything that is machine code on a GPU (mma, cp.async, bulk
 * copies, prmt) has one function in kernels/cuda/device.cuh, with a plain version here. */
#ifndef HRI_EMU_H
#define HRI_EMU_H

#ifdef __CUDACC__
#error "emu.h is for host compilers"
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "base/half.h"
#include "kernels/emu/emu_api.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

/* ------------------------------------------------------------------------------------------ types */

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};
/* Clang's hooks up to 14 do not see a struct that is copied whole: it becomes a call of memcpy. There members are
 * copied one by one. */
#if defined(__clang__) && __clang_major__ < 15
#define EMU_INLINE __attribute__((always_inline)) inline /* so that reports have the copy's line */
#define EMU_MEMBERS_2(T, M)                                                                        \
    M x, y;                                                                                        \
    T() = default;                                                                                 \
    T(M x_, M y_) : x(x_), y(y_)                                                                   \
    {                                                                                              \
    }                                                                                              \
    EMU_INLINE T(const T &o) : x(o.x), y(o.y)                                                      \
    {                                                                                              \
    }                                                                                              \
    EMU_INLINE T &operator=(const T &o)                                                            \
    {                                                                                              \
        x = o.x, y = o.y;                                                                          \
        return *this;                                                                              \
    }
#define EMU_MEMBERS_4(T, M)                                                                        \
    M x, y, z, w;                                                                                  \
    T() = default;                                                                                 \
    T(M x_, M y_, M z_, M w_) : x(x_), y(y_), z(z_), w(w_)                                         \
    {                                                                                              \
    }                                                                                              \
    EMU_INLINE T(const T &o) : x(o.x), y(o.y), z(o.z), w(o.w)                                      \
    {                                                                                              \
    }                                                                                              \
    EMU_INLINE T &operator=(const T &o)                                                            \
    {                                                                                              \
        x = o.x, y = o.y, z = o.z, w = o.w;                                                        \
        return *this;                                                                              \
    }
#else
#define EMU_MEMBERS_2(T, M) M x, y;
#define EMU_MEMBERS_4(T, M) M x, y, z, w;
#endif
struct alignas(8) uint2 {
    EMU_MEMBERS_2(uint2, unsigned)
};
struct alignas(16) uint4 {
    EMU_MEMBERS_4(uint4, unsigned)
};
struct alignas(8) int2 {
    EMU_MEMBERS_2(int2, int)
};
struct alignas(16) int4 {
    EMU_MEMBERS_4(int4, int)
};
struct alignas(8) float2 {
    EMU_MEMBERS_2(float2, float)
};
struct alignas(16) float4 {
    EMU_MEMBERS_4(float4, float)
};
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
static inline float __half2float(__half x)
{
    return hri_f32_from_f16(x.bits);
}
static inline __half __float2half_rn(float x)
{
    return {hri_f16_from_f32(x)};
}
static inline uint16_t __half_as_ushort(__half x)
{
    return x.bits;
}
static inline __half __ushort_as_half(uint16_t x)
{
    return {x};
}
static inline float __bfloat162float(__nv_bfloat16 x)
{
    return hri_f32_from_bf16(x.bits);
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x)
{
    return {hri_bf16_from_f32(x)};
}
static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x)
{
    return x.bits;
}
static inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t x)
{
    return {x};
}

/* ---------------------------------------------------------------------------------------- runtime */

namespace emu
{

struct where {
    const char *file;
    int line;
};
#define EMU_HERE      const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMU_WHERE     (::emu::where{file, line})
#define EMU_FULL_MASK 0xffffffffu

/* Of the running thread. */
struct ids {
    dim3 thread, block, block_dim, grid_dim;
};
const ids &now();
unsigned lane_id();

/* Names what is exchanged, so that lanes that meet at different operations are found. */
enum operation { SYNC_WARP, SHUFFLE, VOTE, MATCH, REDUCE, MMA };
#define EMU_LANE_BYTES 64

/* All lanes of mask give `bytes` bytes; returns what each gave: [32][EMU_LANE_BYTES], good until
 * the lane's next warp operation. */
const unsigned char *exchange(operation op, uint32_t mask, const void *in, size_t bytes, where at);
/* Waits for all threads of the block; returns how many gave a predicate that is not 0. */
int barrier(int predicate, where at);

void *shared_static(const void *tag, size_t bytes, size_t align, where at);
void *shared_dynamic(where at);
/* Accesses that no hook sees, or only in pieces. */
void touch_read(const void *p, size_t bytes, where at);
void touch_atomic(const void *p, size_t bytes, where at);
[[noreturn]] void fail(where at, const char *format, ...) __attribute__((format(printf, 2, 3)));

void copy_async(void *shared, const void *global, size_t bytes, size_t filled, where at);
void copy_commit();
void copy_wait(unsigned pending, where at);
void mbarrier_init(uint64_t *bar, unsigned arrivals, where at);
void mbarrier_expect(uint64_t *bar, uint32_t bytes, where at);
void mbarrier_wait(uint64_t *bar, unsigned phase, where at);
void bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar, where at);
void bulk_store(void *global, const void *shared, uint32_t bytes, where at);
uint32_t load_system(const uint32_t *flag, where at);
void store_system(uint32_t *flag, uint32_t x, where at);
uint64_t now_ns();

typedef void (*body_fn)(void *params);
struct launch_config {
    const char *kernel;
    dim3 grid, block;
    size_t shared_bytes;
    where at;
    size_t params_bytes;
};
/* Runs body once per thread, or records it with a copy of params. Returns 0, or 1 when something
 * was reported. */
int run(const launch_config &config, body_fn body, void *params, void *(*copy)(const void *),
        void (*destroy)(void *));

template <class... P> struct call {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> params;

    static void body(void *self)
    {
        call *c = static_cast<call *>(self);
        std::apply(c->kernel, c->params);
    }
    static void *copy(const void *self)
    {
        return new call(*static_cast<const call *>(self));
    }
    static void destroy(void *self)
    {
        delete static_cast<call *>(self);
    }
};
template <class... P, class... A>
int launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
           where at, A... args)
{
    call<P...> c{kernel, std::tuple<std::decay_t<P>...>(static_cast<std::decay_t<P>>(args)...)};
    return run({name, grid, block, shared_bytes, at, sizeof c}, c.body, &c, c.copy, c.destroy);
}

template <class T, class F>
__attribute__((no_sanitize("thread"), noinline)) T update(T *p, F change, where at)
{
    touch_atomic(p, sizeof *p, at);
    T before = *p;
    *p = change(before);
    return before;
}

template <class T> T from_lane(const unsigned char *lanes, unsigned lane)
{
    T x;
    memcpy(&x, lanes + lane * EMU_LANE_BYTES, sizeof x);
    return x;
}

template <class T> T shuffle(uint32_t mask, T x, unsigned source, where at)
{
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    const unsigned char *lanes = exchange(SHUFFLE, mask, &x, sizeof x, at);
    if (!(mask >> (source & 31) & 1))
        fail(at, "shuffle from lane %u, which is not in the mask %#x", source & 31, mask);
    return from_lane<T>(lanes, source & 31);
}

} // namespace emu

#define threadIdx (::emu::now().thread)
#define blockIdx  (::emu::now().block)
#define blockDim  (::emu::now().block_dim)
#define gridDim   (::emu::now().grid_dim)

/* ----------------------------------------------------------------------------- barriers and warps */

static inline void __syncthreads(EMU_HERE)
{
    emu::barrier(0, EMU_WHERE);
}
static inline int __syncthreads_count(int predicate, EMU_HERE)
{
    return emu::barrier(predicate, EMU_WHERE);
}
static inline int __syncthreads_or(int predicate, EMU_HERE)
{
    return emu::barrier(predicate, EMU_WHERE) > 0;
}
static inline void __syncwarp(uint32_t mask = EMU_FULL_MASK, EMU_HERE)
{
    emu::exchange(emu::SYNC_WARP, mask, nullptr, 0, EMU_WHERE);
}
static inline void __threadfence()
{
}
static inline void __threadfence_block()
{
}
static inline void __threadfence_system()
{
}

template <class T> T __shfl_sync(uint32_t mask, T x, int lane, int width = 32, EMU_HERE)
{
    unsigned self = emu::lane_id(), w = (unsigned)width;
    return emu::shuffle(mask, x, (self & ~(w - 1)) | ((unsigned)lane & (w - 1)), EMU_WHERE);
}
template <class T> T __shfl_xor_sync(uint32_t mask, T x, int bits, int width = 32, EMU_HERE)
{
    unsigned self = emu::lane_id(), w = (unsigned)width, to = self ^ (unsigned)bits;
    return emu::shuffle(mask, x, (to & ~(w - 1)) == (self & ~(w - 1)) ? to : self, EMU_WHERE);
}
template <class T> T __shfl_up_sync(uint32_t mask, T x, unsigned delta, int width = 32, EMU_HERE)
{
    unsigned self = emu::lane_id(), in = self & ((unsigned)width - 1);
    return emu::shuffle(mask, x, in >= delta ? self - delta : self, EMU_WHERE);
}
template <class T> T __shfl_down_sync(uint32_t mask, T x, unsigned delta, int width = 32, EMU_HERE)
{
    unsigned self = emu::lane_id(), in = self & ((unsigned)width - 1);
    return emu::shuffle(mask, x, in + delta < (unsigned)width ? self + delta : self, EMU_WHERE);
}

static inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMU_HERE)
{
    const unsigned char *lanes =
        emu::exchange(emu::VOTE, mask, &predicate, sizeof predicate, EMU_WHERE);
    uint32_t bits = 0;
    for (unsigned i = 0; i < 32; i++)
        if ((mask >> i & 1) && emu::from_lane<int>(lanes, i))
            bits |= 1u << i;
    return bits;
}
static inline int __any_sync(uint32_t mask, int predicate, EMU_HERE)
{
    return __ballot_sync(mask, predicate, file, line) != 0;
}
static inline int __all_sync(uint32_t mask, int predicate, EMU_HERE)
{
    return __ballot_sync(mask, predicate, file, line) == mask;
}
static inline uint32_t __match_any_sync(uint32_t mask, uint32_t x, EMU_HERE)
{
    const unsigned char *lanes = emu::exchange(emu::MATCH, mask, &x, sizeof x, EMU_WHERE);
    uint32_t bits = 0;
    for (unsigned i = 0; i < 32; i++)
        if ((mask >> i & 1) && emu::from_lane<uint32_t>(lanes, i) == x)
            bits |= 1u << i;
    return bits;
}
static inline unsigned __reduce_add_sync(uint32_t mask, unsigned x, EMU_HERE)
{
    const unsigned char *lanes = emu::exchange(emu::REDUCE, mask, &x, sizeof x, EMU_WHERE);
    unsigned sum = 0;
    for (unsigned i = 0; i < 32; i++)
        sum += (mask >> i & 1) ? emu::from_lane<unsigned>(lanes, i) : 0;
    return sum;
}
static inline unsigned __reduce_max_sync(uint32_t mask, unsigned x, EMU_HERE)
{
    const unsigned char *lanes = emu::exchange(emu::REDUCE, mask, &x, sizeof x, EMU_WHERE);
    unsigned most = 0;
    for (unsigned i = 0; i < 32; i++) {
        unsigned other = (mask >> i & 1) ? emu::from_lane<unsigned>(lanes, i) : 0;
        most = other > most ? other : most;
    }
    return most;
}

/* ---------------------------------------------------------------------------------------- atomics */

#define EMU_ATOMIC(name, T, result)                                                                \
    static inline T name(T *p, T x, EMU_HERE)                                                      \
    {                                                                                              \
        return emu::update(                                                                        \
            p, [x](T y) -> T { return result; }, EMU_WHERE);                                       \
    }
EMU_ATOMIC(atomicAdd, int, (int)((unsigned)y + (unsigned)x))
EMU_ATOMIC(atomicAdd, unsigned, y + x)
EMU_ATOMIC(atomicAdd, unsigned long long, y + x)
EMU_ATOMIC(atomicAdd, float, y + x)
EMU_ATOMIC(atomicMax, int, y > x ? y : x)
EMU_ATOMIC(atomicMax, unsigned, y > x ? y : x)
EMU_ATOMIC(atomicMin, int, y < x ? y : x)
EMU_ATOMIC(atomicMin, unsigned, y < x ? y : x)
EMU_ATOMIC(atomicMin, unsigned long long, y < x ? y : x)
EMU_ATOMIC(atomicMax, unsigned long long, y > x ? y : x)
EMU_ATOMIC(atomicOr, unsigned, y | x)
EMU_ATOMIC(atomicAnd, unsigned, y &x)
EMU_ATOMIC(atomicExch, unsigned, ((void)y, x))
#undef EMU_ATOMIC
static inline unsigned atomicCAS(unsigned *p, unsigned expected, unsigned x, EMU_HERE)
{
    return emu::update(
        p, [=](unsigned y) { return y == expected ? x : y; }, EMU_WHERE);
}
/* As the GPU has it: 0 after limit. */
static inline unsigned atomicInc(unsigned *p, unsigned limit, EMU_HERE)
{
    return emu::update(
        p, [=](unsigned y) { return y >= limit ? 0 : y + 1; }, EMU_WHERE);
}

/* ----------------------------------------------------------------------------------------- numbers */

static inline int __float_as_int(float x)
{
    int i;
    memcpy(&i, &x, sizeof i);
    return i;
}
static inline unsigned __float_as_uint(float x)
{
    return hri_f32_bits(x);
}
static inline float __int_as_float(int i)
{
    float x;
    memcpy(&x, &i, sizeof x);
    return x;
}
static inline float __uint_as_float(unsigned i)
{
    return hri_f32_from_bits(i);
}
static inline int __float2int_rn(float x)
{
    return (int)lrintf(x);
}
static inline float __fdividef(float x, float y)
{
    return x / y;
}
static inline float __fmul_rn(float x, float y)
{
    return x * y;
}
static inline float __fadd_rn(float x, float y)
{
    return x + y;
}
static inline float __fsub_rn(float x, float y)
{
    return x - y;
}
static inline float __fmaf_rn(float x, float y, float z)
{
    return fmaf(x, y, z);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    const uint64_t both = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> (4 * i) & 15, byte = (unsigned)(both >> (8 * (pick & 7))) & 255;
        if (pick & 8) /* the byte's sign, eight times */
            byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * i);
    }
    return result;
}
static inline int __dp4a(int x, int y, int sum)
{
    for (int i = 0; i < 4; i++)
        sum += (int)(int8_t)(x >> (8 * i)) * (int)(int8_t)(y >> (8 * i));
    return sum;
}
template <class T> T __ldg(const T *p)
{
    return *p;
}
template <class T> T __ldcs(const T *p)
{
    return *p;
}
template <class T> void __stcs(T *p, T x)
{
    *p = x;
}
#define EMU_MIN_MAX(T)                                                                             \
    static inline T min(T x, T y)                                                                  \
    {                                                                                              \
        return x < y ? x : y;                                                                      \
    }                                                                                              \
    static inline T max(T x, T y)                                                                  \
    {                                                                                              \
        return x > y ? x : y;                                                                      \
    }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(unsigned long long)
EMU_MIN_MAX(unsigned long)
#undef EMU_MIN_MAX

#endif
