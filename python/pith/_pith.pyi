"""
The torch-free library of Pith. Use the package `pith`, which gives these names a friendlier face.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import numpy.typing


class Error(Exception):
    pass

class UserError(Error):
    pass

class DataError(Error):
    pass

class BugError(Error):
    pass

class Bits:
    """Exact bits in a file, by what they are for."""

    @property
    def payload(self) -> int:
        """codes, dense values"""

    @property
    def scales(self) -> int:
        """steps, scales, zeros, means"""

    @property
    def tables(self) -> int:
        """codebooks, probability tables"""

    @property
    def indices(self) -> int:
        """sparse positions, row pointers, masks"""

    @property
    def permutation(self) -> int: ...

    @property
    def factors(self) -> int:
        """low-rank factors"""

    @property
    def total(self) -> int: ...

    def __repr__(self) -> str: ...

class Section:
    """One array of a representation, as it is stored."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """as safetensors says it: 'BF16'"""

    @property
    def shape(self) -> tuple: ...

    @property
    def array(self) -> numpy.typing.NDArray[numpy.generic]:
        """
        The values, read-only, not copied. BF16 and 8-bit floats come as unsigned integers.
        """

class Tensor:
    """
    One tensor of a model, in stored form. Nothing is decoded before it is asked for.
    """

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def kind(self) -> str:
        """root node: 'grid', 'override'"""

    @property
    def description(self) -> str:
        """the tree in one line"""

    @property
    def bits(self) -> Bits: ...

    @property
    def tree(self) -> dict[str, Any]:
        """The representation as the file describes it."""

    def sections(self) -> list[Section]:
        """The stored arrays: codes, steps, tables, indices."""

    def decode(self) -> numpy.typing.NDArray[numpy.float32]:
        """All values as float32, in the tensor's shape."""

    def rows(self, begin: int, end: int) -> numpy.typing.NDArray[numpy.float32]:
        """
        Rows begin to end of the matrix (a vector is one row), without decoding the rest.
        """

    def __repr__(self) -> str: ...

class Model:
    """A model file, opened: weights stay on disk until they are asked for."""

    @property
    def path(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]:
        """As the config.json of Hugging Face."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By name, in file order."""

    @property
    def bits(self) -> Bits:
        """Exact bits of all tensors; what several of them share is counted once."""

    @property
    def parameters(self) -> int: ...

    @property
    def plan(self) -> dict[str, Any] | None:
        """The plan that made it."""

    @property
    def report(self) -> dict[str, Any] | None:
        """What was measured when it was made."""

    def content_hash(self) -> str:
        """Hash of everything that decides the numbers; reads all bytes."""

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text."""

    def decode_bytes(self, ids: Sequence[int], *, skip_special: bool = False) -> bytes:
        """The bytes that token ids stand for; they may end inside a character."""

    def render_chat(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt for (role, content) pairs by the model's own chat template."""

    @property
    def has_chat_template(self) -> bool: ...

    def __repr__(self) -> str: ...

class Generated:
    """An answer."""

    @property
    def text(self) -> str: ...

    @property
    def tokens(self) -> list[int]:
        """without the stop token"""

    @property
    def stopped(self) -> bool:
        """by the model; False: by max_tokens, the context's end or the callback"""

    @property
    def prefill_seconds(self) -> float: ...

    @property
    def decode_seconds(self) -> float: ...

    def __str__(self) -> str: ...

class Perplexity:
    @property
    def ppl(self) -> float: ...

    @property
    def ppl_error(self) -> float:
        """one standard error"""

    @property
    def nll(self) -> float:
        """mean, in nats a token"""

    @property
    def tokens(self) -> int:
        """scored"""

    @property
    def chunks(self) -> int: ...

    def __repr__(self) -> str: ...

class Comparison:
    @property
    def model(self) -> Perplexity: ...

    @property
    def reference(self) -> Perplexity: ...

    @property
    def ratio(self) -> float:
        """perplexity of the model / of the reference"""

    @property
    def mean_kl(self) -> float:
        """KL(reference || model), nats a token"""

    @property
    def mean_kl_error(self) -> float:
        """one standard error"""

    @property
    def max_kl(self) -> float: ...

    @property
    def same_top(self) -> float:
        """share of tokens with the same most probable continuation"""

    @property
    def same_top_error(self) -> float: ...

    def __repr__(self) -> str: ...

class Check:
    """One thing that `verify` looked at."""

    @property
    def name(self) -> str: ...

    @property
    def passed(self) -> bool: ...

    @property
    def detail(self) -> str: ...

    def __repr__(self) -> str: ...

class Param:
    """An option of a method."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def default(self) -> str:
        """as text"""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    @property
    def choices(self) -> str:
        """'asym|sym'"""

    @property
    def help(self) -> str: ...

class Method:
    """A method as `pith methods` lists it."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def paper(self) -> str: ...

    @property
    def baseline(self) -> bool: ...

    @property
    def example(self) -> str: ...

    @property
    def params(self) -> list[Param]: ...

    def __repr__(self) -> str: ...

def open(path: str) -> Model:
    """
    Opens a .pith file, a GGUF, a safetensors file or a Hugging Face folder.
    """

def verify(path: str) -> list[Check]:
    """All invariants of a model file, each with its verdict."""

def methods() -> list[Method]:
    """All methods, sorted by family and name."""

def named_text(name: str) -> str:
    """A built-in text ('builtin:prose') or the text of a file."""

def generate(model: Model, prompt: str, *, parse_special: bool, add_special: bool, max_tokens: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, cache: str, threads: int, on_text: Callable[[str], bool] | None = None) -> Generated: ...

def perplexity(model: Model, text: str, *, context: int, max_chunks: int, threads: int, progress: Callable[[str, str, int, int], None] | None = None) -> Perplexity: ...

def kl(model: Model, reference: Model, text: str, *, context: int, max_chunks: int, threads: int, progress: Callable[[str, str, int, int], None] | None = None) -> Comparison: ...
