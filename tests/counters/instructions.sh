#!/bin/sh
# Instructions of a decode step under callgrind, by the AVX2 kernels, beside the record: within BAND percent or the test fails.
#
#   instructions.sh COUNTERS RECORD [BAND]   compares
#   instructions.sh COUNTERS -               prints the lines of the record
#
# The record holds for the release build with gcc; CMake registers the test for nothing else.
set -eu
counters=$1
record=$2
band=${3:-4}
skip() {
    echo "skipped: $*"
    exit 77
}
command -v valgrind > /dev/null || skip "valgrind is not installed"
grep -qw avx2 /proc/cpuinfo || skip "this processor has no AVX2"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

# Instructions of the 24 steps that `counters step` makes. OpenBLAS is told its kernels, since it counts when a segment is grouped.
count() {
    HEADRACE_CPU=avx2 OPENBLAS_CORETYPE=Haswell OPENBLAS_NUM_THREADS=1 valgrind --tool=callgrind \
        --callgrind-out-file="$work/out" --toggle-collect=counted_step "$counters" step "$1" \
        > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$work/log"
}

failed=0
for name in headrace-host headrace-summaries-host quest-host; do
    now=$(count "$name")
    if [ "$record" = - ]; then
        printf '%s\tinstructions\t%s\n' "$name" "$now"
        continue
    fi
    want=$(awk -v name="$name" '$1 == name && $2 == "instructions" { print $3 }' "$record")
    verdict=$(awk -v now="$now" -v want="${want:-0}" -v band="$band" 'BEGIN {
        change = want > 0 ? 100 * (now / want - 1) : 100
        printf "%+.2f%% %s", change, (change <= band && change >= -band ? "fine" : "outside")
    }')
    echo "$name: $now instructions, the record has ${want:-none}: $verdict"
    case $verdict in *outside) failed=1 ;; esac
done
[ "$failed" = 0 ] || {
    echo "outside of $band%. If that is meant: sh tests/counters/update.sh BUILD_FOLDER, and commit record.tsv with the change."
    exit 1
}
