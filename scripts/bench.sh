#!/usr/bin/env bash
# bench.sh [program…]: builds bench/ and runs its programs, each beside its peer in the same run. CPU frequency and other
# load are not controlled: read the ratios, not the numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
scripts/llama_cpp.sh >/dev/null
cmake --preset release -DPITH_BENCH=ON >/dev/null
scripts/build.sh release
programs=("$@"); [ ${#programs[@]} -gt 0 ] || programs=(build/release/bench/*_bench bench/*_bench.py)
for program in "${programs[@]}"; do
  say "$program"
  "$program"
done
