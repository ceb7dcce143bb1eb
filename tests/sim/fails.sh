#!/bin/sh
# usage: fails.sh PROGRAM TEST [SECONDS]
# The program is a proof that was built with a broken part of the library: succeeds if it notices, by a failure, a crash or no end within so long (60). Completions come
# when the kernel likes, so that one run may not meet the fault; 40 do.
[ -x "$1" ] || { echo "$1 is not there"; exit 1; }
run=1
while HEADRACE_TEST_SEED=$run timeout "${3:-60}" "$1" "$2" > "$1.log" 2>&1; do
    if grep -q SKIPPED "$1.log"; then
        echo "skipped: what it takes is not there"
        exit 77
    fi
    [ $run -lt 40 ] || { echo "the broken part was not noticed"; exit 1; }
    run=$((run + 1))
done
echo "noticed in run $run"
grep -E -m 3 'ERROR|FAILED|ASSERT|assert' "$1.log" || echo "it crashed, or came to no end"
