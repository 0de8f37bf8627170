"""Steps are measured, and whoever watched before still does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qcompiler.core import progress
from qcompiler.core.progress import StepTimer


class Recorder:
    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.seen.append(f"+{name}")
        try:
            yield
        finally:
            self.seen.append(f"-{name}")

    def advance(self, done: int, total: int) -> None:
        self.seen.append(f"{done}/{total}")

    def tell(self, text: str) -> None:
        self.seen.append(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_outermost_steps_are_measured(clock: list[float]) -> None:
    recorder = Recorder()
    timer = StepTimer(recorder)
    with timer.step("capture"):
        clock[0] += 2
    clock[0] += 50  # between two steps
    with timer.step("quantize"):
        with timer.step("block 0"):
            clock[0] += 3
        timer.advance(1, 2)
        timer.tell("news")
        clock[0] += 1
        assert timer.seconds == [("capture", 2), ("quantize", 4)]  # so far
        clock[0] += 1
    assert timer.seconds == [("capture", 2), ("quantize", 5)]
    assert recorder.seen == [
        *("+capture", "-capture", "+quantize", "+block 0", "-block 0", "1/2", "news", "-quantize")
    ]


def test_a_step_that_fails_is_measured_too(clock: list[float]) -> None:
    timer = StepTimer(Recorder())

    def fail() -> None:
        with timer.step("quantize"):
            clock[0] += 3
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert timer.seconds == [("quantize", 3)]
