#!/bin/sh
# What docs/comparison.md shows: every recipe on recorded attention, through a whole model, and on
# tasks. Tables go to FOLDER/*.txt, with JSON and pages beside them.
#
#   usage: compare.sh MODEL FOLDER [traces|model|tasks]...      all three without the last
#
# MODEL is a GGUF file (tools/fetch_model.sh fetches SmolLM2-135M-Instruct). On two free cores traces
# take about five minutes, the model half an hour, tasks an hour; Ctrl-C ends with what there is.
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"

[ $# -ge 2 ] || die "usage: compare.sh MODEL FOLDER [traces|model|tasks]..."
model=$1
folder=$2
shift 2
[ $# -gt 0 ] || set -- traces model tasks
headrace=${HEADRACE:-$root/build/release/bin/headrace}
[ -x "$headrace" ] || die "$headrace is not there: cmake --preset release && cmake --build --preset release"
mkdir -p "$folder"

ladder=headrace:sketch=3,headrace:sketch=2,headrace:sketch=1,headrace:sketch=0
rivals=exact-topk,retroinfer,shadowkv,quest,arkvale,freekv,tokenselect,louiskv,actqkv,infinigen,lserve
rivals=$rivals,task-kv,clusterkv,squeezed,pqcache,a2ats,magicpig,pariskv,triforce,window
faiss='faiss:IVF256,Flat;nprobe=16'

compare_traces() {
    sh "$root/tools/make_text.sh" "$folder/genesis.txt" 72000
    [ -e "$folder/traces" ] ||
        "$headrace" trace capture --model "$model" --file "$folder/genesis.txt" --layers 2,8,14,20,26 --tokens 8192 \
            --out "$folder/traces"
    "$headrace" eval trace "$folder"/traces/* --moved 0.5%,1%,2% \
        --recipes "$ladder,$rivals,retrievalattention,$faiss,faiss:HNSW32,Flat,instinfer,razorattention,full" \
        --json "$folder/host.json" --csv "$folder/host.csv" --html "$folder/host.html" > "$folder/host.txt"
    "$headrace" eval trace "$folder"/traces/* --moved 0.5%,1%,2% --tier file --file-dir "$folder" \
        --recipes "$ladder,retroinfer,quest,arkvale" --json "$folder/file.json" > "$folder/file.txt"
}

compare_model() {
    sh "$root/tools/make_text.sh" "$folder/genesis.txt" 72000
    sh "$root/tools/make_codes.sh" "$folder/codes.txt" 28000
    "$headrace" eval model --model "$model" --file "$folder/genesis.txt" --tokens-context 7900 --tokens-scored 128 \
        --moved 1% --recipes "$ladder,$rivals,$faiss" --json "$folder/prose.json" > "$folder/prose.txt"
    "$headrace" eval model --model "$model" --file "$folder/codes.txt" --tokens-context 7300 --tokens-scored 200 \
        --moved 1% --recipes "$ladder,exact-topk,retroinfer,shadowkv,quest,tokenselect,pqcache,magicpig" \
        --json "$folder/codes.json" > "$folder/codes_table.txt"
}

compare_tasks() {
    "$headrace" eval tasks --model "$model" --moved 2% --samples 4 --recipes headrace,retroinfer,exact-topk,quest \
        --json "$folder/tasks.json" --csv "$folder/tasks.csv" > "$folder/tasks.txt"
    "$headrace" eval tasks --model tiny --tokens-context 4096 --moved 1%,2% --samples 2 \
        --recipes headrace,retroinfer,exact-topk,quest,window --json "$folder/tiny.json" > "$folder/tiny.txt"
}

for part in "$@"; do
    case $part in
        traces | model | tasks) "compare_$part" ;;
        *) die "'$part' is none of: traces model tasks" ;;
    esac
done
