#!/bin/sh
# Saved sessions: going on from one, forks, and what the session command says of whole and of damaged ones.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1
awk 'BEGIN { for (i = 0; i < 900; i++) printf "f%02d ", i * i % 64; print "k05 v09 f01 k07 v22 f03 k05" }' > text.txt

# one run, and the same in three
for recipe in headrace quest full triforce retroinfer magicpig; do
    rm -rf s
    run run --file text.txt --tokens 36 --tokens-max 1200 --recipe $recipe --json whole.json; expect 0
    run run --file text.txt --tokens 12 --tokens-max 1200 --recipe $recipe --save s --json a.json; expect 0
    number '$1 == $2 && $3 > 1000' a.json session.saved_tokens session.saved_tokens session.saved_bytes
    run run --open s --save s --tokens 12 --json b.json; expect 0
    run run --open s --tokens 12 --json c.json; expect 0
    check "$recipe: a text in parts is another text" \
        test "$(json whole.json text)" = "$(json a.json text) $(json b.json text) $(json c.json text)"
    check "$recipe is not the recipe" test "$(json c.json recipe)" = $recipe
    number '$1 == 0 && $2 == 930 && $3 == 0' c.json prefill.tokens session.opened_tokens session.saved_tokens
done

# new text is read, and only that
rm -rf s
run run --file text.txt --tokens 1 --save s --save-mode strict; expect 0
run run --open s --prompt "f01 k07" --tokens 1 --quiet --json j.json; expect 0
check "k07 is not answered by v22" test "$(json j.json text)" = v22
number '$1 == 3' j.json prefill.tokens
run run --open s --recipe full --prompt "k07" --tokens 1 --json j.json; expect 0
check "another recipe" test "$(json j.json recipe) $(json j.json text)" = "full v22"
run run --file text.txt --tokens 1 --moved 24tokens --save budget; expect 0
run run --open budget --tokens 2 --json j.json; expect 0
check "the budget is not the saved one" test "$(json j.json moved)" = "24 tokens"

# forks
run run --open s --fork 3 --tokens 5 --temperature 1 --quiet; expect 0
check "three continuations" test "$(grep -c '^--- ' "$out")" = 3
run run --file text.txt --fork 2 --tokens 5 --quiet; expect 0
check "two continuations" test "$(grep -c '^--- ' "$out")" = 2
check "equal seeds differ" test "$(sed -n 2p "$out")" = "$(sed -n 4p "$out")"
fails 2 "headrace run: --fork has no one text to --save" run --file text.txt --fork 2 --save s
fails 2 "headrace run: --check-dense needs the whole text, which --open does not read" run --open s --check-dense

# the session command
run session info s --json j.json; expect 0
number '$1 == 907 && $2 == 1 && $3 == 1' j.json session.tokens session.generation session.version
has "$out" "907 tokens"
run session verify s --json j.json; expect 0
number '$1 == $2 && $3 == 0' j.json bytes_read bytes_read tokens_lost
check "a byte was not read" test "$(json j.json bytes_read)" = "$(wc -c < s/session | tr -d ' ')"
mkdir many
cp -r s many/one
run run --file text.txt --recipe quest --tokens 1 --save many/two; expect 0
ln -s ../s many/link
mkdir many/empty
run session ls many --json j.json; expect 0
check "two are listed" test "$(wc -l < "$out" | tr -d ' ')" = 2
has "$out" quest
check "modes" test "$(find s -type f ! -perm 600 | wc -l | tr -d ' ')" = 0

# damage: named, exit code 1, and never a wrong text
cp -r s bad
printf '\377' | dd of=bad/session bs=1 seek=30000 conv=notrunc 2> /dev/null
run session verify bad --json j.json; expect 1
has "$err" damaged
# the second block is what the tool keeps beside the rows
rm -r bad
cp -r s bad
printf '\377\377' | dd of=bad/session bs=1 seek=12500 conv=notrunc 2> /dev/null
run session verify bad --json j.json; expect 1
has "$err" "no token is lost, but what was kept beside its rows is"
check "the text is lost" test "$(json j.json text_lost)" = true
run run --open bad --tokens 1; expect 1
has "$err" "what was kept beside the rows is lost"
: > bad/session
run session verify bad; expect 1
run run --open bad --tokens 1; expect 1
has "$err" "session bad"
run session ls .; expect 1
run session info nowhere; expect 1
run session verify many/empty; expect 1
for link in many/link many/link/; do
    run run --open $link --tokens 1; expect 1
    has "$err" "it is a symbolic link"
    run session rm $link; expect 1
    has "$err" "it is a symbolic link"
done
fails 1 "headrace: save: 'many/link' is a symbolic link, and links are not followed" run --file text.txt --save many/link
run run --file text.txt --tokens 1 --save many/link/; expect 1
has "$err" "it is a symbolic link"
check "the link's folder has changed" test -f s/session
run run --file text.txt --tokens 1 --save nowhere/at/all; expect 1
has "$err" "cannot be made"
has "$err" "No such file"
run run --file text.txt --tokens 1 --save text.txt; expect 1
has "$err" "not a folder"

# a folder that another has is refused before the text is read, with its process's number; who is interrupted leaves no new folder behind
"$HEADRACE" run --model tiny --tokens-context 60000 --tokens 1 --quiet --save taken > long.out 2>&1 &
holder=$!
tries=0
while [ "$(cat taken/lock 2> /dev/null)" != $holder ] && [ $tries -lt 600 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
for folder in taken taken/ ./taken "$work/taken" many/../taken; do
    fails 1 "headrace: save: session $folder: in use by process $holder" run --model tiny --tokens-context 60000 --quiet --save "$folder"
done
check "it has ended already" kill -INT $holder
code=0
wait $holder || code=$?
expect 1
check "a folder was left behind" test ! -e taken

# the opened folder by other names is the same folder, another one by the same kind of name is not
run run --file text.txt --tokens 1 --save same; expect 0
for folder in same/ ./same "$work/same" many/../same same; do
    run run --open same --save "$folder" --tokens 1 --quiet; expect 0
    run run --open "$folder" --save same --tokens 1 --quiet; expect 0
done
run session info same --json j.json; expect 0
number '$1 == 11' j.json session.generation
ln -s same like
run run --open same --save like --tokens 1 --quiet; expect 1
has "$err" "'like' is a symbolic link"
run run --open same --save other/ --tokens 1 --quiet; expect 0
run session verify other; expect 0
run session rm ./other/; expect 0
check "other is still there" test ! -e other
mkdir odd
mkfifo odd/session
for command in "session info odd" "session verify odd" "session rm odd" "session ls ." "run --open odd --quiet" "run --file text.txt --quiet --save odd"; do
    # shellcheck disable=SC2086 # words
    run $command; expect 1
    has "$err" "it is no plain file"
done
rm -r odd
fails 1 "headrace: session: no folder is named" session ls ""
mkdir bare
chmod 700 bare
run run --file text.txt --tokens 1 --save bare --json nowhere/j.json; expect 1
check "bare has changed" test -z "$(ls bare)"
run session ls many/empty; expect 0
has "$err" "no session"
run run --open s --tokens 1 --host-bytes 64KiB; expect 1
has "$err" "host tier"
run run --open s --tokens 1 --dtype f32; expect 1
has "$err" "of another model"

# removal
run session rm many/two; expect 0
check "it is there still" test ! -e many/two
run session rm many/two; expect 1
touch many/one/mine
run session rm many/one; expect 0
check "another's file" test -e many/one/mine
run session; expect 2
run session lost x; expect 2
run session info; expect 2
finish
