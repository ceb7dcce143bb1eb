#!/bin/sh
# Everything that is checked besides the tests: who includes whom, formatting, clang-tidy, the
# scripts, and builds that pass the fast tests with gcc, with clang, without io_uring and without
# FAISS.
#
#   usage: check.sh [deps|format|tidy|shell|builds]...    all of them without an argument
#
# CHECK_FIX=1 lets clang-format write. A tool that is not there is named and its check is left out.
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"
cd "$root"

failed=
sources() {
    git ls-files -- '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' | grep -v -E '^engine/models/'
}

there() {
    command -v "$1" > /dev/null || { say "$1 is not there: its check is left out"; return 1; }
}

check_deps() {
    sh tools/check_deps.sh
}

check_format() {
    there clang-format || return 0
    if [ "${CHECK_FIX:-0}" = 1 ]; then
        sources | xargs clang-format -i
    else
        sources | xargs clang-format --dry-run -Werror
    fi
}

check_tidy() {
    there clang-tidy || return 0
    configure_and_build dev -- headrace_static
    git ls-files -- '*.c' | grep -E '^(base|kernels|index|offload|runtime|engine|cli)/' |
        xargs -n 4 -P "$jobs" clang-tidy --quiet -p build/dev
}

check_shell() {
    there shellcheck || return 0
    git ls-files -- '*.sh' | xargs shellcheck -x
    shellcheck .ci/run
}

# check_build PRESET FOLDER [CMAKE ARGUMENT...]: in a folder of its own, so that the presets' own
# builds stay as they are.
check_build() {
    preset=$1
    folder=build/check-$2
    shift 2
    say "building and testing $folder"
    mkdir -p "$folder"
    { cmake --preset "$preset" -B "$folder" "$@" && cmake --build "$folder" -j "$jobs"; } \
        > "$folder.log" 2>&1 ||
        { tail -n 40 "$folder.log" >&2; return 1; }
    ctest --test-dir "$folder" -L fast -j "$jobs" --no-tests=error --output-on-failure \
        > "$folder-tests.log" 2>&1 ||
        { tail -n 40 "$folder-tests.log" >&2; return 1; }
    sed -n '/tests passed/p' "$folder-tests.log"
}

check_builds() {
    check_build dev gcc -DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++ &&
        { ! command -v clang > /dev/null ||
            check_build release clang -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ \
                -DHEADRACE_CUDA=OFF; } &&
        check_build no-uring no-uring && check_build no-faiss no-faiss
}

[ $# -gt 0 ] || set -- deps format tidy shell builds
sh tools/deps.sh check
for check in "$@"; do
    case $check in
    deps | format | tidy | shell | builds) ;;
    *) die "'$check' is not one of: deps format tidy shell builds" ;;
    esac
    say "checking $check"
    "check_$check" || failed="$failed $check"
done
[ -z "$failed" ] || die "failed:$failed"
say "all checks passed"
