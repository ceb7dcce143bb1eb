#!/usr/bin/env python3
"""What the PyPI package `tokenizers` makes of a text, for comparison with engine/tokenizer.h.

    tokenizer_reference.py compare --gguf FILE --out DIR [--bytes N] [--seed S]
        builds the tokenizers from the file's vocabulary and merges and writes a mixed text and its ids and pieces
    tokenizer_reference.py characters --out DIR
        the class of every code point (classes.bin, one byte each, numbered as in engine/unicode.h), and marks of all
        kinds in all orders (marks.bin) with their canonical composition (composed.bin)
    tokenizer_reference.py golden --gguf FILE --out DIR
        makes the sample that is committed in tests/engine/data, so that the tests also run without the package

In DIR: text.bin, and for each pre-tokenizer NAME.ids (u32, little endian), NAME.special.ids (the same with control tokens
recognised) and NAME.ends (u32: byte offset where each piece ends). `golden` writes the same as decimal text.
"""
import argparse
import array
import os
import random
import struct
import sys
import unicodedata

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
         r"\s+(?!\S)|\s+")
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
         r"\s+(?!\S)|\s+")


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def published(name):
    """The pre-tokenizer of the published tokenizer.json files."""
    if name == "gpt-2":
        return byte_level(True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)])
    regex = Regex({"llama-bpe": LLAMA, "qwen2": QWEN2}[name])
    return pre_tokenizers.Sequence([pre_tokenizers.Split(regex, "isolated"), byte_level(False)])


NAMES = ("smollm", "gpt-2", "llama-bpe", "qwen2")


def encode(name, vocab, merges, text, control=()):
    """The text's ids; control tokens are looked for in it where they are given."""
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=name == "llama-bpe")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = published(name)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(list(control))
    return tokenizer.encode(text).ids


# ---------------------------------------------------------------------------- GGUF

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def scalar(self, form):
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def string(self):
        n = self.scalar("<Q")
        self.at += n
        return self.data[self.at - n:self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            kind, n = self.scalar("<I"), self.scalar("<Q")
            return [self.value(kind) for _ in range(n)]
        return self.scalar(SCALARS[kind])


def read_metadata(path):
    with open(path, "rb") as f:
        reader = Reader(f.read(16 << 20))
    reader.at = 16
    count = reader.scalar("<Q")
    return {reader.string(): reader.value(reader.scalar("<I")) for _ in range(count)}


def read_vocab(path):
    """Vocabulary, merges and control tokens."""
    meta = read_metadata(path)
    tokens = meta["tokenizer.ggml.tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    control = [token for token, kind in zip(tokens, meta["tokenizer.ggml.token_type"]) if kind == 3]
    return vocab, [tuple(m.split(" ")) for m in meta["tokenizer.ggml.merges"]], control


# ---------------------------------------------------------------------------- texts

PROSE = """It's a truth; they'll say "we've been there", I'm sure he'd agree, DON'T YOU'RE we'Ve THEY'LL he'D I'M 'tis rock'n'roll.
The old house, built in 1874 (or 1,874.50?), stood at 12/34 Elm St. -- nobody's home... or is there? http://example.com/a_b?c=d&e=%20f
""".replace("\n", " ")
CODE = """def main(argv: list[str]) -> int:
    for i in range(0x1F, 1_000_000):\n\tif (i % 3 == 0) and not argv[i-1]:\n\t\treturn -i**2  # comment's end
static inline int f(const char *p){while(*p++!='\\0');return p[-1]==0x7f?1:-1;}\n#define A(x) ((x)<<2|~0u)\n\n\n    }\n  };
<div class="a b" data-x='{"k": [1, 2.5e-10, null]}'>&nbsp;</div>\r\nSELECT * FROM t WHERE a>=10;\r\n\r\n"""
PIECES = [
    "0123456789", "3.14159", "1,234,567", "\u0661\u0662\u0663", "\u00bd\u00b2\u2160\u2167", "\u096a\u096b", "\uff11\uff12", "2024-01-02T03:04:05Z", "\U00011de0\U00011de1",
    "\u4eca\u65e5\u306f\u826f\u3044\u5929\u6c17\u3067\u3059\u306d\u3002", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\uc548\ub155\ud558\uc138\uc694", "\u30ab\u30bf\u30ab\u30ca", "\U00020000\U0002a6d6",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001f3f4\u200d\u2620\ufe0f",
    " ", "  ", "   ", "        ", "\t", "\t\t", " \t ", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\u00a0", "\u3000", "\u2003\u2009", "\u2028", "\u0085", "\u200b", "\ufeff",
    "\u000b\u000c", "\x1c\x1d", "\x00", "\x7f", "\x04",
    "e\u0301", "a\u0308\u0323o\u0302", "\u0915\u094d\u0937\u093f", "\u0e01\u0e33\u0e49", "Z\u0351\u036b\u0343", "\u00e9\u00e8\u00fc\u00df\u00f8", "\ufb01\ufb02\u017f\u212a",
    "'s", "'S", "'t", "'RE", "'ve", "'Ll", "'d", "'M", "'\u017f", "\u2019s", "''s", " 's", "'", "'x", "'sa", "'rE", "'lL",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439", "\u03b5\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac", "\u05e2\u05d1\u05e8\u05d9\u05ea", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u1780\u1798\u17d2\u1796\u17bb\u1787\u17b6", "\u10e5\u10d0\u10e0",
    "\U00010330\U00010331", "\U00012000\U00012001", "\U00013000", "\u1401\u1402", "\u16a0\u16a1", "\U0001d400\U0001d7ce", "\ua000\ua001", "\u2c00", "\U00010d40", "\U0001e900",
    "!", "?!", "...", "--", "==>", "{}", "[](){}", "$$$", "#@%", "\u201cquote\u201d", "\u2014", "\u2026", "\u20ac5", "~/.bashrc", "\\n", "a_b", "C++", "x^2", "\u221a\u222b\u2211",
    "word", "Word", "WORD", "antidisestablishmentarianism", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "<|im_start|>", "<|endoftext|>", "\ue000\U000f0000", "\uffff\U0010ffff",
]


def random_character(rng):
    while True:
        top = rng.choice((0x80, 0x250, 0x3000, 0xFFFF, 0x1FFFF, 0x10FFFF))
        c = rng.randrange(top)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def mixed_text(n_bytes, seed):
    """Prose, code and everything that is awkward, glued together at random."""
    rng = random.Random(seed)
    words = PROSE.split(" ")
    parts, size = [], 0
    while size < n_bytes:
        kind = rng.random()
        if kind < 0.25:
            part = " ".join(rng.choice(words) for _ in range(rng.randrange(1, 12)))
        elif kind < 0.35:
            at = rng.randrange(len(CODE))
            part = CODE[at:at + rng.randrange(4, 80)]
        elif kind < 0.40:
            part = rng.choice(" \t\n\r\u00a0a1.'\u4e00") * rng.choice((1, 2, 3, 5, 17, 64, 200))
        elif kind < 0.48:
            part = "".join(random_character(rng) for _ in range(rng.randrange(1, 6)))
        else:
            part = rng.choice(PIECES)
        if rng.random() < 0.3:
            part += " "
        parts.append(part)
        size += len(part.encode())
    return "".join(parts)


def classes_of_characters():
    """The class of each code point as engine/unicode.h numbers them, asked of the package character by character."""
    classes = bytearray(0x110000)
    for base in range(0, 0x110000, 0x1000):
        code_points = [c for c in range(base, base + 0x1000) if not 0xD800 <= c < 0xE000]
        text = "".join(map(chr, code_points))
        apart = "a" + "a".join(map(chr, code_points)) + "a"
        for piece, _ in pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(apart):
            if "a" not in piece:
                classes[ord(piece)] = 4
        for number, regex in ((1, r"\p{L}"), (2, r"\p{N}"), (3, r"\s")):
            for piece, _ in pre_tokenizers.Split(Regex(regex), "removed", invert=True).pre_tokenize_str(text):
                for c in piece:
                    if number == 2 and classes[ord(c)] != 4:
                        sys.exit(f"U+{ord(c):04X} is a number for the expressions only")
                    classes[ord(c)] = number
    return classes


# ---------------------------------------------------------------------------- output

def many_marks():
    """Every code point that can have a decomposition, whole and in parts, with marks before and behind it."""
    parts = []
    for c in (*range(0xD800), *range(0xF900, 0x10000), *range(0x10000, 0x13000), *range(0x1D000, 0x1D300),
              *range(0x1E000, 0x1F000), *range(0x2F800, 0x2FA20)):
        whole, apart = chr(c), unicodedata.normalize("NFD", chr(c))
        parts.append(f"{whole}\n{apart}\nq\u0334\u0301{whole}\u0323\u05b0\nq{apart}\u0301\u0345{whole}\n")
    rng = random.Random(3)
    marks = "\u0300\u0301\u0308\u0323\u0327\u0334\u0345\u05b0\u3099\u0f71\u0f72\u1161\u11a8"
    for _ in range(20000):
        parts.append("".join(rng.choice("aeouAEOU\u03b1\u1100\u304b \u00e9\uac00" + marks + marks)
                             for _ in range(rng.randrange(1, 12))))
    parts.append("a" + "".join(rng.choice(marks) for _ in range(50000)))
    return "".join(parts)


def byte_offsets(text):
    """Byte offset of every character, and of the end."""
    offsets, at = array.array("Q", [0]), 0
    for c in text:
        o = ord(c)
        at += 1 if o < 0x80 else 2 if o < 0x800 else 3 if o < 0x10000 else 4
        offsets.append(at)
    return offsets


def piece_ends(name, text, offsets):
    return [offsets[end] for _, (_, end) in published(name).pre_tokenize_str(text)]


def write_binary(path, values):
    out = array.array("I", values)
    if sys.byteorder == "big":
        out.byteswap()
    with open(path, "wb") as f:
        out.tofile(f)


def write_decimal(path, values):
    with open(path, "w", encoding="ascii") as f:
        for i in range(0, len(values), 24):
            f.write(" ".join(map(str, values[i:i + 24])) + "\n")


def write_text(folder, text, name="text.bin"):
    with open(os.path.join(folder, name), "wb") as f:
        f.write(text.encode())


def compare(options):
    text = mixed_text(options.bytes, options.seed) + "".join(c * 20000 for c in " a\n\t.9'A") + "ab \n" * 5000
    offsets = byte_offsets(text)
    write_text(options.out, text)
    vocab, merges, control = read_vocab(options.gguf)
    for name in NAMES:
        path = os.path.join(options.out, name)
        write_binary(path + ".ids", encode(name, vocab, merges, text))
        write_binary(path + ".special.ids", encode(name, vocab, merges, text, control))
        write_binary(path + ".ends", piece_ends(name, text, offsets))


def characters(options):
    with open(os.path.join(options.out, "classes.bin"), "wb") as f:
        f.write(classes_of_characters())
    text = many_marks()
    write_text(options.out, text, "marks.bin")
    write_text(options.out, normalizers.NFC().normalize_str(text), "composed.bin")


def train_small(text):
    """A vocabulary of a few hundred tokens made from the sample itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = published("gpt-2")
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    import json
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return model["vocab"], merges


# Appended to the small vocabulary; one begins another.
SMALL_CONTROL = ("<|im_start|>", "<|endoftext|>", "<|im", "<|end")


def golden(options):
    text = mixed_text(6300, 7) + " <|im_start|>user\n<|im<|end <|endoftext|>x<|im_start|\n"
    offsets = byte_offsets(text)
    path = lambda name: os.path.join(options.out, name)
    write_text(options.out, text, "golden.txt")
    vocab, merges = train_small(text)
    with open(path("small.vocab"), "w", encoding="utf-8") as f:
        f.write("".join(token + "\n" for token in sorted(vocab, key=vocab.get)))
    with open(path("small.merges"), "w", encoding="utf-8") as f:
        f.write("".join(" ".join(pair) + "\n" for pair in merges))
    for name in NAMES:
        ends = piece_ends(name, text, offsets)
        write_decimal(path(f"golden.{name}.lengths"), [end - begin for begin, end in zip([0] + ends, ends)])
        write_decimal(path(f"small.{name}.ids"), encode(name, vocab, merges, text))
    vocab |= {token: len(vocab) + i for i, token in enumerate(SMALL_CONTROL)}
    write_decimal(path("small.special.ids"), encode("smollm", vocab, merges, text, SMALL_CONTROL))
    vocab, merges, _ = read_vocab(options.gguf)
    write_decimal(path("smollm2.smollm.ids"), encode("smollm", vocab, merges, text))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("compare", compare), ("characters", characters), ("golden", golden)):
        p = commands.add_parser(name)
        p.set_defaults(run=run)
        p.add_argument("--out", required=True, metavar="DIR")
        if name != "characters":
            p.add_argument("--gguf", required=True, metavar="FILE")
        p.add_argument("--bytes", type=int, default=1 << 20)
        p.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
