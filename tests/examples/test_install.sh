#!/bin/sh
# Installs the build into an empty prefix, moves nothing else there, and builds the example against it twice: as a CMake
# project through find_package, and by hand through pkg-config, shared and static. Runs what came out.
#
#   usage: test_install.sh CMAKE SOURCE BUILD CC
set -eu
cmake=$1 source=$2 build=$3 cc=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
prefix=$work/prefix

fail() {
    echo "test_install: $*" >&2
    exit 1
}

check_output() {
    [ "$(grep -c '^step' "$1")" = 16 ] || fail "$2: the example did not print its 16 steps"
}

if [ ! -e "$build/lib/libheadrace.a" ] || [ ! -e "$build/lib/libheadrace.so" ]; then
    echo "skipped: the libraries are not built"
    exit 77
fi
"$cmake" --install "$build" --prefix "$prefix" > "$work/install.log" 2>&1 || {
    tail -n 3 "$work/install.log" >&2
    fail "cmake --install failed"
}
libdir=$(dirname "$(find "$prefix" -name libheadrace.a)")

# Only hr_* leave the shared library.
if command -v nm > /dev/null; then
    others=$(nm -D --defined-only "$libdir/libheadrace.so" | awk '{print $3}' | sed 's/@.*//' | grep -v '^hr_' |
        grep -v '^HEADRACE_' || true)
    [ -z "$others" ] || fail "the shared library exports $others"
fi

build_example() {
    "$cmake" -S "$source/examples" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" &&
        "$cmake" --build "$work/cmake"
}
build_example > "$work/cmake.log" 2>&1 || {
    tail -n 20 "$work/cmake.log" >&2
    fail "the CMake package does not work"
}
"$work/cmake/example_decode" > "$work/cmake.out"
check_output "$work/cmake.out" "CMake package"

if command -v pkg-config > /dev/null; then
    PKG_CONFIG_PATH=$libdir/pkgconfig
    export PKG_CONFIG_PATH
    # shellcheck disable=SC2046 # flags are words
    "$cc" -std=c11 "$source/examples/decode.c" $(pkg-config --cflags --libs headrace) -o "$work/shared" ||
        fail "pkg-config, shared: does not link"
    LD_LIBRARY_PATH=$libdir "$work/shared" > "$work/shared.out"
    check_output "$work/shared.out" "pkg-config, shared"
    cmp -s "$work/cmake.out" "$work/shared.out" || fail "the two builds print different figures"
    # shellcheck disable=SC2046
    "$cc" -std=c11 "$source/examples/decode.c" $(pkg-config --cflags headrace) "$libdir/libheadrace.a" \
        $(pkg-config --libs --static headrace | sed 's/-lheadrace//') -o "$work/static" ||
        fail "pkg-config, static: does not link"
    "$work/static" > "$work/static.out"
    check_output "$work/static.out" "pkg-config, static"
fi

if [ -x "$prefix/bin/headrace" ]; then
    "$prefix/bin/headrace" --version > "$work/version" || fail "the installed tool does not start"
fi
echo "installed, built and run"
