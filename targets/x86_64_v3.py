"""x86-64 with AVX2: Intel since Haswell (2013), AMD since Zen (2017)."""

from __future__ import annotations

from qcompiler.core.target import Speeds, Target

X86_64_V3 = Target(
    name="x86-64-v3",
    summary="x86-64 with AVX2 and FMA: Intel since Haswell, AMD since Zen",
    # The portable level, not a model: the artifact has to run wherever `features` are there.
    tvm={"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    arch="x86_64",
    # The level as the x86-64 psABI defines it; `abm` is Linux's name of LZCNT.
    features=frozenset(
        {"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"}
        | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
    ),
    vector_bits=256,
    vector_registers=16,
    dot="vpmaddubsw",
    l2_bytes=256 << 10,  # Haswell's; later machines have 512 KiB and more
    schemes=("w4a8*", "w8a8*"),
    # Two cores at 3 GHz: a vpmaddubsw, which two more instructions follow, in three of four cycles
    # of two ports; two FMAs a cycle.
    speeds=Speeds(bytes=20e9, int8_ops=2 * 3e9 * 48, float_ops=2 * 3e9 * 32),
)
