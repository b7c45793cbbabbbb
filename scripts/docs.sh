#!/usr/bin/env bash
# docs.sh [--check]: writes docs/methods/*.md from the parameter tables and the Python stub from the module;
# --check only says whether they are current.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
build=${PITH_BUILD:-build/release}
fresh=$(mktemp -d); trap 'rm -rf "$fresh"' EXIT
python3 -B scripts/method_docs.py "$build/pith" "$fresh"
stub=python/pith/_pith.pyi
if compgen -G "$build/python/pith/_pith.*.so" >/dev/null; then
  PYTHONPATH="$build/python" .venv/bin/python -B -m nanobind.stubgen -q -m pith._pith -o "$fresh.pyi"
else
  cp "$stub" "$fresh.pyi"
fi
trap 'rm -rf "$fresh" "$fresh.pyi"' EXIT
if [ "${1:-}" = --check ]; then
  diff -r "$fresh" docs/methods && diff "$fresh.pyi" "$stub" || die "docs are not current; run make docs"
else
  rm -rf docs/methods; mkdir -p docs; cp -r "$fresh" docs/methods; chmod 755 docs/methods
  cp "$fresh.pyi" "$stub"
fi
