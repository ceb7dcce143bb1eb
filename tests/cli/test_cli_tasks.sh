#!/bin/sh
# eval tasks on the embedded model: figures that must hold, files, and what can be wrong on the command line.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

run eval tasks --list; expect 0
for task in passkey niah_single_1 niah_multikey_3 niah_multivalue niah_multiquery vt cwe fwe kv_retrieval multiturn_niah mqar; do
    has "$out" "$task "
done
check "help on standard error" test ! -s "$err"

# -- what recipes find
run eval tasks --tokens-context 4096 --samples 2 --seed 3 --recipes full,headrace:reuse=0,window --moved 1%,2% --dtype f32 \
    --json t.json --csv t.csv
expect 0
number '$1 == 6' t.json results#
for i in 0 1 2 3 4 5; do
    for key in task recipe moved answers score score_dense equal worse better kl answer_rows_refined device_fraction \
        selected_fraction bytes_moved_per_token step_mean.steps; do
        check "no $key" "$JSON_GET" t.json "results.$i.$key"
    done
done
number '$1 == 96 && $2 == 1 && $3 == 1 && $4 == 1' t.json results.0.answers results.0.score results.0.score_dense results.0.equal
number '$1 < 1e-6 && $2 == 1 && $3 == 0' t.json results.0.kl results.0.answer_rows_refined results.0.worse
check "order" test "$(json t.json results.2.recipe) $(json t.json results.2.moved) $(json t.json results.3.moved)" = \
    "headrace:reuse=0 1% 2%"
number '$1 == 1 && $2 == 1 && $3 <= 0.021 && $4 > 0' t.json results.3.score results.3.equal results.3.selected_fraction \
    results.3.bytes_moved_per_token
# Four layers, of which two retrieve: the local ones have no heads to tell of.
number '$1 == 4 && $2 == 0 && $3 == 1 && $4 == 0 && $5 == 1' t.json results.3.answer_rows_refined_by_head# \
    results.3.answer_rows_refined_by_head.0# results.3.answer_rows_refined_by_head.1# \
    results.3.answer_rows_refined_by_head.2# results.3.answer_rows_refined_by_head.3#
number '$1 > 0.4' t.json results.3.answer_rows_refined
number '$1 < 0.1 && $2 > 80 && $3 == 0 && $4 == 0 && $5 > 1' t.json results.4.score results.4.worse results.4.better \
    results.4.answer_rows_refined results.4.kl
number '$1 == 1 && $2 == 0 && $3 == 1' t.json able.3.tasks able.3.tasks_lower able.4.tasks_lower
number '$1 == 2 && $2 == 48 && $3 == 1 && $4 == 6' t.json samples# samples.0.questions# samples.0.questions.0.references# \
    samples.0.questions.0.answers#
check "the answer of full" test "$(json t.json samples.0.questions.0.answers.0.text)" = "$(json t.json samples.0.questions.0.references.0)"
check "seven lines of CSV" test "$(wc -l < t.csv)" = 7
has t.csv "task,recipe,moved,answers,score,score_dense,equal,worse,better,kl,"
has t.csv 'mqar,"headrace:reuse=0",2%,96,1,1,1,0,0,'
has "$out" "lower on mqar"

# -- the same seed, another one, passes, the file tier
run eval tasks --tokens-context 512 --recipes headrace,window --json one.json; expect 0
run eval tasks --tokens-context 512 --recipes headrace,window --memory-bytes 1MiB --json two.json; expect 0
check "passes change the figures" test "$(json one.json results.1.kl) $(json one.json samples.0.questions.7.answers.1.text)" = \
    "$(json two.json results.1.kl) $(json two.json samples.0.questions.7.answers.1.text)"
run eval tasks --tokens-context 512 --recipes headrace --seed 1 --json other.json; expect 0
check "seeds make the same text" test "$(json one.json samples.0.questions.0.question) $(json one.json samples.0.questions.1.question)" != \
    "$(json other.json samples.0.questions.0.question) $(json other.json samples.0.questions.1.question)"
run eval tasks --tokens-context 1024 --host-bytes 256KiB --file-dir . --file-bytes 64MiB --json - --quiet; expect 0
number '$1 >= 0.95 && $2 == 48' "$out" results.0.score results.0.answers
has "$err" "mqar"
run eval tasks --tokens-context 8 --csv -; expect 0 # room for one key
has "$out" 'mqar,"headrace",2%,1,'

# -- what can be wrong
fails 2 "headrace eval tasks: --tasks 'passky': there is no such task; did you mean passkey?" eval tasks --tasks passky
run eval tasks --tasks mqar,xyzzy; expect 2
has "$err" "--tasks 'xyzzy': there is no such task; there are: all passkey niah_single_1"
fails 1 "headrace: task 'vt' is a text in words, of which the embedded model knows none; it can do mqar" eval tasks --tasks mqar,vt
fails 2 "headrace eval tasks: only one of --json and --csv can be '-'" eval tasks --json - --csv -
fails 2 "headrace eval tasks: --question 'both' is not one of: decode prefill" eval tasks --question both
fails 2 "headrace eval tasks: --samples '0' is not a whole number from 1 to 1048576" eval tasks --samples 0
fails 1 "headrace: --tokens-context 70000 is more than the 65536 the model was trained for; --allow-longer goes on regardless" \
    eval tasks --tokens-context 70000
run eval tasks --recipes qest; expect 2
has "$err" "quest"
run eval tasks --json none/t.json; expect 1
has "$err" "none/t.json"
run eval tasks --tokens-context 4096 --device-bytes 1KiB --json small.json; expect 1
has "$err" "headrace: cache: "
check "a file of a run that failed" test ! -e small.json
finish
