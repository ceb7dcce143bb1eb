/* Causal attention streamed over chunks against attend_rows of the reference, query by query.
 *
 * Tolerances: queries and weights are rounded to the rows' type, so outputs agree to 1.5e-2
 * (bfloat16) or 2e-3 (float16) of their size, log-sum-exps to the same. */
#include "tests/emu/emu_test.h"

struct setup {
    struct hri_cuda_heads heads;
    hr_dtype_t dtype, q_dtype, out_dtype;
    uint32_t n_tokens, q_first, window, chunk; /* rows of a chunk */
    float soft_cap;
    int order;
};

static void run(const struct setup *t)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    const struct hri_cuda_heads hd = t->heads;
    const uint32_t total = t->q_first + t->n_tokens, n_q = hd.n * hd.g, width = hd.dk + hd.dv;
    const size_t row = width * 2, n_out = (size_t)t->n_tokens * n_q * hd.dv;
    struct hri_rng rng;
    hri_rng_seed(&rng, 3 + t->n_tokens);
    float *wide = malloc((size_t)hd.n * total * width * 4),
          *q = malloc((size_t)t->n_tokens * n_q * hd.dk * 4), *out = malloc(n_out * 4);
    assert_true(wide && q && out);
    unsigned char *rows = device_alloc((size_t)hd.n * total * row);
    fill_normal(&rng, wide, (size_t)hd.n * total * width, 1);
    to_dtype(rows, wide, t->dtype, (size_t)hd.n * total * width);
    fill_normal(&rng, q, (size_t)t->n_tokens * n_q * hd.dk, 1);
    void *q_device = device_alloc((size_t)t->n_tokens * n_q * hd.dk * dtype_bytes(t->q_dtype));
    to_dtype(q_device, q, t->q_dtype, (size_t)t->n_tokens * n_q * hd.dk);
    const float scale = 1.0f / sqrtf((float)hd.dk);
    struct hri_cuda_prefill_args a = {.q = q_device,
                                      .q_token_stride = (int64_t)n_q * hd.dk,
                                      .q_head_stride = hd.dk,
                                      .q_dtype = t->q_dtype,
                                      .scale = scale,
                                      .soft_cap = t->soft_cap,
                                      .n_tokens = t->n_tokens,
                                      .q_first = t->q_first,
                                      .window = t->window,
                                      .head_stride_bytes = total * row,
                                      .dtype = t->dtype,
                                      .out_token_stride = (int64_t)n_q * hd.dv,
                                      .out_head_stride = hd.dv,
                                      .out_dtype = t->out_dtype};
    a.m = device_alloc((size_t)t->n_tokens * n_q * 4);
    a.l = device_alloc((size_t)t->n_tokens * n_q * 4);
    a.o = device_alloc(n_out * 4);
    a.out = device_alloc(n_out * dtype_bytes(t->out_dtype));
    a.lse = device_alloc((size_t)t->n_tokens * n_q * 4);
    set_order(t->order);
    for (uint32_t first = 0; first < total; first += t->chunk) {
        a.rows = rows + first * row;
        a.rows_first = first;
        a.n_rows = total - first < t->chunk ? total - first : t->chunk;
        a.first = first == 0;
        a.last = first + t->chunk >= total;
        RUN(hri_cuda_prefill(&a, hd, NULL));
    }
    ref->to_f32(out, a.out, t->out_dtype, n_out);
    const double tolerance =
        t->dtype == HR_DTYPE_F16 && t->out_dtype != HR_DTYPE_BF16 ? 2e-3 : 1.5e-2;
    for (uint32_t i = 0; i < t->n_tokens; i++)
        for (uint32_t head = 0; head < n_q; head++) {
            float m, l, o[HR_HEAD_DIM_MAX], want[HR_HEAD_DIM_MAX], lse, query[HR_HEAD_DIM_MAX];
            struct hri_partial part = {&m, &l, o};
            const uint32_t own = t->q_first + i + 1;
            const uint32_t from = t->window && own > t->window ? own - t->window : 0;
            const size_t at = (size_t)i * n_q + head;
            for (uint32_t j = 0; j < hd.dk; j++)
                query[j] = q[at * hd.dk + j] * scale;
            struct hri_rows seen = {rows + ((size_t)(head / hd.g) * total + from) * row, row,
                                    own - from, t->dtype};
            hri_partial_clear(&part, 1, hd.dv);
            ref->attend_rows(query, 1, hd.dk, hd.dv, seen, t->soft_cap, &part);
            hri_partial_finish(&part, 1, hd.dv, want, &lse);
            CHECK_BELOW(relative_error(out + at * hd.dv, want, hd.dv), tolerance);
            CHECK_BELOW(fabs((double)(a.lse[at] - lse)), tolerance);
        }
    free(wide);
    free(q);
    free(out);
    device_free_all();
}

static void test_dims(void **state)
{
    (void)state;
    FOR_EACH(d, cuda_dims)
    for (int f16 = 0; f16 < 2; f16++) {
        struct setup t = {.heads = {1 + (uint32_t)f16, 2, cuda_dims[d][0], cuda_dims[d][1]},
                          .dtype = f16 ? HR_DTYPE_F16 : HR_DTYPE_BF16,
                          .q_dtype = dtypes[d % 3],
                          .out_dtype = dtypes[(d + 1) % 3],
                          .n_tokens = 35,
                          .q_first = 10,
                          .chunk = 45,
                          .order = (int)(d % 3)};
        CASE("prefill %u+%u, dtype %d", t.heads.dk, t.heads.dv, t.dtype);
        run(&t);
    }
}

static void test_lengths_and_chunks(void **state)
{
    (void)state;
    const uint32_t tokens[] = {1, 15, 16, 17, 63, 64, 65}, chunks[] = {1000, 64, 48, 17};
    FOR_EACH(i, tokens)
    FOR_EACH(c, chunks)
    {
        if (c > 1 && tokens[i] > 20 && tokens[i] != 65)
            continue;
        struct setup t = {.heads = {1, 1 + (uint32_t)i % 4, 64, 64},
                          .dtype = HR_DTYPE_BF16,
                          .n_tokens = tokens[i],
                          .q_first = (uint32_t)c * 9,
                          .chunk = chunks[c],
                          .order = (int)((i + c) % 3)};
        CASE("prefill %u tokens, chunks of %u", t.n_tokens, t.chunk);
        run(&t);
    }
}

static void test_windows_and_caps(void **state)
{
    (void)state;
    const uint32_t windows[] = {1, 16, 33, 500};
    FOR_EACH(w, windows)
    {
        struct setup t = {.heads = {2, 3, 64, 64},
                          .dtype = HR_DTYPE_F16,
                          .n_tokens = 50,
                          .q_first = 40,
                          .window = windows[w],
                          .chunk = 32,
                          .soft_cap = w % 2 ? 2 : 0,
                          .order = (int)(w % 3)};
        CASE("prefill, window of %u", t.window);
        run(&t);
    }
}

static void test_many_heads(void **state)
{
    (void)state;
    struct setup t = {.heads = {1, 16, 128, 128},
                      .dtype = HR_DTYPE_BF16,
                      .n_tokens = 9,
                      .q_first = 70,
                      .chunk = 40,
                      .order = HRI_EMU_SHUFFLED};
    CASE("prefill, 16 query heads");
    run(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_dims), EMU_TEST(test_lengths_and_chunks),
                                       EMU_TEST(test_windows_and_caps), EMU_TEST(test_many_heads)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
