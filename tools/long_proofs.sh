#!/bin/sh
# The long forms of the proofs of docs/reliability.md, with their figures; about ten hours, of which the soak, the mixes of faults and each of
# six fuzzers take one.
#
#   usage: long_proofs.sh [PROOF]...      all of them without an argument
#
# HEADRACE_LONG_SECONDS  of the soak, of the random mixes of faults and of each fuzzer (3600)
set -eu
# shellcheck source=tools/common.sh
. "$(dirname -- "$0")/common.sh"
cd "$root"

seconds=${HEADRACE_LONG_SECONDS:-3600}
tests=build/release/tests
all="power_cut nth flips kill stall faults disk_full soak threads broken fuzz"
failed=

prove() {
    case $1 in
    power_cut) "$tests/proof_power_cut" 10000 1000 ;;
    nth) "$tests/proof_nth" 370 ;;
    flips) "$tests/proof_flip" all && "$tests/test_offload_faults" test_random_damage ;;
    kill) "$tests/proof_kill" 500 ;;
    stall) HEADRACE_LONG=1 "$tests/test_deadline" ;;
    faults) mixes ;;
    disk_full) HEADRACE_LONG=1 "$tests/test_offload_disk_full" || [ $? = 77 ] ;;
    soak) "$tests/proof_threads" "$seconds" ;;
    threads) threads ;;
    broken) ctest --test-dir build/release -R '^broken_' --output-on-failure ;;
    fuzz) sh tools/fuzz.sh "$seconds" || [ $? = 77 ] ;;
    *) die "'$1' is not one of: $all" ;;
    esac
}

# Random mixes of faults of the file tier, each with a seed of its own, until the time is up.
mixes() {
    end=$(($(date +%s) + seconds)) seed=1
    while [ "$(date +%s)" -lt "$end" ]; do
        HEADRACE_TEST_SEED=$seed "$tests/test_offload_faults" test_chaos > build/mixes.log 2>&1 ||
            { cat build/mixes.log; return 1; }
        seed=$((seed + 9))
    done
    echo "$((seed - 1)) random histories with mixes of faults"
}

# gcc 12's ThreadSanitizer does not start where the kernel spreads addresses wider than it expects.
threads() {
    configure_and_build tsan -- proof_threads
    fixed=
    setarch "$(uname -m)" -R true 2> /dev/null && fixed="setarch $(uname -m) -R"
    # shellcheck disable=SC2086 # a command or nothing
    TSAN_OPTIONS=halt_on_error=1 $fixed build/tsan/tests/proof_threads "$((seconds / 6 + 1))"
}

configure_and_build release
# shellcheck disable=SC2086 # words
[ $# -gt 0 ] || set -- $all
for proof in "$@"; do
    say "proving $proof"
    begin=$(date +%s)
    prove "$proof" || failed="$failed $proof"
    say "$proof: $(($(date +%s) - begin)) s"
done
[ -z "$failed" ] || die "failed:$failed"
