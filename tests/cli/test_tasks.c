/* Task texts against solvers that read them as a person would: needles by their sentence, chains by
 * following them, frequent words by counting. */
#include "tests/test.h"

#include <ctype.h>
#include <inttypes.h>

#include "cli/tasks.h"
#include "cli/tasks_source.h"

#define SEEDS 12

static struct cli_task_source source;
static char *prose;
static struct cli_span *sentences;

static int set_up(void **state)
{
    (void)state;
    source.words = cli_builtin_words(&source.n_words);
    prose = malloc(200000);
    size_t at = 0;
    for (unsigned i = 0; i < 400; i++)
        at += (size_t)sprintf(prose + at, "On day %u the boats lay\n still, and nobody %s. %s", i,
                              i % 3 ? "came" : "\"went\"", i % 7 ? "" : "Why? \"Never!\" ");
    source.n_sentences = cli_split_sentences(prose, &sentences);
    source.prose = prose;
    source.sentences = sentences;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(prose);
    free(sentences);
    return 0;
}

/* Four bytes a token, and what a chat adds. */
static int64_t count_quarters(void *context, const struct cli_task_text *text)
{
    size_t bytes = text->context.bytes + 200;
    (void)context;
    for (size_t i = 0; i < text->n_questions; i++)
        bytes += text->question[i].text.bytes + text->question[i].prefix.bytes;
    return (int64_t)(bytes / 4);
}

static struct cli_task_text make(const struct cli_task *task, uint64_t seed, uint64_t tokens)
{
    struct cli_task_request request = {.source = &source, .seed = seed, .tokens = tokens};
    struct cli_task_text text;
    int64_t n;
    if (cli_task_fit(task, &request, count_quarters, NULL, &text, &n) != CLI_FIT_OK)
        fail_msg("%s, seed %" PRIu64 ", %" PRIu64 " tokens: no text", task->name, seed, tokens);
    return text;
}

static size_t occurrences(const char *text, const char *what)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what))
        n++;
    return n;
}

static bool is_reference(const struct cli_references *references, const char *text, size_t n)
{
    for (size_t i = 0; i < references->n; i++) {
        if (strlen(references->text[i]) == n && memcmp(references->text[i], text, n) == 0)
            return true;
    }
    return false;
}

static void assert_references(const struct cli_task *task, uint64_t seed,
                              const struct cli_references *references, size_t n,
                              const char *const *expected)
{
    if (references->n != n)
        fail_msg("%s, seed %" PRIu64 ": %zu references, not %zu", task->name, seed, references->n,
                 n);
    for (size_t i = 0; i < n; i++) {
        if (!is_reference(references, expected[i], strlen(expected[i])))
            fail_msg("%s, seed %" PRIu64 ": '%s' is no reference", task->name, seed, expected[i]);
    }
}

/* ------------------------------------------------------------------------------------------ all tasks */

typedef void (*each_fn)(const struct cli_task *task, uint64_t seed, struct cli_task_text *text);

static void for_each(uint64_t tokens, each_fn check)
{
    const struct cli_task *task;
    for (size_t t = 0; (task = cli_task_at(t)); t++) {
        for (uint64_t seed = 0; seed < SEEDS && task->make; seed++) {
            struct cli_task_text text = make(task, seed, tokens);
            check(task, seed, &text);
            cli_task_text_fini(&text);
        }
    }
}

static void check_length(const struct cli_task *task, uint64_t seed, struct cli_task_text *text)
{
    int64_t n = count_quarters(NULL, text);
    if (n > 4096 || n < 4096 - 64)
        fail_msg("%s, seed %" PRIu64 ": %" PRId64 " tokens where 4096 were wanted", task->name,
                 seed, n);
}

static void check_evidence(const struct cli_task *task, uint64_t seed, struct cli_task_text *text)
{
    for (size_t q = 0; q < text->n_questions; q++) {
        const struct cli_task_question *question = &text->question[q];
        assert_true(question->n_evidence >= question->references.n);
        for (size_t i = 0; i < question->n_evidence; i++) {
            struct cli_span s = question->evidence[i];
            assert_true(s.begin < s.end && s.end <= text->context.bytes);
            if (!is_reference(&question->references, text->context.data + s.begin, s.end - s.begin))
                fail_msg("%s, seed %" PRIu64 ": evidence '%.*s' is no reference", task->name, seed,
                         (int)(s.end - s.begin), text->context.data + s.begin);
        }
    }
}

static void check_lines(const struct cli_task *task, uint64_t seed, struct cli_task_text *text)
{
    const char *context = text->context.data;
    (void)seed;
    assert_null(strstr(context, "\n\n\n"));
    assert_true(context[text->context.bytes - 1] != '\n' &&
                context[text->context.bytes - 1] != ' ');
    for (size_t q = 0; q < text->n_questions; q++) {
        const struct hre_bytes *prefix = &text->question[q].prefix;
        assert_true(isalnum((unsigned char)prefix->data[prefix->bytes - 1]) ||
                    prefix->data[prefix->bytes - 1] == ':');
        assert_string_not_equal(text->question[q].text.data, "");
    }
    assert_int_equal(text->n_questions, strncmp(task->name, "multiturn", 9) == 0 ? 5 : 1);
}

static void test_lengths(void **state)
{
    (void)state;
    for_each(4096, check_length);
}

static void test_evidence(void **state)
{
    (void)state;
    for_each(4096, check_evidence);
    for_each(2048, check_evidence);
}

static void test_lines(void **state)
{
    (void)state;
    for_each(3000, check_lines);
}

static void test_seeds(void **state)
{
    const struct cli_task *task;
    (void)state;
    for (size_t t = 0; (task = cli_task_at(t)); t++) {
        if (!task->make)
            continue;
        struct cli_task_text a = make(task, 5, 3000), b = make(task, 5, 3000),
                             c = make(task, 6, 3000);
        assert_string_equal(a.context.data, b.context.data);
        assert_string_equal(a.question[0].text.data, b.question[0].text.data);
        assert_string_not_equal(a.context.data, c.context.data);
        assert_string_not_equal(a.question[0].references.text[0], c.question[0].references.text[0]);
        cli_task_text_fini(&a);
        cli_task_text_fini(&b);
        cli_task_text_fini(&c);
    }
}

/* A text with more filler begins with the same filler and hides the same. */
static void test_longer(void **state)
{
    (void)state;
    for (size_t t = 0; cli_task_at(t); t++) {
        const struct cli_task *task = cli_task_at(t);
        if (!task->make || strcmp(task->name, "cwe") == 0 || strcmp(task->name, "fwe") == 0 ||
            task->n_questions) /* these mix all of it */
            continue;
        struct cli_task_text a = make(task, 3, 4096), b = make(task, 3, 8192);
        assert_true(b.context.bytes > a.context.bytes);
        assert_string_equal(a.question[0].text.data, b.question[0].text.data);
        assert_memory_equal(&a.question[0].references, &b.question[0].references,
                            sizeof a.question[0].references);
        cli_task_text_fini(&a);
        cli_task_text_fini(&b);
    }
}

/* -------------------------------------------------------------------------------------------- solvers */

/* All values that the text gives for a key. */
static size_t values_of(const char *context, const char *kind, const char *key, char values[][40])
{
    char line[160];
    size_t n = 0;
    int length = snprintf(line, sizeof line, "One of the special magic %ss for %s is: ", kind, key);
    for (const char *at = context; (at = strstr(at, line)) && n < 10; at += length) {
        size_t bytes = strcspn(at + length, ".");
        snprintf(values[n++], 40, "%.*s", (int)bytes, at + length);
    }
    return n;
}

/* The keys that a question lists: "a", "a, and b", "a, b, and c". */
static size_t listed_keys(const char *question, char keys[][64])
{
    char list[512];
    const char *begin = strstr(question, " for "), *end = strstr(question, " mentioned in");
    size_t n = 0;
    assert_true(begin && end && end - begin < 500);
    snprintf(list, sizeof list, "%.*s", (int)(end - begin - 5), begin + 5);
    for (char *word = strtok(list, ", "); word; word = strtok(NULL, ", ")) {
        if (strcmp(word, "and") != 0)
            snprintf(keys[n++], 64, "%s", word);
    }
    return n;
}

static void solve_niah(const struct cli_task *task, uint64_t seed, struct cli_task_text *text)
{
    const char *kind = task->niah.value == CLI_NEEDLE_UUID ? "uuid" : "number";
    if (!task->niah.n_keys)
        return;
    for (size_t q = 0; q < text->n_questions; q++) {
        char keys[8][64], values[10][40];
        const char *expected[10];
        size_t n = 0, n_keys = listed_keys(text->question[q].text.data, keys);
        assert_int_equal(n_keys, task->niah.n_queries);
        for (size_t k = 0; k < n_keys; k++)
            n += values_of(text->context.data, kind, keys[k], values + n);
        for (size_t i = 0; i < n; i++) {
            expected[i] = values[i];
            assert_int_equal(occurrences(text->context.data, values[i]), 1);
        }
        assert_references(task, seed, &text->question[q].references, n, expected);
        assert_int_equal(n, task->niah.n_values * n_keys);
    }
}

static void test_niah(void **state)
{
    (void)state;
    for_each(2500, solve_niah);
    for_each(6000, solve_niah);
}

/* Needles come everywhere, not only in one part. */
static void test_places(void **state)
{
    const struct cli_task *task = cli_task_find("niah_single_2");
    unsigned in_quarter[4] = {0};
    (void)state;
    for (uint64_t seed = 0; seed < 64; seed++) {
        struct cli_task_text text = make(task, seed, 4096);
        size_t quarter = 4 * text.question[0].evidence[0].begin / text.context.bytes;
        in_quarter[quarter < 4 ? quarter : 3]++;
        cli_task_text_fini(&text);
    }
    for (size_t i = 0; i < 4; i++) {
        if (in_quarter[i] < 5)
            fail_msg("%u of 64 needles in quarter %zu", in_quarter[i], i);
    }
}

static void test_passkey(void **state)
{
    const struct cli_task *task = cli_task_find("passkey");
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cli_task_text text = make(task, seed, 1000);
        const char *at = strstr(text.context.data, "The pass key is "), *key = at + 16;
        char expected[64];
        assert_non_null(at);
        snprintf(expected, sizeof expected, "%.5s. Remember it. %.5s is the pass key.", key, key);
        assert_memory_equal(key, expected, strlen(expected));
        assert_int_equal(text.question[0].references.n, 1);
        assert_memory_equal(text.question[0].references.text[0], key, 5);
        assert_int_equal(occurrences(text.context.data, "The pass key is"), 1);
        assert_int_equal(text.question[0].n_evidence, 2);
        cli_task_text_fini(&text);
    }
}

/* Follows the assignments behind the last "Memorize": those before it are the example's. */
static void test_variables(void **state)
{
    const struct cli_task *task = cli_task_find("vt");
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cli_task_text text = make(task, seed, 2000);
        char names[10][8], line[128], *rest = NULL;
        const char *expected[10], *value = strstr(text.question[0].text.data, "value ") + 6;
        size_t n = 0;
        for (char *at = text.context.data; (at = strstr(at, "Memorize and track")); at++)
            rest = at;
        snprintf(line, sizeof line, " = %.5s\n", value);
        char *first = strstr(rest, line);
        assert_non_null(first);
        snprintf(names[n++], 8, "%.5s", first - 5);
        for (char *at = first; n < 10;) {
            snprintf(line, sizeof line, " = VAR %s", names[n - 1]);
            if (!(at = strstr(at, line)))
                break;
            snprintf(names[n++], 8, "%.5s", at - 5);
        }
        for (size_t i = 0; i < n; i++)
            expected[i] = names[i];
        assert_int_equal(n, 5);
        assert_references(task, seed, &text.question[0].references, n, expected);
        cli_task_text_fini(&text);
    }
}

struct counted {
    char word[32];
    size_t n;
};

static size_t count_words(const char *text, struct counted *counted, size_t room)
{
    size_t n = 0;
    for (const char *at = text; *at;) {
        char word[32];
        size_t length = strcspn(at, " \n"), i = 0;
        snprintf(word, sizeof word, "%.*s", (int)length, at);
        while (i < n && strcmp(counted[i].word, word) != 0)
            i++;
        if (i == n && !isdigit((unsigned char)word[0]) && word[0]) {
            assert_true(n < room);
            snprintf(counted[n++].word, sizeof word, "%s", word);
            counted[n - 1].n = 0;
        }
        if (!isdigit((unsigned char)word[0]) && word[0])
            counted[i].n++;
        at += length + (at[length] != '\0');
    }
    return n;
}

static int by_count(const void *a, const void *b)
{
    const struct counted *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n) - (x->n > y->n) : strcmp(x->word, y->word);
}

static void solve_common(uint64_t tokens, size_t times_common, size_t times_uncommon)
{
    static struct counted counted[4000];
    const struct cli_task *task = cli_task_find("cwe");
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cli_task_text text = make(task, seed, tokens);
        const char *expected[10], *list = text.context.data;
        for (const char *at = list; (at = strstr(at, "most often.\n")); at++)
            list = at + 12;
        size_t n = count_words(list, counted, 4000);
        qsort(counted, n, sizeof *counted, by_count);
        for (size_t i = 0; i < 10; i++)
            expected[i] = counted[i].word;
        for (size_t i = 0; i < n; i++)
            assert_int_equal(counted[i].n, i < 10 ? times_common : times_uncommon);
        assert_references(task, seed, &text.question[0].references, 10, expected);
        assert_int_equal(text.question[0].n_evidence, 10 * times_common);
        cli_task_text_fini(&text);
    }
}

static void test_common_words(void **state)
{
    (void)state;
    solve_common(4095, 6, 1);
    solve_common(4096, 30, 3);
}

static void test_frequent_words(void **state)
{
    static struct counted counted[4000];
    const struct cli_task *task = cli_task_find("fwe");
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cli_task_text text = make(task, seed, 4096);
        const char *expected[3], *list = strstr(text.context.data, "coded words. ") + 13;
        size_t n = count_words(list, counted, 4000);
        qsort(counted, n, sizeof *counted, by_count);
        assert_string_equal(counted[0].word, "...");
        for (size_t i = 0; i < 3; i++) {
            expected[i] = counted[1 + i].word;
            assert_true(counted[1 + i].n > counted[2 + i].n);
        }
        /* Zeta with exponent 2: the second is a quarter as frequent as the first. */
        assert_true(counted[1].n * 4 <= counted[0].n && counted[1].n * 4 + 8 > counted[0].n);
        assert_references(task, seed, &text.question[0].references, 3, expected);
        cli_task_text_fini(&text);
    }
}

static void solve_pairs(const struct cli_task *task, uint64_t seed, struct cli_task_text *text)
{
    if (!task->n_questions)
        return;
    for (size_t q = 0; q < text->n_questions; q++) {
        char key[64], value[40];
        const char *expected[1] = {value}, *at;
        snprintf(key, sizeof key, "%.38s: \"", text->question[q].text.data + 5);
        assert_int_equal(occurrences(text->context.data, key), 1);
        at = strstr(text->context.data, key) + strlen(key);
        snprintf(value, sizeof value, "%.36s", at);
        assert_int_equal(strlen(value), 36);
        assert_true(value[14] == '4' && strchr("89ab", value[19]));
        assert_references(task, seed, &text->question[q].references, 1, expected);
        for (size_t other = 0; other < q; other++)
            assert_string_not_equal(text->question[q].text.data, text->question[other].text.data);
    }
}

static void test_pairs(void **state)
{
    (void)state;
    for_each(3000, solve_pairs);
}

/* --------------------------------------------------------------------------------------------- golden */

static uint64_t hash_text(const struct cli_task_text *text)
{
    uint64_t hash = 0xcbf29ce484222325u;
    const struct hre_bytes *parts[1 + 2 * CLI_TASK_QUESTIONS_MAX] = {&text->context};
    size_t n = 1;
    for (size_t i = 0; i < text->n_questions; i++) {
        parts[n++] = &text->question[i].text;
        parts[n++] = &text->question[i].prefix;
    }
    for (size_t p = 0; p < n; p++) {
        for (size_t i = 0; i < parts[p]->bytes; i++)
            hash = (hash ^ (unsigned char)parts[p]->data[i]) * 0x100000001b3u;
    }
    return hash;
}

/* Figures are only comparable while texts are the same: a change here is a change of the tasks. */
static void test_golden(void **state)
{
    static const struct {
        const char *task;
        uint64_t hash;
    } golden[] = {
        {"passkey", 0x5fe2def5628d2ff6},
        {"niah_single_1", 0xf109e79dbb1ad6f7},
        {"niah_single_2", 0x1c8fc6a3d1959759},
        {"niah_single_3", 0xb9258ae00a351081},
        {"niah_multikey_1", 0xede7c5a295d3a089},
        {"niah_multikey_2", 0xe166dc628c3c65fe},
        {"niah_multikey_3", 0x456e5295c607b018},
        {"niah_multivalue", 0x9410423eceacedd4},
        {"niah_multiquery", 0xa674befc8c572aaf},
        {"vt", 0x34896bd4945ddae9},
        {"cwe", 0x4c8075a13c8f657e},
        {"fwe", 0x406f73a100b034a1},
        {"kv_retrieval", 0x7bec95608772854f},
        {"multiturn_niah", 0x1c38f35691093557},
        {"multiturn_kv", 0x2fe777c234d3391f},
    };
    const struct cli_task *task;
    size_t n = 0, wrong = 0;
    (void)state;
    for (size_t t = 0; (task = cli_task_at(t)); t++) {
        if (!task->make)
            continue;
        struct cli_task_text text = make(task, cli_task_seed(task, 1, 0), 4096);
        uint64_t hash = hash_text(&text);
        bool same = n < sizeof golden / sizeof golden[0] &&
                    strcmp(golden[n].task, task->name) == 0 && golden[n].hash == hash;
        if (!same)
            print_error("        {\"%s\", 0x%016" PRIx64 "},\n", task->name, hash);
        wrong += !same;
        cli_task_text_fini(&text);
        n++;
    }
    assert_int_equal(wrong, 0);
}

/* ------------------------------------------------------------------------------------------ edge cases */

static int64_t count_nothing(void *context, const struct cli_task_text *text)
{
    (void)context;
    (void)text;
    return -1;
}

static void test_fit(void **state)
{
    const struct cli_task *task;
    (void)state;
    for (size_t t = 0; (task = cli_task_at(t)); t++) {
        struct cli_task_request request = {.source = &source, .seed = 1, .tokens = 20};
        struct cli_task_text text;
        int64_t n;
        if (!task->make)
            continue;
        assert_int_equal(cli_task_fit(task, &request, count_quarters, NULL, &text, &n),
                         CLI_FIT_TOO_SMALL);
        assert_true(n > 20);
        request.tokens = (uint64_t)n + 4096; /* rules of cwe and fwe depend on it: far away */
        assert_int_equal(cli_task_fit(task, &request, count_nothing, NULL, &text, &n),
                         CLI_FIT_FAILED);
    }
}

/* The shortest text of all: no filler. */
static void test_shortest(void **state)
{
    const struct cli_task *task = cli_task_find("niah_multiquery");
    struct cli_task_request request = {.source = &source, .seed = 2, .tokens = 100};
    struct cli_task_text text = {.n_questions = 0};
    (void)state;
    task->make(task, &request, &text);
    assert_false(text.failed);
    assert_int_equal(text.question[0].references.n, 4);
    assert_int_equal(occurrences(text.context.data, "One of the special"), 4);
    cli_task_text_fini(&text);
}

/* A list of words that is too short for the length: the text takes all of them. */
static void test_few_words(void **state)
{
    const struct cli_task *task = cli_task_find("cwe");
    struct cli_task_request request = {.source = &source, .seed = 2, .tokens = 100000};
    struct cli_task_text text;
    int64_t n;
    (void)state;
    assert_int_equal(cli_task_fit(task, &request, count_quarters, NULL, &text, &n), CLI_FIT_OK);
    assert_int_equal(request.units, task->units_max(&request));
    assert_int_equal(request.units, source.n_words - 50);
    assert_true(n < 100000);
    cli_task_text_fini(&text);
}

static void test_score(void **state)
{
    struct cli_references r = {3, {"Apple", "12345", "kiwi"}};
    (void)state;
    assert_true(cli_task_score(CLI_MATCH_ALL, &r, "apples and 12345, KIWI") == 1);
    assert_true(cli_task_score(CLI_MATCH_ALL, &r, " 1234 5 aPPle") == 1.0 / 3);
    assert_true(cli_task_score(CLI_MATCH_PART, &r, " 1234 5 aPPle") == 1);
    assert_true(cli_task_score(CLI_MATCH_PART, &r, "nothing") == 0);
    assert_true(cli_task_score(CLI_MATCH_ALL, &r, "") == 0);
    r.n = 0;
    assert_true(cli_task_score(CLI_MATCH_ALL, &r, "apple") == 0);
}

static void test_sample_seeds(void **state)
{
    const struct cli_task *a = cli_task_find("vt"), *b = cli_task_find("cwe");
    (void)state;
    assert_true(cli_task_seed(a, 1, 0) == cli_task_seed(a, 1, 0));
    assert_true(cli_task_seed(a, 1, 0) != cli_task_seed(a, 1, 1));
    assert_true(cli_task_seed(a, 1, 0) != cli_task_seed(a, 2, 0));
    assert_true(cli_task_seed(a, 1, 0) != cli_task_seed(b, 1, 0));
    assert_null(cli_task_find("niah"));
    assert_non_null(strstr(cli_task_names(), "passkey niah_single_1"));
}

static void test_sources(void **state)
{
    char lines[] = "Zebra\nzebra\napple\r\nit's\ncafé\nabc\nabcd\napple\nlongerthanten\n\npear";
    char text[] = "  One  two.\n\tThree (four!) \"Five?\" six 3.5 seven";
    const char *const words[] = {"abcd", "apple", "pear", "zebra"};
    struct cli_span *found;
    size_t n;
    (void)state;
    const char **split = cli_split_words(lines, &n);
    assert_int_equal(n, 4);
    for (size_t i = 0; i < n; i++)
        assert_string_equal(split[i], words[i]);
    free(split);
    assert_int_equal(cli_split_sentences(text, &found), 4);
    assert_string_equal(text, "One two. Three (four!) \"Five?\" six 3.5 seven");
    assert_true(found[0].begin == 0 && found[0].end == 8 && found[1].begin == 9);
    assert_true(found[1].end == 22 && found[2].end == 30 && found[3].end == strlen(text));
    free(found);
    char empty[] = " \n ";
    assert_int_equal(cli_split_sentences(empty, &found), 0);
    free(found);
}

static void test_builtin_words(void **state)
{
    size_t n;
    const char *const *words = cli_builtin_words(&n);
    (void)state;
    assert_true(n >= 400);
    for (size_t i = 0; i < n; i++) {
        assert_true(strlen(words[i]) >= 4 && strlen(words[i]) <= 10);
        assert_int_equal(strspn(words[i], "abcdefghijklmnopqrstuvwxyz"), strlen(words[i]));
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(words[i], words[j]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),        cmocka_unit_test(test_evidence),
        cmocka_unit_test(test_lines),          cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_longer),         cmocka_unit_test(test_niah),
        cmocka_unit_test(test_places),         cmocka_unit_test(test_passkey),
        cmocka_unit_test(test_variables),      cmocka_unit_test(test_common_words),
        cmocka_unit_test(test_frequent_words), cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_golden),         cmocka_unit_test(test_fit),
        cmocka_unit_test(test_shortest),       cmocka_unit_test(test_few_words),
        cmocka_unit_test(test_score),          cmocka_unit_test(test_sample_seeds),
        cmocka_unit_test(test_sources),        cmocka_unit_test(test_builtin_words),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
