"""Numbers and texts in the layout that the runner reads: little-endian, in multiples of 4 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


class BinaryWriter:
    """Collects what a file holds."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def number(self, value: int) -> None:
        """Write a number of 32 bits."""
        self._parts.append(value.to_bytes(4, "little"))

    def numbers(self, values: Sequence[int] | np.ndarray) -> None:
        """Write how many numbers there are, then the numbers."""
        self.number(len(values))
        self._parts.append(np.asarray(values, "<u4").tobytes())

    def rows(self, rows: Iterable[Sequence[int]], width: int) -> None:
        """Write how many rows there are, then their numbers; each has `width`."""
        table = np.asarray(list(rows), "<u4").reshape(-1, width)
        self.number(len(table))
        self._parts.append(table.tobytes())

    def text(self, text: str) -> None:
        """Write how many bytes a text has in UTF-8, then these."""
        self.blob(text.encode())

    def blob(self, data: bytes) -> None:
        """Write how many bytes there are, then the bytes, then zeros up to a multiple of 4."""
        self.number(len(data))
        self._parts.append(data + bytes(-len(data) % 4))

    def content(self) -> bytes:
        """Return all that was written."""
        return b"".join(self._parts)
