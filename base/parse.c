#include "base/parse.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"

/*
 * strtod and strtoull take signs, blanks, hexadecimal, "inf" and the locale's decimal point. None
 * of that is wanted here, so a number is recognised first: digits, then optionally '.' and
 * digits. Returns the end of it, or NULL.
 */
static const char *number_end(const char *text, bool *whole_out)
{
    const char *cursor = text;
    while (isdigit((unsigned char)*cursor))
        cursor++;
    if (cursor == text)
        return NULL;
    *whole_out = *cursor != '.';
    if (*cursor == '.') {
        const char *fraction = ++cursor;
        while (isdigit((unsigned char)*cursor))
            cursor++;
        if (cursor == fraction)
            return NULL;
    }
    return cursor;
}

/*
 * The value of the digits in [text, end) in long double: exact for whole numbers below 2^64, on
 * any locale.
 */
static long double number_value(const char *text, const char *end)
{
    long double value = 0, place = 1;
    bool fraction = false;
    for (; text < end; text++) {
        if (*text == '.') {
            fraction = true;
            continue;
        }
        value = value * 10 + (*text - '0');
        if (fraction)
            place *= 10;
    }
    return value / place;
}

static const char *skip_blanks(const char *text)
{
    while (*text == ' ' || *text == '\t')
        text++;
    return text;
}

/* A name from the table and nothing but blanks behind it. */
struct unit {
    const char *name;
    double scale;
};

static const struct unit *find_unit(const struct unit *units, size_t count, const char *text)
{
    size_t length = strlen(text);
    while (length > 0 && (text[length - 1] == ' ' || text[length - 1] == '\t'))
        length--;
    for (size_t i = 0; i < count; i++) {
        if (strlen(units[i].name) == length && strncasecmp(units[i].name, text, length) == 0)
            return &units[i];
    }
    return NULL;
}

static hr_status_t bad(const char *text, const char *expected)
{
    return hri_error_set(HR_ERR_INVALID, "'%.80s' is not %s", text != NULL ? text : "", expected);
}

/* Reads NUMBER UNIT; the common part of bytes and durations. */
static hr_status_t parse_scaled(const char *text, const struct unit *units, size_t unit_count,
                                const char *expected, uint64_t *value_out)
{
    if (text == NULL)
        return bad(text, expected);
    const char *begin = skip_blanks(text);
    bool whole = true;
    const char *end = number_end(begin, &whole);
    if (end == NULL)
        return bad(text, expected);
    const struct unit *unit = find_unit(units, unit_count, skip_blanks(end));
    if (unit == NULL || (!whole && unit->scale == 1))
        return bad(text, expected);
    long double value = number_value(begin, end) * (long double)unit->scale;
    if (!(value < 18446744073709551616.0L))
        return hri_error_set(HR_ERR_INVALID, "'%.80s' is too large", text);
    *value_out = (uint64_t)value;
    return HR_OK;
}

hr_status_t hr_parse_bytes(const char *text, uint64_t *bytes_out)
{
    static const struct unit units[] = {
        {"", 1},         {"b", 1},        {"k", 1e3},      {"kb", 1e3},     {"m", 1e6},
        {"mb", 1e6},     {"g", 1e9},      {"gb", 1e9},     {"t", 1e12},     {"tb", 1e12},
        {"p", 1e15},     {"pb", 1e15},    {"e", 1e18},     {"eb", 1e18},    {"ki", 0x1p10},
        {"kib", 0x1p10}, {"mi", 0x1p20},  {"mib", 0x1p20}, {"gi", 0x1p30},  {"gib", 0x1p30},
        {"ti", 0x1p40},  {"tib", 0x1p40}, {"pi", 0x1p50},  {"pib", 0x1p50}, {"ei", 0x1p60},
        {"eib", 0x1p60},
    };
    return parse_scaled(text, units, sizeof units / sizeof units[0],
                        "a size; write it like 8388608, 8MB or 8MiB", bytes_out);
}

hr_status_t hr_parse_duration_ns(const char *text, uint64_t *ns_out)
{
    static const struct unit units[] = {
        {"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"min", 60e9}, {"h", 3600e9},
    };
    return parse_scaled(text, units, sizeof units / sizeof units[0],
                        "a duration; write it like 250us, 2ms or 1.5s", ns_out);
}

hr_status_t hr_parse_fraction(const char *text, double *fraction_out)
{
    static const struct unit units[] = {{"", 1}, {"%", 0.01}};
    static const char expected[] = "a share; write it like 1% or 0.01";
    if (text == NULL)
        return bad(text, expected);
    const char *begin = skip_blanks(text);
    bool whole;
    const char *end = number_end(begin, &whole);
    if (end == NULL)
        return bad(text, expected);
    const struct unit *unit = find_unit(units, 2, skip_blanks(end));
    if (unit == NULL)
        return bad(text, expected);
    /* Dividing keeps 1% the same double as 0.01; multiplying by 0.01 would not always. */
    long double value = number_value(begin, end);
    double fraction = (double)(unit->scale == 1 ? value : value / 100);
    if (!(fraction <= 1))
        return hri_error_set(HR_ERR_INVALID,
                             "'%.80s' is more than the whole; a share is at most 100%%", text);
    *fraction_out = fraction;
    return HR_OK;
}

hr_status_t hr_parse_count(const char *text, uint64_t min, uint64_t max, uint64_t *count_out)
{
    bool whole = true;
    const char *begin = text != NULL ? skip_blanks(text) : "";
    const char *end = number_end(begin, &whole);
    if (end == NULL || !whole || *skip_blanks(end) != '\0')
        return bad(text, "a whole number");
    uint64_t value = 0;
    for (const char *digit = begin; digit < end; digit++) {
        if (__builtin_mul_overflow(value, (uint64_t)10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*digit - '0'), &value))
            return hri_error_set(HR_ERR_INVALID, "'%.80s' is too large", text);
    }
    if (value < min || value > max)
        return hri_error_set(HR_ERR_INVALID, "'%.80s' is out of range; %llu to %llu is possible",
                             text, (unsigned long long)min, (unsigned long long)max);
    *count_out = value;
    return HR_OK;
}

hr_status_t hr_parse_real(const char *text, double *real_out)
{
    static const char expected[] = "a number";
    const char *cursor = text != NULL ? skip_blanks(text) : "";
    bool negative = *cursor == '-';
    const char *begin = cursor + (negative || *cursor == '+');
    bool whole;
    const char *end = number_end(begin, &whole);
    if (end == NULL)
        return bad(text, expected);
    long double value = number_value(begin, end);
    if (*end == 'e' || *end == 'E') {
        const char *digits = end + 1 + (end[1] == '-' || end[1] == '+');
        if (!isdigit((unsigned char)*digits))
            return bad(text, expected);
        long exponent = strtol(end + 1, (char **)&end, 10);
        exponent = exponent > 5000 ? 5000 : exponent < -5000 ? -5000 : exponent;
        value *= powl(10, (long double)exponent);
    }
    if (*skip_blanks(end) != '\0')
        return bad(text, expected);
    if (!isfinite((double)value))
        return hri_error_set(HR_ERR_INVALID, "'%.80s' is too large", text);
    *real_out = (double)(negative ? -value : value);
    return HR_OK;
}

hr_status_t hri_parse_list_next(const char **cursor, char item[HRI_PARSE_ITEM_BYTES_MAX])
{
    const char *begin = skip_blanks(*cursor);
    const char *comma = strchr(begin, ',');
    const char *end = comma != NULL ? comma : begin + strlen(begin);
    while (end > begin && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    size_t length = (size_t)(end - begin);
    if (length == 0)
        return hri_error_set(HR_ERR_INVALID, "a list has an empty item");
    if (length >= HRI_PARSE_ITEM_BYTES_MAX)
        return hri_error_set(HR_ERR_INVALID, "'%.80s' has an item of more than %d characters",
                             *cursor, HRI_PARSE_ITEM_BYTES_MAX - 1);
    memcpy(item, begin, length);
    item[length] = '\0';
    *cursor = comma != NULL ? comma + 1 : NULL;
    return HR_OK;
}
