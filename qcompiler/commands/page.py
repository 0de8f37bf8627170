"""`qcompiler inspect --html`: the page of an artifact."""

from __future__ import annotations

from pathlib import Path

from qcompiler.core.artifact import read_manifest
from qcompiler.core.errors import UsageError
from qcompiler.report.content import read_report
from qcompiler.report.page import render


def write_page(artifact: Path, file: Path) -> None:
    """Write the page of `artifact` to `file`.

    Raises:
        UsageError: nothing can be written there, or something other than a page is there.
    """
    page = render(read_manifest(artifact), read_report(artifact))
    if file.suffix.lower() not in {".html", ".htm"} and file.exists():
        raise UsageError(f"--html {file}: this is no page; name a file that ends in .html")
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--html {file}: cannot write it: {error.strerror}") from error
