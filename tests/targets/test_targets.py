"""The table of targets, and what each entry promises code generation."""

from __future__ import annotations

import fnmatch
import subprocess
import sys

import pytest

from qcompiler.core.errors import UsageError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.target import Target
from targets import NATIVE, TARGETS, find

# How LLVM spells what Linux calls otherwise; a feature that is not here has one spelling.
LLVM_NAMES = {
    "abm": "lzcnt",
    "avx512_vnni": "avx512vnni",
    "bmi1": "bmi",
    "lahf_lm": "sahf",
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
}
# What LLVM knows of a machine but emits only for an intrinsic of that name, or not at all.
ONLY_ON_REQUEST = {
    *("adx", "aes", "clflushopt", "clwb", "fsgsbase", "invpcid", "pclmul", "pku", "prfchw"),
    *("rdrnd", "rdseed", "xsavec", "xsaveopt", "xsaves", "crc32"),
}
# The same of Arm: every feature of Linux is one of LLVM's.
ARM_LLVM_NAMES = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "asimdrdm": "rdm",
    "atomics": "lse",
    "crc32": "crc",
    "dcpop": "ccpp",
    "fp": "fp-armv8",
    "fphp": "fullfp16",
    "i8mm": "i8mm",
    "lrcpc": "rcpc",
}
ARM_ONLY_ON_REQUEST = {
    *("aes", "sha2", "ssbs", "ras", "perfmon"),
    *("CONTEXTIDREL2", "el2vmsa", "el3", "lor", "pan", "pan-rwv", "uaops", "vh"),  # of the system
}
ARM_TUNING = {
    *("a76", "addr-lsl-slow-14", "alu-lsl-fast", "enable-select-opt", "fuse-adrp-add", "fuse-aes"),
    "predictable-select-expensive",
}
BASELINE = {"64bit", "64bit-mode", "cmov", "cx8", "fxsr", "mmx", "nopl", "sse", "sse2", "x87"}


def of(arch: str) -> list[Target]:
    """Targets of an architecture."""
    return [target for target in TARGETS if target.arch == arch]


@pytest.fixture(params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


def test_names_are_unique_and_found() -> None:
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names)
    assert NATIVE not in names
    assert [find(name) for name in names] == list(TARGETS)


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown target 'x86-64-v2'; did you mean 'x86-64-v3'\?"):
        find("x86-64-v2")
    known = "known: aarch64-dotprod, aarch64-i8mm, cuda-sm80, cuda-sm90, native, x86"
    with pytest.raises(UsageError, match=known):
        find("z80")


def test_vectors_and_features_agree(target: Target) -> None:
    if target.gpu is not None:
        assert (target.lanes, target.features, target.dot) == (32, frozenset(), "mma")
        assert target.tvm["arch"] == f"sm_{target.gpu.level}"
        return
    assert target.lanes * 32 == target.vector_bits
    wide = {"avx512f", "avx512bw", "avx512vl"} <= target.features
    arm = "asimd" in target.features
    assert arm == (target.arch == "aarch64") == target.signed_bytes
    assert target.vector_bits == (128 if arm else 512 if wide else 256)
    assert target.vector_registers == (32 if wide or arm else 16)
    assert (target.dot == "vpdpbusd") == ("avx512_vnni" in target.features)
    assert (target.dot == "smmla") == ("i8mm" in target.features)
    assert (target.dot in {"sdot", "smmla"}) == ("asimddp" in target.features)


def test_schemes_are_patterns_of_schemes(target: Target) -> None:
    for pattern in target.schemes:
        known = ["w4a8", "w8a8", "w4a8g32", "w8a8g64", "w4a8g32z", "w4a8g64t"]
        known += ["w4", "w8", "w4g32", "w8g128z", "w4z"] if target.gpu else []
        matches = fnmatch.filter(known, pattern)
        assert matches
        for scheme in matches:
            QuantScheme.parse(scheme)


@pytest.mark.tvm
@pytest.mark.parametrize("target", of("x86_64"), ids=lambda target: target.name)
def test_llvm_may_use_no_more_than_the_features(target: Target) -> None:
    """An artifact checks `features` alone before it runs: code must not use anything else."""
    if target.gpu is not None:
        pytest.skip("machine code for a GPU is made by nvcc, not by LLVM")
    tvm = pytest.importorskip("tvm")
    from tvm.target import codegen

    machine = tvm.target.Target(target.tvm)
    allowed = {LLVM_NAMES.get(name, name) for name in target.features} | BASELINE | ONLY_ON_REQUEST
    generic = set(map(str, codegen.llvm_get_cpu_features(tvm.target.Target("llvm"))))
    used = set(map(str, codegen.llvm_get_cpu_features(machine)))
    # The rest of LLVM's list are hints on tuning, which change speed alone.
    instruction_sets = {
        name
        for name in used - generic
        if name.startswith(("avx", "sse", "ssse", "bmi", "fma", "amx", "x"))
        or name in {*ONLY_ON_REQUEST, *LLVM_NAMES.values(), "movbe", "popcnt", "f16c", "gfni"}
    }
    assert instruction_sets <= allowed
    assert {LLVM_NAMES.get(name, name) for name in target.features} <= used | {"xsave"}


@pytest.mark.tvm
@pytest.mark.parametrize("target", of("aarch64"), ids=lambda target: target.name)
def test_llvm_may_use_no_more_than_the_features_of_arm(target: Target) -> None:
    tvm = pytest.importorskip("tvm")
    from tvm.target import codegen

    used = set(map(str, codegen.llvm_get_cpu_features(tvm.target.Target(target.tvm))))
    levels = {name for name in used if name.startswith("v8")}
    assert levels == {"v8a", "v8.1a", "v8.2a"}
    allowed = {ARM_LLVM_NAMES[name] for name in target.features}
    assert allowed <= used
    assert used - levels - ARM_ONLY_ON_REQUEST - ARM_TUNING == allowed


def test_targets_load_neither_torch_nor_tvm() -> None:
    code = "import sys, targets; print(sorted({'torch', 'tvm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
