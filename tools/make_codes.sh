#!/bin/sh
# Writes the text of make_text.sh with 24 access codes hidden in it, and at its end a line that asks
# for each of them in another order, answer included: what a model can only say by retrieval.
#
#   usage: make_codes.sh FILE [BYTES]        BYTES of prose, 56,000 without that argument
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"

[ $# -ge 1 ] || die "usage: make_codes.sh FILE [BYTES]"
out=$1
sh "$root/tools/make_text.sh" "$out.prose" "${2:-56000}"
awk '
    BEGIN {
        n = split("Maple Cedar Birch Willow Poplar Hazel Juniper Laurel Linden Rowan Spruce Walnut " \
                  "Acacia Banyan Cypress Dogwood Ebony Fir Ginkgo Hemlock Ironwood Jasmine Larch Mahogany", name, " ")
        for (i = 1; i <= n; i++) {
            code[i] = 10007 + (i * i * 7919 + i * 48611) % 89989
            hidden[i] = "The access code of " name[i] " is " code[i] "."
        }
    }
    { line[NR] = $0 }
    END {
        for (i = 1; i <= NR; i++) {
            print line[i]
            while (next_code < n && i * n >= (next_code + 0.5) * NR)
                print hidden[++next_code]
        }
        print ""
        for (i = 1; i <= n; i++)
            print hidden[(i * 7) % n + 1]
    }' "$out.prose" > "$out.part"
rm -f "$out.prose"
mv -f "$out.part" "$out"
