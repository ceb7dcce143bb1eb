#include "index/sort.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Below so many, quickselect alone is as fast. */
#define NARROW_MIN 512u
#define BINS_SHIFT 21u /* of a key's bits: sign, exponent and two bits more */
#define BINS       (1u << (32 - BINS_SHIFT))
/* From so many on, a sample's keys leave little to the passes whose branches nobody foresees. */
#define SAMPLE     512u
#define SAMPLE_MIN (16u * SAMPLE)
#define BATCH      64u
/* Up to so many are sorted by insertion, up to so many more by their keys' bytes; of longer runs first the better half is found. */
#define INSERT_MAX 24u
#define RADIX_MAX  512u

static inline bool before(const struct hri_ranked *a, const struct hri_ranked *b)
{
    return a->key > b->key || (a->key == b->key && a->item < b->item);
}

static inline void swap(struct hri_ranked *a, struct hri_ranked *b)
{
    struct hri_ranked t = *a;
    *a = *b;
    *b = t;
}

/* Median of three as the pivot, at a[low]. */
static void choose_pivot(struct hri_ranked *a, size_t low, size_t high)
{
    size_t middle = low + (high - low) / 2;
    if (before(&a[middle], &a[low]))
        swap(&a[middle], &a[low]);
    if (before(&a[high], &a[middle]))
        swap(&a[high], &a[middle]);
    if (before(&a[middle], &a[low]))
        swap(&a[middle], &a[low]);
    swap(&a[low], &a[middle]);
}

/* The larger the key, the lower the code. */
static inline uint32_t code_of(float key)
{
    uint32_t bits;
    key += 0.0f; /* -0 sorts like 0 */
    memcpy(&bits, &key, sizeof bits);
    return bits ^ (bits >> 31 ? 0 : 0x7fffffffu);
}

static inline uint32_t bin_of(float key)
{
    return code_of(key) >> BINS_SHIFT;
}

/* Bins before one go to the front, bins after it to the back: [*low_out, *high_out] are left. */
static void part_bins(struct hri_ranked *a, size_t n, uint32_t bin, size_t *low_out,
                      size_t *high_out)
{
    size_t low = 0, high = n;
    for (size_t i = 0; i < high;) {
        uint32_t at = bin_of(a[i].key);
        if (at > bin)
            swap(&a[i], &a[--high]);
        else if (at < bin)
            swap(&a[i++], &a[low++]);
        else
            i++;
    }
    *low_out = low;
    *high_out = high - 1;
}

/* Two passes leave the range of one bin, in which the n_best-th is. */
static void narrow(struct hri_ranked *a, size_t n, size_t n_best, size_t *low_out, size_t *high_out)
{
    uint32_t count[BINS] = {0}, bin = 0;
    for (size_t i = 0; i < n; i++)
        count[bin_of(a[i].key)]++;
    for (size_t before_bin = count[0]; before_bin < n_best; before_bin += count[bin])
        bin++;
    part_bins(a, n, bin, low_out, high_out);
}

/* Quickselect of the n_best-th in [low, high]. */
static void select_range(struct hri_ranked *a, size_t low, size_t high, size_t n_best)
{
    while (low < high) {
        choose_pivot(a, low, high);
        struct hri_ranked pivot = a[low];
        size_t i = low, j = high + 1;
        for (;;) {
            do
                i++;
            while (i <= high && before(&a[i], &pivot));
            do
                j--;
            while (before(&pivot, &a[j]));
            if (i >= j)
                break;
            swap(&a[i], &a[j]);
        }
        swap(&a[low], &a[j]);
        if (j == n_best || j + 1 == n_best)
            return;
        if (j < n_best)
            low = j + 1;
        else
            high = j - 1;
    }
}

/* Of BATCH elements, a bit for each that is not below `least`. */
static inline uint64_t not_below(const struct hri_ranked *a, float least)
{
    uint64_t hits = 0;
#ifdef __SSE2__
    const __m128 bound = _mm_set1_ps(least);
    for (unsigned i = 0; i < BATCH; i += 4) {
        const __m128 keys = _mm_shuffle_ps(_mm_loadu_ps(&a[i].key), _mm_loadu_ps(&a[i + 2].key),
                                           _MM_SHUFFLE(2, 0, 2, 0));
        hits |= (uint64_t)(unsigned)_mm_movemask_ps(_mm_cmpge_ps(keys, bound)) << i;
    }
#else
    for (unsigned i = 0; i < BATCH; i++)
        hits |= (uint64_t)(a[i].key >= least) << i;
#endif
    return hits;
}

/* Elements that are not below `least` go to the front; returns how many. */
static size_t part_key(struct hri_ranked *a, size_t n, float least)
{
    size_t n_front = 0, i = 0;
    for (; i + BATCH <= n; i += BATCH) {
        for (uint64_t hits = not_below(a + i, least); hits != 0; hits &= hits - 1)
            swap(&a[n_front++], &a[i + (size_t)__builtin_ctzll(hits)]);
    }
    for (; i < n; i++)
        if (a[i].key >= least)
            swap(&a[n_front++], &a[i]);
    return n_front;
}

/* The key at a place of the sample's order. */
static float sample_key(struct hri_ranked *sample, size_t rank)
{
    float least = INFINITY;
    select_range(sample, 0, SAMPLE - 1, rank);
    for (size_t i = 0; i < rank; i++)
        least = sample[i].key < least ? sample[i].key : least;
    return least;
}

/* [*low_out, *end_out) are left, in which the n_best-th is. Two keys of a sample, four standard
 * deviations to either side of the n_best-th's place, part what is in between from the rest; where
 * the sample was unlike the others, more is left. */
static void narrow_by_sample(struct hri_ranked *a, size_t n, size_t n_best, size_t *low_out,
                             size_t *end_out)
{
    struct hri_ranked sample[SAMPLE];
    size_t share = n_best * SAMPLE / n + 1, deviation = 1;
    for (size_t i = 0; i < SAMPLE; i++)
        sample[i] = a[i * (n / SAMPLE)];
    while (deviation * deviation < share)
        deviation++;
    size_t n_front = part_key(a, n, sample_key(sample, share + 4 * deviation));
    *low_out = 0;
    *end_out = n_front >= n_best ? n_front : n;
    if (share <= 4 * deviation)
        return;
    n_front = part_key(a, *end_out, sample_key(sample, share - 4 * deviation));
    if (n_front <= n_best)
        *low_out = n_front;
    else
        *end_out = n_front;
}

void hri_rank_select(struct hri_ranked *a, size_t n, size_t n_best)
{
    size_t begin = 0, end = n;
    if (n_best == 0 || n_best >= n)
        return;
    if (n >= SAMPLE_MIN && n_best <= n / 2)
        narrow_by_sample(a, n, n_best, &begin, &end);
    if (begin == n_best || end == n_best)
        return;
    size_t low = 0, high = end - begin - 1;
    if (end - begin >= NARROW_MIN)
        narrow(a + begin, end - begin, n_best - begin, &low, &high);
    select_range(a, begin + low, begin + high, n_best);
}

/* Each moves up to where it belongs; few moves where most are in order. */
static void insert(struct hri_ranked *a, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        struct hri_ranked x = a[i];
        size_t j = i;
        for (; j > 0 && before(&x, &a[j - 1]); j--)
            a[j] = a[j - 1];
        a[j] = x;
    }
}

/* By the bytes of the keys' codes, the lowest first; bytes in which all are alike are passed over. */
static void radix(struct hri_ranked *a, size_t n)
{
    struct hri_ranked other[RADIX_MAX], *from = a, *to = other;
    uint16_t count[4][256] = {0};
    for (size_t i = 0; i < n; i++)
        for (unsigned byte = 0; byte < 4; byte++)
            count[byte][code_of(a[i].key) >> 8 * byte & 255]++;
    for (unsigned byte = 0; byte < 4; byte++) {
        uint16_t place = 0, *c = count[byte];
        if (c[code_of(a[0].key) >> 8 * byte & 255] == n)
            continue;
        for (unsigned i = 0; i < 256; i++) {
            uint16_t here = c[i];
            c[i] = place;
            place = (uint16_t)(place + here);
        }
        for (size_t i = 0; i < n; i++)
            to[c[code_of(from[i].key) >> 8 * byte & 255]++] = from[i];
        struct hri_ranked *t = from;
        from = to;
        to = t;
    }
    if (from != a)
        memcpy(a, from, n * sizeof *a);
    insert(a, n); /* equal keys, by item */
}

void hri_rank_sort(struct hri_ranked *a, size_t n)
{
    while (n > RADIX_MAX) {
        hri_rank_select(a, n, n / 2);
        hri_rank_sort(a, n / 2);
        a += n / 2;
        n -= n / 2;
    }
    if (n > INSERT_MAX)
        radix(a, n);
    else
        insert(a, n);
}
