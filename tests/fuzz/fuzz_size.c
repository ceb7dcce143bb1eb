/*
 * Whatever bytes stand where the tool expects a size, a share, a count, a number or a duration: a value within what the header says, or an
 * error with a message and nothing written. The first byte says which of them the rest is.
 */
#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <headrace/parse.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define KEPT 0x1234567890abcdefu

static void require(int ok)
{
    if (!ok) {
        fprintf(stderr, "the property does not hold; last error: %s\n", hr_last_error());
        abort();
    }
}

static void check_error(hr_status_t status)
{
    require(status == HR_ERR_INVALID && *hr_last_error());
}

static void check_bytes(const char *text)
{
    uint64_t bytes = KEPT, again = 0;
    char plain[32], pretty[32];
    hr_status_t status = hr_parse_bytes(text, &bytes);
    if (status != HR_OK) {
        check_error(status);
        require(bytes == KEPT);
        return;
    }
    snprintf(plain, sizeof plain, "%" PRIu64, bytes);
    require(hr_parse_bytes(plain, &again) == HR_OK && again == bytes);
    if (bytes > UINT64_MAX / 2) /* rounded up it may be more than there can be */
        return;
    require(hr_parse_bytes(hr_format_bytes(bytes, pretty, sizeof pretty), &again) == HR_OK);
    double apart = fabs((double)again - (double)bytes);
    require(apart <= 0.006 * (double)bytes);
}

static void check_fraction(const char *text)
{
    double x = -1;
    hr_status_t status = hr_parse_fraction(text, &x);
    if (status == HR_OK)
        require(x >= 0 && x <= 1);
    else
        check_error(status);
    require(status == HR_OK || x == -1);
}

static void check_count(const char *text, uint64_t min, uint64_t max)
{
    uint64_t n = KEPT;
    hr_status_t status = hr_parse_count(text, min, max, &n);
    if (status == HR_OK)
        require(n >= min && n <= max);
    else
        check_error(status);
    require(status == HR_OK || n == KEPT);
}

static void check_real(const char *text)
{
    double x = -1.25e100;
    hr_status_t status = hr_parse_real(text, &x);
    if (status == HR_OK)
        require(isfinite(x));
    else
        check_error(status);
    require(status == HR_OK || x == -1.25e100);
}

static void check_duration(const char *text)
{
    uint64_t ns = KEPT;
    hr_status_t status = hr_parse_duration_ns(text, &ns);
    if (status != HR_OK)
        check_error(status);
    require(status == HR_OK || ns == KEPT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t which = size ? data[0] : 0;
    size_t n = size ? size - 1 : 0;
    char *text = malloc(n + 1);
    require(text != NULL);
    if (n)
        memcpy(text, data + 1, n);
    text[n] = '\0';
    switch (which % 5) {
    case 0:
        check_bytes(text);
        break;
    case 1:
        check_fraction(text);
        break;
    case 2:
        check_count(text, which / 5, which % 2 ? UINT64_MAX : 1000u + which);
        break;
    case 3:
        check_real(text);
        break;
    default:
        check_duration(text);
    }
    free(text);
    return 0;
}
