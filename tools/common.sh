# shellcheck shell=sh
# What the scripts of this folder share; sourced, not run. The caller has set -eu and stands
# anywhere.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache=${HEADRACE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/headrace}
export HEADRACE_CACHE="$cache"

say() {
    printf '%s: %s\n' "$(basename -- "$0" .sh)" "$*" >&2
}

die() {
    say "$@"
    exit 1
}

jobs=$(nproc 2>/dev/null || echo 2)
export jobs

# configure_and_build PRESET [CMAKE ARGUMENT...] [-- TARGET...]
# Quiet unless something fails or HEADRACE_VERBOSE is set.
configure_and_build() {
    preset=$1
    shift
    arguments=
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        arguments="$arguments $1"
        shift
    done
    [ $# -eq 0 ] || shift
    log=$root/build/$preset.log
    mkdir -p "$root/build"
    say "building preset $preset (log: build/$preset.log)"
    # shellcheck disable=SC2086 # arguments are split on purpose
    (cd "$root" && cmake --preset "$preset" $arguments) > "$log" 2>&1 ||
        { cat "$log" >&2; die "configuring preset $preset failed"; }
    if [ $# -gt 0 ]; then
        set -- --target "$@"
    fi
    (cd "$root" && cmake --build "build/$preset" -j "$jobs" "$@") >> "$log" 2>&1 ||
        { tail -n 60 "$log" >&2; die "building preset $preset failed; see build/$preset.log"; }
}
