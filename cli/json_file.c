#include "cli/json_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/out.h"
#include "cli/whole_file.h"

void cli_json_u64(cJSON *object, const char *name, unsigned long long value)
{
    cJSON_AddNumberToObject(object, name, (double)value);
}

void cli_json_real(cJSON *object, const char *name, double value)
{
    if (isfinite(value))
        cJSON_AddNumberToObject(object, name, value);
    else
        cJSON_AddNullToObject(object, name);
}

int cli_json_check(const char *path)
{
    return cli_whole_file_check(path);
}

int cli_json_write(const char *path, const cJSON *json)
{
    if (!path)
        return 0;
    char *body = cJSON_Print(json);
    if (!body)
        return cli_fail("cannot write '%s': out of memory", path);
    struct cli_bytes parts[] = {{body, strlen(body)}, {"\n", 1}};
    int code = cli_whole_file_write(path, parts, 2);
    cJSON_free(body);
    return code;
}
