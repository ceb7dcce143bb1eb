#!/bin/sh
# What `headrace plan` prints and writes, and what it refuses.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

run plan --tokens 128K,1M --target 20 --json p.json; expect 0
has "$out" "131,072 tokens, 1 sequence"
has "$out" "1,048,576 tokens, 1 sequence"
has "$out" "bound by"
number '$1 == 2 && $2 == 131072 && $3 == 1048576' p.json plans# plans.0.tokens plans.1.tokens
number '$1 > $2 && $2 > 0' p.json plans.0.tokens_per_second plans.1.tokens_per_second
number '$1 > 0 && $2 > $1' p.json plans.0.step_seconds plans.1.step_seconds
number '$1 > 0' p.json plans.0.least.device_bytes
check "not given" test "$(json p.json measured)" = false

# What is named as the least is enough.
run plan --tokens 1M --target 20 --json a.json; expect 0
rate=$(json a.json plans.0.least.pcie_gbps)
run plan --tokens 1M --pcie-gbps "$rate" --json b.json; expect 0
number '$1 > 19.99 && $1 < 20.2' b.json plans.0.tokens_per_second

# Sequences share what a layer costs, so many are faster together than one after another.
run plan --tokens 8K --sequences 1 --json a.json; expect 0
run plan --tokens 8K --sequences 64 --json b.json; expect 0
one=$(json a.json plans.0.tokens_per_second) many=$(json b.json plans.0.tokens_per_second)
check "64 sequences: $many, one: $one" awk "BEGIN { exit !($many > $one) }"

run plan --tokens 128K --gpu-bytes 100MB; expect 0
has "$out" "of device memory"

fails 2 "headrace plan: --model-geometry '32x8' is not LAYERSxKV_HEADSxHEAD_DIM, such as 32x8x128" plan --model-geometry 32x8
fails 2 "headrace plan: --model-geometry '32x8x100' is not LAYERSxKV_HEADSxHEAD_DIM, such as 32x8x128" plan --model-geometry 32x8x100
fails 2 "headrace plan: --tokens '1Q' is not a number of tokens, such as 131072 or 128K" plan --tokens 128K,1Q
fails 2 "headrace plan: --tokens '' is not a number of tokens, such as 131072 or 128K" plan --tokens 128K,
fails 2 "headrace plan: --file-dir is of use with --measured only" plan --file-dir .
finish
