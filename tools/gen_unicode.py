#!/usr/bin/env python3
"""Writes engine/unicode_tables.c: the character classes that the tokenizer's regular expressions ask for.

The published tokenizers split text with two engines that follow different versions of Unicode. In the PyPI package
`tokenizers` 0.21 to 0.23, `\\p{L}`, `\\p{N}` and `\\s` are Oniguruma's (Unicode 16), while the `Digits` pre-tokenizer asks
Rust's char::is_numeric (Unicode 17). So two databases are read, and a character that only the second one calls a number
has a class of its own. tests/reference/tokenizer_reference.py compares the result with the package, character by character.

    pip install --target /tmp/u16 unicodedata2==16.0.0
    pip install --target /tmp/u17 'unicodedata2>=17,<18'
    python3 tools/gen_unicode.py --regex /tmp/u16 --digits /tmp/u17 > engine/unicode_tables.c
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--regex", required=True, metavar="DIR", help="folder with unicodedata2 for \\p{L}, \\p{N}")
    parser.add_argument("--digits", required=True, metavar="DIR", help="folder with unicodedata2 for Digits")
    options = parser.parse_args()
    regex_version, regex = categories(options.regex)
    digits_version, digits = categories(options.digits)
    classes = classify(regex, digits)

    blocks, index = {}, []
    for begin in range(0, CODE_POINTS, BLOCK):
        block = bytes(classes[begin:begin + BLOCK])
        index.append(blocks.setdefault(block, len(blocks)))
    used = len(index)
    while used > 1 and index[used - 2] == index[-1]:
        used -= 1                                # the tail is one block, found by bounds instead
    tail = index[used:used + 1] or index[-1:]
    if tail and set(list(blocks)[tail[0]]) != {OTHER}:
        sys.exit("the last code points are not of class OTHER")
    if len(blocks) > 256:
        sys.exit(f"{len(blocks)} different blocks do not fit one byte each")
    packed = [b[i] | b[i + 1] << 4 for b in blocks for i in range(0, BLOCK, 2)]

    print("/* Made by tools/gen_unicode.py; do not edit. */")
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
