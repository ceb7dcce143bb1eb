#!/usr/bin/env python3
"""Independent forward pass of the embedded retrieval model, in NumPy with dense attention.

    tiny_reference.py MODEL.gguf TOKENS_FILE [--last N] [--double] [--output FILE.npy]
    tiny_reference.py make-text --tokens N --keys K --seed S [--answers FILE] [--output FILE]
    tiny_reference.py check MODEL.gguf --tokens N [--keys K] [--seed S] [--texts M] [--window W]

The first form writes the logits of the last N positions (float32, [N][192]) as .npy, or prints the best
tokens of each. TOKENS_FILE holds words (k07 v12 f33) or ids (7 76 161), separated by whitespace; - is
standard input. check asks all keys of M made texts (seeds S, S + 1, ...) and exits 1 unless every
answer is right; --window lets the global layers see the last W tokens only. The architecture, the file and the text
are fixed by engine/models/README.md; this file shares no code with the engine or the training script.
"""
import argparse
import struct
import sys

import numpy as np

CHUNK = 256                     # queries per piece of attention; 16K tokens then need about 70 MB


# ---------------------------------------------------------------------------- GGUF

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
F32, Q8_0 = 0, 8


class Reader:
    def __init__(self, raw):
        self.raw, self.at = raw, 0

    def scalar(self, code):
        value, = struct.unpack_from("<" + code, self.raw, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        length = self.scalar("Q")
        self.at += length
        return self.raw[self.at - length:self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            kind, count = self.scalar("I"), self.scalar("Q")
            return [self.value(kind) for _ in range(count)]
        return self.scalar(SCALARS[kind])


def dequantise(raw, offset, kind, dims):
    count = int(np.prod(dims))
    shape = tuple(reversed(dims))
    if kind == F32:
        return np.frombuffer(raw, "<f4", count, offset).reshape(shape)
    if kind != Q8_0:
        raise SystemExit(f"tensor type {kind} is not expected in this model")
    block = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])
    blocks = np.frombuffer(raw, block, count // 32, offset)
    return (blocks["scale"].astype(np.float32)[:, None] * blocks["codes"]).reshape(shape)


def load_gguf(path):
    """Returns (metadata, tensors)."""
    with open(path, "rb") as file:
        raw = file.read()
    r = Reader(raw)
    if raw[:4] != b"GGUF":
        raise SystemExit(f"{path}: not a GGUF file")
    r.at = 4
    version, n_tensors, n_entries = r.scalar("I"), r.scalar("Q"), r.scalar("Q")
    if version != 3:
        raise SystemExit(f"{path}: GGUF version {version}, expected 3")
    meta = {}
    for _ in range(n_entries):
        name = r.string()
        meta[name] = r.value(r.scalar("I"))
    infos = []
    for _ in range(n_tensors):
        name, n_dims = r.string(), r.scalar("I")
        dims = [r.scalar("Q") for _ in range(n_dims)]
        infos.append((name, r.scalar("I"), dims, r.scalar("Q")))
    align = meta.get("general.alignment", 32)
    start = -(-r.at // align) * align
    return meta, {name: dequantise(raw, start + offset, kind, dims)
                  for name, kind, dims, offset in infos}


# ---------------------------------------------------------------------------- forward pass

class Model:
    def __init__(self, path, dtype=np.float32):
        meta, tensors = load_gguf(path)
        p = meta["general.architecture"] + "."
        if p != "headrace-tiny.":
            raise SystemExit(f"{path}: architecture {p[:-1]}, expected headrace-tiny")
        self.words = meta["tokenizer.ggml.tokens"]
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.layers = meta[p + "block_count"]
        self.heads = meta[p + "attention.head_count"]
        self.dim = meta[p + "attention.key_length"]
        self.eps = meta[p + "attention.layer_norm_epsilon"]
        self.windows = meta[p + "attention.sliding_window"]
        self.bases = meta[p + "rope.freq_base"]
        self.dtype = dtype
        self.w = {name: value.astype(dtype) for name, value in tensors.items()}

    def norm(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.dtype(self.eps))
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def rope(self, x, first, base):
        """x [tokens][heads][dim], the first token at position `first`; pairs (i, i + dim/2)."""
        half = self.dim // 2
        angle = np.outer(first + np.arange(len(x)), base ** (-np.arange(half) / half))
        c, s = np.cos(angle).astype(self.dtype)[:, None], np.sin(angle).astype(self.dtype)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate((a * c - b * s, b * c + a * s), axis=-1)

    def attention(self, layer, x, first, limit):
        """Output rows of the tokens first.. of x; limit: rows seen, 0 for all."""
        n, d, b = len(x), self.dim, f"blk.{layer}."
        h = self.norm(x, b + "attn_norm")
        k = self.rope((h @ self.w[b + "attn_k.weight"].T)[:, None], 0, self.bases[layer])[:, 0]
        v = h @ self.w[b + "attn_v.weight"].T
        q = (h[first:] @ self.w[b + "attn_q.weight"].T).reshape(n - first, self.heads, d)
        q = self.rope(q, first, self.bases[layer]) / self.dtype(np.sqrt(d))
        if b + "attn_logn.weight" in self.w:
            log_n = np.log(np.arange(first, n) + 1).astype(self.dtype)
            q *= (1 + self.w[b + "attn_logn.weight"] * log_n[:, None])[:, :, None]
        out = np.empty((n - first, self.heads * d), self.dtype)
        for t in range(first, n, CHUNK):
            end = min(t + CHUNK, n)
            low = max(0, t - limit + 1) if limit else 0
            a = q[t - first:end - first].transpose(1, 0, 2) @ k[low:end].T
            # Without a limit only the keys of this very chunk can lie in a query's future.
            edge = low if limit else t
            query, key = np.arange(t, end)[:, None], np.arange(edge, end)[None]
            hidden = key > query
            if limit:
                hidden |= query - key >= limit
            a[:, :, edge - low:][:, hidden] = -np.inf
            a -= a.max(axis=-1, keepdims=True)
            a[a < -80] = -np.inf        # below f32's reach beside 1; subnormal weights are very slow
            np.exp(a, out=a)
            o = (a @ v[low:end]) / a.sum(axis=-1, keepdims=True)
            out[t - first:end - first] = o.transpose(1, 0, 2).reshape(end - t, -1)
        return out @ self.w[b + "attn_output.weight"].T

    def mlp(self, layer, x):
        u = self.norm(x, f"blk.{layer}.ffn_norm") @ self.w[f"blk.{layer}.ffn_up.weight"].T
        c = self.dtype(np.sqrt(2 / np.pi))
        u = self.dtype(0.5) * u * (1 + np.tanh(c * (u + self.dtype(0.044715) * u * u * u)))
        return u @ self.w[f"blk.{layer}.ffn_down.weight"].T

    def logits(self, ids, last, global_limit=0):
        """Logits of the last `last` positions, [last][vocabulary]."""
        e = self.w["token_embd.weight"][np.asarray(ids)]
        x = e.copy()
        x[1:] += self.w["smear.weight"] * e[:-1]
        for layer in range(self.layers):
            # Of the last layer only the rows that are asked for are needed.
            first = len(x) - last if layer == self.layers - 1 else 0
            limit = self.windows[layer] or global_limit
            x = x[first:] + self.attention(layer, x, first, limit)
            x = x + self.mlp(layer, x)
        return self.norm(x, "output_norm") @ self.w["output.weight"].T


# ---------------------------------------------------------------------------- texts

class Splitmix64:
    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        m = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & m
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & m
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & m
        return (z ^ (z >> 31)) % n


def make_text(tokens, keys, seed):
    """Ids of the whole text and the answers' ids in the order of the questions."""
    if not 1 <= keys <= 64:
        raise SystemExit(f"--keys {keys}: expected 1 to 64")
    least = 2 * keys + (8 * keys + 2) // 3
    if tokens < least:
        raise SystemExit(f"--tokens {tokens}: {keys} keys need at least {least} tokens")
    rng = Splitmix64(seed)
    names = list(range(64))
    for i in range(keys):
        j = i + rng.below(64 - i)
        names[i], names[j] = names[j], names[i]
    values = [64 + rng.below(64) for _ in range(keys)]
    body = tokens - 2 * keys
    text = [128 + rng.below(64) for _ in range(body)]
    span = 3 * body // 4
    for i in range(keys):
        low, high = i * span // keys, (i + 1) * span // keys
        at = low + rng.below(high - low - 1)
        text[at], text[at + 1] = names[i], values[i]
    order = list(range(keys))
    for i in range(keys - 1):
        j = i + rng.below(keys - i)
        order[i], order[j] = order[j], order[i]
    for i in order:
        text += [names[i], values[i]]
    return text, [values[i] for i in order]


def word(i):
    return f"{'kvf'[i // 64]}{i % 64:02d}"


# ---------------------------------------------------------------------------- commands

def command_logits(o):
    model = Model(o.model, np.float64 if o.double else np.float32)
    with (sys.stdin if o.tokens_file == "-" else open(o.tokens_file)) as file:
        text = file.read().split()
    try:
        ids = [model.ids[w] if w in model.ids else int(w) for w in text]
    except ValueError as error:
        raise SystemExit(f"{o.tokens_file}: {error}") from None
    if not ids or min(ids) < 0 or max(ids) >= len(model.words):
        raise SystemExit(f"{o.tokens_file}: no tokens, or an id that is not in 0..{len(model.words) - 1}")
    last = min(o.last or len(ids), len(ids))
    out = model.logits(ids, last).astype(np.float32)
    if o.output:
        np.save(o.output, out)
        return 0
    for row, t in zip(out, range(len(ids) - last, len(ids))):
        best = np.argsort(-row)[:3]
        print(t, model.words[ids[t]], "->", " ".join(f"{model.words[i]}:{row[i]:.4f}" for i in best))
    return 0


def command_make_text(o):
    text, answers = make_text(o.tokens, o.keys, o.seed)
    words = [word(i) for i in text]
    with (open(o.output, "w") if o.output else sys.stdout) as file:
        for t in range(0, len(words), 16):
            file.write(" ".join(words[t:t + 16]) + "\n")
    if o.answers:
        with open(o.answers, "w") as file:
            file.write("".join(word(i) + "\n" for i in answers))
    return 0


def command_check(o):
    model = Model(o.model)
    right, margin = 0, np.inf
    for seed in range(o.seed, o.seed + o.texts):
        text, answers = make_text(o.tokens, o.keys, seed)
        rows = model.logits(text, 2 * o.keys, o.window)[::2]
        best = rows.argmax(axis=-1)
        right += int((best == answers).sum())
        hit = rows[np.arange(o.keys), answers]
        rows[np.arange(o.keys), answers] = -np.inf
        margin = min(margin, float((hit - rows.max(axis=-1)).min()))
    asked = o.keys * o.texts
    print(f"{o.tokens} tokens, {o.keys} keys, {o.texts} texts: {right}/{asked} right "
          f"({right / asked:.3f}), smallest margin {margin:.2f}", flush=True)
    return 0 if right == asked else 1


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("logits", help="the default command: logits of a token file")
    p.add_argument("model")
    p.add_argument("tokens_file")
    p.add_argument("--last", type=int, default=0, help="positions, counted from the end; 0: all")
    p.add_argument("--double", action="store_true", help="compute in float64")
    p.add_argument("--output", metavar="NPY")
    p.set_defaults(run=command_logits)
    p = commands.add_parser("make-text", help="print a text")
    p.add_argument("--tokens", type=int, required=True)
    p.add_argument("--keys", type=int, default=48)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--answers", metavar="FILE", help="write the expected answers, one to a line")
    p.add_argument("--output", metavar="FILE")
    p.set_defaults(run=command_make_text)
    p = commands.add_parser("check", help="ask all keys of made texts")
    p.add_argument("model")
    p.add_argument("--tokens", type=int, required=True)
    p.add_argument("--keys", type=int, default=48)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--texts", type=int, default=1)
    p.add_argument("--window", type=int, default=0)
    p.set_defaults(run=command_check)
    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-") and argv[0] not in commands.choices:
        argv.insert(0, "logits")
    options = parser.parse_args(argv)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
