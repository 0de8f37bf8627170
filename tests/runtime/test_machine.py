"""Which machine may run an artifact, and how many of its processors are worth using."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.core.artifact import TargetFacts
from qcompiler.core.errors import ArtifactError
from qcompiler.runtime.machine import (
    Machine,
    available_cpus,
    check_machine,
    cpu_quota,
    this_machine,
)

TARGET = TargetFacts(name="x86-64-v4-vnni", arch="x86_64", features=("avx2", "avx512_vnni"))


def test_machine_with_every_feature() -> None:
    check_machine(TARGET, Machine("x86_64", frozenset({"avx2", "avx512_vnni", "sse"})))


def test_machine_that_lacks_features_is_told_which() -> None:
    with pytest.raises(
        ArtifactError, match="for x86-64-v4-vnni, and this machine lacks avx2, avx512_vnni; compile"
    ):
        check_machine(TARGET, Machine("x86_64", frozenset({"sse"})))


def test_machine_of_another_architecture() -> None:
    with pytest.raises(ArtifactError, match=r"\(x86_64\), and this machine is aarch64; compile"):
        check_machine(TARGET, Machine("aarch64", frozenset({"avx2", "avx512_vnni"})))


def test_this_machine() -> None:
    machine = this_machine()
    assert machine.arch in {"x86_64", "aarch64", "riscv64", "ppc64le", "s390x"}
    if machine.arch == "x86_64":
        assert "sse2" in machine.features


def test_features_are_those_of_all_processors(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nflags\t\t: fpu avx2 avx512f\nvmx flags\t: ept\n\n"
        "processor\t: 1\nflags\t\t: fpu avx2\n"
    )
    assert this_machine(cpuinfo).features == {"fpu", "avx2"}


def test_features_of_arm(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert this_machine(cpuinfo).features == {"fp", "asimd", "asimddp"}


def test_unknown_features_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be read from .*; artifacts run on Linux only"):
        this_machine(tmp_path / "none")


@pytest.mark.parametrize(
    ("siblings", "cpus", "worthwhile"),
    [
        ({0: "0", 1: "1"}, [0, 1], 2),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1, 2, 3], 2),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 2, 1, 3], 2),
        ({3: "2-3", 5: "4-5"}, [3, 5], 2),  # as when the process is tied to some processors
        ({0: None, 1: None}, [0, 1], 2),  # as in some sandboxes
    ],
)
def test_one_thread_for_each_core(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    siblings: dict[int, str | None],
    cpus: list[int],
    worthwhile: int,
) -> None:
    for cpu, text in siblings.items():
        if text is not None:
            folder = tmp_path / f"cpu{cpu}" / "topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(f"{text}\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(siblings))
    monkeypatch.setattr("qcompiler.runtime.machine.cpu_quota", lambda: None)
    assert available_cpus(tmp_path) == (cpus, worthwhile)
    monkeypatch.setattr("qcompiler.runtime.machine.cpu_quota", lambda: 1)
    assert available_cpus(tmp_path) == (cpus, 1)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_quota_of_a_container(tmp_path: Path, files: dict[str, str], quota: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota
