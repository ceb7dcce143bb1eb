#include "tests/runtime/naive.h"

#include "kernels/kernels.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOPICS = 48 };

static void *must(void *p)
{
    if (p == NULL) {
        abort();
    }
    return p;
}

double random_uniform(struct random *r)
{
    uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

double random_normal(struct random *r)
{
    double u = random_uniform(r), v = random_uniform(r);
    return sqrt(-2.0 * log(u + 1e-300)) * cos(6.283185307179586 * v);
}

void naive_init(struct naive *a, const struct shape *shape, uint32_t tokens_max)
{
    a->shape = *shape;
    a->n = 0;
    a->tokens_max = tokens_max;
    a->k = must(calloc((size_t)tokens_max * shape->n_kv * shape->dk, sizeof(float)));
    a->v = must(calloc((size_t)tokens_max * shape->n_kv * shape->dv, sizeof(float)));
}

void naive_fini(struct naive *a)
{
    free(a->k);
    free(a->v);
}

/* Directions that keys gather around; the same for all texts. */
static const float *topics(uint32_t d)
{
    static float table[TOPICS * HR_HEAD_DIM_MAX];
    static uint32_t made;
    if (made != d) {
        struct random fixed = {.state = 77};
        for (uint32_t i = 0; i < TOPICS * d; i++) {
            table[i] = (float)random_normal(&fixed);
        }
        made = d;
    }
    return table;
}

void rows_make(struct random *r, const struct shape *shape, uint32_t n, float *k, float *v)
{
    uint32_t d = shape->dk > shape->dv ? shape->dk : shape->dv;
    const float *table = topics(d);
    for (uint32_t i = 0; i < n * shape->n_kv; i++) {
        const float *t = table + (size_t)(random_uniform(r) * TOPICS) * d;
        for (uint32_t j = 0; j < shape->dk; j++) {
            k[(size_t)i * shape->dk + j] = t[j] + 0.5f * (float)random_normal(r);
        }
        for (uint32_t j = 0; j < shape->dv; j++) {
            v[(size_t)i * shape->dv + j] = 0.5f * t[d - 1 - j] + 0.3f + (float)random_normal(r);
        }
    }
}

void queries_make(struct random *r, const struct shape *shape, uint32_t n, float *q)
{
    uint32_t d = shape->dk > shape->dv ? shape->dk : shape->dv;
    const float *table = topics(d);
    for (uint32_t i = 0; i < n * shape->n_q; i++) {
        const float *t = table + (size_t)(random_uniform(r) * TOPICS) * d;
        for (uint32_t j = 0; j < shape->dk; j++) {
            q[(size_t)i * shape->dk + j] = t[j] + 0.5f * (float)random_normal(r);
        }
    }
}

static float rounded(const struct hri_kernels *kern, float x, hr_dtype_t dtype)
{
    uint32_t raw = 0;
    float y;
    kern->from_f32(&raw, &x, dtype, 1);
    kern->to_f32(&y, &raw, dtype, 1);
    return y;
}

void naive_append(struct naive *a, const float *k, const float *v, uint32_t n)
{
    const struct hri_kernels *kern = hri_kernels_get(HRI_KERNEL_REF);
    size_t nk = (size_t)a->shape.n_kv * a->shape.dk, nv = (size_t)a->shape.n_kv * a->shape.dv;
    for (size_t i = 0; i < n * nk; i++) {
        a->k[a->n * nk + i] = rounded(kern, k[i], a->shape.dtype);
    }
    for (size_t i = 0; i < n * nv; i++) {
        a->v[a->n * nv + i] = rounded(kern, v[i], a->shape.dtype);
    }
    a->n += n;
}

static void attend_one(const struct naive *a, uint32_t layer, const float *q, uint32_t position,
                       uint32_t head, double *logits, double *out)
{
    const struct shape *s = &a->shape;
    uint32_t kv = head / (s->n_q / s->n_kv), sliding = layer == 0 ? s->sliding : 0;
    uint32_t first = sliding != 0 && position + 1 > sliding ? position + 1 - sliding : 0;
    double scale = 1.0 / sqrt((double)s->dk), top = -INFINITY, total = 0.0;
    scale *= s->log_n != 0.0f ? 1.0 + (double)s->log_n * log((double)position + 1.0) : 1.0;
    for (uint32_t t = first; t <= position; t++) {
        double x = 0.0;
        for (uint32_t j = 0; j < s->dk; j++) {
            x += (double)q[j] * (double)a->k[((size_t)t * s->n_kv + kv) * s->dk + j];
        }
        x *= scale;
        logits[t] = s->soft_cap > 0.0f ? (double)s->soft_cap * tanh(x / (double)s->soft_cap) : x;
        top = fmax(top, logits[t]);
    }
    memset(out, 0, s->dv * sizeof *out);
    for (uint32_t t = first; t <= position; t++) {
        double w = exp(logits[t] - top);
        total += w;
        for (uint32_t j = 0; j < s->dv; j++) {
            out[j] += w * (double)a->v[((size_t)t * s->n_kv + kv) * s->dv + j];
        }
    }
    for (uint32_t j = 0; j < s->dv; j++) {
        out[j] /= total;
    }
}

void naive_attend(const struct naive *a, uint32_t layer, const float *q, uint32_t n, double *out)
{
    double *logits = must(malloc((a->n + 1) * sizeof *logits));
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t h = 0; h < a->shape.n_q; h++) {
            size_t at = (size_t)i * a->shape.n_q + h;
            attend_one(a, layer, q + at * a->shape.dk, a->n - n + i, h, logits,
                       out + at * a->shape.dv);
        }
    }
    free(logits);
}

static double error_at(const float *got, const double *want, uint32_t dv)
{
    double diff = 0.0, norm = 0.0;
    for (uint32_t j = 0; j < dv; j++) {
        diff += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
        norm += want[j] * want[j];
    }
    return sqrt(diff / (norm + 1e-300));
}

double error_max(const float *got, const double *want, uint32_t n_vectors, uint32_t dv)
{
    double worst = 0.0;
    for (uint32_t i = 0; i < n_vectors; i++) {
        double e = error_at(got + (size_t)i * dv, want + (size_t)i * dv, dv);
        worst = e > worst || isnan(e) ? e : worst;
        if (isnan(worst)) {
            return worst;
        }
    }
    return worst;
}

double error_mean(const float *got, const double *want, uint32_t n_vectors, uint32_t dv)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < n_vectors; i++) {
        sum += error_at(got + (size_t)i * dv, want + (size_t)i * dv, dv);
    }
    return sum / n_vectors;
}

void options_for(const struct shape *shape, uint32_t tokens_max, const char *recipe, double moved,
                 struct hr_sequence_options *o)
{
    static uint32_t sliding[HR_LAYERS_MAX];
    static float log_n[64 * HR_HEADS_MAX], frequencies[HR_HEAD_DIM_MAX / 2];
    static struct hr_rope rope[HR_LAYERS_MAX];
    hr_sequence_options_init(o);
    o->n_layers = shape->n_layers;
    o->n_q_heads = shape->n_q;
    o->n_kv_heads = shape->n_kv;
    o->k_dim = shape->dk;
    o->v_dim = shape->dv;
    o->dtype = shape->dtype;
    o->soft_cap = shape->soft_cap;
    o->tokens_max = tokens_max;
    o->recipe = recipe;
    o->moved = moved;
    sliding[0] = shape->sliding;
    o->sliding_window = sliding;
    for (uint32_t i = 0; i < shape->n_layers * shape->n_q; i++) {
        log_n[i] = shape->log_n;
    }
    o->log_n = shape->log_n != 0.0f ? log_n : NULL;
    for (uint32_t i = 0; i < shape->dk / 2; i++) {
        frequencies[i] = powf(10000.0f, -2.0f * (float)i / (float)shape->dk);
    }
    for (uint32_t i = 0; i < shape->n_layers; i++) {
        rope[i] =
            (struct hr_rope){.layout = shape->rope, .n_rot = shape->dk, .frequencies = frequencies};
    }
    o->rope = shape->rope != HR_ROPE_NONE ? rope : NULL;
}

hr_runtime_t *runtime_make(uint64_t device_bytes, uint64_t host_bytes, const char *file_dir,
                           uint64_t file_bytes, hr_io_mode_t io)
{
    struct hr_runtime_options o;
    hr_runtime_options_init(&o);
    o.device_bytes = device_bytes;
    o.host_bytes = host_bytes;
    o.file_dir = file_dir;
    o.file_bytes = file_bytes;
    o.io_mode = io;
    o.n_threads = 2;
    hr_runtime_t *rt = NULL;
    return hr_runtime_create(&o, &rt) == HR_OK ? rt : NULL;
}

const char *disk_dir(void)
{
    return HR_BINARY_DIR;
}

/* Tensors that are only read. */
static void *unconst(const float *x)
{
    union {
        const float *in;
        void *out;
    } u = {.in = x};
    return u.out;
}

hr_status_t rows_append(hr_sequence_t *s, const struct shape *shape, uint32_t layer, const float *k,
                        const float *v, uint32_t first, uint32_t n)
{
    const float *kk = k + (size_t)first * shape->n_kv * shape->dk,
                *vv = v + (size_t)first * shape->n_kv * shape->dv;
    struct hr_tensor tk = hr_tensor_make(unconst(kk), HR_DTYPE_F32, n, shape->n_kv, shape->dk),
                     tv = hr_tensor_make(unconst(vv), HR_DTYPE_F32, n, shape->n_kv, shape->dv);
    return hr_sequence_append(s, layer, &tk, &tv, NULL);
}

hr_status_t queries_attend(hr_sequence_t *s, const struct shape *shape, uint32_t layer,
                           hr_attend_mode_t mode, const float *q, uint32_t first, uint32_t n,
                           float *out, struct hr_attend_report *report)
{
    const float *qq = q + (size_t)first * shape->n_q * shape->dk;
    struct hr_tensor tq = hr_tensor_make(unconst(qq), HR_DTYPE_F32, n, shape->n_q, shape->dk),
                     to = hr_tensor_make(out, HR_DTYPE_F32, n, shape->n_q, shape->dv);
    struct hr_attend_options o;
    hr_attend_options_init(&o);
    o.mode = mode;
    o.check_exact = report != NULL;
    return hr_sequence_attend(s, layer, &tq, &o, &to, report, NULL);
}

double apart(const float *a, const float *b, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(diff / norm);
}

bool recipe_is_plain(size_t i)
{
    struct hr_recipe_info info;
    must(hr_recipe_describe(i, &info) == HR_OK ? &info : NULL);
    return !info.takes_argument;
}

bool recipe_streams(const char *name)
{
    static const char *const names[] = {"full",           "instinfer", "duoattention",
                                        "razorattention", "task-kv",   "rlkv"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            return true;
        }
    }
    return false;
}
