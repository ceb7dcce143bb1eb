// The public headers as C++17: they compile without a warning and their functions have C linkage.
#include <headrace/headrace.h>
#include <headrace/parse.h>
#include <headrace/status.h>

#include <type_traits>

static_assert(std::is_standard_layout<hr_runtime_options>::value, "options are plain data");
static_assert(std::is_standard_layout<hr_attend_report>::value, "reports are plain data");

extern "C" hr_status_t header_cxx17();
hr_status_t header_cxx17()
{
    hr_sequence_options options;
    hr_sequence_options_init(&options);
    hr_tensor tensor = hr_tensor_make(nullptr, HR_DTYPE_BF16, 1, 1, options.k_dim);
    hr_runtime_t *runtime = nullptr;
    return tensor.data == nullptr ? hr_runtime_destroy(runtime) : HR_ERR_INVALID;
}
