"""`qcompiler compile`: a model in, an artifact out."""

from __future__ import annotations

import time
from pathlib import Path

import qcompiler
from codegen.linker import find_linker
from qcompiler.commands.output import say
from qcompiler.commands.progress import watch
from qcompiler.core.artifact import check_destination
from qcompiler.packaged import check_found
from qcompiler.presets import find_pipeline
from qcompiler.report.figures import human_bytes
from targets import NATIVE, find


def compile_model(
    model: str,
    *,
    output: Path,
    target: str | None,
    pipeline: str,
    settings: tuple[str, ...],
    context: int | None,
    dump: Path | None,
    quiet: bool,
) -> None:
    """Compile `model` into the folder `output`, and say where it is and how large."""
    start = time.monotonic()
    # What is wrong with the request should show before seconds are spent on loading torch …
    plan = find_pipeline(pipeline).with_settings(settings)
    machine = find(target or plan.target or NATIVE)
    check_destination(output)
    check_found(model)
    find_linker()
    # … and what is wrong with options of passes, which are written in it, before TVM is loaded.
    from qcompiler.planning import plan_request

    plan_request(pipeline, target, settings)
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
        )
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    if not quiet:
        say(f"{human_bytes(size)} for {machine.name} in {time.monotonic() - start:.1f} s")
    print(output)
