"""Compressing on a Ray cluster (PyPI `ray`): one task decides and writes, the others fit units for it.

    import ray, pith.ray
    ray.init()
    small = pith.ray.compress("/shared/model.gguf", "/shared/small.pith", tasks=4, size="60MB")

Model, output, work folder and cache must lie on a file system that all machines see, and `pith-engine` must be on every
machine. The bytes are those of one machine, on machines of one kind; a task that dies costs time only.
"""

from __future__ import annotations

import os
from typing import Any

import ray

from . import _engine, _pith


@ray.remote
def _share(words: list[str]) -> None:
    _engine._run(words, None)


def compress(model: str | os.PathLike[str], output: str | os.PathLike[str], *, tasks: int, threads: int = 1,
             **options: Any) -> _pith.Model:
    """As `pith.compress`, by `tasks` Ray tasks of `threads` CPUs each. The cache (option `cache`) is beside the output
    unless named."""
    output = os.path.abspath(os.fspath(output))
    options = {"cache": output + ".cache", **options, "threads": threads}
    words = ["compress", os.path.abspath(os.fspath(model)), "-o", output, *_engine._options(options)]
    share = _share.options(num_cpus=threads, max_retries=0)
    first, *others = [share.remote([*words, "--units", f"{i}/{tasks}"]) for i in range(1, tasks + 1)]
    try:
        ray.get(first)
        if others:
            ray.wait(others, num_returns=len(others), timeout=60)
    finally:
        for task in others:  # they end with the first; this is for when it failed
            ray.cancel(task, force=True)
    return _pith.open(output)
