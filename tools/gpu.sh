#!/bin/sh
# Runs what is to be proved on a machine with an NVIDIA GPU: every kernel's test, the recorded steps, whole
# steps of sequences against the CPU, benchmarks, a run of the tool, then the quick tests again under
# compute-sanitizer where that is there. Stands at the root of a bundle (tools/bundle.sh) and needs
# nothing but the driver and libc. Takes at most ten minutes: what does not fit is counted as skipped.
#
#   usage: gpu.sh [FOLDER]    writes FOLDER/gpu-DATE.json (default: results beside this script)
#
# Ends with what passed, failed and was skipped; non-zero when anything failed or nothing ran.
set -u
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tests=${GPU_TESTS:-$here/tests}
results=${1:-$here/results}
LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LD_LIBRARY_PATH
limit=600
began=$(date +%s)
stamp=$(date -u +%Y%m%dT%H%M%SZ)
mkdir -p "$results/log-$stamp" || exit 2
json=$results/gpu-$stamp.json
passed='' failed='' skipped='' entries=''

left() {
    echo $((limit - ($(date +%s) - began)))
}

# A text as a JSON string.
quote() {
    printf '"%s"' "$(printf '%s' "$1" | tr '\n' ' ' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# query FIELD: of the first GPU, by nvidia-smi; empty without it.
query() {
    nvidia-smi --query-gpu="$1" --format=csv,noheader -i 0 2> /dev/null | head -n 1
}

# run NAME COMMAND...
run() {
    name=$1
    shift
    log=$results/log-$stamp/$name.log
    most=$(left)
    [ "$most" -lt 180 ] || most=180
    start=$(date +%s)
    if [ "$most" -le 5 ]; then
        status=77
        echo 'skipped: out of time' > "$log"
    else
        timeout "$most" "$@" > "$log" 2>&1
        status=$?
    fi
    case $status in
    0) passed="$passed $name" result=passed ;;
    77) skipped="$skipped $name" result=skipped ;;
    *) failed="$failed $name" result=failed ;;
    esac
    echo "$result $name"
    entries="$entries${entries:+,}
    {\"name\": $(quote "$name"), \"result\": \"$result\", \"status\": $status, \"seconds\": $(($(date +%s) - start))}"
}

for test in "$tests"/gpu_*; do
    [ -x "$test" ] && run "$(basename "$test")" "$test"
done
headrace=${GPU_TOOL:-$here/bin/headrace}
if [ -x "$headrace" ] && [ -n "$(query name)" ]; then
    # shellcheck disable=SC2046 # names are split on purpose
    run bench "$headrace" bench $("$headrace" bench list | sed -n 's/^ *\(device-[0-9a-z-]*\).*/\1/p' | grep -v -e '-1m$') \
        --json "$results/bench-$stamp.json"
    run decode "$headrace" run --tokens-context 2048 --keys 4 --device cuda
    run decode-summaries "$headrace" run --tokens-context 2048 --keys 4 --recipe headrace:sketch=0 --device cuda
    # The model there: all keys of a text must be found, and a saved session goes on.
    # shellcheck disable=SC2016
    run decode-full sh -c '"$1" run --tokens-context 2048 --keys 8 --recipe full --device cuda | tee /dev/stderr | grep -q "^8 of 8 answered"' sh "$headrace"
    session=$results/session-$stamp
    run session-save "$headrace" run --tokens-context 1024 --keys 4 --device cuda --save "$session"
    run session-open "$headrace" run --open "$session" --tokens 4 --device cuda
    rm -rf "$session"
else
    skipped="$skipped bench decode decode-summaries decode-full session-save session-open"
fi
sanitizer=$(command -v compute-sanitizer || true)
for name in append pack score select resolve gather predict sketch rows linear model device_tier step_graph; do
    if [ -n "$sanitizer" ] && [ -x "$tests/gpu_$name" ]; then
        for tool in memcheck racecheck initcheck synccheck; do
            run "$tool-$name" "$sanitizer" --tool "$tool" --error-exitcode 1 "$tests/gpu_$name"
        done
    else
        skipped="$skipped sanitizer-$name"
    fi
done

commit=unknown
[ ! -r "$here/COMMIT" ] || commit=$(cat "$here/COMMIT")
cat > "$json" << JSON
{
  "commit": $(quote "$commit"),
  "date": "$stamp",
  "device": $(quote "$(query name)"),
  "driver": $(quote "$(query driver_version)"),
  "clock_sm": $(quote "$(query clocks.sm)"),
  "clock_memory": $(quote "$(query clocks.mem)"),
  "memory": $(quote "$(query memory.total)"),
  "seconds": $(($(date +%s) - began)),
  "runs": [$entries
  ]
}
JSON
echo "passed: $(echo "$passed" | wc -w)"
echo "skipped: $(echo "$skipped" | wc -w)$skipped"
echo "failed: $(echo "$failed" | wc -w)$failed"
echo "written: $json"
[ -z "$failed" ] || exit 1
[ -n "$passed" ] || { echo 'nothing ran' >&2; exit 77; }
