#!/bin/sh
# 48 keys at 16,384 tokens, answered from the file tier with 2% moved.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

run run --tokens-context 16384 --seed 5 --recipe full --json j.json; expect 0
number '$1 == 48' j.json recall.answered
run run --tokens-context 16384 --seed 5 --recipe headrace --moved 2% --json j.json \
    --device-bytes 6MiB --host-bytes 64KiB --file-dir "$work" --file-bytes 64MiB
expect 0
number '$1 == 48' j.json recall.answered
number '$1 > 0 && $2 <= 0.0205' j.json step_mean.bytes_from_file step_mean.moved_fraction
number '$1 <= $2 && $3 <= $4 && $5 <= $6' j.json tiers.device.bytes_peak tiers.device.bytes_cap \
    tiers.host.bytes_peak tiers.host.bytes_cap tiers.file.bytes_peak tiers.file.bytes_cap
run run --tokens-context 16384 --seed 5 --recipe window --json j.json; expect 0
number '$1 < 5' j.json recall.answered
finish
