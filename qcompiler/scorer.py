"""A language model as evaluation sees it: an artifact, or a program run in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from torch import nn
from torch.export import ExportedProgram

from qcompiler.core.artifact import MANIFEST, ModelFacts
from qcompiler.core.errors import UsageError
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.program import ModelInfo, Program
from qcompiler.evaluation import Logits
from qcompiler.frontend import capture
from qcompiler.prepared import PreparedModel
from qcompiler.runtime import LanguageModel, load
from qcompiler.tokenizer import open_tokenizer


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What turns a text into tokens, and tokens into logits."""

    logits: Logits
    tokenizer: Tokenizer
    begin_token: int | None
    max_context: int

    @property
    def prefix(self) -> list[int]:
        """Tokens that every window begins with."""
        return [] if self.begin_token is None else [self.begin_token]

    @property
    def room(self) -> int:
        """Tokens of a text that fit into the context, after the prefix."""
        return self.max_context - len(self.prefix)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without any that it would begin or end with."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def open_scorer(
    model: str | Path | nn.Module | ExportedProgram,
    prepare: Callable[[Program], None] | None = None,
) -> Scorer:
    """Load an artifact, or capture a model to run it in torch, as `prepare` changes it first.

    What `prepare_qat` gave is run in the integer arithmetic that it will be deployed in.

    Raises:
        UsageError: it is no language model, or an artifact that cannot be changed any more.
        QCompilerError: it cannot be loaded or captured.
    """
    if isinstance(model, str | Path) and (Path(model) / MANIFEST).is_file():
        if prepare is not None:
            raise UsageError(f"{model} is compiled already; a pipeline goes with a model")
        return _open_artifact(Path(model))
    program = model.frozen() if isinstance(model, PreparedModel) else capture(model)
    if program.info.kind != "causal-lm":
        raise _no_language_model(program.info.name)
    if prepare is not None and isinstance(model, PreparedModel):
        raise UsageError("a prepared model has its pipeline; leave out another")
    if prepare is not None:
        prepare(program)
    in_torch = TorchLanguageModel(program)

    def logits(tokens: list[int]) -> np.ndarray:
        found: np.ndarray = in_torch.logits(tokens).numpy()
        return found

    return _scorer(logits, program.info, program.info.tokenizer_json)


def _open_artifact(folder: Path) -> Scorer:
    model = load(folder)
    if not isinstance(model, LanguageModel):
        raise _no_language_model(str(folder))
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8") if file.is_file() else None
    return _scorer(model.logits, model.manifest.model, text)


def _no_language_model(name: str) -> UsageError:
    return UsageError(f"{name} is no language model; only those predict text")


def _scorer(logits: Logits, facts: ModelFacts | ModelInfo, tokenizer_json: str | None) -> Scorer:
    return Scorer(
        logits=logits,
        tokenizer=open_tokenizer(facts.name, tokenizer_json),
        begin_token=facts.begin_token,
        max_context=facts.max_context or 0,
    )
