/*
 * Byte pair merging of one piece: as long as two neighbours can merge, the pair with the lowest
 * rank does, the leftmost of equals. Short pieces look for it in a row of ranks; long ones keep a
 * heap, so that a megabyte without a gap costs n log n.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_internal.h"

#define SHORT_SYMBOLS 48

bool hre_id_list_reserve(struct hre_id_list *list, size_t more)
{
    if (list->capacity - list->count >= more)
        return true;
    size_t capacity = list->capacity + list->capacity / 2 + more + 64;
    uint32_t *grown = realloc(list->ids, capacity * sizeof(*grown));
    if (!grown)
        return false;
    list->ids = grown;
    list->capacity = capacity;
    return true;
}

void hre_bpe_fini(struct hre_bpe *bpe)
{
    free(bpe->links);
    free(bpe->heap);
}

/*
 * The tokens of the single bytes; bytes without a token are left out and counted, and what they
 * parted may merge.
 */
static size_t byte_symbols(struct hre_bpe *bpe, const char *piece, size_t piece_bytes,
                           uint32_t *ids)
{
    size_t n = 0;

    for (size_t i = 0; i < piece_bytes; i++) {
        ids[n] = bpe->tokenizer->byte_ids[(unsigned char)piece[i]];
        if (ids[n] == HRE_TOKEN_NONE)
            bpe->dropped_bytes++;
        else
            n++;
    }
    return n;
}

/* Merges ids[0..n) in place; the number that is left. */
static size_t merge_short(const hre_tokenizer_t *t, uint32_t *ids, size_t n)
{
    const struct hre_merge *merges[SHORT_SYMBOLS];

    for (size_t i = 0; i + 1 < n; i++)
        merges[i] = hre_merge_find(t, ids[i], ids[i + 1]);
    while (n > 1) {
        const struct hre_merge *best = NULL;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            if (merges[i] && (!best || merges[i]->rank < best->rank)) {
                best = merges[i];
                at = i;
            }
        }
        if (!best)
            break;
        n--;
        memmove(ids + at + 1, ids + at + 2, (n - at - 1) * sizeof(*ids));
        for (size_t i = at; i + 1 < n; i++)
            merges[i] = merges[i + 1];
        ids[at] = best->id;
        if (at > 0)
            merges[at - 1] = hre_merge_find(t, ids[at - 1], ids[at]);
        if (at + 1 < n)
            merges[at] = hre_merge_find(t, ids[at], ids[at + 1]);
    }
    return n;
}

static void heap_down(uint64_t *heap, size_t n, size_t at)
{
    uint64_t value = heap[at];

    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = value;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t value)
{
    size_t at = (*n)++;

    while (at > 0 && heap[(at - 1) / 2] > value) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = value;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n)
{
    uint64_t top = heap[0];

    heap[0] = heap[--*n];
    if (*n > 0)
        heap_down(heap, *n, 0);
    return top;
}

static bool reserve_long(struct hre_bpe *bpe, size_t n)
{
    if (n <= bpe->capacity)
        return true;
    hre_bpe_fini(bpe);
    bpe->links = malloc(3 * n * sizeof(*bpe->links));
    bpe->heap = malloc(2 * n * sizeof(*bpe->heap));
    bpe->capacity = bpe->links && bpe->heap ? n : 0;
    return bpe->capacity != 0;
}

static void push_pair(struct hre_bpe *bpe, size_t *heap_count, const uint32_t *ids, uint32_t left,
                      uint32_t right)
{
    const struct hre_merge *merge = hre_merge_find(bpe->tokenizer, ids[left], ids[right]);

    if (merge)
        heap_push(bpe->heap, heap_count, (uint64_t)merge->rank << 32 | left);
}

/*
 * Symbols are a doubly linked list in arrays; a symbol that was merged into its left neighbour has
 * id NONE. An entry of the heap is stale when its left symbol is gone or the pair there has another
 * rank now. Every merge adds at most two entries and takes one, so 2 n hold them all.
 */
static void merge_list(struct hre_bpe *bpe, uint32_t *ids, uint32_t *previous, uint32_t *next,
                       uint32_t n)
{
    size_t heap_count = 0;

    for (uint32_t i = 0; i < n; i++) {
        previous[i] = i ? i - 1 : HRE_TOKEN_NONE;
        next[i] = i + 1 < n ? i + 1 : HRE_TOKEN_NONE;
    }
    for (uint32_t i = 0; i + 1 < n; i++) {
        const struct hre_merge *merge = hre_merge_find(bpe->tokenizer, ids[i], ids[i + 1]);
        if (merge)
            bpe->heap[heap_count++] = (uint64_t)merge->rank << 32 | i;
    }
    for (size_t i = heap_count / 2; i-- > 0;)
        heap_down(bpe->heap, heap_count, i);

    while (heap_count > 0) {
        uint64_t top = heap_pop(bpe->heap, &heap_count);
        uint32_t at = (uint32_t)top;
        uint32_t right = next[at];
        if (ids[at] == HRE_TOKEN_NONE || right == HRE_TOKEN_NONE)
            continue;
        const struct hre_merge *merge = hre_merge_find(bpe->tokenizer, ids[at], ids[right]);
        if (!merge || merge->rank != top >> 32)
            continue;
        ids[at] = merge->id;
        ids[right] = HRE_TOKEN_NONE;
        next[at] = next[right];
        if (next[at] != HRE_TOKEN_NONE) {
            previous[next[at]] = at;
            push_pair(bpe, &heap_count, ids, at, next[at]);
        }
        if (previous[at] != HRE_TOKEN_NONE)
            push_pair(bpe, &heap_count, ids, previous[at], at);
    }
}

static bool piece_long(struct hre_bpe *bpe, const char *piece, size_t piece_bytes)
{
    if (!reserve_long(bpe, piece_bytes) || !hre_id_list_reserve(bpe->out, piece_bytes))
        return false;

    uint32_t *ids = bpe->links;
    size_t n = byte_symbols(bpe, piece, piece_bytes, ids);
    merge_list(bpe, ids, ids + piece_bytes, ids + 2 * piece_bytes, (uint32_t)n);
    for (size_t i = 0; i < n; i++)
        if (ids[i] != HRE_TOKEN_NONE)
            bpe->out->ids[bpe->out->count++] = ids[i];
    return true;
}

bool hre_bpe_piece(struct hre_bpe *bpe, const char *piece, size_t piece_bytes)
{
    uint32_t ids[SHORT_SYMBOLS];
    size_t n;

    if (bpe->tokenizer->ignore_merges) {
        uint32_t whole = hre_tokenizer_find_text(bpe->tokenizer, piece, piece_bytes);
        if (whole != HRE_TOKEN_NONE) {
            if (!hre_id_list_reserve(bpe->out, 1))
                return false;
            bpe->out->ids[bpe->out->count++] = whole;
            return true;
        }
    }
    if (piece_bytes > SHORT_SYMBOLS)
        return piece_long(bpe, piece, piece_bytes);
    n = byte_symbols(bpe, piece, piece_bytes, ids);
    if (n == 0)
        return true;
    n = merge_short(bpe->tokenizer, ids, n);
    if (!hre_id_list_reserve(bpe->out, n))
        return false;
    memcpy(bpe->out->ids + bpe->out->count, ids, n * sizeof(*ids));
    bpe->out->count += n;
    return true;
}
