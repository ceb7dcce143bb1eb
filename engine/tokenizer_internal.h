/* What the files of the tokenizer share. Nobody else includes this. */
#ifndef HRE_TOKENIZER_INTERNAL_H
#define HRE_TOKENIZER_INTERNAL_H

#include "engine/tokenizer.h"

#define HRE_END_TOKENS_MAX 16

/* A slot of the merge table; rank HRE_TOKEN_NONE marks an empty one. */
struct hre_merge {
    uint32_t left, right; /* ids that stand side by side */
    uint32_t rank;        /* place in the list of merges: lowest goes first */
    uint32_t id;          /* what they become */
};

/*
 * A byte of the trie of markers. Siblings are a list: few markers share a prefix and then differ.
 */
struct hre_trie_node {
    uint32_t child, sibling; /* 0: none */
    uint32_t id;             /* marker that ends here, HRE_TOKEN_NONE: none */
    unsigned char byte;
};

struct hre_tokenizer {
    bool is_words;
    bool ignore_merges; /* a piece that is a token as a whole is taken so */
    bool add_bos, add_eos;
    hre_pretokenizer_t pre;
    uint32_t n_tokens;
    uint32_t bos_id, eos_id;
    uint32_t end_ids[HRE_END_TOKENS_MAX];
    uint32_t n_end_ids;

    char *bytes;          /* all tokens' bytes, one behind the other */
    size_t *offsets;      /* [n_tokens + 1] into bytes */
    unsigned char *types; /* [n_tokens] enum hre_token_type */

    /* [by_bytes_mask + 1] id or HRE_TOKEN_NONE; open addressing by the token's bytes */
    uint32_t *by_bytes;
    size_t by_bytes_mask;
    uint32_t byte_ids[256];   /* token of a single byte */
    struct hre_merge *merges; /* [merges_mask + 1] open addressing by (left, right) */
    size_t merges_mask;

    struct hre_trie_node *trie; /* node 0 is the root */
    uint32_t trie_nodes, trie_capacity;
    bool has_user_defined;
    unsigned char marker_first[256]; /* 1: some marker starts with this byte */
};

/* tokenizer_vocab.c */
hr_status_t hre_tokenizer_build(hre_tokenizer_t *tokenizer, const struct hre_vocab *vocab);
/* Ordinary tokens only. */
uint32_t hre_tokenizer_find_text(const hre_tokenizer_t *tokenizer, const char *text,
                                 size_t text_bytes);

static inline struct hre_text hre_tokenizer_text(const hre_tokenizer_t *tokenizer, uint32_t id)
{
    size_t begin = tokenizer->offsets[id];

    return (struct hre_text){tokenizer->bytes + begin, tokenizer->offsets[id + 1] - begin};
}

/* Markers: not made of bytes, kept as they are spelled. */
static inline bool hre_token_is_marker(const hre_tokenizer_t *tokenizer, uint32_t id)
{
    unsigned type = tokenizer->types[id];

    return type == HRE_TOKEN_CONTROL || type == HRE_TOKEN_UNKNOWN || type == HRE_TOKEN_USER_DEFINED;
}

static inline size_t hre_merge_slot(const hre_tokenizer_t *tokenizer, uint32_t left, uint32_t right)
{
    uint64_t key = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;

    return (size_t)(key >> 32) & tokenizer->merges_mask;
}

/* NULL where the two do not merge. */
static inline const struct hre_merge *hre_merge_find(const hre_tokenizer_t *tokenizer,
                                                     uint32_t left, uint32_t right)
{
    size_t slot = hre_merge_slot(tokenizer, left, right);

    for (;;) {
        const struct hre_merge *merge = &tokenizer->merges[slot];
        if (merge->rank == HRE_TOKEN_NONE)
            return NULL;
        if (merge->left == left && merge->right == right)
            return merge;
        slot = (slot + 1) & tokenizer->merges_mask;
    }
}

/* A list of ids that grows. */
struct hre_id_list {
    uint32_t *ids;
    size_t count, capacity;
};

bool hre_id_list_reserve(struct hre_id_list *list, size_t more);

/* tokenizer_bpe.c: memory that the merging of pieces uses again and again. */
struct hre_bpe {
    const hre_tokenizer_t *tokenizer;
    struct hre_id_list *out;
    size_t dropped_bytes;
    uint32_t *links; /* [3][capacity] ids, previous, next */
    uint64_t *heap;  /* [2 * capacity] rank and place */
    size_t capacity;
};

/* Appends the tokens of one piece. False: no memory. */
bool hre_bpe_piece(struct hre_bpe *bpe, const char *piece, size_t piece_bytes);
void hre_bpe_fini(struct hre_bpe *bpe);

#endif
