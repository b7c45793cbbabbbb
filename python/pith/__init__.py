"""Pith: language models cut to a budget, with the loss measured.

    import pith
    model = pith.open("small.pith")
    model.tensors["model.norm.weight"].decode()       # numpy
    pith.generate(model, "Why is the sky blue?").text
    pith.eval.perplexity(model).ppl
    pith.compress("model.gguf", "small.pith", size="60MB")

Opening, decoding, generating and measuring happen in this process and never load libtorch. Compressing runs the program
`pith-engine` as a child, so Pith's libtorch and yours never meet. Everything that goes wrong raises `pith.Error`:
`UserError` (a wrong argument), `DataError` (a broken or unsupported file) or `BugError` (ours).
"""

from . import eval
from ._engine import compress, engine_path, factorize, prune, quantize, tune
from ._generate import generate
from ._pith import (
    Bits,
    BugError,
    Check,
    Comparison,
    DataError,
    Error,
    Generated,
    Method,
    Model,
    Param,
    Perplexity,
    Section,
    Tensor,
    UserError,
    methods,
    open,
    verify,
)

__version__ = "0.1.0"

__all__ = [
    "Bits", "BugError", "Check", "Comparison", "DataError", "Error", "Generated", "Method", "Model", "Param",
    "Perplexity", "Section", "Tensor", "UserError", "compress", "engine_path", "eval", "factorize", "generate",
    "methods", "open", "prune", "quantize", "tune", "verify",
]
