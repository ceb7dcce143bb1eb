#!/bin/sh
# The benchmarks' table and JSON; speed itself is no test.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

run bench list; expect 0
for name in attention-bf16 summary-score file-read-64k decode-131072 run-memory engine-prefill-7900; do
    has "$out" "$name"
done
fails 2 "headrace bench: unknown benchmark 'atention-bf16'; the nearest is 'attention-bf16'" bench atention-bf16
run bench summary-score engine-decode-512 --quick --json b.json --html b.html; expect 0
has b.html "<code>summary-score</code>"
number '$1 > 0' b.json machine.memory_read_gbps
run bench compare b.json b.json; expect 0
run bench report b.json; expect 0
has "$out" "summary-score"
number '$1 == 2' b.json benchmarks#
for key in name value limit ratio goal unit; do
    check "no $key" "$JSON_GET" b.json "benchmarks.0.$key"
done
number '$1 > 0 && $2 > 0 && $3 > 0 && $4 == 0.95' b.json benchmarks.0.value benchmarks.0.limit benchmarks.0.ratio benchmarks.0.goal
check "not skipped" test "$(json b.json benchmarks.1.skipped)" = "needs --model FILE"
has "$out" "needs --model FILE"

# Peers that are not installed.
HEADRACE_CACHE=$work/none
export HEADRACE_CACHE
run bench sdpa-decode-f32 --quick; expect 0
has "$out" "skipped: PyTorch is not installed; 'sh "
unset HEADRACE_CACHE

# Steps over a trace: tiled rows, the output within 2 %.
run bench decode-trace-8192 --quick; expect 0
has "$out" "skipped: needs --trace DIR; 'headrace trace capture --model MODEL --file TEXT --layers 14 --out traces' makes one"
run trace capture --layers 3 --tokens 2048 --out traces; expect 0
run bench decode-trace-8192 --quick --trace traces/tiny_l3 --json t.json; expect 0
number '$1 > 0 && $2 > 0 && $2 <= 0.02 && $3 > 3 && $4 > 0 && $4 < 1' t.json benchmarks.0.ratio benchmarks.0.details.true_error \
    benchmarks.0.details.copies benchmarks.0.details.copies_mass
run bench decode-trace-8192 --quick --trace traces; expect 1
has "$err" "headrace: cannot read 'traces/meta.json': No such file or directory"
finish
