#!/usr/bin/env python3
"""Writes the tables of engine/unicode.h and engine/unicode_nfc.h.

The published tokenizers use three engines that follow different versions of Unicode, and so must the tables. In the PyPI
package `tokenizers` 0.21 to 0.23, `\\p{L}`, `\\p{N}` and `\\s` are Oniguruma's (Unicode 16); the `Digits` pre-tokenizer asks
Rust's char::is_numeric (Unicode 17), and a character that only this one calls a number has a class of its own; the NFC
normaliser has tables of Unicode 9, which is what Python 3.6 has. tests/reference/tokenizer_reference.py compares the result
with the package, character by character.

    pip install --target /tmp/u16 unicodedata2==16.0.0
    pip install --target /tmp/u17 'unicodedata2>=17,<18'
    python3 tools/gen_unicode.py classes --regex /tmp/u16 --digits /tmp/u17 > engine/unicode_tables.c
    python3 tools/gen_unicode.py nfc --python python3.6 > engine/unicode_nfc_tables.c
"""
import argparse
import json
import subprocess
import sys

OTHER, LETTER, NUMBER, SPACE, NUMBER_LATE = range(5)
BLOCK = 128
CODE_POINTS = 0x110000
# The White_Space property; it has not changed since Unicode 6.3.
WHITE_SPACE = [(0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
               (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)]

DUMP = """
import json, sys
sys.path.insert(0, sys.argv[1])
import unicodedata2 as u
letters = "".join(u.category(chr(c))[0] for c in range(0x110000))
json.dump([u.unidata_version, letters], sys.stdout)
"""


def categories(folder):
    """The major category of every code point as one letter, by a Python that imports from that folder."""
    out = subprocess.run([sys.executable, "-c", DUMP, folder], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def classify(regex, digits):
    classes = bytearray(CODE_POINTS)
    for c in range(CODE_POINTS):
        if regex[c] == "L":
            classes[c] = LETTER
        elif regex[c] == "N":
            classes[c] = NUMBER
        elif digits[c] == "N":
            classes[c] = NUMBER_LATE
        if regex[c] == "N" and digits[c] != "N":
            sys.exit(f"U+{c:04X} is a number for the regular expressions only; the classes cannot say that")
    for low, high in WHITE_SPACE:
        classes[low:high + 1] = bytes([SPACE]) * (high + 1 - low)
    return classes


def rows(values, per_line, form):
    for i in range(0, len(values), per_line):
        yield "    " + ", ".join(form % v for v in values[i:i + per_line]) + ","


def classes(options):
    regex_version, regex = categories(options.regex)
    digits_version, digits = categories(options.digits)
    by_code_point = classify(regex, digits)

    blocks, index = {}, []
    for begin in range(0, CODE_POINTS, BLOCK):
        block = bytes(by_code_point[begin:begin + BLOCK])
        index.append(blocks.setdefault(block, len(blocks)))
    if len(blocks) > 256 or set(list(blocks)[index[-1]]) != {OTHER}:
        sys.exit("the blocks do not fit one byte each, or the last is not of class OTHER")
    used = len(index)
    while index[used - 1] == index[-1]:
        used -= 1                                # the tail is OTHER, found by bounds instead
    packed = [b[i] | b[i + 1] << 4 for b in blocks for i in range(0, BLOCK, 2)]

    print("/* Made by tools/gen_unicode.py; do not edit. */\n/* clang-format off */")
    print('#include "engine/unicode_tables.h"\n')
    print(f'const char hre_unicode_regex_version[] = "{regex_version}";')
    print(f'const char hre_unicode_digits_version[] = "{digits_version}";\n')
    print(f"const uint32_t hre_unicode_index_count = {used};")
    print(f"const uint8_t hre_unicode_index[{used}] = {{")
    print("\n".join(rows(index[:used], 24, "%d")))
    print("};\n")
    print(f"const uint8_t hre_unicode_blocks[{len(packed)}] = {{")
    print("\n".join(rows(packed, 16, "0x%02x")))
    print("};")
    print(f"{len(blocks)} blocks, {used + len(packed)} bytes", file=sys.stderr)


# Code points, their combining class, canonical decomposition, and what NFC makes of them.
DUMP_NFC = """
import json, sys, unicodedata as u
out = []
for c in range(0x110000):
    if 0xD800 <= c < 0xE000 or 0xAC00 <= c < 0xD7A4:
        continue
    d = u.decomposition(chr(c))
    parts = [] if not d or d[0] == "<" else [int(p, 16) for p in d.split()]
    if parts or u.combining(chr(c)):
        out.append([c, u.combining(chr(c)), parts, u.normalize("NFC", chr(c)) == chr(c)])
json.dump([u.unidata_version, out], sys.stdout)
"""
JAMO = [(0x1161, 0x1175), (0x11A8, 0x11C2)]      # vowels and trailing consonants, which compose with what precedes


def ranges_of(items):
    """(first, last, value) of neighbours with equal values."""
    out = []
    for c, value in items:
        if out and out[-1][1] == c - 1 and out[-1][2] == value:
            out[-1][1] = c
        else:
            out.append([c, c, value])
    return out


def print_array(kind, name, values, per_line, form):
    print(f"const uint32_t {name}_count = {len(values)};")
    print(f"const {kind} {name}[{len(values)}] = {{")
    print("\n".join(rows([form(v) for v in values], per_line, "%s")))
    print("};\n")


def nfc(options):
    out = subprocess.run([options.python, "-c", DUMP_NFC], check=True, stdout=subprocess.PIPE).stdout
    version, dump = json.loads(out.decode())
    pairs = [(c, *(parts + [0])[:2]) for c, _, parts, _ in dump if parts]
    # What NFC leaves whole is what two parts compose to.
    whole = {c for c, _, parts, stable in dump if len(parts) == 2 and stable}
    by_parts = sorted((i for i, p in enumerate(pairs) if p[0] in whole), key=lambda i: pairs[i][1:])
    seconds = {p[2] for p in pairs if p[0] in whole}
    marks = [(c, ccc) for c, ccc, _, _ in dump if ccc]
    unstable = {c for c, ccc, _, stable in dump if ccc or not stable} | seconds
    for low, high in JAMO:
        unstable |= set(range(low, high + 1))
    if len(pairs) > 65535 or min(unstable) < 0x300:
        sys.exit("the tables do not have the form that engine/unicode_nfc.c expects")

    print("/* Made by tools/gen_unicode.py; do not edit. */\n/* clang-format off */")
    print('#include "engine/unicode_nfc.h"\n')
    print(f'const char hre_nfc_version[] = "{version}";\n')
    print_array("struct hre_nfc_pair", "hre_nfc_pairs", pairs, 4, lambda p: "{0x%x, 0x%x, 0x%x}" % p)
    print_array("uint16_t", "hre_nfc_by_parts", by_parts, 20, str)
    form = lambda r: "{0x%x, 0x%x, %d}" % tuple(r)
    print_array("struct hre_nfc_range", "hre_nfc_marks", ranges_of(marks), 6, form)
    print_array("struct hre_nfc_range", "hre_nfc_unstable", ranges_of((c, 0) for c in sorted(unstable)), 6, form)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("classes", help="character classes")
    p.set_defaults(run=classes)
    p.add_argument("--regex", required=True, metavar="DIR", help="folder with unicodedata2 for \\p{L}, \\p{N}")
    p.add_argument("--digits", required=True, metavar="DIR", help="folder with unicodedata2 for Digits")
    p = commands.add_parser("nfc", help="canonical composition")
    p.set_defaults(run=nfc)
    p.add_argument("--python", required=True, metavar="PROGRAM", help="a Python whose unicodedata has the version")
    options = parser.parse_args()
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
