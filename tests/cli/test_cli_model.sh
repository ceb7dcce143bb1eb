#!/bin/sh
# SmolLM2 with 1,500 tokens and its cache in the file tier. Skipped where the model is not in the cache folder.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
model=${HEADRACE_CACHE:-$HOME/.cache/headrace}/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$model" ]; then
    echo "skipped: $model is not there (tools/fetch_model.sh gets it)"
    exit 77
fi
cd "$work" || exit 1
i=0
while [ $i -lt 120 ]; do
    echo "Page $i. The harbour was quiet in the morning and the boats lay still while gulls walked along the wall."
    [ $i = 30 ] && echo "Remember that the secret word of the lighthouse keeper is marmalade."
    i=$((i + 1))
done > book.txt
tiers="--device-bytes 24MiB --host-bytes 8MiB --file-dir $work --file-bytes 256MiB"

# shellcheck disable=SC2086
run run --model "$model" --file book.txt --tokens-context 1500 --chat --tokens 24 --moved 2% $tiers --json j.json \
    --prompt "What is the secret word of the lighthouse keeper?"
expect 0
has "$out" "armalade"
number '$1 <= $2 && $3 <= $4 && $5 <= $6' j.json tiers.device.bytes_peak tiers.device.bytes_cap \
    tiers.host.bytes_peak tiers.host.bytes_cap tiers.file.bytes_peak tiers.file.bytes_cap
number '$1 > 0 && $2 > 1400' j.json step_mean.ios prefill.tokens

run run --model "$model" --file book.txt --tokens-context 1000 --tokens 8 --check-dense --json j.json; expect 0
number '$1 >= 0.5 && $2 < 0.5' j.json dense.top1_agreement dense.kl

run run --model "$model" --prompt "The capital of France is" --tokens 8 --quiet; expect 0
has "$out" "Paris"
yes "one two three four" | head -n 3000 > long.txt
run run --model "$model" --file long.txt; expect 1
has "$err" "--allow-longer"
finish
