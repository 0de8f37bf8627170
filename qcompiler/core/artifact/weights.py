"""The weights file of an artifact: safetensors whose tensors can be used where they lie.

Kernels want 64-byte aligned tensors. The file keeps every tensor at a multiple of 64 bytes from
the start of the data, with filler tensors between them where a size is no multiple; so one read
into one suitably shifted buffer aligns all of them, and none is copied.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from qcompiler.core.artifact.manifest import FileRecord, TensorSpec
from qcompiler.core.errors import ArtifactError

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector register there is."""

_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {code: np.dtype(name) for name, code in _CODES.items()}
_FILLER = "_filler."
_HUGE_PAGE = 2 << 20
_CHUNK = 16 << 20


def spec_bytes(spec: TensorSpec) -> int:
    """Size of a tensor of known shape.

    >>> spec_bytes(TensorSpec(name="scale", dtype="float16", shape=(576, 18)))
    20736
    """
    return math.prod(int(size) for size in spec.shape) * np.dtype(spec.dtype).itemsize


def encode_weights(
    specs: Sequence[TensorSpec], tensors: Iterable[tuple[str, np.ndarray]]
) -> Iterator[bytes | memoryview]:
    """Yield the parts of a weights file, one tensor in memory at a time.

    `tensors` come in the order of `specs` and must agree with them; ValueError says where not.
    """
    header: dict[str, object] = {}
    offset = 0
    for index, spec in enumerate(specs):
        header[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec_bytes(spec)],
        }
        offset += spec_bytes(spec)
        gap = -offset % ALIGNMENT
        if gap:
            header[f"{_FILLER}{index}"] = {
                "dtype": "U8",
                "shape": [gap],
                "data_offsets": [offset, offset + gap],
            }
            offset += gap
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Spaces after the header are part of it, and put the data on a multiple of 64 in the file too.
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    remaining = iter(tensors)
    for spec in specs:
        name, array = next(remaining, ("nothing", np.empty(0)))
        if (name, array.dtype.name, array.shape) != (spec.name, spec.dtype, spec.shape):
            raise ValueError(
                f"expected the weight {spec.name} {spec.dtype} {list(spec.shape)}, "
                f"got {name} {array.dtype.name} {list(array.shape)}"
            )
        if array.size:
            yield np.ascontiguousarray(array).data.cast("B")
        yield b"\0" * (-array.nbytes % ALIGNMENT)
    for name, _ in remaining:
        raise ValueError(f"the weight {name} is not in the manifest")


def read_weights(path: Path, record: FileRecord | None = None) -> dict[str, np.ndarray]:
    """Read a weights file once into one buffer and return its tensors, each 64-byte aligned.

    They share the buffer, which lives as long as any of them. `record` is what the manifest says of
    the file. Raises ArtifactError, naming the file, when it is missing, damaged or too large.
    """
    buffer, digest = _read_aligned(path, hash_too=record is not None)
    if record is not None and digest != record.sha256:
        raise ArtifactError(f"{path} is damaged: its content does not match its sha256; {_AGAIN}")
    start = 8 + int.from_bytes(buffer[:8].tobytes(), "little")
    try:
        header = json.loads(buffer[8:start].tobytes())
        return {
            name: _view(buffer[start:], entry)
            for name, entry in header.items()
            if name != "__metadata__" and not name.startswith(_FILLER)
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path} is damaged: its header cannot be read; {_AGAIN}") from None


def weight_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Return where each tensor of a weights file begins in it, and its size, both in bytes.

    Raises ArtifactError, naming the file, when its header cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        return {
            name: (
                8 + size + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
            if name != "__metadata__" and not name.startswith(_FILLER)
        }
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        raise ArtifactError(f"{path} is damaged: its header cannot be read; {_AGAIN}") from None


_AGAIN = "copy the artifact again or compile the model again"


def _view(data: np.ndarray, entry: dict[str, list[int]]) -> np.ndarray:
    """Return one tensor of the data section; ValueError when it does not lie inside."""
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= data.size or begin % ALIGNMENT:
        raise ValueError("offsets")
    return data[begin:end].view(_DTYPES[str(entry["dtype"])]).reshape(entry["shape"])


def _read_aligned(path: Path, *, hash_too: bool) -> tuple[np.ndarray, str]:
    """Read a file into memory so that the data after its header is 64-byte aligned.

    Returns the bytes and, when asked for, their sha256. The buffer is on 2 MB pages where the
    system has them: streaming weights is then 5–8 % faster.
    """
    try:
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
            size = file.seek(0, 2)
            file.seek(0)
            first = file.read(8)
            header = 8 + int.from_bytes(first, "little")
            if len(first) < 8 or header > size:
                raise ArtifactError(f"{path} is damaged: it ends too early; {_AGAIN}")
            region = mmap.mmap(-1, size + _HUGE_PAGE + ALIGNMENT)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                region.madvise(mmap.MADV_HUGEPAGE)
            raw = np.frombuffer(region, np.uint8)
            shift = -raw.ctypes.data % _HUGE_PAGE + -header % ALIGNMENT
            buffer = raw[shift : shift + size]
            file.seek(0)
            digest = hashlib.sha256()
            done = 0
            while done < size:
                count = file.readinto(buffer[done : done + _CHUNK].data)
                if not count:
                    raise ArtifactError(f"{path} is damaged: it ends too early; {_AGAIN}")
                if hash_too:
                    # One worker, so in order; hashing takes as long as reading and runs beside it.
                    hasher.submit(digest.update, buffer[done : done + count].data)
                done += count
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; {_AGAIN}") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from None
    return buffer, digest.hexdigest()
