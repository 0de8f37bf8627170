"""How fast the machine reads memory and operates at best, as an artifact's own code measures it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from qcompiler.core.artifact import LimitFacts
from qcompiler.runtime.executable import Executable
from qcompiler.runtime.tensors import aligned_zeros, to_ffi

_SECONDS = 0.25
"""For each limit."""


@dataclass(frozen=True, kw_only=True)
class MachineLimits:
    """Bytes read and operations done in a second, by all threads of an artifact together."""

    bytes: float
    int8: float
    float32: float

    def best(self, other: MachineLimits) -> MachineLimits:
        """Return the higher ones of two measurements' limits."""
        return MachineLimits(
            bytes=max(self.bytes, other.bytes),
            int8=max(self.int8, other.int8),
            float32=max(self.float32, other.float32),
        )


def measure_limits(
    executable: Executable, limits: dict[str, LimitFacts], stream_bytes: int
) -> MachineLimits:
    """Measure the limits; `stream_bytes` are read in order, again and again.

    As many as a model reads for a token, so that what a cache keeps of them is kept here, too.
    """
    threads = executable.workers.count

    def operations(name: str) -> float:
        facts = limits[name]
        x = aligned_zeros((facts.numbers,), facts.dtype)
        x[...] = 1
        return threads * facts.operations / _best(_call(executable, facts, x))

    facts = limits["stream"]
    rounds = max(1, stream_bytes // (threads * facts.numbers * np.dtype(facts.dtype).itemsize))
    memory = aligned_zeros((threads, rounds, facts.numbers), facts.dtype)
    memory[...] = 1  # pages that nobody has written to are all one page
    return MachineLimits(
        bytes=memory.nbytes / _best(_call(executable, facts, memory)),
        int8=operations("int8"),
        float32=operations("float32"),
    )


def _call(executable: Executable, facts: LimitFacts, x: np.ndarray) -> Callable[[], object]:
    function = executable.function(facts.symbol)
    sums = to_ffi(aligned_zeros((executable.workers.count, facts.sums), facts.sums_dtype))
    given = to_ffi(x)

    def call() -> object:
        executable.workers.prepare()
        return function(given, sums)

    return call


def _best(call: Callable[[], object]) -> float:
    """Return the median seconds of the fastest quarter of calls.

    The least of all would be that of a moment in which the processor runs faster than it can for as
    long as a prompt takes; kernels are timed in the same way.
    """
    taken: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not taken or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return median(sorted(taken)[: max(1, len(taken) // 4)])
