"""How a function is called that runs a whole step of a model at once."""

from __future__ import annotations

from dataclasses import dataclass

LINE_BYTES = 64
"""A cache line: no two threads write to one. Barriers take one, and one for each thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """How a function is called that runs as a whole: by a table of addresses, `symbol`'s argument.

    It has those of the step's memory, the inputs, the outputs, the caches and the weights. What
    follows is the room in the caches, and the number of threads. The memory has `LINE_BYTES`, as
    many for each thread, `shared_bytes`, and `thread_bytes` for each thread.
    """

    symbol: str
    shared_bytes: int
    thread_bytes: int
    stamps: int = 0
    """Numbers of 8 bytes that each thread's bytes begin with: its cycle counter before the first
    kernel, and behind each. None where the machine has no such counter for programs."""
