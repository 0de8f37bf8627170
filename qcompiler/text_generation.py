"""Have a language model write text, the same that it would be calibrated on if none were given."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.export import ExportedProgram

from qcompiler.core.errors import UsageError
from qcompiler.core.program import ModelInfo
from qcompiler.core.progress import NO_PROGRESS, Progress
from qcompiler.frontend import capture
from qcompiler.self_generated import SAMPLES, SEQUENCE_LENGTH, write_tokens
from qcompiler.tokenizer import open_tokenizer
from qcompiler.whole_file import write_whole


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedText:
    """Samples that a model wrote: tokens [b, s] int64, and the text of each.

    A text is one paragraph, without special tokens; where a sample goes on with another text, that
    begins a line. `seconds` is what writing took; None where tokens were kept from before.
    """

    tokens: torch.Tensor
    texts: tuple[str, ...]
    seconds: float | None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens of all samples in a second; None where they were kept from before."""
        return None if self.seconds is None else self.tokens.numel() / self.seconds

    def save(self, path: str | Path) -> Path:
        """Write the texts to a file, a paragraph each, whole or not at all; return where it is.

        Raises:
            QCompilerError: it cannot be written there.
        """
        place = Path(path)
        write_whole(place, "\n\n".join(text for text in self.texts if text) + "\n")
        return place


def generate_text(
    model: str | Path | nn.Module | ExportedProgram,
    *,
    samples: int = SAMPLES,
    sequence_length: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    progress: Progress | None = None,
) -> GeneratedText:
    """Have the float model write text, in torch; `self_generated` says how.

    model: what `qcompiler.compile` takes. samples, sequence_length: how many texts, and of how many
    tokens; 256 if not given, or the model's context if that is shorter. seed and temperature decide
    what is drawn. Tokens are kept in the user's cache: the same call gives the same at once.

    Raises:
        UsageError: a number is out of range, or the model is no language model.
        QCompilerError: it cannot be captured, has no tokenizer, or its logits are not finite.
    """
    check_numbers(samples, sequence_length, seed, temperature)
    progress = progress or NO_PROGRESS
    with progress.step("capture"):
        program = capture(model)
        info = program.info
        if info.kind != "causal-lm":
            raise UsageError(f"{info.name} is no language model; only those write text")
        tokenizer = open_tokenizer(info.name, info.tokenizer_json)
    length = _length(info, sequence_length)
    with progress.step("write text"):
        written = write_tokens(
            program,
            samples=samples,
            sequence_length=length,
            seed=seed,
            temperature=temperature,
            progress=progress,
        )
    texts = [_text(tokenizer, row, info.end_tokens) for row in written.tokens.tolist()]
    return GeneratedText(tokens=written.tokens, texts=tuple(texts), seconds=written.seconds)


def check_numbers(samples: int, sequence_length: int | None, seed: int, temperature: float) -> None:
    """Refuse numbers that mean nothing, whatever the model; raise UsageError."""
    wholes = (("samples", samples, 1), ("sequence_length", sequence_length, 2), ("seed", seed, 0))
    for name, value, least in wholes:
        if value is not None and (type(value) is not int or not least <= value < 2**63):
            raise UsageError(f"{name} is {value!r}; give a whole number from {least}")
    if not 0 < temperature < float("inf"):
        raise UsageError(f"temperature is {temperature!r}; give a number above 0")


def _length(info: ModelInfo, asked: int | None) -> int:
    """Return how many tokens a sample has."""
    limit = info.max_context
    if asked is None:
        return SEQUENCE_LENGTH if limit is None else min(SEQUENCE_LENGTH, limit)
    if limit is not None and asked > limit:
        raise UsageError(
            f"samples of {asked} tokens do not fit the context of {info.name}, which holds "
            f"{limit}; set a shorter sequence length"
        )
    return asked


def _text(tokenizer: Tokenizer, tokens: Sequence[int], end_tokens: Container[int]) -> str:
    """Return what a sample says, as one paragraph."""
    return "\n".join(_lines(tokenizer, tokens, end_tokens))


def _lines(
    tokenizer: Tokenizer, tokens: Sequence[int], end_tokens: Container[int]
) -> Iterator[str]:
    """Yield each text of a sample that is not empty, without empty lines."""
    for ends, part in groupby(tokens, lambda token: token in end_tokens):
        if ends:
            continue
        # A token may be a byte that no text file has.
        said: str = tokenizer.decode(list(part), skip_special_tokens=True).replace("\0", "")
        if said.strip():
            yield re.sub(r"\n\s*\n", "\n", said.strip())
