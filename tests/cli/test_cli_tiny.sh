#!/bin/sh
# The embedded model end to end: 48 keys at 4,096 tokens, from every tier and through every way of reading the file.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

answered() { # answered CONDITION ARGUMENT...: how many of 48
    condition=$1
    shift
    run run --tokens-context 4096 --seed 3 --json j.json "$@"; expect 0
    number "$condition" j.json recall.answered
}

answered '$1 == 48' --recipe full
answered '$1 < 5' --recipe window
answered '$1 == 48' --recipe headrace --moved 2%
has "$out" "48 of 48 answered"

# everything in the file: the caches above it are too small to hold the rows
tiers="--device-bytes 4MiB --host-bytes 64KiB --file-dir $work --file-bytes 64MiB"
ways="auto threads"
"$HEADRACE" info --file-dir "$work" | grep -q 'io mode  *uring' && ways="$ways uring-plain"
for io in $ways; do
    # shellcheck disable=SC2086
    answered '$1 == 48' --recipe headrace --moved 2% $tiers --io $io
    number '$1 <= $2 && $3 <= $4 && $5 <= $6' j.json tiers.device.bytes_peak tiers.device.bytes_cap \
        tiers.host.bytes_peak tiers.host.bytes_cap tiers.file.bytes_peak tiers.file.bytes_cap
    number '$1 > 0 && $2 > 0 && $3 <= 0.0205' j.json step_mean.bytes_from_file step_mean.ios step_mean.moved_fraction
    number '$1 > 0' j.json cache.file_bytes
done
# shellcheck disable=SC2086
answered '$1 == 48' --recipe full $tiers
check "the folder is not empty again" test -z "$(find . -type f ! -name '*.json' ! -name out ! -name err ! -name want)"

# beside dense attention
run run --tokens-context 4096 --keys 16 --recipe full --check-dense --dtype f32 --json j.json; expect 0
number '$1 == 1 && $2 < 1e-6 && $3 < 1e-4' j.json dense.top1_agreement dense.kl step_mean.true_error
run run --tokens-context 4096 --keys 16 --moved 2% --check-dense --json j.json; expect 0
number '$1 >= 0.9 && $2 >= 0 && $3 > 0' j.json dense.top1_agreement dense.kl step_mean.true_error

# text in, text out
awk 'BEGIN { for (i = 0; i < 300; i++) printf "f%02d ", i % 64; print "k05 v09" }' > text.txt
run run --file text.txt --prompt k05 --tokens 1 --quiet --json j.json; expect 0
check "k05 is not answered by v09" test "$(json j.json text)" = v09
check "standard output" test "$(cat "$out")" = v09
number '$1 == 303' j.json prompt_tokens
run run --file text.txt --tokens-context 100 --tokens 3 --json j.json; expect 0
number '$1 == 100 && $2 == 3' j.json prompt_tokens generated_tokens
printf 'f01 f02 k07 v11 f03 k07' | "$HEADRACE" run --file - --tokens 1 --quiet > "$out" 2> "$err"
command_line="headrace run --file -"
check "standard input is not read" test "$(cat "$out")" = v11
run run --prompt "f01 f02" --temperature 1 --seed 5 --tokens 12 --json j.json; expect 0
run run --prompt "f01 f02" --temperature 1 --seed 5 --tokens 12 --json k.json; expect 0
check "the same seed gives another text" test "$(json j.json text)" = "$(json k.json text)"

# a recipe that drafts writes what dense attention writes
run run --file text.txt --prompt "k05 f01 k05" --tokens 30 --recipe full --dtype f32 --json j.json; expect 0
run run --file text.txt --prompt "k05 f01 k05" --tokens 30 --recipe triforce --dtype f32 --json k.json; expect 0
check "drafting changed the text" test "$(json j.json text)" = "$(json k.json text)"
number '$1 == 30 && $2 > 0 && $3 >= $4' k.json generated_tokens draft.rounds draft.drafted draft.accepted
run run --file text.txt --tokens 20 --recipe triforce --temperature 1 --json k.json; expect 0
number '$1 == 20' k.json generated_tokens
run run --file text.txt --tokens 20 --recipe triforce --check-dense --dtype f32 --json k.json; expect 0
number '$1 == 1 && $2 < 1e-6' k.json dense.top1_agreement dense.kl
finish
