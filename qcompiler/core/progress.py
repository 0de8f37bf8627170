"""How long work tells whoever watches how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """A watcher of named steps, each of which may be counted."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """Announce a step for as long as the returned context is open; steps may nest."""

    def advance(self, done: int, total: int) -> None:
        """Say that `done` of `total` parts of the innermost open step are finished."""

    def status(self, text: str) -> None:
        """Say how the innermost open step is doing, to be shown until something else is said."""

    def tell(self, text: str) -> None:
        """Say something that is to be known now, beside the steps."""


class NoProgress:
    """A watcher that looks away.

    >>> with NO_PROGRESS.step("quantize-rtn"):
    ...     NO_PROGRESS.advance(1, 30)
    """

    def step(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def advance(self, done: int, total: int) -> None:
        return None

    def status(self, text: str) -> None:
        return None

    def tell(self, text: str) -> None:
        return None


NO_PROGRESS: Progress = NoProgress()


class StepTimer:
    """A watcher that measures the outermost steps and passes everything on to another one."""

    def __init__(self, other: Progress) -> None:
        self._other = other
        self._depth = 0
        self._start = 0.0
        self._steps: list[tuple[str, float | None]] = []

    @property
    def seconds(self) -> list[tuple[str, float]]:
        """The outermost steps and how long each took, the one that is open up to now."""
        now = time.perf_counter() - self._start
        return [(name, now if took is None else took) for name, took in self._steps]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if self._depth == 0:
            self._start = time.perf_counter()
            self._steps.append((name, None))
        self._depth += 1
        try:
            with self._other.step(name):
                yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._steps[-1] = (name, time.perf_counter() - self._start)

    def advance(self, done: int, total: int) -> None:
        self._other.advance(done, total)

    def status(self, text: str) -> None:
        self._other.status(text)

    def tell(self, text: str) -> None:
        self._other.tell(text)
