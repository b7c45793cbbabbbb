#!/usr/bin/env bash
# llama_cpp.sh: prints the folder with llama.cpp's programs for tests and benches that compare with it. They are built
# the first time (some minutes, 77 MB to download) from the source in the PyPI package llama-cpp-python, into
# .venv-peers/llama.cpp. PITH_LLAMA_BIN names a build of your own instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh
programs=(llama-bench llama-perplexity llama-quantize llama-tokenize)
version=0.3.36
home=$PWD/.venv-peers/llama.cpp
if [ -n "${PITH_LLAMA_BIN:-}" ]; then
  bin=$PITH_LLAMA_BIN
else
  bin=$home/build/bin
  if [ ! -f "$home/pith-setup" ] || [ "$(cat "$home/pith-setup")" != "$version" ]; then
    say "building llama.cpp out of llama-cpp-python $version"
    rm -rf "$home"; mkdir -p "$home"
    retry 3 python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: -d "$home" "llama-cpp-python==$version" >&2 \
      || die "pip could not download llama-cpp-python"
    tar -xzf "$home"/llama_cpp_python-*.tar.gz -C "$home" --strip-components=3 --wildcards '*/vendor/llama.cpp'
    rm "$home"/llama_cpp_python-*.tar.gz
    # GCC 12 drops the stores to the AMX tile configuration before it is loaded; the programs would crash.
    sed -i 's|^\( *\)_tile_loadconfig(&tc);|\1asm volatile("" : : "r"(\&tc) : "memory");\n&|' "$home/ggml/src/ggml-cpu/amx/mmq.cpp"
    cmake -S "$home" -B "$home/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF >&2
    ninja -C "$home/build" -j"$(jobs)" "${programs[@]}" >&2
    echo "$version" > "$home/pith-setup"
  fi
fi
for program in "${programs[@]}"; do [ -x "$bin/$program" ] || die "$bin has no $program"; done
echo "$bin"
