#!/bin/sh
# The one rule of dependency: fails when a folder includes one that it must not.
#
#   usage: check_deps.sh [ROOT]
#
# base includes nothing of ours; kernels base; index and offload base and kernels, never each
# other; runtime all of these. engine, python and examples know the library only by
# <headrace/...>; cli too, and the engine besides. What runs the engine on a GPU (engine/device*) may also
# include kernels. Prints one line per violation and exits 1.
set -eu
root=${1:-$(dirname "$0")/..}
cd "$root"

folders='base kernels index offload runtime engine cli python examples bench tests'

# What a folder may include besides itself and <headrace/...>.
allowed() {
    case $1 in
    include) echo '' ;;
    base) echo '' ;;
    kernels) echo 'base' ;;
    index | offload) echo 'base kernels' ;;
    runtime) echo 'base kernels index offload' ;;
    engine | python | examples) echo '' ;;
    cli) echo 'engine' ;;
    esac
}

sources() {
    find "$1" -type f \( -name '*.c' -o -name '*.h' -o -name '*.cc' -o -name '*.cpp' \
        -o -name '*.cu' -o -name '*.cuh' \) | sort
}

check() {
    sources "$1" | while IFS= read -r file; do
        case $file in
        engine/device*) may=kernels ;;
        *) may=$(allowed "$1") ;;
        esac
        awk -v file="$file" -v self="$1" -v may="$may" -v folders="$folders" '
            function has(list, word,    items, n, i) {
                n = split(list, items, " ")
                for (i = 1; i <= n; i++)
                    if (items[i] == word)
                        return 1
                return 0
            }
            /^[ \t]*#[ \t]*include[ \t]*["<]/ {
                path = $0
                sub(/^[^"<]*["<]/, "", path)
                sub(/[">].*$/, "", path)
                if (path ~ /\.\.\//) {
                    printf "%s:%d: %s leaves its folder; include from the root\n", file, FNR, path
                    next
                }
                top = path
                if (sub(/\/.*$/, "", top) == 0 || !has(folders, top))
                    next
                if (top != self && !has(may, top))
                    printf "%s:%d: %s must not include %s\n", file, FNR, self, path
            }' "$file"
    done
}

violations=
for folder in include base kernels index offload runtime engine cli python examples; do
    [ -d "$folder" ] || continue
    violations=$violations$(check "$folder")
done
if [ -n "$violations" ]; then
    printf '%s\n' "$violations"
    exit 1
fi
