"""What a model is to be calibrated on, as a user hands it over, checked without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch

from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import UsageError
from qcompiler.core.text_file import read_text

CalibrationData = (
    str
    | Path
    | torch.Tensor
    | Sequence[str | Path]
    | Sequence[torch.Tensor]
    | Sequence[tuple[torch.Tensor, ...]]
    | Calibration
)
"""A text file; texts and text files; tokens; inputs of a graph; or samples that are made already.

A text by itself names a file, and so does a Path in a list, in which a str is a text.
"""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Documents; `lines` says that each line of theirs may stand by itself, as in a file."""

    documents: tuple[str, ...]
    lines: bool
    name: str

    @property
    def size(self) -> int:
        """Bytes of text, which are at least as many as tokens."""
        return sum(len(text.encode("utf-8", "replace")) for text in self.documents)


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Tokens, or the only input of a graph each."""

    tensors: tuple[torch.Tensor, ...]
    name: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All inputs of a graph, sample by sample."""

    samples: tuple[tuple[torch.Tensor, ...], ...]
    name: str


Source = Texts | Tensors | Inputs | Calibration


def read_source(given: CalibrationData) -> Source:
    """Sort out what was given, and read its files.

    Raises:
        UsageError: a file cannot be read or holds no text, there is nothing, or it is of a kind
            that nothing can be calibrated on.
    """
    if isinstance(given, Calibration):
        if not len(given):
            raise UsageError("the calibration has no samples; give at least one")
        return given
    if isinstance(given, torch.Tensor):
        return Tensors(tensors=(given,), name=f"tokens {list(given.shape)}")
    if isinstance(given, str | Path):
        return _texts([Path(given)])
    if not isinstance(given, Sequence):
        raise UsageError(f"the calibration is {_a(given)}; give {_KINDS}")
    if not given:
        raise UsageError("the calibration is an empty list; give at least one text")
    if len(texts := [entry for entry in given if isinstance(entry, str | Path)]) == len(given):
        return _texts(texts)
    if len(tensors := [e for e in given if isinstance(e, torch.Tensor)]) == len(given):
        return Tensors(tensors=tuple(tensors), name=_count(tensors, "tensor"))
    if len(inputs := [tuple(e) for e in given if _is_inputs(e)]) == len(given):
        return Inputs(samples=tuple(inputs), name=_count(inputs, "set") + " of inputs")
    first = given[0]
    odd = next((i for i, entry in enumerate(given) if type(entry) is not type(first)), 0)
    raise UsageError(f"entry {odd} of the calibration is {_a(given[odd])}; give {_KINDS}")


_KINDS = "text files, texts, tensors of tokens, or tuples of input tensors, one kind at a time"


def _texts(given: Sequence[str | Path]) -> Texts:
    documents = tuple(read_text(t) if isinstance(t, Path) else _text(t) for t in given)
    if not any(text.strip() for text in documents):
        raise UsageError("the calibration texts are empty; give some with words in them")
    files = [entry.name for entry in given if isinstance(entry, Path)]
    texts = len(given) - len(files)
    named = ", ".join(files) if len(files) <= 3 else _count(files, "file")
    parts = [named, _count(range(texts), "text") if texts else ""]
    return Texts(
        documents=documents,
        lines=bool(files) and not texts,
        name=" and ".join(part for part in parts if part),
    )


def _text(text: str) -> str:
    """Return a text, which must not be the name of a file."""
    try:
        is_file = Path(text).is_file()
    except OSError:
        is_file = False  # no name can be as long as a text
    if is_file:
        raise UsageError(
            f"'{text}' in the list of calibration texts is the name of a file; "
            f"write Path('{text}') for what it holds"
        )
    return text


def _is_inputs(entry: object) -> TypeGuard[Sequence[torch.Tensor]]:
    return (
        isinstance(entry, tuple | list)
        and len(entry) > 0
        and all(isinstance(tensor, torch.Tensor) for tensor in entry)
    )


def _a(thing: object) -> str:
    name = type(thing).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _count(things: Sequence[object], what: str) -> str:
    """Count things in words that fit.

    >>> _count([1], "text"), _count([1, 2], "text")
    ('1 text', '2 texts')
    """
    return f"{len(things)} {what}{'s' if len(things) != 1 else ''}"
