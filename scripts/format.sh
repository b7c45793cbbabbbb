#!/usr/bin/env bash
# format.sh [--check] [file…]: clang-format 14 over all C++ sources (or the given ones); --check only reports.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
check=no; if [ "${1:-}" = --check ]; then check=yes; shift; fi
tool=
for candidate in .venv/bin/clang-format clang-format-14 clang-format; do
  if command -v "$candidate" >/dev/null && "$candidate" --version | grep -q 'version 14\.'; then tool=$candidate; break; fi
done
[ -n "$tool" ] || die "clang-format 14 not found; make setup installs it into .venv"
if [ $# -gt 0 ]; then files=("$@"); else mapfile -t files < <(git ls-files '*.h' '*.cpp'); fi
if [ "$check" = yes ]; then
  "$tool" --dry-run --Werror "${files[@]}" || die "run make format"
else
  "$tool" -i "${files[@]}"
fi
