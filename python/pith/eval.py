"""Measuring a model on text."""

from __future__ import annotations

import os
from typing import Callable

from . import _pith

__all__ = ["kl", "perplexity"]

Progress = Callable[[str, str, int, int], object]


def _text(text: str | os.PathLike[str]) -> str:
    if isinstance(text, str) and not text.startswith("builtin:"):
        return text
    return _pith.named_text(os.fspath(text))


def perplexity(
    model: _pith.Model,
    text: str | os.PathLike[str] = "builtin:encyclopedia",
    *,
    context: int = 512,
    max_chunks: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> _pith.Perplexity:
    """Perplexity on a text: the text itself, a path object, or "builtin:code", "builtin:documentation",
    "builtin:encyclopedia", "builtin:languages", "builtin:prose".

    The text is cut into chunks of `context` tokens and the second half of each is scored, as llama-perplexity does.
    `max_chunks` 0 takes all. `progress` gets (stage, unit, done, total).
    """
    return _pith.perplexity(model, _text(text), context=context, max_chunks=max_chunks, threads=threads,
                            progress=progress)


def kl(
    model: _pith.Model,
    reference: _pith.Model,
    text: str | os.PathLike[str] = "builtin:encyclopedia",
    *,
    context: int = 512,
    max_chunks: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> _pith.Comparison:
    """Distance of `model` to `reference` on a text (as in `perplexity`): mean KL divergence, perplexity ratio, share of
    equal most probable tokens. The two vocabularies must be equal."""
    return _pith.kl(model, reference, _text(text), context=context, max_chunks=max_chunks, threads=threads,
                    progress=progress)
