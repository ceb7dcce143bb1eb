/* The machine that grids are sized for. */
#include "kernels/cuda/common.cuh"

static struct hri_cuda_machine the_machine = {132, 90};

extern "C" void hri_cuda_set_machine(struct hri_cuda_machine machine)
{
    the_machine = machine;
}

extern "C" struct hri_cuda_machine hri_cuda_get_machine(void)
{
    return the_machine;
}
