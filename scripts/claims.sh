#!/usr/bin/env bash
# claims.sh [NAME…]: reruns claims (all that have a committed ledger, without names) and compares each with its ledger;
# exits 1 when a verdict or a number differs. A claim that failed when its ledger was written has to fail again.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
for ledger in methods/*/*/*_claim.csv; do
  name=$(basename "$ledger" _claim.csv | tr _ -)
  if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
  echo "== $name"
  model=$(sed -n 's/^# model: //p' "$ledger"); given=()
  if [ "$model" != testdata/lm-s ]; then  # a model of a package that setup installs
    path=$(find .venv/lib/python3*/site-packages -name "$model" | head -1)
    [ -n "$path" ] || { echo "$model is not in .venv: run make setup"; failed=1; continue; }
    given=(--model "$path")
  fi
  build/release/pith claim "$name" "${given[@]}" --ledger "$ledger" || failed=1
done
exit $failed
