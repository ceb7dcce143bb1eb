#!/bin/sh
# Everything that can be wrong on a command line or with a file: one exact line each, and the right exit code.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

# -- the command line itself
run; expect 2
has "$err" "usage: headrace COMMAND"
fails 2 "headrace: unknown command 'rum'; the nearest is 'run'" rum
for help in "--help" "run --help" "eval --help" "eval model --help" "eval tasks --help" "eval trace --help" "info --help"; do
    # shellcheck disable=SC2086
    run $help; expect 0
    has "$out" "usage: headrace"
    check "help on standard error" test ! -s "$err"
done
run --version; expect 0
has "$out" "headrace 0."
fails 2 "headrace run: unknown option '--modl'; the nearest is --model" run --modl x
fails 2 "headrace run: unknown option '--mod'; the nearest is --model" run --mod x
fails 2 "headrace run: unknown option '--zzzzzzzz'; --help lists what there is" run --zzzzzzzz
fails 2 "headrace run: --model needs a value" run --model
fails 2 "headrace run: --chat takes no value ('--chat=1')" run --chat=1
fails 2 "headrace run: unexpected argument 'file.txt'" run file.txt
fails 2 "headrace run: --model is empty; it takes FILE" run --model ""
fails 2 "headrace eval: unknown subject 'modl'; there are: model, tasks, trace" eval modl

# -- values
budget="is not a share of more than 0 and at most 100%, such as 1% or 0.01, nor a size with its unit, such as 64KiB, nor tokens, such as 82tokens"
fails 2 "headrace run: --moved '0' $budget" run --moved 0
fails 2 "headrace run: --moved '0%' $budget" run --moved 0%
fails 2 "headrace run: --moved '-1%' $budget" run --moved -1%
fails 2 "headrace run: --moved '101%' $budget" run --moved 101%
fails 2 "headrace run: --moved 'nan' $budget" run --moved nan
fails 2 "headrace run: --moved 'lots' $budget" run --moved lots
fails 2 "headrace run: --device-bytes '24XB' is not a size, such as 8388608, 8MB or 8MiB" run --device-bytes 24XB
fails 2 "headrace run: --host-bytes '-1' is not a size, such as 8388608, 8MB or 8MiB" run --host-bytes -1
fails 2 "headrace run: --deadline-ms: recipe triforce verifies every token exactly, which cannot be cut short" run --recipe triforce --deadline-ms 3
fails 2 "headrace run: --file-bytes '99999999999999999999' is not a size, such as 8388608, 8MB or 8MiB" \
    run --file-bytes 99999999999999999999
fails 2 "headrace run: --tokens '0' is not a whole number from 1 to 16777216" run --tokens 0
fails 2 "headrace run: --keys '65' is not a whole number from 1 to 64" run --keys 65
fails 2 "headrace run: --temperature '-1' is not a number from 0 to 100" run --temperature -1
fails 2 "headrace run: --tolerance '2' is not a share from 0 to 1, such as 0.02 or 2%" run --tolerance 2
fails 2 "headrace run: --io 'fast' is not one of: auto uring uring-plain threads" run --io fast
fails 2 "headrace run: --dtype 'f8' is not one of: f32 f16 bf16" run --dtype f8
fails 2 "headrace eval model: --moved '1%,,2%': '' $budget" eval model --moved 1%,,2%
fails 2 "headrace eval model: --recipes 'quest,' has an empty name" eval model --recipes quest,
run run --recipe qest; expect 2
has "$err" "quest"
run run --recipe quest:pag=3; expect 2
has "$err" "pag"

# -- the device: without CUDA in the build, a driver or a GPU that is said
tiny="run --tokens-context 256 --keys 1 --recipe headrace:sketch=0"
# shellcheck disable=SC2086
fails 1 'headrace: model: device "gpu" is none of cpu, cuda, cuda:NUMBER' $tiny --device gpu
# shellcheck disable=SC2086
run $tiny --device cuda
case $code in
0) ;; # there is one
1) check "no reason given" grep -q -E '^headrace: model: device cuda: (this build has no CUDA|no driver is installed|the driver is too old|no device)' "$err" ;;
*) expect 1 ;;
esac
# shellcheck disable=SC2086
run $tiny --device cpu; expect 0

# -- options that do not fit together
fails 2 "headrace run: --file-dir '$work' needs --file-bytes, the most it may take on disk" run --file-dir "$work"
fails 2 "headrace run: --file-bytes needs --file-dir, the folder of the file" run --file-bytes 1GiB
fails 2 "headrace run: --file-wipe needs --file-dir, the folder of the file" run --file-wipe
fails 2 "headrace run: --file or --prompt is missing: there is nothing to read" run --model m.gguf
fails 2 "headrace run: --chat needs --file or --prompt" run --chat

# -- texts
: > empty.txt
printf 'k01 v0\377' > latin.txt
printf 'k01 v01 word' > unknown.txt
fails 1 "headrace: cannot read 'none.txt': No such file or directory" run --file none.txt
fails 1 "headrace: cannot read '.': Is a directory" run --file .
fails 1 "headrace: 'empty.txt' is empty" run --file empty.txt
fails 1 "headrace: 'latin.txt' is not UTF-8: byte 0xff at offset 6" run --file latin.txt
run run --file unknown.txt; expect 1
has "$err" "unknown.txt"
if [ "$(id -u)" != 0 ]; then
    echo text > secret.txt && chmod 0 secret.txt
    fails 1 "headrace: cannot read 'secret.txt': Permission denied" run --file secret.txt
fi

# -- models
echo "not a model" > bad.gguf
for model in none.gguf . bad.gguf empty.txt; do
    run run --model "$model" --prompt hello; expect 1
    has "$err" "headrace: model: "
    check "more than one line" test "$(wc -l < "$err")" = 1
done

# -- a text longer than the context
awk 'BEGIN { for (i = 0; i < 65600; i++) printf "f%02d%s", i % 64, i % 16 == 15 ? "\n" : " " }' > long.txt
run run --file long.txt; expect 1
has "$err" "--allow-longer"
has "$err" "the prompt has 65600 tokens, the model was trained for 65536"

# -- budgets and folders
run run --device-bytes 4KiB; expect 1
has "$err" "headrace: cache: "
run run --host-bytes 4KiB; expect 1
run run --file-dir none --file-bytes 1GiB; expect 1
has "$err" "none"
run run --file-dir empty.txt --file-bytes 1GiB; expect 1
run run --file-dir . --file-bytes 16EiB; expect 2
run run --file-dir . --file-bytes 8EiB; expect 1
run run --file-dir . --file-bytes 4KiB; expect 1

fails 1 "headrace: --tokens-context 10 has no room for 48 keys; they take at least 224 tokens" run --tokens-context 10

# -- output
fails 1 "headrace: cannot write 'none/x.json': No such file or directory" run --json none/x.json
fails 1 "headrace: cannot write '.': Is a directory" run --json .
if [ -e /dev/full ]; then
    code=0
    command_line="headrace --help > /dev/full"
    "$HEADRACE" --help > /dev/full 2> "$err" || code=$?
    expect 1
    has "$err" "cannot write standard output: No space left on device"
    run run --tokens-context 1024 --keys 2 --quiet --json /dev/full; expect 1
    has "$err" "cannot write '/dev/full': No space left on device"
fi
run run --file none.txt --json x.json; expect 1
check "a JSON file was left by a run that failed" test ! -e x.json
check "something else was left" test -z "$(find . -name 'x.json*')"
finish
