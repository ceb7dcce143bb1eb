/* The names of kernels/emu/emu_api.h on a real GPU, so that the tests of the kernels run there as they
 * are: device memory is managed memory, which both sides see; an error is CUDA's; a recorded graph is
 * a captured one. The orders of threads are the GPU's own. */
#include "kernels/emu/emu_api.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char error_text[256];
static cudaStream_t the_stream;

static int failed(cudaError_t error, const char *what)
{
    if (error != cudaSuccess && error_text[0] == 0)
        snprintf(error_text, sizeof error_text, "%s: %s", what, cudaGetErrorString(error));
    return error != cudaSuccess;
}

int hri_emu_available(void)
{
    int n = 0; /* every error of the first call means that there is none */
    return cudaGetDeviceCount(&n) == cudaSuccess && n > 0;
}

uint32_t hri_emu_arch(void)
{
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    return (uint32_t)(10 * major + minor);
}

void *hri_emu_stream(void)
{
    if (the_stream == NULL)
        failed(cudaStreamCreate(&the_stream), "cudaStreamCreate");
    return the_stream;
}

void *hri_emu_alloc(size_t bytes)
{
    void *memory = NULL;
    if (failed(cudaMallocManaged(&memory, bytes ? bytes : 1, cudaMemAttachGlobal),
               "cudaMallocManaged")) {
        fprintf(stderr, "%s\n", error_text);
        abort();
    }
    return memset(memory, 0xff, bytes ? bytes : 1);
}

void hri_emu_free(void *memory)
{
    failed(cudaFree(memory), "cudaFree");
}

void hri_emu_register(void *memory, size_t bytes)
{
    failed(cudaHostRegister(memory, bytes, cudaHostRegisterMapped), "cudaHostRegister");
}

void hri_emu_unregister(void *memory)
{
    failed(cudaHostUnregister(memory), "cudaHostUnregister");
}

/* Waits, so that results may be looked at. */
const char *hri_emu_error(void)
{
    failed(cudaDeviceSynchronize(), "kernel");
    return error_text[0] ? error_text : NULL;
}

void hri_emu_error_clear(void)
{
    cudaGetLastError();
    error_text[0] = 0;
}

void hri_emu_set_order(enum hri_emu_order order, uint64_t seed)
{
    (void)order;
    (void)seed;
}

struct hri_emu_counts hri_emu_counts_take(void)
{
    return (struct hri_emu_counts){0};
}

int hri_emu_hooked(void)
{
    return 0;
}

struct hri_emu_graph {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
};

void hri_emu_capture_begin(void)
{
    failed(cudaStreamBeginCapture(hri_emu_stream(), cudaStreamCaptureModeThreadLocal),
           "cudaStreamBeginCapture");
}

struct hri_emu_graph *hri_emu_capture_end(void)
{
    struct hri_emu_graph *g = calloc(1, sizeof *g);
    if (g == NULL)
        abort();
    if (!failed(cudaStreamEndCapture(the_stream, &g->graph), "cudaStreamEndCapture"))
        failed(cudaGraphInstantiate(&g->exec, g->graph, 0), "cudaGraphInstantiate");
    return g;
}

size_t hri_emu_graph_launches(const struct hri_emu_graph *graph)
{
    size_t n = 0;
    failed(cudaGraphGetNodes(graph->graph, NULL, &n), "cudaGraphGetNodes");
    return n;
}

int hri_emu_graph_replay(const struct hri_emu_graph *graph)
{
    return failed(cudaGraphLaunch(graph->exec, the_stream), "cudaGraphLaunch");
}

void hri_emu_graph_free(struct hri_emu_graph *graph)
{
    if (graph == NULL)
        return;
    if (graph->exec)
        cudaGraphExecDestroy(graph->exec);
    if (graph->graph)
        cudaGraphDestroy(graph->graph);
    free(graph);
}
