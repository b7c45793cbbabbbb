#!/usr/bin/env bash
# lint.sh [file…]: clang-tidy over the torch-free side (clang 14 does not take libtorch's headers as C++20).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
scripts/setup.sh --with lint
cmake --preset runtime-only >/dev/null || die "cmake could not configure"
if [ $# -gt 0 ]; then files=("$@"); else
  mapfile -t files < <(git ls-files 'src/*.cpp' 'methods/*.cpp' 'fuzz/*.cpp' |
    grep -vE '^src/(tensor|maths|nets|train|engine|cli/engine)/|_(fit|claim|test|avx2|avx512|amx)\.cpp$')
fi
say "clang-tidy over ${#files[@]} files"
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy -p build/runtime-only --quiet --warnings-as-errors='*'
