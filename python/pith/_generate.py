"""Generating text."""

from __future__ import annotations

from typing import Callable, Sequence

from . import _pith


def generate(
    model: _pith.Model,
    prompt: str | Sequence[tuple[str, str]],
    *,
    chat: bool = True,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 1,
    cache: str = "full",
    threads: int = 0,
    on_text: Callable[[str], object] | None = None,
) -> _pith.Generated:
    """Answers a prompt.

    `prompt` is a text, or (role, content) pairs of a conversation. With `chat` a text is put into the model's own chat
    template when it has one; without, the model simply continues it. Temperature 0 is greedy; `cache` makes the KV cache
    smaller, as --cache does ("snapkv:budget=25%;q4"); `threads` 0 means all cores. `on_text` gets each piece of the
    answer as soon as it is there; returning False ends the answer.
    """
    rendered = not isinstance(prompt, str) or (chat and model.has_chat_template)
    if not isinstance(prompt, str):
        text = model.render_chat([(role, content) for role, content in prompt])
    elif rendered:
        text = model.render_chat([("user", prompt)])
    else:
        text = prompt
    callback = None
    if on_text is not None:
        def callback(piece: str) -> bool:
            return on_text(piece) is not False
    return _pith.generate(
        model, text, parse_special=rendered, add_special=not rendered, max_tokens=max_tokens, temperature=temperature,
        top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, cache=cache, threads=threads, on_text=callback)
