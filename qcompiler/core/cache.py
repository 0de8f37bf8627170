"""Results that took long, kept for the next time under a hash of all that they depend on."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def cache_folder() -> Path:
    """Return where results are kept: `QCOMPILER_CACHE`, or a folder among the user's caches."""
    if place := os.environ.get("QCOMPILER_CACHE"):
        return Path(place).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "qcompiler"


def read_cached(name: str) -> bytes | None:
    """Return what was kept as `name`, such as "tokens/3fa2…"; None if nothing was."""
    try:
        return (cache_folder() / name).read_bytes()
    except (OSError, RuntimeError):
        return None


def write_cached(name: str, data: bytes) -> bool:
    """Keep `data` as `name`, whole or not at all; say whether that could be done.

    A cache that cannot be written to is no reason to stop.
    """
    try:
        place = cache_folder() / name
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
    except (OSError, RuntimeError):
        # There may be no home folder.
        return False
    try:
        partial.write_bytes(data)
        partial.replace(place)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return True
