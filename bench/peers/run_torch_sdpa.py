"""Attention by PyTorch: run_torch_sdpa.py DIR f32|bf16 Q_HEADS KV_HEADS QUERIES ROWS DIM THREADS REPEATS [cuda] -> one JSON object.

DIR has q, k, v as plain numbers [heads][queries or rows][dim]; out is written there as float32 [q_heads][queries][dim]. One query sees all
rows; more are a prompt's, and each sees the rows up to its own.
"""
import ctypes
import json
import os
import sys
import time

sys.setdlopenflags(os.RTLD_LAZY)  # symbols of libraries that only stand in
import torch  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402


def load(path, dtype, heads, n, dim):
    return torch.from_file(path, shared=False, size=heads * n * dim, dtype=dtype).view(1, heads, n, dim).clone()


def each_head(q, k, v):
    return scaled_dot_product_attention(q, k, v, enable_gqa=True)


def head_by_head(q, k, v):
    """The query heads of a kv-head as queries of one head, so that its rows are read once."""
    return scaled_dot_product_attention(q.view(1, k.shape[1], -1, q.shape[3]), k, v).view(q.shape)


def causal(q, k, v):
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def cuda_seconds_of(way, repeats, *args):
    """Between two events of the GPU, of as many calls as are queued at once."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        way(*args)
    first.record()
    for _ in range(repeats):
        way(*args)
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) * 1e-3 / repeats


def seconds_of(way, repeats, *args):
    if args[0].is_cuda:
        return cuda_seconds_of(way, repeats, *args)
    times = []
    way(*args)
    for _ in range(repeats):
        start = time.perf_counter()
        way(*args)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def main():
    if sys.argv[1] == "check":
        if sys.argv[2:] == ["cuda"] and not torch.cuda.is_available():
            sys.exit(1)
        return
    device = sys.argv[10] if len(sys.argv) > 10 else "cpu"
    folder, dtype = sys.argv[1], {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[2]]
    q_heads, kv_heads, queries, rows, dim, threads, repeats = map(int, sys.argv[3:10])
    torch.set_num_threads(threads)
    q = load(f"{folder}/q", dtype, q_heads, queries, dim).to(device)
    k, v = (load(f"{folder}/{name}", dtype, kv_heads, rows, dim).to(device) for name in "kv")
    ways = [causal] if queries > 1 else [each_head, head_by_head]
    with torch.inference_mode():
        times = {way.__name__: seconds_of(way, repeats, q, k, v) for way in ways}
        out = min(ways, key=lambda way: times[way.__name__])(q, k, v)
    out = out.float().cpu().contiguous()
    with open(f"{folder}/out", "wb") as file:
        file.write(ctypes.string_at(out.data_ptr(), out.numel() * out.element_size()))
    print(json.dumps({"seconds": min(times.values()), "ways": times, "version": torch.__version__}))


main()
