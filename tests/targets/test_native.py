"""`native` is the best target that a machine's feature list allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.core.errors import UnsupportedError
from targets import PROCESSORS, TARGETS, best, cpu_features, find
from targets.aarch64_dotprod import AARCH64_DOTPROD
from targets.aarch64_i8mm import AARCH64_I8MM
from targets.x86_64_v3 import X86_64_V3
from targets.x86_64_v4_vnni import X86_64_V4_VNNI


def test_every_target_is_native_to_a_machine_with_just_its_features() -> None:
    for target in PROCESSORS:
        assert best(TARGETS, target.features) is target


def test_one_missing_feature_takes_the_next_target() -> None:
    assert best(TARGETS, X86_64_V4_VNNI.features - {"avx512_vnni"}) is X86_64_V3


def test_a_raspberry_pi_is_native_to_byte_products(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm"
    entry = f"BogoMIPS\t: 108.00\nFeatures\t: {features} lrcpc dcpop asimddp\n\n"
    cpuinfo.write_text(f"processor\t: 0\n{entry}processor\t: 1\n{entry}")
    assert best(TARGETS, cpu_features(cpuinfo)) is AARCH64_DOTPROD


def test_a_newer_processor_is_native_to_products_of_byte_matrices() -> None:
    # Graviton 3, of a longer list.
    more = {"sve", "bf16", "i8mm", "svei8mm", "jscvt", "fcma", "uscat", "dgh", "rng"}
    assert best(TARGETS, AARCH64_DOTPROD.features | more) is AARCH64_I8MM


def test_of_processors_that_differ_all_must_fit(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    small = " ".join(sorted(AARCH64_DOTPROD.features))
    cpuinfo.write_text(f"Features\t: {small} i8mm\n\nFeatures\t: {small}\n")
    assert best(TARGETS, cpu_features(cpuinfo)) is AARCH64_DOTPROD


@pytest.mark.parametrize(
    ("machine", "has", "message"),
    [
        ("aarch64", {"fp", "asimd"}, "this aarch64 machine .* 'aarch64-dotprod', needs asimddp, "),
        ("arm64", AARCH64_DOTPROD.features - {"asimddp"}, "'aarch64-dotprod', needs asimddp; "),
        ("riscv64", set(), "this riscv64 machine runs none of the targets; .*name its target: "),
    ],
)
def test_what_is_lacking_is_said_of_the_same_architecture(
    machine: str, has: set[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(UnsupportedError, match=message):
        best(TARGETS, frozenset(has))


def test_a_machine_that_fits_none_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(UnsupportedError, match=r"'x86-64-v3', needs avx2, fma; .*x86-64-v4-vnni"):
        best(TARGETS, X86_64_V3.features - {"avx2", "fma"})


def test_features_are_what_all_processors_share(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nflags\t\t: fpu avx2 amx_tile\nbugs\t\t: spectre_v1\n\n"
        "processor\t: 1\nflags\t\t: fpu avx2\n"
    )
    assert cpu_features(cpuinfo) == {"fpu", "avx2"}


def test_arm_calls_them_features(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert cpu_features(cpuinfo) == {"fp", "asimd", "asimddp"}


def test_no_list_means_no_features(tmp_path: Path) -> None:
    assert cpu_features(tmp_path / "missing") == frozenset()
    (tmp_path / "empty").write_text("processor\t: 0\n")
    assert cpu_features(tmp_path / "empty") == frozenset()


@pytest.mark.isa(*X86_64_V3.features)
def test_this_machine_runs_what_find_calls_native() -> None:
    assert find("native").features <= cpu_features()
