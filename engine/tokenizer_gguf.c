/* A tokenizer from the keys of a GGUF file. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_internal.h"

#define NAME_BYTES 64

static hr_status_t read_name(const hre_gguf_t *gguf, const char *key, char *name_out)
{
    struct hre_gguf_string text;
    hr_status_t status = hre_gguf_get_string(gguf, key, &text);

    if (status != HR_OK)
        return status;
    size_t n = text.length < NAME_BYTES - 1 ? text.length : NAME_BYTES - 1;
    memcpy(name_out, text.data, n);
    name_out[n] = '\0';
    return HR_OK;
}

static hr_status_t read_strings(const hre_gguf_t *gguf, const char *key,
                                struct hre_text **texts_out, size_t *n_out)
{
    struct hre_gguf_array array;
    hr_status_t status = hre_gguf_get_array(gguf, key, &array);

    if (status != HR_OK)
        return status;
    if (array.type != HRE_GGUF_STRING)
        return hre_fail(HR_ERR_DTYPE, "%s: %s is not an array of strings", hre_gguf_name(gguf),
                        key);
    struct hre_text *texts = calloc(array.count ? array.count : 1, sizeof(*texts));
    if (!texts)
        return hre_fail(HR_ERR_NOMEM, "out of memory for %s", key);
    size_t offset = 0;
    for (uint64_t i = 0; i < array.count; i++) {
        struct hre_gguf_string text = hre_gguf_array_string_next(&array, &offset);
        texts[i] = (struct hre_text){text.data, text.length};
    }
    *texts_out = texts;
    *n_out = array.count;
    return HR_OK;
}

static hr_status_t read_types(const hre_gguf_t *gguf, size_t n_tokens, int32_t **types_out)
{
    static const char key[] = "tokenizer.ggml.token_type";
    struct hre_gguf_array array;

    if (!hre_gguf_has(gguf, key))
        return HR_OK;
    hr_status_t status = hre_gguf_get_array(gguf, key, &array);
    if (status != HR_OK)
        return status;
    if (array.type == HRE_GGUF_STRING || array.type == HRE_GGUF_ARRAY ||
        array.type == HRE_GGUF_F32 || array.type == HRE_GGUF_F64)
        return hre_fail(HR_ERR_DTYPE, "%s: %s is not an array of integers", hre_gguf_name(gguf),
                        key);
    if (array.count != n_tokens)
        return hre_fail(HR_ERR_CORRUPT, "%s: %llu token types for %zu tokens", hre_gguf_name(gguf),
                        (unsigned long long)array.count, n_tokens);
    int32_t *types = calloc(n_tokens ? n_tokens : 1, sizeof(*types));
    if (!types)
        return hre_fail(HR_ERR_NOMEM, "out of memory for %s", key);
    for (size_t i = 0; i < n_tokens; i++) {
        uint64_t type = hre_gguf_array_u64(&array, i);
        types[i] = type <= HRE_TOKEN_BYTE ? (int32_t)type : INT32_MAX;
    }
    *types_out = types;
    return HR_OK;
}

static hr_status_t read_id(const hre_gguf_t *gguf, const char *key, uint32_t *id_out)
{
    uint64_t value;

    *id_out = HRE_TOKEN_NONE;
    if (!hre_gguf_has(gguf, key))
        return HR_OK;
    hr_status_t status = hre_gguf_get_u64(gguf, key, &value);
    if (status != HR_OK)
        return status;
    if (value >= HRE_VOCAB_MAX)
        return hre_fail(HR_ERR_CORRUPT, "%s: %s is %llu", hre_gguf_name(gguf), key,
                        (unsigned long long)value);
    *id_out = (uint32_t)value;
    return HR_OK;
}

static hr_status_t read_flag(const hre_gguf_t *gguf, const char *key, bool missing, bool *flag_out)
{
    uint64_t value = missing;
    hr_status_t status = hre_gguf_has(gguf, key) ? hre_gguf_get_u64(gguf, key, &value) : HR_OK;

    *flag_out = value != 0;
    return status;
}

/* What does not need memory. */
static hr_status_t read_scalars(const hre_gguf_t *gguf, struct hre_vocab *vocab)
{
    hre_pretokenizer_t pre;
    /* Llama-3 files made before the key existed rely on their readers to begin with the marker. */
    bool bos_missing =
        vocab->pre && hre_pretokenizer_find(vocab->pre, &pre) && pre == HRE_PRETOKENIZER_LLAMA_BPE;
    hr_status_t status = read_id(gguf, "tokenizer.ggml.bos_token_id", &vocab->bos_id);

    if (status == HR_OK)
        status = read_id(gguf, "tokenizer.ggml.eos_token_id", &vocab->eos_id);
    if (status == HR_OK)
        status = read_id(gguf, "tokenizer.ggml.eot_token_id", &vocab->eot_id);
    if (status == HR_OK)
        status = read_flag(gguf, "tokenizer.ggml.add_bos_token", bos_missing, &vocab->add_bos);
    if (status == HR_OK)
        status = read_flag(gguf, "tokenizer.ggml.add_eos_token", false, &vocab->add_eos);
    return status;
}

/* Puts the file's name before the line of a failure that did not know it. */
static hr_status_t named(const hre_gguf_t *gguf, hr_status_t status)
{
    return hre_fail(status, "%s: %s", hre_gguf_name(gguf), hre_last_error());
}

hr_status_t hre_tokenizer_from_gguf(const hre_gguf_t *gguf, hre_tokenizer_t **tokenizer_out)
{
    char model[NAME_BYTES], pre[NAME_BYTES];
    struct hre_vocab vocab = {.model = model};
    struct hre_text *tokens = NULL, *merges = NULL;
    int32_t *types = NULL;

    if (!hre_gguf_has(gguf, "tokenizer.ggml.model") || !hre_gguf_has(gguf, "tokenizer.ggml.tokens"))
        return hre_fail(HR_ERR_NOTFOUND,
                        "%s: the file has no tokenizer (tokenizer.ggml.model and .tokens)",
                        hre_gguf_name(gguf));
    hr_status_t status = read_name(gguf, "tokenizer.ggml.model", model);
    if (status == HR_OK && hre_gguf_has(gguf, "tokenizer.ggml.pre")) {
        status = read_name(gguf, "tokenizer.ggml.pre", pre);
        vocab.pre = pre;
    }
    if (status == HR_OK)
        status = read_scalars(gguf, &vocab);
    if (status == HR_OK)
        status = read_strings(gguf, "tokenizer.ggml.tokens", &tokens, &vocab.n_tokens);
    if (status == HR_OK)
        status = read_types(gguf, vocab.n_tokens, &types);
    /* Other kinds have no merges; the tokenizer says that they are not supported. */
    if (status == HR_OK && strcmp(model, "gpt2") == 0)
        status = read_strings(gguf, "tokenizer.ggml.merges", &merges, &vocab.n_merges);
    if (status == HR_OK) {
        vocab.tokens = tokens;
        vocab.token_types = types;
        vocab.merges = merges;
        status = hre_tokenizer_create(&vocab, tokenizer_out);
        if (status != HR_OK)
            status = named(gguf, status);
    }
    free(tokens);
    free(types);
    free(merges);
    return status;
}
