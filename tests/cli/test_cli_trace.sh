#!/bin/sh
# Traces: captured from the embedded model and evaluated again; made-up ones against NumPy; bad folders, one line each.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
source=$(cd "$(dirname "$0")/../.." && pwd)
reference=$source/tests/reference
cd "$work" || exit 1

# -- the command lines
run trace; expect 2
has "$err" "usage: headrace trace SUBJECT"
run trace --help; expect 0
run trace capture --help; expect 0
fails 2 "headrace trace: unknown subject 'play'; there is: capture" trace play
fails 2 "headrace trace capture: --layers is missing; say for example 2,14,26" trace capture --out x
fails 2 "headrace trace capture: --out is missing: the folder for the traces" trace capture --layers 1
fails 2 "headrace trace capture: --file is missing: there is nothing to read" trace capture --layers 1 --out x --model m.gguf
fails 1 "headrace: --layers '9': '9' is no layer; the model has 0 to 3" trace capture --layers 9 --out x
fails 1 "headrace: --layers '1,': '' is no layer; the model has 0 to 3" trace capture --layers 1, --out x
fails 1 "headrace: --layers '1,3,1' has layer 1 twice" trace capture --layers 1,3,1 --out x
fails 1 "headrace: layer 2 attends to the newest 16 tokens only; a trace is of a layer that attends to all" \
    trace capture --layers 1,2 --out x
fails 1 "headrace: --tokens 200 have no room for 128 queries that are shown and 64 that are scored, every 2. token; they take 256" \
    trace capture --layers 1 --out x --tokens 200
fails 1 "headrace: 70000 tokens are more than the 65536 the model was trained for; --allow-longer goes on regardless" \
    trace capture --layers 1 --out x --tokens 70000
printf 'f01 f02 f03\n' > short.txt
fails 1 "headrace: 'short.txt' has 3 tokens; --tokens asks for 8192" trace capture --layers 1 --out x --file short.txt
fails 1 "headrace: cannot make the folder 'none/x': No such file or directory" trace capture --layers 1 --out none/x --tokens 1024
check "a capture that failed left a folder" test ! -e x
fails 2 "headrace eval trace: no trace folder is named" eval trace
fails 2 "headrace eval trace: --tier 'disk' is not one of: host file" eval trace x --tier disk
fails 2 "headrace eval trace: only one of --json, --csv and --html can be '-'" eval trace x --json - --html -
fails 2 "headrace eval trace: --json, --csv and --html must differ; 'out' is named twice" eval trace x --json out --csv out
mkdir same && ln -s same link
fails 2 "headrace eval trace: --json, --csv and --html must differ; './out' is named twice" eval trace x --json out --html ./out
fails 2 "headrace eval trace: --json, --csv and --html must differ; 'link/out' is named twice" eval trace x --csv same/out --html link/out
fails 2 "headrace eval trace: --recipes 'quest,full,quest': 'quest' is there twice" eval trace x --recipes quest,full,quest
fails 2 "headrace eval trace: --moved '1%,0.01': '0.01' is there twice" eval trace x --moved 1%,0.01
fails 2 "headrace eval trace: recipe quest: page is there twice" eval trace x --recipes quest:page=8,block=8
fails 1 "headrace: cannot make the folder '/nonexistent/x': No such file or directory" eval trace x --dump /nonexistent/x
fails 2 "headrace eval trace: recipe 'qest' is not known; the nearest is 'quest'" eval trace x --recipes qest
fails 1 "headrace: cannot read 'x/meta.json': No such file or directory" eval trace x
fails 1 "headrace: cannot write 'none/r.html': No such file or directory" eval trace x --html none/r.html

# -- capture, and again through the library
run trace capture --layers 1,3 --tokens 2048 --seed 5 --out traces --quiet; expect 0
check "the folders are not named" test "$(tr '\n' ' ' < "$out")" = "traces/tiny_l1 traces/tiny_l3 "
check "something else was left" test "$(cd traces && echo ./*)" = "./tiny_l1 ./tiny_l3"
number '$1 == 2048 && $2 == 4 && $3 == 1 && $4 == 64 && $5 == 0.125 && $6 == 1e6' traces/tiny_l1/meta.json n_tokens n_q_heads \
    n_kv_heads head_dim scale rope.base
number '$1 == 1920 && $2 == 2046 && $3 == 1792 && $4 == 1919' traces/tiny_l3/meta.json q_positions.0 q_positions.63 \
    q_seen_positions.0 q_seen_positions.127
fails 1 "headrace: 'traces/tiny_l3' is there already" trace capture --layers 3 --tokens 2048 --out traces
# FAISS itself divides by zero, aborts or takes all memory for these.
for factory in PQ0 HNSW0 IVF0,Flat IVF16,PQ0 PQ8x64 IVF999999999,Flat Nope; do
    run eval trace traces/tiny_l1 --recipes "faiss:$factory" --moved 2% --json f.json --quiet; expect 1
    check "faiss:$factory: not one line of error" test "$(wc -l < "$err")" = 1
    check "faiss:$factory: a file was left" test ! -e f.json
done
run eval trace traces/tiny_l1 traces/tiny_l3/ --recipes full,headrace,quest,window --moved 1%,4% --json c.json --csv c.csv --html c.html --quiet
expect 0
check "standard error is not empty" test ! -s "$err"
number '$1 == 24' c.json results#
check "order" test "$(json c.json results.0.trace) $(json c.json results.9.trace) $(json c.json results.18.trace) \
$(json c.json results.18.recipe) $(json c.json results.18.moved)" = "tiny_l1 tiny_l3 all headrace 1%"
for key in error_mean error_p95 device_fraction moved_fraction predicted_error_mean predicted_within_2x mass_recall \
    levels.summary.bytes ns_per_step; do
    check "no $key" "$JSON_GET" c.json "results.19.$key"
done
number '$1 < 1e-5 && $2 == 1 && $3 > 0.99 && $4 == 0' c.json results.16.error_max results.16.mass_recall results.16.moved_fraction \
    results.16.device_fraction
number '$1 < 0.5 * $2 && $2 < $3' c.json results.19.error_mean results.21.error_mean results.22.error_mean
number '$1 > 0 && $1 < 0.11 && $2 > 0.02 && $2 <= 0.0401' c.json results.19.device_fraction results.19.moved_fraction
number '$1 == 0 && $2 == 0 && $3 == 0' c.json results.22.device_fraction results.22.moved_fraction results.22.mass_recall
number '$1 == $2 && $3 == $4 && $1 == 68' c.json results.18.near_rows_min results.22.near_rows_min results.18.near_rows_max \
    results.22.near_rows_max
number '$1 < $2 / 3' c.json results.19.error_mean results.22.error_mean
has "$out" "all traces"
check "full is not marked" sh -c "grep '^full ' '$out' | head -n 1 | grep -q '[*].*[*]'"
check "a recipe within its budget is marked" sh -c "! grep '^headrace .*[*]' '$out'"
check "CSV rows" test "$(wc -l < c.csv)" = 25
check "CSV columns" test "$(awk -F, 'NF != 28' c.csv | wc -l)" = 0
has c.html "</svg>"
has c.html "</html>"
check "the page wants something from elsewhere" sh -c '! grep -E "(src|href)=|@import|<script" c.html'
# the two tiers give the same
run eval trace traces/tiny_l1 --recipes headrace,exact-topk --moved 4% --tier host --json host.json --quiet; expect 0
run eval trace traces/tiny_l1 --recipes headrace,exact-topk --moved 4% --tier file --file-dir . --json file.json --quiet; expect 0
number '$1 == $2' host.json results.1.error_mean results.3.error_mean
check "the tiers differ" test "$(json host.json results.1.error_mean)" = "$(json file.json results.1.error_mean)"
check "no tier" test "$(json file.json tier)" = file
run eval trace traces/tiny_l1 --recipes quest --moved 4% --json - --quiet; expect 0
cp "$out" stdout.json
number '$1 == 2' stdout.json results#
# settings that are the same for all, unless the recipe says otherwise
run eval trace traces/tiny_l1 --recipes quest:window=128,sink=8,headrace:reuse=1 --moved 4% --json used.json --quiet; expect 0
check "settings" test "$(json used.json results.0.recipe_used) $(json used.json results.1.recipe_used)" = \
    "quest:window=128,sink=8,decode_segment=256,dense=0 headrace:reuse=1,sink=4,window=64,decode_segment=256,dense=0"
number '$1 == 136' used.json results.0.near_rows_min
# a recipe with an argument is compared with the same settings, a number is a number however it is written
run eval trace traces/tiny_l1 --recipes 'faiss:Flat,quest:window=1e2' --moved 4% --json used.json --quiet; expect 0
check "settings of faiss" test "$(json used.json results.0.recipe_used) $(json used.json results.1.recipe_used)" = \
    "faiss:Flat;sink=4,window=64,decode_segment=256,dense=0 quest:window=1e2,sink=4,decode_segment=256,dense=0"
number '$1 == 68 && $2 == 104' used.json results.0.near_rows_min results.1.near_rows_min
# as long a recipe as a list may have
long=headrace:segment=$(printf %050d 8192),block=$(printf %050d 32),sketch=$(printf %050d 2),iterations=$(printf %040d 3)
run eval trace traces/tiny_l1 --recipes "$long" --moved 4% --json used.json --quiet; expect 0
check "settings of a long recipe" test "$(json used.json results.0.recipe_used)" = "$long,sink=4,window=64,decode_segment=256,reuse=0,dense=0"
# budgets of each kv-head in rows and bytes: 40 rows of 64 + 64 numbers in bf16 are 10 KiB
run eval trace traces/tiny_l1 --recipes headrace,exact-topk --moved 40tokens,10KiB,4% --json budget.json --quiet; expect 0
check "what was given" test "$(json budget.json results.0.moved) $(json budget.json results.1.moved)" = "40tokens 10KiB"
number '$1 == $2 && $3 == $4 && $1 > 0' budget.json results.0.error_mean results.1.error_mean results.3.moved_fraction results.4.moved_fraction
number '$1 == $2 && $1 > 0.02 && $1 < 0.03 && $3 == 0.04 && $4 <= $1' budget.json results.0.moved_budget results.1.moved_budget \
    results.2.moved_budget results.3.moved_fraction
fails 2 "headrace eval trace: --moved '82': '82' is not a share of more than 0 and at most 100%, such as 1% or 0.01, nor a size with its \
unit, such as 64KiB, nor tokens, such as 82tokens" eval trace x --moved 82
for budget in 0tokens 1.5tokens tokens -1tokens 0KiB 1B 99999999999tokens 9EiB 1e3KiB; do
    run eval trace x --moved $budget; expect 2
    has "$err" "--moved '$budget': '$budget' is not a share of more than 0"
done
# a tolerance that the budget does not reach is told, one that it reaches as well
run eval trace traces/tiny_l1 --recipes headrace,quest --moved 0.1% --tolerance 0.001 --json cap.json --html cap.html --quiet; expect 0
number '$1 > 0.1 && $2 == 0' cap.json results.0.capped_fraction results.1.capped_fraction
has "$out" "capped: kv-heads and steps where the budget was spent before the predicted error was below 0.001"
has cap.html "<th>capped</th>"
run eval trace traces/tiny_l1 --recipes headrace --moved 100% --tolerance 0.5 --json cap.json --quiet; expect 0
number '$1 == 0' cap.json results.0.capped_fraction
# names that clash, in two folders
mkdir other && cp -r traces/tiny_l1 other/
fails 1 "headrace: 'traces/tiny_l1' and 'other/tiny_l1' have the same name; results go by it" eval trace traces/tiny_l1 other/tiny_l1
# dumps
run eval trace traces/tiny_l1 --recipes full,quest:page=8 --moved 1% --dump dumps --quiet; expect 0
check "dumps" test "$(cd dumps/tiny_l1 && echo ./*)" = "./full_1%.npy ./quest:page=8_1%.npy"
check "size of a dump" test "$(wc -c < 'dumps/tiny_l1/full_1%.npy')" = $((128 + 4 * 64 * 64 * 4))
# head gates
printf '1\n0\n1\n0.5\n' > gates.tsv
fails 2 "headrace eval trace: recipe duoattention needs --head-gates FILE" eval trace traces/tiny_l1 --recipes duoattention
run eval trace traces/tiny_l1 traces/tiny_l3 --recipes duoattention,window --moved 1% --head-gates gates.tsv --json g.json --quiet
expect 0
number '$1 == $2 && $3 < 1e-5' g.json results.0.error_mean results.1.error_mean results.2.error_mean
printf '1\n' > few.tsv
fails 1 "headrace: 'few.tsv' has gates of 1 layers; 'traces/tiny_l1' is of layer 1" \
    eval trace traces/tiny_l1 --recipes window --head-gates few.tsv

# -- against NumPy
if [ -z "${HEADRACE_PYTHON:-}" ] || ! "$HEADRACE_PYTHON" -c 'import numpy' 2> /dev/null; then
    echo "no Python with NumPy: traces are not compared with the reference, nor are bad ones made"
    finish
fi
make_trace() {
    "$HEADRACE_PYTHON" "$reference/make_trace.py" "$@" || bad "make_trace.py $*"
}
for layer in 1 3; do
    check "captured rows of layer $layer" "$HEADRACE_PYTHON" "$reference/trace_reference.py" capture "traces/tiny_l$layer" \
        --model "$source/engine/models/tiny.gguf" --seed 5
done
make_trace a --rope --tokens 1407
make_trace b --seed 2 --tokens 1939 --queries 40 --stride 16 --kv-heads 1 --group 3 --dim 64
for tier in host file; do
    run eval trace a b --recipes full,window,exact-topk,quest --moved 2%,5% --tier $tier --file-dir . --json $tier.json \
        --dump $tier --quiet
    expect 0
    check "the $tier tier and NumPy" "$HEADRACE_PYTHON" "$reference/trace_reference.py" eval a b --json $tier.json --dump $tier \
        --moved 2%,5%
done

# -- bad folders
make_trace good
make_trace all --break all
broken() { # broken WHAT MESSAGE
    rm -rf bad
    mv "all/$1" bad
    fails 1 "headrace: $2" eval trace good bad --json bad.json --csv bad.csv --html bad.html --dump bad.dump --quiet
    check "$1 left something" test ! -e bad.json -a ! -e bad.csv -a ! -e bad.html -a ! -e bad.dump
}
broken no-meta "cannot read 'bad/meta.json': No such file or directory"
broken no-k "cannot read 'bad/k.npy': No such file or directory"
broken no-q-seen "cannot read 'bad/q_seen.npy': No such file or directory"
broken empty-v "'bad/v.npy' is not a .npy file: it does not begin with \\x93NUMPY"
broken short-header "'bad/v.npy' is short: it ends within its header"
broken short-k "'bad/k.npy' is short: it has 179326 bytes, its header says 179328"
broken long-k "'bad/k.npy' is too long: it has 179329 bytes, its header says 179328"
broken magic "'bad/k.npy' is not a .npy file: it does not begin with \\x93NUMPY"
broken version "'bad/k.npy' has .npy version 3.0; read are 1.0 and 2.0"
broken long-header "'bad/k.npy' has a header of 1073741824 bytes; at most 65536 are read"
broken absurd-shape "'bad/k.npy' has an absurd shape: (4000000000, 4000000000, 4000000000)"
broken no-dictionary "'bad/k.npy' has a damaged header: it is not a dictionary"
broken unknown-key "'bad/k.npy' has a damaged header: key 'shapo' is not known"
broken twice "'bad/k.npy' has a damaged header: key 'descr' is there twice"
broken structured "'bad/k.npy' has a structured dtype; it must be an array of numbers"
broken order-word "'bad/k.npy' has a damaged header: fortran_order is neither True nor False"
broken double-q "'bad/q.npy' has dtype '<f8'; it must be '<f4'"
broken float-k "'bad/k.npy' has dtype '<f4'; it must be '<f2'"
broken int-v "'bad/v.npy' has dtype '<i2'; read are little-endian floats: <f2, <f4, <f8"
broken big-endian-q "'bad/q.npy' has dtype '>f4'; read are little-endian floats: <f2, <f4, <f8"
broken fortran-k "'bad/k.npy' is in Fortran order; only C order is read"
broken shape-q "'bad/q.npy' has shape (4, 19, 32); by meta.json it must be (4, 20, 32)"
broken shape-v "'bad/v.npy' has shape (2, 1400, 24); by meta.json it must be (2, 1400, 32)"
broken flat-k "'bad/k.npy' has shape (89600,); by meta.json it must be (2, 1400, 32)"
broken nan-k "'bad/k.npy' has a number that is not finite at index (1, 5, 3)"
broken inf-v "'bad/v.npy' has a number that is not finite at index (0, 0, 0)"
broken nan-q "'bad/q.npy' has a number that is not finite at index (2, 1, 7)"
broken inf-q-seen "'bad/q_seen.npy' has a number that is not finite at index (0, 2, 0)"
broken format "'bad/meta.json' has format \"headrace-trace-2\"; read is \"headrace-trace-1\""
broken no-format "'bad/meta.json' has no format"
broken no-scale "'bad/meta.json' has no scale"
broken scale "'bad/meta.json' has scale -1; it must be a number above 0"
broken heads "'bad/meta.json' has n_q_heads 3 and n_kv_heads 2; the first must be 1 to 16 times the second"
broken more-tokens "'bad/k.npy' has shape (2, 1400, 32); by meta.json it must be (2, 1401, 32)"
broken absurd-tokens "'bad/meta.json' has n_tokens 1099511627776; it must be a whole number from 1 to 1073741824"
broken no-tokens "'bad/meta.json' has n_tokens 0; it must be a whole number from 1 to 1073741824"
broken half-token "'bad/meta.json' has n_tokens 10.5; it must be a whole number from 1 to 1073741824"
broken text-tokens "'bad/meta.json' has n_tokens \"many\"; it must be a whole number from 1 to 1073741824"
broken dim "'bad/meta.json' has head_dim 12; it must be a multiple of 8"
broken position "'bad/meta.json' has q_positions[19] = 1400; positions are whole numbers from 0 to 1399"
broken negative "'bad/meta.json' has q_positions[0] = -1; positions are whole numbers from 0 to 1399"
broken falling "'bad/meta.json' has q_positions[1] = 1340 after 1343; positions must increase"
broken equal "'bad/meta.json' has q_seen_positions[1] = 1300 after 1300; positions must increase"
broken no-queries "'bad/meta.json' has an empty q_positions; at least one query must be there"
broken positions-text "'bad/meta.json' has q_positions that is not a list"
broken rope-layout "'bad/meta.json' has rope.layout \"spiral\"; it must be \"half\" or \"interleaved\""
broken rope-base "'bad/meta.json' has rope.base 0.5; it must be a number above 1"
broken rope-list "'bad/meta.json' has a rope that is not an object"
broken twice-rope "'bad/meta.json' has rope twice"
broken not-json "'bad/meta.json' is not JSON: offset 551"
broken after-json "'bad/meta.json' is not JSON: offset 558"
broken json-list "'bad/meta.json' is not a JSON object"
broken zero-byte "'bad/meta.json' is not JSON: byte 0 at offset 9"
broken twice-layer "'bad/meta.json' has layer twice"
check "broken traces that are not tested" test -z "$(ls all)"
rm -rf bad && make_trace bad && rm bad/k.npy && mkfifo bad/k.npy
fails 1 "headrace: 'bad/k.npy' is not a regular file" eval trace bad
rm bad/k.npy && mkdir bad/k.npy
fails 1 "headrace: 'bad/k.npy' is not a regular file" eval trace bad

# -- edges: no query to learn from, few rows, one query, a folder by other names
make_trace plain --seen 0 --queries 1 --stride 1
run eval trace plain --recipes headrace,quest --moved 5% --json p.json --quiet; expect 0
number '$1 == 4 && $2 < 1.5' p.json results.0.head_steps results.0.error_mean
make_trace few --tokens 60 --seen 5 --queries 5 --stride 1
(cd few && "$HEADRACE" eval trace . --recipes headrace,exact-topk --moved 5% --json ../f.json --quiet > /dev/null 2>&1) || bad "few rows"
check "name of ." test "$(json f.json results.0.trace)" = few
number '$1 < 1e-5 && $2 == 0 && $3 == 60 && $4 == 1' f.json results.0.error_max results.0.moved_fraction results.0.near_rows_max \
    results.0.mass_recall
finish
