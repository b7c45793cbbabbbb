#!/usr/bin/env bash
# build.sh PRESET [target…]: configures once, then builds into build/PRESET (quick when nothing changed).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
preset=$1; shift
if [ ! -f "build/$preset/build.ninja" ]; then
  cmake --preset "$preset" >&2 || die "cmake could not configure preset $preset"
fi
exec ninja -C "build/$preset" -j"$(jobs)" "$@"
