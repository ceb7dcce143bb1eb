/* The embedded retrieval model and its texts; engine/models/README.md is the contract. */
#include <stddef.h>
#include <stdint.h>

#include "engine/model.h"

#define KEYS        64
#define VALUE_BASE  64
#define FILLER_BASE 128
#define IDS_OF_KIND 64

/* The file as it is, aligned as a mapping would be. */
__asm__(".section .rodata\n"
        ".balign 64\n"
        "hre_tiny_begin:\n"
        ".incbin \"" HRE_TINY_GGUF "\"\n"
        "hre_tiny_end:\n"
        ".byte 0\n"
        ".text\n");
extern const unsigned char hre_tiny_begin[], hre_tiny_end[];

const void *hre_tiny_file(size_t *bytes_out)
{
    *bytes_out = (size_t)((uintptr_t)hre_tiny_end - (uintptr_t)hre_tiny_begin);
    return hre_tiny_begin;
}

/* splitmix64 modulo n; the small bias is part of the contract. */
static uint32_t below(uint64_t *state, uint64_t n)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) % n);
}

static void swap(uint32_t *a, uint32_t *b)
{
    uint32_t t = *a;

    *a = *b;
    *b = t;
}

hr_status_t hre_tiny_text(uint32_t n_tokens, uint32_t n_keys, uint64_t seed, uint32_t *ids_out,
                          uint32_t *answers_out)
{
    uint32_t names[KEYS], values[KEYS], order[KEYS];
    uint64_t state = seed;

    if (n_keys < 1 || n_keys > KEYS || n_tokens < 2 * n_keys + (8 * n_keys + 2) / 3) {
        return hre_fail(HR_ERR_INVALID,
                        "a text of %u tokens with %u keys: 1 to %d keys, and 2 k + ceil(8 k / 3) "
                        "tokens at least",
                        n_tokens, n_keys, KEYS);
    }
    for (uint32_t i = 0; i < KEYS; i++) {
        names[i] = i;
    }
    for (uint32_t i = 0; i < n_keys; i++) {
        swap(&names[i], &names[i + below(&state, KEYS - i)]);
        order[i] = i;
    }
    for (uint32_t i = 0; i < n_keys; i++) {
        values[i] = VALUE_BASE + below(&state, IDS_OF_KIND);
    }
    uint32_t body = n_tokens - 2 * n_keys;
    for (uint32_t t = 0; t < body; t++) {
        ids_out[t] = FILLER_BASE + below(&state, IDS_OF_KIND);
    }
    uint64_t span = 3 * (uint64_t)body / 4;
    for (uint32_t i = 0; i < n_keys; i++) {
        uint64_t low = i * span / n_keys, high = (i + 1) * span / n_keys;
        uint64_t at = low + below(&state, high - low - 1);

        ids_out[at] = names[i];
        ids_out[at + 1] = values[i];
    }
    for (uint32_t i = 0; i + 1 < n_keys; i++) {
        swap(&order[i], &order[i + below(&state, n_keys - i)]);
    }
    for (uint32_t i = 0; i < n_keys; i++) {
        ids_out[body + 2 * i] = names[order[i]];
        ids_out[body + 2 * i + 1] = values[order[i]];
        answers_out[i] = values[order[i]];
    }
    return HR_OK;
}
