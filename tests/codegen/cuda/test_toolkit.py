"""The search for NVIDIA's compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcompiler
from codegen.cuda import toolkit
from qcompiler.core.errors import UnsupportedError


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(toolkit, "_package_folders", list)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return tmp_path / "cuda"


@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_compiler_is_a_sentence_with_the_way_to_install_it() -> None:
    with pytest.raises(
        UnsupportedError, match=r"nvcc, and none is installed; install it with .*pip"
    ):
        toolkit.find_toolkit()


def test_a_toolkit_of_another_version(nothing_installed: Path) -> None:
    (nothing_installed / "bin").mkdir(parents=True)
    (nothing_installed / "bin" / "nvcc").touch()
    with pytest.raises(UnsupportedError, match=r"has no libcudart\.so\.13 beside it"):
        toolkit.find_toolkit()
    (nothing_installed / "lib64").mkdir()
    (nothing_installed / "lib64" / "libcudart.so.13").touch()
    assert toolkit.find_toolkit().nvcc == nothing_installed / "bin" / "nvcc"


def test_compiling_asks_for_it_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing() -> None:
        raise UnsupportedError("there is no nvcc")

    monkeypatch.setattr("qcompiler.api.find_toolkit", missing)
    # The model does not exist either, which is found out later.
    with pytest.raises(UnsupportedError, match="there is no nvcc"):
        qcompiler.compile(tmp_path / "no-model", target="cuda-sm80")
