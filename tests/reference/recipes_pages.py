"""Selection rules written from the papers' definitions: pages, clusters as blocks, rows by exact or partial scores, and heads of
different kinds. recipes_judge.py compares the library's recipes with them; recipes_rows.py has the rules with indexes of rows.

Plain NumPy in double, nothing shared with the library. What the library stores as float16 (bounds, mean keys and values, factors of a
decomposition) is rounded to float16 here too.
"""
import json
import os

import numpy as np

DEFAULTS = {
    "full": dict(sink=4, window=64), "window": dict(sink=4, window=64), "exact-topk": dict(sink=4, window=64),
    "quest": dict(sink=4, window=64, page=16), "arkvale": dict(sink=64, window=64, page=32),
    "shadowkv": dict(sink=4, window=32, block=8, outliers=48, rank=160),
    "retroinfer": dict(sink=4, window=64, block=16, estimate=0.232, iterations=10),
    "freekv": dict(sink=4, window=64, page=32, tau=0.8),
    "louiskv": dict(sink=4, window=64, block=16, iterations=10, tau=0.7),
    "actqkv": dict(sink=4, window=64, page=32, queries=16, probes=0.25),
    "lserve": dict(sink=64, window=256, page=64, logical=16, steps=4, streaming=0.5),
    "tokenselect": dict(sink=128, window=512, reuse_cosine=0.9),
    "infinigen": dict(sink=4, window=64, columns=0.3, alpha=4, most=0.2),
    "instinfer": dict(sink=4, window=64),
    "duoattention": dict(sink=64, window=256, threshold=0.5, sparsity=0),
    "rlkv": dict(sink=16, window=64, threshold=0.5, sparsity=0),
    "razorattention": dict(sink=4, window=4000, threshold=0.5, retrieval=0.15),
    "task-kv": dict(sink=4, window=64, threshold=0.5, heterogeneous=0.25),
}


def half(x):
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float64)


def half_down(x):
    h = np.asarray(x, np.float32).astype(np.float16)
    return np.where(h.astype(np.float64) > x, np.nextafter(h, np.float16(-np.inf)), h).astype(np.float64)


def half_up(x):
    return -half_down(-np.asarray(x, np.float64))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cosine(a, b):
    """Mean over the query heads."""
    return float(np.mean((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))))


class Run:
    def __init__(self, folder):
        self.folder = folder
        m = json.load(open(os.path.join(folder, "meta.json")))
        self.name, _, text = m["recipe"].partition(":")
        self.p = dict(DEFAULTS[self.name], segment=8192, decode_segment=256)
        self.argument = ""
        if self.name == "faiss":                     # faiss:FACTORY;key=value;key=value
            self.argument, _, text = text.partition(";")
        for item in filter(None, text.replace(";", ",").split(",")):
            key, value = item.split("=")
            self.p[key] = float(value)
        self.moved, self.n_q, self.n_kv, self.dk, self.dv = (m[x] for x in ("moved", "n_q", "n_kv", "dk", "dv"))
        self.g, self.prompt, self.steps, self.chunk = self.n_q // self.n_kv, m["prompt"], m["steps"], m["chunk"]
        self.rope, self.gates, self.early = m["rope"], np.array(m["gates"]), m["early"]
        n = self.prompt + self.steps
        load = lambda name, *shape, t=np.float32: np.fromfile(os.path.join(folder, name), t).reshape(shape)
        self.k = load("k.bin", n, self.n_kv, self.dk).astype(np.float64)
        self.v = load("v.bin", n, self.n_kv, self.dv).astype(np.float64)
        scale = np.float32(1 / np.sqrt(np.float32(self.dk)))
        q = load("q.bin", n, self.n_q, self.dk).reshape(n, self.n_kv, self.g, self.dk)
        self.q = (q * scale).astype(np.float64)
        self.q_early = (load("early.bin", n, self.n_q, self.dk).reshape(q.shape) * scale).astype(np.float64)
        self.out = load("out.bin", self.steps, self.n_kv, self.g, self.dv).astype(np.float64)
        self.refined = load("refined.bin", self.steps, self.n_kv, n, t=np.uint8) != 0
        body = load("body.bin", self.steps, 2, t=np.uint32)
        self.body, self.selected_bytes = body[:, 0].astype(int), body[:, 1].astype(int)
        self.sink, self.window = int(self.p["sink"]), int(self.p["window"])
        self.row_bytes = 4 * (self.dk + self.dv)
        self.stored_bytes = self.row_bytes
        self.worst = 0.0

    def state(self, name, *shape, t=np.float32):
        """What the test dumped of the library: random draws, never results. shape has no [n_kv]."""
        return np.fromfile(os.path.join(self.folder, name), t).reshape(self.n_kv, *shape)

    def turn(self, x, positions, sign):
        """Rotary embedding of x [n][..][dk] by sign times positions [n]."""
        if not self.rope:
            return x
        pairs = self.dk // 2
        theta = np.float32(10000.0 ** (-2.0 * np.arange(pairs) / self.dk)).astype(np.float64)
        a, b = (slice(0, pairs), slice(pairs, None)) if self.rope == 1 else (slice(0, None, 2), slice(1, None, 2))
        angle = sign * np.asarray(positions, float).reshape(-1, *[1] * (x.ndim - 1)) * theta
        y = np.empty_like(x)
        y[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)
        y[..., b] = x[..., a] * np.sin(angle) + x[..., b] * np.cos(angle)
        return y

    def budget(self, body):
        return int(self.moved * body * self.row_bytes)

    def near(self, step):
        """Tokens that are exact for everyone."""
        n, first = self.prompt + step + 1, self.sink + self.body[step]
        return np.r_[0:min(self.sink, n), first:n] if n > self.sink else np.arange(n)

    def body_keys(self, h, n):
        return self.k[self.sink:self.sink + n, h]

    def body_values(self, h, n):
        return self.v[self.sink:self.sink + n, h]

    def chunks(self):
        """The prompt's queries as they were shown: (first position, [n][n_kv][g][dk])."""
        for i in range(0, self.prompt, self.chunk):
            yield i, self.q[i:min(i + self.chunk, self.prompt)]


# ------------------------------------------------------------------------------------------- rules
# A rule has add(first, n) for a segment of the body's rows, and choose(step, q [n_kv][g][dk]) that returns, per kv-head, a list of
# (unit's rows, score), or the word "all"; extra(step, h, q) -> [(log weights [g], values [g][dv])] of what is estimated.

class Rule:
    def __init__(self, run):
        self.run, self.p = run, run.p
        self.n = 0

    def add(self, first, n):
        self.n = first + n

    def extra(self, step, h, q):
        return []

    def key(self, h, row):
        return None

    def row_weights(self, step, h, q, rows):
        """What is added to the logits [g][rows] of the body's rows that were read."""
        return None

    def variants(self, h):
        """More than one where rounding may decide what an output is made of."""
        yield

    def after(self, step, q):
        pass


def take(units, scores, budget, row_bytes):
    """The best first, while they fit; what does not fit is passed over (64 times at most)."""
    chosen, left, passed = [], budget, 0
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        if left < row_bytes or passed == 64:
            break
        cost = len(units[i]) * row_bytes
        if cost > left:
            passed += 1
            continue
        chosen.append(i)
        left -= cost
    return chosen


class Paged(Rule):
    """Consecutive pages; subclasses summarise() a page and score() pages."""
    size = "page"

    def __init__(self, run):
        super().__init__(run)
        self.units = []
        self.data = [[] for _ in range(run.n_kv)]

    def add(self, first, n):
        super().add(first, n)
        size = int(self.p[self.size])
        for a in range(first, first + n, size):
            rows = np.arange(a, min(a + size, first + n))
            self.units.append(rows)
            for h in range(self.run.n_kv):
                self.data[h].append(self.summarise(h, rows))

    def scores(self, h, q):
        return self.score(q, [np.stack(x) for x in zip(*self.data[h])])

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            s = self.scores(h, q[h]) if self.units else []
            result.append((self.units, s, take(self.units, s, self.budget(step, h), self.run.stored_bytes)))
        return result

    def budget(self, step, h):
        return self.run.budget(self.run.body[step])


def box_bound(q, low, high):
    return np.maximum(q[:, None] * low[None], q[:, None] * high[None]).sum(-1)        # [g][pages]


class Quest(Paged):
    def summarise(self, h, rows):
        k = self.run.body_keys(h, self.n)[rows]
        return half_down(k.min(0)), half_up(k.max(0))

    def score(self, q, data):
        return box_bound(q, *data).sum(0)


class ArkVale(Paged):
    def summarise(self, h, rows):
        k = self.run.body_keys(h, self.n)[rows]
        center = k.mean(0)
        deviation = np.abs(k - center).mean(0)
        return half(center - deviation), half(center + deviation)

    def score(self, q, data):
        return box_bound(q, *data).sum(0)


class FreeKV(Quest):
    def __init__(self, run):
        super().__init__(run)
        self.last = run.q[run.prompt - 1] if run.prompt else None

    def scores(self, h, q):
        if self.last is not None and cosine(self.last[h], q) >= self.p["tau"]:
            q = self.last[h]
        return super().scores(h, q)

    def score(self, q, data):
        return softmax(box_bound(q, *data)).sum(0)

    def after(self, step, q):
        self.last = q


class ShadowKV(Paged):
    size = "block"

    def __init__(self, run):
        super().__init__(run)
        self.cosines = [[] for _ in range(run.n_kv)]
        self.rank = min(int(self.p["rank"]), run.n_kv * run.dk)
        self.rebuilt = np.zeros((run.prompt + run.steps, run.n_kv, run.dk))
        self.basis = None
        if self.rank:
            run.stored_bytes = 4 * run.dv

    def add(self, first, n):
        super().add(first, n)
        if not self.rank:
            return
        positions = self.run.sink + np.arange(first, first + n)
        x = self.run.turn(self.run.k[positions], positions, -1).reshape(n, -1)
        if self.basis is None or 2 * n >= self.p["segment"]:
            self.basis = half(np.linalg.svd(x, full_matrices=True)[2][:self.rank])
        rows = half(x @ self.basis.T) @ self.basis
        self.rebuilt[first:first + n] = self.run.turn(rows.reshape(n, self.run.n_kv, self.run.dk), positions, 1)

    def summarise(self, h, rows):
        k = self.run.body_keys(h, self.n)[rows]
        mean = k.mean(0)
        lengths = np.linalg.norm(k, axis=1) * np.linalg.norm(mean)
        self.cosines[h].append(min(1.0, ((k @ mean) / lengths).min()))
        return (half(mean),)

    def outliers(self, h):
        return set(np.argsort(self.cosines[h], kind="stable")[:int(self.p["outliers"])])

    def scores(self, h, q):
        land = np.stack([x[0] for x in self.data[h]])
        keep = np.array([i for i in range(len(land)) if i not in self.outliers(h)], int)
        s = np.full(len(land), -np.inf)
        if len(keep):
            s[keep] = softmax(q @ land[keep].T).max(0)
        return s

    def choose(self, step, q):
        result = super().choose(step, q)
        return [(u, s, [i for i in c if s[i] > -np.inf]) for u, s, c in result]

    def extra(self, step, h, q):
        rows = [r for i in self.outliers(h) for r in self.units[i]] if self.units else []
        return [(q @ self.run.body_keys(h, self.n)[r], np.repeat(self.run.body_values(h, self.n)[r][None], len(q), 0))
                for r in rows]

    def key(self, h, row):
        return self.rebuilt[row, h] if self.rank else None


def spherical_kmeans(x, k, iterations):
    """Strided start; centroids of length 1 for the assignment, means for the update."""
    c = x[(np.arange(k) * len(x) // k) + len(x) // k // 2].copy()
    for _ in range(iterations):
        c /= np.linalg.norm(c, axis=1, keepdims=True) + 1e-9
        a = (x @ c.T).argmax(1)
        for j in range(k):
            if (a == j).any():
                c[j] = x[a == j].mean(0)
    return [np.flatnonzero(a == j) for j in range(k) if (a == j).any()]


class Clustered(Rule):
    def __init__(self, run):
        super().__init__(run)
        self.units = [[] for _ in range(run.n_kv)]
        self.means = [[] for _ in range(run.n_kv)]

    def append(self, h, rows):
        self.units[h].append(rows)
        self.means[h].append((half(self.run.body_keys(h, self.n)[rows].mean(0)),
                              half(self.run.body_values(h, self.n)[rows].mean(0))))

    def clusters(self, h, first, n):
        x = self.run.body_keys(h, self.n)[first:first + n]
        x = np.float32(x - x.mean(0)).astype(np.float64)
        return [first + rows for rows in spherical_kmeans(x, max(1, n // int(self.p["block"])), int(self.p["iterations"]))]

    def dots(self, h, q):
        return q @ np.stack([m[0] for m in self.means[h]]).T


class RetroInfer(Clustered):
    def add(self, first, n):
        super().add(first, n)
        for h in range(self.run.n_kv):
            for rows in self.clusters(h, first, n):
                self.append(h, rows)

    def choose(self, step, q):
        self.zone, result = [], []
        for h in range(self.run.n_kv):
            if not self.units[h]:
                self.zone.append([])
                result.append(([], [], []))
                continue
            s = softmax(self.dots(h, q[h])).sum(0)
            chosen = take(self.units[h], s, self.run.budget(self.run.body[step]), self.run.row_bytes)
            rest = [i for i in np.argsort(-s, kind="stable") if i not in chosen]
            self.zone.append(rest[:int(self.p["estimate"] * len(s))])
            result.append((self.units[h], s, chosen))
        return result

    def extra(self, step, h, q):
        return [(q @ self.means[h][i][0] + np.log(len(self.units[h][i])), np.repeat(self.means[h][i][1][None], len(q), 0))
                for i in self.zone[h]]


class LouisKV(Clustered):
    def __init__(self, run):
        super().__init__(run)
        self.first, self.kept = [None] * run.n_kv, [None] * run.n_kv
        self.boundaries = [set() for _ in range(run.n_kv)]

    def add(self, first, n):
        super().add(first, n)
        block, prompt_end = int(self.p["block"]), self.run.prompt if self.run.prompt > 1 else 0
        start = self.run.sink + first
        prompt = n if n > self.p["decode_segment"] or start + n <= prompt_end else max(0, prompt_end - start) // block * block
        cap = self.cap(block)
        for h in range(self.run.n_kv):
            if prompt:
                for rows in self.clusters(h, first, prompt):
                    self.append(h, rows)
            rows = []
            for r in range(first + prompt, first + n):
                if len(rows) == cap or (len(rows) >= block and self.run.sink + r in self.boundaries[h]):
                    self.append(h, np.array(rows))
                    rows = []
                rows.append(r)
            if rows:
                self.append(h, np.array(rows))

    def cap(self, block):
        """The library's largest block: twice the mean, or a little less where that is whole pages of int8 rows."""
        row = self.run.dk + self.run.dv
        whole = 2 * block * row // 4096 * 4096 // row
        return whole if 4 * whole >= 7 * block else 2 * block

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            if not self.units[h]:
                result.append(([], [], []))
                continue
            budget = self.run.budget(self.run.body[step])
            if self.first[h] is not None and cosine(self.first[h], q[h]) >= self.p["tau"]:
                s = np.full(len(self.units[h]), -np.inf)
                s[self.kept[h]] = np.arange(len(self.kept[h]), 0, -1)
                chosen = self.kept[h]
            else:
                s = softmax(self.dots(h, q[h])).sum(0)
                chosen = take(self.units[h], s, budget, self.run.row_bytes)
                self.first[h], self.kept[h] = q[h], chosen
                self.boundaries[h].add(self.run.prompt + step)
            result.append((self.units[h], s, chosen))
        return result


class ActQKV(Paged):
    def __init__(self, run):
        super().__init__(run)
        self.queries = [run.q[i] for i in range(run.prompt)]

    def summarise(self, h, rows):
        return (half(self.run.body_keys(h, self.n)[rows].mean(0)),)

    def choose(self, step, q):
        self.queries.append(q)
        window = np.stack(self.queries[-int(self.p["queries"]):])
        scores, spread = [], []
        for h in range(self.run.n_kv):
            if not self.units:
                return [([], [], [])] * self.run.n_kv
            x = window[:, h].reshape(len(window), -1)
            variance = x.var(0)
            bias = ((x - x.mean(0)) ** 2 / np.where(variance > 0, variance, np.inf)).mean(1)
            n = max(1, int(np.ceil(self.p["probes"] * len(x))))
            probe = window[np.argsort(-bias, kind="stable")[:n], h].mean(0)
            s = softmax(probe @ np.stack([d[0] for d in self.data[h]]).T).sum(0)
            p = s / s.sum()
            spread.append(np.exp(-(p * np.log(np.maximum(p, 1e-300))).sum()))
            scores.append(s)
        most = int(np.ceil(np.mean(spread)))
        return [(self.units, s, take(self.units, s, self.budget(step, 0), self.run.row_bytes)[:most]) for s in scores]


class Samples:
    """Queries of the prompt to measure heads with: eight of each chunk, the last included; the newest 48."""
    def __init__(self, run):
        self.run = run
        positions = []
        for first, q in run.chunks():
            stride = max(1, len(q) // 8)
            if len(q) > 1:
                positions += range(first + (len(q) - 1) % stride, first + len(q), stride)
        self.positions = positions[-48:]

    def attend(self, h, first, n):
        """(position, weights [g][rows seen]) of samples inside the rows."""
        start = self.run.sink + first
        for p in self.positions:
            if start <= p < start + n:
                yield p, softmax(self.run.q[p, h] @ self.run.k[start:p + 1, h].T)

    def reach(self, h, first, n):
        shares = [w[:, :max(0, w.shape[1] - self.run.window)].sum(1).mean() for _, w in self.attend(h, first, n)]
        return np.mean(shares) if shares else None


def top_heads(scores, share):
    wanted = int(np.ceil(share * len(scores) - 1e-9))
    best = np.argsort(-np.asarray(scores), kind="stable")[:wanted]
    return [h in best for h in range(len(scores))]


def gates_retrieve(run, threshold, share):
    if share > 0:
        return [g > 0 and (run.gates > g).sum() < share * len(run.gates) for g in run.gates]
    return [g >= threshold for g in run.gates]


class LServe(Paged):
    def __init__(self, run):
        super().__init__(run)
        self.samples, self.kept, self.age = Samples(run), [None] * run.n_kv, [0] * run.n_kv
        self.retrieves = gates_retrieve(run, 0.5, 1 - self.p["streaming"]) if len(run.gates) else None

    def add(self, first, n):
        super().add(first, n)
        if self.retrieves is None:
            reach = [self.samples.reach(h, first, n) for h in range(self.run.n_kv)]
            if None not in reach:
                self.retrieves = top_heads(reach, 1 - self.p["streaming"])

    def summarise(self, h, rows):
        k, step = self.run.body_keys(h, self.n)[rows], int(self.p["logical"])
        return [(half_down(k[i:i + step].min(0)), half_up(k[i:i + step].max(0))) for i in range(0, len(k), step)]

    def scores(self, h, q):
        return np.array([max(box_bound(q, low[None], high[None]).sum() for low, high in page) for page in self.data[h]])

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            if self.retrieves is not None and not self.retrieves[h]:
                result.append((self.units, np.zeros(len(self.units)), []))
                continue
            many = sum(self.retrieves) if self.retrieves else 0
            budget = self.budget(step, h) * self.run.n_kv // many if many else self.budget(step, h)
            s = self.scores(h, q[h]) if self.units else np.zeros(0)
            self.age[h] += 1
            if self.units and (self.kept[h] is None or self.age[h] >= self.p["steps"]):
                self.kept[h], self.age[h] = take(self.units, s, budget, self.run.row_bytes), 0
            chosen = self.kept[h] or []
            if self.age[h]:
                s = np.full(len(self.units), -np.inf)
                s[chosen] = 1
            result.append((self.units, s, chosen))
        return result


class Rows(Rule):
    """Units are single rows."""
    def rows(self, scores, chosen):
        return [[i] for i in range(self.n)], scores, list(chosen)

    def fits(self, step):
        return min(self.n, self.run.budget(self.run.body[step]) // self.run.stored_bytes)

    def shares(self, step, h, q):
        """Attention of the body's rows, everything in the denominator."""
        near = self.run.near(step)
        logits = np.concatenate([q @ self.run.body_keys(h, self.n).T, q @ self.run.k[near, h].T], 1)
        return softmax(logits)[:, :self.n]


class Window(Rows):
    def choose(self, step, q):
        return [self.rows(np.zeros(self.n), [])] * self.run.n_kv


class ExactTopK(Rows):
    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            s = self.shares(step, h, q[h]).sum(0)
            result.append(self.rows(s, np.argsort(-s, kind="stable")[:self.fits(step)]))
        return result


class TokenSelect(Rows):
    def __init__(self, run):
        super().__init__(run)
        self.q, self.chosen, self.votes = None, None, None
        run.stored_bytes = 4 * run.dv

    def choose(self, step, q):
        flat = q.reshape(-1, self.run.dk)
        if self.q is None or not cosine(self.q, flat) > self.p["reuse_cosine"]:
            self.votes = sum(self.shares(step, h, q[h]).sum(0) for h in range(self.run.n_kv))
            self.q, self.chosen = flat, np.argsort(-self.votes, kind="stable")[:self.fits(step)]
        chosen = self.chosen[:self.fits(step)]
        s = np.zeros(self.n)
        s[:len(self.votes)] = self.votes
        return [self.rows(s, chosen)] * self.run.n_kv


class InfiniGen(Rows):
    loose = True     # partial scores carry float16 rounding that depends on the sign and basis of the decomposition

    def __init__(self, run):
        super().__init__(run)
        self.basis = None

    def add(self, first, n):
        super().add(first, n)
        if self.basis is None:
            columns, self.basis = max(1, int(self.p["columns"] * self.run.dk)), []
            for h in range(self.run.n_kv):
                seen = [q[::max(1, len(q) // 32), h].reshape(-1, self.run.dk) for _, q in self.run.chunks()]
                x = np.concatenate(seen)
                self.basis.append(np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :columns])

    def choose(self, step, q):
        if self.basis is None:
            return [self.rows(np.zeros(0), [])] * self.run.n_kv
        guess = self.run.q_early[self.run.prompt + step] if self.run.early else q
        scores, count = [], 0.0
        for h in range(self.run.n_kv):
            x = (guess[h] @ self.basis[h]) @ (self.run.body_keys(h, self.n) @ self.basis[h]).T
            top = x.max(1, keepdims=True)
            count += (x > top - self.p["alpha"]).sum() / self.run.n_q
            scores.append((x - top).max(0))
        n = min(int(count + 1e-9), int(self.p["most"] * self.n), self.fits(step))
        return [self.rows(s, np.argsort(-s, kind="stable")[:n]) for s in scores]


class Everything(Rows):
    def choose(self, step, q):
        return ["all"] * self.run.n_kv


class ByGates(Rows):
    def choose(self, step, q):
        sparsity = self.p["sparsity"]
        retrieves = gates_retrieve(self.run, self.p["threshold"], 1 - sparsity if sparsity > 0 else 0)
        return ["all" if r else self.rows(np.zeros(self.n), []) for r in retrieves]


class Razor(Rows):
    def __init__(self, run):
        super().__init__(run)
        self.samples = Samples(run)
        self.retrieves = gates_retrieve(run, self.p["threshold"], 0) if len(run.gates) else None

    def add(self, first, n):
        super().add(first, n)
        if self.retrieves is None:
            reach = [self.samples.reach(h, first, n) for h in range(self.run.n_kv)]
            if None not in reach:
                self.retrieves = top_heads(reach, self.p["retrieval"])

    def choose(self, step, q):
        return ["all" if self.retrieves is None or self.retrieves[h] else self.rows(np.zeros(self.n), [])
                for h in range(self.run.n_kv)]

    def extra(self, step, h, q):
        if self.n == 0 or self.retrieves is None or self.retrieves[h]:
            return []
        mean_k, mean_v = self.run.body_keys(h, self.n).mean(0), self.run.body_values(h, self.n).mean(0)
        return [(q @ mean_k + np.log(self.n), np.repeat(mean_v[None], len(q), 0))]


class TaskKV(Rows):
    def __init__(self, run):
        super().__init__(run)
        self.samples, self.retrieves = Samples(run), None
        self.mass = np.zeros((run.n_kv, run.prompt + run.steps))

    def add(self, first, n):
        super().add(first, n)
        run, outputs = self.run, []
        for h in range(run.n_kv):
            mine = []
            for p, w in self.samples.attend(h, first, n):
                self.mass[h, first:first + w.shape[1]] += w.sum(0)
                mine.append(w @ run.v[run.sink + first:p + 1, h])
            outputs.append(mine)
        if self.retrieves is None and outputs[0]:
            o = np.array(outputs)                                   # [n_kv][samples][g][dv]
            center = o.mean((0, 2), keepdims=True)
            self.retrieves = top_heads(np.linalg.norm(o - center, axis=-1).mean((1, 2)), self.p["heterogeneous"])

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            if self.retrieves is None or self.retrieves[h]:
                result.append("all")
                continue
            s = self.mass[h, :self.n]
            best = [i for i in np.argsort(-s, kind="stable")[:self.fits(step)] if s[i] > 0]
            result.append(self.rows(s, best))
        return result


RULES = {"window": Window, "exact-topk": ExactTopK, "quest": Quest, "arkvale": ArkVale, "shadowkv": ShadowKV,
         "retroinfer": RetroInfer, "freekv": FreeKV, "louiskv": LouisKV, "actqkv": ActQKV, "lserve": LServe,
         "tokenselect": TokenSelect, "infinigen": InfiniGen, "instinfer": Everything, "full": Everything, "duoattention": ByGates,
         "rlkv": ByGates, "razorattention": Razor, "task-kv": TaskKV}
