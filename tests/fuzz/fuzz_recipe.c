/*
 * Whatever bytes stand where a recipe, a recipe file or a table of head gates is expected: an answer or an error with a message,
 * nothing written after an error. The first byte says which of them the rest is.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/headrace.h>
#include <headrace/parse.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int ok)
{
    if (!ok) {
        fprintf(stderr, "the property does not hold; last error: %s\n", hr_last_error());
        abort();
    }
}

static char *terminated(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    require(text != NULL);
    if (size)
        memcpy(text, data, size);
    text[size] = '\0';
    return text;
}

static void check_recipe(const uint8_t *data, size_t size)
{
    char *text = terminated(data, size);
    hr_status_t status = hr_recipe_check(text);
    require(status == HR_OK || *hr_last_error());
    free(text);
}

/* What a file says is a recipe text that is right. */
static void check_file(const char *text, size_t size)
{
    char recipe[256] = "kept";
    hr_status_t status = hr_recipe_parse_file("file", text, size, recipe, sizeof recipe);
    if (status == HR_OK)
        require(hr_recipe_check(recipe) == HR_OK);
    else
        require(strcmp(recipe, "kept") == 0 && *hr_last_error());
}

static void check_gates(const char *text, size_t size, uint32_t n_layers, uint32_t n_heads)
{
    float gates[8 * 8];
    for (size_t i = 0; i < 64; i++)
        gates[i] = -7;
    hr_status_t status = hr_parse_head_gates("file", text, size, n_layers, n_heads, gates);
    for (uint32_t i = 0; i < n_layers * n_heads; i++)
        require(status == HR_OK ? gates[i] >= 0 && gates[i] <= 1 : gates[i] == -7);
    for (size_t i = (size_t)n_layers * n_heads; i < 64; i++)
        require(gates[i] == -7);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t which = size ? data[0] : 0;
    const uint8_t *rest = data + (size > 0);
    size_t n = size - (size > 0);
    if (which % 4 == 0)
        check_recipe(rest, n);
    else if (which % 4 == 1)
        check_file((const char *)rest, n);
    else
        check_gates((const char *)rest, n, 1 + which / 4 % 8, 1 + which / 32 % 8);
    return 0;
}
