#!/bin/sh
# Folders and files without permission: one clear error each that names path and reason, and everything left as it was. Root is stopped by no
# mode, so as root the tool runs as nobody.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

# The tool by another name, so that nobody can reach it: the folder it was built in may be closed.
cp "$HEADRACE" "$work/headrace" || exit 1
if [ "$(id -u)" = 0 ]; then
    printf '#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups "%s" "$@"\n' "$work/headrace" > as_user
    owner=65534:65534
else
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$work/headrace" > as_user
    owner=
fi
chmod 755 . as_user headrace
TOOL=$HEADRACE HEADRACE=$work/as_user
if ! "$HEADRACE" --version > /dev/null 2>&1; then
    echo "skipped: the tool cannot be run as another user here"
    exit 77
fi
trap 'chmod -R u+rwx "$work"; rm -rf "$work"' EXIT INT TERM
umask 022

own() { # own PATH...: they are the user's
    [ -z "$owner" ] || chown -R "$owner" "$@"
}

# A folder of the user's own, in which all is well.
mkdir mine
own mine
run run --model tiny --tokens-context 256 --tokens 1 --quiet --save mine/s --json mine/j.json
expect 0
state() { # state FOLDER: what is in it, byte for byte; in a lock only who had it last
    chmod -R u+rwX "$1"
    (cd "$1" && find . | sort && find . -type f ! -name lock -exec cksum {} + | sort)
}

# denied FOLDER MODE PATH WORD COMMAND...: with that mode on that path, in the folder, the command fails with one line on standard error that has
# the word and the reason; nothing in the folder changes
denied() {
    folder=$1 mode=$2 path=$3 word=$4
    shift 4
    before=$(state "$folder")
    chmod "$mode" "$path"
    run "$@"
    chmod u+rwx "$path"
    expect 1
    check "not one line" test "$(wc -l < "$err" | tr -d ' ')" = 1
    has "$err" "$word"
    has "$err" "Permission denied"
    check "something has changed" test "$before" = "$(state "$folder")"
}
tiny="run --model tiny --tokens-context 256 --tokens 1 --quiet"

# saving
# shellcheck disable=SC2086 # words
{
    mkdir closed
    own closed
    denied closed 0555 closed closed/new $tiny --save closed/new
    denied mine 0555 mine/s mine/s $tiny --save mine/s
    denied mine 0000 mine/s mine/s $tiny --save mine/s
    denied mine 0000 mine/s/lock "session mine/s" $tiny --save mine/s
    denied mine 0644 mine mine/s $tiny --save mine/s
    # the old session need not be readable to be replaced: its sequence number is lost, nothing else
    chmod 0000 mine/s/session
    run $tiny --save mine/s
    expect 0
    run session verify mine/s
    expect 0
}

# opening and looking
for command in "run --open mine/s --tokens 1 --quiet" "session info mine/s" "session verify mine/s" "session rm mine/s"; do
    # shellcheck disable=SC2086 # words
    {
        denied mine 0000 mine/s/session "session mine/s" $command
        denied mine 0000 mine/s "session mine/s" $command
        denied mine 0644 mine "session mine/s" $command
    }
done
denied mine 0555 mine/s "session mine/s" session rm mine/s
denied mine 0000 mine mine session ls mine
denied mine 0000 mine/s/session "mine/s" session ls mine
denied mine 0000 mine/s "mine/s" session ls mine

# the file tier, reports, texts
# shellcheck disable=SC2086 # words
{
    denied closed 0555 closed closed $tiny --file-dir closed --file-bytes 64MiB
    denied closed 0000 closed closed $tiny --file-dir closed/deeper --file-bytes 64MiB
    denied closed 0555 closed closed/j.json $tiny --json closed/j.json
    denied closed 0555 closed closed/j.json session info mine/s --json closed/j.json
    denied closed 0555 closed closed/r.json eval tasks --model tiny --quiet --json closed/r.json
    run trace capture --model tiny --tokens 600 --layers 1 --quiet --out mine/trace
    expect 0
    denied closed 0555 closed closed/r.html eval trace --quiet --html closed/r.html mine/trace/*
    denied mine 0000 mine/trace mine/trace eval trace --quiet mine/trace/tiny_l1
    if "$HEADRACE" bench list > "$work/list" 2>&1; then
        denied closed 0555 closed closed/b.html bench --quick --quiet --html closed/b.html "$(head -n 1 "$work/list" | cut -d ' ' -f 1)"
    fi
    echo "f01 k02 v03" > mine/text
    own mine/text
    denied mine 0000 mine/text mine/text run --model tiny --file mine/text --tokens 1 --quiet
    cp mine/text mine/model.gguf
    own mine/model.gguf
    denied mine 0000 mine/model.gguf mine/model.gguf run --model mine/model.gguf --prompt x --tokens 1 --quiet
    denied closed 0555 closed closed/trace trace capture --model tiny --tokens 2000 --layers 1 --quiet --out closed/trace
}
HEADRACE=$TOOL
finish
