"""What is no text is refused in one sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.core.errors import UsageError
from qcompiler.core.text_file import read_text


def test_text_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffGrüße\r\nan alle\n".encode())
    assert read_text(file) == "Grüße\r\nan alle\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no text file {}"),
        (b"", "there is no text in {}"),
        (b" \n\t ", "there is no text in {}"),
        (b"\x7fELF\0\0\1", "{} is no text: it holds binary data"),
        ("Grüße".encode("latin-1"), "{} is no text in UTF-8 (byte 2 is 0xfc); convert it first"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_text(file)
    assert str(caught.value) == message.format(file)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name the text files in it"):
        read_text(tmp_path)
