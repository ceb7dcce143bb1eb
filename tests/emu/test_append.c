/* Appending rows: bit for bit what the reference's conversions give. */
#include "tests/emu/emu_test.h"

struct shape {
    uint32_t n, heads, dk, dv, capacity, length;
    hr_dtype_t from, to;
    bool by_head;   /* [heads][n][d] in memory */
    uint32_t shift; /* elements the data is off a 16-byte boundary */
};

static void *source(struct hri_rng *rng, const struct shape *s, uint32_t d, int64_t *token_stride,
                    int64_t *head_stride, float *wide)
{
    size_t n = (size_t)s->n * s->heads * d, bytes = dtype_bytes(s->from);
    unsigned char *p = device_alloc((n + s->shift) * bytes);
    fill_normal(rng, wide, n, 3);
    to_dtype(p + s->shift * bytes, wide, s->from, n);
    *token_stride = s->by_head ? d : (int64_t)s->heads * d;
    *head_stride = s->by_head ? (int64_t)s->n * d : d;
    return p + s->shift * bytes;
}

static void run(const struct shape *s, int order)
{
    const struct hri_kernels *ref = hri_kernels_get(HRI_KERNEL_REF);
    struct hri_rng rng;
    hri_rng_seed(&rng, 17 + s->n);
    size_t width = s->dk + s->dv, row = width * dtype_bytes(s->to);
    size_t tail_bytes = (size_t)s->heads * s->capacity * row;
    float *k = malloc((size_t)s->n * s->heads * s->dk * 4 + 4),
          *v = malloc((size_t)s->n * s->heads * s->dv * 4 + 4);
    unsigned char *expected = malloc(tail_bytes);
    assert_true(k && v && expected);
    struct hri_cuda_append_args a = {
        .from = s->from, .to = s->to, .capacity = s->capacity, .advance = 1};
    a.k = source(&rng, s, s->dk, &a.k_token_stride, &a.k_head_stride, k);
    a.v = source(&rng, s, s->dv, &a.v_token_stride, &a.v_head_stride, v);
    a.tail = device_alloc(tail_bytes);
    a.length = device_copy(&s->length, sizeof s->length);
    a.bad = device_alloc(sizeof *a.bad); /* all ones */
    memset(expected, 0xff, tail_bytes);
    for (uint32_t t = 0; t < s->n; t++)
        for (uint32_t h = 0; h < s->heads; h++) {
            unsigned char *to =
                expected + ((size_t)h * s->capacity + (s->length + t) % s->capacity) * row;
            size_t at = s->by_head ? (size_t)h * s->n + t : (size_t)t * s->heads + h;
            ref->from_f32(to, k + at * s->dk, s->to, s->dk);
            ref->from_f32(to + s->dk * dtype_bytes(s->to), v + at * s->dv, s->to, s->dv);
        }
    set_order(order);
    RUN(hri_cuda_append(&a, (struct hri_cuda_heads){s->heads, 1, s->dk, s->dv}, s->n, NULL));
    if (memcmp(a.tail, expected, tail_bytes) != 0)
        fail_msg("%s: rows differ", case_text);
    assert_int_equal(*a.bad, UINT32_MAX);
    assert_int_equal(*a.length, s->length + s->n);
    free(k);
    free(v);
    free(expected);
    device_free_all();
}

static void test_equals_reference(void **state)
{
    (void)state;
    FOR_EACH(f, dtypes)
    FOR_EACH(t, dtypes)
    FOR_EACH(d, cuda_dims)
    {
        const uint32_t counts[] = {0, 1, 2, 17};
        FOR_EACH(c, counts)
        {
            struct shape s = {.n = counts[c],
                              .heads = 1 + (uint32_t)d % 3,
                              .dk = cuda_dims[d][0],
                              .dv = cuda_dims[d][1],
                              .capacity = 20,
                              .length = (uint32_t)c * 7,
                              .from = dtypes[f],
                              .to = dtypes[t],
                              .by_head = d % 2,
                              .shift = (uint32_t)(c == 2)};
            CASE("append %u rows, %u heads, %u+%u, %d -> %d", s.n, s.heads, s.dk, s.dv, s.from,
                 s.to);
            run(&s, (int)(c % 3));
        }
    }
}

static void test_names_the_first_bad_number(void **state)
{
    (void)state;
    const uint32_t heads = 2, dk = 64, dv = 64, n = 3;
    FOR_EACH(f, dtypes)
    {
        CASE("bad numbers, to %d", dtypes[f]);
        float *k = device_zero(n * heads * dk * 4), *v = device_zero(n * heads * dv * 4);
        k[2 * heads * dk + 5] = INFINITY;
        v[(1 * heads + 1) * dv + 9] = dtypes[f] == HR_DTYPE_F16 ? 70000.0f : NAN;
        uint32_t zero = 0, first = (1 * heads + 1) * (dk + dv) + dk + 9;
        struct hri_cuda_append_args a = {.k = k,
                                         .v = v,
                                         .k_token_stride = heads * dk,
                                         .k_head_stride = dk,
                                         .v_token_stride = heads * dv,
                                         .v_head_stride = dv,
                                         .from = HR_DTYPE_F32,
                                         .to = dtypes[f],
                                         .capacity = 4};
        a.tail = device_alloc(heads * 4 * (dk + dv) * 4);
        a.length = device_copy(&zero, 4);
        a.bad = device_alloc(4);
        FOR_EACH_ORDER(order)
        {
            *a.bad = UINT32_MAX;
            set_order(order);
            RUN(hri_cuda_append(&a, (struct hri_cuda_heads){heads, 1, dk, dv}, n, NULL));
            assert_int_equal(*a.bad, first);
        }
        assert_int_equal(*a.length, 0);
        device_free_all();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {EMU_TEST(test_equals_reference),
                                       EMU_TEST(test_names_the_first_bad_number)};
    return cmocka_run_group_tests(tests, small_machine, NULL);
}
