"""Write a text file whole, or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path

from qcompiler.core.errors import QCompilerError, UsageError


def check_text_file(path: Path) -> None:
    """Refuse what no file can be written to in the end; a file that is there is written over.

    Raises:
        UsageError: it is a folder or a device, or lies in a folder that is not there.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file to be written")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no ordinary file, and cannot be written whole; name another")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for {path.name} to be written in")


def write_whole(path: Path, text: str) -> None:
    """Write `text` in UTF-8 beside its place, and put it there when it is complete.

    Raises:
        UsageError: as `check_text_file`.
        QCompilerError: it cannot be written; what was there stays as it was.
    """
    check_text_file(path)
    # What a link leads to is written over, not the link.
    place = path.resolve()
    partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_bytes(text.encode("utf-8"))
        partial.replace(place)
    except OSError as error:
        raise QCompilerError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
