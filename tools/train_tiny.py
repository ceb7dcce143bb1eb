#!/usr/bin/python3
"""Trains the embedded retrieval model and writes it as a GGUF file.

    tools/train_tiny.py train  --checkpoint /tmp/tiny.npz
    tools/train_tiny.py export --checkpoint /tmp/tiny.npz engine/models/tiny.gguf

The model answers questions about (key, value) pairs that lie scattered in a long text; it is trained on
256 tokens and answers at 16,384. engine/models/README.md fixes the architecture, the file
and the text; this script is where the weights come from. It needs NumPy and torch (Debian's
python3-torch is enough), runs on one core, and its seed is fixed: the random numbers come from one
generator each of NumPy and torch, the schedule counts steps and not seconds.
"""
import argparse
import math
import os
import struct
import sys
import time

import numpy as np

N_KEYS, N_VALUES, N_FILLERS = 64, 64, 64
VALUE_BASE, FILLER_BASE, VOCAB = 64, 128, 192

WIDTH = 128
LAYERS = 4
Q_HEADS = 4
HEAD_DIM = 64                       # one kv head, shared by all query heads
FFN = 3 * WIDTH
WINDOWS = (16, 0, 16, 0)            # 0: global
ROPE_BASES = (1e4, 1e6, 1e4, 1e6)
NORM_EPS = 1e-5
HORIZON = 65536                     # positions of the global layers reach about this far in training

# (tokens, batch, keys, share of fillers). Starting with many keys never leaves the plateau.
STAGES = ((32, 64, 2, 0.0), (32, 64, 4, 0.1), (64, 32, 8, 0.2), (128, 16, 12, 0.4), (256, 8, 16, 0.6))
ADVANCE_AT = 0.93
# Until the last stage the local layers see 4 tokens. With 16 they answer most of the short texts by
# themselves, and the global layers, left with the rest, learn nothing.
EARLY_WINDOW = 4
PEAK_LR, LAST_LR_SHARE, WARM_UP, CONSTANT_UNTIL = 3e-3, 0.05, 100, 0.6


# ---------------------------------------------------------------------------- texts

def stream_batch(rng, tokens, batch, keys, filler_share):
    """Pairs that repeat, between fillers; the loss is on every value whose key was seen before."""
    text = np.empty((batch, tokens + 2), np.int64)
    asked = np.zeros((batch, tokens + 2), bool)
    for b in range(batch):
        names = rng.permutation(N_KEYS)[:keys]
        values = rng.integers(0, N_VALUES, keys)
        seen = np.zeros(keys, bool)
        is_filler = rng.random(tokens) < filler_share
        which = rng.integers(0, keys, tokens)
        fillers = rng.integers(0, N_FILLERS, tokens)
        t = 0
        for unit in range(tokens):
            if t >= tokens:
                break
            if is_filler[unit]:
                text[b, t] = FILLER_BASE + fillers[unit]
                t += 1
                continue
            k = which[unit]
            text[b, t] = names[k]
            text[b, t + 1] = VALUE_BASE + values[k]
            asked[b, t] = seen[k]
            seen[k] = True
            t += 2
    return text[:, :tokens + 1], asked[:, :tokens]


def task_batch(rng, tokens, batch, keys):
    """The real task: every pair once among fillers, then all keys asked in random order."""
    text = np.empty((batch, tokens + 1), np.int64)
    asked = np.zeros((batch, tokens), bool)
    body = tokens - 2 * keys
    for b in range(batch):
        names = rng.permutation(N_KEYS)[:keys]
        values = rng.integers(0, N_VALUES, keys)
        text[b] = FILLER_BASE + rng.integers(0, N_FILLERS, tokens + 1)
        # Draw starts among body - keys slots, then shift by the pairs before: none overlap.
        starts = np.sort(rng.permutation(body - keys)[:keys]) + np.arange(keys)
        text[b, starts] = names
        text[b, starts + 1] = VALUE_BASE + values
        order = rng.permutation(keys)
        text[b, body:tokens:2] = names[order]
        text[b, body + 1:tokens:2] = VALUE_BASE + values[order]
        asked[b, body:tokens:2] = True
    return text, asked


def positions(rng, tokens, batch):
    """Positions seen by the global layers: mostly strided at random, which carries 256 tokens to 65,536."""
    if rng.random() < 0.2:
        return np.arange(tokens)[None, :] + rng.integers(0, HORIZON - tokens, (batch, 1))
    stride = np.exp(rng.random((batch, 1)) * math.log(HORIZON / tokens))
    steps = 1 + np.floor(rng.random((batch, tokens)) * (2 * stride - 1))
    return np.cumsum(steps, axis=1)


# ---------------------------------------------------------------------------- model

def rope_table(pos, base):
    half = HEAD_DIM // 2
    angle = pos[..., None] * base ** (-np.arange(half) / half)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def build_model(torch):
    functional = torch.nn.functional

    def rotate(x, table):                       # x [batch, heads, tokens, head_dim]; half layout
        c, s = table
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * c - b * s, b * c + a * s), dim=-1)

    class Block(torch.nn.Module):
        def __init__(self, window):
            super().__init__()
            self.window = window
            self.attn_norm = torch.nn.LayerNorm(WIDTH, eps=NORM_EPS)
            self.attn_q = torch.nn.Linear(WIDTH, Q_HEADS * HEAD_DIM, bias=False)
            self.attn_k = torch.nn.Linear(WIDTH, HEAD_DIM, bias=False)
            self.attn_v = torch.nn.Linear(WIDTH, HEAD_DIM, bias=False)
            self.attn_output = torch.nn.Linear(Q_HEADS * HEAD_DIM, WIDTH, bias=False)
            self.ffn_norm = torch.nn.LayerNorm(WIDTH, eps=NORM_EPS)
            self.ffn_up = torch.nn.Linear(WIDTH, FFN, bias=False)
            self.ffn_down = torch.nn.Linear(FFN, WIDTH, bias=False)
            if not window:
                self.attn_logn = torch.nn.Parameter(torch.zeros(Q_HEADS))

        def forward(self, x, table, mask, log_n):
            batch, tokens, _ = x.shape
            h = self.attn_norm(x)
            q = self.attn_q(h).view(batch, tokens, Q_HEADS, HEAD_DIM).transpose(1, 2)
            q = rotate(q, table)
            if not self.window:
                scale = functional.softplus(self.attn_logn) / 4
                q = q * (1 + scale[:, None, None] * log_n[:, None])
            k = rotate(self.attn_k(h)[:, None], table)[:, 0]
            q = (q * HEAD_DIM ** -0.5).reshape(batch, Q_HEADS * tokens, HEAD_DIM)
            w = torch.bmm(q, k.transpose(1, 2)).view(batch, Q_HEADS, tokens, tokens)
            w = torch.softmax(w + mask, dim=-1).view(batch, Q_HEADS * tokens, tokens)
            o = torch.bmm(w, self.attn_v(h)).view(batch, Q_HEADS, tokens, HEAD_DIM)
            x = x + self.attn_output(o.transpose(1, 2).reshape(batch, tokens, -1))
            up = functional.gelu(self.ffn_up(self.ffn_norm(x)), approximate="tanh")
            return x + self.ffn_down(up)

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.token_embd = torch.nn.Embedding(VOCAB, WIDTH)
            self.smear = torch.nn.Parameter(torch.full((WIDTH,), 0.5))
            self.blk = torch.nn.ModuleList(Block(w) for w in WINDOWS)
            self.output_norm = torch.nn.LayerNorm(WIDTH, eps=NORM_EPS)
            self.output = torch.nn.Linear(WIDTH, VOCAB, bias=False)
            torch.nn.init.normal_(self.token_embd.weight, std=0.3)
            torch.nn.init.zeros_(self.output.weight)

        def forward(self, ids, pos, windows=WINDOWS):
            tokens = ids.shape[1]
            x = self.token_embd(ids)
            x = x + self.smear * functional.pad(x, (0, 0, 1, 0))[:, :-1]
            t = torch.arange(tokens)
            log_n = torch.log(t.float() + 1)
            for i, block in enumerate(self.blk):
                window = windows[i]
                hidden = t[None, :] > t[:, None]
                if window:
                    hidden = hidden | (t[:, None] - t[None, :] >= window)
                mask = torch.zeros(tokens, tokens).masked_fill(hidden, -1e30)
                where = np.arange(tokens)[None] if window else pos
                table = [torch.from_numpy(a)[:, None] for a in rope_table(where, ROPE_BASES[i])]
                x = block(x, table, mask, log_n)
            return self.output(self.output_norm(x))

    return Tiny()


# ---------------------------------------------------------------------------- training

def learning_rate(step, steps):
    if step < WARM_UP:
        return PEAK_LR * (step + 1) / WARM_UP
    done = step / steps
    if done < CONSTANT_UNTIL:
        return PEAK_LR
    left = (1 - done) / (1 - CONSTANT_UNTIL)
    return PEAK_LR * (LAST_LR_SHARE + (1 - LAST_LR_SHARE) * left)


def make_batch(rng, step, stage):
    tokens, batch, keys, share = STAGES[stage]
    if stage == len(STAGES) - 1 and step % 2:
        keys = int(rng.integers(8, 49))
        return task_batch(rng, tokens, batch, keys)
    return stream_batch(rng, tokens, batch, keys, share)


def save_checkpoint(model, path):
    np.savez(path + ".part.npz", **{k: v.numpy() for k, v in model.state_dict().items()})
    os.replace(path + ".part.npz", path)


def train(options):
    import torch
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    model = build_model(torch)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                              {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95))
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    stage, accuracy, begin = 0, 0.0, time.time()
    for step in range(options.steps):
        text, asked = make_batch(rng, step, stage)
        pos = positions(rng, text.shape[1] - 1, text.shape[0])
        ids = torch.from_numpy(text)
        at = torch.from_numpy(asked)
        early = stage < len(STAGES) - 1
        windows = [min(w, EARLY_WINDOW) for w in WINDOWS] if early else WINDOWS
        logits = model(ids[:, :-1], pos, windows)[at]
        want = ids[:, 1:][at]
        loss = torch.nn.functional.cross_entropy(logits, want)
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, options.steps)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        right = (logits.argmax(-1) == want).float().mean().item()
        accuracy += 0.05 * (right - accuracy)
        if step % 20 == 0:
            print(f"step {step} stage {stage} loss {loss.item():.4f} accuracy {accuracy:.4f} "
                  f"{time.time() - begin:.0f} s", flush=True)
        if early and accuracy > ADVANCE_AT:
            stage, accuracy = stage + 1, 0.0
        if step % 200 == 199 or step + 1 == options.steps:
            save_checkpoint(model, options.checkpoint)


# ---------------------------------------------------------------------------- GGUF

GGUF_U32, GGUF_F32, GGUF_STRING, GGUF_ARRAY = 4, 6, 8, 9
TENSOR_F32, TENSOR_Q8_0 = 0, 8
ALIGNMENT = 32


def pack_string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pack_scalar(kind, value):
    if kind == GGUF_STRING:
        return pack_string(value)
    return struct.pack("<I" if kind == GGUF_U32 else "<f", value)


def pack_entry(name, kind, value):
    if isinstance(value, (list, tuple)):
        head = struct.pack("<IIQ", GGUF_ARRAY, kind, len(value))
        return pack_string(name) + head + b"".join(pack_scalar(kind, v) for v in value)
    return pack_string(name) + struct.pack("<I", kind) + pack_scalar(kind, value)


def pack_q8_0(weights):
    """Blocks of 32 along a row: an f16 scale, then 32 signed bytes. ggml's rounding: halves away from zero."""
    blocks = weights.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    inverse = np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
    x = blocks * inverse[:, None].astype(np.float32)
    codes = (np.sign(x) * np.floor(np.abs(x) + 0.5)).astype(np.int8)
    out = np.empty((len(blocks), 34), np.uint8)
    out[:, :2] = scale.astype("<f2")[:, None].view(np.uint8)
    out[:, 2:] = codes.view(np.uint8)
    return out.tobytes()


def metadata():
    p = "headrace-tiny."
    words = [f"{letter}{i:02d}" for letter in "kvf" for i in range(64)]
    return [
        ("general.architecture", GGUF_STRING, "headrace-tiny"),
        ("general.name", GGUF_STRING, "Headrace tiny retrieval model"),
        ("general.license", GGUF_STRING, "apache-2.0"),
        ("general.alignment", GGUF_U32, ALIGNMENT),
        ("general.file_type", GGUF_U32, 7),
        ("general.quantization_version", GGUF_U32, 2),
        (p + "context_length", GGUF_U32, HORIZON),
        (p + "embedding_length", GGUF_U32, WIDTH),
        (p + "block_count", GGUF_U32, LAYERS),
        (p + "feed_forward_length", GGUF_U32, FFN),
        (p + "vocab_size", GGUF_U32, VOCAB),
        (p + "attention.head_count", GGUF_U32, Q_HEADS),
        (p + "attention.head_count_kv", GGUF_U32, 1),
        (p + "attention.key_length", GGUF_U32, HEAD_DIM),
        (p + "attention.value_length", GGUF_U32, HEAD_DIM),
        (p + "attention.layer_norm_epsilon", GGUF_F32, NORM_EPS),
        (p + "attention.sliding_window", GGUF_U32, WINDOWS),
        (p + "rope.dimension_count", GGUF_U32, HEAD_DIM),
        (p + "rope.freq_base", GGUF_F32, ROPE_BASES),
        ("tokenizer.ggml.model", GGUF_STRING, "headrace-words"),
        ("tokenizer.ggml.tokens", GGUF_STRING, words),
    ]


def write_gguf(state, path):
    entries = metadata()
    infos, data = b"", b""
    for name, value in state.items():
        if name.endswith("attn_logn") or name == "smear":
            name += ".weight"
        if name.endswith("attn_logn.weight"):
            value = np.log1p(np.exp(value)) / 4
        matrix = value.ndim == 2
        raw = pack_q8_0(value) if matrix else value.astype("<f4").tobytes()
        dims = value.shape[::-1]                 # innermost first
        infos += pack_string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        infos += struct.pack("<IQ", TENSOR_Q8_0 if matrix else TENSOR_F32, len(data))
        data += raw + bytes(-len(raw) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(state), len(entries))
    head += b"".join(pack_entry(*e) for e in entries) + infos
    head += bytes(-len(head) % ALIGNMENT)
    with open(path + ".part", "wb") as out:
        out.write(head + data)
    os.replace(path + ".part", path)
    print(f"{path}: {len(head) + len(data)} bytes, {len(state)} tensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("train", help="train from scratch")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--checkpoint", required=True, metavar="NPZ")
    p = commands.add_parser("export", help="quantise a checkpoint and write it as GGUF")
    p.add_argument("--checkpoint", required=True, metavar="NPZ")
    p.add_argument("output", metavar="GGUF")
    options = parser.parse_args()
    if options.command == "train":
        train(options)
    else:
        write_gguf(dict(np.load(options.checkpoint)), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
