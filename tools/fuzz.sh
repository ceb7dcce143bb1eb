#!/bin/sh
# Builds the fuzzers (clang; preset fuzz, the whole library instrumented) and runs each for a while from its corpus in tests/fuzz/corpus.
# Ends with a line each; non-zero when one found something, which is then in build/fuzz/found.
#
#   usage: fuzz.sh [SECONDS [NAME]...]      60 seconds and all of them without arguments; the long form is 3600
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"
cd "$root"

command -v clang > /dev/null || { say "no clang here: skipped"; exit 77; }
seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- gguf recipe session size tokenizer trace

longest_input() {
    case $1 in
    gguf) echo 20000 ;; # the seeds with tensors have up to 18,624: cut off, none of them is read to its tensors
    recipe | session) echo 400 ;;
    size) echo 64 ;;
    *) echo 2000 ;;
    esac
}

configure_and_build fuzz -- hr_fuzzers
mkdir -p build/fuzz/found
failed=
for name in "$@"; do
    log=build/fuzz/$name.log
    mkdir -p "build/fuzz/corpus/$name"
    if ASAN_OPTIONS=allocator_may_return_null=1 "build/fuzz/tests/fuzz_$name" \
        -max_total_time="$seconds" -max_len="$(longest_input "$name")" -timeout=60 \
        -artifact_prefix="build/fuzz/found/$name-" -print_final_stats=1 \
        "build/fuzz/corpus/$name" "tests/fuzz/corpus/$name" > "$log" 2>&1; then
        say "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s"
    else
        tail -n 40 "$log" >&2
        failed="$failed $name"
    fi
done
[ -z "$failed" ] || die "found something:$failed (build/fuzz/found)"
