"""Read a file that a user says is text."""

from __future__ import annotations

from pathlib import Path

from qcompiler.core.errors import UsageError


def read_text(path: Path) -> str:
    """Return what a UTF-8 text file holds; a mark of its encoding at the start is left out.

    Raises:
        UsageError: the file is not there, cannot be read, is empty, or is no text.
    """
    try:
        data = path.expanduser().read_bytes()
    except FileNotFoundError:
        raise UsageError(f"there is no text file {path}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; name the text files in it") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if b"\0" in data:
        raise UsageError(f"{path} is no text: it holds binary data")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is no text in UTF-8 (byte {error.start} is {data[error.start]:#04x}); "
            "convert it first"
        ) from None
    if not text.strip():
        raise UsageError(f"there is no text in {path}")
    return text
