/* A decoder's small operations against the CPU engine's plain C (engine/ops.h): embeddings bit for bit, norms and rotations to 1e-5 of
 * their size, activations to 1e-5 of theirs. Results in bfloat16 are those in float32, rounded. */
#include "tests/emu/emu_test.h"

#include "engine/ops.h"

static const struct hre_ops *ops(void)
{
    return &hre_ops_ref;
}

/* y as bfloat16 is what rounding gives, bit for bit, of the same kernel's float32. */
static void check_rounded(const uint16_t *rounded, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (rounded[i] != hri_bf16_from_f32(y[i]))
            fail_msg("%s: %zu: %04x is not %g rounded", case_text, i, rounded[i], (double)y[i]);
}

static void test_embed(void **state)
{
    (void)state;
    const uint32_t widths[] = {8, 128, 576}, counts[] = {0, 1, 2, 33}, vocab = 50;
    FOR_EACH(w, widths)
    FOR_EACH(c, counts)
    for (int smears = 0; smears < 2; smears++) {
        const uint32_t width = widths[w], n = counts[c];
        struct hri_rng rng;
        CASE("embed %u tokens of %u, smear %d", n, width, smears);
        hri_rng_seed(&rng, 5 + n);
        float *wide = malloc((size_t)vocab * width * 4);
        assert_non_null(wide);
        fill_normal(&rng, wide, (size_t)vocab * width, 1);
        uint16_t *table = device_alloc((size_t)vocab * width * 2);
        to_dtype(table, wide, HR_DTYPE_BF16, (size_t)vocab * width);
        uint32_t *ids = device_alloc((n + 1) * 4);
        for (uint32_t i = 0; i <= n; i++)
            ids[i] = (uint32_t)hri_rng_below(&rng, vocab);
        ids[0] = c % 2 ? HRI_CUDA_NONE : ids[0];
        struct hri_cuda_embed_args a = {.table = table,
                                        .ids = ids,
                                        .smear = smears ? device_normal(&rng, width, 1) : NULL,
                                        .x = device_alloc((size_t)n * width * 4),
                                        .width = width};
        set_order((int)(w % 3));
        RUN(hri_cuda_embed(&a, n, NULL));
        for (uint32_t i = 0; i < n * width; i++) {
            const uint32_t before = ids[i / width];
            float want = wide[(size_t)ids[i / width + 1] * width + i % width];
            if (smears && before != HRI_CUDA_NONE)
                want += a.smear[i % width] * wide[(size_t)before * width + i % width];
            if (!(fabsf(a.x[i] - want) <= 1e-6f * (1 + fabsf(want))) || (!smears && a.x[i] != want))
                fail_msg("%s: %u: %g instead of %g", case_text, i, (double)a.x[i], (double)want);
        }
        free(wide);
        device_free_all();
    }
}

static void norm_case(uint32_t width, uint32_t n, bool layer, bool adds)
{
    struct hri_rng rng;
    const size_t all = (size_t)n * width;
    CASE("norm %u rows of %u, layer %d, delta %d", n, width, layer, adds);
    hri_rng_seed(&rng, 11 + width);
    float *x = device_normal(&rng, all, 3), *delta = device_normal(&rng, all, 2);
    for (size_t i = 0; i < all; i++)
        x[i] += 0.5f; /* so that the mean matters */
    float *before = malloc(all * 4 + 4), *want = malloc(all * 4 + 4);
    assert_true(before && want);
    memcpy(before, x, all * 4);
    struct hri_cuda_norm_args a = {.x = x,
                                   .delta = adds ? delta : NULL,
                                   .weight = device_normal(&rng, width, 1),
                                   .bias = layer ? device_normal(&rng, width, 1) : NULL,
                                   .eps = 1e-5f,
                                   .width = width,
                                   .y = device_alloc(all * 4),
                                   .y_dtype = HR_DTYPE_F32};
    RUN(hri_cuda_norm(&a, n, NULL));
    for (uint32_t i = 0; i < n; i++) {
        float *row = before + (size_t)i * width;
        if (adds)
            ops()->add(row, delta + (size_t)i * width, width);
        if (layer)
            ops()->layer_norm(row, a.weight, a.bias, a.eps, width, want + (size_t)i * width);
        else
            ops()->rms_norm(row, a.weight, a.eps, width, want + (size_t)i * width);
        CHECK_BELOW(
            relative_error((float *)a.y + (size_t)i * width, want + (size_t)i * width, width),
            1e-5);
    }
    if (memcmp(x, before, all * 4) != 0)
        fail_msg("%s: the stream differs", case_text);
    struct hri_cuda_norm_args half = a;
    half.delta = NULL;
    half.y = device_alloc(all * 2);
    half.y_dtype = HR_DTYPE_BF16;
    RUN(hri_cuda_norm(&half, n, NULL));
    check_rounded(half.y, a.y, all);
    free(before);
    free(want);
    device_free_all();
}

static void test_norm(void **state)
{
    (void)state;
    const uint32_t widths[] = {8, 128, 255, 576, 2048};
    FOR_EACH(w, widths)
    for (int kind = 0; kind < 4; kind++) {
        set_order(kind % 3);
        norm_case(widths[w], 1 + (uint32_t)w * 9, kind % 2, kind / 2);
    }
    norm_case(30000, 1, false, true); /* too wide for shared memory */
    norm_case(30000, 2, true, false);
}

static void test_rope(void **state)
{
    (void)state;
    const uint32_t sizes[][2] = {{16, 16}, {64, 64}, {80, 32}, {128, 2}};
    FOR_EACH(d, sizes)
    for (int layout = HR_ROPE_NONE; layout <= HR_ROPE_INTERLEAVED; layout++) {
        const uint32_t dim = sizes[d][0], n_rot = sizes[d][1], n = 1 + (uint32_t)d * 7, n_q = 6,
                       n_kv = 2;
        struct hri_rng rng;
        CASE("rope %u of %u dimensions, layout %d", n_rot, dim, layout);
        hri_rng_seed(&rng, 3);
        const size_t pairs = (size_t)n * (n_rot / 2);
        float *cosine = device_normal(&rng, pairs, 1), *sine = device_normal(&rng, pairs, 1);
        float *q = device_normal(&rng, (size_t)n * n_q * dim, 1),
              *k = device_normal(&rng, (size_t)n * n_kv * dim, 1);
        float *want_q = malloc((size_t)n * n_q * dim * 4),
              *want_k = malloc((size_t)n * n_kv * dim * 4);
        assert_true(want_q && want_k);
        memcpy(want_q, q, (size_t)n * n_q * dim * 4);
        memcpy(want_k, k, (size_t)n * n_kv * dim * 4);
        for (uint32_t t = 0; t < n; t++) {
            const size_t at = (size_t)t * (n_rot / 2);
            ops()->rope(want_q + (size_t)t * n_q * dim, n_q, dim, n_rot, (hr_rope_layout_t)layout,
                        cosine + at, sine + at);
            ops()->rope(want_k + (size_t)t * n_kv * dim, n_kv, dim, n_rot, (hr_rope_layout_t)layout,
                        cosine + at, sine + at);
        }
        struct hri_cuda_rope_args a = {.q = q,
                                       .k = k,
                                       .n_q = n_q,
                                       .n_kv = n_kv,
                                       .dim = dim,
                                       .n_rot = n_rot,
                                       .layout = (hr_rope_layout_t)layout,
                                       .cosine = cosine,
                                       .sine = sine};
        set_order(layout);
        RUN(hri_cuda_rope(&a, n, NULL));
        CHECK_BELOW(relative_error(q, want_q, n * n_q * dim), 1e-5);
        CHECK_BELOW(relative_error(k, want_k, n * n_kv * dim), 1e-5);
        free(want_q);
        free(want_k);
        device_free_all();
    }
}

static void test_activate(void **state)
{
    (void)state;
    const size_t sizes[] = {0, 1, 255, 257, 5000};
    FOR_EACH(s, sizes)
    for (int gated = 0; gated < 2; gated++) {
        const size_t n = sizes[s];
        struct hri_rng rng;
        CASE("activate %zu, gated %d", n, gated);
        hri_rng_seed(&rng, 9);
        float *gate = device_normal(&rng, n, 20), *up = device_normal(&rng, n, gated ? 1 : 20);
        float *want = malloc(n * 4 + 4), *out = device_alloc(n * 4);
        uint16_t *half = device_alloc(n * 2);
        assert_non_null(want);
        memcpy(want, gated ? gate : up, n * 4);
        if (gated)
            ops()->swiglu(want, up, (uint32_t)n);
        else
            ops()->gelu(want, (uint32_t)n);
        set_order((int)(s % 3));
        RUN(hri_cuda_activate(gated ? gate : NULL, up, n, out, HR_DTYPE_F32, NULL));
        RUN(hri_cuda_activate(gated ? gate : NULL, up, n, half, HR_DTYPE_BF16, NULL));
        for (size_t i = 0; i < n; i++)
            CHECK_BELOW(fabs((double)out[i] - want[i]), 1e-5 * (1e-3 + fabs((double)want[i])));
        check_rounded(half, out, n);
        free(want);
        device_free_all();
    }
}

static void test_convert(void **state)
{
    (void)state;
    const size_t sizes[] = {0, 1, 31, 1000};
    FOR_EACH(s, sizes)
    {
        struct hri_rng rng;
        CASE("convert %zu", sizes[s]);
        hri_rng_seed(&rng, 2);
        float *x = device_normal(&rng, sizes[s], 1), *y = device_alloc(3 * sizes[s] * 4);
        uint16_t *half = device_alloc(sizes[s] * 2);
        RUN(hri_cuda_round(x, sizes[s], half, NULL));
        check_rounded(half, x, sizes[s]);
        RUN(hri_cuda_repeat(x, 3, (uint32_t)sizes[s], y, NULL));
        for (size_t i = 0; i < 3; i++)
            assert_memory_equal(y + i * sizes[s], x, sizes[s] * 4);
        device_free_all();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_embed), EMU_TEST(test_norm),
                                       EMU_TEST(test_rope), EMU_TEST(test_activate),
                                       EMU_TEST(test_convert)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
