#!/bin/sh
# One whole run under valgrind: no errors, nothing lost. Skipped where valgrind is not there.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
command -v valgrind > /dev/null || {
    echo "skipped: valgrind is not installed"
    exit 77
}
command_line="headrace run under valgrind"
code=0
# Valgrind hides what it does not know, AVX-512, and takes what io_uring reads for uninitialised.
valgrind --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite -q \
    "$HEADRACE" run --tokens-context 600 --keys 4 --threads 1 --tokens 4 --device-bytes 4MiB \
    --host-bytes 64KiB --file-dir "$work" --file-bytes 16MiB --io threads \
    > "$out" 2> "$err" < /dev/null || code=$?
# shellcheck disable=SC2154 # set in lib.sh
expect 0
has "$out" "of 4 answered"
finish
