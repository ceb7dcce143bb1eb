#ifndef FAULTY_H
#define FAULTY_H

#include <stddef.h>
#include <stdint.h>

enum fault {
    FAULT_NONE,
    FAULT_UNWRITTEN,
    FAULT_NO_BARRIER,
    FAULT_DIVERGENT,
    FAULT_EARLY_RETURN,
    FAULT_SHUFFLE,
    FAULT_SHARED_BOUNDS,
    FAULT_READ_BOUNDS,
    FAULT_WRITE_BOUNDS,
    FAULT_ALIGNMENT,
    FAULT_NO_WAIT,
    FAULT_BULK_BYTES
};

#ifdef __cplusplus
extern "C" {
#endif
int faulty_sum(const float *x, float *out, uint32_t n, int fault);
int faulty_barrier(float *out, int fault);
int faulty_bounds(const float *x, float *out, uint32_t n, int fault);
int faulty_async(const float *x, float *out, int fault);
int faulty_bulk(const float *x, float *out, int fault);
int faulty_last_block(const float *x, float *parts, unsigned *arrived, float *out, uint32_t blocks);
int faulty_launch(uint32_t threads, size_t shared_bytes);
int faulty_mma_s8(const int8_t *a, const int8_t *b, int *c);
int faulty_mma_16(const uint16_t *a, const uint16_t *b, float *c, int f16);
#ifdef __cplusplus
}
#endif
#endif
