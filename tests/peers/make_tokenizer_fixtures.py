#!/usr/bin/env python3
"""Writes testdata/tokenizer/zoo.json.zst: small tokenizers, a text, and the ids that their own packages give for it.

Run with a Python that has tokenizers, sentencepiece, protobuf and zstandard (or the program zstd).
"""
import json
import pathlib
import subprocess
import tempfile

import mixed_text
import sentencepiece
import tokenizer_zoo
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    text = mixed_text.mixed_text(12000, seed=5)
    plain = mixed_text.mixed_text(12000, seed=6, specials=False)
    out = {"text": text, "plain": plain, "cases": []}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in tokenizer_zoo.train(folder, mixed_text.mixed_text(150000, seed=4, specials=False), 1200):
            if name.endswith("_nfkc"):
                continue  # the map is large; tokenizer_peers_test.py compares these
            path = folder / f"{name}.json"
            t = Tokenizer.from_file(str(path))
            if name.startswith("spm_"):
                s = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))
                case = {"ids": s.encode(plain)}
            else:
                case = {"special": t.encode(text).ids, "parsed": t.encode(text, add_special_tokens=False).ids}
                t.encode_special_tokens = True
                case["ids"] = t.encode(plain, add_special_tokens=False).ids
                case["text_only"] = t.encode(text, add_special_tokens=False).ids
            case["decoded"] = t.decode(case["ids"], skip_special_tokens=False)
            out["cases"].append({"name": name, "tokenizer": json.loads(path.read_text()), **case})
    target = ROOT / "testdata/tokenizer/zoo.json.zst"
    data = json.dumps(out, ensure_ascii=False, separators=(",", ":")).encode()
    target.write_bytes(subprocess.run(["zstd", "--ultra", "-22", "-q", "-c", f"--stream-size={len(data)}"], input=data, stdout=subprocess.PIPE,
                                      check=True).stdout)
    print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
