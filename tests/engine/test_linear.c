/* Threads that share items, and products of several weights over them: a vector at a time and as a
 * matrix. */
#include "tests/test.h"

#include <math.h>
#include <stdatomic.h>
#include <unistd.h>

#include "engine/fail.h"
#include "engine/gguf.h"
#include "engine/linear.h"
#include "engine/repack.h"
#include "tests/engine/gguf_make.h"

static const uint32_t types[] = {HRE_WEIGHT_Q4_1, HRE_WEIGHT_F32, HRE_WEIGHT_Q8_0};

struct tally {
    _Atomic uint32_t done[512];
    uint32_t n_threads;
};

static void count_item(void *context, uint32_t item, uint32_t thread)
{
    struct tally *t = context;

    if (thread >= t->n_threads) {
        atomic_store(&t->done[item], 1000);
    }
    atomic_fetch_add(&t->done[item], 1);
}

static void test_workers(void **state)
{
    struct tally tally;

    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 5; n_threads += 2) {
        struct hre_workers *w;

        assert_int_equal(hre_workers_create(n_threads, &w), HR_OK);
        assert_int_equal(hre_workers_count(w), n_threads);
        for (uint32_t round = 0; round < 2000; round++) {
            uint32_t n_items = round % 512;

            memset(&tally, 0, sizeof(tally));
            tally.n_threads = n_threads;
            hre_workers_run(w, count_item, &tally, n_items);
            for (uint32_t i = 0; i < 512; i++) {
                assert_int_equal(tally.done[i], i < n_items);
            }
            if (round % 7 == 0) {
                hre_workers_rest(w);
            }
            if (round % 500 == 0) {
                usleep(2000); /* long enough for all to fall asleep */
            }
        }
        hre_workers_destroy(w);
    }
    hre_workers_destroy(NULL);
}

struct example {
    struct hre_weight w[3];
    unsigned char *data[3];
    float *bias, *x, *expected[3], *y[3];
};

static void make_example(struct example *e, uint32_t cols, uint32_t m, uint64_t *seed)
{
    const struct hre_ops *ref;

    assert_int_equal(hre_ops_choose("ref", &ref), HR_OK);
    e->x = malloc(4 * (size_t)m * cols);
    gguf_random_weights(seed, HRE_WEIGHT_F32, (size_t)m * cols, 1.0f, e->x);
    for (int i = 0; i < 3; i++) {
        uint32_t rows = 5 + 61 * (uint32_t)i;
        size_t row_bytes = gguf_weight_bytes(types[i], cols);
        float *w = malloc(4 * (size_t)cols);

        e->data[i] = malloc(row_bytes * rows);
        e->y[i] = malloc(4 * (size_t)m * rows);
        e->expected[i] = malloc(4 * (size_t)m * rows);
        gguf_random_weights(seed, types[i], (size_t)rows * cols, 1.0f, e->data[i]);
        e->w[i] = (struct hre_weight){e->data[i], types[i], rows, cols, row_bytes, NULL, 0};
        if (i == 1) {
            e->bias = malloc(4 * (size_t)rows);
            gguf_random_weights(seed, HRE_WEIGHT_F32, rows, 1.0f, e->bias);
            e->w[i].bias = e->bias;
        }
        for (uint32_t r = 0; r < rows; r++) {
            ref->dequantise[types[i]](e->data[i] + r * row_bytes, cols, w);
            for (uint32_t j = 0; j < m; j++) {
                double sum = i == 1 ? (double)e->bias[r] : 0.0;

                for (uint32_t c = 0; c < cols; c++) {
                    sum += (double)w[c] * (double)e->x[(size_t)j * cols + c];
                }
                e->expected[i][(size_t)j * rows + r] = (float)sum;
            }
        }
        free(w);
    }
}

/* As the model does where the level has dot products of groups. */
static void repack_example(struct example *e, const struct hre_ops *ops)
{
    for (int i = 0; i < 3; i++) {
        struct hre_weight *w = &e->w[i];
        size_t bytes = HRE_GROUP_ROWS * w->row_bytes;
        unsigned char *rows = malloc(bytes);

        for (uint32_t g = 0; ops->dot_groups[w->type] && g < w->rows / HRE_GROUP_ROWS; g++) {
            memcpy(rows, e->data[i] + g * bytes, bytes);
            hre_repack_group(w->type, rows, w->row_bytes, e->data[i] + g * bytes);
            w->packed_rows += HRE_GROUP_ROWS;
        }
        free(rows);
    }
}

static void check_and_free(struct example *e, uint32_t m, const char *what)
{
    for (int i = 0; i < 3; i++) {
        for (size_t j = 0; j < (size_t)m * e->w[i].rows; j++) {
            if (!(fabsf(e->y[i][j] - e->expected[i][j]) < 1e-4f)) {
                fail_msg("%s, weight %d, m %u, element %zu: %g, not %g", what, i, m, j,
                         (double)e->y[i][j], (double)e->expected[i][j]);
            }
        }
        free(e->data[i]);
        free(e->y[i]);
        free(e->expected[i]);
    }
    free(e->bias);
    free(e->x);
}

static void test_apply(void **state)
{
    static const char *const names[] = {"ref", "avx2", "avx512"};
    static const uint32_t ms[] = {1, 2,  1, 3,
                                  4, 13, 4, 30}; /* two of them as in the file, two repacked */
    uint64_t seed = test_seed(8);

    (void)state;
    for (size_t l = 0; l < 3; l++) {
        const struct hre_ops *ops;

        if (hre_ops_choose(names[l], &ops) != HR_OK) {
            continue;
        }
        for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
            struct hre_workers *workers;
            struct hre_linear *linear;

            assert_int_equal(hre_workers_create(n_threads, &workers), HR_OK);
            assert_int_equal(hre_linear_create(ops, workers, 96, &linear), HR_OK);
            for (size_t i = 0; i < sizeof(ms) / sizeof(ms[0]); i++) {
                struct example e;
                uint32_t cols = 32 + 64 * (i % 2);

                make_example(&e, cols, ms[i], &seed);
                if (i / 2 % 2) {
                    repack_example(&e, ops);
                }
                struct hre_product products[] = {
                    {&e.w[0], e.y[0]}, {&e.w[1], e.y[1]}, {&e.w[2], e.y[2]}};
                hre_linear_apply(linear, e.x, ms[i], products, 3);
                check_and_free(&e, ms[i], names[l]);
            }
            hre_linear_destroy(linear);
            hre_workers_destroy(workers);
        }
    }
    hre_linear_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_workers),
        cmocka_unit_test(test_apply),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
