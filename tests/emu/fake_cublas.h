/* What a test sees of the stand-in for cuBLAS (fake_cublas.c), which is a library of its own: FAKE_CUBLAS is its file. */
#ifndef FAKE_CUBLAS_H
#define FAKE_CUBLAS_H

#include <stddef.h>
#include <stdint.h>

struct fake_cublas {
    /* How memory of the device gets to the host and back; NULL: it is the host's. */
    void (*get)(void *to, const void *from, size_t bytes);
    void (*put)(void *to, const void *from, size_t bytes);
    int create_status, gemm_status; /* not 0: that call fails with it */
    /* What was asked of it: */
    void *stream, *workspace;
    size_t workspace_bytes;
    unsigned products;
};
/* Its symbol: struct fake_cublas *fake_cublas_state(void). */

#endif
