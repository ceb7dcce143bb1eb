#!/bin/sh
# usage: fails.sh PROGRAM TEST
# The program is a proof that was built with a broken part of the library: succeeds if it notices, by a failure, a crash or no end.
ulimit -c 0
[ -x "$1" ] || { echo "$1 is not there"; exit 1; }
if timeout 60 "$1" "$2" > "$1.log" 2>&1; then
    echo "the broken part was not noticed"
    exit 1
fi
grep -E -m 3 'ERROR|FAILED|ASSERT|assert' "$1.log" || echo "it crashed, or came to no end"
