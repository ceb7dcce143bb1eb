/* A GPU by the CUDA runtime, which is linked statically: the driver's library is looked for when the
 * first function is called. */
#include "kernels/device.h"

#include <cuda_runtime_api.h>
#include <string.h>
/* Headers alone: a profiler brings the library, and without one a range is a test of a pointer. */
#if defined(__has_include)
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define HAVE_NVTX 1
#endif
#endif

#define PIN_BYTES_MAX (64ull << 30) /* larger registrations fail, and leave an error behind */

static int count(uint32_t *driver_out, uint32_t *runtime_out, uint32_t *n_devices_out)
{
    int driver = 0, runtime = 0, n = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    cudaError_t error = cudaGetDeviceCount(&n);
    (void)cudaGetLastError();
    *driver_out = (uint32_t)driver;
    *runtime_out = (uint32_t)runtime;
    *n_devices_out = error == cudaSuccess ? (uint32_t)n : 0;
    return (int)error;
}

static int attribute(enum cudaDeviceAttr which, int device, int *value_out)
{
    return cudaDeviceGetAttribute(value_out, which, device) == cudaSuccess ? *value_out : 0;
}

static int open_device(uint32_t ordinal, struct hri_device_facts *f)
{
    int x = 0, device = (int)ordinal;
    struct cudaDeviceProp properties;
    size_t free_bytes = 0, all_bytes = 0;
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess)
        error = cudaGetDeviceProperties(&properties, device);
    if (error == cudaSuccess)
        error = cudaMemGetInfo(&free_bytes, &all_bytes);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return (int)error;
    }
    memset(f, 0, sizeof *f);
    memcpy(f->name, properties.name,
           sizeof f->name - 1 < sizeof properties.name ? sizeof f->name - 1
                                                       : sizeof properties.name);
    (void)cudaDeviceGetPCIBusId(f->pci, (int)sizeof f->pci, device);
    f->arch = (uint32_t)(10 * attribute(cudaDevAttrComputeCapabilityMajor, device, &x));
    f->arch += (uint32_t)attribute(cudaDevAttrComputeCapabilityMinor, device, &x);
    f->sm_count = (uint32_t)attribute(cudaDevAttrMultiProcessorCount, device, &x);
    f->memory_bytes = all_bytes;
    f->free_bytes = free_bytes;
    f->maps_host = attribute(cudaDevAttrCanMapHostMemory, device, &x) &&
                   attribute(cudaDevAttrUnifiedAddressing, device, &x) &&
                   attribute(cudaDevAttrCanUseHostPointerForRegisteredMem, device, &x);
    return 0;
}

/* An error that a caller handles must not come up again at the next launch. */
static int taken(cudaError_t error)
{
    if (error != cudaSuccess)
        (void)cudaGetLastError();
    return (int)error;
}

static int alloc(size_t bytes, void **memory_out)
{
    return taken(cudaMalloc(memory_out, bytes));
}

static void free_memory(void *memory)
{
    (void)taken(cudaFree(memory));
}

static int host_alloc(size_t bytes, void **memory_out)
{
    return taken(cudaHostAlloc(memory_out, bytes, cudaHostAllocMapped | cudaHostAllocPortable));
}

static void host_free(void *memory)
{
    (void)taken(cudaFreeHost(memory));
}

static int pin(void *base, size_t bytes)
{
    return taken(cudaHostRegister(base, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable));
}

static void unpin(void *base)
{
    (void)taken(cudaHostUnregister(base));
}

static int stream_create(void **stream_out)
{
    return taken(cudaStreamCreateWithFlags((cudaStream_t *)stream_out, cudaStreamNonBlocking));
}

static void stream_destroy(void *stream)
{
    (void)taken(cudaStreamDestroy(stream));
}

static int stream_wait(void *stream)
{
    return taken(cudaStreamSynchronize(stream));
}

static int copy(void *to, size_t to_stride, const void *from, size_t from_stride, size_t bytes,
                size_t n, void *stream)
{
    if (n == 1)
        return taken(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
    return taken(
        cudaMemcpy2DAsync(to, to_stride, from, from_stride, bytes, n, cudaMemcpyDefault, stream));
}

static int fill(void *memory, int byte, size_t bytes, void *stream)
{
    return taken(cudaMemsetAsync(memory, byte, bytes, stream));
}

static int event_create(void **event_out)
{
    return taken(cudaEventCreate((cudaEvent_t *)event_out));
}

static void event_destroy(void *event)
{
    (void)taken(cudaEventDestroy(event));
}

static int event_record(void *event, void *stream)
{
    return taken(cudaEventRecord(event, stream));
}

static int event_query(void *event)
{
    return taken(cudaEventQuery(event));
}

static int event_elapsed(void *first, void *last, float *ms_out)
{
    return taken(cudaEventElapsedTime(ms_out, first, last));
}

static int capture_begin(void *stream)
{
    return taken(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
}

static int capture_end(void *stream, void **graph_out)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t error = cudaStreamEndCapture(stream, &graph);
    if (error == cudaSuccess)
        error = cudaGraphInstantiate(&exec, graph, 0);
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
    *graph_out = exec;
    return taken(error);
}

static int graph_launch(void *graph, void *stream)
{
    return taken(cudaGraphLaunch(graph, stream));
}

static void graph_destroy(void *graph)
{
    (void)taken(cudaGraphExecDestroy(graph));
}

static void range_begin(const char *name)
{
#ifdef HAVE_NVTX
    (void)nvtxRangePushA(name);
#else
    (void)name;
#endif
}

static void range_end(void)
{
#ifdef HAVE_NVTX
    (void)nvtxRangePop();
#endif
}

static enum hri_device_fault fault(int error)
{
    switch (error) {
    case cudaSuccess:
        return HRI_DEVICE_FINE;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemNotReady:
        return HRI_DEVICE_ABSENT;
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCallRequiresNewerDriver:
        return HRI_DEVICE_OLD_DRIVER;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidKernelImage:
        return HRI_DEVICE_NO_CODE;
    case cudaErrorMemoryAllocation:
        return HRI_DEVICE_NO_MEMORY;
    case cudaErrorNotReady:
        return HRI_DEVICE_NOT_READY;
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
        return HRI_DEVICE_LOST;
    default:
        return HRI_DEVICE_REFUSED;
    }
}

static const char *text(int error)
{
    return cudaGetErrorString((cudaError_t)error);
}

static const struct hri_device_ops ops = {
    .name = "cuda",
    .launch = &hri_launchers,
    .pin_bytes_max = PIN_BYTES_MAX,
    .count = count,
    .open = open_device,
    .alloc = alloc,
    .free = free_memory,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .pin = pin,
    .unpin = unpin,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_wait = stream_wait,
    .copy = copy,
    .fill = fill,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_query = event_query,
    .event_elapsed = event_elapsed,
    .capture_begin = capture_begin,
    .capture_end = capture_end,
    .graph_launch = graph_launch,
    .graph_destroy = graph_destroy,
    .range_begin = range_begin,
    .range_end = range_end,
    .fault = fault,
    .text = text,
};

const struct hri_device_ops *hri_device_cuda_get(void)
{
    return &ops;
}
