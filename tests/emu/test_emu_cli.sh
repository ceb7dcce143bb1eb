#!/bin/sh
# headrace run --device cuda as a user runs it, with the emulator in the place of a GPU (emu_headrace).
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/../cli/lib.sh"
cd "$work" || exit 1
made="run --model tiny --tokens-context 96 --keys 4"

# the answers are the CPU's, and the report knows what lies where
for recipe in full headrace:window=64; do
    # shellcheck disable=SC2086
    run $made --recipe $recipe --json cpu.json; expect 0
    # shellcheck disable=SC2086
    run $made --recipe $recipe --device cuda --json gpu.json; expect 0
    check "$recipe: another text" test "$(json gpu.json text)" = "$(json cpu.json text)"
    number '$1 == $2' gpu.json recall.answered recall.keys
    has "$out" "device     emulator: weights 1.48 MiB in bfloat16, scratch"
    number '$1 == 1549824 && $2 > 0' gpu.json model.device.weight_bytes model.device.scratch_bytes
    check "the products" test "$(json gpu.json model.device.products)" = own
    number '$1 > 0' gpu.json decode.graph_tokens # also of layers with windows
done

# exact rows lie in the GPU's memory as far as device_bytes goes: all, some, none; the answers are the CPU's
# shellcheck disable=SC2086
run $made --recipe full --json cpu.json; expect 0
for bytes in 80KiB 1KiB; do
    # shellcheck disable=SC2086
    run $made --recipe full --device cuda --device-bytes $bytes --json gpu.json; expect 0
    check "full, $bytes: another text" test "$(json gpu.json text)" = "$(json cpu.json text)"
    has "$out" "gpu        steps of 0 of 4 layers by the recipe there; room for"
    if test $bytes = 80KiB; then
        number '$1 == 3 * 16384' gpu.json cache.device_row_bytes # of eight pages
    else
        number '$1 == 0' gpu.json cache.device_row_bytes
    fi
    number '$1 == 0' gpu.json decode.graph_tokens
    number '$1 <= $2' gpu.json tiers.device.bytes_peak tiers.device.bytes_cap
done

# recipes without steps there: the model runs there, the steps here
for recipe in quest:dense=1,window=32 retroinfer:window=32 window:window=32 shadowkv; do
    # shellcheck disable=SC2086
    run $made --recipe $recipe --json cpu.json; expect 0
    # shellcheck disable=SC2086
    run $made --recipe $recipe --device cuda --device-bytes 1MiB --json gpu.json; expect 0
    check "$recipe: another text" test "$(json gpu.json text)" = "$(json cpu.json text)"
    number '$1 == 0' gpu.json cache.layers_on_gpu
done
# shellcheck disable=SC2086
run $made --dtype f32 --device cuda --json gpu.json; expect 0
has "$out" "gpu        steps of 0 of "
# shellcheck disable=SC2086
run $made --recipe headrace:window=64 --device cuda --check-dense --deadline-ms 500 --json gpu.json; expect 0
number '$1 > 0 && $2 > 0' gpu.json cache.layers_on_gpu dense.tokens
# shellcheck disable=SC2086
run $made --recipe headrace:window=64 --device cuda --strict-exact --json gpu.json; expect 0

# a session goes on there and here
run run --prompt "k05 v09 f01 k07 v22 f03 f05 f07 k05" --tokens 2 --recipe full --device cuda --save s --json a.json; expect 0
run run --open s --prompt "k07" --tokens 1 --quiet --device cuda --json b.json; expect 0
check "k07 there" test "$(json b.json text)" = v22
run run --open s --prompt "k07" --tokens 1 --quiet --json b.json; expect 0
check "k07 here" test "$(json b.json text)" = v22
run run --open s --fork 2 --tokens 2 --quiet --device cuda; expect 0
check "two continuations" test "$(grep -c '^--- ' "$out")" = 2

# evaluations run there, too
run eval model --model tiny --tokens-context 60 --tokens-scored 2 --recipes full,headrace --device cuda --quiet --json e.json
expect 0

# what is wrong is said in one line
EMU_MEMORY=1048576
export EMU_MEMORY
# shellcheck disable=SC2086
run $made --device cuda; expect 1
check "one line" test "$(wc -l < "$err")" = 1
check "what is needed and free" grep -q -E "^headrace: model: device emu:0, emulator: [0-9]+ bytes are wanted \(the model's weights in bfloat16 and its scratch\), 1048576 of 1048576 are free$" "$err"
unset EMU_MEMORY

# a GPU that cannot be used: why, in one line
for fault in "no-driver=no driver is installed" "old-driver=the driver is too old: it is for CUDA 11.4, this build needs 13.0" \
    "no-code=this build has no code for its architecture"; do
    EMU_FAULT=${fault%%=*}
    export EMU_FAULT
    # shellcheck disable=SC2086
    run $made --device cuda; expect 1
    check "$EMU_FAULT: one line" test "$(wc -l < "$err")" = 1
    has "$err" "${fault#*=}"
done
# without pinned memory it works; the model and the cache say so once each
EMU_FAULT=no-pinning
# shellcheck disable=SC2086
run $made --recipe headrace:window=64 --device cuda --json p.json; expect 0
check "no-pinning: said once each" test "$(grep -c 'pinning .* was refused' "$err")" = 2
check "no-pinning: the same text" test "$(json p.json text)" = "$(json gpu.json text)"
unset EMU_FAULT

# a GPU that is lost on the way: what was read and written is saved
rm -rf s
EMU_LOSS=60
export EMU_LOSS
run run --prompt "k05 v09 f01 k07 v22 f03 f05 f07 k05" --tokens 40 --recipe full --device cuda --save s
unset EMU_LOSS
expect 1
has "$err" "is lost"
check "more than the log's line and the error" test "$(grep -c 'is lost' "$err")" -le 2
run session info s --json i.json; expect 0
number '$1 > 8 && $1 < 48' i.json session.tokens
run session verify s; expect 0
run run --open s --prompt "k07" --tokens 1 --quiet --json b.json; expect 0
finish
