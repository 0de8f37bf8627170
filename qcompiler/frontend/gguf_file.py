"""Read a GGUF file: what it says about itself, and its tensors one at a time as floats.

The layout is a magic number, a version, counts, metadata as typed key-value pairs, a table of
tensors (name, sizes from the innermost, type, offset), and aligned data. Parsed here rather than
with `gguf.GGUFReader`, which makes several objects for each of a vocabulary's tokens and takes
seconds over it; the block formats are that package's.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from qcompiler.core.errors import CaptureError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
LONGEST_NAME = 128
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""Metadata types of fixed size, as `struct` writes them."""

Kind = GGMLQuantizationType
PLAIN = {
    Kind.F32: (np.float32, torch.float32),
    Kind.F16: (np.float16, torch.float16),
    Kind.F64: (np.float64, torch.float64),
    Kind.I8: (np.int8, torch.int8),
    Kind.I16: (np.int16, torch.int16),
    Kind.I32: (np.int32, torch.int32),
    Kind.I64: (np.int64, torch.int64),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


class GgufFile:
    """A GGUF file's metadata, and a source of its tensors under the names it gives them."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            CaptureError: the file is not GGUF, is damaged or cut short, or of another version.
        """
        self.path = path
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
                reader = _Reader(m)
                self._read_header(reader)
        except _Truncated:
            raise CaptureError(
                f"{path} is damaged or was not downloaded in full: its header ends early; "
                "download it again"
            ) from None
        except (OSError, ValueError) as error:
            raise CaptureError(f"{path} cannot be read as GGUF: {error}") from error

    def names(self) -> Iterable[str]:
        return self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        kind = self._entries[name].kind
        return PLAIN[kind][1] if kind in PLAIN else torch.float32

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor; quantised ones come back as float32."""
        entry = self._entries[name]
        numpy_type = PLAIN[entry.kind][0] if entry.kind in PLAIN else np.uint8
        raw = np.fromfile(
            self.path,
            dtype=numpy_type,
            count=entry.size // np.dtype(numpy_type).itemsize,
            offset=entry.offset,
        )
        if raw.nbytes != entry.size:
            raise CaptureError(f"{self.path} has been cut short since it was opened")
        if entry.kind in PLAIN:
            return torch.from_numpy(raw).reshape(entry.shape)
        rows = raw.reshape(prod(entry.shape[:-1]), -1)
        return torch.from_numpy(dequantize(rows, entry.kind)).reshape(entry.shape)

    @property
    def architecture(self) -> str:
        """The architecture as llama.cpp names it."""
        return str(self.metadata["general.architecture"])

    def describe(self) -> str:
        """Say what most weights are stored as, such as "GGUF Q4_1"."""
        count: Counter[str] = Counter()
        for entry in self._entries.values():
            count[entry.kind.name] += prod(entry.shape)
        return f"GGUF {count.most_common(1)[0][0]}" if count else "GGUF"

    def _read_header(self, reader: _Reader) -> None:
        if reader.take(4) != MAGIC:
            raise ValueError("it does not begin with the letters GGUF")
        version, tensors, pairs = reader.unpack("<IQQ")
        if version not in VERSIONS:
            raise ValueError(f"it is of version {version}, and only versions 2 and 3 are known")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = reader.string()
            metadata[key] = reader.value(reader.unpack("<I")[0])
        if "general.architecture" not in metadata:
            raise ValueError("it does not say which architecture it holds")
        _check_name(str(metadata["general.architecture"]))
        self.metadata: Mapping[str, Any] = metadata
        table = [self._entry(reader) for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-reader.place // alignment) * alignment
        self._entries: dict[str, _Entry] = {}
        for name, shape, kind, offset in table:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if not shape or shape[-1] % block:
                raise ValueError(f"the rows of '{name}' are no whole number of {kind.name} blocks")
            size = prod(shape) // block * block_bytes
            self._entries[name] = _Entry(shape, kind, start + offset, size)
            if start + offset + size > reader.length:
                raise ValueError(
                    f"the data of '{name}' reach beyond the end of the file, which is damaged or "
                    "was not downloaded in full; download it again"
                )

    def _entry(self, reader: _Reader) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = reader.string()
        _check_name(name)
        (dimensions,) = reader.unpack("<I")
        if dimensions > 8:
            raise ValueError(f"'{name}' has {dimensions} dimensions, so the file is damaged")
        sizes = reader.unpack(f"<{dimensions}Q")
        number, offset = reader.unpack("<IQ")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise ValueError(f"'{name}' is stored in type {number}, which is not known") from None
        if not _readable(kind):
            raise ValueError(f"'{name}' is stored as {kind.name}, which cannot be turned to floats")
        return name, tuple(reversed(sizes)), kind, offset


def _check_name(name: str) -> None:
    """Refuse a name that no converter writes, before it is part of a message."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name in it is unreadable ({name[:20]!r}), so the file is damaged")


@cache
def _readable(kind: GGMLQuantizationType) -> bool:
    if kind in PLAIN:
        return True
    block = np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    try:
        dequantize(block, kind)
    except NotImplementedError:
        return False
    return True


class _Truncated(Exception):
    """The file ends before what it announces."""


class _Reader:
    """Take values off a file from its beginning, never beyond its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.length = len(data)
        self.place = 0

    def take(self, count: int) -> bytes:
        end = self.place + count
        if end > self.length:
            raise _Truncated
        taken = self._data[self.place : end]
        self.place = end
        return taken

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.unpack(f"<{SCALARS[kind]}")[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"its metadata hold a value of type {kind}, so the file is damaged")
        inner, count = self.unpack("<IQ")
        if count > self.length - self.place:
            raise _Truncated
        if inner in SCALARS:
            return list(self.unpack(f"<{count}{SCALARS[inner]}"))
        return [self.value(inner) for _ in range(count)]
