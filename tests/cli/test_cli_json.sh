#!/bin/sh
# JSON that parses, stands alone on standard output with --json -, and appears whole.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

run info --json -; expect 0
check "info --json - is not JSON" "$JSON_GET" "$out"
run info --file-dir "$work"; expect 0
check "info says nothing" test -s "$out"
run info --json info.json; expect 0
check "info.json is not JSON" "$JSON_GET" info.json
check "info wrote no text" test -s "$out"

tiny="run --tokens-context 2048 --keys 4 --recipe full"
# shellcheck disable=SC2086
run $tiny --json -; expect 0
check "standard output is not one JSON value" "$JSON_GET" "$out"
has "$err" "4 of 4 answered"
cp "$out" a.json
number '$1 == 4 && $2 == 4' a.json recall.keys recall.answered
number '$1 == 2048 && $2 == 7' a.json prompt_tokens steps#
number '$1 == 7 && $2 > 0' a.json decode.tokens decode.tokens_per_second
number '$1 <= $2 && $2 <= $3' a.json tiers.device.bytes_held tiers.device.bytes_peak tiers.device.bytes_cap
check "ended" test "$(json a.json ended)" = questions

# a deadline that nothing misses
run run --tokens-context 4096 --keys 4 --moved 2% --host-bytes 1MiB --file-dir "$work" --file-bytes 64MiB --file-wipe \
    --deadline-ms 60000 --strict-exact --json d.json
expect 0
has "$out" "deadline   60000 ms per token: 0 of"
number '$1 == 60000 && $2 == 0 && $3 == 0 && $4 == 0' d.json deadline_ms deadline.steps_over step_mean.blocks_lost step_mean.late_error

# a file beside the text; the same seed gives the same text
# shellcheck disable=SC2086
run $tiny --json b.json; expect 0
has "$out" "4 of 4 answered"
check "two runs differ" test "$(json a.json text)" = "$(json b.json text)"
check "a temporary file was left" test "$(find . -name 'b.json*' | wc -l)" = 1
echo old > c.json
# shellcheck disable=SC2086
run $tiny --quiet --json c.json; expect 0
check "c.json was not replaced" "$JSON_GET" c.json recall
check "--quiet is not quiet" test ! -s "$err"

# a link is followed, not replaced (/dev/stderr is one); a pipe is written as it is
echo old > target.json
ln -s target.json link.json
# shellcheck disable=SC2086
run $tiny --quiet --json link.json; expect 0
check "the link is gone" test -L link.json
check "the link's target was not written" "$JSON_GET" target.json recall
mkfifo pipe
"$JSON_GET" pipe recall.answered > piped &
# shellcheck disable=SC2086
run $tiny --quiet --json pipe; expect 0
wait $!
check "the pipe got no JSON" test "$(cat piped)" = 4
check "the pipe was replaced" test -p pipe

# an end by signal keeps what was done
"$HEADRACE" run --tokens-context 65536 --json d.json > "$out" 2> "$err" &
pid=$!
command_line="headrace run, interrupted"
sleep 1
kill -INT $pid 2> /dev/null
code=0
wait $pid || code=$?
expect 130
check "ended" test "$(json d.json ended)" = interrupted
has "$out" "interrupted"
finish
