"""Keep a library's stray lines off the standard output."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = 1


@contextmanager
def silence() -> Iterator[None]:
    """Throw away what compiled code prints meanwhile; Python's own output is flushed before.

    For libraries that print when told not to: results of ours go to stdout, perhaps into a pipe
    that expects JSON. Compiled code buffers its lines, so they are flushed while nobody sees them.
    """
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDOUT)
        yield
    finally:
        flush(None)
        os.dup2(kept, _STDOUT)
        os.close(kept)
        os.close(nowhere)
