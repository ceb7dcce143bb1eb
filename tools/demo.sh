#!/bin/sh
# The main job, from nothing: a language model reads a text of about 7,500 tokens and answers,
# while 32 MiB of its 180 MiB of KV cache are in the fast tier, 64 MiB in host memory, and all of
# it in a file.
#
#   usage: demo.sh [OPTION OF headrace run...]
#
# Installs what is missing, builds, fetches the model into the cache folder. What is already there
# is not made again.
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"
cd "$root"

sh tools/deps.sh build
configure_and_build release -DHEADRACE_TESTS=OFF -- headrace_cli
headrace=$root/build/release/bin/headrace

tiers=$cache/demo-tiers
mkdir -p "$tiers"
job="--tokens-context 7500 --recipe headrace --moved 1% --device-bytes 32MiB --host-bytes 64MiB"
job="$job --file-bytes 512MiB --seed 1 --check-dense"

# shellcheck disable=SC2086 # the job is a list of words
if model=$(sh tools/fetch_model.sh); then
    text=$cache/demo.txt
    [ -s "$text" ] || sh tools/make_text.sh "$text"
    say "the text is $text"
    exec "$headrace" run --model "$model" --file "$text" --chat --tokens 96 \
        --prompt 'What happens in this text, and to whom? Answer in a few sentences.' \
        $job --file-dir "$tiers" "$@"
else
    say "running the same job on the embedded model"
    # shellcheck disable=SC2086
    exec "$headrace" run --model tiny --tokens 48 $job --file-dir "$tiers" "$@"
fi
