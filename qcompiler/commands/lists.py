"""`qcompiler targets`, `passes` and `pipelines`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from codegen.runtime_libraries import LIBRARIES, find_library, install_wheel
from qcompiler.commands.output import print_table
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import host_arch
from qcompiler.presets import find_pipeline, preset_names
from targets import TARGETS, best, cpu_features


def list_targets() -> None:
    """Print every target, whether this machine runs it, and which one is native to it."""
    features = cpu_features()
    try:
        native = best(TARGETS, features).name
    except UnsupportedError:
        native = None
    rows = []
    for target in TARGETS:
        here = "native" if target.name == native else "yes"
        lacking = sorted(target.features - features)
        if target.arch != host_arch():
            here = f"no: for {target.arch}"
        elif target.gpu is not None:
            major, minor = divmod(target.gpu.level, 10)
            here = f"with a GPU of compute capability {major}.{minor} or more"
        elif lacking:
            here = f"no: lacks {' '.join(lacking)}"
        rows.append((target.name, here, target.summary))
    print_table(("target", "runs here", "machines"), rows)


def install_libraries(arch: str, wheels: Sequence[Path]) -> None:
    """Keep the runtime's libraries for an architecture, and print where.

    Those of `wheels`; without any, both are downloaded.
    """
    found = (
        [install_wheel(wheel, arch) for wheel in wheels]
        if wheels
        else [find_library(library, arch) for library in LIBRARIES]
    )
    for path in found:
        print(path)


def list_pipelines() -> None:
    """Print every preset with its passes."""
    configs = [(name, find_pipeline(name)) for name in preset_names()]
    rows = [
        (name, config.summary, ", ".join(step.name for step in config.steps))
        for name, config in configs
    ]
    print_table(("pipeline", "meaning", "passes"), rows)
