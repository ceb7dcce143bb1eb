#!/bin/sh
# tools/check_deps.sh on trees made for it: silent on a good one, one line per wrong include on a bad one.
set -eu
script=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
failures=0

# expect FILE LINE WORDS: the line in the file must be refused, with these words; WORDS empty: it must pass.
expect() {
    rm -rf "${root:?}"/*
    mkdir -p "$root/$(dirname "$1")"
    printf '/* "offload/tier.h" in a comment */\n%s\n' "$2" > "$root/$1"
    if output=$(sh "$script" "$root"); then
        [ -z "$3" ] || { echo "passed, but must not: $1: $2"; failures=$((failures + 1)); }
    elif [ -z "$3" ]; then
        echo "refused, but must not be: $1: $2: $output"
        failures=$((failures + 1))
    else
        case $output in
        *"$1:2:"*"$3"*) ;;
        *) echo "wrong words: $output"; failures=$((failures + 1)) ;;
        esac
    fi
}

expect base/a.c '#include "base/alloc.h"' ''
expect base/a.c '#include <stdio.h>' ''
expect base/a.c '#include <sys/mman.h>' ''
expect base/a.c '#include <headrace/status.h>' ''
expect base/a.c '#include "kernels/kernels.h"' 'base must not include kernels'
expect kernels/cpu/a.c '#include "base/half.h"' ''
expect kernels/cpu/a.c '#include "kernels/kernels.h"' ''
expect kernels/cuda/a.cu '  #  include "index/group.h"' 'kernels must not include index'
expect index/a.c '#include "offload/tier.h"' 'index must not include offload'
expect offload/a.h '#include "index/selector.h"' 'offload must not include index'
expect offload/a.c '#include "runtime/step.h"' 'offload must not include runtime'
expect runtime/a.c '#include "offload/tier.h"' ''
expect runtime/a.c '#include "engine/engine.h"' 'runtime must not include engine'
expect engine/a.c '#include "base/alloc.h"' 'engine must not include base'
expect engine/a.c '#include <base/alloc.h>' 'engine must not include base'
expect engine/a.c '#include "gguf.h"' ''
expect engine/a.c '#include "../base/alloc.h"' 'leaves its folder'
expect cli/a.c '#include "engine/engine.h"' ''
expect cli/a.c '#include "runtime/runtime.h"' 'cli must not include runtime'
expect examples/a.c '#include <headrace/headrace.h>' ''
expect examples/a.c '#include "base/alloc.h"' 'examples must not include base'
expect include/headrace/a.h '#include "base/alloc.h"' 'include must not include base'
[ "$failures" -eq 0 ]
