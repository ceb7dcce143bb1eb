#!/bin/sh
# eval tasks on SmolLM2: texts of the wanted length, answers, several questions on one cache. Skipped without the model.
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
while [ $i -lt 300 ]; do
    echo "On page $i the harbour was quiet in the morning, and the boats lay still. Did nobody come? Gulls walked along the wall."
    i=$((i + 1))
done > book.txt
i=0
for a in b d f g k l m n p r s t; do
    for b in a e i o u; do
        for c in nder stle rrow mpet lm; do
            echo "$a$b$c"
        done
    done
done > words.txt

run eval tasks --model "$model" --tasks niah_single_1,niah_single_2,multiturn_niah --tokens-context 1200 --prose book.txt --words words.txt \
    --recipes full,headrace --json t.json
expect 0
number '$1 == 6 && $2 == 1 && $3 == 5' t.json results# results.0.answers results.4.answers
for i in 0 2 4; do # full attends as dense does
    number '$1 == $2 && $3 == 1 && $4 < 1e-4 && $5 == 1' t.json results.$i.score results.$i.score_dense results.$i.equal \
        results.$i.kl results.$i.answer_rows_refined
done
number '$1 == 1 && $2 < 0.1 && $3 > 0' t.json results.1.score results.1.kl results.1.answer_rows_refined
for i in 0 1 2; do
    number '$1 <= 1200 && $1 > 1100 && $2 > 850' t.json samples.$i.tokens_max samples.$i.tokens_prefilled
done
check "the sources" test "$(json t.json words.from) $(json t.json prose.from) $(json t.json prose.sentences)" = "words.txt book.txt 900"
has "$out" "words: 300 from words.txt; prose: 900 sentences from book.txt"

# the question read with the text: fewer steps of the recipe, the same text
run eval tasks --model "$model" --tasks niah_single_1 --tokens-context 1200 --words words.txt --question prefill --json p.json; expect 0
check "not the same text" test "$(json t.json samples.0.questions.0.question)" = "$(json p.json samples.0.questions.0.question)"
check "the question is not prefilled" test "$(json p.json samples.0.tokens_prefilled)" -gt "$(json t.json samples.0.tokens_prefilled)"
number '$1 <= 16 && $2 == 1' p.json results.0.step_mean.steps results.0.score

# -- what can be wrong
fails 1 "headrace: task 'mqar' is made of the embedded model's own tokens; it needs --model tiny" eval tasks --model "$model" --tasks mqar
fails 1 "headrace: cannot read 'none.txt': No such file or directory" eval tasks --model "$model" --tasks niah_single_2 \
    --words words.txt --prose none.txt
head -n 5 words.txt > few.txt
fails 1 "headrace: 'few.txt' has 5 words of 4 to 10 small letters; at least 64 are needed" \
    eval tasks --model "$model" --tasks cwe --words few.txt
head -n 5 book.txt > short.txt
fails 1 "headrace: 'short.txt' has 15 sentences; at least 64 are needed" eval tasks --model "$model" --tasks niah_single_2 \
    --words words.txt --prose short.txt
run eval tasks --model "$model" --tasks vt --tokens-context 200 --quiet; expect 1
has "$err" "headrace: task 'vt' takes at least "
has "$err" " tokens; --tokens-context is 200"
run eval tasks --model "$model" --tasks vt --tokens-context 9000; expect 1
has "$err" "--tokens-context 9000 is more than the 8192 the model was trained for"
finish
