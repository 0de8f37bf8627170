"""Tables and JSON, for people and for pipes."""

from __future__ import annotations

import json
import math
import re
import sys

import pytest

from qcompiler.commands.output import print_json, print_table
from qcompiler.report.figures import human_bytes


def test_a_pipe_gets_one_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "word " * 60
    print_table(("name", "size"), [("a", "1 kB"), (wide.strip(), "200 MB")], numbers=("size",))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("    1 kB")
    assert lines[2].endswith("  200 MB")
    assert not any(line.endswith(" ") for line in lines)


def test_a_terminal_gets_lines_that_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_table(("name", "meaning"), [("[red]", "word " * 30)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[1].startswith("[red]")


def test_an_empty_table_is_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [])
    assert capsys.readouterr().out == "a  b\n"


def test_json_writes_what_is_no_number_as_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": math.inf, "c": 1.5, "d": "ö"})
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": None, "b": None, "c": 1.5, "d": "ö"}
    assert "ö" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")],
)
def test_bytes_are_written_in_decimal_units(count: float, text: str) -> None:
    assert human_bytes(count) == text
