/* Reading what people write: the public functions, and lists for recipes and options. */
#ifndef HRI_BASE_PARSE_H
#define HRI_BASE_PARSE_H

#include <headrace/parse.h>

#include "base/status.h"

#define HRI_PARSE_ITEM_BYTES_MAX 64

/*
 * Walks "a, b,c": copies the next item without surrounding blanks to item and moves *cursor
 * behind it. *cursor becomes NULL with the last item. An empty item (",,", a trailing comma, an
 * empty text) or one that is too long is HR_ERR_INVALID.
 */
hr_status_t hri_parse_list_next(const char **cursor, char item[HRI_PARSE_ITEM_BYTES_MAX]);

#endif
