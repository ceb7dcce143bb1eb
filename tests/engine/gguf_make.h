/* Writes small GGUF files into memory for tests: well-formed ones, and whole models with random
 * weights. */
#ifndef HRE_TESTS_GGUF_MAKE_H
#define HRE_TESTS_GGUF_MAKE_H

#include <stddef.h>
#include <stdint.h>

struct gguf_bytes {
    unsigned char *data; /* aligned as malloc does */
    size_t count, capacity;
};

/* What a file is made of, gathered apart; gguf_finish joins it. */
struct gguf_maker {
    struct gguf_bytes entries, infos, body;
    uint64_t n_entries, n_tensors, state;
};

void gguf_begin(struct gguf_maker *m, uint64_t seed);
void gguf_key_u32(struct gguf_maker *m, const char *key, uint32_t value);
void gguf_key_f32(struct gguf_maker *m, const char *key, float value);
void gguf_key_string(struct gguf_maker *m, const char *key, const char *value);
void gguf_key_raw(struct gguf_maker *m, const char *key, uint32_t type, const void *value,
                  size_t bytes);
/* rows of cols random weights of a type, of about the given size; vectors have rows = 0 and spread
 * around `mean` */
void gguf_tensor(struct gguf_maker *m, const char *name, uint32_t type, uint32_t cols,
                 uint32_t rows, float size, float mean);
/* The file; the maker is empty afterwards. The caller frees data. */
struct gguf_bytes gguf_finish(struct gguf_maker *m);

uint32_t gguf_random(uint64_t *state);
/* Random blocks of a quantised type whose weights are about `size` large. */
void gguf_random_weights(uint64_t *state, uint32_t type, size_t n, float size, void *out);
size_t gguf_weight_bytes(uint32_t type, size_t n);
uint16_t gguf_half(float value);

/* A decoder with random weights. */
struct gguf_shape {
    const char *architecture; /* "llama" or "qwen2" */
    uint32_t layers, width, ffn, heads, kv_heads, head_dim, vocab, n_rot;
    uint32_t types[4]; /* of weight matrices, in turn; widths must be whole blocks */
    int tied, biases;
    const char *scaling; /* NULL, "linear", "yarn", "llama3" */
};
struct gguf_bytes gguf_model(const struct gguf_shape *shape, uint64_t seed);

#endif
