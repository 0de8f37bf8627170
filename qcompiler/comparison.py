"""What pipelines make of one model, side by side: size, quality, speed, and what they took."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompiler.benchmark import BenchResult, bench
from qcompiler.calibration import CalibrationRequest, request_calibration
from qcompiler.core.artifact import check_destination, read_manifest
from qcompiler.core.errors import QCompilerError, UsageError
from qcompiler.core.program import Program
from qcompiler.core.progress import NO_PROGRESS, Progress
from qcompiler.evaluation import WINDOW, Evaluation, evaluate_beside
from qcompiler.planning import plan_request
from qcompiler.presets import find_pipeline
from qcompiler.report.content import read_report
from qcompiler.report.headline import layer_bits
from qcompiler.runtime import LanguageModel, load
from qcompiler.scorer import open_scorer
from qcompiler.temperature import TEMPERATURES, AtTemperature, distinct, kl_at

REFERENCE = "float"
"""The preset that every other pipeline is held against."""

PROMPTS = 4
PROMPT_TOKENS = 32
ANSWER_TOKENS = 64
KL_TOKENS = 512
"""Tokens of the text, from its beginning, that predictions are compared on at temperatures."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A pipeline's artifact, and what was measured of it.

    `evaluation` compares with the reference, except that of the reference itself.
    `compile_memory_bytes` is the most memory that compiling took, at least what this process has.
    """

    name: str
    bytes: int
    bits_per_weight: float
    compile_seconds: float
    compile_memory_bytes: int
    evaluation: Evaluation
    speed: BenchResult
    temperatures: tuple[AtTemperature, ...]


def compare(
    model: str | Path,
    pipelines: Sequence[str | Path],
    *,
    text: str,
    output: str | Path | None = None,
    tokens: int | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    calibration: Sequence[str | Path] = (),
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Contender]:
    """Compile a language model with each pipeline, and with `float`, and measure the artifacts.

    text: what quality is measured on, its first `tokens` tokens. output: a folder that keeps the
    artifacts, each by its pipeline's name. temperatures: at which predictions and drawn texts are
    compared, which `seed` makes repeatable; none of them: not at all. calibration: text files for
    the pipelines that run the model on samples; with what follows it as in `qcompiler.compile`.
    Each model is compiled and timed in a process of its own. The reference comes first, and reads
    the text once for all others; meanwhile the weights of all artifacts are in memory.

    Raises:
        UsageError: what is asked for cannot be compared, as of too short a text; nothing has been
            compiled then.
        QCompilerError: a pipeline fails; the artifacts before it stay in `output`.
    """
    names = _names(pipelines)
    if any(not 0 < temperature < float("inf") for temperature in temperatures):
        raise UsageError("a temperature to be compared at is a number above 0")
    if tokens is not None and tokens < 2:
        raise UsageError(f"{tokens} tokens cannot be scored; ask for 2 or more")
    given = {"--samples": samples, "--sequence-length": sequence_length, "--seed": seed or None}
    options = [word for file in calibration for word in ("--calibration", str(file))]
    options += [word for name, n in given.items() if n is not None for word in (name, str(n))]
    request = request_calibration(
        [step for pipeline in names.values() for step in plan_request(pipeline)[0].steps],
        [Path(file) for file in calibration] or None,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
    )
    watched = progress or NO_PROGRESS
    if output is not None:
        _check_output(Path(output), names)
    with watched.step("read the text"):
        _check_text(model, text, tokens, drawn=bool(temperatures), calibration=request)
    with ExitStack() as cleanup:
        if output is None:
            folder = Path(tempfile.mkdtemp(prefix="qcompiler-compare-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        else:
            folder = Path(output)
            folder.mkdir(parents=True, exist_ok=True)
        places = {name: folder / f"{name}.qc" for name in names}
        taken = {}
        for name, pipeline in names.items():
            with watched.step(f"compile {name}"):
                taken[name] = _compile(
                    str(model), pipeline, places[name], options, quiet=progress is None
                )
        with watched.step("evaluate"):
            evaluations = _evaluate(list(places.values()), text, tokens, watched)
        expected = _first_logits(places[REFERENCE], text) if temperatures else None
        found = []
        for name, evaluation in zip(names, evaluations, strict=True):
            with watched.step(f"measure {name}"):
                beside = None if name == REFERENCE else expected
                at = _at(temperatures, places[name], beside, text, seed)
                found.append(_measure(places[name], taken[name], evaluation, at))
        return found


def _check_output(folder: Path, names: Iterable[str]) -> None:
    """Make sure that artifacts can be put into a folder, which need not be there yet."""
    if folder.is_dir():
        for name in names:
            check_destination(folder / f"{name}.qc")
    elif folder.exists():
        raise UsageError(f"{folder} is a file; name a folder for the artifacts")


def _names(pipelines: Sequence[str | Path]) -> dict[str, str]:
    """Name pipelines, the reference first; each must be there, and have a name of its own."""
    found = {REFERENCE: REFERENCE}
    for pipeline in map(str, pipelines):
        find_pipeline(pipeline)
        name = Path(pipeline).name.removesuffix(".toml")
        if found.setdefault(name, pipeline) != pipeline:
            raise UsageError(
                f"the pipelines {found[name]} and {pipeline} are both called {name}; rename a file"
            )
    if len(found) == 1:
        raise UsageError(f"name a pipeline beside {REFERENCE}, which all are compared with")
    return found


@dataclass(frozen=True)
class _Taken:
    """What compiling took."""

    seconds: float
    memory_bytes: int


def _compile(model: str, pipeline: str, place: Path, options: list[str], *, quiet: bool) -> _Taken:
    """Compile in a process of its own, whose progress is seen unless `quiet`."""
    call = "from qcompiler.cli import entry; entry()"
    command = [sys.executable, "-c", call, "compile", model, "-o", str(place)]
    command += ["--pipeline", pipeline]
    # A pipeline that runs the model on no samples refuses what is said of them.
    command += options if _calibrates(pipeline) else []
    command += ["--quiet"] if quiet else []
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if quiet else None,
        text=True,
    ) as process:
        said = process.stderr.read() if process.stderr is not None else ""
        # How much memory a child took is known to whoever waits for it.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        reason = said.strip().rpartition("\n")[2].removeprefix("error: ")
        raise QCompilerError(
            f"the pipeline {pipeline} failed: {reason or 'what is said above is why'}"
        )
    return _Taken(time.perf_counter() - began, usage.ru_maxrss * 1024)


def _calibrates(pipeline: str) -> bool:
    steps, _ = plan_request(pipeline)
    return any(step.calibrates for step in steps.steps)


def _check_text(
    model: str | Path,
    text: str,
    tokens: int | None,
    *,
    drawn: bool,
    calibration: CalibrationRequest | None,
) -> None:
    """Find out whether texts are long enough before minutes are spent on compiling.

    drawn: whether pieces of the text are gone on with.

    Raises:
        UsageError: the model is no language model, or there is too little text.
    """

    def prepare(program: Program) -> None:
        # What the model would write itself is long enough.
        if calibration is not None and calibration.source is not None:
            calibration.build(program)

    reader = open_scorer(model, prepare)
    found = len(reader.encode(text))
    if found < (tokens or 2):
        raise UsageError(
            f"the text has {found} tokens; "
            + ("2 are the least that can" if tokens is None else f"{tokens} are to")
            + " be scored; give a longer text"
        )
    if drawn and found < (least := PROMPTS * _prompt_tokens(reader.max_context)):
        raise UsageError(
            f"the text has {found} tokens; the {PROMPTS} texts that are drawn at each temperature "
            f"begin with {least} of them; give a longer text, or leave temperatures out"
        )


def _prompt_tokens(max_context: int) -> int:
    return min(PROMPT_TOKENS, max_context // 2)


def _evaluate(
    places: Sequence[Path], text: str, tokens: int | None, progress: Progress
) -> list[Evaluation]:
    """Score artifacts on a text, the first by itself and the others beside it."""
    reference, *others = map(open_scorer, places)
    return evaluate_beside(
        reference.logits,
        [other.logits for other in others],
        reference.encode(text)[:tokens],
        prefix=reference.prefix,
        window=min(WINDOW, reference.room),
        progress=progress,
    )


def _measure(
    place: Path, taken: _Taken, evaluation: Evaluation, temperatures: tuple[AtTemperature, ...]
) -> Contender:
    """Time one artifact, and put all that is known of it together."""
    manifest = read_manifest(place)
    room = manifest.model.max_context
    prompt = min(512, room * 3 // 4)
    return Contender(
        name=place.stem,
        bytes=manifest.sizes["weight_bytes"],
        bits_per_weight=layer_bits(read_report(place)),
        compile_seconds=taken.seconds,
        compile_memory_bytes=taken.memory_bytes,
        evaluation=evaluation,
        speed=bench(
            place, prompt_tokens=prompt, generate_tokens=min(128, room - prompt), repeats=3
        ),
        temperatures=temperatures,
    )


def _first_tokens(model: LanguageModel, text: str) -> list[int]:
    return model.encode(text)[: min(KL_TOKENS, model.max_context)]


def _first_logits(place: Path, text: str) -> np.ndarray:
    """Return what an artifact predicts after the first tokens of a text, [t, vocab]."""
    model = _language_model(place)
    return model.logits(_first_tokens(model, text))


def _at(
    temperatures: Sequence[float],
    place: Path,
    reference: np.ndarray | None,
    text: str,
    seed: int,
) -> tuple[AtTemperature, ...]:
    """Compare predictions with the logits of a reference, and what is drawn, at temperatures."""
    if not temperatures:
        return ()
    model = _language_model(place)
    kls: Sequence[float | None] = [None] * len(temperatures)
    if reference is not None:
        kls = kl_at(temperatures, model.logits(_first_tokens(model, text)), reference)
    ids, length = model.encode(text), _prompt_tokens(model.max_context)
    starts = np.linspace(0, len(ids) - length, PROMPTS).astype(int)
    prompts = [model.decode(ids[start : start + length]) for start in starts]
    found = []
    for temperature, kl in zip(temperatures, kls, strict=True):
        drawn = [_draw(model, prompt, temperature, seed) for prompt in prompts if prompt]
        found.append(
            AtTemperature(
                temperature=temperature,
                kl=kl,
                repeated=float(np.mean([1 - distinct(tokens, 4) for tokens in drawn])),
                distinct=float(np.mean([distinct(tokens, 2) for tokens in drawn])),
            )
        )
    return tuple(found)


def _language_model(place: Path) -> LanguageModel:
    model = load(place)
    assert isinstance(model, LanguageModel), place  # what is none could not be evaluated
    return model


def _draw(model: LanguageModel, prompt: str, temperature: float, seed: int) -> list[int]:
    going_on = model.generate(
        prompt, max_tokens=ANSWER_TOKENS, temperature=temperature, seed=seed, raw=True
    )
    for _ in going_on:
        pass
    return going_on.tokens
