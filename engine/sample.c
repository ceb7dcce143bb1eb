#include "engine/sample.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "engine/fail.h"

#define WEIGHT_BITS                                                                                \
    40 /* the most likely token weighs 2^40; 2^24 tokens of that weight fit 64 bits */
#define VOCAB_MAX (1u << 24)

/* A token that may be chosen. */
struct candidate {
    uint64_t weight;
    float logit;
    uint32_t id;
};

struct hre_sampler {
    struct hre_sample_options options;
    uint32_t vocab;
    uint64_t rng[4];
    struct candidate *candidates; /* [vocab] */
};

/* ------------------------------------------------------------------------------- random numbers */

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* xoshiro256** */
static uint64_t random_u64(uint64_t *s)
{
    uint64_t x = s[1] * 5;
    uint64_t result = ((x << 7) | (x >> 57)) * 9;
    uint64_t t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return result;
}

/* Uniform in [0, bound) without bias. */
static uint64_t random_below(uint64_t *s, uint64_t bound)
{
    uint64_t value;

    if (bound == 0)
        return 0;
    uint64_t reject_below = -bound % bound;
    do {
        value = random_u64(s);
    } while (value < reject_below);
    return value % bound;
}

/* -------------------------------------------------------------------------------------- weights */

/* a * b / 2^64 */
static uint64_t multiply_high(uint64_t a, uint64_t b)
{
    return (uint64_t)((unsigned __int128)a * b >> 64);
}

/*
 * 2^WEIGHT_BITS * 2^-x for x >= 0, to about 2^-40 of it, with the same result on every machine: the
 * argument is rounded once to 2^-32, then 2^-f = exp(-f ln 2) is a series of integers, 1 - t (1 -
 * t/2 (1 - t/3 (...))).
 */
static uint64_t weight_of(double x)
{
    const uint64_t ln2 = 0xb17217f7d1cf79acu; /* ln 2 * 2^64 */

    if (x >= WEIGHT_BITS)
        return 0;
    uint64_t fixed = (uint64_t)(x * 0x1p32);
    unsigned whole = (unsigned)(fixed >> 32);
    uint64_t t = multiply_high(fixed << 32, ln2); /* below 0.694 * 2^64 */
    uint64_t sum = UINT64_MAX;
    for (unsigned n = 14; n >= 1; n--)
        sum = UINT64_MAX - multiply_high(t, sum) / n;
    return sum >> (64 - WEIGHT_BITS) >> whole;
}

/* ---------------------------------------------------------------------------------------- rules */

static hr_status_t find_largest(const float *logits, uint32_t vocab, uint32_t *id_out)
{
    float best = -INFINITY;
    uint32_t id = UINT32_MAX;

    for (uint32_t i = 0; i < vocab; i++) {
        if (!(logits[i] <= best)) {
            if (!(logits[i] < INFINITY))
                return hre_fail(HR_ERR_NONFINITE, "logit of token %u is %s", i,
                                isnan(logits[i]) ? "not a number" : "infinite");
            best = logits[i];
            id = i;
        }
    }
    if (id == UINT32_MAX)
        return hre_fail(HR_ERR_NONFINITE,
                        "all %u logits are minus infinity: there is no token to choose", vocab);
    *id_out = id;
    return HR_OK;
}

hr_status_t hre_sample_greedy(const float *logits, uint32_t vocab, uint32_t *id_out)
{
    return find_largest(logits, vocab, id_out);
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* A heap with the most likely candidate on top. */
static void sift_down(struct candidate *heap, uint32_t n, uint32_t at)
{
    struct candidate moved = heap[at];

    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &moved))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

/*
 * Takes candidates off the heap, most likely first, while `most` are not reached and those taken
 * weigh less than `enough`. They end up at the back of the array, the most likely one last. Returns
 * how many.
 */
static uint32_t take_likely(struct candidate *heap, uint32_t n, uint32_t most, uint64_t enough,
                            uint64_t *weight_out)
{
    uint64_t weight = 0;
    uint32_t taken = 0;

    while (taken < n && taken < most && (taken == 0 || weight < enough)) {
        uint32_t last = n - 1 - taken++;
        struct candidate top = heap[0];
        heap[0] = heap[last];
        if (last > 0)
            sift_down(heap, last, 0);
        heap[last] = top;
        weight += top.weight;
    }
    *weight_out = weight;
    return taken;
}

static void heapify(struct candidate *heap, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(heap, n, i);
}

/* The share of a weight, at least 1; one multiplication, so it rounds alike everywhere. */
static uint64_t share(uint64_t weight, double fraction)
{
    uint64_t part = fraction >= 1 ? weight : (uint64_t)((double)weight * fraction);

    return part ? part : 1;
}

/* Candidates with weight, in the order of ids. */
static uint32_t collect(hre_sampler_t *s, const float *logits, float largest, uint64_t *weight_out)
{
    const double log2e = 1.4426950408889634;
    double per_logit = log2e / s->options.temperature;
    uint32_t n = 0;
    uint64_t total = 0;

    for (uint32_t i = 0; i < s->vocab; i++) {
        double below = (double)largest - (double)logits[i];
        /*
         * A tiny temperature makes per_logit infinite, and nothing times infinity is not a number.
         */
        uint64_t weight = weight_of(below > 0 ? below * per_logit : 0);
        if (weight == 0)
            continue;
        s->candidates[n++] = (struct candidate){weight, logits[i], i};
        total += weight;
    }
    *weight_out = total;
    return n;
}

/* Keeps the candidates with at least the share of the most likely one. */
static uint32_t drop_unlikely(struct candidate *c, uint32_t n, double min_p, uint64_t *weight)
{
    uint64_t least = share(weight_of(0), min_p);
    uint32_t kept = 0;

    *weight = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (c[i].weight < least)
            continue;
        *weight += c[i].weight;
        c[kept++] = c[i];
    }
    return kept;
}

/* Applies top_k, top_p and min_p. *first_out is the first of the candidates that are left. */
static uint32_t restrict_likely(hre_sampler_t *s, uint32_t n, uint64_t *weight,
                                struct candidate **first_out)
{
    const struct hre_sample_options *o = &s->options;
    struct candidate *c = s->candidates;
    uint32_t first = 0;

    if (o->top_k > 0 && o->top_k < n) {
        heapify(c, n);
        uint32_t kept = take_likely(c, n, o->top_k, UINT64_MAX, weight);
        first = n - kept;
        n = kept;
    }
    if (o->top_p < 1) {
        heapify(c + first, n);
        uint32_t kept = take_likely(c + first, n, n, share(*weight, o->top_p), weight);
        first += n - kept;
        n = kept;
    }
    *first_out = c + first;
    return o->min_p > 0 ? drop_unlikely(c + first, n, o->min_p, weight) : n;
}

hr_status_t hre_sampler_next(hre_sampler_t *s, const float *logits, uint32_t *id_out)
{
    struct candidate *first;
    uint32_t largest = 0, n;
    uint64_t weight;
    hr_status_t status = find_largest(logits, s->vocab, &largest);

    if (status != HR_OK || s->options.temperature == 0) {
        if (status == HR_OK)
            *id_out = largest;
        return status;
    }
    n = collect(s, logits, logits[largest], &weight);
    n = restrict_likely(s, n, &weight, &first);
    uint64_t draw = random_below(s->rng, weight);
    uint32_t i = 0;
    while (i + 1 < n && draw >= first[i].weight)
        draw -= first[i++].weight;
    *id_out = first[i].id;
    return HR_OK;
}

/* ----------------------------------------------------------------------------------------- life */

void hre_sample_options_init(struct hre_sample_options *options)
{
    *options = (struct hre_sample_options){.struct_size = sizeof(*options), .top_p = 1};
}

static hr_status_t check(const struct hre_sample_options *o, uint32_t vocab)
{
    if (o->struct_size != sizeof(*o))
        return hre_fail(HR_ERR_VERSION, "sample options have size %zu, expected %zu",
                        o->struct_size, sizeof(*o));
    if (vocab == 0 || vocab > VOCAB_MAX)
        return hre_fail(HR_ERR_INVALID, "vocabulary of %u tokens; 1 to %u are possible", vocab,
                        VOCAB_MAX);
    if (!(o->temperature >= 0 && o->temperature < INFINITY))
        return hre_fail(HR_ERR_INVALID, "temperature is %g; expected a number >= 0",
                        o->temperature);
    if (!(o->top_p > 0 && o->top_p <= 1))
        return hre_fail(HR_ERR_INVALID, "top-p is %g; expected more than 0 and at most 1",
                        o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return hre_fail(HR_ERR_INVALID, "min-p is %g; expected 0 to 1", o->min_p);
    return HR_OK;
}

hr_status_t hre_sampler_create(const struct hre_sample_options *options, uint32_t vocab,
                               hre_sampler_t **sampler_out)
{
    struct hre_sample_options defaults;

    if (!options) {
        hre_sample_options_init(&defaults);
        options = &defaults;
    }
    hr_status_t status = check(options, vocab);
    if (status != HR_OK)
        return status;
    hre_sampler_t *s = calloc(1, sizeof(*s));
    if (!s)
        return hre_fail(HR_ERR_NOMEM, "out of memory for a sampler");
    s->options = *options;
    s->vocab = vocab;
    uint64_t seed = options->seed;
    for (int i = 0; i < 4; i++)
        s->rng[i] = splitmix64(&seed);
    if (options->temperature > 0) {
        s->candidates = malloc(vocab * sizeof(*s->candidates));
        if (!s->candidates) {
            free(s);
            return hre_fail(HR_ERR_NOMEM, "out of memory for %u candidates", vocab);
        }
    }
    *sampler_out = s;
    return HR_OK;
}

void hre_sampler_destroy(hre_sampler_t *s)
{
    if (!s)
        return;
    free(s->candidates);
    free(s);
}
