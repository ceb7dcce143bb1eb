/* Rows whose keys are kept beside their sketches (index/strays.h): every step knows their logits before it reads a sketch, so that no
 * summary hides them, and where their block is read they count with those. */
#include "index/ladder_state.h"

#include <math.h>

#define CHUNK 128u
/* A block is read for a stray of such a share of some query head's weight, where level 0 has less than that for all of the block. */
#define SHARE_MIN    1e-3f
#define EXPONENT_MAX 40.0f /* beyond, the top was too low by more than any weight says */

/* What their keys gave becomes their logits. */
static void logits_complete(struct hri_ladder *l, uint32_t g)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    const float *dots = l->step->dots + g * l->step->stride;
    float cap = l->head->options.soft_cap, *x = l->stray + g * s->max;
    for (uint32_t i = 0; i < s->n; i++)
        x[i] += dots[s->block[i]];
    for (uint32_t i = 0; cap > 0 && i < s->n; i++)
        x[i] = cap * tanhf(x[i] / cap);
}

void hri_ladder_strays_score(struct hri_ladder *l)
{
    const struct hri_index_options *o = &l->head->options;
    const struct hri_strays *s = &l->head->sketch->strays;
    const int8_t *keys[CHUNK];
    for (uint32_t i = 0; i < s->n; i += CHUNK) {
        uint32_t n = s->n - i < CHUNK ? s->n - i : CHUNK;
        for (uint32_t j = 0; j < n; j++)
            keys[j] = s->key + (size_t)(i + j) * o->k_dim;
        o->kernels->score_gather_i8(l->in->q, o->g, o->k_dim, keys, s->step + i, n, l->stray + i,
                                    s->max);
    }
    for (uint32_t g = 0; g < o->g; g++)
        logits_complete(l, g);
}

/* Whether it weighs more than level 0 has for its block. */
static bool stands_out(const struct hri_ladder *l, uint32_t g, uint32_t i)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    float above = l->stray[g * s->max + i] - l->step->top[g];
    return expf(hri_smaller(above, EXPONENT_MAX)) >
           l->step->weight[g * l->step->stride + s->block[i]];
}

uint32_t hri_ladder_strays_mark(struct hri_ladder *l)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    uint32_t fresh = 0;
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        const float *x = l->stray + g * s->max;
        float least = l->step->top[g] + logf(SHARE_MIN * l->step->total[g]);
        for (uint32_t i = 0; i < s->n; i++) {
            uint8_t *state = l->state + s->block[i];
            if (!(x[i] > least) || *state != HRI_UNREAD || !stands_out(l, g, i))
                continue;
            *state = HRI_PENDING;
            fresh++;
        }
    }
    return fresh;
}

void hri_ladder_strays_put(struct hri_ladder *l, uint32_t b, const float *half, float *score)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    l->stray_at = hri_strays_from(s, l->stray_at, b);
    for (; l->stray_at < s->n && s->block[l->stray_at] == b; l->stray_at++)
        for (uint32_t g = 0; g < l->head->options.g; g++)
            score[g * HRI_LADDER_CHUNK + s->row[l->stray_at]] =
                l->stray[g * s->max + l->stray_at] - l->step->dots[g * l->step->stride + b] -
                half[g];
}
