"""A machine to compile for, described as data."""

from __future__ import annotations

from dataclasses import dataclass


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
    tvm: dict[str, str | int]
    arch: str
    features: frozenset[str]
    vector_bits: int
    vector_registers: int
    dot: str  # how bytes are multiplied: "vpdpbusd" (VNNI) or "vpmaddubsw" (AVX2)
    l2_bytes: int
    schemes: tuple[str, ...]
    """Schemes with kernels of their own, as patterns: w4a8*, w8a8*."""
    speeds: Speeds | None = None

    @property
    def lanes(self) -> int:
        """32-bit numbers in a vector register."""
        return self.vector_bits // 32
