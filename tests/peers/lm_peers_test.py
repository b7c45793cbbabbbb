"""Pith's language model against llama.cpp on SmolLM2-135M-Instruct: the same most probable token on 99.5 % of 2,000
positions at least, and a perplexity within 0.2 %. llama.cpp rounds activations to 8 bits when weights are quantised, so
the strict comparison uses the file with its weights spread out to F32; the quantised one is compared as well, loosely.

The other way round, llama.cpp runs the GGUF files that Pith writes and finds the perplexity that Pith finds.
PITH_LLAMA_BIN (llama.cpp's programs) and PITH_SMOLLM2 (the GGUF file) are set by scripts/test_peers.sh."""
import os
import pathlib
import struct
import subprocess

import gguf
import numpy as np
import pytest

BUILD = pathlib.Path(os.environ.get("PITH_BUILD", "build/release"))
SOURCE = pathlib.Path(os.environ["PITH_SOURCE_DIR"])
LLAMA = os.environ["PITH_LLAMA_BIN"]
SMOLLM2 = os.environ["PITH_SMOLLM2"]
LM_S = SOURCE / "testdata/lm-s"  # its rows are multiples of 256, so every type fits
CHUNKS = 8
TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"]


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(p.read_text() for p in sorted((SOURCE / "data/heldout").glob("*.txt"))))
    return path


def llama_cpp(model, text, context, logits):
    """Its perplexity, the tokens it read, and for each scored position and token a number that grows with its logit.
    All comes from the file of logits: llama-perplexity's log loses its last lines now and then. The file: magic, context,
    vocabulary, chunks, all tokens, then for each scored position of each chunk two fp32 numbers, scale and least value, and
    16 bits for each token: log-probability = least value + scale * bits."""
    run = subprocess.run([f"{LLAMA}/llama-perplexity", "-m", str(model), "-f", str(text), "-c", str(context), "-b", str(context),
                          "--chunks", str(CHUNKS), "-t", "2", "--kl-divergence-base", str(logits)],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    data = logits.read_bytes()
    assert data[:8] == b"_logits_"
    written_context, vocab, chunks = struct.unpack_from("<Iii", data, 8)
    assert written_context == context and chunks == CHUNKS
    tokens = np.frombuffer(data, np.int32, chunks * context, 20).reshape(chunks, context)
    width = 2 * ((vocab + 1) // 2) + 4
    first, scored = context // 2, context - 1 - context // 2
    rows = np.frombuffer(data, np.uint16, offset=20 + 4 * chunks * context).reshape(chunks, scored, width)
    scale, least = np.moveaxis(rows[:, :, :4].copy().view(np.float32).astype(np.float64), 2, 0)
    values = rows[:, :, 4:4 + vocab]
    seen = np.take_along_axis(values, tokens[:, first + 1:, None], 2)[:, :, 0]
    return float(np.exp(-(least + scale * seen).mean())), tokens, values


def pith(model, tokens):
    """Pith's perplexity and its most probable tokens at the scored positions."""
    run = subprocess.run([str(BUILD / "tests/lm_peer"), str(model), str(tokens.shape[1])], capture_output=True, text=True,
                         input=" ".join(map(str, tokens.reshape(-1))))
    assert run.returncode == 0, run.stderr
    *lines, last = run.stdout.strip().splitlines()
    _, nll, count = last.split()
    return float(np.exp(float(nll) / int(count))), np.array([list(map(int, line.split())) for line in lines])


def same_share(ours, theirs):
    """16 bits cannot tell near ties apart: a token counts as the same when it has llama.cpp's largest stored value."""
    return (np.take_along_axis(theirs, ours[:, :, None], 2)[:, :, 0] == theirs.max(axis=2)).mean()


def test_spread_out_weights(tmp_path, prose):
    wide = tmp_path / "wide.gguf"
    subprocess.run([f"{LLAMA}/llama-quantize", "--allow-requantize", SMOLLM2, str(wide), "F32", "2"], check=True,
                   capture_output=True)
    ppl, tokens, theirs = llama_cpp(wide, prose, 512, tmp_path / "logits")
    for path in (wide, SMOLLM2):  # Pith multiplies both exactly
        ours_ppl, ours = pith(path, tokens)
        print(f"perplexity {ours_ppl:.4f}, llama.cpp {ppl:.4f}; same of {ours.size}: {same_share(ours, theirs):.4f}")
        assert ours.size >= 2000 and same_share(ours, theirs) >= 0.995
        assert abs(ours_ppl / ppl - 1) < 0.002


def test_quantised_weights(tmp_path, prose):
    ppl, tokens, theirs = llama_cpp(SMOLLM2, prose, 512, tmp_path / "logits")
    ours_ppl, ours = pith(SMOLLM2, tokens)
    print(f"perplexity {ours_ppl:.4f}, llama.cpp {ppl:.4f}; same of {ours.size}: {same_share(ours, theirs):.4f}")
    assert same_share(ours, theirs) > 0.95
    assert abs(ours_ppl / ppl - 1) < 0.01


def run_pith(*words):
    run = subprocess.run([str(BUILD / "pith"), *map(str, words)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def llama_cpp_agrees(path, logits, tolerance):
    ppl, tokens, theirs = llama_cpp(path, LM_S / "test.txt", 256, logits)
    ours_ppl, ours = pith(path, tokens)
    print(f"{path.name}: perplexity {ours_ppl:.4f}, llama.cpp {ppl:.4f}; same of {ours.size}: {same_share(ours, theirs):.4f}")
    assert abs(ours_ppl / ppl - 1) < tolerance
    return same_share(ours, theirs)


@pytest.mark.parametrize("kind", TYPES)
def test_llama_cpp_runs_what_pith_quantizes(tmp_path, kind):
    path = tmp_path / f"lm-s-{kind}.gguf"
    run_pith("quantize", "gguf", LM_S, "--type", kind, "--calib", LM_S / "calib.txt", "--eval-chunks", 0, "--threads", 2, "-o", path)
    types = {t.tensor_type.name for t in gguf.GGUFReader(path).tensors if t.data.ndim == 2}
    assert kind in types and types <= {kind, "F16", "F32"}
    assert llama_cpp_agrees(path, tmp_path / "logits", 0.01) > 0.95


def test_llama_cpp_runs_an_export(tmp_path):
    run_pith("export", LM_S, "--to", "gguf", "-o", tmp_path / "lm-s.gguf")
    assert llama_cpp_agrees(tmp_path / "lm-s.gguf", tmp_path / "logits", 0.002) > 0.99
