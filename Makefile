# A thin door: each target calls one script or one program. CMake does the work.
# make demo | make test is all that a fresh Debian 12+ or Ubuntu 24.04+ machine needs.
SHELL := /bin/bash
.DEFAULT_GOAL := build

.PHONY: setup build demo test test-peers test-kill claims bench bench-memory fuzz format lint docs clean

setup:       ## install what is missing: apt packages, .venv with libtorch and the demo model
	@scripts/setup.sh

build: setup ## pith, pith-engine and the tests, into build/release
	@scripts/build.sh release

demo: build  ## compress a real language model to 60 MB, look at demo/report.html
	@scripts/demo.sh

test: build  ## everything that must pass before a change lands
	@ctest --test-dir build/release --output-on-failure --no-tests=error

test-peers: build ## compare with transformers, tokenizers, gguf, safetensors and llama.cpp (downloads them)
	@scripts/test_peers.sh

test-kill: build ## kill -9 a whole pith compress at random moments and resume it, 20 times: the same bytes (minutes)
	@tests/kill/kill_test.py build/release/pith compress testdata/lm-s --bits 3.2 --calib testdata/lm-s/calib.txt \
	  --calib-sequences 32 --fisher-sequences 16 --eval testdata/lm-s/test.txt --eval-chunks 4

claims: build ## rerun the claims of all methods and compare with their committed ledgers
	@scripts/claims.sh

bench: setup ## speed and memory beside the peers, same machine, same run
	@scripts/bench.sh

bench-memory: setup ## peak memory of compress on a synthetic 8 GB model; most of an hour, 30 GB of disk
	@scripts/bench.sh build/release/bench/compress_memory

fuzz:        ## libFuzzer on every reader, SECONDS_EACH=60 each
	@scripts/fuzz.sh

format:      ## rewrite all sources with clang-format 14
	@scripts/format.sh

lint:        ## clang-tidy over the torch-free side
	@scripts/lint.sh

docs: build  ## regenerate docs/methods from the parameter tables
	@scripts/docs.sh

clean:
	rm -rf build demo
