/* This build's own GPU, if there is one: that there is none, or no CUDA in the build, is an answer. */
#include "tests/test.h"

#include "kernels/device.h"

static void test_info(void **state)
{
    (void)state;
    char text[4096], cut[16];
    hri_device_info_json(text, sizeof text);
    if (hri_device_cuda_get() == NULL)
        assert_string_equal(text, "null");
    else
        assert_non_null(strstr(text, "\"devices\":["));
    hri_device_info_json(cut, sizeof cut);
    assert_true(strlen(cut) < sizeof cut);
}

static void test_open(void **state)
{
    (void)state;
    const struct hri_device_ops *ops = hri_device_cuda_get();
    if (ops == NULL) {
        print_message("no CUDA in this build\n");
        return;
    }
    assert_false(ops->emulated);
    struct hri_device *device = NULL;
    struct hri_device_memory memory = {0};
    unsigned char back[256] = {0};
    const struct hri_device_options o = {.ops = ops, .budget_bytes = 1 << 20};
    hr_status_t status = hri_device_open(&o, &device);
    if (status == HR_ERR_UNSUPPORTED) {
        print_message("%s\n", hr_last_error());
        assert_null(device);
        return;
    }
    assert_int_equal(status, HR_OK);
    assert_ok(hri_device_alloc(device, "a test", sizeof back, &memory));
    assert_ok(hri_device_fill(device, memory.base, 7, sizeof back));
    assert_ok(hri_device_copy(device, back, memory.base, sizeof back));
    assert_ok(hri_device_wait(device));
    for (size_t i = 0; i < sizeof back; i++)
        assert_int_equal(back[i], 7);
    hri_device_free(device, &memory);
    hri_device_close(device);
}

static void test_management(void **state)
{
    (void)state;
    struct hri_nvml_facts facts;
    assert_false(hri_nvml_read("", &facts));
    assert_false(hri_nvml_read("ffff:ff:1f.7", &facts)); /* with or without the library */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_info), cmocka_unit_test(test_open),
                                       cmocka_unit_test(test_management)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
