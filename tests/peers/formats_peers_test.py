"""Files that Pith writes are read by the packages `gguf`, `safetensors`, `tokenizers` and `transformers`, and the other
way round. Run by `make test-peers`; the C++ side is build/release/tests/formats_peer."""
import json
import os
import pathlib
import subprocess

import gguf
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import tokenizers
import torch
import transformers

BUILD = pathlib.Path(os.environ.get("PITH_BUILD", "build/release"))
TEXT = ("Hello world!  It's   1234567 o'clock\n\n\tIndented – “quotes” … naïve café Ünïcödé 東京 カタカナ 한국어 "
        "🙂👩‍👩‍👧 \u0000\u200b def f(x): return x**2  # don't\r\n" + "x" * 40 + " ααα\u0301  \n ")


def peer(*arguments, ok=True):
    run = subprocess.run([str(BUILD / "tests/formats_peer"), *map(str, arguments)], capture_output=True, text=True)
    assert (run.returncode == 0) == ok, run.stderr
    return run.stdout if ok else run.stderr


# ---- safetensors -------------------------------------------------------------------------------------------------

def some_tensors():
    rng = np.random.default_rng(1)
    return {
        "b": rng.standard_normal((3, 5)).astype(np.float32),
        "a.half": rng.standard_normal((7,)).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3.5, np.float64),
        "ü \"quoted\" \\ name": rng.integers(0, 255, (2, 3, 4), dtype=np.uint8),
        "i": rng.integers(-9, 9, (11,), dtype=np.int64),
        "flag": np.array([True, False]),
    }


def test_safetensors_both_ways(tmp_path):
    tensors = some_tensors()
    safetensors.numpy.save_file(tensors, tmp_path / "in.safetensors", metadata={"k": "v\n\"", "format": "np"})
    peer("safetensors-copy", tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    with safetensors.safe_open(tmp_path / "out.safetensors", "np") as f:
        assert f.metadata() == {"k": "v\n\"", "format": "np"}
        assert sorted(f.keys()) == sorted(tensors)
        for name, value in tensors.items():
            got = f.get_tensor(name)
            assert got.dtype == value.dtype and got.shape == value.shape and np.array_equal(got, value), name


def test_sharded_safetensors(tmp_path):
    tensors = some_tensors()
    names = list(tensors)
    index = {"metadata": {}, "weight_map": {}}
    for k in range(2):
        file = f"model-{k + 1:05d}-of-00002.safetensors"
        part = {n: tensors[n] for n in names[k::2]}
        safetensors.numpy.save_file(part, tmp_path / file)
        index["weight_map"].update({n: file for n in part})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    peer("safetensors-copy", tmp_path, tmp_path / "out.safetensors")
    got = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert all(np.array_equal(got[n], tensors[n]) for n in names) and len(got) == len(names)


# ---- GGUF --------------------------------------------------------------------------------------------------------

def write_gguf(path):
    rng = np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("t.u8", 200), writer.add_int8("t.i8", -100), writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -30000), writer.add_uint32("t.u32", 4000000000), writer.add_int32("t.i32", -5)
    writer.add_float32("t.f32", 1.5), writer.add_bool("t.bool", True), writer.add_string("t.s", "héllo\n")
    writer.add_uint64("t.u64", 2**60), writer.add_int64("t.i64", -(2**60)), writer.add_float64("t.f64", 0.1)
    writer.add_array("t.strings", ["a", "", "ccc"]), writer.add_array("t.ints", [1, -2, 3])
    writer.add_array("t.floats", [0.5, 1.5])
    raw = {}
    for kind in gguf.GGMLQuantizationType:
        if kind.name in ("Q8_1", "Q1_0"):  # sizes in dispute, or no decoder in the package
            continue
        elements, size = gguf.GGUF_SIZES[kind] if hasattr(gguf, "GGUF_SIZES") else gguf.GGML_QUANT_SIZES[kind]
        rows, blocks = 3, 2 if elements > 1 else 64
        data = rng.integers(0, 256, (rows, blocks * size), dtype=np.uint8)
        raw[kind.name] = data
        writer.add_tensor(kind.name, data, raw_shape=(rows, blocks * size), raw_dtype=kind)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return raw


def field(reader, key):
    return reader.fields[key].contents()


def test_gguf_both_ways(tmp_path):
    raw = write_gguf(tmp_path / "in.gguf")
    peer("gguf-copy", tmp_path / "in.gguf", tmp_path / "out.gguf")
    a, b = gguf.GGUFReader(tmp_path / "in.gguf"), gguf.GGUFReader(tmp_path / "out.gguf")
    keys = [k for k in a.fields if not k.startswith("GGUF.")]
    assert keys == [k for k in b.fields if not k.startswith("GGUF.")]
    for k in keys:
        assert field(a, k) == field(b, k) and a.fields[k].types == b.fields[k].types, k
    assert [t.name for t in a.tensors] == [t.name for t in b.tensors] == list(raw)
    for x, y in zip(a.tensors, b.tensors):
        assert x.tensor_type == y.tensor_type and list(x.shape) == list(y.shape)
        assert np.array_equal(np.asarray(x.data).view(np.uint8).ravel(), np.asarray(y.data).view(np.uint8).ravel())


def test_gguf_decoding(tmp_path):
    write_gguf(tmp_path / "in.gguf")
    peer("gguf-decode", tmp_path / "in.gguf", tmp_path / "out.safetensors")
    got = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    for t in gguf.GGUFReader(tmp_path / "in.gguf").tensors:
        if t.tensor_type.name in ("Q8_K", "F64") or t.tensor_type.name in ("I8", "I16", "I32", "I64"):
            continue
        with np.errstate(all="ignore"):
            want = gguf.dequantize(np.asarray(t.data), t.tensor_type).astype(np.float32).reshape(got[t.name].shape)
        assert np.array_equal(got[t.name], want, equal_nan=True), t.name


def test_quantized_tensors_decode_close(tmp_path):
    x = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    safetensors.numpy.save_file({"x": x}, tmp_path / "x.safetensors")
    peer("quantize", tmp_path / "x.safetensors", tmp_path / "q.gguf")
    reader = gguf.GGUFReader(tmp_path / "q.gguf")
    assert len(reader.tensors) == 15
    for t in reader.tensors:
        y = gguf.dequantize(np.asarray(t.data), t.tensor_type).reshape(x.shape)
        bits = 8 * t.n_bytes / t.n_elements
        error = float(((x - y) ** 2).mean())
        limit = 1e-5 if t.tensor_type.name in ("F16", "BF16", "F32") else 1.3 * 2.0 ** (-2 * (bits - 1.1))
        assert error < limit, (t.name, error)  # about 6 dB a bit


# ---- models ------------------------------------------------------------------------------------------------------

SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=320, max_position_embeddings=256, tie_word_embeddings=False,
             bos_token_id=1, eos_token_id=2, pad_token_id=0)
MODELS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM,
              dict(head_dim=32, attention_bias=True, mlp_bias=True,
                   rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                                        high_freq_factor=4.0, original_max_position_embeddings=8192))),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, dict(sliding_window=64)),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM, dict(num_local_experts=4)),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, dict(head_dim=32)),
    "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM, {}),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM, dict(head_dim=32, query_pre_attn_scalar=32, tie_word_embeddings=True)),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM,
               dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=64, num_hidden_layers=7)),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_model_folder_survives(tmp_path, name):
    """transformers writes a folder, Pith reads and writes it, transformers computes the same logits from it."""
    config_class, model_class, more = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SMALL, **more})).eval()
    for p in model.parameters():  # no tensor may be all ones or zeros, so that a mix-up shows
        torch.nn.init.normal_(p, std=0.05)
    model.save_pretrained(tmp_path / "in")
    peer("hf-copy", tmp_path / "in", tmp_path / "out")
    again = model_class.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(96)[None] * 3 % 320
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    a, b = model.config, again.config
    for key in ("layer_types", "rope_parameters", "sliding_window", "tie_word_embeddings", "head_dim"):
        want = getattr(a, key, None)
        assert want is None or getattr(b, key) == want, key


@pytest.mark.parametrize("name", list(MODELS))
def test_gguf_of_model(tmp_path, name):
    """Names, shapes and values of our GGUF equal what llama.cpp's naming asks for; the configuration comes back."""
    config_class, model_class, more = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SMALL, **more})).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    model.save_pretrained(tmp_path / "in")
    peer("hf-to-gguf", tmp_path / "in", tmp_path / "out.gguf", "F32")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    arch = {"mistral": "llama", "mixtral": "llama"}.get(name, name)
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], model.config.num_hidden_layers)
    have = {t.name: np.asarray(t.data) for t in reader.tensors}
    stored = {k: v.float().numpy() for k, v in safetensors.torch.load_file(tmp_path / "in/model.safetensors").items()}
    experts = {}
    used = set()
    for key, value in stored.items():
        if ".experts." in key:
            head, _, tail = key.partition(".experts.")
            number, which, _ = tail.split(".")
            layer = head.split(".")[2]
            experts.setdefault((layer, which), {})[int(number)] = value
            continue
        target = known.get_name(key, try_suffixes=(".weight", ".bias"))
        assert target in have, key
        if arch.startswith("gemma") and key.endswith("norm.weight"):
            value = value + 1
        heads = {"q_proj": SMALL["num_attention_heads"], "k_proj": SMALL["num_key_value_heads"]}.get(key.split(".")[-2])
        if arch in ("llama", "smollm3") and heads:
            value = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        assert np.array_equal(have[target].reshape(value.shape), value), key
        used.add(target)
    for (layer, which), parts in experts.items():
        target = f"blk.{layer}.ffn_{dict(w1='gate', w2='down', w3='up')[which]}_exps.weight"
        assert np.array_equal(have[target], np.stack([parts[i] for i in sorted(parts)]))
        used.add(target)
    assert set(have) - used == ({"rope_freqs.weight"} if name == "llama" else set())
    back = json.loads(peer("gguf-config", tmp_path / "out.gguf"))
    for key in ("hidden_size", "head_dim", "num_key_value_heads", "vocab_size", "tie_word_embeddings"):
        want = getattr(model.config, key, None)
        assert want is None or back[key] == want, key


# ---- tokenizers --------------------------------------------------------------------------------------------------

def trained_tokenizers():
    corpus = [TEXT, "the quick brown fox jumps over the lazy dog " * 3, "def main(): pass\n" * 4] * 3
    byte_bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    byte_bpe.decoder = tokenizers.decoders.ByteLevel()
    byte_bpe.train_from_iterator(corpus, tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|a|>", "<|b|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    byte_bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|a|> $A <|b|>", special_tokens=[("<|a|>", 0), ("<|b|>", 1)])
    gpt2 = tokenizers.Tokenizer(tokenizers.models.BPE())
    gpt2.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    gpt2.decoder = tokenizers.decoders.ByteLevel()
    gpt2.train_from_iterator(corpus, tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    spm = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spm.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
    spm.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
         tokenizers.decoders.Strip(" ", 1, 0)])
    spm.train_from_iterator(corpus[:1], tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]))
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram())
    unigram.normalizer = tokenizers.normalizers.NFKC()
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    unigram.decoder = tokenizers.decoders.Metaspace()
    unigram.train_from_iterator(corpus, tokenizers.trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<unk>", "</s>"]))
    return {"byte_bpe": byte_bpe, "gpt2": gpt2, "spm": spm, "unigram": unigram}


@pytest.mark.parametrize("name", ["byte_bpe", "gpt2", "spm", "unigram"])
def test_tokenizer_json_survives(tmp_path, name):
    """A tokenizer.json that went through TokenizerSpec and its packed form encodes and decodes as before."""
    before = trained_tokenizers()[name]
    (tmp_path / "in").mkdir(), (tmp_path / "out").mkdir()
    before.save(str(tmp_path / "in/tokenizer.json"))
    peer("tokenizer-hf", tmp_path / "in", tmp_path / "out")
    after = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    for text in (TEXT, "", " ", "<|a|> x<|end|></s>", "  two  spaces", "the fox\n" * 5):
        a, b = before.encode(text), after.encode(text)
        assert a.ids == b.ids, text
        if name != "unigram" or text == text.strip():
            assert before.decode(a.ids) == after.decode(b.ids), text


def test_smollm2(tmp_path):
    path = os.environ["PITH_SMOLLM2"]
    config = json.loads(peer("gguf-config", path))
    assert config["model_type"] == "llama" and config["hidden_size"] == 576 and config["rope_theta"] == 100000
    out = peer("tokenizer-gguf", path, tmp_path)
    assert int(out.split()[0]) < 190_000
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 49152
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT
    assert tokenizer.encode("<|im_start|>user\nHello 123").ids == [1, 4093, 198, 19556, 216, 33, 34, 35]
    peer("gguf-copy", path, tmp_path / "copy.gguf")
    a, b = gguf.GGUFReader(path), gguf.GGUFReader(tmp_path / "copy.gguf")
    assert all(np.array_equal(x.data, y.data) and x.name == y.name for x, y in zip(a.tensors, b.tensors))
