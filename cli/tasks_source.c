#include "cli/tasks_source.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/out.h"
#include "cli/text_file.h"

#define SYSTEM_WORDS    "/usr/share/dict/words"
#define LICENCES        "/usr/share/common-licenses/"
#define BIBLE_COMMAND   "bible -f 'gen1:1-rev22:21' 2>/dev/null"
#define WORDS_MIN       64
#define SENTENCES_MIN   64
#define WORD_BYTES_MIN  4
#define WORD_BYTES_MAX  10
#define PROSE_BYTES_MIN 20000

static uint64_t fnv1a(uint64_t hash, const char *data, size_t n)
{
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)data[i]) * 0x100000001b3u;
    return hash;
}
#define FNV1A_START 0xcbf29ce484222325u

/* ------------------------------------------------------------------------------------------- words */

static bool is_word(const char *line)
{
    size_t n = 0;
    while (line[n] >= 'a' && line[n] <= 'z')
        n++;
    return line[n] == '\0' && n >= WORD_BYTES_MIN && n <= WORD_BYTES_MAX;
}

static int compare_words(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorts them and drops those that occur again: the same words in another order make the same texts. */
static size_t sort_words(const char **words, size_t n)
{
    size_t kept = 0;
    qsort(words, n, sizeof *words, compare_words);
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || strcmp(words[i], words[kept - 1]) != 0)
            words[kept++] = words[i];
    }
    return kept;
}

const char **cli_split_words(char *text, size_t *n_out)
{
    size_t lines = 1, n = 0;
    for (const char *c = text; *c; c++)
        lines += *c == '\n';
    const char **words = calloc(lines, sizeof *words);
    for (char *line = text; words && line;) {
        char *end = strchr(line, '\n');
        if (end)
            *end = '\0';
        size_t length = strlen(line);
        if (length && line[length - 1] == '\r')
            line[length - 1] = '\0';
        if (is_word(line))
            words[n++] = line;
        line = end ? end + 1 : NULL;
    }
    *n_out = words ? sort_words(words, n) : 0;
    return words;
}

static int use_words(struct cli_sources *s, const char *from, const char *const *words, size_t n)
{
    s->source.words = words;
    s->source.n_words = n;
    s->words_checksum = FNV1A_START;
    for (size_t i = 0; i < n; i++)
        s->words_checksum = fnv1a(s->words_checksum, words[i], strlen(words[i]) + 1);
    snprintf(s->words_from, sizeof s->words_from, "%s", from);
    if (n < WORDS_MIN)
        return cli_fail("'%s' has %zu words of %d to %d small letters; at least %d are needed",
                        from, n, WORD_BYTES_MIN, WORD_BYTES_MAX, WORDS_MIN);
    return 0;
}

static int open_words(struct cli_sources *s, const char *path)
{
    size_t n;
    char *text;
    if (!path && access(SYSTEM_WORDS, R_OK) != 0) {
        const char *const *words = cli_builtin_words(&n);
        cli_warn("there is no %s (Debian: wamerican): words come from the built-in list of %zu",
                 SYSTEM_WORDS, n);
        return use_words(s, "built-in list", words, n);
    }
    path = path ? path : SYSTEM_WORDS;
    int code = cli_text_read(path, &text, &n);
    if (code)
        return code;
    s->memory[0] = text;
    const char **words = cli_split_words(text, &n);
    s->memory[1] = words;
    return words ? use_words(s, path, words, n) : cli_fail("out of memory");
}

/* ------------------------------------------------------------------------------------------- prose */

static size_t squeeze(char *text)
{
    size_t n = 0;
    for (const char *c = text; *c; c++) {
        if (!isspace((unsigned char)*c))
            text[n++] = *c;
        else if (n && text[n - 1] != ' ')
            text[n++] = ' ';
    }
    n -= n && text[n - 1] == ' ';
    text[n] = '\0';
    return n;
}

/* Behind a full stop, question or exclamation mark, and quotes and brackets that close with it. */
static bool ends_sentence(const char *text, size_t at)
{
    if (text[at] != ' ')
        return false;
    while (at > 0 && strchr("\"')]", text[at - 1]))
        at--;
    return at > 0 && strchr(".?!", text[at - 1]);
}

size_t cli_split_sentences(char *text, struct cli_span **sentences_out)
{
    size_t bytes = squeeze(text), room = 1, n = 0, begin = 0;
    for (size_t i = 0; i < bytes; i++)
        room += ends_sentence(text, i);
    struct cli_span *sentences = calloc(room, sizeof *sentences);
    for (size_t i = 0; sentences && i <= bytes; i++) {
        if (i > begin && (i == bytes || ends_sentence(text, i))) {
            sentences[n++] = (struct cli_span){begin, i};
            begin = i + 1;
        }
    }
    *sentences_out = sentences;
    return n;
}

static int use_prose(struct cli_sources *s, const char *from, char *text)
{
    struct cli_span *sentences;
    s->memory[2] = text;
    size_t n = cli_split_sentences(text, &sentences);
    s->memory[3] = sentences;
    if (!sentences)
        return cli_fail("out of memory");
    s->source.prose = text;
    s->source.sentences = sentences;
    s->source.n_sentences = n;
    s->prose_bytes = strlen(text);
    s->prose_checksum = fnv1a(FNV1A_START, text, s->prose_bytes);
    snprintf(s->prose_from, sizeof s->prose_from, "%s", from);
    if (n < SENTENCES_MIN)
        return cli_fail("'%s' has %zu sentences; at least %d are needed", from, n, SENTENCES_MIN);
    return 0;
}

/* Verse marks ("Ge1:1 ") are no prose. */
static const char *without_mark(const char *line)
{
    const char *c = line;
    while (isalnum((unsigned char)*c))
        c++;
    if (c == line || *c != ':')
        return line;
    for (c++; isdigit((unsigned char)*c); c++)
        continue;
    return *c == ' ' ? c + 1 : line;
}

/* What the command of Debian's bible-kjv prints; NULL where it is not installed. */
static char *read_bible(void)
{
    struct hre_bytes text = {0};
    char line[4096];
    FILE *pipe = popen(BIBLE_COMMAND, "r"); /* a fixed line: nothing of the user's is in it */
    bool fine = pipe != NULL;
    while (fine && fgets(line, sizeof line, pipe)) {
        const char *rest = without_mark(line);
        fine = hre_bytes_append(&text, rest, strlen(rest)) == HR_OK;
    }
    if (pipe && pclose(pipe) != 0)
        fine = false;
    if (fine && text.bytes >= PROSE_BYTES_MIN &&
        cli_utf8_check(text.data, text.bytes) == text.bytes)
        return text.data;
    hre_bytes_fini(&text);
    return NULL;
}

/* The licences that every Debian carries, NULL where they are not there. */
static char *read_licences(void)
{
    static const char *const names[] = {"GPL-3", "LGPL-3", "GPL-2", "LGPL-2.1", "Apache-2.0"};
    struct hre_bytes all = {0};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[64], *text;
        size_t n;
        snprintf(path, sizeof path, "%s%s", LICENCES, names[i]);
        if (access(path, R_OK) != 0 || cli_text_read(path, &text, &n) != 0)
            continue;
        bool fine =
            hre_bytes_append(&all, text, n) == HR_OK && hre_bytes_append(&all, "\n", 1) == HR_OK;
        free(text);
        if (!fine)
            break;
    }
    if (all.bytes >= PROSE_BYTES_MIN)
        return all.data;
    hre_bytes_fini(&all);
    return NULL;
}

static int open_prose(struct cli_sources *s, const char *path)
{
    char *text;
    size_t n;
    if (path) {
        int code = cli_text_read(path, &text, &n);
        return code ? code : use_prose(s, path, text);
    }
    if ((text = read_bible()))
        return use_prose(s, "bible-kjv", text);
    if ((text = read_licences()))
        return use_prose(s, LICENCES, text);
    return cli_fail(
        "no prose to hide needles in: neither the command 'bible' (Debian: bible-kjv) nor "
        "%s is there; --prose names a text",
        LICENCES);
}

/* -------------------------------------------------------------------------------------------- both */

int cli_sources_open(const struct cli_source_files *files, unsigned needs,
                     struct cli_sources *sources_out)
{
    int code = 0;
    memset(sources_out, 0, sizeof *sources_out);
    if (needs & CLI_NEEDS_WORDS)
        code = open_words(sources_out, files->words);
    if (code == 0 && (needs & CLI_NEEDS_PROSE))
        code = open_prose(sources_out, files->prose);
    if (code)
        cli_sources_close(sources_out);
    return code;
}

void cli_sources_close(struct cli_sources *sources)
{
    for (size_t i = 0; i < sizeof sources->memory / sizeof sources->memory[0]; i++)
        free(sources->memory[i]);
    memset(sources, 0, sizeof *sources);
}
