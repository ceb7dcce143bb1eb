#include "base/cpu.h"

#include "tests/test.h"

/* The kernel's own list, where /proc/cpuinfo has one. */
static bool cpuinfo_has(const char *flag)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (file == NULL)
        return false;
    static char line[16384];
    char wanted[64];
    snprintf(wanted, sizeof wanted, " %s ", flag);
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = ' ';
        found = strncmp(line, "flags", 5) == 0 && strstr(line, wanted) != NULL;
    }
    fclose(file);
    return found;
}

static void test_same_as_the_kernel_says(void **state)
{
    (void)state;
    struct hri_cpu cpu;
    assert_ok(hri_cpu_detect_level(NULL, &cpu));
    assert_int_equal(cpu.avx2, cpuinfo_has("avx2"));
    assert_int_equal(cpu.fma, cpuinfo_has("fma"));
    assert_int_equal(cpu.f16c, cpuinfo_has("f16c"));
    if (cpu.level >= HRI_CPU_AVX512) {
        assert_true(cpuinfo_has("avx512f") && cpuinfo_has("avx512bw"));
        assert_true(cpuinfo_has("avx512vl") && cpuinfo_has("avx512dq"));
        assert_int_equal(cpu.avx512_vnni, cpuinfo_has("avx512_vnni"));
        assert_int_equal(cpu.avx512_bf16, cpuinfo_has("avx512_bf16"));
        assert_int_equal(cpu.avx512_fp16, cpuinfo_has("avx512_fp16"));
    }
    char text[256];
    print_message("%s: level %s: %s\n", cpu.brand, hri_cpu_level_name(cpu.level),
                  hri_cpu_features(&cpu, text, sizeof text));
}

static void test_lowered(void **state)
{
    (void)state;
    struct hri_cpu best, cpu;
    assert_ok(hri_cpu_detect_level("", &best));
    assert_ok(hri_cpu_detect_level("ref", &cpu));
    assert_int_equal(cpu.level, HRI_CPU_REF);
    char text[256];
    assert_string_equal(hri_cpu_features(&cpu, text, sizeof text), "");
    if (best.level >= HRI_CPU_AVX2) {
        assert_ok(hri_cpu_detect_level("avx2", &cpu));
        assert_true(cpu.avx2 && cpu.fma && cpu.f16c);
        assert_false(cpu.avx512f || cpu.avx512_vnni || cpu.avx512_bf16 || cpu.amx_int8);
    } else {
        assert_fails(hri_cpu_detect_level("avx2", &cpu), HR_ERR_UNSUPPORTED, "only");
    }
    if (best.level >= HRI_CPU_AMX) {
        assert_true(best.amx_tile && best.amx_bf16 && best.amx_int8);
        assert_ok(hri_cpu_detect_level("avx512", &cpu));
        assert_true(cpu.avx512f && cpu.avx512_vnni);
        assert_false(cpu.amx_tile || cpu.amx_bf16 || cpu.amx_int8);
        assert_ok(hri_cpu_detect_level("amx", &cpu));
        assert_int_equal(cpu.level, HRI_CPU_AMX);
    } else {
        assert_fails(hri_cpu_detect_level("amx", &cpu), HR_ERR_UNSUPPORTED, "only");
    }
    assert_fails(hri_cpu_detect_level("sse", &cpu), HR_ERR_INVALID, "'sse'");
}

static void test_environment(void **state)
{
    (void)state;
    struct hri_cpu cpu;
    setenv("HEADRACE_CPU", "ref", 1);
    assert_ok(hri_cpu_detect(&cpu));
    assert_int_equal(cpu.level, HRI_CPU_REF);
    setenv("HEADRACE_CPU", "fast", 1);
    assert_fails(hri_cpu_detect(&cpu), HR_ERR_INVALID, "HEADRACE_CPU");
    unsetenv("HEADRACE_CPU");
    assert_ok(hri_cpu_detect(&cpu));
}

static void test_text_that_does_not_fit(void **state)
{
    (void)state;
    struct hri_cpu cpu = {.avx2 = true, .fma = true};
    char text[7];
    hri_cpu_features(&cpu, text, sizeof text);
    assert_true(strlen(text) < sizeof text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_the_kernel_says),
        cmocka_unit_test(test_lowered),
        cmocka_unit_test(test_environment),
        cmocka_unit_test(test_text_that_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
