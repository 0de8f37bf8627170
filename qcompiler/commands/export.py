"""`qcompiler export`: an artifact as something that runs elsewhere."""

from __future__ import annotations

from pathlib import Path

from qcompiler.commands.output import say
from qcompiler.core.errors import UsageError
from qcompiler.runner.export import export_runner


def export(artifact: Path, *, runner: bool, output: Path, libraries: Path | None) -> None:
    """Write the C++ runner of an artifact, and say how it is built."""
    if not runner:
        raise UsageError("say what to export: --runner writes a C++ program that runs the artifact")
    exported = export_runner(artifact, output, libraries=libraries)
    for note in exported.notes:
        say(f"note: {note}")
    say("build it with: cmake -B build && cmake --build build, in the folder")
    print(output)
