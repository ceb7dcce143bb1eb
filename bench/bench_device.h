/* For the test of the GPU benchmarks: the device they run on; NULL: this build's GPU. */
#ifndef BENCH_DEVICE_H
#define BENCH_DEVICE_H

#include "kernels/device.h"

extern const struct hri_device_ops *hrb_device_ops;

#endif
