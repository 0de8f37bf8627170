"""x86-64 with AVX-512 VNNI: Intel since Cascade Lake (2019), AMD since Zen 4 (2022)."""

from __future__ import annotations

from qcompiler.core.target import Speeds, Target
from targets.x86_64_v3 import X86_64_V3

X86_64_V4_VNNI = Target(
    name="x86-64-v4-vnni",
    summary="x86-64 with AVX-512 VNNI: Intel since Cascade Lake, AMD since Zen 4",
    # The oldest machine with `features`. What else LLVM knows of it (CLWB, PKU, RDSEED, …) is code
    # that is only ever emitted on request, so the artifact runs on every later machine too.
    tvm={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"},
    arch="x86_64",
    features=X86_64_V3.features
    | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"},
    vector_bits=512,
    vector_registers=32,
    dot="vpdpbusd",
    l2_bytes=1 << 20,
    schemes=("w4a8*", "w8a8*"),
    # Two cores at 2.5 GHz: one vpdpbusd of 512 bits a cycle, two FMAs where there are two ports.
    speeds=Speeds(bytes=20e9, int8_ops=2 * 2.5e9 * 128, float_ops=2 * 2.5e9 * 64),
)
