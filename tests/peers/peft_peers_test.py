"""`pith export --to peft`: transformers and peft load base and adapter, and together they are the model that
`--to hf` writes. On testdata/lm-s, compressed by lq-lora."""
import os
import pathlib
import subprocess

import pytest
import torch
import transformers

peft = pytest.importorskip("peft")

BUILD = pathlib.Path(os.environ.get("PITH_BUILD", "build/release"))
LM_S = pathlib.Path(os.environ["PITH_SOURCE_DIR"]) / "testdata/lm-s"


def pith(*arguments):
    run = subprocess.run([str(BUILD / "pith"), *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_base_with_adapter_is_the_model(tmp_path):
    small = tmp_path / "small.pith"
    pith("quantize", "lq-lora", LM_S, "--bits", "2", "--rank", "8", "--fisher=false", "--eval-chunks", "0", "-o", small)
    pith("export", small, "--to", "hf", "--dtype", "f32", "-o", tmp_path / "whole")
    pith("export", small, "--to", "peft", "--dtype", "f32", "-o", tmp_path / "split")
    load = transformers.AutoModelForCausalLM.from_pretrained
    tokens = torch.arange(5, 105).unsqueeze(0)
    with torch.no_grad():
        whole = load(tmp_path / "whole")(tokens).logits
        base = load(tmp_path / "split")
        bare = base(tokens).logits
        model = peft.PeftModel.from_pretrained(base, tmp_path / "split/adapter", is_trainable=True)
        split = model(tokens).logits
    assert (whole - bare).abs().max() > 0.1
    assert (whole - split).abs().max() < 1e-3
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
