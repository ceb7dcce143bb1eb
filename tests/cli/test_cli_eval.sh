#!/bin/sh
# eval model on the embedded model: the keys that programs rely on, and figures that must hold.
# shellcheck disable=SC2016 # conditions in quotes are for awk
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$work" || exit 1

run eval model --tokens-context 4096 --tokens-scored 32 --recipes full,headrace,window --moved 1%,2% --dtype f32 --true-error \
    --json e.json
expect 0
number '$1 == 6' e.json results#
for i in 0 1 2 3 4 5; do
    for key in recipe moved_fraction device_fraction nll_dense nll_delta kl top1_agreement bytes_moved_per_token; do
        check "no $key" "$JSON_GET" e.json "results.$i.$key"
    done
done
check "order" test "$(json e.json results.2.recipe) $(json e.json results.2.moved) $(json e.json results.3.moved)" = "headrace 1% 2%"
number '$1 < 1e-6 && $2 == 1 && $3 < 1e-4' e.json results.0.kl results.0.top1_agreement results.0.true_error
number '$1 < 0.05 && $2 == 0.02 && $3 < 0.06 && $3 > 0' e.json results.3.kl results.3.moved_fraction \
    results.3.device_fraction
number '$1 > 20 * $2' e.json results.4.kl results.3.kl
number '$1 == 32' e.json results.2.tokens_scored
has "$out" "recipe"

# passes: the same figures when memory allows one combination at a time
run eval model --tokens-context 4096 --tokens-scored 8 --recipes full,window --json one.json; expect 0
run eval model --tokens-context 4096 --tokens-scored 8 --recipes full,window --memory-bytes 1MiB --json two.json; expect 0
has "$err" "pass 2 of 2"
check "passes change the figures" test "$(json one.json results.1.kl)" = "$(json two.json results.1.kl)"

# a cache that grew by decoding: two segments of it, the same text and tokens
run eval model --tokens-context 2048 --tokens-scored 32 --recipes full,headrace --json once.json; expect 0
run eval model --tokens-context 2048 --tokens-decoded 1200 --tokens-scored 32 --recipes full,headrace --json grown.json; expect 0
number '$1 == 0' once.json tokens_decoded
number '$1 == 1200' grown.json tokens_decoded
number '$1 < 1e-6 && $2 < 0.05' grown.json results.0.kl results.1.kl
once=$(json once.json results.0.nll)
number "\$1 > 0.999 * $once && \$1 < 1.001 * $once" grown.json results.0.nll
fails 2 "headrace eval model: --tokens-decoded 4000: at most --tokens-context less 2, which is 3998" \
    eval model --tokens-context 4000 --tokens-decoded 4000

printf 'f01 f02 f03\n' > short.txt
fails 1 "headrace: 'short.txt' has 3 tokens; --tokens-context 4000 and --tokens-scored 128 need 4128" \
    eval model --file short.txt
run eval model --tokens-context 70000; expect 1
has "$err" "70128 tokens are more than the 65536 the model was trained for; --allow-longer goes on regardless"
finish
