#!/bin/sh
# Comparing runs and printing them, on runs made by hand.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

# made RATIO SPREAD OTHER_RATIO: a run of two benchmarks
made() {
    cat << END
{"command": "bench", "date": "2026-01-01T00:00:00Z", "machine": {"cpu": "x", "threads": 2}, "benchmarks": [
 {"name": "first", "what": "a <thing>", "goal": 0.9, "value": 1, "limit": 2, "ratio": $1, "ratio_spread": $2, "unit": "GB/s", "limit_is": "a read", "details": {"n": 3}},
 {"name": "second", "what": "other", "goal": 0.5, "value": 1, "limit": 2, "ratio": $3, "ratio_spread": 0.01, "unit": "GB/s", "limit_is": "a read"},
 {"name": "third", "what": "never", "goal": 1, "value": null, "ratio": null, "skipped": "no disk"}]}
END
}
made 0.80 0.02 0.50 > a.json
made 0.82 0.02 0.60 > b.json # within noise; better
made 0.60 0.02 0.50 > c.json # worse
made 0.60 0.30 0.50 > d.json # as much, in a run as noisy as that

run bench compare a.json b.json; expect 0
has "$out" "1 better, 0 worse beyond noise"
run bench compare a.json a.json; expect 0
has "$out" "0 better, 0 worse beyond noise"
run bench compare a.json c.json; expect 1
has "$out" "WORSE"
run bench compare a.json d.json; expect 0
has "$out" "0 better, 0 worse beyond noise"
sed 's/"cpu": "x"/"cpu": "y"/' a.json > e.json
run bench compare a.json e.json; expect 0
has "$err" "different machines"

run bench report a.json; expect 0
has "$out" "# Benchmarks"
# shellcheck disable=SC2016 # backquotes of the page
has "$out" '| `first` | a <thing> |'
has "$out" "**not reached**"
has "$out" "no disk"

run bench compare a.json none.json; expect 1
printf '{"command": "plan"}' > p.json
fails 1 "headrace: p.json: not the JSON of a 'headrace bench' run" bench report p.json
printf 'not json' > q.json
fails 1 "headrace: q.json: not the JSON of a 'headrace bench' run" bench compare q.json a.json
finish
