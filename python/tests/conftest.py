"""A tiny random Llama in a Hugging Face folder, written by hand: the tests need no model and no other package."""

import json
import os
import stat
import struct

import numpy as np
import pytest

HIDDEN, LAYERS, HEADS, KV_HEADS, MLP = 64, 2, 4, 2, 96


def byte_characters():
    """GPT-2's map of bytes to printable characters."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(others)) for b in range(256)]


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, array in tensors.items():
        raw = array.tobytes()
        header[name] = {"dtype": {"float32": "F32", "float16": "F16"}[str(array.dtype)], "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def make_model(folder, seed=0):
    rng = np.random.default_rng(seed)
    vocab = {c: i for i, c in enumerate(byte_characters())} | {"th": 256}  # a tokenizer without merges is refused
    specials = ["<|im_start|>", "<|im_end|>"]
    rows = len(vocab) + len(specials)
    head = HIDDEN // HEADS

    def matrix(out, inp):
        return (rng.standard_normal((out, inp)) / np.sqrt(inp)).astype(np.float16)

    tensors = {"model.embed_tokens.weight": matrix(rows, HIDDEN), "model.norm.weight": np.ones(HIDDEN, np.float16)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        tensors |= {
            p + "input_layernorm.weight": np.ones(HIDDEN, np.float16),
            p + "post_attention_layernorm.weight": np.ones(HIDDEN, np.float16),
            p + "self_attn.q_proj.weight": matrix(HEADS * head, HIDDEN),
            p + "self_attn.k_proj.weight": matrix(KV_HEADS * head, HIDDEN),
            p + "self_attn.v_proj.weight": matrix(KV_HEADS * head, HIDDEN),
            p + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * head),
            p + "mlp.gate_proj.weight": matrix(MLP, HIDDEN),
            p + "mlp.up_proj.weight": matrix(MLP, HIDDEN),
            p + "mlp.down_proj.weight": matrix(HIDDEN, MLP),
        }
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "intermediate_size": MLP, "vocab_size": rows, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float16"}))
    added = [{"id": len(vocab) + i, "content": t, "special": True, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False} for i, t in enumerate(specials)]
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": ["t h"]}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "eos_token": "<|im_end|>", "chat_template":
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"}))
    return tensors


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(folder, tensors)"""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return folder, make_model(folder)


@pytest.fixture
def fake_engine(tmp_path, monkeypatch):
    """Makes a shell script take the place of pith-engine."""
    def make(script):
        path = tmp_path / "engine"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PITH_ENGINE", str(path))
        return path
    return make


@pytest.fixture
def engine():
    path = os.environ.get("PITH_ENGINE", "")
    if not os.access(path, os.X_OK):
        pytest.skip("this build has no pith-engine")
    return path
