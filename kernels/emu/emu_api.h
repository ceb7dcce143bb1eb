/* The emulator as tests see it, in C. A CUDA source compiled against kernels/emu/emu.h runs its
 * launches at once, on the calling thread; what a GPU would do wrong quietly is reported here.
 *
 * Reported, each with the kernel, the block, the thread and file:line
 *   - a read or write outside of every device allocation, of shared memory, or of host memory that
 *     was not allocated here;
 *   - a read of shared memory that nobody wrote in this block;
 *   - a read or write of shared memory that races with another thread's (no barrier between them);
 *   - a barrier or warp operation that not all threads reach, or that they reach at different lines;
 *   - a vector access, asynchronous or bulk copy that is not aligned; more shared memory than a
 *     block may have; copies still under way when a kernel ends.
 * Accesses are seen where the source is compiled with the compiler's access hooks
 * (HRI_EMU_HOOKS, see tests/emu/CMakeLists.txt). Under AddressSanitizer those are off, and it does
 * that part, naming the emulated thread.
 *
 * Not covered: races in global memory, the memory model between blocks (blocks run one after the
 * other, in any order that is asked for) and the order of streams.
 *
 * Threads: the emulator belongs to one thread at a time. */
#ifndef HRI_EMU_API_H
#define HRI_EMU_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Device memory, 256-byte aligned, filled with 0xff (NaN as f32, f16, bf16). Aborts when out of
 * memory: this is for tests. */
void *hri_emu_alloc(size_t bytes);
void hri_emu_free(void *memory); /* NULL is legal */
/* Host memory that kernels may touch from now on (mapped, pinned); until it is unregistered. */
void hri_emu_register(void *memory, size_t bytes);
void hri_emu_unregister(void *memory);

/* The first report since the last clear, NULL if there was none; a launch that reports is
 * abandoned, and so are all later ones until the clear. */
const char *hri_emu_error(void);
void hri_emu_error_clear(void);

/* The order in which threads of a block, and blocks, run. A result that depends on it is wrong. */
enum hri_emu_order { HRI_EMU_FORWARD = 0, HRI_EMU_BACKWARD = 1, HRI_EMU_SHUFFLED = 2 };
void hri_emu_set_order(enum hri_emu_order order, uint64_t seed);

/* What kernels did since the last clear of these counts. */
struct hri_emu_counts {
    uint64_t launches, blocks, barriers, warp_operations;
    uint64_t accesses; /* seen by the hooks; 0 without them */
    size_t shared_bytes_most;
};
struct hri_emu_counts hri_emu_counts_take(void);
/* 1 if the program's kernels were compiled with access hooks. */
int hri_emu_hooked(void);

/* The tests' view of where they run, which the same names give on a real GPU (tests/emu/gpu_api.c):
 * 1 if kernels can run here; the architecture they see; the stream that is recorded. */
int hri_emu_available(void);
uint32_t hri_emu_arch(void);
void *hri_emu_stream(void);

/* Launches are recorded from begin to end instead of run; each replay runs them in their order with
 * the arguments they had: what a captured graph does. */
struct hri_emu_graph;
void hri_emu_capture_begin(void);
struct hri_emu_graph *hri_emu_capture_end(void);
size_t hri_emu_graph_launches(const struct hri_emu_graph *graph);
int hri_emu_graph_replay(
    const struct hri_emu_graph *graph); /* 0, or not if something was reported */
void hri_emu_graph_free(struct hri_emu_graph *graph);

#ifdef __cplusplus
}
#endif
#endif
