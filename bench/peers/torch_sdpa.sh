#!/bin/sh
# PyTorch's scaled_dot_product_attention on the CPU as a peer of `headrace bench`: torch from PyPI, in a virtual environment of its own.
#
#   torch_sdpa.sh install                       540 MB to fetch, 1.2 GB on disk; needs cc and binutils
#   torch_sdpa.sh check                         exit code 0 when it can be used
#   torch_sdpa.sh run DIR SHAPE... (see run_torch_sdpa.py)
set -eu

version=2.15.0
cache=${HEADRACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headrace}
venv=$cache/peers/torch_sdpa
stubs=$venv/stubs
here=$(dirname "$0")

# PyPI's wheel for Linux is the one for CUDA: its libraries want NVIDIA's, 2.5 GB in 14 packages, to be there before they load.
# None of them is called on a CPU. So libraries of their names stand in, in which every function says "no device" (100).
make_stubs() {
    lib=$(echo "$venv"/lib/python3*/site-packages/torch/lib)
    rm -rf "$stubs"
    mkdir -p "$stubs"
    for file in "$lib"/*.so*; do nm -D --defined-only "$file"; done | awk '{print $3}' | sed 's/@.*//' | sort -u > "$stubs/there"
    for file in "$lib"/*.so*; do nm -D --undefined-only "$file"; done | awk '$1 == "U" {print $2}' | sed 's/@.*//' |
        grep -E '^(cu|nv|nccl|__cuda)' | sort -u | comm -23 - "$stubs/there" > "$stubs/wanted"
    {
        echo 'int none(void) { return 100; }'
        sed 's/.*/int &(void) __attribute__((alias("none")));/' "$stubs/wanted"
    } > "$stubs/none.c"
    cc -w -fno-builtin -shared -fPIC -o "$stubs/libnone.so" "$stubs/none.c"
    for file in "$lib"/*.so*; do readelf -d "$file"; done | sed -n 's/.*(NEEDED).*\[\(lib\(cu\|nv\|nccl\).*\)\]/\1/p' | sort -u |
        while read -r name; do
            [ -e "$lib/$name" ] || cc -shared -o "$stubs/$name" "-Wl,-soname,$name,--no-as-needed,-rpath,$stubs" -L"$stubs" -lnone
        done
}

case ${1:-} in
install)
    mkdir -p "$cache/peers"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --no-deps "torch==$version" typing_extensions
    make_stubs
    ;;
check)
    if [ ! -e "$stubs/libnone.so" ] || ! LD_LIBRARY_PATH=$stubs "$venv/bin/python" "$here/run_torch_sdpa.py" check 2> /dev/null; then
        echo "PyTorch is not installed; 'sh $0 install' does it (540 MB to fetch)" >&2
        exit 1
    fi
    ;;
run)
    shift
    LD_LIBRARY_PATH=$stubs exec "$venv/bin/python" "$here/run_torch_sdpa.py" "$@"
    ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
