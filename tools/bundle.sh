#!/bin/sh
# Packs what a machine with a GPU, a driver and libc can run: the tool, the tests of the CUDA kernels
# for all architectures, the libraries they need, and gpu.sh.
#
#   usage: bundle.sh [FILE]    default: build/headrace-gpu.tar.xz; at most 64 MiB
#
# BUNDLE_PRESET, BUNDLE_ARGUMENTS: another preset, more arguments of its configuration.
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"
cd "$root"
preset=${BUNDLE_PRESET:-cuda}
file=${1:-$root/build/headrace-gpu.tar.xz}
most=$((64 * 1024 * 1024))
folder=$root/build/headrace-gpu

sh tools/deps.sh cuda
# Without FAISS, whose recipes do not run on a GPU, and so without C++'s library, which wants a newer libc than all the rest.
# shellcheck disable=SC2086 # arguments are split on purpose
configure_and_build "$preset" -DHEADRACE_FAISS=OFF ${BUNDLE_ARGUMENTS:-} -- headrace_cli hr_gpu_tests

rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/tests" "$folder/lib" "$folder/peers"
cp "build/$preset/bin/headrace" "$folder/bin/"
for test in "build/$preset"/tests/gpu_*; do
    [ ! -x "$test" ] || cp "$test" "$folder/tests/"
done
# Everything but what belongs to the C library and the driver.
for program in "$folder"/bin/* "$folder"/tests/*; do
    ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }'
done | sort -u | grep -v -E '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*|libcuda)\.so' |
    while IFS= read -r library; do
        cp -L "$library" "$folder/lib/"
    done
strip --strip-debug "$folder"/bin/* "$folder"/tests/* "$folder"/lib/* 2> /dev/null || true
cp tools/gpu.sh "$folder/gpu.sh"
cp bench/peers/torch_sdpa_cuda.sh bench/peers/run_torch_sdpa.py "$folder/peers/"
git rev-parse HEAD > "$folder/COMMIT"

# The kernels are in each of the programs: the window is wide enough to see the last one's.
tar -C "$root/build" -cf - headrace-gpu | xz -T1 --lzma2=preset=2,dict=64MiB > "$file"
bytes=$(wc -c < "$file")
newest=$(objdump -T "$folder"/bin/* "$folder"/tests/* "$folder"/lib/* 2> /dev/null | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
say "$file: $((bytes / 1024 / 1024)) MiB, unpacked $(du -sm "$folder" | cut -f 1) MiB, needs ${newest:-an unknown GLIBC}"
[ "$bytes" -le "$most" ] || die "larger than $((most / 1024 / 1024)) MiB"
