"""Prefill and greedy decoding with llama.cpp: run_llama_cpp.py MODEL TEXT TOKENS DECODE THREADS -> one JSON object."""
import json
import sys
import time

import llama_cpp


def without_amx():
    """Its AMX path ends in an illegal instruction (tile registers that were not configured) on the processors that have AMX."""
    binding = llama_cpp.llama_cpp
    defaults = binding.llama_model_default_params

    def params():
        p = defaults()
        p.use_extra_bufts = False
        return p

    binding.llama_model_default_params = params


def main():
    without_amx()
    model, text, n_tokens, n_decode, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    llm = llama_cpp.Llama(model_path=model, n_ctx=n_tokens + n_decode + 8, n_batch=512, n_threads=threads,
                          n_threads_batch=threads, logits_all=False, verbose=False)
    with open(text, "rb") as file:
        tokens = llm.tokenize(file.read(), add_bos=False)[:n_tokens]
    if len(tokens) < n_tokens:
        raise SystemExit(f"{text}: {len(tokens)} tokens, {n_tokens} are needed")
    start = time.monotonic()
    llm.eval(tokens)
    prefill = time.monotonic() - start
    token = llm.sample(temp=0.0)
    start = time.monotonic()
    for _ in range(n_decode):
        llm.eval([token])
        token = llm.sample(temp=0.0)
    decode = time.monotonic() - start
    print(json.dumps({
        "prefill": {"tokens": n_tokens, "seconds": prefill, "tokens_per_second": n_tokens / prefill},
        "decode": {"tokens": n_decode, "seconds": decode, "tokens_per_second": n_decode / decode},
    }))


main()
