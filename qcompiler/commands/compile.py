"""`qcompiler compile`: a model in, an artifact out."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import qcompiler
from codegen.linker import find_linker
from qcompiler.budgets import budget_settings
from qcompiler.commands.calibration import CalibrationOptions
from qcompiler.commands.output import print_table, say
from qcompiler.commands.progress import watch
from qcompiler.core.artifact import check_destination
from qcompiler.core.errors import QCompilerError
from qcompiler.packaged import check_found
from qcompiler.presets import find_pipeline
from qcompiler.report.content import read_report
from qcompiler.report.figures import duration, human_bytes
from qcompiler.report.headline import bits_per_weight, longest_steps
from qcompiler.work_folder import has_work, work_folder
from targets import NATIVE, find


def compile_model(
    model: str,
    *,
    output: Path,
    target: str | None,
    pipeline: str,
    settings: tuple[str, ...],
    budgets: tuple[str, ...],
    context: int | None,
    calibration: CalibrationOptions,
    dump: Path | None,
    quiet: bool,
) -> None:
    """Compile `model` into the folder `output`, and say where it is and how large."""
    start = time.monotonic()
    # What is wrong with the request should show before seconds are spent on loading torch …
    written = find_pipeline(pipeline)
    if budgets:
        settings = (*budget_settings(written, budgets), *settings)
    plan = written.with_settings(settings)
    machine = find(target or plan.target or NATIVE)
    check_destination(output)
    calibration.check()
    check_found(model)
    find_linker(machine.arch)
    # … and what is wrong with options of passes, which are written in it, before TVM is loaded.
    from qcompiler.planning import plan_request

    steps, _ = plan_request(pipeline, target, settings)
    calibration.check_against(steps.steps)
    try:
        with watch(quiet=quiet) as progress:
            qcompiler.compile(
                model,
                output=output,
                target=machine.name,
                pipeline=pipeline,
                settings=settings,
                context=context,
                progress=progress,
                dump=dump,
                **calibration.keywords(),
            )
    except BaseException as error:
        work = work_folder(output)
        if has_work(work) and not isinstance(error, QCompilerError):
            say(f"finished blocks are kept in {work}; the same command goes on from there")
        raise
    if not quiet:
        summarise(output, machine.name, time.monotonic() - start)
    print(output)


def summarise(output: Path, target: str, seconds: float) -> None:
    """Say on stderr how large the artifact is and what took the time."""
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    report = read_report(output)
    rows = [
        ("size", human_bytes(size)),
        *bits_per_weight(report),
        ("time", duration(seconds)),
        *((f"  {name}", took) for name, took in longest_steps(report)),
    ]
    print_table(("compiled for", target), rows, file=sys.stderr)
