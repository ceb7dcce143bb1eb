#!/bin/sh
# Writes a long English text, the demo's reading.
#
#   usage: make_text.sh FILE [BYTES]
#
# Its BYTES (60,000 without that argument) come from Genesis, of Debian's package bible-kjv; where
# that is not installed, from the licence texts that every Debian carries, else from this
# repository's own documents.
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"

[ $# -ge 1 ] || die "usage: make_text.sh FILE [BYTES]"
out=$1
bytes=${2:-60000}

genesis() {
    command -v bible > /dev/null || return 1
    # Verse marks ("Ge1:1 ") are no prose: they would be a fifth of all tokens.
    bible -f 'gen1:1-gen50:26' 2> /dev/null | sed 's/^[A-Za-z0-9]*:[0-9]* //'
}

licences() {
    folder=/usr/share/common-licenses
    cat $folder/GPL-3 $folder/LGPL-3 $folder/GPL-2 2> /dev/null
}

documents() {
    find "$root" -maxdepth 2 \( -name '*.md' -o -name LICENSE \) -not -path '*/build/*' | sort |
        xargs cat
}

text=$(mktemp)
trap 'rm -f "$text"' EXIT INT TERM
if ! genesis > "$text" || [ "$(wc -c < "$text")" -lt "$bytes" ]; then
    licences > "$text" || documents > "$text"
fi
mkdir -p "$(dirname -- "$out")"
# Cut at a line's end, so that no character and no word is cut.
head -c "$bytes" "$text" | sed '$d' > "$out.part"
mv -f "$out.part" "$out"
