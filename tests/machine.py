"""A machine for tests of passes, which build nothing for it."""

from __future__ import annotations

from qcompiler.core.target import Target


def machine(*schemes: str) -> Target:
    """Return a target that has kernels for the given schemes."""
    return Target(
        name="test-machine",
        summary="a machine for tests",
        tvm={"kind": "llvm"},
        arch="x86_64",
        features=frozenset(),
        vector_bits=256,
        vector_registers=16,
        dot="vpmaddubsw",
        l2_bytes=1 << 18,
        schemes=schemes,
    )
