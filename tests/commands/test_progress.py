"""What long work shows, on a terminal and elsewhere."""

from __future__ import annotations

import re
import sys
from itertools import count

import pytest

from qcompiler.commands import progress
from qcompiler.commands.progress import LineProgress, watch
from qcompiler.core.progress import NO_PROGRESS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each look at the clock be three seconds after the one before."""
    ticks = count(0, 3)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


@pytest.mark.usefixtures("clock")
def test_lines_say_what_took_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LineProgress()
    with lines.step("passes"), lines.step("quantize-rtn"):
        pass
    assert capsys.readouterr().err == "  quantize-rtn: 3.0 s\npasses: 12.0 s\n"


@pytest.mark.usefixtures("clock")
def test_a_long_step_says_now_and_then_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LineProgress()
    with lines.step("quantize-rtn"):
        for done in range(1, 9):
            lines.advance(done, 8)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "quantize-rtn: 3 of 8, about 15 s left"
    assert 2 <= len(shown) - 1 <= 3  # not one line for each of the eight


def test_a_step_that_fails_is_not_reported_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    lines = LineProgress()
    with pytest.raises(ValueError, match="bad weight"), lines.step("passes"):
        raise ValueError("bad weight")
    assert capsys.readouterr().err == ""
    with lines.step("again"):
        pass
    assert capsys.readouterr().err.startswith("again:")


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with watch(quiet=True) as shown:
        assert shown is NO_PROGRESS
        with shown.step("capture"):
            shown.advance(1, 2)
            shown.tell("anything")
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_and_keeps_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with watch() as shown, shown.step("passes"), shown.step("[quantize-rtn]"):
        shown.advance(15, 30)
        shown.tell("[from block 3]")
    text = capsys.readouterr().err
    assert re.search(r"passes: \d", text)
    assert "[from block 3]\n" in text
    assert "\x1b[" in text


def test_elsewhere_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with watch() as shown, shown.step("capture"):
        shown.advance(1, 2)
        shown.tell("found it")
    assert capsys.readouterr().err == "found it\ncapture: 0.0 s\n"


def test_advance_outside_any_step_is_nothing() -> None:
    LineProgress().advance(1, 2)
