"""A language model as evaluation sees it: an artifact, or a program run in torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from torch import nn
from torch.export import ExportedProgram

from qcompiler.core.artifact import MANIFEST, ModelFacts
from qcompiler.core.errors import QCompilerError, UsageError
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import ModelInfo
from qcompiler.core.progress import Progress
from qcompiler.core.target import Target
from qcompiler.evaluation import Logits
from qcompiler.frontend import capture
from qcompiler.runtime import LanguageModel, load


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What turns a text into tokens, and tokens into logits."""

    logits: Logits
    tokenizer: Tokenizer
    begin_token: int | None
    max_context: int

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without any that it would begin or end with."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def open_scorer(
    model: str | Path | nn.Module | ExportedProgram,
    plan: tuple[Pipeline, Target] | None,
    progress: Progress,
) -> Scorer:
    """Load an artifact, or capture a model to run it in torch: in float, or as `plan` has it.

    Raises:
        UsageError: it is no language model, or an artifact that `plan` cannot change any more.
        QCompilerError: it cannot be loaded or captured.
    """
    if isinstance(model, str | Path) and (Path(model) / MANIFEST).is_file():
        if plan is not None:
            raise UsageError(f"{model} is compiled already; a pipeline goes with a model")
        return _open_artifact(Path(model))
    program = capture(model)
    if program.info.kind != "causal-lm":
        raise _no_language_model(program.info.name)
    if plan is not None:
        steps, machine = plan
        steps.run(program, PassContext(target=machine, progress=progress))
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
    if tokenizer_json is None:
        raise QCompilerError(
            f"{facts.name} has no tokenizer; put its tokenizer.json into the model's folder"
        )
    tokenizer = Tokenizer.from_str(tokenizer_json)
    # Some bring a limit along that would cut the text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Scorer(
        logits=logits,
        tokenizer=tokenizer,
        begin_token=facts.begin_token,
        max_context=facts.max_context or 0,
    )
