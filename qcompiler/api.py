"""The whole flow on one screen: the only module that knows everything below it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from codegen.interrupt import interruptible
from codegen.linker import find_linker
from codegen.lower import lower
from qcompiler.assembly import assemble, check_scratch
from qcompiler.benchmark import BenchResult, bench
from qcompiler.core.artifact import Manifest, check_destination, copy_artifact
from qcompiler.core.errors import UsageError
from qcompiler.core.instruments import DumpIR, Instrument
from qcompiler.core.pass_base import PassContext
from qcompiler.core.progress import NO_PROGRESS, Progress, StepTimer
from qcompiler.evaluation import WINDOW, Evaluation
from qcompiler.evaluation import evaluate as evaluate_logits
from qcompiler.frontend import capture
from qcompiler.packaged import check_found
from qcompiler.planning import plan_request
from qcompiler.report.content import SCHEMA
from qcompiler.report.facts import describe
from qcompiler.runtime import CompiledModule, LanguageModel, load
from qcompiler.scorer import open_scorer

__all__ = ["Artifact", "BenchResult", "Evaluation", "bench", "compile", "evaluate", "load"]

Model = str | Path | nn.Module | ExportedProgram


@dataclass
class Artifact:
    """A compiled model on disk."""

    path: Path
    manifest: Manifest

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
    options, each written PASS.OPTION=VALUE. context: the longest context the artifact allows, the
    model's own limit if not given. dump: a folder for the program's text after every pass. Without
    `output`, the artifact lies in a temporary folder for as long as the returned object is there.

    Raises:
        QCompilerError: what cannot be done, in one sentence; nothing is left half written.
    """
    progress = timer = StepTimer(progress or NO_PROGRESS)
    # Whatever can be wrong with the request shows before any work is done.
    steps, machine = plan_request(pipeline, target, settings)
    find_linker()
    check_scratch()
    if context is not None and context < 1:
        raise UsageError(f"a context of {context} tokens holds nothing; use 1 or more")
    with ExitStack() as cleanup:
        if output is None:
            home = tempfile.mkdtemp(prefix="qcompiler-artifact-")
            cleanup.callback(shutil.rmtree, home, ignore_errors=True)
            folder = Path(home) / "artifact.qc"
        else:
            folder = Path(output)
        check_destination(folder)
        instruments: list[Instrument] = [] if dump is None else [DumpIR(Path(dump))]
        with progress.step("capture"):
            program = capture(
                model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes, context=context
            )
        pass_context = PassContext(target=machine, progress=progress)
        steps.run(program, pass_context, instruments)
        with interruptible():
            with progress.step("lower"):
                lowered = lower(program, machine)
            with progress.step("build"):
                manifest = assemble(
                    program,
                    lowered,
                    folder=folder,
                    target=machine,
                    pipeline=steps.spec(),
                    report=describe(program, pass_context, steps.spec()),
                    times=lambda: {
                        "schema": SCHEMA,
                        "steps": timer.seconds,
                        "records": pass_context.seconds,
                    },
                )
        artifact = Artifact(folder, manifest)
        # From here on the temporary folder, if there is one, goes with the artifact.
        weakref.finalize(artifact, cleanup.pop_all().close)
    return artifact


def evaluate(
    model: Model,
    *,
    text: str | Mapping[str, str],
    reference: Model | None = None,
    pipeline: str | Path | None = None,
    reference_pipeline: str | Path | None = None,
    tokens: int | None = None,
    window: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score how a language model predicts a text or several, and how far it is from `reference`.

    model, reference: an artifact's folder, or what `compile` takes, which is run in torch: in
    float, or after the passes of `pipeline` (of `reference_pipeline`) in the integer reference
    arithmetic. With a pipeline for the reference alone, the reference is the same model. text: one,
    or several by name. tokens: score only so many of each text; window: tokens read before the
    model starts afresh, 512 if the model takes so many.

    Raises:
        UsageError: what is asked for contradicts itself, or is more than a model was made for.
        QCompilerError: a model cannot be run, in one sentence.
    """
    progress = progress or NO_PROGRESS
    # Whatever can be wrong with the request shows before any work is done.
    plans = [
        None if name is None else plan_request(name) for name in (pipeline, reference_pipeline)
    ]
    models = [model]
    if reference is not None or reference_pipeline is not None:
        models.append(model if reference is None else reference)
    for name in models:
        if isinstance(name, str | Path):
            check_found(name)
    with progress.step("load"):
        scorers = [open_scorer(*pair, progress) for pair in zip(models, plans, strict=False)]
    scored, *compared = scorers
    texts = {"": text} if isinstance(text, str) else dict(text)
    ids = {name: scored.encode(content) for name, content in texts.items()}
    if any(other.encode(texts[name]) != ids[name] for other in compared for name in texts):
        raise UsageError("the model and its reference split the text into different tokens")
    prefix = [] if scored.begin_token is None else [scored.begin_token]
    longest = min(scorer.max_context for scorer in scorers) - len(prefix)
    if window is not None and window > longest:
        raise UsageError(f"a window of {window} tokens does not fit the context of {longest}")
    with progress.step("evaluate"):
        return evaluate_logits(
            scored.logits,
            {name: found[:tokens] for name, found in ids.items()},
            reference=compared[0].logits if compared else None,
            prefix=prefix,
            window=window or min(WINDOW, longest),
            progress=progress,
        )
