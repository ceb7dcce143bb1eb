#!/usr/bin/env python3
"""An independent evaluation of traces in NumPy, and checks of what `headrace eval trace` and `trace capture` wrote.

    trace_reference.py eval FOLDER... --dump DIR --json FILE --moved 1%,5%
        Attention by `full`, `window`, `exact-topk` and `quest`, written from their definitions, against the outputs in DIR (to
        1e-4) and the figures in FILE. Every rule has the same sink (4 rows) and window: 64 rows at the first scored query; rows
        that come later join it until 256 wait behind the newest 64, and then become part of the body together.
    trace_reference.py capture FOLDER --model tiny.gguf --seed S
        Rows and queries of a captured trace of the embedded model against tiny_reference.py.

Shares no code with the library.
"""
import argparse
import json
import os
import sys

import numpy as np

SINK, WINDOW, DECODE_SEGMENT, PAGE = 4, 64, 256, 16
TOLERANCE = 1e-4


def load(folder):
    with open(os.path.join(folder, "meta.json")) as file:
        meta = json.load(file)
    arrays = {name: np.load(os.path.join(folder, name + ".npy")).astype(np.float64) for name in ("k", "v", "q", "q_seen")}
    return meta, arrays


def softmax_over(logits, values):
    weights = np.exp(logits - logits.max())
    return weights @ values / weights.sum()


class Schedule:
    """Where the body ends, and where its segments begin, as the text grows."""
    def __init__(self):
        self.end, self.starts = SINK, []

    def grow(self, length, first):
        waiting = length - WINDOW - self.end
        if waiting > 0 and (first or waiting >= DECODE_SEGMENT) and waiting >= DECODE_SEGMENT:
            self.starts.append(self.end)
            self.end += waiting

    def pages(self):
        """Runs of PAGE rows from the start of each segment; the last of a segment may be shorter."""
        bounds = self.starts + [self.end]
        return [np.arange(p, min(p + PAGE, end)) for a, end in zip(bounds, bounds[1:]) for p in range(a, end, PAGE)]


def exact_topk(logits, near_logits, rows, body):
    """logits [group][body]: the rows with the largest attention, added over the group."""
    share = 0
    for all_logits, own in zip(np.concatenate((logits, near_logits), axis=1), logits):
        share = share + np.exp(own - all_logits.max()) / np.exp(all_logits - all_logits.max()).sum()
    return body[np.argsort(-share, kind="stable")[:rows]]


def quest(q, k, rows, pages):
    """Pages by the upper bound of their logits, added over the group; what does not fit is passed over."""
    bounds = [sum(np.maximum(x * k[p].min(0), x * k[p].max(0)).sum() for x in q) for p in pages]
    chosen, left = [], rows
    for i in np.argsort(-np.array(bounds), kind="stable"):
        if len(pages[i]) <= left:
            chosen.append(pages[i])
            left -= len(pages[i])
    return np.concatenate(chosen) if chosen else np.zeros(0, int)


def evaluate(meta, a, share):
    """Outputs per rule, [n_q_heads][n_queries][dim], and the true ones."""
    group, positions = meta["n_q_heads"] // meta["n_kv_heads"], meta["q_positions"]
    shape = (meta["n_q_heads"], len(positions), meta["head_dim"])
    out = {rule: np.zeros(shape) for rule in ("full", "window", "exact-topk", "quest")}
    recall = {rule: np.zeros(shape[:2]) for rule in out}
    schedule = Schedule()
    for i, p in enumerate(positions):
        schedule.grow(p + 1, i == 0)
        body, seen = np.arange(SINK, schedule.end), np.arange(p + 1)
        near = np.concatenate((np.arange(SINK), np.arange(schedule.end, p + 1)))
        rows = int(share * len(body))
        for h in range(meta["n_kv_heads"]):
            k, v, q = a["k"][h], a["v"][h], a["q"][h * group:(h + 1) * group, i] * meta["scale"]
            chosen = {"full": body, "window": np.zeros(0, int),
                      "exact-topk": exact_topk(q @ k[body].T, q @ k[near].T, rows, body),
                      "quest": quest(q, k, rows, schedule.pages())}
            for g in range(group):
                logits = k @ q[g]
                mass = np.exp(logits[body] - logits[seen].max())
                for rule, picked in chosen.items():
                    at = np.concatenate((near, picked))
                    out[rule][h * group + g, i] = softmax_over(logits[at], v[at])
                    part = np.exp(logits[picked] - logits[seen].max()).sum()
                    recall[rule][h * group + g, i] = part / mass.sum() if len(body) else 1
    return out, recall


def errors(out, true):
    return np.linalg.norm(out - true, axis=-1) / np.linalg.norm(true, axis=-1)


def compare(name, got, want, tolerance):
    if not abs(got - want) <= tolerance:
        sys.exit(f"{name}: the tool has {got}, the reference {want}")


def check_result(result, error, recall, dumped_error):
    name = " ".join(result[key] for key in ("trace", "recipe", "moved"))
    compare(name + " error_mean", result["error_mean"], error.mean(), TOLERANCE)
    compare(name + " error_mean of the dump", result["error_mean"], dumped_error.mean(), 1e-6)
    compare(name + " error_p95", result["error_p95"], np.quantile(error, 0.95), TOLERANCE)
    compare(name + " error_max", result["error_max"], error.max(), TOLERANCE)
    compare(name + " mass_recall", result["mass_recall"], recall.mean(), TOLERANCE)


def run_eval(o):
    with open(o.json) as file:
        results = {(r["trace"], r["recipe"], r["moved"]): r for r in json.load(file)["results"]}
    checked, pooled = 0, {}
    for folder in o.folders:
        meta, a = load(folder)
        trace = os.path.basename(os.path.normpath(folder))
        for moved in o.moved.split(","):
            out, recall = evaluate(meta, a, float(moved.rstrip("%")) / 100)
            for rule, want in out.items():
                if (trace, rule, moved) not in results:
                    continue
                got = np.load(os.path.join(o.dump, trace, f"{rule}_{moved}.npy"))
                if got.shape != want.shape or got.dtype != np.dtype("<f4"):
                    sys.exit(f"{trace} {rule} {moved}: the dump is {got.dtype} {got.shape}")
                far = errors(got.astype(np.float64), want)
                if not far.max() < TOLERANCE:
                    h, i = np.unravel_index(far.argmax(), far.shape)
                    sys.exit(f"{trace} {rule} {moved}: query head {h}, query {i} differs by {far.max():.2g}")
                error = errors(want, out["full"])
                dumped = errors(got.astype(np.float64), out["full"])
                check_result(results[trace, rule, moved], error, recall[rule], dumped)
                pooled.setdefault((rule, moved), []).append((error, recall[rule], dumped))
                checked += 1
    for (rule, moved), parts in pooled.items():
        check_result(results["all", rule, moved], *(np.concatenate([x.ravel() for x in column]) for column in zip(*parts)))
    if checked == 0:
        sys.exit("nothing was checked")
    print(f"{checked} results agree")


def run_capture(o):
    import tiny_reference

    class Watched(tiny_reference.Model):
        def attention(self, layer, x, first, limit):
            if layer == self.wanted:
                b = f"blk.{layer}."
                h = self.norm(x, b + "attn_norm")
                self.k = self.rope((h @ self.w[b + "attn_k.weight"].T)[:, None], 0, self.bases[layer])[:, 0]
                self.v = h @ self.w[b + "attn_v.weight"].T
                q = self.rope((h @ self.w[b + "attn_q.weight"].T).reshape(len(x), self.heads, self.dim), 0, self.bases[layer])
                log_n = np.log(np.arange(len(x)) + 1)
                self.q = q * (1 + self.w[b + "attn_logn.weight"] * log_n[:, None])[:, :, None]
            return super().attention(layer, x, first, limit)

    meta, a = load(o.folders[0])
    model = Watched(o.model, np.float64)
    model.wanted = meta["layer"]
    model.logits(tiny_reference.make_text(meta["n_tokens"], 48, o.seed)[0], 1)
    pairs = [("k", a["k"][0], model.k), ("v", a["v"][0], model.v)]
    for name, positions in (("q", "q_positions"), ("q_seen", "q_seen_positions")):
        pairs.append((name, a[name], model.q[meta[positions]].transpose(1, 0, 2)))
    for name, got, want in pairs:
        far = np.abs(got - want).max() / np.abs(want).max()
        if not far < 2e-3:                                         # float16, and float32 sums
            sys.exit(f"{name}: differs by {far:.2g} of the largest number")
    if not (meta["rope"]["layout"] == "half" and meta["rope"]["base"] == model.bases[meta["layer"]]):
        sys.exit(f"rope is {meta['rope']}")
    print("the captured rows and queries are the model's")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("what", choices=("eval", "capture"))
    ap.add_argument("folders", nargs="+")
    ap.add_argument("--dump")
    ap.add_argument("--json")
    ap.add_argument("--moved", default="1%")
    ap.add_argument("--model")
    ap.add_argument("--seed", type=int, default=0)
    o = ap.parse_args()
    run_eval(o) if o.what == "eval" else run_capture(o)


if __name__ == "__main__":
    main()
