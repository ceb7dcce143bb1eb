#!/usr/bin/env python3
"""Compares the library's recipes with the rules of recipes_pages.py and recipes_rows.py.

    recipes_judge.py FOLDER      each folder in it is one run of tests/runtime/test_recipes_reference.c

For every step: which rows a recipe must attend exactly (ties aside), and the output that follows from the rows it did attend
together with what the rule estimates.
"""
import os
import sys

import numpy as np

from recipes_pages import RULES, Run, softmax
from recipes_rows import ROW_RULES

TIE = 2e-5           # relative difference of scores that counts as a tie
OUT_TOLERANCE = 1e-4
RULES = {**RULES, **ROW_RULES}


def same_set(rule, units, scores, chosen, got):
    """None, or what is wrong. Units whose scores tie with the last one taken may be exchanged."""
    want = set(r for i in chosen for r in units[i])
    if want == got:
        return None
    scores = np.asarray(scores, float)
    if not len(chosen):
        return f"took {sorted(got)[:5]}..., expected none"
    edge = min(scores[i] for i in chosen)
    slack = 0.05 if getattr(rule, "loose", False) else getattr(rule, "tie", TIE) * max(abs(edge), 1e-30)
    for i, rows in enumerate(units):
        has, should = set(rows) <= got, i in chosen
        if has != should and not abs(scores[i] - edge) <= slack:
            return (f"unit {i} (rows {rows[0]}.., score {scores[i]:.6g}) is {'in' if has else 'not in'}; the last taken has "
                    f"{edge:.6g}; {len(got)} rows for {len(want)}")
    if abs(len(want) - len(got)) > (2 if getattr(rule, "loose", False) else max(len(u) for u in units)):
        return f"{len(got)} rows, expected {len(want)}"
    return None


def output(run, rule, step, h, q, tokens, extra):
    """Softmax over rows that are known exactly (or with rebuilt keys, or with weights of their own) and over estimates."""
    keys = run.k[tokens, h].copy()
    body_end = run.sink + run.body[step]
    for j, t in enumerate(tokens):
        if run.sink <= t < body_end:
            key = rule.key(h, t - run.sink)
            keys[j] = keys[j] if key is None else key
    own = q @ keys.T
    body = [j for j, t in enumerate(tokens) if run.sink <= t < body_end]
    log_weights = rule.row_weights(step, h, q, tokens[body] - run.sink)
    if log_weights is not None:
        own[:, body] += log_weights
    logits = [own] + [w[:, None] for w, _ in extra]
    weights = softmax(np.concatenate(logits, 1))
    out = weights[:, :len(tokens)] @ run.v[tokens, h]
    for j, (_, value) in enumerate(extra):
        out += weights[:, len(tokens) + j, None] * value
    return out


def judge(run):
    rule, known, wrong = RULES[run.name](run), 0, []
    tolerance = 4e-3 if run.name == "shadowkv" and rule.rank else OUT_TOLERANCE      # float16 factors of another basis
    for step in range(run.steps):
        while known < run.body[step]:
            n = min(run.body[step] - known, int(run.p["segment"]))
            rule.add(known, n)
            known += n
        q = run.q[run.prompt + step]
        near = set(run.near(step))
        for h, choice in enumerate(rule.choose(step, q)):
            tokens = np.flatnonzero(run.refined[step, h])
            got = set(t - run.sink for t in tokens if t not in near)
            if not near <= set(tokens):
                wrong.append(f"step {step} head {h}: sink or window is missing")
            if choice is None:                       # nothing to say about this step's choice
                problem = None
            elif isinstance(choice, str):
                problem = None if len(got) == rule.n else f"{len(got)} of {rule.n} rows"
            elif hasattr(choice, "problem"):
                problem = choice.problem(got)
            else:
                problem = same_set(rule, *choice, got)
            if problem:
                wrong.append(f"step {step} head {h}: {problem}")
            error = np.inf
            for _ in rule.variants(h):
                want = output(run, rule, step, h, q[h], tokens, rule.extra(step, h, q[h]))
                error = min(error, np.linalg.norm(run.out[step, h] - want) / np.linalg.norm(want))
            run.worst = max(run.worst, error)
            if not error <= tolerance:
                wrong.append(f"step {step} head {h}: output differs by {error:.2e}")
        rule.after(step, q)
    return wrong


def main():
    folder, failed = sys.argv[1], 0
    for name in sorted(os.listdir(folder)):
        run = Run(os.path.join(folder, name))
        wrong = judge(run)
        failed += bool(wrong)
        m = f"{run.name} {name} (g {run.g}, d {run.dk}/{run.dv}, body {run.body[0]} to {run.body[-1]})"
        print(f"{'FAIL' if wrong else 'ok  '} {m}: outputs within {run.worst:.1e}")
        for line in wrong[:5]:
            print(f"     {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
