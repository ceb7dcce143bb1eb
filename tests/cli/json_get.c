/* json_get FILE PATH...: the values at paths such as results.0.kl, one to a line; strings
 * without quotes, [] gives an array's or object's size with a trailing '#'. Exit code 1 where
 * the file is no JSON (nothing but one value) or a path is not there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    size_t n = 0, room = 1 << 20;
    char *text = malloc(room);
    while (text) {
        size_t got = fread(text + n, 1, room - n - 1, file);
        n += got;
        if (got == 0)
            break;
        if (room - n < 2)
            text = realloc(text, room *= 2);
    }
    if (text)
        text[n] = '\0';
    fclose(file);
    return text;
}

static const cJSON *walk(const cJSON *json, const char *path)
{
    char word[128];
    while (json && *path && strcmp(path, "#") != 0) {
        size_t n = strcspn(path, ".#");
        snprintf(word, sizeof word, "%.*s", (int)n, path);
        json = cJSON_IsArray(json) ? cJSON_GetArrayItem(json, atoi(word))
                                   : cJSON_GetObjectItemCaseSensitive(json, word);
        path += n + (path[n] == '.');
    }
    return json;
}

static void print(const cJSON *item, const char *path)
{
    if (strchr(path, '#')) {
        printf("%d\n", cJSON_GetArraySize(item));
    } else if (cJSON_IsString(item)) {
        printf("%s\n", item->valuestring);
    } else {
        char *text = cJSON_PrintUnformatted(item);
        printf("%s\n", text ? text : "");
        cJSON_free(text);
    }
}

int main(int argc, char **argv)
{
    const char *end = NULL;
    char *text = argc > 1 ? read_file(argv[1]) : NULL;
    cJSON *json = text ? cJSON_ParseWithOpts(text, &end, 0) : NULL;
    if (!json || end[strspn(end, " \n")] != '\0') {
        fprintf(stderr, "json_get: %s is not one JSON value\n", argc > 1 ? argv[1] : "nothing");
        return 1;
    }
    for (int i = 2; i < argc; i++) {
        const cJSON *item = walk(json, argv[i]);
        if (!item) {
            fprintf(stderr, "json_get: %s has no %s\n", argv[1], argv[i]);
            return 1;
        }
        print(item, argv[i]);
    }
    cJSON_Delete(json);
    free(text);
    return 0;
}
