"""Which target the machine at hand can run."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import Target

CPUINFO = Path("/proc/cpuinfo")


def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return the instruction sets of this machine's processors, as Linux names them.

    Empty where Linux's list cannot be read, or says nothing of the sort.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    # A machine can mix processors: what all of them have is what a program may use.
    lists = [
        frozenset(value.split())
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if key.strip() in {"flags", "Features"}
    ]
    return frozenset.intersection(*lists) if lists else frozenset()


def best(targets: Sequence[Target], features: frozenset[str]) -> Target:
    """Return the first of `targets` whose instruction sets are all among `features`; no GPU is.

    Raises UnsupportedError, which says what the nearest one lacks.
    """
    processors = [target for target in targets if target.gpu is None]
    for target in processors:
        if target.features <= features:
            return target
    nearest = min(processors, key=lambda target: len(target.features - features))
    lacking = ", ".join(sorted(nearest.features - features))
    machine = platform.machine() or "unknown"
    raise UnsupportedError(
        f"this {machine} machine runs none of the targets: the nearest, '{nearest.name}', needs "
        f"{lacking}; to compile for another machine, name its target: "
        + ", ".join(sorted(target.name for target in targets))
    )
