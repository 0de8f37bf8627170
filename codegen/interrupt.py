"""Ctrl-C while TVM works."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Have a signal end what runs inside with the exception that its handler raises.

    TVM calls the handler too, but makes a RuntimeError without a text of what it raises, or loses
    it. So what was signalled is noted, and raised again at the end.
    """
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {
        number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))
    }
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # only the main thread may set handlers, and only it is interrupted
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        handlers[number](number, frame)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    except Exception:
        if not seen:
            raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if seen:
        handlers[seen[0]](seen[0], None)
