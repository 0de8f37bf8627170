"""Where a compilation keeps what is finished, to go on from there when it is run again."""

from __future__ import annotations

from pathlib import Path


def work_folder(output: Path) -> Path:
    """Return the folder beside an artifact that work on it is kept in.

    >>> work_folder(Path("models/small.qc"))
    PosixPath('models/.small.qc.work')
    """
    place = output.absolute() if output.name in ("", "..") else output
    return place.with_name(f".{place.name}.work")


def has_work(folder: Path) -> bool:
    """Say whether anything is kept there."""
    return folder.is_dir() and any(folder.iterdir())
