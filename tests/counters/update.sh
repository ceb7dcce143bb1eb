#!/bin/sh
# Writes tests/counters/record.tsv anew. Commit it with the change that moved the counters.
#
#   usage: update.sh [BUILD_FOLDER]    a release build with gcc [build/release]
set -eu
here=$(dirname -- "$0")
counters=${1:-build/release}/tests/step_counters
[ -x "$counters" ] || { echo "update.sh: no $counters: build first" >&2; exit 1; }
new=$(mktemp)
trap 'rm -f "$new"' EXIT INT TERM
{
    printf '# case\tcounter\tvalue over 24 steps. Written by tests/counters/update.sh; instructions are those of AVX2 kernels, gcc, release.\n'
    OPENBLAS_CORETYPE=Haswell OPENBLAS_NUM_THREADS=1 "$counters"
    sh "$here/instructions.sh" "$counters" -
} > "$new"
cp "$new" "$here/record.tsv"
