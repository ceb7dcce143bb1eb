#!/bin/sh
# usage: broken.sh SOURCE RESULT FROM TO
# Copies a source file with one line changed; fails unless that changes exactly one line, so that a broken store stays broken when the sources
# move on.
set -eu
FROM=$3 TO=$4 awk '
    { at = index($0, ENVIRON["FROM"]) }
    at { $0 = substr($0, 1, at - 1) ENVIRON["TO"] substr($0, at + length(ENVIRON["FROM"])); n++ }
    { print }
    END { if (n != 1) { print "broken.sh: " n + 0 " lines have: " ENVIRON["FROM"] > "/dev/stderr"; exit 1 } }
' "$1" > "$2"
