/* The basis of a sketch: transform coding of key residuals in the metric of the queries (design after reverse water-filling, e.g.
 * Cover & Thomas, Elements of Information Theory, section 10.3), values by ridge regression on what is kept of the key. */
#include "base/arena.h"
#include "base/assert.h"
#include "index/linalg.h"
#include "index/sketch.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define STEP_2                                                                                     \
    0.9957 /* deviations per level of the best uniform quantiser of a Gaussian, 4 levels */
#define STEP_4    0.3352 /* and 16 levels */
#define DISTORT_2 0.1188 /* their mean square errors, of a variance of 1 */
#define DISTORT_4 0.01154
#define FLOOR     1e-12 /* of the mean variance: a coordinate without any spread */
#define RIDGE     1e-3  /* of the mean square of the sketched coordinates */

struct fit {
    uint32_t dk, dv;
    float *turned;         /* [n][dk] */
    float *joint;          /* [width][width] second moments of (z~ | v) */
    float *chunk;          /* [CHUNK][width] */
    double *cov, *values;  /* [dk][dk], [dk] */
    double *gram, *target; /* [n][n], [n][dv] */
    double *product;       /* [dk][dk] */
    void *eigen;
};

#define CHUNK    256u
#define ROWS_MAX 2048u

static size_t width_of(uint32_t k_dim, uint32_t v_dim)
{
    return (size_t)k_dim + v_dim;
}

size_t hri_sketch_fit_bytes(uint32_t k_dim, uint32_t v_dim)
{
    size_t dk = k_dim, dv = v_dim, width = width_of(k_dim, v_dim);
    return ((size_t)ROWS_MAX * dk + width * width + CHUNK * width + dk * dk) * sizeof(float) +
           (3 * dk * dk + dk + dk * dv) * sizeof(double) + hri_eigen_work_bytes(k_dim) + 9 * 64;
}

static struct fit take_work(uint32_t k_dim, uint32_t v_dim, void *memory)
{
    size_t dk = k_dim, dv = v_dim, width = width_of(k_dim, v_dim);
    struct hri_arena arena;
    struct fit f = {.dk = k_dim, .dv = v_dim};
    hri_arena_init_buffer(&arena, memory, hri_sketch_fit_bytes(k_dim, v_dim));
    f.turned = hri_arena_array(&arena, ROWS_MAX * dk, sizeof(float));
    f.joint = hri_arena_array(&arena, width * width, sizeof(float));
    f.chunk = hri_arena_array(&arena, CHUNK * width, sizeof(float));
    f.cov = hri_arena_array(&arena, dk * dk, sizeof(double));
    f.values = hri_arena_array(&arena, dk, sizeof(double));
    f.gram = hri_arena_array(&arena, dk * dk, sizeof(double));
    f.target = hri_arena_array(&arena, dk * dv, sizeof(double));
    f.product = hri_arena_array(&arena, dk * dk, sizeof(double));
    f.eigen = hri_arena_array(&arena, hri_eigen_work_bytes(k_dim), 1);
    HRI_ASSERT(f.eigen != NULL);
    return f;
}

void hri_sketch_round(const struct hri_basis *basis, const float *z, float *rounded)
{
    for (uint32_t j = 0; j < basis->n; j++) {
        float step = basis->step[j], most = j < basis->n4 ? 15 : 3, middle = 0.5f * most;
        float code = step > 0 ? rintf(z[j] / step + middle) : middle;
        code = code < 0 ? 0 : code > most ? most : code;
        rounded[j] = (code - middle) * step;
    }
}

/* The split of the lines into 4-bit ones (8 coordinates) and 2-bit ones (16) that leaves the least. variance descends. */
static void widths_choose(struct hri_basis *basis, const double *variance, uint32_t d,
                          uint32_t lines)
{
    double best = DBL_MAX;
    basis->n4 = basis->n2 = 0;
    for (uint32_t four = 0; four <= lines; four++) {
        uint32_t n4 = 8 * four, n2 = 16 * (lines - four);
        if (n4 + n2 > d)
            continue; /* at most 16 coordinates a line */
        double left = 0;
        for (uint32_t j = 0; j < d; j++)
            left += variance[j] * (j < n4 ? DISTORT_4 : j < n4 + n2 ? DISTORT_2 : 1);
        if (left < best) {
            best = left;
            basis->n4 = n4;
            basis->n2 = n2;
        }
    }
    basis->n = basis->n4 + basis->n2;
}

/* Codes a row of a matrix as int8; returns its scale. */
static float code_row(const double *x, uint32_t d, int8_t *codes)
{
    double most = 0, sum = 0;
    for (uint32_t j = 0; j < d; j++) {
        most = fmax(most, fabs(x[j]));
        sum += x[j];
    }
    float scale = isfinite(sum) && most < FLT_MAX ? (float)(most / 127) : 0;
    for (uint32_t j = 0; j < d; j++)
        codes[j] = scale > 0 ? (int8_t)lrint(x[j] / (double)scale) : 0;
    return scale;
}

/* B = U'P and A = U'P^-T, largest variance first. Rows of p are eigenvectors times root values, so that P^-T has the rows p_i /
 * |p_i|^2. */
static void write_turns(struct fit *f, struct hri_basis *basis, const float *p)
{
    uint32_t d = f->dk;
    double *wide = f->gram, *turn = f->product, square[HR_HEAD_DIM_MAX];
    for (size_t i = 0; i < (size_t)d * d; i++)
        wide[i] = p[i];
    hri_multiply(f->cov, d, d, wide, d, false, turn);
    for (uint32_t c = 0; c < d; c++)
        for (uint32_t j = 0; j < d; j++)
            basis->turn[(size_t)c * d + j] = (float)turn[(size_t)(d - 1 - c) * d + j];
    hri_row_squares(p, d, square);
    for (uint32_t i = 0; i < d; i++)
        for (uint32_t j = 0; j < d; j++)
            wide[(size_t)i * d + j] *= square[i] > 0 ? 1 / square[i] : 0;
    hri_multiply(f->cov, d, d, wide, d, false, turn);
    for (uint32_t c = 0; c < d; c++)
        basis->query_scale[c] =
            code_row(turn + (size_t)(d - 1 - c) * d, d, basis->query + (size_t)c * d);
}

/* Second moments of (z~ | v), and what z~ misses per coordinate. */
static void measure(const struct hri_kernels *kernels, struct fit *f, struct hri_basis *basis,
                    const float *values, uint32_t n)
{
    uint32_t dk = f->dk, dv = f->dv, width = basis->n + dv, held = 0;
    double missed[HR_HEAD_DIM_MAX] = {0};
    memset(f->joint, 0, (size_t)width * width * sizeof(float));
    for (uint32_t i = 0; i < n; i++) {
        const float *z = f->turned + (size_t)i * dk;
        float *row = f->chunk + (size_t)held * width;
        hri_sketch_round(basis, z, row);
        for (uint32_t j = 0; j < dk; j++) {
            double x = (double)z[j] - (j < basis->n ? row[j] : 0);
            missed[j] += x * x;
        }
        memcpy(row + basis->n, values + (size_t)i * dv, dv * sizeof(float));
        if (++held == CHUNK || i + 1 == n) {
            kernels->second_moment(f->chunk, held, width, f->joint);
            held = 0;
        }
    }
    basis->missed_mean = 0;
    for (uint32_t j = 0; j < dk; j++) {
        basis->missed[j] = (float)(missed[j] / n);
        basis->missed_mean += basis->missed[j];
    }
}

/* V = (v z~') (z~ z~' + ridge)^-1, by coordinate; value_rest = what it leaves of the values. */
static hr_status_t regress(struct fit *f, struct hri_basis *basis, uint32_t n_rows)
{
    uint32_t n = basis->n, dv = f->dv, width = n + dv;
    double trace = 0, rest = 0, column[HR_HEAD_DIM_MAX];
    for (uint32_t i = 0; i < n; i++)
        trace += f->joint[(size_t)i * width + i];
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < n; j++)
            f->gram[(size_t)i * n + j] = f->joint[(size_t)i * width + j];
        f->gram[(size_t)i * n + i] += RIDGE * trace / n + DBL_MIN;
        for (uint32_t j = 0; j < dv; j++)
            f->target[(size_t)i * dv + j] = f->joint[(size_t)i * width + n + j];
    }
    bool solved = trace > 0 && isfinite(trace) && hri_solve(f->gram, n, f->target, dv);
    for (uint32_t j = 0; j < dv; j++)
        rest += f->joint[(size_t)(n + j) * width + n + j];
    basis->value_spread = (float)(rest / n_rows);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < dv; j++) {
            double v = solved ? f->target[(size_t)i * dv + j] : 0;
            rest -= v * (double)f->joint[(size_t)i * width + n + j];
            column[j] = v * (double)basis->step[i];
        }
        basis->value_scale[i] = code_row(column, dv, basis->value + (size_t)i * dv);
    }
    basis->value_rest = (float)fmax(rest / n_rows, 0);
    return HR_OK;
}

hr_status_t hri_sketch_fit(const struct hri_kernels *kernels, struct hri_basis *basis,
                           uint32_t k_dim, uint32_t v_dim, uint32_t lines, const float *p,
                           const float *residuals, const float *values, const float *weight,
                           uint32_t n, void *work)
{
    struct fit f = take_work(k_dim, v_dim, work);
    uint32_t d = k_dim;
    double variance[HR_HEAD_DIM_MAX], mean = 0;
    HRI_ASSERT(n >= 1 && n <= ROWS_MAX);
    kernels->matmul_nt(residuals, n, d, p, d, f.turned);
    float *moment = f.joint;
    memset(moment, 0, (size_t)d * d * sizeof(float));
    for (uint32_t i = 0; weight && i < n; i++)
        for (uint32_t j = 0; j < d; j++)
            f.turned[(size_t)i * d + j] *= sqrtf(weight[i]);
    kernels->second_moment(f.turned, n, d, moment);
    for (size_t i = 0; i < (size_t)d * d; i++)
        f.cov[i] = (double)moment[i] / n;
    hr_status_t status = hri_eigen(f.cov, d, f.values, f.eigen);
    if (status != HR_OK)
        return status;
    for (uint32_t c = 0; c < d; c++)
        mean += fmax(f.values[c], 0) / d;
    for (uint32_t c = 0; c < d; c++)
        variance[c] = fmax(f.values[d - 1 - c], FLOOR * mean);
    widths_choose(basis, variance, d, lines);
    for (uint32_t c = 0; c < basis->n; c++)
        basis->step[c] = (float)((c < basis->n4 ? STEP_4 : STEP_2) * sqrt(variance[c]));
    write_turns(&f, basis, p);
    kernels->matmul_nt(residuals, n, d, basis->turn, d, f.turned);
    measure(kernels, &f, basis, values, n);
    return regress(&f, basis, n);
}
