"""`qcompiler targets`: what runs here, and what other machines need."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.commands.lists import install_libraries, list_targets
from qcompiler.core.errors import UsageError
from qcompiler.core.target import host_arch
from targets import TARGETS


def test_every_target_has_a_line_that_says_whether_it_runs_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    list_targets()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(TARGETS)
    for target, line in zip(TARGETS, lines, strict=True):
        assert line.startswith(target.name)
        assert (f"no: for {target.arch}" in line) == (target.arch != host_arch())


def test_libraries_that_are_here_already_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    install_libraries(host_arch(), [])
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["libtvm_runtime.so", "libtvm_ffi.so"]


def test_a_wheel_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"there is no file missing\.whl"):
        install_libraries("aarch64", [Path("missing.whl")])
