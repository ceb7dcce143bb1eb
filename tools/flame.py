#!/usr/bin/env python3
"""Where the time of a prompt's and of a decoded token's attention and model goes, by function: a section for docs/benchmarks.md.

    flame.py HEADRACE MODEL TEXT [RUN.json] > section.md

HEADRACE is the tool, MODEL a GGUF file or "tiny", TEXT a file with enough text (none is needed for tiny), RUN.json a run of `headrace bench`, from which each
function gets the figures of the benchmark that measures it beside its limit. Needs perf (Debian: linux-perf); without it the section says so.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOKENS, DECODED = 7900, 256
LEAST = 1.0  # percent of the samples that a row of the table has
FOLDERS = ("base", "cli", "engine", "index", "kernels", "offload", "runtime")

# The benchmark that measures a function beside its limit.
BENCHMARKS = {
    "attention-bf16-gqa4": "dot_tile sum_tile attend_cursor attend_rows",
    "prefill-tile": "tile_queries attend_tile block_scores block_sum tile_block soft_rows",
    "summary-score-gqa4": "score_centroids score_group score_queries",
    "sketch-2bit-gqa4": "score_sketch sum_sketch sum_batch moment_block sketch_moments",
    "gather-rows-int8": "score_gather_i8 sum_gather_i8",
    "gather-blocks-int8": "attend_block_i8",
    "ingest": "matmul_chunk nearest_in_panel assign_rows hri_sketch_add hri_sketch_round",
}
BENCHMARK_OF = {function: name for name, functions in BENCHMARKS.items() for function in functions.split()}


def base_name(symbol):
    """hri_avx512_score_sketch.constprop.0 -> score_sketch, the name in the source."""
    return re.sub(r"^hri_(avx2|avx512|amx|ref)_", "", re.sub(r"\..*", "", symbol))


def sources():
    """{function: folder/file} of what is defined at the beginning of a line, of HRI_OP(name), and of the names that a macro puts together."""
    root, where = os.path.dirname(os.path.dirname(os.path.abspath(__file__))), {}
    files = [os.path.join(path, name) for folder in FOLDERS for path, _, names in os.walk(os.path.join(root, folder)) for name in names
             if name.endswith((".c", ".h"))]
    # The levels that this profile is not of come last.
    for file in sorted(files, key=lambda f: (bool(re.search(r"ref|avx2|amx", os.path.basename(f))), f)):
        with open(file, encoding="utf-8") as text:
            for line in text:
                match = re.match(r"[A-Za-z_][\w *]*?\b(?:HRI_OP\()?(\w+)\)?\(", line) or re.match(r".*?\b(\w+_)##\w+\(", line)
                if match and not line.rstrip().endswith(";"):
                    where.setdefault(base_name(match.group(1)), os.path.relpath(file, root))
    return where


def place_of(symbol, where):
    """Of dot_groups_q4_1 where dot_groups_##type is."""
    name = base_name(symbol)
    return where.get(name) or next((where[name[:i]] for i in range(len(name), 0, -1) if name[i - 1] == "_" and name[:i] in where), "a library")


def record(command, data):
    done = subprocess.run(["perf", "record", "-q", "-F", "1999", "-o", data, "--", *command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"flame.py: {' '.join(command)}: {done.stderr.strip()}")


def samples(data):
    """[(percent, symbol, in the kernel)] of all functions."""
    report = subprocess.run(["perf", "report", "-i", data, "--no-children", "-g", "none", "--sort", "symbol"], capture_output=True, text=True, check=True)
    rows = re.findall(r"^\s+([0-9.]+)%\s+\[(.)\]\s+(\S+)", report.stdout, re.M)
    return [(float(percent), symbol, kind == "k") for percent, kind, symbol in rows]


def beside(symbol, run):
    name = BENCHMARK_OF.get(base_name(symbol)) or BENCHMARK_OF.get(symbol)
    b = next((b for b in run.get("benchmarks", []) if b["name"] == name and b.get("value") is not None), None)
    if b is None:
        return f"`{name}`" if name else ""
    return f"`{name}`: {b['value']:.3g} of {b['limit']:.3g} {b['unit']}, ratio {b['ratio']:.2f} ({b['limit_is']})"


def section(title, rows, where, run):
    parts = {}
    print(f"\n### {title}\n\n| share | function | where | beside its limit |\n|---|---|---|---|")
    for percent, symbol, in_kernel in rows:
        place = "Linux" if in_kernel else place_of(symbol, where)
        part = "waiting" if symbol == "worker_main" else place.split("/")[0]
        parts[part] = parts.get(part, 0) + percent
        if percent >= LEAST:
            note = "waits for work" if symbol == "worker_main" else beside(symbol, run)
            print(f"| {percent:.1f} % | `{base_name(symbol)}` | {place} | {note} |")
    print("\nBy part: " + ", ".join(f"{part} {share:.0f} %" for part, share in sorted(parts.items(), key=lambda p: -p[1]) if share >= 0.5) + ".")


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    tool, model, text = sys.argv[1:4]
    run = json.load(open(sys.argv[4], encoding="utf-8")) if len(sys.argv) == 5 else {}
    print("\n## Where the time goes\n")
    if not shutil.which("perf"):
        print("perf is not there (Debian: linux-perf); nothing was measured.")
        return
    print(f"Written by `python3 tools/flame.py HEADRACE MODEL TEXT RUN.json`: samples of all threads, 1,999 a second of processor time, while `headrace run` reads {TOKENS:,} tokens\n"
          f"of `{os.path.basename(model)}` with 1 % moved, and while it goes on from there for {DECODED} tokens (opening the session counted). The last column is the benchmark that\n"
          "measures the function alone.")
    where, made_up = sources(), model == "tiny"
    with tempfile.TemporaryDirectory() as folder:
        session, common = f"{folder}/session", [tool, "run", "--model", model, "--allow-longer", "--quiet"]
        record([*common, *([] if made_up else ["--file", text]), "--tokens-context", str(TOKENS), "--tokens", "1", "--moved", "1%", "--tokens-max",
                str(TOKENS + DECODED + 64), "--save", session], f"{folder}/prefill")
        record([*common, "--open", session, "--prompt", "and", "--tokens", str(DECODED)], f"{folder}/decode")
        section("A prompt", samples(f"{folder}/prefill"), where, run)
        section("Decoding", samples(f"{folder}/decode"), where, run)


if __name__ == "__main__":
    main()
