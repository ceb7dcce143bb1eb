/* Misses that the host brings: a letter box in mapped memory.
 *
 * One thread block posts. A few wait: each has every so many-th job, its first thread looks at the answer, and
 * all of them copy what has landed into the frame. The limit is the host and its disk; a flag in mapped memory is seen
 * after about 1.5 us. Waiting blocks hold four SMs' places, not their arithmetic. */
#include "kernels/cuda/common.cuh"

#define THREADS 256u
#define BLOCKS  4u

static __global__ void __launch_bounds__(THREADS)
    post_kernel(struct hri_cuda_mailbox box, struct hri_cuda_mail_args a)
{
    const uint32_t n = *a.n_jobs < box.max ? *a.n_jobs : box.max;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        box.requests[i] = a.jobs[i];
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    *a.n_late = 0;
    *box.n = n;
    __threadfence_system();
    hri_store_system(box.posted, *a.ticket);
}

/* 1: it has landed. */
static __device__ uint32_t wait_for(const uint32_t *answer, uint32_t ticket, uint64_t until_ns)
{
    for (;;) {
        const uint32_t x = hri_load_system(answer);
        if ((x | 1u) == 2 * ticket + 1)
            return x & 1u;
        if (hri_now_ns() >= until_ns)
            return 0;
    }
}

static __global__ void __launch_bounds__(THREADS)
    collect_kernel(struct hri_cuda_mailbox box, struct hri_cuda_mail_args a)
{
    HRI_SHARED(uint32_t, landed, 1);
    const uint32_t n = *a.n_jobs < box.max ? *a.n_jobs : box.max, ticket = *a.ticket;
    const uint64_t until_ns = hri_now_ns() + *a.limit_ns;
    for (uint32_t j = blockIdx.x; j < n; j += gridDim.x) {
        if (threadIdx.x == 0)
            *landed = wait_for(box.answers + j, ticket, until_ns);
        __syncthreads();
        const struct hri_cuda_job job = a.jobs[j];
        if (*landed) {
            const unsigned char *from = box.landing + (size_t)j * box.frame_bytes;
            unsigned char *to = a.frames + (size_t)job.frame * box.frame_bytes;
            for (uint32_t at = threadIdx.x * 16; at < box.frame_bytes; at += THREADS * 16)
                *(uint4 *)(to + at) = hri_load_volatile(from + at);
        } else if (threadIdx.x == 0) {
            a.late[atomicAdd(a.n_late, 1u)] =
                job; /* in any order: each leaves the table by itself */
        }
        __syncthreads();
    }
}

extern "C" int hri_cuda_mail_post(const struct hri_cuda_mailbox *box,
                                  const struct hri_cuda_mail_args *mail, void *stream)
{
    return HRI_LAUNCH(post_kernel, 1, THREADS, 0, stream, *box, *mail);
}

extern "C" int hri_cuda_mail_collect(const struct hri_cuda_mailbox *box,
                                     const struct hri_cuda_mail_args *mail, void *stream)
{
    return HRI_LAUNCH(collect_kernel, BLOCKS, THREADS, 0, stream, *box, *mail);
}
