"""Progress on stderr: a live bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qcompiler.commands.output import say
from qcompiler.core.progress import NO_PROGRESS, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0


class LineProgress:
    """Report each step when it ends, and now and then how far a long one is."""

    def __init__(self) -> None:
        self._open: list[tuple[str, float]] = []
        self._last = time.monotonic()
        self._status = ""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        self._open.append((name, start))
        try:
            yield
            self._line(f"{name}: {time.monotonic() - start:.1f} s")
        finally:
            self._open.pop()
            self._status = ""

    def advance(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._open or now - self._last < SECONDS_BETWEEN_LINES:
            return
        name, start = self._open[-1]
        left = f", about {(now - start) / done * (total - done):.0f} s left" if done else ""
        status = f", {self._status}" if self._status else ""
        self._line(f"{name}: {done} of {total}{left}{status}")

    def status(self, text: str) -> None:
        self._status = text

    def tell(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        say("  " * (len(self._open) - 1) + text)


class BarProgress:
    """Show the open steps as bars, and leave a line for each outermost step that has ended."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._open: list[TaskID] = []
        self._names: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        self._names.append("  " * len(self._open) + name)
        task = self._bars.add_task(self._names[-1], total=None)
        self._open.append(task)
        try:
            yield
            if len(self._open) == 1:
                took = time.monotonic() - start
                self._bars.console.print(f"{name}: {took:.1f} s", markup=False, highlight=False)
        finally:
            self._open.pop()
            self._names.pop()
            self._bars.remove_task(task)

    def advance(self, done: int, total: int) -> None:
        if self._open:
            self._bars.update(self._open[-1], completed=done, total=total)

    def status(self, text: str) -> None:
        if self._open:
            self._bars.update(self._open[-1], description=f"{self._names[-1]}: {text}")

    def tell(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


@contextmanager
def watch(*, quiet: bool = False) -> Iterator[Progress]:
    """Open the progress display that fits where stderr goes; none when `quiet`."""
    if quiet:
        yield NO_PROGRESS
    elif not sys.stderr.isatty():
        yield LineProgress()
    else:
        from rich import progress
        from rich.console import Console

        columns = (
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=30),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield BarProgress(bars)
