/* Every public header compiles first, alone, as plain C11; and again, which changes nothing. */
#include <headrace/headrace.h>
#include <headrace/parse.h>
#include <headrace/status.h>
#include <headrace/headrace.h>

_Static_assert(HR_OK == 0, "success is zero");
_Static_assert(HR_TIER_FILE + 1 == HR_TIERS, "one limit for all tiers");

hr_status_t header_c11(void);
hr_status_t header_c11(void)
{
    struct hr_tensor tensor = hr_tensor_make(NULL, HR_DTYPE_F32, 1, 1, 64);
    struct hr_attend_options options;
    hr_attend_options_init(&options);
    return tensor.data || options.check_exact ? HR_ERR_INVALID : HR_OK;
}
