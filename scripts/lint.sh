#!/usr/bin/env bash
# lint.sh [--sample N] [file…]: clang-tidy over the torch-free side (clang 14 does not take libtorch's headers as
# C++20). --sample N: every N-th file, by its name's hash, so that a quick run still covers all in time.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
scripts/setup.sh --with lint
sample=1; if [ "${1:-}" = --sample ]; then sample=$2; shift 2; fi
[ -f build/runtime-only/compile_commands.json ] || cmake --preset runtime-only >/dev/null || die "cmake could not configure"
if [ $# -gt 0 ]; then files=("$@"); else
  mapfile -t files < <(git ls-files 'src/*.cpp' | grep -E '^src/(base|formats|represent|kernels|entropy|measure|plan|runtime)/' | grep -vE '_(avx2|avx512|amx)\.cpp$')
fi
chosen=()
for file in "${files[@]}"; do
  [ $(( 0x$(echo -n "$file" | sha256sum | cut -c1-6) % sample )) = 0 ] && chosen+=("$file")
done
say "clang-tidy over ${#chosen[@]} of ${#files[@]} files"
printf '%s\0' "${chosen[@]}" | xargs -0 -n 1 -P "$(nproc)" clang-tidy -p build/runtime-only --quiet --warnings-as-errors='*'
