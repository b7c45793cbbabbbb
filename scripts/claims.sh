#!/usr/bin/env bash
# claims.sh [NAME…]: reruns claims (all without names) and compares each with its committed ledger; exits 1 when one no
# longer holds or its numbers left the spread of the ledger.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then
  for name in "$@"; do build/release/pith claim "$name"; done
else
  exec build/release/pith claim --all
fi
