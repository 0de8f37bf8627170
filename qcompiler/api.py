"""The whole flow on one screen: the only module that knows everything below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from torch.export import ExportedProgram

import targets
from codegen.build import find_linker
from codegen.lower import lower
from passes import PASSES
from qcompiler.assembly import assemble
from qcompiler.benchmark import BenchResult, bench
from qcompiler.core.artifact import MANIFEST, Manifest, check_destination, copy_artifact
from qcompiler.core.errors import ConfigError, QCompilerError, UsageError
from qcompiler.core.instruments import DumpIR, Instrument
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline, build_pass, pass_table
from qcompiler.core.progress import NO_PROGRESS, Progress
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target
from qcompiler.evaluation import WINDOW, Evaluation, Logits
from qcompiler.evaluation import evaluate as evaluate_logits
from qcompiler.frontend import capture
from qcompiler.presets import find_pipeline
from qcompiler.runtime import CompiledModule, LanguageModel, load

__all__ = ["Artifact", "BenchResult", "Evaluation", "bench", "compile", "evaluate", "load"]

Model = str | Path | nn.Module | ExportedProgram


@dataclass
class Artifact:
    """A compiled model on disk."""

    path: Path
    manifest: Manifest
    _temporary: TemporaryDirectory[str] | None = None

    def save(self, path: str | Path) -> Path:
        """Copy the artifact to `path`, whole or not at all; return where it is."""
        place = Path(path)
        copy_artifact(self.path, place)
        return place

    def load(self, *, threads: int | None = None) -> LanguageModel | CompiledModule:
        """Load the artifact into this process."""
        return load(self.path, threads=threads)


def compile(
    model: Model,
    *,
    output: str | Path | None = None,
    target: str | None = None,
    pipeline: str | Path = "w4a8",
    settings: Sequence[str] = (),
    context: int | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    dynamic_shapes: Any = None,
    progress: Progress | None = None,
    dump: str | Path | None = None,
) -> Artifact:
    """Compile a model to an artifact for a machine.

    model: a Hugging Face folder, a GGUF file, the name of a packaged model, an exported program, or
    a module with `example_inputs`. pipeline: a preset or a TOML file; `settings` change its
    options, each written PASS.OPTION=VALUE. context: the longest context the artifact allows. dump:
    a folder for the program's text after every pass. Without `output`, the artifact lives in a
    temporary folder until `save` is called.

    Raises:
        QCompilerError: what cannot be done, in one sentence; nothing is left half written.
    """
    progress = progress or NO_PROGRESS
    # Whatever can be wrong with the request shows before any work is done.
    steps, machine = plan_request(pipeline, target, settings)
    find_linker()
    if context is not None and context < 1:
        raise UsageError(f"a context of {context} tokens holds nothing; use 1 or more")
    temporary = None if output is not None else TemporaryDirectory(prefix="qcompiler-artifact-")
    folder = Path(output) if output is not None else Path(temporary.name) / "artifact.qc"  # type: ignore[union-attr]
    check_destination(folder)
    instruments: list[Instrument] = []
    if dump is not None:
        instruments.append(DumpIR(Path(dump)))
    with progress.step("capture"):
        program = capture(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    pass_context = PassContext(target=machine, progress=progress)
    steps.run(program, pass_context, instruments)
    with progress.step("lower"):
        lowered = lower(program, machine)
    with progress.step("build"):
        manifest = assemble(
            program,
            lowered,
            folder=folder,
            target=machine,
            pipeline=steps.spec(),
            context=context,
            # No times in here: the same input gives the same bytes.
            report={"notes": pass_context.notes, "pipeline": steps.spec()},
        )
    return Artifact(folder, manifest, temporary)


def plan_request(
    pipeline: str | Path, target: str | None, settings: Sequence[str]
) -> tuple[Pipeline, Target]:
    """Read a pipeline with its settings and find its target; every mistake in either shows here."""
    table = pass_table(PASSES)
    config = find_pipeline(str(pipeline), passes=table).with_settings(settings)
    built = []
    for number, step in enumerate(config.steps, start=1):
        try:
            built.append(build_pass(step.name, step.options, table))
        except ConfigError as error:
            raise ConfigError(f"{config.source}: step {number}: {error}") from None
    steps = Pipeline(tuple(built))
    if steps.yields is not Stage.LEGAL:
        raise ConfigError(
            f"{config.source}: the last step leaves a {steps.yields} program; end with 'legalize'"
        )
    return steps, targets.find(target or config.target or targets.NATIVE)


def evaluate(
    model: Model,
    *,
    text: str,
    reference: Model | None = None,
    pipeline: str | Path | None = None,
    tokens: int | None = None,
    window: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score how a language model predicts `text`, and how far it is from `reference`.

    model, reference: an artifact's folder, or what `compile` takes, which is run in torch: in
    float, or after the passes of `pipeline` in the integer reference arithmetic. tokens: score only
    so many; window: tokens read before the model starts afresh.
    """
    progress = progress or NO_PROGRESS
    with progress.step("load"):
        scored = _scorer(model, pipeline, progress)
        compared = None if reference is None else _scorer(reference, None, progress)
    ids = scored.tokenizer.encode(text, add_special_tokens=False).ids
    if (
        compared is not None
        and compared.tokenizer.encode(text, add_special_tokens=False).ids != ids
    ):
        raise UsageError("the model and its reference split the text into different tokens")
    with progress.step("evaluate"):
        return evaluate_logits(
            scored.logits,
            ids if tokens is None else ids[:tokens],
            reference=None if compared is None else compared.logits,
            prefix=scored.tokenizer.encode("", add_special_tokens=True).ids[:1],
            window=window or WINDOW,
            progress=progress,
        )


@dataclass(frozen=True)
class _Scorer:
    logits: Logits
    tokenizer: Tokenizer


def _scorer(model: Model, pipeline: str | Path | None, progress: Progress) -> _Scorer:
    if isinstance(model, str | Path) and (Path(model) / MANIFEST).is_file():
        if pipeline is not None:
            raise UsageError(f"{model} is compiled already; a pipeline goes with a model")
        loaded = load(Path(model))
        if not isinstance(loaded, LanguageModel):
            raise UsageError(f"{model} is no language model; only those predict text")
        return _Scorer(
            loaded.logits, _tokenizer((Path(model) / "tokenizer.json").read_text(), str(model))
        )
    program = capture(model)
    if program.info.kind != "causal-lm":
        raise UsageError(f"{program.info.name} is no language model; only those predict text")
    if pipeline is not None:
        steps, machine = plan_request(pipeline, None, ())
        steps.run(program, PassContext(target=machine, progress=progress))
    torch_model = TorchLanguageModel(program)
    return _Scorer(
        lambda ids: torch_model.logits(ids).numpy(),
        _tokenizer(program.info.tokenizer_json, program.info.name),
    )


def _tokenizer(text: str | None, name: str) -> Tokenizer:
    if text is None:
        raise QCompilerError(f"{name} has no tokenizer; put its tokenizer.json into the folder")
    return Tokenizer.from_str(text)
