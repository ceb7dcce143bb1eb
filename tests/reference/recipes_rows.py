"""Selection rules with an index of rows, written from the papers' definitions: clusters, quantised keys, hashes, collisions, a graph,
FAISS, and the draft of a speculative decoder. As in recipes_pages.py: plain NumPy in double, nothing shared with the library.

Where a method draws at random (planes of a hash, a rotation, a sample of queries), the test dumps what the library drew and the rule
here uses it. A graph depends on thousands of comparisons that rounding may turn: the rule builds its own from the same sample, the two
must agree in nearly all edges, and the walk is played on the library's.
"""
import heapq
from math import acos, ceil, comb, pi

import numpy as np

from recipes_pages import DEFAULTS, Paged, Rows, half, softmax, spherical_kmeans

DEFAULTS.update({
    "clusterkv": dict(sink=16, window=64, cluster=80, iterations=10, decode_segment=320),
    "squeezed": dict(sink=4, window=64, cluster=20, iterations=10, threshold=0, levels=1, open=0.5),
    "pqcache": dict(sink=32, window=64, parts=2, bits=6, iterations=25, train=4096),
    "a2ats": dict(sink=4, window=64, codes=512, iterations=10, distance=2048, train=4096),
    "magicpig": dict(sink=4, window=64, bits=10, tables=150, collisions=2),
    "pariskv": dict(sink=4, window=64, candidates=0, collide=0),
    "retrievalattention": dict(sink=4, window=64, queries=2048, neighbours=32, degree=32, beam=64),
    "faiss": dict(sink=4, window=64, train=1024),
    "triforce": dict(sink=4, window=64, page=8),
})


def bf16(x):
    """Rounded to the nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) & np.uint32(0xffff0000)).view(np.float32).astype(np.float64)


class Triforce(Paged):
    """Chunks of consecutive tokens by their mean key: softmax over the chunks per query head, summed over the group."""
    def summarise(self, h, rows):
        return (half(self.run.body_keys(h, self.n)[rows].mean(0)),)

    def score(self, q, data):
        return softmax(q @ data[0].T).sum(0)


# ------------------------------------------------------------------------------------------- clusters

class ClusterKV(Rows):
    """Clusters by cosine, one for 80 keys; read in the order of q . mean key until the budget is spent, the last one in part."""
    def __init__(self, run):
        super().__init__(run)
        self.clusters = [[] for _ in range(run.n_kv)]        # (rows, mean key)

    def group(self, x, first, per_cluster):
        k = max(1, len(x) // per_cluster)
        return [(first + rows, half(x[rows].mean(0))) for rows in spherical_kmeans(x, k, int(self.p["iterations"]))]

    def add(self, first, n):
        super().add(first, n)
        for h in range(self.run.n_kv):
            self.clusters[h] += self.group(self.run.body_keys(h, self.n)[first:], first, int(self.p["cluster"]))

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            s = np.zeros(self.n)                              # a row's score is its cluster's: which of the last one, is free
            for rows, mean in self.clusters[h]:
                s[rows] = (q[h] @ mean).sum()
            result.append(self.rows(s, np.argsort(-s, kind="stable")[:self.fits(step)]))
        return result


class Squeezed(ClusterKV):
    """Clusters whose exp(q . c) over the estimated denominator exceeds one threshold, here calibrated to all heads' budget."""
    def __init__(self, run):
        super().__init__(run)
        self.coarse = [[] for _ in range(run.n_kv)]          # (clusters, mean of their means)

    def add(self, first, n):
        before = [len(c) for c in self.clusters]
        super().add(first, n)
        for h in range(self.run.n_kv if self.p["levels"] == 2 else 0):
            means = np.stack([mean for _, mean in self.clusters[h][before[h]:]])
            self.coarse[h] += self.group(means, before[h], 5)

    @staticmethod
    def importance(clusters, q, compared):
        """Mean over the group of exp(q . c_i) / sum_j n_j exp(q . c_j); 0 for clusters that are not compared."""
        x = q @ np.stack([mean for _, mean in clusters]).T
        e = np.exp(x - x.max(1, keepdims=True)) * compared
        sizes = np.array([len(rows) for rows, _ in clusters])
        return (e / (e * sizes).sum(1, keepdims=True)).mean(0)

    def compared(self, h, q):
        if self.p["levels"] == 1:
            return np.ones(len(self.clusters[h]))
        mark, most = np.zeros(len(self.clusters[h])), ceil(self.p["open"] * len(self.clusters[h]))
        for i in np.argsort(-self.importance(self.coarse[h], q, 1.0), kind="stable"):
            if mark.sum() >= most:
                break
            mark[self.coarse[h][i][0]] = 1
        return mark

    def choose(self, step, q):
        if self.n == 0:
            return [([], [], [])] * self.run.n_kv
        s = [self.importance(self.clusters[h], q[h], self.compared(h, q[h])) for h in range(self.run.n_kv)]
        ranked = sorted((-x, h, i) for h in range(self.run.n_kv) for i, x in enumerate(s[h]) if x > self.p["threshold"])
        left = self.run.n_kv * (self.run.budget(self.run.body[step]) // self.run.row_bytes)
        chosen = [[] for _ in s]
        for _, h, i in ranked:
            if len(self.clusters[h][i][0]) > left:
                break
            left -= len(self.clusters[h][i][0])
            chosen[h].append(i)
        return [([rows for rows, _ in self.clusters[h]], s[h], chosen[h]) for h in range(self.run.n_kv)]


# ------------------------------------------------------------------------------------------- quantised keys

def kmeans(x, k, iterations):
    """Euclidean, strided start; a centroid that lost all its points goes to the one that is worst represented. The nearest centroids."""
    def nearest(c):
        square = (c * c).sum(1) - 2 * x @ c.T
        return square.argmin(1), square.min(1) + (x * x).sum(1)
    c = x[(np.arange(k) * len(x) + len(x) // 2) // k].copy()
    for _ in range(iterations):
        a, far = nearest(c)
        for j in range(k):
            if (a == j).any():
                c[j] = x[a == j].mean(0)
        for j in range(k):
            if not (a == j).any():
                c[j] = x[far.argmax()]
                far[far.argmax()] = -1
    return nearest(c)[0]


class Quantised(Rows):
    """Rows as numbers of centroids; softmax of the estimated logits, summed over the group."""
    def __init__(self, run):
        super().__init__(run)
        self.keys = [np.zeros((0, run.dk)) for _ in range(run.n_kv)]
        self.centroids, self.codes = [None] * run.n_kv, [None] * run.n_kv
        self.trained, self.frozen = 0, False

    def parts(self):
        return 1

    def before_training(self):
        pass

    def metric(self, h):
        return np.eye(self.run.dk)

    def encode(self, h, x):
        """[rows][parts]: by the nearest centroid as it is kept."""
        codes = []
        for c, part in zip(self.centroids[h], np.split(x, self.parts(), 1)):
            m = self.metric(h)[:, :c.shape[1]]
            codes.append(((part @ m.T)[:, None] - (c @ m.T)[None]).__pow__(2).sum(-1).argmin(1))
        return np.stack(codes, 1)

    def train(self, h):
        self.centroids[h] = []
        k = min(self.codes_max(), len(self.keys[h]))
        for part in np.split(self.keys[h], self.parts(), 1):
            m = self.metric(h)[:, :part.shape[1]]
            a = kmeans(part @ m.T, k, int(self.p["iterations"]))
            self.centroids[h].append(half(np.stack([part[a == j].mean(0) if (a == j).any() else np.zeros(part.shape[1])
                                                    for j in range(k)])))

    def add(self, first, n):
        super().add(first, n)
        trains = not self.frozen and self.n >= 2 * self.trained
        if trains:
            self.before_training()
            self.trained = self.n
        for h in range(self.run.n_kv):
            self.keys[h] = np.concatenate([self.keys[h], self.coded(h, first, n)])
            if trains:
                self.train(h)
                self.codes[h] = self.encode(h, self.keys[h])
            else:
                self.codes[h] = np.concatenate([self.codes[h], self.encode(h, self.keys[h][first:])])
        self.frozen = self.frozen or self.n >= self.p["train"]

    def coded(self, h, first, n):
        return self.run.body_keys(h, self.n)[first:]

    def query(self, step, q):
        return q

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            if self.n == 0:
                result.append(self.rows(np.zeros(0), []))
                continue
            x = 0
            for p, part in enumerate(np.split(self.query(step, q[h]), self.parts(), 1)):
                x = x + part @ self.centroids[h][p][self.codes[h][:, p]].T
            s = softmax(x).sum(0)
            result.append(self.rows(s, np.argsort(-s, kind="stable")[:self.fits(step)]))
        return result


class PQCache(Quantised):
    def parts(self):
        parts = int(self.p["parts"])
        while parts > 1 and (self.run.dk % parts or self.run.dk // parts % 8):
            parts -= 1
        return parts

    def metric(self, h):
        return np.eye(self.run.dk // self.parts())

    def codes_max(self):
        return 2 ** int(self.p["bits"])


class A2ATS(Quantised):
    """Centroids for the scores of sample queries: k-means under (k - c)' E[q q'] (k - c), positions decoupled."""
    def __init__(self, run):
        super().__init__(run)
        self.moment = [np.zeros((run.dk, run.dk)) for _ in range(run.n_kv)]
        self.root = [np.eye(run.dk)] * run.n_kv
        for first, q in run.chunks():
            for i in range(0, len(q), max(1, len(q) // 32)):
                self.observe(first + i, q[i])

    def codes_max(self):
        return int(self.p["codes"])

    def at_distance(self, q, position):
        """A query as if every row stood `distance` tokens before it, at position 0."""
        return self.run.turn(q, np.full(len(q), self.p["distance"] - position), 1)

    def observe(self, position, q):
        for h in range(self.run.n_kv):
            u = self.at_distance(q[h], position)
            self.moment[h] += u.T @ u

    def after(self, step, q):
        if not self.frozen:
            self.observe(self.run.prompt + step, q)

    def before_training(self):
        for h in range(self.run.n_kv):
            m = self.moment[h] + 0.01 * np.trace(self.moment[h]) / self.run.dk * np.eye(self.run.dk)
            self.root[h] = np.linalg.cholesky(m).T            # P'P = m

    def metric(self, h):
        return self.root[h]

    def coded(self, h, first, n):
        positions = self.run.sink + np.arange(first, first + n)
        return self.run.turn(self.run.body_keys(h, self.n)[first:], positions, -1)

    def query(self, step, q):
        return self.at_distance(q, self.run.prompt + step)


# ------------------------------------------------------------------------------------------- hashes and collisions

class MagicPIG(Rows):
    """Rows that share a bucket with a query head in two tables at least, weighed by the inverse of that probability."""
    def __init__(self, run):
        super().__init__(run)
        self.bits, self.tables, self.least = (int(self.p[x]) for x in ("bits", "tables", "collisions"))
        self.planes = run.state("planes.bin", self.tables * self.bits, run.dk).astype(np.float64)
        self.center = [None] * run.n_kv
        self.sides = [np.zeros((0, self.tables, self.bits)) for _ in range(run.n_kv)]

    def side(self, h, x):
        """Signs of the projections; 0 where rounding may turn one."""
        y = x @ self.planes[h].T
        scale = 3e-7 * np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(self.planes[h], axis=1)
        return np.where(np.abs(y) < scale, 0, np.sign(y)).reshape(len(x), self.tables, self.bits)

    def centred(self, h, rows):
        return self.run.body_keys(h, self.n)[rows] - self.center[h]

    def add(self, first, n):
        super().add(first, n)
        for h in range(self.run.n_kv):
            if self.center[h] is None:
                self.center[h] = np.float32(self.run.body_keys(h, self.n).mean(0)).astype(np.float64)
            self.sides[h] = np.concatenate([self.sides[h], self.side(h, self.centred(h, slice(first, None)))])

    def drawn(self, h, q):
        """[g][rows] surely, and maybe, in a query head's sample."""
        sure, maybe = [], []
        for s in self.side(h, q):
            same = s[None] * self.sides[h]
            sure.append((same > 0).all(2).sum(1) >= self.least)
            maybe.append((same >= 0).all(2).sum(1) >= self.least)
        return np.array(sure), np.array(maybe)

    def choose(self, step, q):
        self.sample, self.unsure, result = {}, {}, []
        for h in range(self.run.n_kv):
            if self.n == 0:
                result.append(self.rows(np.zeros(0), []))
                continue
            sure, maybe = self.drawn(h, q[h])
            self.sample[h], self.unsure[h] = sure, np.argwhere(maybe & ~sure)
            result.append(Drawn(set(np.flatnonzero(sure.any(0))), set(np.flatnonzero(maybe.any(0))), self.fits(step)))
        return result

    def variants(self, h):
        """Every way in which what rounding decides may have gone."""
        unsure = self.unsure.get(h, [])[:4]
        for choice in range(2 ** len(unsure)):
            for i, (g, row) in enumerate(unsure):
                self.sample[h][g, row] = choice >> i & 1
            yield

    def probability(self, cosine):
        """Of `least` tables at least; the tail itself, since one minus the rest loses what is small."""
        p, n = (1 - acos(min(max(cosine, -1), 1)) / pi) ** self.bits, self.tables
        return sum(comb(n, j) * p ** j * (1 - p) ** (n - j) for j in range(self.least, n + 1))

    def row_weights(self, step, h, q, rows):
        if not len(rows):
            return None
        k = self.centred(h, rows)
        cosine = q @ k.T / (np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(k, axis=1))
        log_p = np.log(np.maximum(np.vectorize(self.probability)(cosine), 1e-12))
        n = self.sample[h].any(0).sum()
        thinned = np.log(n / len(rows)) if n > self.fits(step) else 0
        return np.where(self.sample[h][:, rows], thinned - log_p, -np.inf)


class Drawn:
    """A random sample: what must be in it; where it exceeds the budget, any `fit` of it."""
    def __init__(self, sure, maybe, fit):
        self.sure, self.maybe, self.fit = sure, maybe, fit

    def problem(self, got):
        if not got <= self.maybe:
            return f"{sorted(got - self.maybe)[:5]}... are not in the sample"
        if len(self.maybe) <= self.fit and not self.sure <= got:
            return f"{sorted(self.sure - got)[:5]}... of the sample are missing"
        low, high = (min(self.fit, len(s)) for s in (self.sure, self.maybe))
        return None if low <= len(got) <= high else f"{len(got)} rows of a sample of {len(self.sure)}, {self.fit} fit"


class ParisKV(Rows):
    """Points for lying in the best sign patterns of sub-spaces of 8 dimensions, then 4-bit codes."""
    tie = 1e-3       # bf16 weights of a sub-space: rounding may take the other neighbour, 4e-3 away, of one in sixteen
    LIMITS = [0.0843, 0.1698, 0.2578, 0.3499, 0.4487, 0.5585, 0.6901]
    CENTRES = np.array([0.0420, 0.1266, 0.2130, 0.3025, 0.3973, 0.5001, 0.6169, 0.7633])
    TIERS = [0.05, 0.15, 0.30, 0.50, 0.75, 1.0]
    BY_ROWS = [(5000, 0.5, 0.5), (10000, 0.25, 0.3), (30000, 0.2, 0.25), (float("inf"), 0.1, 0.2)]

    def __init__(self, run):
        super().__init__(run)
        self.turns = run.state("turn.bin", run.dk, run.dk).astype(np.float64)
        for t in self.turns:
            assert np.abs(t @ t.T - np.eye(run.dk)).max() < 1e-5, "no rotation"
        self.signs, self.approximate = [[] for _ in range(run.n_kv)], [[] for _ in range(run.n_kv)]

    def add(self, first, n):
        super().add(first, n)
        for h in range(self.run.n_kv):
            x = self.run.body_keys(h, self.n)[first:]
            length = np.linalg.norm(x, axis=1)
            y = (x / length[:, None] @ self.turns[h].T).reshape(n, -1, 8)
            radius = np.linalg.norm(y, axis=2)
            u = np.abs(y) / radius[..., None]
            a = self.CENTRES[np.digitize(u, self.LIMITS, right=True)]
            weight = bf16(radius / (a * u).sum(2) * length[:, None])
            self.signs[h] += list(((y >= 0) << np.arange(8)).sum(2))
            self.approximate[h] += list((np.where(y >= 0, a, -a) * weight[..., None]).reshape(n, -1))

    def points(self, h, q, share):
        signs = np.array(self.signs[h])
        total = np.zeros(self.n, int)
        patterns = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 1.0, -1.0)
        for p in range(self.run.dk // 8):
            order = np.argsort(-np.float32(patterns @ q[8 * p:8 * p + 8]), kind="stable")
            count = np.bincount(signs[:, p], minlength=256)[order]
            before = np.cumsum(count) - count
            worth = np.zeros(256, int)
            for t in self.TIERS:
                worth[order] += before < ceil(self.n * share * t)
            total += worth[signs[:, p]]
        return total

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            fit = self.fits(step)
            if fit == 0:
                result.append(self.rows(np.zeros(self.n), []))
                continue
            _, candidates, collide = next(x for x in self.BY_ROWS if self.n < x[0])
            mean = self.turns[h] @ q[h].mean(0)
            points = self.points(h, mean, self.p["collide"] or collide)
            n = max(fit, ceil((self.p["candidates"] or candidates) * self.n))
            s = np.full(self.n, -np.inf)
            best = np.argsort(-points, kind="stable")[:n]
            s[best] = np.array(self.approximate[h])[best] @ mean
            result.append(self.rows(s, np.argsort(-s, kind="stable")[:fit]))
        return result


# ------------------------------------------------------------------------------------------- a graph

class Graph:
    """Keys joined by sample queries, and to their own neighbours; walked best first."""
    def __init__(self, keys, degree):
        self.keys, self.degree, self.edges = keys, degree, [[] for _ in keys]
        self.entry = int(self.squares(keys.mean(0)).argmin())

    def squares(self, x, rows=slice(None)):
        return ((self.keys[rows] - x) ** 2).sum(1)

    def prune(self, row, candidates):
        """The nearest that are not nearer to one already kept; room that is left goes to the nearest of the others."""
        far = self.squares(self.keys[row], candidates)
        order = sorted(range(len(candidates)), key=lambda i: (far[i], candidates[i]))
        kept, hidden = [], []
        for i in order:
            if len(kept) == self.degree:
                break
            near = kept and (self.squares(self.keys[candidates[i]], [candidates[j] for j in kept]) < far[i]).any()
            (hidden if near else kept).append(i)
        self.edges[row] = [candidates[i] for i in kept + hidden[:self.degree - len(kept)]]

    def join(self, a, b):
        if a == b or b in self.edges[a]:
            return
        self.edges[a].append(b)
        if len(self.edges[a]) >= 2 * self.degree:
            self.prune(a, list(self.edges[a]))

    def walk(self, scores, beam):
        """(the `beam` best, all that were met); scores of all rows, larger is better."""
        met, waiting, best = {self.entry}, [(-scores[self.entry], self.entry)], [(scores[self.entry], -self.entry)]
        while waiting:
            worth, row = heapq.heappop(waiting)
            if len(best) == beam and (-worth, -row) <= best[0]:
                break
            for to in self.edges[row]:
                if to in met:
                    continue
                met.add(to)
                if len(best) == beam and (scores[to], -to) <= best[0]:
                    continue
                heapq.heappush(waiting, (-scores[to], to))
                heapq.heappush(best, (scores[to], -to))
                if len(best) > beam:
                    heapq.heappop(best)
        return [-i for _, i in best], met

    def build(self, queries, neighbours, beam=32):
        for q in queries:
            x = self.keys @ q
            top = [int(i) for i in np.argsort(-x, kind="stable")[:neighbours]]
            for other in top[1:]:
                self.join(top[0], other)
                self.join(other, top[0])
        for row in range(len(self.keys)):
            near = self.walk(-self.squares(self.keys[row]), beam)[0]
            self.prune(row, [i for i in near if i != row and i not in self.edges[row]] + self.edges[row])
            for other in list(self.edges[row]):
                self.join(other, row)

    def reached(self):
        seen, queue = {self.entry}, [self.entry]
        for row in queue:
            for to in self.edges[row]:
                if to not in seen:
                    seen.add(to)
                    queue.append(to)
        return seen


class RetrievalAttention(Rows):
    def __init__(self, run):
        super().__init__(run)
        self.graphs = {}

    def library_graph(self, h, when):
        run, degree = self.run, int(self.p["degree"])
        n = int(run.state(f"graph_rows_{when}.bin", t=np.uint32)[h])
        g = Graph(run.body_keys(h, n), degree)
        edges = np.fromfile(f"{run.folder}/edges_{when}_{h}.bin", np.uint32).reshape(n, 2 * degree)
        counts = np.fromfile(f"{run.folder}/edge_counts_{when}_{h}.bin", np.uint16)
        g.edges = [[int(x) for x in e[:c]] for e, c in zip(edges, counts)]
        g.entry = int(run.state(f"entry_{when}.bin", t=np.uint32)[h])
        return g

    def check_graph(self, h):
        """Built anew from the same sample of queries, and every key can be reached."""
        got, queries = self.graphs[h], np.fromfile(f"{self.run.folder}/queries_{h}.bin", np.float32).astype(np.float64)
        queries = queries.reshape(-1, self.run.dk)
        seen = {q.astype(np.float32).tobytes() for q in self.run.q[:self.run.prompt, h].reshape(-1, self.run.dk)}
        assert all(q.astype(np.float32).tobytes() in seen for q in queries), "a sample is no query of the prompt"
        assert len(queries) == min(int(self.p["queries"]), self.run.prompt * self.run.g), "size of the sample"
        want = Graph(got.keys, got.degree)
        want.build(queries, int(self.p["neighbours"]))
        a, b = ({(i, j) for i, e in enumerate(g.edges) for j in e} for g in (got, want))
        assert got.entry == want.entry, "entry of the graph"
        assert len(a & b) >= 0.99 * max(len(a), len(b)), f"{len(a & b)} edges of {len(a)} and {len(b)} are the same"
        assert len(got.reached()) == len(got.keys), "a key cannot be reached"

    def add(self, first, n):
        super().add(first, n)
        for h in range(self.run.n_kv):
            if first == 0:
                self.graphs[h] = self.library_graph(h, "prompt")
                self.check_graph(h)
            else:
                self.graphs[h] = self.library_graph(h, "end")
                assert len(self.graphs[h].reached()) == len(self.graphs[h].keys), "a key cannot be reached"

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            if self.n == 0 or len(self.graphs[h].keys) != self.n:       # between the two that were dumped
                result.append(self.rows(np.zeros(0), []) if self.n == 0 else None)
                continue
            x, fit = q[h] @ self.run.body_keys(h, self.n).T, self.fits(step)
            met = sorted(set().union(*(self.graphs[h].walk(x[g], max(int(self.p["beam"]), fit))[1] for g in range(self.run.g))))
            s = np.full(self.n, -np.inf)
            s[met] = softmax(x[:, met]).sum(0)
            result.append(self.rows(s, [i for i in np.argsort(-s, kind="stable")[:fit] if s[i] > -np.inf]))
        return result


# ------------------------------------------------------------------------------------------- FAISS

class Faiss(Rows):
    """Each query head's list is what an exact search finds; of an approximate index a share of it."""
    RECALL = {"HNSW16,Flat": 0.9, "IVF16,Flat": 0.9, "PQ8np": 0.3}

    def choose(self, step, q):
        result = []
        for h in range(self.run.n_kv):
            fit, s = self.fits(step), np.zeros(self.n)
            x = q[h] @ self.run.body_keys(h, self.n).T
            if self.argument != "Flat" and self.n < self.p["train"]:
                s = softmax(x).sum(0) if self.n else s                  # all rows compared one by one
            else:
                for g in range(self.run.g):
                    best = np.argsort(-x[g], kind="stable")[:fit]
                    s[best] += softmax(x[g, best])
            chosen = [i for i in np.argsort(-s, kind="stable")[:fit] if s[i] > 0]
            share = self.recall if self.n >= self.p["train"] else 1
            result.append(self.rows(s, chosen) if share == 1 else Found(set(chosen), fit, share))
        return result

    def __init__(self, run):
        super().__init__(run)
        self.argument = run.argument
        self.recall = 1 if "nprobe" in self.p and self.p["nprobe"] >= 16 else self.RECALL.get(self.argument, 1)


class Found:
    """What an approximate search found: a share of the exact answer at least."""
    def __init__(self, want, fit, share):
        self.want, self.fit, self.share = want, fit, share

    def problem(self, got):
        if len(got) > self.fit:
            return f"{len(got)} rows where {self.fit} fit"
        recall = len(got & self.want) / max(1, len(self.want))
        return None if recall >= self.share - 0.2 else f"recall {recall:.2f}, expected about {self.share} and more"


ROW_RULES = {"clusterkv": ClusterKV, "squeezed": Squeezed, "pqcache": PQCache, "a2ats": A2ATS, "magicpig": MagicPIG,
             "pariskv": ParisKV, "retrievalattention": RetrievalAttention, "faiss": Faiss, "triforce": Triforce}
