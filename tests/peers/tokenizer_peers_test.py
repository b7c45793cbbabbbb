"""Ids on 1 MB of mixed text against `tokenizers`, `sentencepiece` and llama.cpp; chat templates against jinja2.

PITH_LLAMA_BIN and PITH_SMOLLM2 are set by scripts/test_peers.sh; PITH_VOCABS may name a folder of further GGUF files,
PITH_TEMPLATES one of *.jinja files.
"""
import glob
import json
import os
import pathlib
import re
import subprocess
import time

import make_chat_fixtures
import mixed_text
import pytest
import sentencepiece
import tokenizer_zoo
from tokenizers import Tokenizer

BUILD = pathlib.Path(os.environ.get("PITH_BUILD", "build/release"))
NAMES = ["gpt2", "gpt2_prefix", "smollm", "llama3", "qwen2", "tekken", "han", "nfkc_lower", "nfkd", "added", "llama2",
         "gemma", "mistral"]
SP_NAMES = ["spm_unigram", "spm_bpe", "spm_unigram_nfkc", "spm_bpe_nfkc"]


def peer(*arguments):
    run = subprocess.run([str(BUILD / "tests/tokenizer_peer"), *map(str, arguments)], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


def ids_of(*arguments):
    return [[int(x) for x in line.split()] for line in peer("encode", *arguments).decode().split("\n")[:-1]]


def same(got, want, names):
    if got == want:
        return
    i = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    near = slice(max(0, i - 3), i + 6)
    raise AssertionError(f"differ at {i} of {len(got)}, {len(want)}: {names(got[near])} for {names(want[near])}")


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    text = mixed_text.mixed_text(1_000_000, seed=11)
    (folder / "mixed.txt").write_bytes(text.encode())
    (folder / "broken.txt").write_bytes(mixed_text.broken(mixed_text.mixed_text(300_000, seed=13, specials=False).encode()))
    tokenizer_zoo.train(folder, mixed_text.mixed_text(400_000, seed=12, specials=False), 2500)
    return folder, text


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers(texts, name):
    folder, text = texts
    t = Tokenizer.from_file(str(folder / f"{name}.json"))
    for parse in (True, False):
        t.encode_special_tokens = not parse
        begin = time.monotonic()
        [got] = ids_of(folder / f"{name}.json", folder / "mixed.txt", *(["parse"] if parse else []))
        assert time.monotonic() - begin < 3
        same(got, t.encode(text, add_special_tokens=False).ids, lambda ids: [t.id_to_token(i) for i in ids])


@pytest.mark.parametrize("name", SP_NAMES)
def test_sentencepiece(texts, name):
    """In blocks: sentencepiece sums the scores of a text in fp32, so ties of long texts fall as the rounding wants."""
    folder, text = texts
    s = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))
    text = text.replace("\x1d", "")
    if "unigram" in name:  # runs of one character tie too
        text = re.sub(r"(.)\1{8,}", r"\1", text)
    blocks = [text[i:i + 800] for i in range(0, len(text), 800)]
    (folder / "blocks.txt").write_bytes("\x1d".join(blocks).encode())
    got = ids_of(folder / f"{name}.json", folder / "blocks.txt", "blocks")
    wrong = [(g, s.encode(b)) for g, b in zip(got, blocks, strict=True) if g != s.encode(b)]
    print(name, len(wrong), "of", len(blocks), "blocks differ")
    for g, w in wrong[len(blocks) // 500:]:
        same(g, w, lambda ids: [s.id_to_piece(i) for i in ids])


@pytest.mark.parametrize("name", ["gpt2", "llama3", "llama2", "gemma", "spm_bpe"])
def test_no_byte_is_lost(texts, name):
    folder, _ = texts
    data = (folder / "broken.txt").read_bytes()
    back = peer("encode", folder / f"{name}.json", folder / "broken.txt", "bytes")
    if name == "spm_bpe":  # its normaliser changes the text
        assert len(back) > len(data) * 0.9
    else:
        assert back == data.replace("▁".encode(), b" ") if name in ("llama2", "gemma") else back == data


def llama_ids(model, path, parse):
    run = subprocess.run([os.environ["PITH_LLAMA_BIN"] + "/llama-tokenize", "-m", model, "-f", path, "--ids", "--no-bos", "--no-escape",
                          "--log-disable"] + ([] if parse else ["--no-parse-special"]), capture_output=True, check=True)
    return json.loads(run.stdout)


def vocabularies():
    """Without those of which llama.cpp knows more by their name than their file says (phi-3's stripping tokens)."""
    found = sorted(glob.glob(os.environ["PITH_VOCABS"] + "/*.gguf")) if "PITH_VOCABS" in os.environ else []
    return [f for f in found if "phi-3" not in f]


@pytest.mark.parametrize("model", ["smollm2", *vocabularies()], ids=os.path.basename)
def test_llama_cpp(texts, model):
    folder, text = texts
    further = model != "smollm2"
    model = model if further else os.environ["PITH_SMOLLM2"]
    run = subprocess.run([str(BUILD / "tests/tokenizer_peer"), "encode", model, os.devnull], capture_output=True)
    if b"support" in run.stderr or b"not know" in run.stderr:
        pytest.skip(run.stderr.decode())
    if further:  # llama.cpp makes these names control tokens, even where the model's file says that they are words
        for name in ("</s>", "<|endoftext|>", "\x85"):
            text = text.replace(name, "")
    (folder / "llama.txt").write_bytes(text.encode())
    word_pieces = any(name in str(model) for name in ("spm", "baichuan", "gemma", "nomic"))
    for name, flags in (("llama.txt", []), ("llama.txt", ["parse"]), ("broken.txt", ["repair"])):
        if name == "broken.txt" and word_pieces:
            continue  # those take broken bytes by the length that a first byte claims
        [got] = ids_of(model, folder / name, *flags)
        same(got, llama_ids(model, folder / name, "parse" in flags), lambda ids: ids)


def test_chat_templates(tmp_path):
    """Every template gives jinja2's text, or both refuse."""
    env = make_chat_fixtures.environment()
    sources = dict(make_chat_fixtures.TEMPLATES)
    for path in sorted(glob.glob(os.environ.get("PITH_TEMPLATES", "/nowhere") + "/*.jinja")):
        sources[path] = pathlib.Path(path).read_bytes().decode()
    wrong, checked = [], 0
    for name, source in sources.items():
        (tmp_path / "template").write_bytes(source.encode())
        for conversation in make_chat_fixtures.CONVERSATIONS:
            (tmp_path / "messages").write_text(json.dumps(conversation))
            for generate in (True, False):
                want = make_chat_fixtures.render(env, source, conversation, generate)
                run = subprocess.run([str(BUILD / "tests/tokenizer_peer"), "chat", tmp_path / "template",
                                      tmp_path / "messages", *(["generate"] if generate else [])], capture_output=True)
                checked += 1
                if want != (run.stdout.decode() if run.returncode == 0 else None):
                    wrong.append((name, run.stderr.decode()))
    print(checked, "renderings,", len(wrong), "differ:", sorted(set(wrong)))
    assert len({name for name, _ in wrong}) <= len(sources) // 50
