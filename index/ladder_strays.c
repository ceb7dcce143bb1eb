/* Rows whose keys are kept beside their sketches (index/strays.h): every step knows their logits before it reads a sketch, so that no
 * summary hides them, and where their block is read they count with those. */
#include "index/ladder_state.h"

#include <math.h>

#define CHUNK 128u
/* A block is read for a stray of such a share of some query head's weight, where level 0 has less than that for all of the block. */
#define SHARE_MIN    1e-3f
#define EXPONENT_MAX 40.0f /* beyond, the top was too low by more than any weight says */

static float logit(const struct hri_ladder *l, uint32_t g, uint32_t i)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    float cap = l->head->options.soft_cap;
    float x = l->stray[g * s->max + i] + l->step->dots[g * l->step->stride + s->block[i]];
    return cap > 0 ? cap * tanhf(x / cap) : x;
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
}

/* Whether it weighs more than level 0 has for its block. */
static bool stands_out(const struct hri_ladder *l, uint32_t g, uint32_t i)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    float above = logit(l, g, i) - l->step->top[g];
    return expf(hri_smaller(above, EXPONENT_MAX)) >
           l->step->weight[g * l->step->stride + s->block[i]];
}

uint32_t hri_ladder_strays_mark(struct hri_ladder *l)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    uint32_t fresh = 0;
    for (uint32_t g = 0; g < l->head->options.g; g++) {
        float least = l->step->top[g] + logf(SHARE_MIN * l->step->total[g]);
        for (uint32_t i = 0; i < s->n; i++) {
            uint8_t *state = l->state + s->block[i];
            if (*state != HRI_UNREAD || !(logit(l, g, i) > least) || !stands_out(l, g, i))
                continue;
            *state = HRI_PENDING;
            fresh++;
        }
    }
    return fresh;
}

uint32_t hri_ladder_strays_put(struct hri_ladder *l, uint32_t b, float *score)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    uint32_t first = l->stray_at = hri_strays_from(s, l->stray_at, b);
    for (; l->stray_at < s->n && s->block[l->stray_at] == b; l->stray_at++)
        for (uint32_t g = 0; g < l->head->options.g; g++)
            score[g * HRI_LADDER_CHUNK + s->row[l->stray_at]] = l->stray[g * s->max + l->stray_at];
    return l->stray_at - first;
}

void hri_ladder_strays_lift(const struct hri_ladder *l, uint32_t n, const float *add, float *score)
{
    const struct hri_strays *s = &l->head->sketch->strays;
    for (uint32_t i = l->stray_at - n; i < l->stray_at; i++)
        for (uint32_t g = 0; g < l->head->options.g; g++)
            score[g * HRI_LADDER_CHUNK + s->row[i]] += add[g];
}
