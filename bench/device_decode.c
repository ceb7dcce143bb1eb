#include "bench/device_decode.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/kernels.h"

#define PAGE_ROWS 64u
#define PATTERN   (1u << 20) /* numbers that differ; then they come again */

static int decode_call(void *context)
{
    struct hrb_decode *d = context;
    return d->bed.ops->launch->attend(&d->args, d->heads, d->bed.stream);
}

static int read_call(void *context)
{
    struct hrb_decode *d = context;
    return d->bed.ops->launch->read(d->args.runs[0].rows, d->bytes, d->sum, d->bed.stream);
}

double hrb_decode_seconds(void *context)
{
    return seconds_of(&((struct hrb_decode *)context)->bed, decode_call, context);
}

double hrb_decode_read_seconds(void *context)
{
    return seconds_of(&((struct hrb_decode *)context)->bed, read_call, context);
}

static void rows_fill(struct hrb_decode *d)
{
    struct hri_rng rng;
    const size_t n = d->bytes / 2;
    const uint32_t n_pages = HEADS * d->n / PAGE_ROWS;
    hri_rng_seed(&rng, 5);
    for (size_t i = 0; i < n && i < PATTERN; i++)
        d->rows[i] = hri_bf16_from_f32(2 * hri_rng_f32(&rng) - 1);
    for (size_t i = PATTERN; i < n; i += PATTERN)
        memcpy(d->rows + i, d->rows, (n - i < PATTERN ? n - i : PATTERN) * 2);
    for (uint32_t i = 0; i < n_pages; i++) { /* a shuffle, from the inside out */
        const uint32_t j = (uint32_t)hri_rng_below(&rng, i + 1);
        d->pages[i] = d->pages[j];
        d->pages[j] = i;
    }
    for (uint32_t i = 0; i < HEADS * GROUP * DIM; i++)
        d->q[i] = hri_f32_from_bf16(hri_bf16_from_f32(4 * (hri_rng_f32(&rng) - 0.5f)));
}

static const uint16_t *page_of(const struct hrb_decode *d, uint32_t head, uint32_t page)
{
    return d->rows + (size_t)d->pages[head * (d->n / PAGE_ROWS) + page] * PAGE_ROWS * 2 * DIM;
}

/* The first head's output against the CPU's kernel, page by page. */
static int decode_check(struct hrb_decode *d, const float *q, struct hrb_result *result)
{
    float got[DIM], want[GROUP * DIM], m[GROUP], l[GROUP], o[GROUP * DIM];
    struct hri_partial part = {m, l, o};
    double far = 0, size = 0;
    if (decode_call(d) != 0 ||
        hri_device_copy(d->bed.device, got, d->args.out, sizeof got) != HR_OK ||
        hri_device_wait(d->bed.device) != HR_OK)
        return say(result);
    hri_partial_clear(&part, GROUP, DIM);
    for (uint32_t i = 0; i < d->n / PAGE_ROWS; i++) {
        const struct hri_rows page = {page_of(d, 0, i), 2 * DIM * 2, PAGE_ROWS, HR_DTYPE_BF16};
        hri_kernels_get(hri_kernels_best())->attend_rows(q, GROUP, DIM, DIM, page, 0, &part);
    }
    hri_partial_finish(&part, GROUP, DIM, want, NULL);
    for (uint32_t j = 0; j < DIM; j++) {
        far += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
        size += (double)want[j] * want[j];
    }
    return sqrt(far / size) < 1e-2
               ? -1
               : hrb_failed(result, "the output is off by %.2g", sqrt(far / size));
}

static int decode_make(struct hrb_decode *d, struct hrb_result *result)
{
    struct hri_device_carve c = {d->bed.memory.base, 0};
    const struct hri_launchers *launch = d->bed.ops->launch;
    struct hri_device *device = d->bed.device;
    const uint32_t n_pages = HEADS * d->n / PAGE_ROWS;
    float q[HEADS * GROUP * DIM];
    rows_fill(d);
    for (size_t i = 0; i < sizeof q / sizeof *q; i++)
        q[i] = d->q[i] / sqrtf((float)DIM);
    void *device_rows = hri_device_carve(&c, 1, d->bytes), *n = hri_device_carve(&c, 1, 4);
    float *device_q = hri_device_carve(&c, 1, sizeof q);
    uint32_t *pages = hri_device_carve(&c, n_pages, 4);
    d->sum = hri_device_carve(&c, 1, 4);
    d->args = (struct hri_cuda_attend_args){.q = device_q, .dtype = HR_DTYPE_BF16, .n_runs = 1};
    d->args.runs[0] = (struct hri_cuda_run){.rows = device_rows,
                                            .n = n,
                                            .capacity = d->n,
                                            .pages = pages,
                                            .pages_max = d->n / PAGE_ROWS,
                                            .page_rows = PAGE_ROWS};
    d->args.out = hri_device_carve(&c, 1, sizeof q);
    d->args.lse = hri_device_carve(&c, HEADS * GROUP, 4);
    d->args.work = hri_device_carve(&c, launch->attend_work(d->heads), 4);
    d->args.arrived = hri_device_carve(&c, launch->attend_counters(d->heads), 4);
    if (c.used > d->bed.memory.bytes)
        return hrb_failed(result, "%zu bytes of the device are not enough", d->bed.memory.bytes);
    if (hri_device_fill(device, d->bed.memory.base, 0, c.used) != HR_OK ||
        hri_device_copy(device, device_rows, d->rows, d->bytes) != HR_OK ||
        hri_device_copy(device, device_q, q, sizeof q) != HR_OK ||
        hri_device_copy(device, pages, d->pages, n_pages * sizeof *d->pages) != HR_OK ||
        hri_device_copy(device, n, &d->n, sizeof d->n) != HR_OK)
        return say(result);
    return decode_check(d, q, result);
}

int hrb_decode_open(struct hrb_decode *d, uint32_t n, bool keep_rows, struct hrb_result *result)
{
    *d = (struct hrb_decode){.heads = {HEADS, GROUP, DIM, DIM}, .n = n};
    d->bytes = (size_t)HEADS * n * 2 * DIM * 2;
    int code = bed_open(&d->bed, d->bytes + (64u << 20), result);
    if (code >= 0)
        return code;
    d->rows = malloc(d->bytes);
    d->pages = calloc(HEADS * n / PAGE_ROWS, sizeof *d->pages);
    d->q = malloc(sizeof(float) * HEADS * GROUP * DIM);
    if (d->rows == NULL || d->pages == NULL || d->q == NULL)
        return hrb_failed(result, "out of memory");
    code = decode_make(d, result);
    if (!keep_rows) {
        free(d->rows);
        d->rows = NULL;
    }
    return code;
}

void hrb_decode_close(struct hrb_decode *d)
{
    free(d->rows);
    free(d->pages);
    free(d->q);
    bed_close(&d->bed);
}

static bool write_page(FILE *file, const uint16_t *page, uint32_t first)
{
    bool fine = true;
    for (uint32_t r = 0; r < PAGE_ROWS && fine; r++)
        fine = fwrite(page + (size_t)r * 2 * DIM + first, 2, DIM, file) == DIM;
    return fine;
}

static bool write_part(const struct hrb_decode *d, FILE *file, const char *name)
{
    bool fine = true;
    if (*name == 'q') {
        for (uint32_t i = 0; i < HEADS * GROUP * DIM && fine; i++) {
            const uint16_t half = hri_bf16_from_f32(d->q[i]);
            fine = fwrite(&half, sizeof half, 1, file) == 1;
        }
        return fine;
    }
    for (uint32_t h = 0; h < HEADS; h++)
        for (uint32_t i = 0; i < d->n / PAGE_ROWS && fine; i++)
            fine = write_page(file, page_of(d, h, i), *name == 'k' ? 0 : DIM);
    return fine;
}

int hrb_decode_export(const struct hrb_decode *d, const char *dir, struct hrb_result *result)
{
    static const char *const names[] = {"q", "k", "v"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        FILE *file = fopen(path, "wb");
        bool fine = file != NULL && write_part(d, file, names[i]);
        if (file != NULL && fclose(file) != 0)
            fine = false;
        if (!fine)
            return hrb_failed(result, "cannot write '%s'", path);
    }
    return -1;
}

int hrb_decode_output(struct hrb_decode *d, float *out, struct hrb_result *result)
{
    const size_t bytes = sizeof(float) * HEADS * GROUP * DIM;
    return hri_device_copy(d->bed.device, out, d->args.out, bytes) == HR_OK &&
                   hri_device_wait(d->bed.device) == HR_OK
               ? -1
               : say(result);
}
