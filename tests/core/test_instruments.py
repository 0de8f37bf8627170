"""Instruments: what each sees of a pass, and that none changes anything."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import UsageError, VerifyError
from qcompiler.core.formats import QuantScheme
from qcompiler.core.instruments import CheckShapes, Drift, DumpIR, Timer, dump, probe_inputs
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage
from targets import TARGETS

ANY = frozenset(Stage)


@dataclass(frozen=True, kw_only=True)
class Idle(Pass):
    name: ClassVar[str] = "idle"
    accepts: ClassVar[frozenset[Stage]] = ANY

    def run(self, program: Program, context: PassContext) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Scale(Pass):
    name: ClassVar[str] = "scale"
    accepts: ClassVar[frozenset[Stage]] = ANY

    factor: float = 1.01

    def run(self, program: Program, context: PassContext) -> None:
        program.weights.put("fc.weight", program.weights.tensor("fc.weight") * self.factor)


@dataclass(frozen=True, kw_only=True)
class PlanAll(Pass):
    name: ClassVar[str] = "plan-all"
    accepts: ClassVar[frozenset[Stage]] = ANY

    def run(self, program: Program, context: PassContext) -> None:
        program.plan["fc"] = QuantScheme.parse("w8a8")


@dataclass(frozen=True, kw_only=True)
class Misshape(Pass):
    name: ClassVar[str] = "misshape"
    accepts: ClassVar[frozenset[Stage]] = ANY

    def run(self, program: Program, context: PassContext) -> None:
        (node,) = [n for n in program.graph.nodes if n.op == "call_function"]
        node.meta["val"] = node.meta["val"].new_empty((1, 3))


@pytest.fixture
def program() -> Program:
    build = ProgramBuilder({"fc.weight": torch.eye(8)})
    x = build.input("x", (1, "s", 8))
    return build.finish(build.call(ops.linear, x, build.weight("fc.weight")))


def run(program: Program, steps: tuple[Pass, ...], *instruments: object) -> None:
    context = PassContext(target=TARGETS[0])
    Pipeline(steps, start=program.stage).run(program, context, instruments)  # type: ignore[arg-type]


def test_the_timer_has_every_pass_in_order(program: Program) -> None:
    timer = Timer()
    run(program, (Idle(), Scale(), Idle()), timer)
    assert [name for name, _ in timer.seconds] == ["idle", "scale", "idle"]
    assert all(0 < seconds < 60 for _, seconds in timer.seconds)


def test_the_dump_has_a_file_for_every_pass_that_changed_something(
    program: Program, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "dump"
    run(program, (Idle(), PlanAll(), PlanAll(), Idle()), DumpIR(folder))
    assert [path.name for path in folder.iterdir()] == ["001-plan-all.txt"]
    text = (folder / "001-plan-all.txt").read_text()
    assert text == dump(program)
    assert text.endswith("return %0\nplan fc: w8a8\n")


def test_an_earlier_dump_is_replaced(program: Program, tmp_path: Path) -> None:
    (tmp_path / "007-old-pass.txt").write_text("old")
    run(program, (PlanAll(),), DumpIR(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["000-plan-all.txt"]


def test_a_dump_touches_nothing_that_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "000-old.txt").write_text("old")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"it holds thesis\.txt, which is no dump; name a folder"):
        DumpIR(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000-old.txt", "thesis.txt"]
    with pytest.raises(UsageError, match="it is a file"):
        DumpIR(tmp_path / "thesis.txt")


def test_drift_is_measured_from_the_program_at_first(program: Program) -> None:
    drift = Drift(probe_inputs(torch.randn(1, 5, 8)))
    run(program, (Idle(), Scale(), Scale(factor=1 / 1.01)), drift)
    assert [name for name, _ in drift.decibels] == ["idle", "scale", "scale"]
    first, second, third = (decibels for _, decibels in drift.decibels)
    assert first == math.inf
    assert second == pytest.approx(40, abs=0.01)
    assert third > 120


def test_wrong_shapes_are_found(program: Program) -> None:
    run(program, (Idle(),), CheckShapes())
    with pytest.raises(
        VerifyError,
        match=r"^linear says it is torch.float32\[1, 3\], but its operator gives ",
    ):
        run(program, (Misshape(),), CheckShapes())
