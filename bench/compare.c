/* headrace bench compare: two runs side by side. Ratios are compared, because they were measured in turns with their limit and hold on a busy
 * machine; a change counts when it is larger than the spread of both runs' rounds, and than NOISE_LEAST. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/report.h"
#include "cli/args.h"
#include "cli/out.h"
#include "cli/text_file.h"

#define NOISE_LEAST   0.05
#define NOISE_DEFAULT 0.10 /* of runs that did not record their spread */

cJSON *hrb_run_read(const char *path)
{
    size_t n = 0;
    char *text = NULL;
    if (cli_text_read(path, &text, &n) != 0)
        return NULL;
    cJSON *json = cJSON_ParseWithLength(text, n);
    free(text);
    if (!cJSON_IsArray(cJSON_GetObjectItem(json, "benchmarks"))) {
        cli_fail("%s: not the JSON of a 'headrace bench' run", path);
        cJSON_Delete(json);
        return NULL;
    }
    return json;
}

static double number(const cJSON *object, const char *name, double otherwise)
{
    const cJSON *item = cJSON_GetObjectItem(object, name);
    return cJSON_IsNumber(item) ? item->valuedouble : otherwise;
}

static const char *text(const cJSON *object, const char *name)
{
    const char *value = cJSON_GetStringValue(cJSON_GetObjectItem(object, name));
    return value ? value : "";
}

static const cJSON *find(const cJSON *run, const char *name)
{
    const cJSON *b;
    cJSON_ArrayForEach(b, cJSON_GetObjectItem(run, "benchmarks"))
    {
        if (strcmp(text(b, "name"), name) == 0)
            return b;
    }
    return NULL;
}

/* Both spreads, added as independent errors are. */
static double noise_of(const cJSON *a, const cJSON *b)
{
    double noise =
        hypot(number(a, "ratio_spread", NOISE_DEFAULT), number(b, "ratio_spread", NOISE_DEFAULT));
    return noise > NOISE_LEAST ? noise : NOISE_LEAST;
}

/* -1 worse, 1 better, 0 within noise or not comparable. */
static int compare_one(const char *name, const cJSON *a, const cJSON *b)
{
    double from = number(a, "ratio", 0), to = number(b, "ratio", 0);
    if (from <= 0 || to <= 0) {
        fprintf(cli_out(), "%-24s %9s %9s  %s\n", name, from > 0 ? "measured" : "-",
                to > 0 ? "measured" : "-", "not in both runs");
        return 0;
    }
    double change = to / from - 1, noise = noise_of(a, b);
    int sign = fabs(change) <= noise ? 0 : change > 0 ? 1 : -1;
    fprintf(cli_out(), "%-24s %9.3f %9.3f %+7.1f%% %6.1f%%  %s\n", name, from, to, 100 * change,
            100 * noise,
            sign == 0  ? "noise"
            : sign > 0 ? "better"
                       : "WORSE");
    return sign;
}

static void warn_of_machines(const cJSON *a, const cJSON *b)
{
    static const char *const fields[] = {"cpu", "kernel"};
    const cJSON *x = cJSON_GetObjectItem(a, "machine"), *y = cJSON_GetObjectItem(b, "machine");
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (strcmp(text(x, fields[i]), text(y, fields[i])) != 0)
            cli_warn("the runs are of different machines: %s '%s' and '%s'", fields[i],
                     text(x, fields[i]), text(y, fields[i]));
    if (number(x, "threads", 0) != number(y, "threads", 0))
        cli_warn("the runs used different numbers of threads");
    if (cJSON_IsTrue(cJSON_GetObjectItem(a, "quick")) !=
        cJSON_IsTrue(cJSON_GetObjectItem(b, "quick")))
        cli_warn("one of the runs is a quick one");
}

int hrb_compare(const char *path_a, const char *path_b)
{
    cJSON *a = hrb_run_read(path_a), *b = a ? hrb_run_read(path_b) : NULL;
    int worse = 0, better = 0;
    const cJSON *item;
    if (!a || !b) {
        cJSON_Delete(a);
        return CLI_EXIT_FAILED;
    }
    warn_of_machines(a, b);
    fprintf(cli_out(), "%-24s %9s %9s %8s %7s\n", "ratio to the limit", "before", "after", "change",
            "noise");
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(a, "benchmarks"))
    {
        int sign = compare_one(text(item, "name"), item, find(b, text(item, "name")));
        worse += sign < 0;
        better += sign > 0;
    }
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(b, "benchmarks"))
    {
        if (!find(a, text(item, "name")))
            compare_one(text(item, "name"), NULL, item);
    }
    fprintf(cli_out(), "%d better, %d worse beyond noise\n", better, worse);
    cJSON_Delete(a);
    cJSON_Delete(b);
    return worse ? CLI_EXIT_FAILED : CLI_EXIT_OK;
}
