#!/usr/bin/env python3
"""Writes the seed corpus: small valid files of each format. Finds are added beside them by hand and never removed."""
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent / "corpus"


def save(target, name, data):
    folder = HERE / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(version=3, tensors=((b"a", 0, (4, 2)), (b"q", 8, (32, 2)))):
    """Metadata of every type, an F32 and a Q8_0 tensor."""
    pairs = [
        ("general.architecture", 8, gguf_string("llama")), ("u8", 0, b"\x07"), ("i8", 1, b"\xff"),
        ("u16", 2, struct.pack("<H", 3)), ("i16", 3, struct.pack("<h", -3)), ("u32", 4, struct.pack("<I", 9)),
        ("i32", 5, struct.pack("<i", -9)), ("f32", 6, struct.pack("<f", 1.5)), ("bool", 7, b"\x01"),
        ("u64", 10, struct.pack("<Q", 1 << 40)), ("i64", 11, struct.pack("<q", -1)), ("f64", 12, struct.pack("<d", .25)),
        ("strings", 9, struct.pack("<IQ", 8, 2) + gguf_string("x") + gguf_string("")),
        ("numbers", 9, struct.pack("<IQ", 5, 3) + struct.pack("<3i", 1, 2, 3)),
        ("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 1) + struct.pack("<I", 5)),
    ]
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, kind, raw in pairs:
        out += gguf_string(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, kind, shape in tensors:
        out += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", n) for n in shape) + struct.pack("<IQ", kind, len(data))
        size = shape[0] * shape[1] * 4 if kind == 0 else shape[0] // 32 * 34 * shape[1]
        data += bytes(range(size % 256)) + bytes(size - size % 256)
        data += b"\0" * (-len(data) % 32)
    return out + b"\0" * (-len(out) % 32) + data


def safetensors(tensors, metadata=None, pad=b" "):
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += pad * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(at))


def byte_tokenizer(merges=()):
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    vocab = {(chr(b) if b in keep else chr(next(others))): b for b in range(256)}
    for merge in merges:
        vocab[merge.replace(" ", "")] = len(vocab)
    return {"version": "1.0", "added_tokens": [
        {"id": len(vocab), "content": "<|end|>", "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "unk_token": None, "byte_fallback": False, "vocab": vocab, "merges": list(merges)}}


def main():
    save("gguf", "v3.gguf", gguf(3))
    save("gguf", "v2.gguf", gguf(2))
    save("gguf", "empty.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    save("gguf", "huge-counts.gguf", b"GGUF" + struct.pack("<IQQ", 3, (1 << 63) - 1, (1 << 63) - 1))
    save("safetensors", "types.safetensors", safetensors(
        [("a", "F32", [2, 3], 24), ("b", "BF16", [4], 8), ("c", "U8", [], 1), ("d", "F16", [0], 0), ("e", "I64", [1], 8)],
        {"format": "pt"}))
    save("safetensors", "empty.safetensors", safetensors([]))
    save("safetensors", "huge-header.safetensors", struct.pack("<Q", (1 << 63) - 1) + b"{}")
    save("safetensors", "deep.safetensors", struct.pack("<Q", 4096) + b"[" * 4096)
    save("options", "one", "bits=3,group=16")
    save("options", "allow", "gptq:bits=2..4;spqr;rtn:bits=3,group=64")
    save("options", "odd", "a=,=b,,x=1e999,bits=-1..99999999999")
    tensor = {"name": "model.layers.0.mlp.up_proj.weight", "method": "spqr:bits=3,group=16", "weights": 1024,
              "bytes": 400, "loss": 0.25}
    save("plan", "size.json", json.dumps({"pith_plan": 1, "input": "m.gguf", "budget": {"size": "60MB"},
                                          "settings": {"seed": "1"}, "tensors": [tensor], "lower_bound": 0.125}))
    save("plan", "small.json", '{"pith_plan": 1, "budget": {"ram": "80MB"}, "tensors": [{"name": "a", "method": "rtn"}]}')
    save("tokenizer_json", "bytes.json", json.dumps(byte_tokenizer()))
    save("tokenizer_json", "merges.json", json.dumps(byte_tokenizer(["t h", "th e", "a n"])))
    save("tokenizer_json", "unigram.json", json.dumps({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}, "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                  "vocab": [["<unk>", 0.0], ["\u2581", -2.0], ["a", -3.0], ["b", -3.5], ["\u2581ab", -4.0]]}}))


if __name__ == "__main__":
    main()
