/* Audits of level 0 (docs/algorithm.md, level 1): the sketches of a sample of blocks are read whatever level 0 thinks of them. Of those
 * that nothing else asks to be read, their sketches say how wrong level 0 is about the others: by a factor that all have in common, which
 * is taken out, and by a scatter, which is what the unread blocks leave. A sample of every n-th block is as good as a random one: blocks
 * lie in the order in which grouping found them.
 */
#include "index/ladder_state.h"

#include "index/passes.h"

#include <math.h>
#include <string.h>

/* So many blocks, and one of so many: what they say of all is as good whether these are many or few. */
#define LEAST      24u
#define EVERY      128u
#define EVIDENCE   8u /* audits below which level 0 is taken by its word */
#define FACTOR_MAX 8.0
#define SCATTER    0.5 /* variance of the logarithm of one block's error, before anything is known */
#define PRIOR      0.3 /* deviation of the common factor's logarithm, before anything is known */

uint32_t hri_ladder_audits_max(const struct hri_index_options *o)
{
    return o->blocks_max / EVERY + LEAST + 1;
}

static void list(struct hri_ladder *l)
{
    uint32_t n = l->head->n_blocks, want = LEAST + n / EVERY;
    uint32_t every = n / want > 0 ? n / want : 1;
    l->n_audits = 0;
    if (n < 4 * LEAST)
        return;
    for (uint32_t b = every / 2; b < n && l->n_audits < hri_ladder_audits_max(&l->head->options);
         b += every)
        if (l->state[b] == HRI_UNREAD)
            l->audits[l->n_audits++] = b;
}

uint64_t hri_ladder_audit(struct hri_ladder *l)
{
    const struct hri_step *step = l->step;
    uint32_t n_g = l->head->options.g, max = hri_ladder_audits_max(&l->head->options);
    float top[HR_GROUP_MAX];
    list(l);
    memcpy(top, step->top, n_g * sizeof *top);
    for (uint32_t i = 0; i < l->n_audits; i++) {
        uint32_t b = l->audits[i];
        l->state[b] = HRI_PENDING;
        for (uint32_t g = 0; g < n_g; g++)
            l->audit[g * max + i] = (struct hri_audit){.weight = step->weight[g * step->stride + b],
                                                       .rate = l->rate[g * step->stride + b],
                                                       .lifted = l->lifted[g * step->stride + b]};
    }
    uint64_t bytes = l->n_audits > 0 ? hri_ladder_read_pending(l) : 0;
    for (uint32_t g = 0; g < n_g; g++) {
        float factor =
            expf(top[g] - step->top[g]); /* of the same weight, where the top was raised */
        for (uint32_t i = 0; i < l->n_audits; i++) {
            struct hri_audit *audit = &l->audit[g * max + i];
            size_t at = g * step->stride + l->audits[i];
            float weight = audit->weight * factor;
            audit->ratio = weight > 0 ? step->weight[at] / weight : -1;
            step->weight[at] = weight;
            l->rate[at] = audit->rate;
            l->lifted[at] = audit->lifted;
        }
    }
    for (uint32_t i = 0; i < l->n_audits; i++)
        l->state[l->audits[i]] = HRI_UNREAD;
    return bytes;
}

struct evidence {
    double n, e, t, ee, et,
        tt; /* sums over audits of weights as level 0 and as sketches have them */
};

static struct evidence gather(const struct hri_ladder *l, uint32_t g)
{
    const struct hri_audit *audit = l->audit + g * hri_ladder_audits_max(&l->head->options);
    struct evidence sum = {0};
    for (uint32_t i = 0; i < l->n_audits; i++) {
        if (l->state[l->audits[i]] != HRI_UNREAD || !(audit[i].ratio >= 0))
            continue;
        double e = (double)l->step->weight[g * l->step->stride + l->audits[i]];
        double t = e * (double)audit[i].ratio;
        sum.n += 1;
        sum.e += e;
        sum.t += t;
        sum.ee += e * e;
        sum.et += e * t;
        sum.tt += t * t;
    }
    return sum;
}

/* Weights of unread blocks of query head g, `sum` together, and what the audits say of them, times `factor`. */
static void scale(struct hri_ladder *l, uint32_t g, float sum, float factor)
{
    struct hri_audit *audit = l->audit + g * hri_ladder_audits_max(&l->head->options);
    size_t at = g * l->step->stride;
    hri_pass_scale_unread(l->step->weight + at, l->rate + at, factor, l->head->n_blocks);
    l->step->total[g] += sum * (factor - 1);
    for (uint32_t i = 0; i < l->n_audits; i++)
        audit[i].ratio /= factor;
    l->corrected[g] *= factor;
}

struct hri_audited hri_ladder_correct(struct hri_ladder *l, uint32_t g, float sum)
{
    struct evidence a = gather(l, g);
    if (a.n < EVIDENCE || !(a.e > 0) || !(a.ee > 0))
        return (struct hri_audited){.factor = 1};
    double factor = a.t / a.e,
           alike = a.e * a.e / a.ee; /* so many audits of equal weight would say as much */
    double misfit = fmax(a.tt - 2 * factor * a.et + factor * factor * a.ee, 0); /* sum (t - fe)^2 */
    double doubt =
        SCATTER / alike + (a.t > 0 ? misfit / (a.t * a.t) : 1); /* variance of log factor */
    double trust = PRIOR * PRIOR / (PRIOR * PRIOR + doubt);
    factor = exp(trust * log(fmin(fmax(factor, 1 / FACTOR_MAX), FACTOR_MAX)));
    scale(l, g, sum, (float)factor);
    a.e *= factor;
    a.ee *= factor * factor;
    a.et *= factor;
    misfit = fmax(a.tt - 2 * a.et + a.ee, 0) * alike / fmax(alike - 1, 0.5);
    return (struct hri_audited){factor, misfit / a.ee, misfit / (a.e * a.e)};
}
