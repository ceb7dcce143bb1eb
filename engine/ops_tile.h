/*
 * Matrix products over packed tiles of weights, written over the vector operations that ops_dot.h
 * lists, vf_store and transpose. The core keeps TILE_M x 2 vectors of sums in registers: two loads
 * of weights and TILE_M broadcasts of activations feed 2 TILE_M multiply-adds.
 */
#define TILE_ROWS (2 * LANES)
#define TILE_K                                                                                     \
    1024 /* weights of a tile that are gone through at a time: 128 KiB at 16 lanes, which stay in  \
            cache */

static void pack(const float *rows, uint32_t n_rows, uint32_t k, float *packed)
{
    uint32_t i = 0;

    for (; n_rows == TILE_ROWS && i + LANES <= k; i += LANES) {
        float *p = packed + (size_t)i * TILE_ROWS;

        transpose(rows + i, k, p, TILE_ROWS);
        transpose(rows + (size_t)LANES * k + i, k, p + LANES, TILE_ROWS);
    }
    for (; i < k; i++) {
        for (uint32_t r = 0; r < TILE_ROWS; r++) {
            packed[(size_t)i * TILE_ROWS + r] = r < n_rows ? rows[(size_t)r * k + i] : 0.0f;
        }
    }
}

/* m is a constant in every use. With `more` the products are added to what y has. */
static inline __attribute__((always_inline)) void multiply_rows(int m, const float *x,
                                                                size_t x_stride,
                                                                const float *packed, uint32_t k,
                                                                int more, float *y, size_t y_stride)
{
    VF low[TILE_M], high[TILE_M];

    for (int i = 0; i < m; i++) {
        low[i] = more ? vf_load(y + (size_t)i * y_stride) : vf_zero();
        high[i] = more ? vf_load(y + (size_t)i * y_stride + LANES) : vf_zero();
    }
    for (uint32_t j = 0; j < k; j++, packed += TILE_ROWS) {
        VF w0 = vf_load(packed), w1 = vf_load(packed + LANES);

        for (int i = 0; i < m; i++) {
            VF a = vf_set1(x[(size_t)i * x_stride + j]);

            low[i] = vf_fma(a, w0, low[i]);
            high[i] = vf_fma(a, w1, high[i]);
        }
    }
    for (int i = 0; i < m; i++) {
        vf_store(y + (size_t)i * y_stride, low[i]);
        vf_store(y + (size_t)i * y_stride + LANES, high[i]);
    }
}

/* Returns the rows of x done: TILE_M, 4, 2 or 1. */
static uint32_t multiply_some(const float *x, size_t x_stride, uint32_t m, const float *packed,
                              uint32_t k, int more, float *y, size_t y_stride)
{
    if (m >= TILE_M) {
        multiply_rows(TILE_M, x, x_stride, packed, k, more, y, y_stride);
        return TILE_M;
    }
    if (m >= 4) {
        multiply_rows(4, x, x_stride, packed, k, more, y, y_stride);
        return 4;
    }
    if (m >= 2) {
        multiply_rows(2, x, x_stride, packed, k, more, y, y_stride);
        return 2;
    }
    multiply_rows(1, x, x_stride, packed, k, more, y, y_stride);
    return 1;
}

static void multiply(const float *x, size_t x_stride, uint32_t m, const float *packed, uint32_t k,
                     float *y, size_t y_stride, uint32_t n_rows)
{
    float partial[TILE_M * TILE_ROWS];

    for (uint32_t j = 0; j < k; j += TILE_K) {
        uint32_t length = k - j < TILE_K ? k - j : TILE_K;
        const float *w = packed + (size_t)j * TILE_ROWS;

        for (uint32_t i = 0; i < m;) {
            float *yi = y + i * y_stride;

            if (n_rows == TILE_ROWS) {
                i += multiply_some(x + i * x_stride + j, x_stride, m - i, w, length, j > 0, yi,
                                   y_stride);
                continue;
            }
            /* The tile is wider than what is left of y. */
            uint32_t done = multiply_some(x + i * x_stride + j, x_stride, m - i, w, length, 0,
                                          partial, TILE_ROWS);
            for (uint32_t p = 0; p < done; p++) {
                for (uint32_t r = 0; r < n_rows; r++) {
                    yi[p * y_stride + r] =
                        partial[p * TILE_ROWS + r] + (j ? yi[p * y_stride + r] : 0.0f);
                }
            }
            i += done;
        }
    }
}
