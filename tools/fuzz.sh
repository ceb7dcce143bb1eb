#!/bin/sh
# Builds the fuzzers (clang; preset fuzz, the whole library instrumented) and runs each for a while from its corpus in tests/fuzz/corpus, as many
# at once as there are cores. Ends with a line each; non-zero when one found something, which is then in build/fuzz/found.
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

# fuzz NAME: its output in build/fuzz/NAME.log, its exit code in build/fuzz/NAME.code
fuzz() {
    code=0
    mkdir -p "build/fuzz/corpus/$1"
    ASAN_OPTIONS=allocator_may_return_null=1 "build/fuzz/tests/fuzz_$1" \
        -max_total_time="$seconds" -max_len="$(longest_input "$1")" -timeout=60 \
        -artifact_prefix="build/fuzz/found/$1-" -print_final_stats=1 \
        "build/fuzz/corpus/$1" "tests/fuzz/corpus/$1" > "build/fuzz/$1.log" 2>&1 || code=$?
    echo "$code" > "build/fuzz/$1.code"
}

# fuzz_lane LANE NAME...: of the names every so many-th, one after the other
fuzz_lane() {
    place=$1
    shift
    for name in "$@"; do
        [ $((place % jobs)) -ne 0 ] || fuzz "$name"
        place=$((place + 1))
    done
}

configure_and_build fuzz -- hr_fuzzers
mkdir -p build/fuzz/found
for name in "$@"; do rm -f "build/fuzz/$name.code"; done
lane=0
while [ "$lane" -lt "$jobs" ]; do
    fuzz_lane "$lane" "$@" &
    lane=$((lane + 1))
done
wait

failed=
for name in "$@"; do
    log=build/fuzz/$name.log
    if [ "$(cat "build/fuzz/$name.code" 2> /dev/null)" = 0 ]; then
        say "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s"
    else
        tail -n 40 "$log" >&2
        failed="$failed $name"
    fi
done
[ -z "$failed" ] || die "found something:$failed (build/fuzz/found)"
