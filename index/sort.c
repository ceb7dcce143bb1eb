#include "index/sort.h"

#include <stdbool.h>

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

void hri_rank_select(struct hri_ranked *a, size_t n, size_t n_best)
{
    if (n_best == 0 || n_best >= n)
        return;
    size_t low = 0, high = n - 1;
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
