#!/bin/sh
# The shared library shows hr_* and nothing else, and every function its headers declare is there.
#
#   usage: test_exports.sh LIBRARY INCLUDE_FOLDER
set -eu
library=$1
include=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nm -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort > "$work/shown"
if grep -v '^hr_[a-z]' "$work/shown"; then
    echo "these symbols must be hidden"
    exit 1
fi
cat "$include"/headrace/*.h | sed -n 's/^HR_API .*[ *]\(hr_[a-z0-9_]*\)(.*/\1/p' | sort -u > "$work/declared"
[ -s "$work/declared" ]
if comm -23 "$work/declared" "$work/shown" | grep .; then
    echo "these functions are declared, but the library lacks them"
    exit 1
fi
