"""The C compiler that links: this machine's, or that of another architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen.linker import find_linker
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.target import host_arch

OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[host_arch()]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def add(folder: Path, name: str) -> str:
    program = folder / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return str(program)


def test_each_architecture_has_its_own(programs: Path) -> None:
    here, there = add(programs, "gcc"), add(programs, f"{OTHER}-linux-gnu-gcc")
    assert find_linker(host_arch()) == here
    assert find_linker(OTHER) == there


def test_this_machines_compiler_does_not_link_for_another(programs: Path) -> None:
    add(programs, "g++")
    package = f"g\\+\\+-{OTHER.replace('_', '-')}-linux-gnu"
    with pytest.raises(UnsupportedError, match=f"compiler for {OTHER}.*apt-get install {package}'"):
        find_linker(OTHER)


def test_without_any_compiler(programs: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"apt-get install g\+\+'"):
        find_linker(host_arch())
