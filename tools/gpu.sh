#!/bin/sh
# Runs what is to be proved on a machine with an NVIDIA GPU: every kernel's test, the recorded steps, whole
# steps of sequences against the CPU, benchmarks, a run of the tool, then the quick tests again under
# compute-sanitizer where that is there, then the benchmarks of 1 Mi tokens. Stands at the root of a bundle
# (tools/bundle.sh) and needs nothing but the driver and libc. Takes at most ten minutes: what does not fit is
# counted as skipped.
#
#   usage: gpu.sh [FOLDER]    writes FOLDER/gpu-DATE.json (default: results beside this script)
#
# Ends with what passed, failed and was skipped; 1 when anything failed, 77 when nothing could run.
# GPU_SECONDS: another limit than 600. GPU_TESTS, GPU_TOOL: another folder of tests, another tool.
set -u
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tests=${GPU_TESTS:-$here/tests}
headrace=${GPU_TOOL:-$here/bin/headrace}
results=${1:-$here/results}
HEADRACE_PEERS=${HEADRACE_PEERS:-$here/peers}
HEADRACE_PEER_LIBRARY_PATH=${LD_LIBRARY_PATH:-} # our libraries are not for Python
LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LD_LIBRARY_PATH HEADRACE_PEERS HEADRACE_PEER_LIBRARY_PATH
limit=${GPU_SECONDS:-600}
most_each=180 # of one run: what takes longer hangs
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
    printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# query FIELD: of the first GPU, by nvidia-smi; empty without it.
query() {
    nvidia-smi --query-gpu="$1" --format=csv,noheader -i 0 2> /dev/null | head -n 1
}

# entry NAME RESULT STATUS SECONDS REASON
entry() {
    case $2 in
    passed) passed="$passed $1" ;;
    skipped) skipped="$skipped $1" ;;
    *) failed="$failed $1" ;;
    esac
    echo "$2 $1${5:+: $5}"
    entries="$entries${entries:+,}
    {\"name\": $(quote "$1"), \"result\": \"$2\", \"status\": $3, \"seconds\": $4, \"reason\": $(quote "$5")}"
}

# run NAME COMMAND...: 77 means skipped, with the reason in its last line.
run() {
    name=$1
    shift
    log=$results/log-$stamp/$name.log
    most=$(left)
    if [ "$most" -le 5 ]; then
        entry "$name" skipped 77 0 'no time is left'
        return
    fi
    short=$most
    [ "$most" -lt "$most_each" ] || most=$most_each
    start=$(date +%s)
    timeout -k 5 "$most" "$@" > "$log" 2>&1
    status=$?
    seconds=$(($(date +%s) - start))
    case $status in
    0) entry "$name" passed 0 $seconds '' ;;
    77) entry "$name" skipped 77 $seconds "$(tail -n 1 "$log" | sed 's/^skipped: //')" ;;
    124 | 137)
        if [ "$short" -lt "$most_each" ]; then
            entry "$name" skipped $status $seconds "the time was over after $most s"
        else
            entry "$name" failed $status $seconds "gave no end within $most s"
        fi
        ;;
    *) entry "$name" failed $status $seconds "see log-$stamp/$name.log" ;;
    esac
}

# Benchmarks one by one, so that one that hangs takes no other's figures along; skipped ones say why themselves.
bench() {
    for one in $("$headrace" bench list 2> /dev/null | sed -n 's/^ *\(device-[0-9a-z-]*\).*/\1/p' | grep "$@"); do
        # shellcheck disable=SC2016
        run "bench-$one" sh -c '"$1" bench "$2" --file-dir "$3" --json "$3/bench-$4-$2.json" || exit 1
            grep -q "\"skipped\"" "$3/bench-$4-$2.json" || exit 0
            sed -n "s/.*\"skipped\":[[:space:]]*\"\(.*\)\".*/\1/p" "$3/bench-$4-$2.json"; exit 77' \
            sh "$headrace" "$one" "$results" "$stamp"
    done
}

for test in "$tests"/gpu_*; do
    [ -x "$test" ] && run "$(basename "$test")" "$test"
done
if [ -n "$passed" ] && [ -x "$headrace" ]; then
    bench -v -e '-1m$'
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
    for one in bench decode decode-summaries decode-full session-save session-open; do
        entry "$one" skipped 77 0 'no test has found a GPU that it could use'
    done
fi
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null || true)
for one in append pack score select resolve gather predict sketch rows linear model device_tier step_graph; do
    why='compute-sanitizer is not installed'
    [ -z "$sanitizer" ] || why='no test has found a GPU that it could use'
    if [ -z "$sanitizer" ] || [ -z "$passed" ]; then
        entry "sanitizer-$one" skipped 77 0 "$why"
        continue
    fi
    for tool in memcheck racecheck initcheck synccheck; do
        run "$tool-$one" "$sanitizer" --tool "$tool" --error-exitcode 1 "$tests/gpu_$one"
    done
done
[ -z "$passed" ] || [ ! -x "$headrace" ] || bench -e '-1m$'

commit=unknown
[ ! -r "$here/COMMIT" ] || commit=$(cat "$here/COMMIT")
info=$("$headrace" info --json - 2> /dev/null) || info=
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
  "info": ${info:-null},
  "runs": [$entries
  ]
}
JSON
echo "passed: $(echo "$passed" | wc -w)"
echo "skipped: $(echo "$skipped" | wc -w)$skipped"
echo "failed: $(echo "$failed" | wc -w)$failed"
echo "written: $json"
[ -z "$failed" ] || exit 1
if [ -z "$passed" ]; then
    why=$(printf '%s' "$info" | sed -n 's/.*"error":[[:space:]]*"\(device .*\)".*/\1/p' | head -n 1)
    echo "nothing could run${why:+: $why}" >&2
    exit 77
fi
