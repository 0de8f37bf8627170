"""Results are kept where the user says, whole or not at all; a cache that fails stops nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from qcompiler.core.cache import cache_folder, read_cached, write_cached


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QCOMPILER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "qcompiler"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder() == tmp_path / "caches" / "qcompiler"
    monkeypatch.setenv("QCOMPILER_CACHE", "~/here")
    assert cache_folder() == tmp_path / "here"


def test_what_is_written_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "new"))
    assert read_cached("tokens/one") is None
    assert write_cached("tokens/one", b"first")
    assert write_cached("tokens/one", b"second")
    assert read_cached("tokens/one") == b"second"
    assert [path.name for path in (tmp_path / "new" / "tokens").iterdir()] == ["one"]


def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path))

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert not write_cached("one", b"data")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "file"))
    assert not write_cached("one", b"data")
    assert read_cached("one") is None
