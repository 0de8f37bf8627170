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
class Target:
    """What code generation and cost formulas know of a machine.

    `tvm` is the target description TVM takes; `features` are the instruction sets a machine must
    have to run an artifact, named as Linux's /proc/cpuinfo names them.
    """

    name: str
    summary: str
    tvm: dict[str, str | int | list[str]]
    arch: str
    features: frozenset[str]
    vector_bits: int
    vector_registers: int
    dot: str
    """How bytes are multiplied: vpdpbusd (VNNI), vpmaddubsw (AVX2), sdot or smmla (Arm)."""
    l2_bytes: int
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
