/* Text to ids: check, cut at markers, cut into pieces, merge. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_internal.h"
#include "engine/unicode.h"
#include "engine/unicode_nfc.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

/* Everything that one encode holds. */
struct encoder {
    const hre_tokenizer_t *tokenizer;
    bool parse_special;
    const char *text;
    size_t text_bytes;
    const struct hre_range *plain;
    size_t n_plain;
    size_t replaced;
    struct hre_bpe bpe;
    struct hre_id_list ids;
    char *owned_text;              /* with replacements, or NULL */
    struct hre_range *owned_plain; /* shifted by them */
};

void hre_encode_options_init(struct hre_encode_options *options)
{
    *options = (struct hre_encode_options){.struct_size = sizeof(*options)};
}

void hre_tokens_fini(struct hre_tokens *tokens)
{
    free(tokens->ids);
    *tokens = (struct hre_tokens){0};
}

static hr_status_t out_of_memory(const struct encoder *e)
{
    return hre_fail(HR_ERR_NOMEM, "out of memory while encoding %zu bytes of text", e->text_bytes);
}

static hr_status_t check_options(const struct hre_encode_options *options, size_t text_bytes)
{
    size_t last = 0;

    if (options->struct_size != sizeof(*options))
        return hre_fail(HR_ERR_VERSION, "encode options have size %zu, expected %zu",
                        options->struct_size, sizeof(*options));
    if (text_bytes > HRE_ENCODE_BYTES_MAX)
        return hre_fail(HR_ERR_INVALID, "text of %zu bytes; at most %u at once", text_bytes,
                        HRE_ENCODE_BYTES_MAX);
    for (size_t i = 0; i < options->n_plain; i++) {
        struct hre_range range = options->plain[i];
        if (range.begin < last || range.end < range.begin || range.end > text_bytes)
            return hre_fail(
                HR_ERR_INVALID,
                "plain range %zu [%zu, %zu) is not in order or not in the text of %zu bytes", i,
                range.begin, range.end, text_bytes);
        last = range.end;
    }
    return HR_OK;
}

/* Copies the text with U+FFFD for what is invalid, and moves the plain ranges along. */
static hr_status_t replace_invalid(struct encoder *e, size_t first_invalid)
{
    size_t capacity = first_invalid + 3 * (e->text_bytes - first_invalid);
    size_t from = 0, to = 0, bound = 0;

    e->owned_text = malloc(capacity + 1);
    e->owned_plain = malloc((e->n_plain + 1) * sizeof(*e->owned_plain));
    if (!e->owned_text || !e->owned_plain)
        return out_of_memory(e);
    while (from < e->text_bytes || bound < 2 * e->n_plain) {
        /*
         * The next bound of a range at or before `from` lands here; then copy up to what comes
         * first.
         */
        size_t valid = hre_utf8_invalid_at(e->text + from, e->text_bytes - from);
        while (bound < 2 * e->n_plain) {
            const struct hre_range *range = &e->plain[bound / 2];
            size_t place = bound % 2 ? range->end : range->begin;
            if (place > from + valid)
                break;
            size_t moved = place > from ? to + (place - from) : to;
            *(bound % 2 ? &e->owned_plain[bound / 2].end : &e->owned_plain[bound / 2].begin) =
                moved;
            bound++;
        }
        memcpy(e->owned_text + to, e->text + from, valid);
        from += valid;
        to += valid;
        if (from == e->text_bytes)
            continue;
        from += hre_utf8_invalid_length(e->text + from, e->text_bytes - from);
        memcpy(e->owned_text + to, replacement, 3);
        to += 3;
        e->replaced++;
    }
    e->text = e->owned_text;
    e->text_bytes = to;
    e->plain = e->owned_plain;
    return HR_OK;
}

static hr_status_t check_text(struct encoder *e, bool replace)
{
    size_t at = hre_utf8_invalid_at(e->text, e->text_bytes);

    if (at == e->text_bytes)
        return HR_OK;
    if (!replace)
        return hre_fail(HR_ERR_INVALID, "text is not valid UTF-8: byte 0x%02x at offset %zu",
                        (unsigned char)e->text[at], at);
    return replace_invalid(e, at);
}

static bool add_id(struct encoder *e, uint32_t id)
{
    if (!hre_id_list_reserve(&e->ids, 1))
        return false;
    e->ids.ids[e->ids.count++] = id;
    return true;
}

static bool add_pieces(struct encoder *e, const char *text, size_t bytes)
{
    hre_pretokenizer_t pre = e->tokenizer->pre;

    for (size_t at = 0; at < bytes;) {
        size_t next = hre_pretokenize_next(pre, text, bytes, at);
        if (!hre_bpe_piece(&e->bpe, text + at, next - at))
            return false;
        at = next;
    }
    return true;
}

/* One segment between markers; the expressions do not look beyond it. */
static bool add_text(struct encoder *e, size_t begin, size_t end)
{
    const char *text = e->text + begin;
    size_t bytes = end - begin;
    char *composed;

    if (e->tokenizer->pre != HRE_PRETOKENIZER_QWEN2 || hre_nfc_is_stable(text, bytes))
        return add_pieces(e, text, bytes);
    if (!hre_nfc_compose(text, bytes, &composed, &bytes))
        return false;
    bool ok = add_pieces(e, composed, bytes);
    free(composed);
    return ok;
}

/*
 * The longest marker at `at` that counts there; its end is written. *plain is the first range that
 * ends beyond `at`.
 */
static uint32_t marker_at(const struct encoder *e, size_t at, const struct hre_range *plain,
                          size_t *end_out)
{
    const hre_tokenizer_t *t = e->tokenizer;
    size_t control_end = e->parse_special ? e->text_bytes : at;
    uint32_t found = HRE_TOKEN_NONE, node = 0;

    if (plain && plain->begin < control_end)
        control_end = plain->begin;
    for (size_t i = at; i < e->text_bytes; i++) {
        unsigned char byte = (unsigned char)e->text[i];
        for (node = t->trie[node].child; node && t->trie[node].byte != byte;)
            node = t->trie[node].sibling;
        if (!node)
            break;
        uint32_t id = t->trie[node].id;
        if (id != HRE_TOKEN_NONE && (t->types[id] == HRE_TOKEN_USER_DEFINED || i < control_end)) {
            found = id;
            *end_out = i + 1;
        }
    }
    return found;
}

static bool encode_bytes(struct encoder *e)
{
    const hre_tokenizer_t *t = e->tokenizer;
    bool any_marker = t->has_user_defined || e->parse_special;
    size_t begin = 0, i_plain = 0;

    for (size_t at = 0; any_marker && at < e->text_bytes;) {
        size_t end;
        if (!t->marker_first[(unsigned char)e->text[at]]) {
            at++;
            continue;
        }
        while (i_plain < e->n_plain && e->plain[i_plain].end <= at)
            i_plain++;
        uint32_t id = marker_at(e, at, i_plain < e->n_plain ? &e->plain[i_plain] : NULL, &end);
        if (id == HRE_TOKEN_NONE) {
            at++;
            continue;
        }
        if (!add_text(e, begin, at) || !add_id(e, id))
            return false;
        at = begin = end;
    }
    return add_text(e, begin, e->text_bytes);
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static hr_status_t encode_words(struct encoder *e)
{
    size_t at = 0;

    for (;;) {
        while (at < e->text_bytes && is_blank(e->text[at]))
            at++;
        if (at == e->text_bytes)
            return HR_OK;
        size_t begin = at;
        while (at < e->text_bytes && !is_blank(e->text[at]))
            at++;
        uint32_t id = hre_tokenizer_find_text(e->tokenizer, e->text + begin, at - begin);
        if (id == HRE_TOKEN_NONE) {
            size_t shown = at - begin > 40 ? 40 : at - begin;
            struct hre_text first = hre_tokenizer_text(e->tokenizer, 0);
            return hre_fail(
                HR_ERR_INVALID,
                "unknown word \"%.*s%s\" at byte %zu: the model knows %u words such as %.*s",
                (int)shown, e->text + begin, shown < at - begin ? "..." : "", begin,
                e->tokenizer->n_tokens, (int)(first.bytes < 40 ? first.bytes : 40), first.data);
        }
        if (!add_id(e, id))
            return out_of_memory(e);
    }
}

static bool wanted(hre_add_marker_t choice, bool model_wants, uint32_t id)
{
    return id != HRE_TOKEN_NONE &&
           (choice == HRE_ADD_ALWAYS || (choice == HRE_ADD_AS_MODEL && model_wants));
}

static bool add_ends(struct encoder *e, const struct hre_encode_options *options)
{
    const hre_tokenizer_t *t = e->tokenizer;
    struct hre_id_list *list = &e->ids;

    if (!hre_id_list_reserve(list, 2))
        return false;
    if (wanted(options->add_bos, t->add_bos, t->bos_id) &&
        (list->count == 0 || list->ids[0] != t->bos_id)) {
        memmove(list->ids + 1, list->ids, list->count * sizeof(*list->ids));
        list->ids[0] = t->bos_id;
        list->count++;
    }
    if (wanted(options->add_eos, t->add_eos, t->eos_id) &&
        (list->count == 0 || list->ids[list->count - 1] != t->eos_id))
        list->ids[list->count++] = t->eos_id;
    return true;
}

static hr_status_t run(struct encoder *e, const struct hre_encode_options *options)
{
    hr_status_t status = check_text(e, options->replace_invalid);

    if (status == HR_OK && e->tokenizer->is_words)
        status = encode_words(e);
    else if (status == HR_OK && !encode_bytes(e))
        status = out_of_memory(e);
    if (status == HR_OK && !add_ends(e, options))
        status = out_of_memory(e);
    return status;
}

hr_status_t hre_tokenizer_encode(const hre_tokenizer_t *tokenizer, const char *text,
                                 size_t text_bytes, const struct hre_encode_options *options,
                                 struct hre_tokens *tokens_out)
{
    struct hre_encode_options defaults;

    if (!options) {
        hre_encode_options_init(&defaults);
        options = &defaults;
    }
    hr_status_t status = check_options(options, text_bytes);
    if (status != HR_OK)
        return status;

    struct encoder e = {.tokenizer = tokenizer,
                        .parse_special = options->parse_special,
                        .text = text,
                        .text_bytes = text_bytes,
                        .plain = options->plain,
                        .n_plain = options->n_plain};
    e.bpe = (struct hre_bpe){.tokenizer = tokenizer, .out = &e.ids};
    status = run(&e, options);
    hre_bpe_fini(&e.bpe);
    free(e.owned_text);
    free(e.owned_plain);
    if (status != HR_OK) {
        free(e.ids.ids);
        return status;
    }
    *tokens_out = (struct hre_tokens){e.ids.ids, e.ids.count, e.bpe.dropped_bytes, e.replaced};
    return HR_OK;
}
