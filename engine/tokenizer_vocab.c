/* The tables of a tokenizer: token bytes, merges, markers. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_internal.h"
#include "engine/unicode.h"

static const char *const end_names[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>",
                                        "<|end_of_text|>", "<|eom_id|>"};

/* How much of a token a message shows. */
#define SHOWN(text) (int)((text).bytes < 60 ? (text).bytes : 60), (text).data

static hr_status_t out_of_memory(void)
{
    return hre_fail(HR_ERR_NOMEM, "out of memory for the tokenizer's tables");
}

/*
 * The alphabet of byte-level vocabularies: bytes that are printable Latin-1 stand for themselves,
 * the other 68 for U+0100 and up, in order. Returns the byte of a code point, or -1.
 */
static int alphabet_byte(uint32_t code_point)
{
    if ((code_point >= 33 && code_point <= 126) ||
        (code_point >= 161 && code_point <= 255 && code_point != 173))
        return (int)code_point;
    if (code_point < 256 || code_point > 256 + 67)
        return -1;
    uint32_t n = code_point - 256;
    if (n <= 32)
        return (int)n;
    return n <= 66 ? (int)(n - 33 + 127) : 173;
}

/*
 * Writes the bytes that a token stands for (never more than its spelling has); the number of them.
 */
static size_t spell_bytes(const struct hre_text *token, char *bytes_out)
{
    size_t at = 0, n = 0, length;

    if (hre_utf8_invalid_at(token->data, token->bytes) == token->bytes) {
        for (; at < token->bytes; at += length) {
            int byte = alphabet_byte(hre_utf8_decode(token->data + at, &length));
            if (byte < 0)
                break;
            bytes_out[n++] = (char)byte;
        }
        if (at == token->bytes)
            return n;
    }
    /* Not of the alphabet: it stands for itself. */
    memcpy(bytes_out, token->data, token->bytes);
    return token->bytes;
}

static uint64_t hash_bytes(const char *data, size_t bytes)
{
    uint64_t hash = 0xcbf29ce484222325u ^ bytes;

    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ (unsigned char)data[i]) * 0x100000001b3u;
    hash ^= hash >> 32;
    return hash * 0x9e3779b97f4a7c15u >> 16;
}

/* The slot that holds these bytes, or the empty one where they belong. */
static size_t bytes_slot(const hre_tokenizer_t *t, const char *data, size_t bytes)
{
    size_t slot = (size_t)hash_bytes(data, bytes) & t->by_bytes_mask;

    while (t->by_bytes[slot] != HRE_TOKEN_NONE) {
        struct hre_text text = hre_tokenizer_text(t, t->by_bytes[slot]);
        if (text.bytes == bytes && memcmp(text.data, data, bytes) == 0)
            break;
        slot = (slot + 1) & t->by_bytes_mask;
    }
    return slot;
}

uint32_t hre_tokenizer_find(const hre_tokenizer_t *t, const char *text, size_t text_bytes)
{
    return t->by_bytes[bytes_slot(t, text, text_bytes)];
}

uint32_t hre_tokenizer_find_text(const hre_tokenizer_t *t, const char *text, size_t text_bytes)
{
    uint32_t id = hre_tokenizer_find(t, text, text_bytes);

    return id == HRE_TOKEN_NONE || hre_token_is_marker(t, id) ? HRE_TOKEN_NONE : id;
}

static size_t table_slots(size_t items)
{
    size_t slots = 16;

    while (slots < 2 * items)
        slots *= 2;
    return slots;
}

static hr_status_t check_vocab(const struct hre_vocab *vocab)
{
    if (vocab->n_tokens == 0 || vocab->n_tokens > HRE_VOCAB_MAX)
        return hre_fail(HR_ERR_CORRUPT, "vocabulary of %zu tokens; 1 to %u are possible",
                        vocab->n_tokens, HRE_VOCAB_MAX);
    if (vocab->n_merges >= HRE_TOKEN_NONE)
        return hre_fail(HR_ERR_CORRUPT, "%zu merges are too many", vocab->n_merges);
    const struct {
        const char *name;
        uint32_t id;
    } named[] = {{"bos", vocab->bos_id}, {"eos", vocab->eos_id}, {"eot", vocab->eot_id}};
    for (size_t i = 0; i < sizeof(named) / sizeof(named[0]); i++)
        if (named[i].id != HRE_TOKEN_NONE && named[i].id >= vocab->n_tokens)
            return hre_fail(HR_ERR_CORRUPT, "%s token %u is outside of the vocabulary of %zu",
                            named[i].name, named[i].id, vocab->n_tokens);
    for (size_t i = 0; vocab->token_types && i < vocab->n_tokens; i++)
        if (vocab->token_types[i] < 0 || vocab->token_types[i] > HRE_TOKEN_BYTE)
            return hre_fail(HR_ERR_CORRUPT, "token %zu has type %d; 0 to %d are possible", i,
                            (int)vocab->token_types[i], HRE_TOKEN_BYTE);
    return HR_OK;
}

static hr_status_t store_tokens(hre_tokenizer_t *t, const struct hre_vocab *vocab)
{
    size_t total = 0;

    for (size_t i = 0; i < vocab->n_tokens; i++)
        total += vocab->tokens[i].bytes;
    t->n_tokens = (uint32_t)vocab->n_tokens;
    t->bytes = malloc(total + 1);
    t->offsets = calloc(vocab->n_tokens + 1, sizeof(*t->offsets));
    t->types = calloc(vocab->n_tokens, 1);
    if (!t->bytes || !t->offsets || !t->types)
        return out_of_memory();

    size_t at = 0;
    for (uint32_t i = 0; i < t->n_tokens; i++) {
        const struct hre_text *token = &vocab->tokens[i];
        t->types[i] = vocab->token_types ? (unsigned char)vocab->token_types[i] : HRE_TOKEN_NORMAL;
        t->offsets[i] = at;
        if (t->is_words || hre_token_is_marker(t, i)) {
            memcpy(t->bytes + at, token->data, token->bytes);
            at += token->bytes;
        } else {
            at += spell_bytes(token, t->bytes + at);
        }
    }
    t->offsets[t->n_tokens] = at;
    return HR_OK;
}

/* Of equal tokens the last one counts, ordinary ones before markers. */
static hr_status_t index_tokens(hre_tokenizer_t *t)
{
    size_t slots = table_slots(t->n_tokens);

    t->by_bytes = malloc(slots * sizeof(*t->by_bytes));
    if (!t->by_bytes)
        return out_of_memory();
    memset(t->by_bytes, 0xff, slots * sizeof(*t->by_bytes));
    t->by_bytes_mask = slots - 1;
    for (uint32_t id = 0; id < t->n_tokens; id++) {
        struct hre_text text = hre_tokenizer_text(t, id);
        size_t slot = bytes_slot(t, text.data, text.bytes);
        uint32_t held = t->by_bytes[slot];
        if (held == HRE_TOKEN_NONE || !hre_token_is_marker(t, id) || hre_token_is_marker(t, held))
            t->by_bytes[slot] = id;
    }
    for (int byte = 0; byte < 256; byte++) {
        char one = (char)byte;
        t->byte_ids[byte] = hre_tokenizer_find_text(t, &one, 1);
    }
    return HR_OK;
}

static hr_status_t bad_merge(const struct hre_text *merge, size_t rank, const char *what)
{
    return hre_fail(HR_ERR_CORRUPT, "merge %zu \"%.*s\" %s", rank, SHOWN(*merge), what);
}

static hr_status_t add_merge(hre_tokenizer_t *t, const struct hre_text *text, size_t rank,
                             char *scratch)
{
    const char *space = text->bytes > 2 ? memchr(text->data + 1, ' ', text->bytes - 2) : NULL;
    if (!space)
        return bad_merge(text, rank, "is not two tokens with a space between");

    struct hre_text left = {text->data, (size_t)(space - text->data)};
    struct hre_text right = {space + 1, text->bytes - left.bytes - 1};
    size_t left_bytes = spell_bytes(&left, scratch);
    size_t right_bytes = spell_bytes(&right, scratch + left_bytes);
    struct hre_merge merge = {
        .left = hre_tokenizer_find(t, scratch, left_bytes),
        .right = hre_tokenizer_find(t, scratch + left_bytes, right_bytes),
        .rank = (uint32_t)rank,
        .id = hre_tokenizer_find(t, scratch, left_bytes + right_bytes),
    };
    if (merge.left == HRE_TOKEN_NONE || merge.right == HRE_TOKEN_NONE || merge.id == HRE_TOKEN_NONE)
        return bad_merge(text, rank, "names or makes a token that is not in the vocabulary");

    size_t slot = hre_merge_slot(t, merge.left, merge.right);
    while (t->merges[slot].rank != HRE_TOKEN_NONE &&
           (t->merges[slot].left != merge.left || t->merges[slot].right != merge.right))
        slot = (slot + 1) & t->merges_mask;
    t->merges[slot] = merge;
    return HR_OK;
}

static hr_status_t index_merges(hre_tokenizer_t *t, const struct hre_vocab *vocab)
{
    size_t slots = table_slots(vocab->n_merges);
    size_t longest = 0;
    hr_status_t status = HR_OK;

    for (size_t i = 0; i < vocab->n_merges; i++)
        longest = vocab->merges[i].bytes > longest ? vocab->merges[i].bytes : longest;
    char *scratch = malloc(longest + 1);
    t->merges = malloc(slots * sizeof(*t->merges));
    if (!scratch || !t->merges) {
        free(scratch);
        return out_of_memory();
    }
    memset(t->merges, 0xff, slots * sizeof(*t->merges));
    t->merges_mask = slots - 1;
    for (size_t i = 0; i < vocab->n_merges && status == HR_OK; i++)
        status = add_merge(t, &vocab->merges[i], i, scratch);
    free(scratch);
    return status;
}

/* The child of node with this byte, made if it is not there; 0: no memory. */
static uint32_t trie_child(hre_tokenizer_t *t, uint32_t node, unsigned char byte)
{
    uint32_t child = t->trie[node].child;

    while (child && t->trie[child].byte != byte)
        child = t->trie[child].sibling;
    if (child)
        return child;
    if (t->trie_nodes == t->trie_capacity) {
        uint32_t capacity = t->trie_capacity * 2;
        struct hre_trie_node *grown = realloc(t->trie, capacity * sizeof(*grown));
        if (!grown)
            return 0;
        t->trie = grown;
        t->trie_capacity = capacity;
    }
    child = t->trie_nodes++;
    t->trie[child] = (struct hre_trie_node){0, t->trie[node].child, HRE_TOKEN_NONE, byte};
    t->trie[node].child = child;
    return child;
}

static hr_status_t add_marker(hre_tokenizer_t *t, uint32_t id)
{
    struct hre_text text = hre_tokenizer_text(t, id);
    uint32_t node = 0;

    /* Text is valid UTF-8; a marker that is not could only be found across its characters, and cut them. */
    if (text.bytes == 0 || hre_utf8_invalid_at(text.data, text.bytes) != text.bytes)
        return HR_OK;
    if (text.bytes > HRE_MARKER_BYTES_MAX)
        return hre_fail(HR_ERR_UNSUPPORTED,
                        "control token %u \"%.*s...\" has %zu bytes; at most %d are supported", id,
                        SHOWN(text), text.bytes, HRE_MARKER_BYTES_MAX);
    for (size_t i = 0; i < text.bytes; i++) {
        node = trie_child(t, node, (unsigned char)text.data[i]);
        if (!node)
            return out_of_memory();
    }
    /* Of two with the same text the first counts. */
    if (t->trie[node].id == HRE_TOKEN_NONE)
        t->trie[node].id = id;
    t->marker_first[(unsigned char)text.data[0]] = 1;
    if (t->types[id] == HRE_TOKEN_USER_DEFINED)
        t->has_user_defined = true;
    return HR_OK;
}

static hr_status_t index_markers(hre_tokenizer_t *t)
{
    t->trie_capacity = 64;
    t->trie = malloc(t->trie_capacity * sizeof(*t->trie));
    if (!t->trie)
        return out_of_memory();
    t->trie[0] = (struct hre_trie_node){0, 0, HRE_TOKEN_NONE, 0};
    t->trie_nodes = 1;
    for (uint32_t id = 0; id < t->n_tokens; id++) {
        if (!hre_token_is_marker(t, id))
            continue;
        hr_status_t status = add_marker(t, id);
        if (status != HR_OK)
            return status;
    }
    return HR_OK;
}

static void add_end(hre_tokenizer_t *t, uint32_t id)
{
    if (id == HRE_TOKEN_NONE || hre_tokenizer_is_end(t, id) || t->n_end_ids == HRE_END_TOKENS_MAX)
        return;
    t->end_ids[t->n_end_ids++] = id;
}

static void find_ends(hre_tokenizer_t *t, const struct hre_vocab *vocab)
{
    add_end(t, vocab->eos_id);
    add_end(t, vocab->eot_id);
    for (size_t i = 0; i < sizeof(end_names) / sizeof(end_names[0]); i++) {
        uint32_t id = hre_tokenizer_find(t, end_names[i], strlen(end_names[i]));
        if (id != HRE_TOKEN_NONE && t->types[id] == HRE_TOKEN_CONTROL)
            add_end(t, id);
    }
}

static hr_status_t choose_kind(hre_tokenizer_t *t, const struct hre_vocab *vocab)
{
    t->is_words = vocab->model && strcmp(vocab->model, "headrace-words") == 0;
    if (t->is_words)
        return HR_OK;
    if (!vocab->model || strcmp(vocab->model, "gpt2") != 0)
        return hre_fail(
            HR_ERR_UNSUPPORTED,
            "tokenizer model \"%.60s\" is not supported; supported are gpt2, headrace-words",
            vocab->model ? vocab->model : "");
    if (!vocab->pre || !hre_pretokenizer_find(vocab->pre, &t->pre))
        return hre_fail(HR_ERR_UNSUPPORTED,
                        "pre-tokenizer \"%.60s\" is not supported; supported are %s",
                        vocab->pre ? vocab->pre : "", hre_pretokenizer_names());
    t->ignore_merges = t->pre == HRE_PRETOKENIZER_LLAMA_BPE;
    return HR_OK;
}

hr_status_t hre_tokenizer_build(hre_tokenizer_t *t, const struct hre_vocab *vocab)
{
    hr_status_t status = choose_kind(t, vocab);

    if (status == HR_OK)
        status = check_vocab(vocab);
    if (status == HR_OK)
        status = store_tokens(t, vocab);
    if (status == HR_OK)
        status = index_tokens(t);
    if (status == HR_OK)
        status = index_merges(t, vocab);
    if (status == HR_OK)
        status = index_markers(t);
    if (status != HR_OK)
        return status;
    t->bos_id = vocab->bos_id;
    t->eos_id = vocab->eos_id;
    t->add_bos = vocab->add_bos && vocab->bos_id != HRE_TOKEN_NONE;
    t->add_eos = vocab->add_eos && vocab->eos_id != HRE_TOKEN_NONE;
    find_ends(t, vocab);
    return HR_OK;
}
