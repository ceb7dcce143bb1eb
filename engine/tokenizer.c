/* Life of a tokenizer, and what it says about single tokens. */
#include "engine/tokenizer.h"

#include <stdlib.h>

#include "engine/tokenizer_internal.h"

hr_status_t hre_tokenizer_create(const struct hre_vocab *vocab, hre_tokenizer_t **tokenizer_out)
{
    hre_tokenizer_t *t = calloc(1, sizeof(*t));
    if (!t)
        return hre_fail(HR_ERR_NOMEM, "out of memory for a tokenizer");

    hr_status_t status = hre_tokenizer_build(t, vocab);
    if (status != HR_OK) {
        hre_tokenizer_destroy(t);
        return status;
    }
    *tokenizer_out = t;
    return HR_OK;
}

void hre_tokenizer_destroy(hre_tokenizer_t *t)
{
    if (!t)
        return;
    free(t->bytes);
    free(t->offsets);
    free(t->types);
    free(t->by_bytes);
    free(t->merges);
    free(t->trie);
    free(t);
}

uint32_t hre_tokenizer_vocab(const hre_tokenizer_t *t)
{
    return t->n_tokens;
}

uint32_t hre_tokenizer_bos(const hre_tokenizer_t *t)
{
    return t->bos_id;
}

uint32_t hre_tokenizer_eos(const hre_tokenizer_t *t)
{
    return t->eos_id;
}

bool hre_tokenizer_is_end(const hre_tokenizer_t *t, uint32_t id)
{
    for (uint32_t i = 0; i < t->n_end_ids; i++)
        if (t->end_ids[i] == id)
            return true;
    return false;
}

hr_status_t hre_tokenizer_piece(const hre_tokenizer_t *t, uint32_t id, struct hre_text *piece_out)
{
    if (id >= t->n_tokens)
        return hre_fail(HR_ERR_INVALID, "token %u is outside of the vocabulary of %u", id,
                        t->n_tokens);
    *piece_out = hre_tokenizer_text(t, id);
    return HR_OK;
}
