#include "tests/engine/gguf_make.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/gguf.h"
#include "engine/quant.h"

#define ALIGNMENT 32

static void put(struct gguf_bytes *b, const void *data, size_t bytes)
{
    while (b->count + bytes > b->capacity) {
        b->capacity = b->capacity ? 2 * b->capacity : 4096;
        b->data = realloc(b->data, b->capacity);
        if (!b->data) {
            abort();
        }
    }
    if (data) {
        memcpy(b->data + b->count, data, bytes);
    } else {
        memset(b->data + b->count, 0, bytes);
    }
    b->count += bytes;
}

static void put_u32(struct gguf_bytes *b, uint32_t value)
{
    put(b, &value, 4);
}

static void put_u64(struct gguf_bytes *b, uint64_t value)
{
    put(b, &value, 8);
}

static void put_string(struct gguf_bytes *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

uint32_t gguf_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) >> 16);
}

static float uniform(uint64_t *state)
{
    return (float)(gguf_random(state) >> 8) * 0x1p-23f - 1.0f;
}

/* Finite values of ordinary size only; rounds toward zero. */
uint16_t gguf_half(float value)
{
    uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000;
    int exponent = (int)(bits >> 23 & 255) - 127 + 15;

    if (exponent <= 0) {
        return (uint16_t)(sign | (uint32_t)(fabsf(value) * 0x1p24f));
    }
    return (uint16_t)(sign | (uint32_t)exponent << 10 | (bits >> 13 & 1023));
}

size_t gguf_weight_bytes(uint32_t type, size_t n)
{
    switch (type) {
    case HRE_WEIGHT_F32:
        return n * 4;
    case HRE_WEIGHT_F16:
    case HRE_WEIGHT_BF16:
        return n * 2;
    case HRE_WEIGHT_Q4_0:
        return n / 32 * sizeof(struct block_q4_0);
    case HRE_WEIGHT_Q4_1:
        return n / 32 * sizeof(struct block_q4_1);
    case HRE_WEIGHT_Q8_0:
        return n / 32 * sizeof(struct block_q8_0);
    case HRE_WEIGHT_Q4_K:
        return n / 256 * sizeof(struct block_q4_k);
    default:
        return n / 256 * sizeof(struct block_q6_k);
    }
}

/* Bytes of all values; then the scales, which must be sane, are put where the type has them. */
static void random_blocks(uint64_t *state, uint32_t type, size_t n, float size, unsigned char *p)
{
    static const struct {
        uint32_t type;
        size_t block, bytes, d, m;
        float levels, centre; /* d = size / levels; m = centre * d where there is one */
    } kinds[] = {
        {HRE_WEIGHT_Q4_0, 32, 18, 0, SIZE_MAX, 8, 0},
        {HRE_WEIGHT_Q4_1, 32, 20, 0, 2, 8, -7.5f},
        {HRE_WEIGHT_Q8_0, 32, 34, 0, SIZE_MAX, 128, 0},
        {HRE_WEIGHT_Q4_K, 256, 144, 0, 2, 512, 7.5f},
        {HRE_WEIGHT_Q6_K, 256, 210, 208, SIZE_MAX, 2048, 0},
    };

    for (size_t i = 0; i < gguf_weight_bytes(type, n); i++) {
        p[i] = (unsigned char)gguf_random(state);
    }
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        for (size_t i = 0; kinds[k].type == type && i < n / kinds[k].block;
             i++, p += kinds[k].bytes) {
            float d = size / kinds[k].levels * (1.0f + 0.5f * uniform(state));
            uint16_t half = gguf_half(d), m = gguf_half(d * kinds[k].centre);

            memcpy(p + kinds[k].d, &half, 2);
            if (kinds[k].m != SIZE_MAX) {
                memcpy(p + kinds[k].m, &m, 2);
            }
        }
    }
}

void gguf_random_weights(uint64_t *state, uint32_t type, size_t n, float size, void *out)
{
    unsigned char *p = out;

    if (type != HRE_WEIGHT_F32 && type != HRE_WEIGHT_F16 && type != HRE_WEIGHT_BF16) {
        random_blocks(state, type, n, size, p);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float value = size * uniform(state);
        uint16_t half =
            type == HRE_WEIGHT_F16 ? gguf_half(value) : (uint16_t)(bits_of_float(value) >> 16);

        if (type == HRE_WEIGHT_F32) {
            memcpy(p + 4 * i, &value, 4);
        } else {
            memcpy(p + 2 * i, &half, 2);
        }
    }
}

void gguf_begin(struct gguf_maker *m, uint64_t seed)
{
    memset(m, 0, sizeof(*m));
    m->state = seed;
}

void gguf_key_raw(struct gguf_maker *m, const char *key, uint32_t type, const void *value,
                  size_t bytes)
{
    put_string(&m->entries, key);
    put_u32(&m->entries, type);
    put(&m->entries, value, bytes);
    m->n_entries++;
}

void gguf_key_u32(struct gguf_maker *m, const char *key, uint32_t value)
{
    gguf_key_raw(m, key, HRE_GGUF_U32, &value, 4);
}

void gguf_key_f32(struct gguf_maker *m, const char *key, float value)
{
    gguf_key_raw(m, key, HRE_GGUF_F32, &value, 4);
}

void gguf_key_string(struct gguf_maker *m, const char *key, const char *value)
{
    put_string(&m->entries, key);
    put_u32(&m->entries, HRE_GGUF_STRING);
    put_string(&m->entries, value);
    m->n_entries++;
}

void gguf_tensor(struct gguf_maker *m, const char *name, uint32_t type, uint32_t cols,
                 uint32_t rows, float size, float mean)
{
    size_t n = (size_t)cols * (rows ? rows : 1), bytes = gguf_weight_bytes(type, n);

    put_string(&m->infos, name);
    put_u32(&m->infos, rows ? 2 : 1);
    put_u64(&m->infos, cols);
    if (rows) {
        put_u64(&m->infos, rows);
    }
    put_u32(&m->infos, type);
    put_u64(&m->infos, m->body.count);
    size_t at = m->body.count;
    put(&m->body, NULL, bytes);
    gguf_random_weights(&m->state, type, n, size, m->body.data + at);
    for (uint32_t i = 0; mean != 0.0f && i < cols; i++) {
        float value;

        memcpy(&value, m->body.data + at + 4 * i, 4);
        value += mean;
        memcpy(m->body.data + at + 4 * i, &value, 4);
    }
    put(&m->body, NULL, (ALIGNMENT - m->body.count % ALIGNMENT) % ALIGNMENT);
    m->n_tensors++;
}

struct gguf_bytes gguf_finish(struct gguf_maker *m)
{
    struct gguf_bytes file = {0};

    put(&file, "GGUF", 4);
    put_u32(&file, 3);
    put_u64(&file, m->n_tensors);
    put_u64(&file, m->n_entries);
    put(&file, m->entries.data, m->entries.count);
    put(&file, m->infos.data, m->infos.count);
    put(&file, NULL, (ALIGNMENT - file.count % ALIGNMENT) % ALIGNMENT);
    put(&file, m->body.data, m->body.count);
    free(m->entries.data);
    free(m->infos.data);
    free(m->body.data);
    memset(m, 0, sizeof(*m));
    return file;
}

static void shape_keys(struct gguf_maker *m, const struct gguf_shape *s)
{
    char key[96];
    const struct {
        const char *name;
        uint32_t value;
    } keys[] = {
        {"block_count", s->layers},
        {"context_length", 4096},
        {"embedding_length", s->width},
        {"feed_forward_length", s->ffn},
        {"attention.head_count", s->heads},
        {"attention.head_count_kv", s->kv_heads},
        {"attention.key_length", s->head_dim},
        {"attention.value_length", s->head_dim},
        {"rope.dimension_count", s->n_rot},
    };

    gguf_key_string(m, "general.architecture", s->architecture);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        snprintf(key, sizeof(key), "%s.%s", s->architecture, keys[i].name);
        gguf_key_u32(m, key, keys[i].value);
    }
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", s->architecture);
    gguf_key_f32(m, key, 1e-5f);
    snprintf(key, sizeof(key), "%s.rope.freq_base", s->architecture);
    gguf_key_f32(m, key, 10000.0f);
    if (s->scaling && strcmp(s->scaling, "llama3") == 0) {
        gguf_tensor(m, "rope_freqs.weight", HRE_WEIGHT_F32, s->n_rot / 2, 0, 1.0f, 3.0f);
    } else if (s->scaling) {
        snprintf(key, sizeof(key), "%s.rope.scaling.type", s->architecture);
        gguf_key_string(m, key, s->scaling);
        snprintf(key, sizeof(key), "%s.rope.scaling.factor", s->architecture);
        gguf_key_f32(m, key, 4.0f);
        snprintf(key, sizeof(key), "%s.rope.scaling.original_context_length", s->architecture);
        gguf_key_u32(m, key, 1024);
    }
}

struct gguf_bytes gguf_model(const struct gguf_shape *s, uint64_t seed)
{
    struct gguf_maker m;
    uint32_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    const struct {
        const char *stem;
        uint32_t cols, rows;
        int bias;
    } weights[] = {
        {"attn_q", s->width, q, 1},        {"attn_k", s->width, kv, 1},
        {"attn_v", s->width, kv, 1},       {"attn_output", q, s->width, 0},
        {"ffn_gate", s->width, s->ffn, 0}, {"ffn_up", s->width, s->ffn, 0},
        {"ffn_down", s->ffn, s->width, 0},
    };
    char name[96];
    unsigned turn = 0;

    gguf_begin(&m, seed);
    shape_keys(&m, s);
    gguf_tensor(&m, "token_embd.weight", s->types[0], s->width, s->vocab, 1.0f, 0.0f);
    for (uint32_t layer = 0; layer < s->layers; layer++) {
        snprintf(name, sizeof(name), "blk.%u.attn_norm.weight", layer);
        gguf_tensor(&m, name, HRE_WEIGHT_F32, s->width, 0, 0.3f, 1.0f);
        snprintf(name, sizeof(name), "blk.%u.ffn_norm.weight", layer);
        gguf_tensor(&m, name, HRE_WEIGHT_F32, s->width, 0, 0.3f, 1.0f);
        for (size_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++) {
            snprintf(name, sizeof(name), "blk.%u.%s.weight", layer, weights[i].stem);
            gguf_tensor(&m, name, s->types[turn++ % 4], weights[i].cols, weights[i].rows,
                        2.0f / sqrtf((float)weights[i].cols), 0.0f);
            if (s->biases && weights[i].bias) {
                snprintf(name, sizeof(name), "blk.%u.%s.bias", layer, weights[i].stem);
                gguf_tensor(&m, name, HRE_WEIGHT_F32, weights[i].rows, 0, 0.5f, 0.0f);
            }
        }
    }
    gguf_tensor(&m, "output_norm.weight", HRE_WEIGHT_F32, s->width, 0, 0.3f, 1.0f);
    if (!s->tied) {
        gguf_tensor(&m, "output.weight", s->types[1], s->width, s->vocab,
                    2.0f / sqrtf((float)s->width), 0.0f);
    }
    return gguf_finish(&m);
}
