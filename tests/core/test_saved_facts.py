"""Facts come back in the same circumstances, and only in these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.calibration import Calibration
from qcompiler.core.facts import Sensitivity
from qcompiler.core.ops import linear
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage
from targets import TARGETS

runs: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Measure(Pass):
    """Count how often it is run."""

    name: ClassVar[str] = "measure"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    adds: ClassVar[frozenset[type[Any]]] = frozenset({Sensitivity})
    keeps: ClassVar[frozenset[type[Any]] | None] = None
    saved: ClassVar[bool] = True

    option: int = 1

    @property
    def calibrates(self) -> bool:
        return True

    def run(self, program: Program, context: PassContext) -> None:
        runs.append("run")
        loss = {"fc": {"w8a8": float(program.weights.tensor("fc.weight").sum())}}
        program.facts[Sensitivity] = Sensitivity(metric="sum", loss=loss)
        context.record(self.name, "loss", loss)
        context.note(self.name, "measured")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path))
    runs.clear()
    return tmp_path


def measure(
    *, option: int = 1, fill: float = 1.0, token: int = 3, reuse: bool = True
) -> tuple[Program, PassContext]:
    build = ProgramBuilder({"fc.weight": torch.full((4, 8), fill)})
    x = build.input("x", ("t", 8))
    program = build.finish(build.call(linear, x, build.weight("fc.weight")))
    samples = Calibration(samples=((torch.tensor([token]),),), source="here")
    context = PassContext(target=TARGETS[0], calibration=samples, reuse=reuse)
    Pipeline((Measure(option=option),)).run(program, context)
    return program, context


def test_what_was_measured_comes_back_with_records_and_notes() -> None:
    first, context = measure()
    second, again = measure()
    assert runs == ["run"]
    assert second.facts[Sensitivity] == first.facts[Sensitivity]
    assert again.records == context.records
    assert again.notes == context.notes


@pytest.mark.parametrize("change", [{"option": 2}, {"fill": 2.0}, {"token": 4}])
def test_another_option_weight_or_sample_is_measured(change: dict[str, Any]) -> None:
    measure()
    program, _ = measure(**change)
    assert len(runs) == 2
    assert program.facts[Sensitivity].loss["fc"]["w8a8"] == 32 * change.get("fill", 1.0)


def test_nothing_is_kept_unless_it_is_allowed(cache: Path) -> None:
    measure(reuse=False)
    assert not list(cache.iterdir())
    measure()
    measure(reuse=False)
    assert len(runs) == 3


def test_a_damaged_cache_is_measured_again(cache: Path) -> None:
    measure()
    for file in cache.rglob("*.json"):
        file.write_text("{")
    measure()
    assert len(runs) == 2
