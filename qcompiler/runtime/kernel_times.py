"""How long each kernel of a language model's functions takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from qcompiler.core.artifact import FunctionCosts
from qcompiler.core.errors import ArtifactError
from qcompiler.runtime.executable import Executable
from qcompiler.runtime.session import Session


@dataclass(frozen=True, kw_only=True)
class KernelTimes:
    """Seconds of a function's call, and of each kernel that it calls, in order.

    Medians of the fastest calls.
    """

    seconds: float
    kernels: tuple[float, ...]


def time_prefill(
    executable: Executable, session: Session, costs: FunctionCosts, ids: np.ndarray, repeats: int
) -> KernelTimes:
    """Time the kernels that read a prompt of two tokens or more, [t], in one call.

    Raises:
        ArtifactError: the function calls other kernels than `costs` says.
    """
    taken, kernels = [], []
    for _ in range(repeats + 1):  # the first one warms up
        # Whoever watches takes time as well: beside kernels, not in them.
        taken.append(_prefill_seconds(session, ids))
        with executable.watching() as watched:
            _prefill_seconds(session, ids)
        kernels.append(_matched(watched, costs))
    return _typical(taken[1:], kernels[1:])


def _prefill_seconds(session: Session, ids: np.ndarray) -> float:
    session.reset()
    began = time.perf_counter()
    session.prefill(ids)
    return time.perf_counter() - began


def time_decode(
    executable: Executable, session: Session, costs: FunctionCosts, tokens: Sequence[int]
) -> KernelTimes | None:
    """Time the kernels that read one token, over several that follow what the session has read.

    None where a step runs as a whole and this machine has no clock for programs.

    Raises:
        ArtifactError: the function calls other kernels than `costs` says.
    """
    if session.step is None:
        taken, watched_kernels = [], []
        for token in tokens:
            with executable.watching() as watched:
                began = time.perf_counter()
                session.decode(token)
                taken.append(time.perf_counter() - began)
            watched_kernels.append(_matched(watched, costs))
        return _typical(taken, watched_kernels)
    began_at, taken, stamps = [], [], []
    for token in tokens:
        began_at.append(time.perf_counter())
        session.decode(token)
        taken.append(time.perf_counter() - began_at[-1])
        stamps.append(session.step.stamps())
    if not stamps[0].size:
        return None
    if stamps[0].size != len(costs.calls) + 1:
        raise ArtifactError(_other_kernels(stamps[0].size - 1, costs))
    # The counter's pace, from all tokens: what passes from a call to its first stamp is the same.
    # With one token there is nothing but its own time, which is a little more than its kernels'.
    passed, cycles = began_at[-1] - began_at[0], stamps[-1][0] - stamps[0][0]
    if len(tokens) == 1:
        passed, cycles = taken[0], stamps[0][-1] - stamps[0][0]
    cycle = passed / float(cycles)
    return _typical(taken, [tuple(map(float, np.diff(s) * cycle)) for s in stamps])


def _matched(watched: Sequence[tuple[str, float]], costs: FunctionCosts) -> tuple[float, ...]:
    """Return the seconds of the calls that are kernels', which have to be those of `costs`."""
    wanted = [costs.kernels[place].kernel for place in costs.calls]
    known = set(wanted)
    kernels = [(name, seconds) for name, seconds in watched if name in known]
    if [name for name, _ in kernels] != wanted:
        raise ArtifactError(_other_kernels(len(kernels), costs))
    return tuple(seconds for _, seconds in kernels)


def _other_kernels(count: int, costs: FunctionCosts) -> str:
    return (
        f"the artifact's code calls {count} kernels that its manifest knows, which lists "
        f"{len(costs.calls)}; compile the model again"
    )


def _typical(taken: Sequence[float], kernels: Sequence[tuple[float, ...]]) -> KernelTimes:
    """Return medians of the fastest quarter: whatever else runs on the machine slows calls down."""
    quarter = max(1, len(taken) // 4)
    fastest = zip(*sorted(kernels, key=sum)[:quarter], strict=True)
    each = tuple(map(median, fastest))
    return KernelTimes(seconds=max(median(sorted(taken)[:quarter]), sum(each)), kernels=each)
