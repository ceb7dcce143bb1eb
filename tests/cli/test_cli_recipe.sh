#!/bin/sh
# `headrace recipe`, recipe files, and tables of head gates: what they show, and what is wrong with them.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

# -- list and show
run recipe list; expect 0
for name in full window exact-topk quest arkvale retroinfer duoattention rlkv headrace; do
    has "$out" "$name "
done
run recipe list --json all.json; expect 0
check "the list as JSON" grep -q '"name":[[:space:]]*"quest"' all.json
run recipe show quest; expect 0
has "$out" "consecutive tokens per block"
has "$out" "4 to 64"
has "$out" "arXiv 2406.10774"
# every parameter of every recipe says what it means and where it is from
run recipe list --json - ; expect 0
check "a parameter without a source" sh -c "! grep -qE '\"(source|meaning)\":[[:space:]]*\"\"' '$out'"
run recipe show duoattention --json -; expect 0
check "needs_gates in JSON" grep -q '"needs_gates":[[:space:]]*true' "$out"
fails 2 "headrace recipe show: recipe 'qest' is not known; the nearest is 'quest'" recipe show qest
fails 2 "headrace recipe show: it takes the name of one recipe, not 0" recipe show
fails 2 "headrace recipe: unknown subject 'lst'; there are: list, show" recipe lst

# -- recipe files
small="--model tiny --tokens-context 512 --keys 2 --quiet"
printf '# pages of 32\nrecipe = quest\npage=32   # tokens\n\n sink = 8\r\n' > good.recipe
# shellcheck disable=SC2086
run run $small --recipe @good.recipe --json good.json; expect 0
check "the file's recipe" grep -q '"quest:page=32,sink=8"' good.json
bad_file() { # bad_file MESSAGE TEXT
    # shellcheck disable=SC2059
    printf -- "$2" > bad.recipe
    fails 1 "headrace: bad.recipe$1" run --recipe @bad.recipe
}
bad_file ": there is no line 'recipe = NAME'" '# nothing\n'
bad_file ": there is no line 'recipe = NAME'" 'page = 32\n'
bad_file ":2: 'page 32' is not key = value" 'recipe = quest\npage 32\n'
bad_file ":2: the value is missing" 'recipe = quest\npage =\n'
bad_file ":1: the key is missing" '= quest\n'
bad_file ":3: 'page' is set already in line 1" 'page = 8\nrecipe = quest\npage = 16\n'
bad_file ":2: recipe quest has no parameter 'pge'; the nearest is 'page'" 'recipe = quest\npge = 16\n'
bad_file ":1: recipe quest: page is 99, allowed is 4 to 64" 'page = 99\nrecipe = quest\n'
bad_file ":1: recipe 'qest' is not known; the nearest is 'quest'" 'recipe = qest\n'
bad_file ":1: 'quest:page=4' has parameters; they have lines of their own" 'recipe = quest:page=4\n'
bad_file ": recipe quest: page is there twice" 'page = 8\nrecipe = quest\nblock = 8\n'
bad_file ": recipe faiss: nprobe is '2;nprobe=3', which is not a number" 'recipe = faiss\nargument = Flat;nprobe=2\nnprobe = 3\n'
bad_file ":2: page is '4,sink=3', which has a comma" 'recipe = quest\npage = 4,sink=3\n'
run run --recipe @none.recipe; expect 1
has "$err" "none.recipe"

# -- budgets that are no shares
run run --tokens-context 2048 --keys 2 --recipe quest:page=4 --moved 16tokens --json tokens.json; expect 0
check "moved in tokens" test "$(json tokens.json moved)" = "16 tokens"
run run --tokens-context 2048 --keys 2 --recipe quest:page=4 --moved 4KiB --json bytes.json; expect 0
check "moved in bytes" test "$(json bytes.json moved)" = "4 KiB"
has "$out" "quest:page=4, 4 KiB of each kv-head moved per step"
number '$1 == 8192' bytes.json step_mean.bytes_selected # two layers of one kv-head
check "16 rows of 64 + 64 bf16 numbers are 4 KiB" test "$(json tokens.json step_mean.bytes_selected)" = "$(json bytes.json step_mean.bytes_selected)"

# -- tables of gates: tiny has 4 layers of 1 kv-head
gates() { # gates CODE TEXT: runs duoattention with this table
    # shellcheck disable=SC2059
    printf -- "$2" > gates.tsv
    # shellcheck disable=SC2086
    run run $small --recipe duoattention --head-gates gates.tsv --json gates.json
    expect "$1"
}
gates 0 '1.0\n-9.5e-05\n0.5\n1.003\n'
gates 0 '# trained\n\n1.000000000000000000e+00\t\r\n0\n\n1\n1'
gates 1 '1\n'; has "$err" "gates.tsv: 1 lines of gates; there are 4 layers"
gates 1 '1\n0\n1\n1\n1\n'; has "$err" "gates.tsv: 5 lines of gates; there are 4 layers"
gates 1 '1\t0\n0\n'; has "$err" "gates.tsv:1: 2 gates in a line; there are 1 kv-heads"
gates 1 '1\nx\n'; has "$err" "gates.tsv:2: head 0: 'x' is not a number"
gates 1 '1\nnan\n'; has "$err" "gates.tsv:2: head 0: 'nan' is not a number"
gates 1 '1\n1.5\n'; has "$err" "gates.tsv:2: head 0: gate 1.5 is not between 0 and 1"
gates 1 '-1\n1\n'; has "$err" "gates.tsv:1: head 0: gate -1 is not between 0 and 1"
gates 1 '1\n,1\n'; has "$err" "gates.tsv:2:"
# shellcheck disable=SC2086
run run $small --recipe duoattention; expect 1
has "$err" "recipe duoattention needs a table that says which heads retrieve"
has "$err" "--head-gates"
# shellcheck disable=SC2086
run run $small --recipe rlkv --head-gates none.tsv; expect 1
has "$err" "none.tsv"

finish
