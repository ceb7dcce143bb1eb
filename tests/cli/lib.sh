# shellcheck shell=sh
# What the tests of the tool share; sourced. HEADRACE and JSON_GET name the programs.
set -u
: "${HEADRACE:?names the tool}" "${JSON_GET:?names json_get}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
out=$work/out
err=$work/err
failures=0
checks=0

# run ARGUMENT...: the tool's exit code in $code, its output in $out and $err
run() {
    command_line="headrace $*"
    code=0
    "$HEADRACE" "$@" > "$out" 2> "$err" < /dev/null || code=$?
}

bad() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n  %s\n' "$command_line" "$*" >&2
    sed 's/^/  stderr: /' "$err" | tail -n 5 >&2
}

check() { # check DESCRIPTION TEST...
    checks=$((checks + 1))
    what=$1
    shift
    "$@" > /dev/null 2>> "$err" || bad "$what"
}

# expect CODE: the last run ended with it
expect() {
    check "exit code $code, not $1" test "$code" = "$1"
}

# fails CODE MESSAGE ARGUMENT...: the whole of standard error is this one line, standard output is empty
fails() {
    want=$1 message=$2
    shift 2
    run "$@"
    expect "$want"
    printf '%s\n' "$message" > "$work/want"
    check "the message is not: $message" cmp -s "$work/want" "$err"
    check "standard output is not empty" test ! -s "$out"
}

has() { # has FILE TEXT
    check "no '$2' in $(basename "$1")" grep -qF -- "$2" "$1"
}

json() { # json FILE PATH: the value
    "$JSON_GET" "$1" "$2" 2>> "$err"
}

# number CONDITION FILE PATH...: the condition in $1, $2, ... as awk sees it, over the values
number() {
    condition=$1 file=$2
    shift 2
    # shellcheck disable=SC2046
    set -- "$condition" $("$JSON_GET" "$file" "$@" 2>> "$err" || echo missing)
    condition=$1
    shift
    check "not $condition for: $*" awk "BEGIN { \$0 = \"$*\"; exit !($condition) }"
}

finish() {
    if [ "$failures" -gt 0 ]; then
        echo "$failures of $checks checks failed" >&2
        exit 1
    fi
    echo "$checks checks passed"
    exit 0
}
