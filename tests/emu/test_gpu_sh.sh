#!/bin/sh
# tools/gpu.sh with stand-ins for the tests and the tool: what it says at its end is what happened, and its JSON is whole.
#
#   usage: test_gpu_sh.sh GPU_SH      JSON_GET names json_get
set -u
gpu_sh=$1
: "${JSON_GET:?names json_get}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
failures=0

fail() {
    echo "FAILED: $*"
    failures=$((failures + 1))
}

# program NAME LINE...: a stand-in
program() {
    file=$work/$1
    shift
    { echo '#!/bin/sh'; printf '%s\n' "$@"; } > "$file"
    chmod +x "$file"
}

# run NAME: in $code, $work/NAME.out, $json
run() {
    rm -rf "$work/results"
    GPU_TESTS=$work/tests GPU_TOOL=$work/tool GPU_SECONDS=${seconds:-600} PATH=$work/path:/usr/bin:/bin \
        sh "$gpu_sh" "$work/results" > "$work/$1.out" 2>&1
    code=$?
    json=$(ls "$work/results"/gpu-*.json)
    "$JSON_GET" "$json" runs.0.name > /dev/null || fail "$1: the JSON is not whole: $(cat "$json")"
}

has() {
    grep -q -e "$2" "$work/$1.out" || fail "$1: no '$2' in: $(cat "$work/$1.out")"
}

mkdir -p "$work/tests" "$work/path"
# shellcheck disable=SC2016 # for the stand-in
program tool 'case $1-${2:-} in' \
    'bench-list) echo "device-one  what  goal 1"; echo "device-two-1m  what  goal 1"; echo "crc32c  what  goal 1" ;;' \
    'bench-device-one) while [ "$1" != --json ]; do shift; done; printf "{\"skipped\":\t\"no \\\"GPU\\\"\"}" > "$2" ;;' \
    'bench-*) while [ "$1" != --json ]; do shift; done; echo "{}" > "$2" ;;' \
    'info-*) echo "{\"cuda\": {\"error\": \"device cuda: no driver is installed\"}}" ;;' \
    'run-*) echo "8 of 8 answered" ;;' \
    'esac'

# nothing that could run: no test found a GPU
program tests/gpu_a 'echo "skipped: no CUDA device"; exit 77'
program tests/gpu_b 'echo "skipped: no \"driver\""; exit 77'
run none
[ "$code" = 77 ] || fail "none: exit code $code"
has none '^skipped gpu_a: no CUDA device$'
has none '^passed: 0$'
has none '^failed: 0$'
has none '^skipped: 21 gpu_a gpu_b bench decode .* sanitizer-step_graph$'
has none '^nothing could run: device cuda: no driver is installed$'
[ "$("$JSON_GET" "$json" runs.1.reason)" = 'no "driver"' ] || fail "none: another reason"

# one passes, one fails, and the tool runs
program tests/gpu_a 'exit 0'
program tests/gpu_b 'echo wrong; exit 1'
run mixed
[ "$code" = 1 ] || fail "mixed: exit code $code"
has mixed '^passed: 7$' # gpu_a, the benchmark of 1 Mi tokens, five runs of the tool
has mixed '^failed: 1 gpu_b$'
has mixed '^skipped bench-device-one: '
has mixed '^passed bench-device-two-1m$'
has mixed '^skipped sanitizer-append: compute-sanitizer is not installed$'
[ "$("$JSON_GET" "$json" runs.1.result)" = failed ] || fail "mixed: the JSON has another result"

# with the sanitizer, which calls the program that follows its options
for name in append pack score select resolve gather predict sketch rows linear model device_tier step_graph; do
    program tests/gpu_$name 'exit 0'
done
program tests/gpu_score 'exit 77'
# shellcheck disable=SC2016
program path/compute-sanitizer 'while [ "${1#--}" != "$1" ]; do shift 2; done; exec "$@"'
rm "$work/tests/gpu_b"
run sanitized
[ "$code" = 0 ] || fail "sanitized: exit code $code"
has sanitized '^passed: 67$' # a and 12 tests, 12 times four tools, five runs of the tool, a benchmark
has sanitized '^passed memcheck-append$'
has sanitized '^passed synccheck-step_graph$'
has sanitized '^skipped racecheck-score$'

# what hangs takes no more than what is left, and the rest is skipped
program tests/gpu_b 'sleep 60'
seconds=8 run late
[ "$code" = 0 ] || fail "late: exit code $code"
has late '^skipped gpu_b: the time was over'
has late '^skipped decode: no time is left$'

[ "$failures" = 0 ] && echo "ok"
exit "$failures"
