"""A machine to compile for, described as data."""

from __future__ import annotations

import platform
from dataclasses import dataclass

_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What a typical machine of a target does at best in a second, for estimates by the roofline.

    `bytes` are read from main memory; operations count a multiplication and an addition each.
    """

    bytes: float
    int8_ops: float
    float_ops: float


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What code generation knows of a GPU.

    `level` is the compute capability, 80 for 8.0. Machine code is for that one and later ones of
    the same generation; the PTX beside it is for every later one.
    """

    level: int
    threads: int = 1024
    """The most in a block."""
    shared_bytes: int = 48 << 10
    """Memory of a block that needs no asking for."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What code generation and cost formulas know of a machine.

    `tvm` is the target description TVM takes; `features` are the instruction sets a machine must
    have to run an artifact, named as Linux's /proc/cpuinfo names them. With a `gpu`, they are those
    of the processor that drives it, and what is said of vectors is said of a warp's registers.
    """

    name: str
    summary: str
    tvm: dict[str, str | int | list[str]]
    arch: str
    features: frozenset[str]
    vector_bits: int
    vector_registers: int
    dot: str
    """How bytes are multiplied: vpdpbusd, vpmaddubsw (x86), sdot, smmla (Arm), mma (CUDA)."""
    l2_bytes: int
    tile_vectors: int = 4
    """The most vectors of outputs that a tile of a packed weight has."""
    gpu: Gpu | None = None
    schemes: tuple[str, ...]
    """Schemes with kernels of their own, as patterns: w4a8*, w8a8*."""
    speeds: Speeds | None = None

    @property
    def lanes(self) -> int:
        """32-bit numbers in a vector register."""
        return self.vector_bits // 32

    @property
    def signed_bytes(self) -> bool:
        """Whether both factors of a byte product are signed, and not the first one unsigned."""
        return self.dot in {"sdot", "smmla"}


def host_arch() -> str:
    """Return this machine's architecture, as targets call it."""
    name = platform.machine().lower()
    return _ALIASES.get(name, name)
