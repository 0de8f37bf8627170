"""A text file is there whole, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.core.errors import QCompilerError, UsageError
from qcompiler.whole_file import check_text_file, write_whole


def test_what_is_there_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    link = tmp_path / "b.txt"
    link.symlink_to(file)
    for place, text in ((file, "one\r\n"), (link, "zwei ·\n")):
        write_whole(place, text)
        assert file.read_bytes() == text.encode()
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_left_of_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(QCompilerError, match=r"a\.txt cannot be written: No space left on device"):
        write_whole(file, "after")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (".", "is a folder; name a file"),
        ("no/a.txt", r"there is no folder .*no for a\.txt"),
        ("/dev/null", "/dev/null is no ordinary file"),
    ],
)
def test_places_where_no_file_can_be(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        check_text_file(tmp_path / name)
