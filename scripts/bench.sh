#!/usr/bin/env bash
# bench.sh [program…]: builds bench/ and runs its programs, each beside its peer in the same run. CPU frequency and other
# load are not controlled: read the ratios, not the numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
[ -f bench/CMakeLists.txt ] || die "there are no benches in bench/"
cmake --preset release -DPITH_BENCH=ON >/dev/null
scripts/build.sh release
shopt -s nullglob
programs=("$@"); [ ${#programs[@]} -gt 0 ] || programs=(build/release/bench/*_bench bench/*_bench.sh)
for program in "${programs[@]}"; do
  say "$program"
  "$program"
done
