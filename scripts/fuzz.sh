#!/usr/bin/env bash
# fuzz.sh [target…]: libFuzzer on every reader, SECONDS_EACH (60) each. New inputs go to build/fuzz/found/<target>; one
# that breaks a reader is printed and kept there: add it to fuzz/corpus/<target> together with the mend.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
scripts/setup.sh --with fuzz
scripts/build.sh fuzz
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cd fuzz && ls *_fuzz.cpp | sed 's/_fuzz.cpp//')
for target in "${targets[@]}"; do
  say "fuzzing $target for ${SECONDS_EACH:-60} s"
  mkdir -p "build/fuzz/found/$target"
  "build/fuzz/fuzz/${target}_fuzz" -max_total_time="${SECONDS_EACH:-60}" -rss_limit_mb=2048 -malloc_limit_mb=1024 -timeout=10 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/found/$target-" "build/fuzz/found/$target" "fuzz/corpus/$target" \
    2> "build/fuzz/found/$target.log" || { tail -40 "build/fuzz/found/$target.log" >&2; die "$target: see build/fuzz/found/$target.log"; }
  grep -E 'stat::number_of_executed_units|stat::new_units_added' "build/fuzz/found/$target.log" | sed "s/^/$target /"
done
