import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pith

SOURCE = Path(os.environ.get("PITH_SOURCE_DIR", Path(__file__).resolve().parents[2]))


def test_open_gives_the_numbers_that_were_written(tiny):
    folder, tensors = tiny
    model = pith.open(str(folder))
    assert set(model.tensors) == set(tensors)
    for name, array in tensors.items():
        tensor = model.tensors[name]
        assert tensor.shape == array.shape and tensor.name == name
        decoded = tensor.decode()
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, array.astype(np.float32))
    assert model.parameters == sum(a.size for a in tensors.values())
    assert model.bits.total == sum(8 * a.nbytes for a in tensors.values())
    assert model.config["hidden_size"] == 64
    assert model.plan is None and model.report is None


def test_rows_and_sections(tiny):
    folder, tensors = tiny
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = pith.open(str(folder)).tensors[name]
    np.testing.assert_array_equal(tensor.rows(3, 7), tensors[name][3:7].astype(np.float32))
    with pytest.raises(IndexError):
        tensor.rows(90, 97)
    sections = tensor.sections()
    assert [s.dtype for s in sections] == ["F16"]
    np.testing.assert_array_equal(sections[0].array.reshape(-1), tensors[name].reshape(-1))
    assert not sections[0].array.flags.writeable
    assert tensor.kind == tensor.tree["node"]


def test_arrays_outlive_the_model(tiny):
    folder, tensors = tiny
    array = pith.open(str(folder)).tensors["model.norm.weight"].sections()[0].array
    np.testing.assert_array_equal(array.reshape(-1), tensors["model.norm.weight"])


def test_errors_have_types_and_names(tmp_path):
    with pytest.raises(pith.Error, match="nothing-here"):
        pith.open(str(tmp_path / "nothing-here.gguf"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 16)
    with pytest.raises(pith.DataError, match="broken.gguf"):
        pith.open(str(broken))
    assert issubclass(pith.UserError, pith.Error) and issubclass(pith.BugError, pith.Error)


def test_tokenizer(tiny):
    model = pith.open(str(tiny[0]))
    text = "Grüße, 世界 \U0001f600"
    assert model.decode_bytes(model.encode(text)) == text.encode()
    prompt = model.render_chat([("user", "Hi")])
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert model.encode(prompt, parse_special=True)[0] == 257
    assert model.encode(prompt)[0] != 257


def test_generate_is_reproducible_and_streams(tiny):
    model = pith.open(str(tiny[0]))
    pieces = []
    first = pith.generate(model, "abc", chat=False, max_tokens=20, temperature=1.0, seed=5, threads=2,
                          on_text=pieces.append)
    again = pith.generate(model, "abc", chat=False, max_tokens=20, temperature=1.0, seed=5, threads=1)
    assert first.tokens == again.tokens
    assert "".join(pieces) == first.text
    cut = pith.generate(model, [("user", "abc")], max_tokens=50, on_text=lambda piece: False)
    assert len(cut.tokens) <= 2 and not cut.stopped


def test_generate_with_a_smaller_cache(tiny):
    model = pith.open(str(tiny[0]))

    def tokens(cache):
        return pith.generate(model, "abc " * 15, chat=False, max_tokens=8, cache=cache).tokens

    assert tokens("h2o:budget=100%") == tokens("full")
    assert len(tokens("snapkv:budget=20,window=4;q8")) > 0
    with pytest.raises(pith.UserError, match="snapkv"):
        tokens("snapkw")


def test_callbacks_may_raise(tiny):
    model = pith.open(str(tiny[0]))

    def stop(*_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pith.generate(model, "abc", chat=False, max_tokens=20, on_text=stop)
    with pytest.raises(RuntimeError, match="enough"):
        pith.eval.perplexity(model, "some text " * 100, context=64, progress=stop)


def test_perplexity_of_a_random_model_is_about_its_vocabulary(tiny):
    model = pith.open(str(tiny[0]))
    seen = []
    result = pith.eval.perplexity(model, "A quick brown fox. " * 60, context=64, progress=lambda *a: seen.append(a))
    assert 60 < result.ppl < 1500
    assert math.isclose(math.log(result.ppl), result.nll, rel_tol=1e-9)
    assert result.chunks == 19 * 60 // 64
    assert seen and seen[-1][2] == seen[-1][3]


def test_kl_to_itself_is_zero_and_to_another_is_not(tiny, tmp_path):
    from conftest import make_model
    make_model(tmp_path / "other", seed=1)
    model, other = pith.open(str(tiny[0])), pith.open(str(tmp_path / "other"))
    text = "The quick brown fox. " * 20
    same = pith.eval.kl(model, model, text, context=64)
    assert same.mean_kl == 0 and same.same_top == 1 and same.ratio == 1
    far = pith.eval.kl(other, model, text, context=64)
    assert far.mean_kl > 0.1 and far.reference.ppl == same.reference.ppl


def test_texts_by_name_and_by_path(tiny, tmp_path):
    model = pith.open(str(tiny[0]))
    path = tmp_path / "text.txt"
    path.write_text("Some text to measure on. " * 30)
    assert pith.eval.perplexity(model, path, context=64).ppl == pith.eval.perplexity(
        model, path.read_text(), context=64).ppl
    assert pith.eval.perplexity(model, "builtin:prose", context=64, max_chunks=2).chunks == 2
    with pytest.raises(pith.UserError, match="prose"):
        pith.eval.perplexity(model, "builtin:pros")


def test_methods():
    names = {m.name for m in pith.methods()}
    assert "rtn" in names
    for method in pith.methods():
        assert method.family and method.title
        for param in method.params:
            assert param.help and param.type in ("integer", "real", "boolean", "choice", "text")


def test_compress_speaks_to_the_engine(fake_engine, tmp_path):
    log = tmp_path / "arguments"
    fake_engine(f'printf "%s\\n" "$@" > {log}\n'
                'echo \'{"stage": "quantize", "unit": "a", "done": 1, "total": 2}\' >&2\n'
                'echo "pith: error: the budget is too small" >&2\nexit 2\n')
    events = []
    with pytest.raises(pith.UserError) as caught:
        pith.compress("in.gguf", tmp_path / "out.pith", size="60MB", max_loss=None, force=True, progress=events.append)
    assert str(caught.value) == "the budget is too small"
    assert events == [{"stage": "quantize", "unit": "a", "done": 1, "total": 2}]
    assert log.read_text().split("\n")[:-1] == [
        "compress", "in.gguf", "-o", str(tmp_path / "out.pith"), "--size", "60MB", "--force", "--progress", "json"]


@pytest.mark.parametrize("code, kind", [(2, pith.UserError), (3, pith.DataError), (70, pith.BugError),
                                        (139, pith.BugError), (130, KeyboardInterrupt)])
def test_exit_codes_become_exceptions(fake_engine, tmp_path, code, kind):
    fake_engine(f"exit {code}\n")
    with pytest.raises(kind):
        pith.quantize("rtn", "in.gguf", tmp_path / "out.pith", bits=4)


def test_the_engine_is_told_when_the_callback_raises(fake_engine, tmp_path):
    mark = tmp_path / "stopped"
    fake_engine(f"trap 'touch {mark}; exit 130' INT\necho '{{\"stage\": \"x\"}}' >&2\nwhile :; do sleep 0.05; done\n")

    def stop(event):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pith.compress("in.gguf", tmp_path / "out.pith", size="60MB", progress=stop)
    assert mark.exists()


def test_missing_engine_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PITH_ENGINE", str(tmp_path / "none"))
    with pytest.raises(pith.UserError, match="PITH_ENGINE"):
        pith.compress("in.gguf", "out.pith", size="60MB")


def test_quantize_for_real(engine, tiny, tmp_path):
    out = pith.quantize("rtn", tiny[0], tmp_path / "out.pith", bits=4)
    weight = "model.layers.0.mlp.up_proj.weight"
    reference = tiny[1][weight].astype(np.float32)
    error = np.abs(out.tensors[weight].decode() - reference).max()
    assert 0 < error < 0.25 * np.abs(reference).max()
    assert out.tensors[weight].bits.total < 8 * tiny[1][weight].nbytes / 2
    assert all(check.passed for check in pith.verify(str(tmp_path / "out.pith")))


def test_tune_for_real(engine, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then it rests. " * 60)
    common = dict(calib=text, sequence_length=64, eval_chunks=0, cache=tmp_path / "cache")
    small = pith.quantize("ec", tiny[0], tmp_path / "small.pith", step=0.02, **common)
    seen = []
    better = pith.tune(tiny[0], tmp_path / "better.pith", compressed=tmp_path / "small.pith", steps=12, batch=4,
                       progress=seen.append, **common)
    assert (tmp_path / "better.pith").stat().st_size <= (tmp_path / "small.pith").stat().st_size
    assert {name: t.kind for name, t in better.tensors.items()} == {name: t.kind for name, t in small.tensors.items()}
    original = pith.open(str(tiny[0]))
    before, after = (pith.eval.kl(m, original, text, context=64).mean_kl for m in (small, better))
    assert 0 < after < before
    assert any(event.get("stage") == "tune" for event in seen)
    with pytest.raises(pith.UserError, match="leave the budget out"):
        pith.tune(tiny[0], tmp_path / "no.pith", compressed=tmp_path / "small.pith", size="1MB", **common)


def test_stub_is_current(tmp_path):
    """python/pith/_pith.pyi says what the module has; `make docs` writes it."""
    subprocess.run([sys.executable, "-B", "-m", "nanobind.stubgen", "-q", "-m", "pith._pith", "-o",
                    str(tmp_path / "stub.pyi")], check=True)
    assert (tmp_path / "stub.pyi").read_text() == (SOURCE / "python/pith/_pith.pyi").read_text()
