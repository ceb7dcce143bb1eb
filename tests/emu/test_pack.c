/* Summaries, int8 rows and sketches of a segment: code for code what the CPU makes. */
#include "tests/emu/emu_test.h"

struct pack_case {
    uint32_t heads, dk, dv, n, first_block;
    hr_dtype_t dtype;
};

/* Rows dealt to blocks of 0..40 rows. */
static uint32_t deal(struct hri_rng *rng, uint32_t n, uint32_t n_blocks, uint32_t *order,
                     uint32_t *begin)
{
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = (uint32_t)hri_rng_below(rng, i), swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
    begin[0] = 0;
    for (uint32_t b = 1; b < n_blocks; b++) {
        uint32_t left = n - begin[b - 1];
        begin[b] = begin[b - 1] + (uint32_t)hri_rng_below(rng, (left < 40 ? left : 40) + 1);
    }
    begin[n_blocks] = n - begin[n_blocks - 1] > 255 ? begin[n_blocks - 1] + 255 : n;
    return begin[n_blocks];
}

static void mean_of(const float *rows, size_t width, const uint32_t *order, uint32_t n,
                    uint32_t first, uint32_t d, float *mean)
{
    for (uint32_t j = 0; j < d; j++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += (double)rows[order[i] * width + first + j];
        mean[j] = n ? (float)(sum / n) : 0;
    }
}

/* As index/summary.c and runtime/settle.c do it, for one block. */
static void check_block(const struct pack_case *c, const struct hri_cuda_pack_args *p, uint32_t h,
                        uint32_t b, const float *rows)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const uint32_t dk = c->dk, dv = c->dv, width = dk + dv, at = c->first_block + b;
    const uint32_t *begin = p->block_begin + (size_t)h * (p->n_blocks + 1) + b;
    const uint32_t *order = p->order + (size_t)h * c->n + begin[0], n = begin[1] - begin[0];
    const size_t block = (size_t)h * p->blocks_max + at;
    float mean[HR_HEAD_DIM_MAX], centre[2 * HR_HEAD_DIM_MAX], zero[HR_HEAD_DIM_MAX] = {0},
                                                              back[256];
    int8_t v_codes[HR_HEAD_DIM_MAX], *codes = malloc(255 * (size_t)width + 1);
    float *gathered = malloc(255 * (size_t)width * sizeof(float) + 1);
    uint8_t *packed = calloc(1, hri_centroids_bytes(16, dk));
    assert_true(codes && gathered && packed);

    mean_of(rows, width, order, n, 0, dk, mean);
    for (uint32_t j = 0; j < dk; j++)
        mean[j] -= p->k_mean[h * dk + j];
    float step = hri_centroid_pack(packed, dk, at % 16, mean);
    CHECK_BELOW(fabs((double)(step - p->k_scale[block])), 0);
    hri_centroid_unpack(packed, dk, at % 16, step, centre);
    hri_centroid_unpack(p->k_codes + (size_t)h * p->blocks_max * dk, dk, at, step, back);
    CHECK_BELOW(absolute_error(back, centre, dk), 0);
    for (uint32_t j = 0; j < dk; j++)
        centre[j] += p->k_mean[h * dk + j];
    mean_of(rows, width, order, n, dk, dv, mean);
    step = ref->quantise_i8(mean, dv, 1, dv, zero, v_codes, dv);
    CHECK_BELOW(fabs((double)(step - p->v_scale[block])), 0);
    if (memcmp(v_codes, p->v_codes + block * dv, dv) != 0)
        fail_msg("%s: head %u block %u: codes of the value mean differ", case_text, h, b);
    for (uint32_t j = 0; j < dv; j++)
        centre[dk + j] = step * (float)v_codes[j];

    for (uint32_t i = 0; i < n; i++)
        memcpy(gathered + (size_t)i * width, rows + (size_t)order[i] * width,
               width * sizeof(float));
    step = ref->quantise_i8(gathered, width, n, dk, centre, codes, width);
    CHECK_BELOW(fabs((double)(step - p->k_step[block])), 0);
    step = ref->quantise_i8(gathered + dk, width, n, dv, centre + dk, codes + dk, width);
    CHECK_BELOW(fabs((double)(step - p->v_step[block])), 0);
    if (memcmp(codes, p->codes + ((size_t)h * c->n + begin[0]) * width, n * width) != 0)
        fail_msg("%s: head %u block %u: codes of rows differ", case_text, h, b);
    assert_int_equal(p->block_rows[block], n);
    assert_memory_equal(p->centres + block * width, centre, width * sizeof(float));
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(p->block_of[(size_t)h * c->n + begin[0] + i], b);
    free(codes);
    free(gathered);
    free(packed);
}

static void run_pack(const struct pack_case *c, int order)
{
    struct hri_rng rng;
    hri_rng_seed(&rng, 5 + c->n);
    const uint32_t width = c->dk + c->dv, n_blocks = c->n / 18 + 2;
    const size_t n_rows = (size_t)c->heads * c->n;
    float *wide = malloc(n_rows * width * sizeof(float));
    uint32_t *orders = device_alloc(n_rows * 4),
             *begin = device_alloc((size_t)c->heads * (n_blocks + 1) * 4);
    assert_non_null(wide);
    void *rows = device_alloc(n_rows * width * dtype_bytes(c->dtype));
    fill_normal(&rng, wide, n_rows * width, 2);
    for (size_t i = 0; i < n_rows; i += 7) /* equal rows: blocks without any spread */
        memset(wide + i * width, 0, width * sizeof(float));
    to_dtype(rows, wide, c->dtype, n_rows * width);
    for (uint32_t h = 0; h < c->heads; h++)
        deal(&rng, c->n, n_blocks, orders + (size_t)h * c->n, begin + (size_t)h * (n_blocks + 1));
    struct hri_cuda_pack_args p = {.rows = rows,
                                   .dtype = c->dtype,
                                   .n = c->n,
                                   .n_blocks = n_blocks,
                                   .first_block = c->first_block,
                                   .order = orders,
                                   .block_begin = begin};
    p.k_mean = device_normal(&rng, (size_t)c->heads * c->dk, 1);
    p.blocks_max = (c->first_block + n_blocks + 15) / 16 * 16;
    const size_t blocks = (size_t)c->heads * p.blocks_max;
    p.k_codes = device_alloc(blocks * c->dk);
    p.v_codes = device_alloc(blocks * c->dv);
    p.k_scale = device_alloc(blocks * 4);
    p.v_scale = device_alloc(blocks * 4);
    p.k_step = device_alloc(blocks * 4);
    p.v_step = device_alloc(blocks * 4);
    p.block_rows = device_alloc(blocks);
    p.codes = device_alloc(n_rows * width);
    p.centres = device_alloc(blocks * width * 4);
    p.block_of = device_alloc(n_rows * 4);
    set_order(order);
    RUN(hri_cuda_pack(&p, (struct hri_cuda_heads){c->heads, 1, c->dk, c->dv}, NULL));
    for (uint32_t h = 0; h < c->heads; h++)
        for (uint32_t b = 0; b < n_blocks; b++)
            check_block(c, &p, h, b, wide + (size_t)h * c->n * width);
    free(wide);
    device_free_all();
}

static void test_blocks_equal_reference(void **state)
{
    (void)state;
    const uint32_t counts[] = {1, 17, 100};
    FOR_EACH(d, cuda_dims)
    FOR_EACH(t, dtypes)
    FOR_EACH(i, counts)
    {
        struct pack_case c = {1 + (uint32_t)i % 2, cuda_dims[d][0],       cuda_dims[d][1],
                              counts[i],           (uint32_t)(d * 5 + i), dtypes[t]};
        CASE("pack %u rows %u+%u dtype %d", c.n, c.dk, c.dv, c.dtype);
        run_pack(&c, (int)((d + i) % 3));
    }
}

static void run_sketch(uint32_t heads, uint32_t n4, uint32_t n2, uint32_t first_row, uint32_t n,
                       int order)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    struct hri_rng rng;
    hri_rng_seed(&rng, n4 * 31 + n2 + n);
    const size_t coded = n4 + n2, z_stride = coded + 3;
    const size_t groups = (first_row + n + 15) / 16,
                 bytes = groups * hri_sketch_group_bytes(n4, n2);
    float *z = device_normal(&rng, heads * n * z_stride, 3),
          *inverse = device_alloc(heads * coded * 4);
    for (size_t i = 0; i < heads * coded; i++)
        inverse[i] = 0.2f + 3.0f * hri_rng_f32(&rng);
    if (n > 0)
        z[0] = NAN;
    uint8_t *expected = malloc(heads * bytes + 1), *codes = device_alloc(heads * bytes);
    assert_non_null(expected);
    memset(expected, 0xff, heads * bytes);
    struct hri_cuda_pack_sketch_args p = {z, inverse, codes, z_stride, bytes, n4, n2, n, first_row};
    for (uint32_t h = 0; h < heads; h++)
        ref->pack_sketch(z + h * n * z_stride, z_stride, n, inverse + h * coded, n4, n2,
                         expected + h * bytes, first_row);
    set_order(order);
    RUN(hri_cuda_pack_sketch(&p, heads, NULL));
    if (memcmp(codes, expected, heads * bytes) != 0)
        fail_msg("%s: codes differ", case_text);
    free(expected);
    device_free_all();
}

static void test_sketches_equal_reference(void **state)
{
    (void)state;
    const uint32_t splits[][2] = {{8, 0},   {0, 16},    {8, 16}, {64, 64},
                                  {32, 96}, {128, 128}, {0, 256}};
    const uint32_t counts[] = {0, 1, 15, 16, 17, 33};
    FOR_EACH(s, splits)
    FOR_EACH(i, counts)
    {
        CASE("sketch %u+%u, %u rows", splits[s][0], splits[s][1], counts[i]);
        run_sketch(1 + (uint32_t)s % 2, splits[s][0], splits[s][1], (uint32_t)(i * 7), counts[i],
                   (int)(i % 3));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_blocks_equal_reference),
                                       EMU_TEST(test_sketches_equal_reference)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
