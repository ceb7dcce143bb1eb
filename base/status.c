#include "base/status.h"

static const struct {
    hr_status_t status;
    const char *name;
    const char *text;
} status_table[] = {
#define STATUS_ROW(code, number, words) {code, #code, words},
    HR_STATUS_LIST(STATUS_ROW)
#undef STATUS_ROW
};

#define STATUS_COUNT (sizeof status_table / sizeof status_table[0])

/* The list is dense and begins at 0, so a status is its own row. */
#define STATUS_CHECK(code, number, words)                                                          \
    _Static_assert((number) >= 0 && (unsigned)(number) < STATUS_COUNT, "status numbers are "       \
                                                                       "dense");
HR_STATUS_LIST(STATUS_CHECK)
#undef STATUS_CHECK

const char *hr_status_name(hr_status_t status)
{
    return (unsigned)status < STATUS_COUNT ? status_table[status].name : "HR_ERR_?";
}

const char *hr_status_text(hr_status_t status)
{
    return (unsigned)status < STATUS_COUNT ? status_table[status].text : "not a status";
}
