"""Which target the machine at hand can run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import Target, host_arch

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
    names = ", ".join(sorted(target.name for target in targets))
    advice = f"to compile for another machine, name its target: {names}"
    alike = [target for target in processors if target.arch == host_arch()]
    if not alike:
        raise UnsupportedError(
            f"this {host_arch() or 'unknown'} machine runs none of the targets; {advice}"
        )
    nearest = min(alike, key=lambda target: len(target.features - features))
    lacking = ", ".join(sorted(nearest.features - features))
    raise UnsupportedError(
        f"this {host_arch()} machine runs none of the targets: the nearest, '{nearest.name}', "
        f"needs {lacking}; {advice}"
    )
