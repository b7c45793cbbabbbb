"""Folders that `pith export --to compressed-tensors` writes are read by the `compressed-tensors` package and by
transformers. Run by `make test-peers`; the C++ side is build/release/tests/export_peer."""
import json
import os
import pathlib
import subprocess

import pytest
import safetensors.torch
import torch
import transformers

compressed_tensors = pytest.importorskip("compressed_tensors")
from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig  # noqa: E402

BUILD = pathlib.Path(os.environ.get("PITH_BUILD", "build/release"))
SCHEMES = ["4,g32", "4,g16,zero", "8", "8,zero", "4", "8,g32,zero", "8,int8", "4,g32+8,zero", "4,tied"]


def export(tmp_path, scheme):
    quantized, decoded = tmp_path / "quantized", tmp_path / "decoded"
    run = subprocess.run([str(BUILD / "tests/export_peer"), scheme, str(quantized), str(decoded)],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return quantized, decoded


def scheme_for(config, module):
    """The config group of a module, as transformers and vLLM match it."""
    if module in config.ignore:
        return None
    for scheme in config.config_groups.values():
        if module in scheme.targets or "Linear" in scheme.targets:
            return scheme
    return None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decompress_gives_our_weights(tmp_path, scheme):
    quantized, decoded = export(tmp_path, scheme)
    raw = json.loads((quantized / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate({k: v for k, v in raw.items() if k != "quant_method"})
    ours = safetensors.torch.load_file(decoded / "model.safetensors")
    stored = safetensors.torch.load_file(quantized / "model.safetensors")
    checked = 0
    for name, expected in ours.items():
        module = name.removesuffix(".weight")
        group = scheme_for(config, module) if "_proj" in name else None
        if group is None:
            assert torch.equal(stored[name].float(), expected.half().float()), name
            continue
        parts = {k.removeprefix(module + "."): v for k, v in stored.items() if k.startswith(module + ".")}
        compressor = BaseCompressor.get_value_from_registry(str(group.format or config.format))
        # In fp32 the package's arithmetic is ours to the last bit; it computes in the scale's type.
        parts["weight_scale"] = parts["weight_scale"].float()
        got = compressor.decompress(parts, group)["weight"]
        assert got.shape == expected.shape, name
        assert torch.equal(got.float(), expected), name
        checked += 1
    assert checked == 14


# Zero points load with dequantize=True only: without it compressed-tensors 0.20 makes room for unpacked ones (the "meta"
# branch of its compress() forgets to pack them), whatever its own writer stores.
@pytest.mark.parametrize("scheme,dequantize", [("4,g32", False), ("8", False), ("4,g32", True), ("4,g16,zero", True),
                                               ("4,g32+8", False), ("4,g32,tied", False)])
def test_transformers_runs_it(tmp_path, scheme, dequantize):
    quantized, decoded = export(tmp_path, scheme)
    how = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    a = transformers.AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32, **how)
    b = transformers.AutoModelForCausalLM.from_pretrained(decoded, dtype=torch.float32)
    ids = torch.arange(40).reshape(1, -1)
    with torch.no_grad():
        x, y = a(ids).logits, b(ids).logits
    # The package multiplies code and scale in fp16 when the scales are fp16: 11 bits of each weight.
    assert (x - y).abs().max() < 5e-3 * y.abs().max()
