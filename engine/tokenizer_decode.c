/* Ids to text. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_internal.h"
#include "engine/unicode.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

static hr_status_t reserve(struct hre_bytes *bytes, size_t more)
{
    if (bytes->capacity - bytes->bytes > more)
        return HR_OK;
    size_t capacity = bytes->capacity + bytes->capacity / 2 + more + 64;
    char *grown = realloc(bytes->data, capacity);
    if (!grown)
        return hre_fail(HR_ERR_NOMEM, "out of memory for %zu bytes of text", capacity);
    bytes->data = grown;
    bytes->capacity = capacity;
    return HR_OK;
}

/* With the space reserved. */
static void put(struct hre_bytes *bytes, const char *data, size_t data_bytes)
{
    if (data_bytes > 0)
        memcpy(bytes->data + bytes->bytes, data, data_bytes);
    bytes->bytes += data_bytes;
    bytes->data[bytes->bytes] = '\0';
}

hr_status_t hre_bytes_append(struct hre_bytes *bytes, const char *data, size_t data_bytes)
{
    hr_status_t status = reserve(bytes, data_bytes);

    if (status == HR_OK)
        put(bytes, data, data_bytes);
    return status;
}

void hre_bytes_fini(struct hre_bytes *bytes)
{
    free(bytes->data);
    *bytes = (struct hre_bytes){0};
}

void hre_stream_init(struct hre_stream *stream, const hre_tokenizer_t *tokenizer, bool keep_special)
{
    *stream = (struct hre_stream){.tokenizer = tokenizer, .keep_special = keep_special};
}

/*
 * Appends the whole characters of data, U+FFFD for what is invalid; the bytes that were used. The
 * rest may still become one.
 */
static size_t put_valid(struct hre_bytes *text, const char *data, size_t data_bytes)
{
    size_t at = 0;

    while (at < data_bytes) {
        size_t valid = hre_utf8_invalid_at(data + at, data_bytes - at);
        put(text, data + at, valid);
        at += valid;
        if (at == data_bytes || hre_utf8_incomplete(data + at, data_bytes - at))
            break;
        at += hre_utf8_invalid_length(data + at, data_bytes - at);
        put(text, replacement, 3);
    }
    return at;
}

/* Bytes of a token go through here one token at a time. The room was reserved. */
static void stream_bytes(struct hre_stream *stream, const char *data, size_t data_bytes,
                         struct hre_bytes *text)
{
    /* What is held back gets byte after byte until it is a character or cannot become one. */
    while (stream->n_held > 0 && data_bytes > 0) {
        stream->held[stream->n_held++] = *data++;
        data_bytes--;
        size_t used = put_valid(text, stream->held, stream->n_held);
        stream->n_held -= (unsigned)used;
        memmove(stream->held, stream->held + used, stream->n_held);
    }
    size_t used = put_valid(text, data, data_bytes);
    if (used < data_bytes) {
        stream->n_held = (unsigned)(data_bytes - used);
        memcpy(stream->held, data + used, stream->n_held);
    }
}

static bool is_hidden(const struct hre_stream *stream, uint32_t id)
{
    unsigned type = stream->tokenizer->types[id];

    return !stream->keep_special && (type == HRE_TOKEN_CONTROL || type == HRE_TOKEN_UNKNOWN);
}

hr_status_t hre_stream_push(struct hre_stream *stream, uint32_t id, struct hre_bytes *text)
{
    struct hre_text piece;
    hr_status_t status = hre_tokenizer_piece(stream->tokenizer, id, &piece);

    if (status != HR_OK || is_hidden(stream, id))
        return status;
    /* Each byte becomes at most one U+FFFD. */
    status = reserve(text, 3 * (piece.bytes + sizeof(stream->held)) + 1);
    if (status != HR_OK)
        return status;
    if (stream->tokenizer->is_words && stream->started)
        stream_bytes(stream, " ", 1, text);
    stream->started = true;
    stream_bytes(stream, piece.data, piece.bytes, text);
    return HR_OK;
}

hr_status_t hre_stream_end(struct hre_stream *stream, struct hre_bytes *text)
{
    hr_status_t status = reserve(text, 3);

    if (status != HR_OK)
        return status;
    put(text, replacement, stream->n_held ? 3 : 0);
    stream->n_held = 0;
    return HR_OK;
}

hr_status_t hre_tokenizer_decode(const hre_tokenizer_t *tokenizer, const uint32_t *ids,
                                 size_t count, bool keep_special, bool raw, struct hre_bytes *text)
{
    size_t kept = text->bytes;
    struct hre_stream stream;
    hr_status_t status = reserve(text, 0);

    hre_stream_init(&stream, tokenizer, keep_special);
    for (size_t i = 0; i < count && status == HR_OK; i++) {
        struct hre_text piece;
        if (!raw) {
            status = hre_stream_push(&stream, ids[i], text);
            continue;
        }
        status = hre_tokenizer_piece(tokenizer, ids[i], &piece);
        if (status != HR_OK || is_hidden(&stream, ids[i]))
            continue;
        if (tokenizer->is_words && stream.started)
            status = hre_bytes_append(text, " ", 1);
        stream.started = true;
        if (status == HR_OK)
            status = hre_bytes_append(text, piece.data, piece.bytes);
    }
    if (status == HR_OK)
        status = hre_stream_end(&stream, text);
    if (status != HR_OK && text->data) {
        text->bytes = kept;
        text->data[kept] = '\0';
    }
    return status;
}
