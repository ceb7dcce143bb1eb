#include "index/sort.h"

#include <stdbool.h>
#include <string.h>

/* Below so many, quickselect alone is as fast. */
#define NARROW_MIN 512u
#define BINS_SHIFT 21u /* of a key's bits: sign, exponent and two bits more */
#define BINS       (1u << (32 - BINS_SHIFT))

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

/* The root of the heap is the one that sorts last. */
static void sift_down(struct hri_ranked *a, size_t root, size_t n)
{
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= n)
            return;
        if (child + 1 < n && before(&a[child], &a[child + 1]))
            child++;
        if (!before(&a[root], &a[child]))
            return;
        swap(&a[root], &a[child]);
        root = child;
    }
}

void hri_rank_sort(struct hri_ranked *a, size_t n)
{
    for (size_t i = n / 2; i-- > 0;)
        sift_down(a, i, n);
    for (size_t i = n; i-- > 1;) {
        swap(&a[0], &a[i]);
        sift_down(a, 0, i);
    }
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

/* The larger the key, the lower the bin. */
static inline uint32_t bin_of(float key)
{
    uint32_t bits;
    key += 0.0f; /* -0 sorts like 0 */
    memcpy(&bits, &key, sizeof bits);
    bits ^= bits >> 31 ? UINT32_MAX : 0x80000000u;
    return BINS - 1 - (bits >> BINS_SHIFT);
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

void hri_rank_select(struct hri_ranked *a, size_t n, size_t n_best)
{
    if (n_best == 0 || n_best >= n)
        return;
    size_t low = 0, high = n - 1;
    if (n >= NARROW_MIN)
        narrow(a, n, n_best, &low, &high);
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
