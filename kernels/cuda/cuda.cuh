/* The three places where a CUDA source is not C++: launches and shared memory. Under HRI_EMU the
 * same source is compiled by a host compiler against kernels/emu (tests). */
#ifndef HRI_CUDA_CUH
#define HRI_CUDA_CUH

#ifdef HRI_EMU
#include "kernels/emu/emu.h"

#define HRI_UNROLL
#define HRI_UNROLL_4

/* HRI_LAUNCH(kernel, grid, threads, dynamic shared bytes, stream, arguments...): 0, or the error. */
#define HRI_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                               \
    ((void)(stream), ::emu::launch(#kernel, kernel, grid, threads, shared_bytes,                   \
                                   {__FILE__, __LINE__}, __VA_ARGS__))
/* Before a launch with more than 48 KiB of dynamic shared memory: 0, or the error. */
#define HRI_ALLOW_SHARED(kernel, bytes) 0
/* type name[count] in shared memory. */
#define HRI_SHARED(type, name, count)                                                              \
    static const char name##_tag = 0;                                                              \
    type *const name = static_cast<type *>(::emu::shared_static(                                   \
        &name##_tag, sizeof(type) * (count), alignof(type), {__FILE__, __LINE__}))
/* The launch's dynamic shared memory, aligned to 128. */
#define HRI_SHARED_DYNAMIC(name)                                                                   \
    unsigned char *const name =                                                                    \
        static_cast<unsigned char *>(::emu::shared_dynamic({__FILE__, __LINE__}))

#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define HRI_UNROLL   _Pragma("unroll")
#define HRI_UNROLL_4 _Pragma("unroll 4")
#define HRI_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                               \
    (kernel<<<(grid), (threads), (shared_bytes), (cudaStream_t)(stream)>>>(__VA_ARGS__),           \
     (int)cudaGetLastError())
#define HRI_ALLOW_SHARED(kernel, bytes)                                                            \
    ((int)cudaFuncSetAttribute((const void *)(kernel),                                             \
                               cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)))
#define HRI_SHARED(type, name, count) __shared__ type name[count]
#define HRI_SHARED_DYNAMIC(name)                                                                   \
    extern __shared__ __align__(128) unsigned char hri_dynamic_shared[];                           \
    unsigned char *const name = hri_dynamic_shared
#endif

#endif
