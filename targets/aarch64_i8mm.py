"""64-bit Arm with products of byte matrices: Neoverse V1, Cortex-X2 and A710, Apple M2."""

from __future__ import annotations

from qcompiler.core.target import Speeds, Target
from targets.aarch64_dotprod import AARCH64_DOTPROD

AARCH64_I8MM = Target(
    name="aarch64-i8mm",
    summary="Armv8.6 with SMMLA: phones since 2022, Neoverse V1 (Graviton 3), Apple M2",
    # SVE is left out: these processors differ in whether and how wide they have it.
    tvm=AARCH64_DOTPROD.tvm | {"mattr": ["+i8mm"]},
    arch="aarch64",
    features=AARCH64_DOTPROD.features | {"i8mm"},
    vector_bits=128,
    vector_registers=32,
    # For one row SDOT, whose layout of weights is the same.
    dot="smmla",
    l2_bytes=512 << 10,
    schemes=("w4a8*", "w8a8*"),
    # From data sheets, not measured. Four cores of a phone, such as Cortex-A710 at 2.5 GHz: two
    # SMMLA (32 products each) or two FMLA a cycle (Arm's Cortex-A710 Software Optimization Guide);
    # 64 bits of LPDDR5-6400 have 51.2 GB/s, of which 60 % is taken to be reached.
    speeds=Speeds(bytes=30e9, int8_ops=4 * 2.5e9 * 128, float_ops=4 * 2.5e9 * 16),
)
