#!/bin/sh
# The project configures with a CUDA compiler and no GPU, and with neither.
#
#   usage: test_cuda_configure.sh CMAKE SOURCE SCRATCH
set -eu
cmake=$1
source=$2
scratch=$3
rm -rf "$scratch"
mkdir -p "$scratch"

# configure NAME [CMAKE ARGUMENT...]
configure() {
    name=$1
    shift
    "$cmake" -S "$source" -B "$scratch/$name" -DHEADRACE_TESTS=OFF -DHEADRACE_BENCH=OFF \
        -DHEADRACE_ENGINE=OFF "$@" > "$scratch/$name.log" 2>&1
}

fail() {
    echo "$1" >&2
    cat "$2" >&2
    exit 1
}

nvcc=$(command -v nvcc || true)
if [ -n "$nvcc" ]; then
    configure auto -DHEADRACE_CUDA=AUTO || fail "with nvcc: does not configure" "$scratch/auto.log"
    grep -q 'CUDA yes' "$scratch/auto.log" || fail "with nvcc: it was not used" "$scratch/auto.log"
fi

# A compiler that is not there: CMake would find one outside of the path, too.
export CUDACXX="$scratch/no-nvcc"
configure none -DHEADRACE_CUDA=AUTO || fail "without nvcc: does not configure" "$scratch/none.log"
grep -q 'CUDA no' "$scratch/none.log" || fail "without nvcc: it says there is" "$scratch/none.log"
if configure on -DHEADRACE_CUDA=ON; then
    fail "without nvcc: HEADRACE_CUDA=ON configures" "$scratch/on.log"
fi
grep -q 'HEADRACE_CUDA is ON but no CUDA compiler' "$scratch/on.log" ||
    fail "without nvcc: HEADRACE_CUDA=ON does not say why it fails" "$scratch/on.log"
