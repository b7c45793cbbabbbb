"""Work that needs tensors: runs the program `pith-engine` as a child and reads its progress."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import Any, Callable

from . import _pith

Progress = Callable[[dict[str, Any]], object]


def engine_path() -> str:
    """The program that is run: the environment variable PITH_ENGINE, else `pith-engine` on PATH."""
    path = os.environ.get("PITH_ENGINE") or shutil.which("pith-engine")
    if not path or not os.access(path, os.X_OK):
        raise _pith.UserError(
            f"pith-engine not found ({path or 'not on PATH'}). It is built by `make` in Pith's source tree "
            "(build/release/pith-engine): put it on PATH or set PITH_ENGINE to its path")
    return path


def _options(options: dict[str, Any]) -> list[str]:
    """max_loss='2%' becomes --max-loss 2%; True is a flag, None and False are left out."""
    words = []
    for name, value in options.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        words += [flag] if value is True else [flag, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return words


def _run(words: list[str], progress: Progress | None) -> None:
    child = subprocess.Popen([engine_path(), *words, "--progress", "json"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    said: list[str] = []
    try:
        assert child.stderr is not None
        for line in child.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                said = (said + [line.rstrip("\n")])[-50:]
            elif progress is not None:
                progress(event)
        code = child.wait()
    except BaseException:  # Ctrl-C or the callback's exception: the child keeps its finished units and stops
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    if code == 0:
        return
    message = "\n".join(said).strip() or f"pith-engine ended with code {code} and said nothing"
    for prefix in ("pith: error: ", "pith: internal error: "):
        message = message.removeprefix(prefix)
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    raise {2: _pith.UserError, 3: _pith.DataError}.get(code, _pith.BugError)(message)


def compress(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    size: str | int | None = None,
    ram: str | int | None = None,
    bits: float | None = None,
    max_loss: str | None = None,
    calib: str | os.PathLike[str] | None = None,
    allow: str | None = None,
    plan: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> _pith.Model:
    """Cuts a language model to a budget and returns the result, opened.

    Give exactly one of `size` ("60MB" or bytes), `ram`, `bits` (a weight) or `max_loss` ("2%"). `output` ends in .pith
    or .gguf. `progress` gets a dict for each step: stage, unit, done, total, or note. Stopped by Ctrl-C or killed, the
    same call goes on where it was. Further options are those of `pith compress --help`, with _ for -.
    """
    _run(["compress", os.fspath(model), "-o", os.fspath(output),
          *_options(dict(size=size, ram=ram, bits=bits, max_loss=max_loss, calib=calib, allow=allow, plan=plan,
                         report=report, threads=threads, force=force, **options))], progress)
    return _pith.open(os.fspath(output))


def tune(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    compressed: str | os.PathLike[str],
    steps: int | None = None,
    batch: int | None = None,
    calib: str | os.PathLike[str] | None = None,
    device: str | None = None,
    report: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> _pith.Model:
    """Tunes the file `compressed` towards `model`, its original, by distillation, and returns the result, opened.

    Its stored form and size stay; what falls is the loss. `steps` of `batch` sequences of the calibration text `calib`
    (the more of it, the better) on `device` ("cpu", "cuda"). To tune as the last stage of compressing, give `compress`
    the option tune=STEPS. Stopped by Ctrl-C or killed, the same call goes on where it was. Further options are those of
    `pith tune --help`, with _ for -.
    """
    _run(["tune", os.fspath(model), "--compressed", os.fspath(compressed), "-o", os.fspath(output),
          *_options(dict(tune=steps, tune_batch=batch, calib=calib, device=device, report=report, threads=threads,
                         force=force, **options))], progress)
    return _pith.open(os.fspath(output))


def _method(family: str, method: str, model: Any, output: Any, progress: Progress | None,
            options: dict[str, Any]) -> _pith.Model:
    _run([family, method, os.fspath(model), "-o", os.fspath(output), *_options(options)], progress)
    return _pith.open(os.fspath(output))


def quantize(method: str, model: str | os.PathLike[str], output: str | os.PathLike[str], *,
             progress: Progress | None = None, **options: Any) -> _pith.Model:
    """Runs one quantization method on purpose: quantize("spqr", "model.gguf", "out.pith", bits=3, group=16)."""
    return _method("quantize", method, model, output, progress, options)


def prune(method: str, model: str | os.PathLike[str], output: str | os.PathLike[str], *,
          progress: Progress | None = None, **options: Any) -> _pith.Model:
    """Runs one pruning method: prune("sparsegpt", "model.gguf", "out.pith", pattern="2:4")."""
    return _method("prune", method, model, output, progress, options)


def factorize(method: str, model: str | os.PathLike[str], output: str | os.PathLike[str], *,
              progress: Progress | None = None, **options: Any) -> _pith.Model:
    """Runs one low-rank method: factorize("eora", "model.gguf", "out.pith", rank=32)."""
    return _method("factorize", method, model, output, progress, options)
