/*
 * Small, seeded random numbers: xoshiro256** started by splitmix64. Not for secrets. The same
 * seed gives the same run anywhere.
 */
#ifndef HRI_BASE_RNG_H
#define HRI_BASE_RNG_H

#include <math.h>
#include <stdint.h>

struct hri_rng {
    uint64_t state[4];
};

static inline uint64_t hri_splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline void hri_rng_seed(struct hri_rng *rng, uint64_t seed)
{
    for (int i = 0; i < 4; i++)
        rng->state[i] = hri_splitmix64(&seed);
}

static inline uint64_t hri_rng_u64(struct hri_rng *rng)
{
    uint64_t *s = rng->state;
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

/* Uniform in [0, bound), without bias; bound > 0. */
static inline uint64_t hri_rng_below(struct hri_rng *rng, uint64_t bound)
{
    uint64_t reject_below = -bound % bound;
    uint64_t value;
    do {
        value = hri_rng_u64(rng);
    } while (value < reject_below);
    return value % bound;
}

/* Uniform in [0, 1). */
static inline double hri_rng_f64(struct hri_rng *rng)
{
    return (double)(hri_rng_u64(rng) >> 11) * 0x1.0p-53;
}

static inline float hri_rng_f32(struct hri_rng *rng)
{
    return (float)(hri_rng_u64(rng) >> 40) * 0x1.0p-24f;
}

/* Standard normal (Box-Muller, one of the pair). */
static inline double hri_rng_normal(struct hri_rng *rng)
{
    double u = 1.0 - hri_rng_f64(rng); /* in (0, 1], so that the logarithm is finite */
    double v = hri_rng_f64(rng);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}

#endif
