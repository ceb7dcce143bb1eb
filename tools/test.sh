#!/bin/sh
# Sets up, builds and runs every test: the release build with all of them, then the fast ones
# under AddressSanitizer and UndefinedBehaviorSanitizer, then the threaded ones under
# ThreadSanitizer, then the fuzzers for a minute each.
# Ends with ctest's summaries; non-zero when anything failed.
#
#   HEADRACE_TEST_QUICK=1       only the fast tests of the release build
#   HEADRACE_TEST_SANITIZERS=0  no sanitizer builds and no fuzzers
#   HEADRACE_CACHE=DIR          where the model is kept; without it the tests that need it skip
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"
cd "$root"

failed=
summaries=

# ThreadSanitizer of gcc 12 does not start where the kernel spreads addresses wider than it expects.
fixed_addresses=
if setarch "$(uname -m)" -R true 2> /dev/null; then
    fixed_addresses="setarch $(uname -m) -R"
fi

# run_tests PRESET [CTEST ARGUMENT...]
run_tests() {
    preset=$1
    shift
    log=build/$preset-tests.log
    failure=build/$preset-tests.failed
    rm -f "$failure"
    # One more than there are cores: some tests wait. A file carries ctest's failure out of the pipe, because sh has no pipefail.
    # shellcheck disable=SC2086 # a command or nothing
    { $fixed_addresses ctest --test-dir "build/$preset" --output-on-failure --no-tests=error \
        -j "$((jobs + 1))" "$@" 2>&1 || : > "$failure"; } | tee "$log"
    summaries="$summaries
--- $preset $*
$(sed -n '/tests passed/,$p' "$log")
"
    [ ! -e "$failure" ] || failed="$failed $preset"
}

sh tools/deps.sh test
export HEADRACE_CACHE="$cache"
HEADRACE_MODEL=$(sh tools/fetch_model.sh) || say "the tests that need the model will be skipped"
export HEADRACE_MODEL

configure_and_build release
if [ "${HEADRACE_TEST_QUICK:-0}" = 1 ]; then
    run_tests release -L fast
else
    run_tests release
    if [ "${HEADRACE_TEST_SANITIZERS:-1}" != 0 ]; then
        configure_and_build asan
        run_tests asan -L fast
        configure_and_build tsan -- hr_tests_threads
        run_tests tsan -L threads
        sh tools/fuzz.sh 60 || [ $? = 77 ] || failed="$failed fuzz"
    fi
fi

printf '%s\n' "$summaries"
[ -z "$failed" ] || die "tests failed under:$failed"
