"""64-bit Arm with byte products: Cortex-A76 of a Raspberry Pi 5, most phones since 2018."""

from __future__ import annotations

from qcompiler.core.target import Speeds, Target

AARCH64_DOTPROD = Target(
    name="aarch64-dotprod",
    summary="Armv8.2 with SDOT: Raspberry Pi 5, Cortex-A55 and A76, Neoverse N1, Apple M1",
    # Of what LLVM knows of a Cortex-A76, cryptography and the like is only emitted on request.
    tvm={"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"},
    arch="aarch64",
    # Armv8.2 as Linux names its parts, with half precision (`fphp`, `asimdhp`), byte products
    # (`asimddp`) and what Armv8.3 has of acquiring loads (`lrcpc`), which those processors share.
    features=frozenset(
        {"fp", "asimd", "atomics", "crc32", "asimdrdm", "dcpop"}
        | {"fphp", "asimdhp", "asimddp", "lrcpc"}
    ),
    vector_bits=128,
    vector_registers=32,
    dot="sdot",
    l2_bytes=512 << 10,
    schemes=("w4a8*", "w8a8*"),
    # From data sheets, not measured. A Raspberry Pi 5: four Cortex-A76 at 2.4 GHz, each with two
    # pipes for vectors, that is, two SDOT (16 products each) or two FMLA (4 products each) a cycle
    # (Arm's Cortex-A76 Software Optimization Guide). Its LPDDR4X-4267 has 32 bits, 17.1 GB/s, of
    # which 60 % is taken to be reached.
    speeds=Speeds(bytes=10e9, int8_ops=4 * 2.4e9 * 64, float_ops=4 * 2.4e9 * 16),
)
