#!/usr/bin/env python3
"""Tiny random models of each architecture with the logits of `transformers`: testdata/nets/<name>/.

Each folder holds config.json and model.safetensors as `save_pretrained` writes them, and expected.safetensors with
`tokens` [2, 24] int64 and `logits` [2, 24, vocab] fp32. All weights are random, norms and biases too, so that every
term matters. Run with a Python that has torch, transformers 5 and safetensors:

    tests/peers/make_net_fixtures.py [OUT]      (default: testdata/nets beside this repository's root)
"""
import os
import pathlib
import sys

import torch
import transformers as tf
from safetensors.torch import save_file

BASE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=128, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
ROPE = dict(rope_type="default", rope_theta=10000.0)

MODELS = {
    "llama": (tf.LlamaConfig, dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters=dict(
        rope_type="llama3", rope_theta=5000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16))),
    "mistral": (tf.MistralConfig, dict(sliding_window=9, head_dim=12, rope_parameters=ROPE)),
    "qwen2": (tf.Qwen2Config, dict(tie_word_embeddings=True, rope_parameters=dict(
        rope_type="linear", rope_theta=10000.0, factor=2.0))),
    "qwen3": (tf.Qwen3Config, dict(head_dim=16, rope_parameters=ROPE)),
    "smollm3": (tf.SmolLM3Config, dict(no_rope_layers=[1, 0, 1], rope_parameters=ROPE, use_sliding_window=False)),
    "gemma2": (tf.Gemma2Config, dict(head_dim=12, sliding_window=9, query_pre_attn_scalar=20, attn_logit_softcapping=3.0,
                                     final_logit_softcapping=5.0, num_hidden_layers=2, rope_parameters=ROPE)),
    "gemma3": (tf.Gemma3TextConfig, dict(
        head_dim=12, sliding_window=7, query_pre_attn_scalar=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=dict(sliding_attention=dict(rope_type="default", rope_theta=1000.0),
                             full_attention=dict(rope_type="linear", rope_theta=50000.0, factor=4.0)))),
    "mixtral": (tf.MixtralConfig, dict(intermediate_size=32, num_hidden_layers=2, num_local_experts=4,
                                       num_experts_per_tok=2, rope_parameters=ROPE)),
}


def main() -> None:
    root = pathlib.Path(__file__).resolve().parents[2]
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "testdata" / "nets"
    for number, (name, (kind, extra)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        config = kind(**{**BASE, **extra}, attn_implementation="eager")
        model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "norm" in key:
                    p.add_(torch.randn_like(p) * 0.2)
                elif p.dim() == 1:
                    p.copy_(torch.randn_like(p) * 0.2)
                else:
                    p.copy_(torch.randn_like(p) * (1.3 / p.shape[-1] ** 0.5))
            tokens = torch.randint(3, 128, (2, 24))
            logits = model(tokens).logits
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, safe_serialization=True)
        (folder / "generation_config.json").unlink(missing_ok=True)
        save_file({"tokens": tokens, "logits": logits.contiguous()}, folder / "expected.safetensors")
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: {size} bytes, logits within {logits.abs().max():.2f}, std {logits.std():.2f}")


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main()
