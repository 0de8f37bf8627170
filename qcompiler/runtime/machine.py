"""The machine at hand: can it run an artifact, and which of its processors may this process use."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from qcompiler.core.artifact import TargetFacts
from qcompiler.core.errors import ArtifactError

_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor architecture and instruction sets, as Linux names them."""

    arch: str
    features: frozenset[str]


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """Describe the machine at hand.

    Raises ArtifactError where its instruction sets cannot be told: running code made for another
    machine would end the process without a word.
    """
    arch = platform.machine().lower()
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        raise ArtifactError(
            f"the instruction sets of this machine cannot be read from {cpuinfo}; "
            "artifacts run on Linux only"
        ) from None
    fields = (line.partition(":") for line in lines)
    sets = [set(value.split()) for key, _, value in fields if key.strip() in {"flags", "Features"}]
    # Processors of one machine can differ; a thread can move to any of them.
    common = frozenset(set.intersection(*sets)) if sets else frozenset()
    return Machine(_ALIASES.get(arch, arch), common)


def check_machine(target: TargetFacts, machine: Machine) -> None:
    """Raise ArtifactError, saying what is lacking, unless `machine` can run code for `target`."""
    advice = "compile the model again on this machine with the target 'native'"
    if target.arch != machine.arch:
        raise ArtifactError(
            f"the artifact is compiled for {target.name} ({target.arch}), "
            f"and this machine is {machine.arch}; {advice}"
        )
    lacking = sorted(set(target.features) - machine.features)
    if lacking:
        raise ArtifactError(
            f"the artifact is compiled for {target.name}, "
            f"and this machine lacks {', '.join(lacking)}; {advice}"
        )


def available_cpus(topology: Path = Path("/sys/devices/system/cpu")) -> tuple[list[int], int]:
    """Return the processors this process may use, and how many of them are worth using.

    The first hardware thread of every core comes first. Worth using is one per core, as two threads
    of a core share its vector units, and no more than a container's quota of processor time.
    """
    first: list[int] = []
    others: list[int] = []
    cores: set[str] = set()
    for cpu in sorted(os.sched_getaffinity(0)):
        path = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        core = path.read_text().strip() if path.is_file() else str(cpu)
        (others if core in cores else first).append(cpu)
        cores.add(core)
    return first + others, max(1, min(len(first), cpu_quota() or len(first)))


def cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the processors that a container's quota of processor time amounts to, rounded up."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()[:2]
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return -(-int(quota) // int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):
        # No control group, or "max" in place of a number: no limit.
        return None
