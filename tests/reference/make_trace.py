#!/usr/bin/env python3
"""Makes a trace (docs/traces.md) of made-up rows: keys around topics, queries that favour a few of them.

    make_trace.py FOLDER [--seed S] [--tokens T] [--kv-heads N] [--group G] [--dim D] [--seen N] [--queries N] [--stride N]
                         [--rope] [--break WHAT]

--break leaves one thing wrong, for tests of the reader; `--break list` names them all, `--break all` makes FOLDER/WHAT for each.
"""
import argparse
import json
import os
import sys

import numpy as np

BASE = 10000.0


def rotate(x, positions):
    """x [..., n, dim] at positions [n]; dimension i pairs with i + dim/2."""
    half = x.shape[-1] // 2
    angle = np.outer(positions, BASE ** (-np.arange(half) / half))
    c, s = np.cos(angle), np.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * c - b * s, b * c + a * s), axis=-1)


def rows_and_queries(o, seen, scored):
    rng = np.random.default_rng(o.seed)
    h, d, topics = o.kv_heads, o.dim, max(4, o.tokens // 40)
    centres = 2.0 * rng.standard_normal((h, topics, d))
    values = rng.standard_normal((h, topics, d))
    topic = rng.integers(topics, size=(h, o.tokens))
    take = np.arange(h)[:, None]
    k = centres[take, topic] + 0.7 * rng.standard_normal((h, o.tokens, d))
    v = values[take, topic] + 0.5 * rng.standard_normal((h, o.tokens, d)) + 0.3
    k[:, 0] *= 1.5                                   # a sink
    queries = []
    for positions in (seen, scored):
        wanted = rng.integers(topics, size=(h, o.group, len(positions)))
        q = 0.8 * centres[np.arange(h)[:, None, None], wanted]
        q = q + 0.6 * rng.standard_normal(q.shape)
        queries.append(rotate(q, positions) if o.rope else q)
    k = rotate(k, np.arange(o.tokens)) if o.rope else k
    flat = [q.reshape(h * o.group, -1, d).astype("<f4") for q in queries]
    return k.astype("<f2"), v.astype("<f2"), flat[0], flat[1]


def header(descr="'<f2'", order="False", shape="(2, 8, 8)", version=b"\x01\x00", pad=True, extra=""):
    text = "{'descr': %s, 'fortran_order': %s, 'shape': %s, %s}" % (descr, order, shape, extra)
    if pad:
        text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


def replace_bytes(path, edit):
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(edit(data))


def array_break(name, change):
    def apply(folder, meta):
        path = os.path.join(folder, name)
        np.save(path, change(np.load(path)))
    return apply


def bytes_break(name, edit):
    return lambda folder, meta: replace_bytes(os.path.join(folder, name), edit)


def meta_break(**changes):
    def apply(folder, meta):
        for key, value in changes.items():
            if value is None:
                del meta[key]
            else:
                meta[key] = value(meta) if callable(value) else value
    return apply


def text_break(edit):
    def apply(folder, meta):
        path = os.path.join(folder, "meta.json")
        with open(path, "w") as file:
            json.dump(meta, file)
        replace_bytes(path, edit)
    apply.writes = True
    return apply


def unfinite(value, index):
    def change(x):
        x = x.copy()
        x[index] = value
        return x
    return change


BREAKS = {
    "no-meta": lambda folder, meta: meta.clear(),
    "no-k": lambda folder, meta: os.unlink(os.path.join(folder, "k.npy")),
    "no-q-seen": lambda folder, meta: os.unlink(os.path.join(folder, "q_seen.npy")),
    "empty-v": bytes_break("v.npy", lambda b: b""),
    "short-header": bytes_break("v.npy", lambda b: b[:40]),
    "short-k": bytes_break("k.npy", lambda b: b[:-2]),
    "long-k": bytes_break("k.npy", lambda b: b + b"\0"),
    "magic": bytes_break("k.npy", lambda b: b"PK" + b[2:]),
    "version": bytes_break("k.npy", lambda b: b[:6] + b"\x03\x00" + b[8:]),
    "long-header": bytes_break("k.npy", lambda b: b[:6] + b"\x02\x00" + (1 << 30).to_bytes(4, "little") + b[10:]),
    "absurd-shape": bytes_break("k.npy", lambda b: header(shape="(4000000000, 4000000000, 4000000000)")),
    "no-dictionary": bytes_break("k.npy", lambda b: b.replace(b"{", b"[", 1)),
    "unknown-key": bytes_break("k.npy", lambda b: b.replace(b"'shape'", b"'shapo'", 1)),
    "twice": bytes_break("k.npy", lambda b: header(extra="'descr': '<f2'")),
    "structured": bytes_break("k.npy", lambda b: header(descr="[('a', '<f2')]")),
    "order-word": bytes_break("k.npy", lambda b: b.replace(b"False", b"Falso", 1)),
    "double-q": array_break("q.npy", lambda x: x.astype("<f8")),
    "float-k": array_break("k.npy", lambda x: x.astype("<f4")),
    "int-v": array_break("v.npy", lambda x: x.astype("<i2")),
    "big-endian-q": array_break("q.npy", lambda x: x.astype(">f4")),
    "fortran-k": array_break("k.npy", np.asfortranarray),
    "shape-q": array_break("q.npy", lambda x: x[:, :-1]),
    "shape-v": array_break("v.npy", lambda x: x[:, :, :-8]),
    "flat-k": array_break("k.npy", lambda x: x.ravel()),
    "nan-k": array_break("k.npy", unfinite(np.nan, (1, 5, 3))),
    "inf-v": array_break("v.npy", unfinite(np.inf, (0, 0, 0))),
    "nan-q": array_break("q.npy", unfinite(np.nan, (2, 1, 7))),
    "inf-q-seen": array_break("q_seen.npy", unfinite(-np.inf, (0, 2, 0))),
    "format": meta_break(format="headrace-trace-2"),
    "no-format": meta_break(format=None),
    "no-scale": meta_break(scale=None),
    "scale": meta_break(scale=-1),
    "heads": meta_break(n_q_heads=3),
    "more-tokens": meta_break(n_tokens=lambda m: m["n_tokens"] + 1),
    "absurd-tokens": meta_break(n_tokens=1 << 40),
    "no-tokens": meta_break(n_tokens=0),
    "half-token": meta_break(n_tokens=10.5),
    "text-tokens": meta_break(n_tokens="many"),
    "dim": meta_break(head_dim=12),
    "position": meta_break(q_positions=lambda m: m["q_positions"][:-1] + [m["n_tokens"]]),
    "negative": meta_break(q_positions=lambda m: [-1] + m["q_positions"][1:]),
    "falling": meta_break(q_positions=lambda m: m["q_positions"][1::-1] + m["q_positions"][2:]),
    "equal": meta_break(q_seen_positions=lambda m: [m["q_seen_positions"][0]] * 2 + m["q_seen_positions"][2:]),
    "no-queries": meta_break(q_positions=[]),
    "positions-text": meta_break(q_positions="all"),
    "rope-layout": meta_break(rope={"base": 1e4, "layout": "spiral"}),
    "rope-base": meta_break(rope={"base": 0.5, "layout": "half"}),
    "rope-list": meta_break(rope=[1]),
    "twice-rope": text_break(lambda b: b[:-1] + b', "rope": {"base": 10000.0, "layout": "half"}' * 2 + b"}"),
    "not-json": text_break(lambda b: b[:-5]),
    "after-json": text_break(lambda b: b + b" x"),
    "json-list": text_break(lambda b: b"[1, 2]"),
    "zero-byte": text_break(lambda b: b[:9] + b"\0" + b[10:]),
    "twice-layer": text_break(lambda b: b.replace(b'"layer": 1', b'"layer": 1, "layer": 2', 1)),
}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("folder")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--tokens", type=int, default=1400)
    ap.add_argument("--kv-heads", type=int, default=2)
    ap.add_argument("--group", type=int, default=2)
    ap.add_argument("--dim", type=int, default=32)
    ap.add_argument("--seen", type=int, default=40)
    ap.add_argument("--queries", type=int, default=20)
    ap.add_argument("--stride", type=int, default=3)
    ap.add_argument("--rope", action="store_true")
    ap.add_argument("--break", dest="wrong")
    o = ap.parse_args()
    if o.wrong == "list":
        print("\n".join(BREAKS))
        return
    if o.wrong == "all":
        for wrong in BREAKS:
            make(o, os.path.join(o.folder, wrong), wrong)
    else:
        make(o, o.folder, o.wrong)


def make(o, folder, wrong):
    scored = np.arange(o.tokens - o.queries * o.stride, o.tokens, o.stride)
    seen = np.arange(scored[0] - o.seen, scored[0])
    k, v, q_seen, q = rows_and_queries(o, seen, scored)
    os.makedirs(folder, exist_ok=True)
    for name, x in (("k", k), ("v", v), ("q_seen", q_seen), ("q", q)):
        np.save(os.path.join(folder, name + ".npy"), x)
    meta = {"format": "headrace-trace-1", "model": "made up", "layer": 1, "n_q_heads": o.kv_heads * o.group,
            "n_kv_heads": o.kv_heads, "head_dim": o.dim, "n_tokens": o.tokens, "scale": o.dim ** -0.5,
            "q_seen_positions": seen.tolist(), "q_positions": scored.tolist()}
    if o.rope:
        meta["rope"] = {"base": BASE, "layout": "half"}
    if wrong:
        if wrong not in BREAKS:
            sys.exit(f"--break {wrong}: there are {', '.join(BREAKS)}")
        BREAKS[wrong](folder, meta)
        if not meta or getattr(BREAKS[wrong], "writes", False):
            return
    with open(os.path.join(folder, "meta.json"), "w") as file:
        json.dump(meta, file)


if __name__ == "__main__":
    main()
