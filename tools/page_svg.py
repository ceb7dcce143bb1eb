#!/usr/bin/env python3
"""Prints a picture of a page of `headrace eval trace --html` as a file of its own.

    page_svg.py PAGE NUMBER > picture.svg        pictures are numbered from 1, in the order of the page
"""
import re
import sys


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    page = open(sys.argv[1], encoding="utf-8").read()
    style = re.search(r"<style>.*?</style>", page, re.S)
    pictures = re.findall(r"<svg .*?</svg>", page, re.S)
    number = int(sys.argv[2])
    if not style or not 1 <= number <= len(pictures):
        sys.exit(f"{sys.argv[1]}: there are {len(pictures)} pictures")
    head, rest = pictures[number - 1].split(">", 1)
    sys.stdout.write(f'{head} xmlns="http://www.w3.org/2000/svg">{style.group(0)}<rect width="100%" height="100%" fill="#fff"/>{rest}\n')


if __name__ == "__main__":
    main()
