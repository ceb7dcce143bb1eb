/* Products of many rows by NVIDIA's cuBLAS, where that is installed: it is looked for when the program runs, and nothing of it is linked.
 * Where it is not, hri_cuda_matmul does the same. */
#ifndef HRI_KERNELS_CUBLAS_H
#define HRI_KERNELS_CUBLAS_H

#include "kernels/cuda/launch.h"

struct hri_cublas;

/* For the calling thread's device; everything goes onto `stream`. library: a file, NULL: cuBLAS by its names. NULL: not found or refused,
 * why says so. */
struct hri_cublas *hri_cublas_open(const char *library, void *stream, char *why, size_t why_bytes);
void hri_cublas_close(struct hri_cublas *cublas); /* NULL is legal */
/* The library's file name, and its version as it counts it (120304 is 12.3.4). */
const char *hri_cublas_name(const struct hri_cublas *cublas);
int hri_cublas_version(const struct hri_cublas *cublas);
/* Device memory for what it keeps while it works, so that it takes none of its own then. Returns its status. */
int hri_cublas_workspace(struct hri_cublas *cublas, void *memory, size_t bytes);
/* product.y = x w' as hri_cuda_matmul, without the bias; with `add` product.y is added to. Returns its status, 0: queued. */
int hri_cublas_matmul(struct hri_cublas *cublas, const struct hri_cuda_matmul_args *matmul,
                      int add);

#endif
