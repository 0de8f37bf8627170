"""The whole flow on one screen: the only module that knows everything below it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from codegen.cuda.toolkit import find_toolkit
from codegen.interrupt import interruptible
from codegen.linker import find_linker
from codegen.lower import lower
from codegen.runtime_libraries import RUNTIME, has_library, runtime_library
from passes.insert_fake_quant import InsertFakeQuant
from passes.train_fake_quant import TrainFakeQuant
from qcompiler.allocation_plan import BitPlan, describe_plan, until_allocated
from qcompiler.assembly import assemble, check_scratch
from qcompiler.benchmark import BenchResult, bench
from qcompiler.calibration import CalibrationRequest, request_calibration
from qcompiler.calibration_source import CalibrationData
from qcompiler.core.artifact import Manifest, check_destination, copy_artifact
from qcompiler.core.errors import UsageError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.instruments import DumpIR, Instrument
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.progress import NO_PROGRESS, Progress, StepTimer
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target
from qcompiler.evaluation import WINDOW, Evaluation
from qcompiler.evaluation import evaluate as evaluate_logits
from qcompiler.frontend import capture
from qcompiler.machine_costs import cost_services
from qcompiler.packaged import check_found
from qcompiler.planning import plan_request
from qcompiler.prepared import PreparedModel
from qcompiler.report.content import SCHEMA
from qcompiler.report.facts import describe
from qcompiler.runtime import CompiledModule, LanguageModel, load
from qcompiler.scorer import open_scorer
from qcompiler.work_folder import work_folder

__all__ = [
    "Artifact",
    "BenchResult",
    "BitPlan",
    "Evaluation",
    "bench",
    "compile",
    "evaluate",
    "load",
    "plan",
    "prepare_qat",
]

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
    pipeline: str | Path | None = None,
    settings: Sequence[str] = (),
    context: int | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    dynamic_shapes: Any = None,
    calibration: CalibrationData | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    max_ram: int | None = None,
    progress: Progress | None = None,
    dump: str | Path | None = None,
) -> Artifact:
    """Compile a model to an artifact for a machine.

    model: a Hugging Face folder, a GGUF file, the name of a packaged model, an exported program, a
    module with `example_inputs`, or what `prepare_qat` gave, which has its target and pipeline.
    pipeline: a preset or a TOML file, "w4a8" if not given; `settings` change its options, each
    written PASS.OPTION=VALUE. context: the longest context the artifact allows, the
    model's own limit if not given. dump: a folder for the program's text after every pass. Without
    `output`, the artifact lies in a temporary folder for as long as the returned object is there.

    Where a pass runs the model on samples: calibration: text files, a list of texts, tokens, or
    tuples of a module's inputs; without any, a language model writes its own. samples and
    sequence_length: how many, and of how many tokens; see `build_calibration`. seed: decides which,
    and what the model writes. max_ram: bytes of activations to keep in memory; more goes to files.
    With `output`, finished blocks are kept in a folder beside it until all is done: run again after
    it was stopped, the same call goes on from there, with the same result.

    Raises:
        QCompilerError: what cannot be done, in one sentence; nothing is left half written.
    """
    progress = timer = StepTimer(progress or NO_PROGRESS)
    # Whatever can be wrong with the request shows before any work is done.
    prepared = model if isinstance(model, PreparedModel) else None
    if prepared is None:
        steps, machine = plan_request(pipeline or "w4a8", target, settings)
        passes = steps.spec()
    else:
        given = [pipeline, target, settings or None, context, example_inputs, dynamic_shapes]
        _check_nothing_given([*given, calibration, samples, sequence_length])
        before, steps = prepared.pipeline
        machine, passes = prepared.target, before.spec() + steps.spec()
    request = request_calibration(
        steps.steps,
        calibration,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        writes=_may_write(model, example_inputs),
    )
    check_max_ram(max_ram)
    find_linker(machine.arch)
    if machine.gpu is not None:
        find_toolkit()
    if not has_library(RUNTIME, machine.arch):
        with progress.step(f"download {RUNTIME.name} for {machine.arch}"):
            runtime_library(machine.arch)
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
        work = None if output is None or request is None else work_folder(folder)
        instruments: list[Instrument] = [] if dump is None else [DumpIR(Path(dump))]
        with progress.step("capture"):
            program = (
                capture(
                    model,
                    example_inputs=example_inputs,
                    dynamic_shapes=dynamic_shapes,
                    context=context,
                )
                if prepared is None
                else prepared.program()
            )
        pass_context = _context(machine, progress, max_ram, work=work)
        _calibrate(program, pass_context, request)
        with interruptible():
            # Passes may time kernels.
            steps.run(program, pass_context, instruments)
            with progress.step("lower"):
                lowered = lower(program, machine)
            with progress.step("build"):
                manifest = assemble(
                    program,
                    lowered,
                    folder=folder,
                    target=machine,
                    pipeline=passes,
                    report=describe(program, pass_context, passes),
                    times=lambda: {
                        "schema": SCHEMA,
                        "steps": timer.seconds,
                        "records": pass_context.seconds,
                    },
                )
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        artifact = Artifact(folder, manifest)
        # From here on the temporary folder, if there is one, goes with the artifact.
        weakref.finalize(artifact, cleanup.pop_all().close)
    return artifact


def prepare_qat(
    model: Model,
    pipeline: str | Path = "qat-w4a8kv4",
    *,
    target: str | None = None,
    settings: Sequence[str] = (),
    context: int | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    dynamic_shapes: Any = None,
    calibration: CalibrationData | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    max_ram: int | None = None,
    progress: Progress | None = None,
) -> PreparedModel:
    """Make a module with fake quantisers of a model, to be trained in a loop of one's own.

    The passes of the pipeline are run up to `insert-fake-quant`; `compile` of what is returned runs
    those that come after `train-fake-quant`. Other arguments are those of `compile`.

    Raises:
        QCompilerError: what cannot be done, in one sentence.
    """
    progress = progress or NO_PROGRESS
    steps, machine = plan_request(pipeline, target, settings)
    before, after = _around_training(steps, str(pipeline))
    request = request_calibration(
        before.steps,
        calibration,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        writes=_may_write(model, example_inputs),
    )
    check_max_ram(max_ram)
    with progress.step("capture"):
        program = capture(
            model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes, context=context
        )
    pass_context = _context(machine, progress, max_ram)
    _calibrate(program, pass_context, request)
    with interruptible():
        *planning, insert = before.steps
        Pipeline(tuple(planning)).run(program, pass_context)
        # What will not do later is to be known before anything is trained.
        for step in (insert, *after.steps):
            step.check_program(program, pass_context)
        Pipeline((insert,), program.stage, frozenset(program.facts)).run(program, pass_context)
    return PreparedModel(program, machine, before, after)


def plan(
    model: Model,
    *,
    target: str | None = None,
    pipeline: str | Path = "balanced",
    settings: Sequence[str] = (),
    example_inputs: tuple[Any, ...] | None = None,
    dynamic_shapes: Any = None,
    calibration: CalibrationData | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    max_ram: int | None = None,
    progress: Progress | None = None,
) -> BitPlan:
    """Say how a pipeline with `allocate-bits` would share bits out, and what that would do.

    The arguments are those of `compile`. Nothing is quantised. What is measured is kept in the
    user's cache, for the next budget and for `compile`.

    Raises:
        QCompilerError: what cannot be done, in one sentence.
    """
    progress = progress or NO_PROGRESS
    steps, machine = plan_request(pipeline, target, settings)
    steps = until_allocated(steps, str(pipeline))
    request = request_calibration(
        steps.steps,
        calibration,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        writes=_may_write(model, example_inputs),
    )
    check_max_ram(max_ram)
    with progress.step("capture"):
        program = capture(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    context = _context(machine, progress, max_ram)
    _calibrate(program, context, request)
    with interruptible():
        steps.run(program, context)
    return describe_plan(program, machine.name, context.notes)


def evaluate(
    model: Model,
    *,
    text: str | Mapping[str, str],
    reference: Model | None = None,
    pipeline: str | Path | None = None,
    reference_pipeline: str | Path | None = None,
    tokens: int | None = None,
    window: int | None = None,
    calibration: CalibrationData | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    max_ram: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score how a language model predicts a text or several, and how far it is from `reference`.

    model, reference: an artifact's folder, or what `compile` takes, which is run in torch: in
    float, or after the passes of `pipeline` (of `reference_pipeline`) in the integer reference
    arithmetic. With a pipeline for the reference alone, the reference is the same model. text: one,
    or several by name. tokens: score only so many of each text; window: tokens read before the
    model starts afresh, 512 if the model takes so many. calibration and what follows it: as for
    `compile`, where a pipeline runs the model on samples.

    Raises:
        UsageError: what is asked for contradicts itself, or is more than a model was made for.
        QCompilerError: a model cannot be run, in one sentence.
    """
    progress = progress or NO_PROGRESS
    # Whatever can be wrong with the request shows before any work is done.
    check_max_ram(max_ram)
    plans = [
        None if name is None else plan_request(name) for name in (pipeline, reference_pipeline)
    ]
    request = request_calibration(
        [step for plan in plans if plan is not None for step in plan[0].steps],
        calibration,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
    )
    prepare = [_prepare(plan, request, max_ram, progress) for plan in plans]
    models = [model]
    if reference is not None or reference_pipeline is not None:
        models.append(model if reference is None else reference)
    for name in models:
        if isinstance(name, str | Path):
            check_found(name)
    with progress.step("load"):
        scorers = [open_scorer(*pair) for pair in zip(models, prepare, strict=False)]
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


def _around_training(steps: Pipeline, name: str) -> tuple[Pipeline, Pipeline]:
    """Return the steps up to `insert-fake-quant`, and those that come after training."""
    places = [n for n, s in enumerate(steps.steps) if isinstance(s, InsertFakeQuant)]
    if not places:
        raise UsageError(
            f"the pipeline '{name}' has no 'insert-fake-quant', so that nothing in it can be "
            "trained; use 'qat-w4a8kv4', or add that pass and 'freeze-fake-quant'"
        )
    after = places[0] + 1
    rest = [step for step in steps.steps[after:] if not isinstance(step, TrainFakeQuant)]
    return (
        Pipeline(steps.steps[:after]),
        Pipeline(tuple(rest), start=Stage.FAKE_QUANTIZED, facts=frozenset({FakeQuantization})),
    )


def _check_nothing_given(arguments: Sequence[object]) -> None:
    """Refuse what contradicts a prepared model."""
    if any(argument is not None for argument in arguments):
        raise UsageError(
            "a prepared model has its target, pipeline and settings from prepare_qat; leave them "
            "out, and what is to be calibrated on too"
        )


def check_max_ram(max_ram: int | None) -> None:
    """Refuse what is no number of bytes; raise UsageError."""
    if max_ram is not None and (type(max_ram) is not int or max_ram < 0):
        raise UsageError(f"max_ram is {max_ram!r}; give a number of bytes from 0")


def _may_write(model: Model, example_inputs: object) -> bool:
    """Say whether a model may be a language model, as far as can be seen from outside."""
    return example_inputs is None and not isinstance(model, ExportedProgram)


def _context(
    machine: Target, progress: Progress, max_ram: int | None, *, work: Path | None = None
) -> PassContext:
    """Wire what passes may need from elsewhere."""
    return PassContext(
        target=machine,
        progress=progress,
        max_ram=max_ram,
        work=work,
        reuse=True,
        **cost_services(machine),
    )


def _calibrate(program: Program, context: PassContext, request: CalibrationRequest | None) -> None:
    """Give a context the samples that were asked for."""
    if request is None:
        return
    with context.progress.step("calibration"):
        context.calibration = request.build(program, context.progress)
        if (shortage := request.shortage(context.calibration)) is not None:
            context.note("calibration", shortage)
            context.progress.tell(shortage)


def _prepare(
    plan: tuple[Pipeline, Target] | None,
    request: CalibrationRequest | None,
    max_ram: int | None,
    progress: Progress,
) -> Callable[[Program], None] | None:
    """Return what takes a program through the passes of `plan`, where there is one."""
    if plan is None:
        return None
    steps, machine = plan

    def run(program: Program) -> None:
        context = _context(machine, progress, max_ram)
        if any(step.calibrates for step in steps.steps):
            _calibrate(program, context, request)
        steps.run(program, context)

    return run
