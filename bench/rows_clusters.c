/* Rows in clusters, as keys of real models come: a row is its cluster's centre plus noise, and queries point at a few centres. */
#include <stdlib.h>

#include "base/half.h"
#include "base/rng.h"
#include "bench/rows.h"

#define DIM      128u
#define KV_HEADS 8u
#define Q_HEADS  32u
#define GROUP    (Q_HEADS / KV_HEADS)

struct clusters {
    struct hrb_rows base;
    uint32_t n;
    struct hri_rng rng;
    float *k_centre, *v_centre; /* [KV_HEADS][n][DIM] */
};

static float noise(struct clusters *c)
{
    /* A sum of four uniforms is near enough to normal and much cheaper. */
    uint64_t bits = hri_rng_u64(&c->rng);
    int sum = (int)(bits & 0xffff) + (int)((bits >> 16) & 0xffff) + (int)((bits >> 32) & 0xffff) +
              (int)(bits >> 48);
    return ((float)sum * (1 / 65536.0f) - 2) * 1.7320508f;
}

static void make(struct hrb_rows *self, uint32_t n, uint16_t *k, uint16_t *v)
{
    struct clusters *c = (struct clusters *)self;
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            size_t centre = (size_t)h * c->n + hri_rng_below(&c->rng, c->n);
            const float *k_from = c->k_centre + centre * DIM, *v_from = c->v_centre + centre * DIM;
            size_t at = ((size_t)t * KV_HEADS + h) * DIM;
            for (uint32_t i = 0; i < DIM; i++) {
                k[at + i] = hri_bf16_from_f32(k_from[i] + 0.35f * noise(c));
                v[at + i] = hri_bf16_from_f32(v_from[i] + 0.35f * noise(c));
            }
        }
    }
}

/* Each query head looks for one cluster of its kv-head. */
static void query(struct hrb_rows *self, float *q)
{
    struct clusters *c = (struct clusters *)self;
    for (uint32_t h = 0; h < Q_HEADS; h++) {
        size_t centre = (size_t)(h / GROUP) * c->n + hri_rng_below(&c->rng, c->n);
        for (uint32_t i = 0; i < DIM; i++)
            q[h * DIM + i] = 1.1f * c->k_centre[centre * DIM + i] + 0.35f * noise(c);
    }
}

static void shown(struct hrb_rows *self, uint32_t n, float *q)
{
    (void)n;
    query(self, q);
}

/* The method learns from the queries that pass, as in a prefill. */
static struct hrb_rows_chunk chunk(const struct hrb_rows *self, uint32_t done)
{
    uint32_t left = self->tokens - done, look = self->tokens / 8;
    if (look > 16 * HRB_ROWS_CHUNK)
        look = 16 * HRB_ROWS_CHUNK;
    return (struct hrb_rows_chunk){left < HRB_ROWS_CHUNK ? left : HRB_ROWS_CHUNK,
                                   done % look < HRB_ROWS_CHUNK ? 1 : 0};
}

static struct hrb_rows_before before(struct hrb_rows *self, uint32_t length)
{
    (void)self;
    return (struct hrb_rows_before){length, 0};
}

static void rewind_to_first(struct hrb_rows *self)
{
    (void)self; /* any will do */
}

static void clusters_free(struct hrb_rows *self)
{
    struct clusters *c = (struct clusters *)self;
    free(c->k_centre);
    free(c->v_centre);
    free(c);
}

struct hrb_rows *hrb_rows_clusters(uint32_t tokens, uint32_t clusters)
{
    size_t centres = (size_t)KV_HEADS * clusters * DIM;
    struct clusters *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->base = (struct hrb_rows){.q_heads = Q_HEADS,
                                .kv_heads = KV_HEADS,
                                .dim = DIM,
                                .dtype = HR_DTYPE_BF16,
                                .tokens = tokens,
                                .error_steps = 8,
                                .chunk = chunk,
                                .make = make,
                                .shown = shown,
                                .before = before,
                                .rewind = rewind_to_first,
                                .query = query,
                                .free = clusters_free};
    c->n = clusters;
    hri_rng_seed(&c->rng, 7);
    c->k_centre = malloc(centres * sizeof(float));
    c->v_centre = malloc(centres * sizeof(float));
    if (!c->k_centre || !c->v_centre) {
        clusters_free(&c->base);
        return NULL;
    }
    for (size_t i = 0; i < centres; i++) {
        c->k_centre[i] = noise(c);
        c->v_centre[i] = noise(c);
    }
    return &c->base;
}
