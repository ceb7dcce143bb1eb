#!/usr/bin/env python3
"""Independent forward pass of a GGUF model of the Llama family, in NumPy with dense attention.

    reference_llama.py MODEL.gguf TOKENS_FILE [--last N] [--output FILE.npy]
    reference_llama.py MODEL.gguf TOKENS_FILE --nll [--from N]
    reference_llama.py MODEL.gguf TOKENS_FILE --greedy N

The first form writes the logits of the last N positions as float32 [N][vocabulary] .npy, or prints
the best tokens of each. --nll prints the mean negative log-likelihood of every token after the
first N (default 1). --greedy prints N ids that follow the text, each the most likely one.
TOKENS_FILE holds ids separated by whitespace; - is standard input. The engine is checked against
this script; it shares no code with it.
"""
import argparse
import sys

import numpy as np

CHUNK = 256                     # queries per piece of attention


# ---------------------------------------------------------------------------- GGUF

# Value types 0 to 12, 8 and 9 being strings and arrays.
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
           10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9


class File:
    """Walks a GGUF file that is known to be well formed."""

    def __init__(self, path):
        self.bytes = np.memmap(path, np.uint8, "r")
        self.at = 0
        self.kept = {}
        if self.take("S4") != b"GGUF":
            raise SystemExit(f"{path}: not a GGUF file")
        version = int(self.take("<u4"))
        if version not in (2, 3):
            raise SystemExit(f"{path}: GGUF version {version}")
        n_tensors, n_entries = int(self.take("<u8")), int(self.take("<u8"))
        self.meta = dict(self.entry() for _ in range(n_entries))
        infos = [self.info() for _ in range(n_tensors)]
        align = self.meta.get("general.alignment", 32)
        start = (self.at + align - 1) // align * align
        self.tensors = {name: (dims, kind, start + offset) for name, dims, kind, offset in infos}

    def take(self, dtype, count=None):
        n = 1 if count is None else count
        size = np.dtype(dtype).itemsize * n
        values = self.bytes[self.at:self.at + size].view(dtype)
        self.at += size
        return values[0] if count is None else values

    def string(self):
        length = int(self.take("<u8"))
        return bytes(self.take("u1", length)).decode("utf-8", "replace")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(NUMBERS[kind]).item()
        kind, count = int(self.take("<u4")), int(self.take("<u8"))
        if kind in NUMBERS:
            return self.take(NUMBERS[kind], count).tolist()
        return [self.value(kind) for _ in range(count)]

    def entry(self):
        key = self.string()
        return key, self.value(int(self.take("<u4")))

    def info(self):
        name = self.string()
        dims = [int(d) for d in self.take("<u8", int(self.take("<u4")))]
        return name, dims, int(self.take("<u4")), int(self.take("<u8"))

    def tensor(self, name):
        """As float32, innermost dimension last, or None. Kept: greedy decoding asks again."""
        if name not in self.tensors:
            return None
        if name not in self.kept:
            self.kept[name] = self.dequantise(name)
        return self.kept[name]

    def dequantise(self, name):
        dims, kind, offset = self.tensors[name]
        if kind not in FORMATS:
            raise SystemExit(f"tensor {name} has type {kind}, which this script does not know")
        block, size, decode = FORMATS[kind]
        count = int(np.prod(dims))
        raw = self.bytes[offset:offset + count // block * size].reshape(-1, size)
        return decode(raw).astype(np.float32).reshape(dims[::-1])


# ---------------------------------------------------------------------------- dequantisation
# Every function gets blocks as rows of bytes and returns rows of numbers.

def half(raw):
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def nibbles(raw):
    return np.concatenate((raw & 15, raw >> 4), axis=1).astype(np.float32)


def q4_0(raw):
    return half(raw[:, :2]) * (nibbles(raw[:, 2:]) - 8)


def q4_1(raw):
    return half(raw[:, :2]) * nibbles(raw[:, 4:]) + half(raw[:, 2:4])


def q8_0(raw):
    return half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def q4_k(raw):
    packed = raw[:, 4:16]
    low, mid, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (high & 15) | (low >> 6 << 4)), axis=1).astype(np.float32)
    mins = np.concatenate((mid & 63, (high >> 4) | (mid >> 6 << 4)), axis=1).astype(np.float32)
    pairs = raw[:, 16:].reshape(-1, 4, 32)
    q = np.stack((pairs & 15, pairs >> 4), axis=2).reshape(-1, 8, 32).astype(np.float32)
    scales, mins = half(raw[:, :2]) * scales, half(raw[:, 2:4]) * mins
    return (scales[:, :, None] * q - mins[:, :, None]).reshape(len(raw), -1)


def q6_k(raw):
    ql = raw[:, :128].reshape(-1, 2, 2, 32)
    qh = raw[:, 128:192].reshape(-1, 2, 32)
    low = np.stack((ql[:, :, 0] & 15, ql[:, :, 1] & 15, ql[:, :, 0] >> 4, ql[:, :, 1] >> 4), axis=2)
    high = np.stack([qh >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
    q = (low | high << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = raw[:, 192:208].view(np.int8).astype(np.float32) * half(raw[:, 208:210])
    return (q * scales[:, :, None]).reshape(len(raw), -1)


def bf16(raw):
    return (np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << 16).view(np.float32)


def f32(raw):
    return np.ascontiguousarray(raw).view("<f4")


# Type: weights and bytes of a block, and how it is decoded.
FORMATS = {0: (1, 4, f32), 1: (1, 2, half), 2: (32, 18, q4_0), 3: (32, 20, q4_1), 8: (32, 34, q8_0),
           12: (256, 144, q4_k), 14: (256, 210, q6_k), 30: (1, 2, bf16)}


# ---------------------------------------------------------------------------- forward pass

class Model:
    def __init__(self, path):
        self.file = File(path)
        meta = self.file.meta
        self.arch = meta["general.architecture"]
        if self.arch not in ("llama", "qwen2"):
            raise SystemExit(f"{path}: architecture {self.arch}; llama and qwen2 are known here")

        def get(key, missing=None):
            return meta.get(f"{self.arch}.{key}", missing)
        self.layers = get("block_count")
        self.heads = get("attention.head_count")
        self.kv_heads = get("attention.head_count_kv", self.heads)
        self.dim = get("attention.key_length", get("embedding_length") // self.heads)
        self.v_dim = get("attention.value_length", self.dim)
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.context = get("context_length")
        self.n_rot = get("rope.dimension_count", self.dim)
        self.frequencies, self.amplitude = self.rope_frequencies(get)
        self.embedding = self.file.tensor("token_embd.weight")
        self.output = self.file.tensor("output.weight")
        if self.output is None:
            self.output = self.embedding
        self.cache = [None] * self.layers
        self.length = 0

    def rope_frequencies(self, get):
        base, n = get("rope.freq_base", 10000.0), self.n_rot
        pairs = np.arange(n // 2, dtype=np.float64)
        f = base ** (-2 * pairs / n)
        divisors = self.file.tensor("rope_freqs.weight")
        if divisors is not None:
            f = f / divisors
        kind, factor = get("rope.scaling.type", "none"), get("rope.scaling.factor", 1.0)
        if kind == "linear":
            return f / factor, 1.0
        if kind != "yarn":
            return f, 1.0
        context = get("rope.scaling.original_context_length", self.context)

        def pair_of(turns):
            return n * np.log(context / (turns * 2 * np.pi)) / (2 * np.log(base))
        low = max(np.floor(pair_of(get("rope.scaling.yarn_beta_fast", 32.0))), 0)
        high = min(np.ceil(pair_of(get("rope.scaling.yarn_beta_slow", 1.0))), n - 1)
        kept = 1 - np.clip((pairs - low) / max(high - low, 0.001), 0, 1)
        amplitude = (1 + 0.1 * np.log(factor)) * get("rope.scaling.attn_factor", 1.0)
        return f * kept + f / factor * (1 - kept), amplitude

    def norm(self, x, name):
        scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.eps))
        return x * scale * self.file.tensor(name + ".weight")

    def linear(self, x, name):
        y = x @ self.file.tensor(name + ".weight").T
        bias = self.file.tensor(name + ".bias")
        return y if bias is None else y + bias

    def rope(self, x):
        """x [tokens][heads][dim], the first token at position self.length."""
        angle = np.outer(self.length + np.arange(len(x)), self.frequencies)[:, None]
        c = (np.cos(angle) * self.amplitude).astype(np.float32)
        s = (np.sin(angle) * self.amplitude).astype(np.float32)
        y = x.copy()
        if self.arch == "llama":    # pairs of neighbours
            a, b = slice(0, self.n_rot, 2), slice(1, self.n_rot, 2)
        else:                       # pairs half a turn apart
            a, b = slice(0, self.n_rot // 2), slice(self.n_rot // 2, self.n_rot)
        y[..., a] = x[..., a] * c - x[..., b] * s
        y[..., b] = x[..., b] * c + x[..., a] * s
        return y

    def attention(self, layer, h):
        b, n = f"blk.{layer}.", len(h)
        q = self.rope(self.linear(h, b + "attn_q").reshape(n, self.heads, self.dim))
        k = self.rope(self.linear(h, b + "attn_k").reshape(n, self.kv_heads, self.dim))
        v = self.linear(h, b + "attn_v").reshape(n, self.kv_heads, self.v_dim)
        if self.cache[layer] is not None:
            k = np.concatenate((self.cache[layer][0], k))
            v = np.concatenate((self.cache[layer][1], v))
        self.cache[layer] = k, v
        q = q / np.float32(np.sqrt(self.dim))
        group = self.heads // self.kv_heads
        out = np.empty((n, self.heads, self.v_dim), np.float32)
        for t in range(0, n, CHUNK):
            end = min(t + CHUNK, n)
            seen = self.length + end
            hidden = np.arange(seen)[None] > self.length + np.arange(t, end)[:, None]
            for head in range(self.heads):
                a = q[t:end, head] @ k[:seen, head // group].T
                a[hidden] = -np.inf
                a -= a.max(axis=-1, keepdims=True)
                np.exp(a, out=a)
                a /= a.sum(axis=-1, keepdims=True)
                out[t:end, head] = a @ v[:seen, head // group]
        return self.linear(out.reshape(n, -1), b + "attn_output")

    def feed_forward(self, layer, h):
        b = f"blk.{layer}."
        gate = self.linear(h, b + "ffn_gate")
        gate = gate / (1 + np.exp(-gate))
        return self.linear(gate * self.linear(h, b + "ffn_up"), b + "ffn_down")

    def logits(self, ids, last):
        """Runs ids behind what was run before; logits of the last `last` of them."""
        x = self.embedding[np.asarray(ids)]
        for layer in range(self.layers):
            x = x + self.attention(layer, self.norm(x, f"blk.{layer}.attn_norm"))
            x = x + self.feed_forward(layer, self.norm(x, f"blk.{layer}.ffn_norm"))
        self.length += len(ids)
        return self.norm(x[len(x) - last:], "output_norm") @ self.output.T


# ---------------------------------------------------------------------------- commands

def mean_nll(model, ids, first):
    """Mean over the tokens first.. of -log p(token | all before it); logits a few at a time."""
    total = 0.0
    x = model.logits(ids[:first], 1).astype(np.float64)
    for t in range(first, len(ids), CHUNK):
        end = min(t + CHUNK, len(ids))
        rows = np.concatenate((x, model.logits(ids[t:end], end - t).astype(np.float64)))
        x = rows[-1:]
        rows = rows[:-1] - rows[:-1].max(axis=-1, keepdims=True)
        total += (np.log(np.exp(rows).sum(axis=-1)) - rows[np.arange(end - t), ids[t:end]]).sum()
    return total / (len(ids) - first)


def greedy(model, ids, count):
    out = []
    for _ in range(count):
        ids = [int(model.logits(ids, 1)[0].argmax())]
        out += ids
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens_file")
    parser.add_argument("--last", type=int, default=1, help="positions from the end; 0: all")
    parser.add_argument("--output", metavar="NPY")
    parser.add_argument("--nll", action="store_true")
    parser.add_argument("--from", dest="first", type=int, default=1, metavar="N")
    parser.add_argument("--greedy", type=int, default=0, metavar="N")
    o = parser.parse_args()
    with (sys.stdin if o.tokens_file == "-" else open(o.tokens_file)) as file:
        ids = [int(word) for word in file.read().split()]
    model = Model(o.model)
    if not ids or min(ids) < 0 or max(ids) >= len(model.embedding):
        raise SystemExit(f"{o.tokens_file}: no ids, or one beyond {len(model.embedding) - 1}")
    if o.nll:
        print(f"{mean_nll(model, ids, o.first):.6f}")
    elif o.greedy:
        print(*greedy(model, ids, o.greedy))
    else:
        last = min(o.last or len(ids), len(ids))
        out = model.logits(ids, last).astype("<f4")
        if o.output:
            np.save(o.output, out)
        for row, t in zip(out if not o.output else [], range(len(ids) - last, len(ids))):
            print(t, ids[t], "->", " ".join(f"{i}:{row[i]:.4f}" for i in np.argsort(-row)[:5]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
