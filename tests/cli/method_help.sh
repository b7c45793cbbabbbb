#!/usr/bin/env bash
# method_help.sh PITH: every method's command prints its help, with each parameter of its table in it.
set -euo pipefail
pith=$1
count=0
while read -r family name params; do
  help=$("$pith" "$family" "$name" --help)
  for param in $params; do
    grep -q -- "--$param" <<<"$help" || { echo "pith $family $name --help lacks --$param"; exit 1; }
  done
  count=$((count + 1))
done < <("$pith" methods --json | python3 -c '
import json, sys
for m in json.load(sys.stdin):
    print(m["family"], m["name"], *[p["name"] for p in m["params"]])')
[ "$count" -ge 10 ] || { echo "only $count methods were listed"; exit 1; }
