"""How long work tells whoever watches how far it is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """A watcher of named steps, each of which may be counted."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """Announce a step for as long as the returned context is open; steps may nest."""

    def advance(self, done: int, total: int) -> None:
        """Say that `done` of `total` parts of the innermost open step are finished."""


class NoProgress:
    """A watcher that looks away.

    >>> with NO_PROGRESS.step("quantize-rtn"):
    ...     NO_PROGRESS.advance(1, 30)
    """

    def step(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def advance(self, done: int, total: int) -> None:
        return None


NO_PROGRESS: Progress = NoProgress()
