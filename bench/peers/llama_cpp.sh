#!/bin/sh
# llama.cpp as a peer of `headrace bench`: its Python binding from PyPI, in a virtual environment of its own.
#
#   llama_cpp.sh install                                     builds it (about 12 minutes on two cores)
#   llama_cpp.sh check                                       exit code 0 when it can be used
#   llama_cpp.sh run MODEL TEXT TOKENS DECODE THREADS        prints {"prefill": {...}, "decode": {...}}
set -eu

version=0.3.36
cache=${HEADRACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/headrace}
venv=$cache/peers/llama_cpp
here=$(dirname "$0")

case ${1:-} in
install)
    mkdir -p "$cache/peers"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    # Its vision tools are a third of the work and of no use here.
    CMAKE_ARGS="-DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}" "$venv/bin/pip" install --quiet "llama-cpp-python==$version"
    ;;
check)
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import llama_cpp' 2>/dev/null; then
        echo "llama.cpp is not installed; 'sh $0 install' builds it (about 12 minutes on two cores)" >&2
        exit 1
    fi
    ;;
run)
    shift
    exec "$venv/bin/python" "$here/run_llama_cpp.py" "$@"
    ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
