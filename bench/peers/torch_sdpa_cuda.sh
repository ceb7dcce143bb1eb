#!/bin/sh
# PyTorch's scaled_dot_product_attention on a GPU as a peer of `headrace bench device-token-sdpa-128k`: whatever PyTorch with CUDA the
# machine has, in HEADRACE_PYTHON or python3. Nothing is installed.
#
#   torch_sdpa_cuda.sh check                    exit code 0 when it can be used
#   torch_sdpa_cuda.sh run DIR DTYPE Q_HEADS KV_HEADS QUERIES ROWS DIM REPEATS
set -eu

here=$(dirname "$0")
python=${HEADRACE_PYTHON:-python3}
# Within a bundle the tool's libraries are in the path (tools/gpu.sh).
[ -z "${HEADRACE_PEER_LIBRARY_PATH+set}" ] || LD_LIBRARY_PATH=$HEADRACE_PEER_LIBRARY_PATH

case ${1:-} in
check)
    if ! "$python" "$here/run_torch_sdpa.py" check cuda 2> /dev/null; then
        echo "no PyTorch with CUDA in $python (HEADRACE_PYTHON names another)" >&2
        exit 1
    fi
    ;;
run)
    dir=$2 dtype=$3 q_heads=$4 kv_heads=$5 queries=$6 rows=$7 dim=$8
    shift 8
    exec "$python" "$here/run_torch_sdpa.py" "$dir" "$dtype" "$q_heads" "$kv_heads" "$queries" "$rows" "$dim" 1 "$1" cuda
    ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
