#!/bin/sh
# Installs the Debian packages that building, testing and the demo need, and only those that are
# missing.
#
#   usage: deps.sh [build|test|check|cuda|bench]
#
# build: what the library and the tool need. test (the default): and what the tests use, with a
# virtual environment that holds the Python packages the reference tests compare with. check: and
# the linters. cuda: and NVIDIA's compiler from PyPI, about 300 MB into the cache folder, where no
# nvcc is in the path; nothing needs it but the CUDA kernels. bench: what building needs, and the
# programs that benchmarks compare with (fio). On a system that is not Debian's nothing is
# installed: what is missing is named, and the script fails only where a build cannot work without
# it.
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"

what=${1:-test}
# package=probe: the probe tells on other systems whether it is there (a command, or pkg-config
# module after "pc:").
required='gcc=cc g++=c++ libc6-dev= cmake=cmake ninja-build=ninja pkg-config=pkg-config'
optional='ccache=ccache libhwloc-dev=pc:hwloc libisal-dev=pc:libisal libxxhash-dev=pc:libxxhash
    libcjson-dev=pc:libcjson libopenblas-dev=pc:openblas liburing-dev=pc:liburing
    libfaiss-dev= libgomp1=
    python3=python3 python3-pip=pip3 unzip=unzip bible-kjv=bible'
case $what in
build) ;;
bench) optional="$optional fio=fio" ;;
test | check | cuda)
    required="$required libcmocka-dev=pc:cmocka"
    optional="$optional python3-numpy= python3-venv= valgrind=valgrind wamerican="
    ;;
*) die "'$what' is not one of: build test check cuda" ;;
esac
if [ "$what" = check ]; then
    optional="$optional clang=clang clang-format=clang-format clang-tidy=clang-tidy"
    optional="$optional shellcheck=shellcheck"
fi

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        return 1
    fi
}

apt_install() {
    # shellcheck disable=SC2086 # a list of packages
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $1
}

missing_debian() {
    for pair in $required $optional; do
        package=${pair%%=*}
        case $(dpkg-query -W -f '${Status}' "$package" 2> /dev/null) in
        'install ok installed') ;;
        *) printf '%s ' "$package" ;;
        esac
    done
}

install_debian() {
    missing=$(missing_debian)
    [ -n "$missing" ] || return 0
    say "installing $missing"
    log=$(mktemp)
    # Lists may be old or absent on a fresh machine: try without them first, it is faster.
    if apt_install "$missing" > "$log" 2>&1 ||
        { as_root apt-get update > "$log" 2>&1 && apt_install "$missing" > "$log" 2>&1; }; then
        rm -f "$log"
        return 0
    fi
    tail -n 5 "$log" >&2
    rm -f "$log"
    say "could not install $missing"
    return 1
}

there() {
    case $1 in
    '') return 0 ;;
    pc:*) pkg-config --exists "${1#pc:}" 2> /dev/null ;;
    *) command -v "$1" > /dev/null 2>&1 ;;
    esac
}

# Names what is missing; fails where a required part is.
name_missing() {
    status=0
    for pair in $required; do
        there "${pair#*=}" || { say "missing: ${pair%%=*} (Debian's name), needed"; status=1; }
    done
    for pair in $optional; do
        there "${pair#*=}" || say "missing: ${pair%%=*} (Debian's name), going on without it"
    done
    return $status
}

# numpy comes with Debian; the tokenizer the tests compare with does not. Without it those tests
# are skipped.
make_venv() {
    python=/usr/bin/python3
    [ -x "$python" ] || python=$(command -v python3) || return 0
    venv=$cache/venv
    if "$venv/bin/python3" -c 'import numpy, tokenizers' 2> /dev/null; then
        return 0
    fi
    say "making a Python environment in $venv"
    mkdir -p "$cache"
    wanted=tokenizers
    "$python" -c 'import numpy' 2> /dev/null || wanted="$wanted numpy"
    # shellcheck disable=SC2086 # a list of packages
    if ! { "$python" -m venv --system-site-packages "$venv" &&
        "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check $wanted; } \
        > "$cache/venv.log" 2>&1; then
        say "no Python environment: $(tail -n 1 "$cache/venv.log")"
        say "tests that compare with Python packages will be skipped"
    fi
}

# NVIDIA's wheels unpack into one tree; CMake and nvcc look for its libraries in lib64.
cuda_packages='nvidia-cuda-nvcc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-crt==13.0.*
    nvidia-nvvm==13.0.* nvidia-cuda-cccl==13.0.*'
install_cuda() {
    nvcc=$(command -v nvcc || echo "$cache/cuda/nvidia/cu13/bin/nvcc")
    if [ -x "$nvcc" ]; then
        say "nvcc is $nvcc"
        return 0
    fi
    say "installing nvcc into $cache/cuda"
    mkdir -p "$cache"
    # shellcheck disable=SC2086 # a list of packages
    if ! python3 -m pip install --quiet --disable-pip-version-check --target "$cache/cuda" \
        $cuda_packages > "$cache/cuda.log" 2>&1; then
        say "no nvcc: $(tail -n 1 "$cache/cuda.log")"
        return 1
    fi
    [ -e "$cache/cuda/nvidia/cu13/lib64" ] || ln -s lib "$cache/cuda/nvidia/cu13/lib64"
}

if command -v dpkg-query > /dev/null && command -v apt-get > /dev/null; then
    install_debian || true
fi
name_missing || die "install what is missing and run this again"
if [ "$what" != build ] && [ "$what" != bench ]; then
    make_venv
fi
if [ "$what" = cuda ]; then
    install_cuda
fi
