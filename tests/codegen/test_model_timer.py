"""A whole model is timed without weights, and once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codegen.model_timer import MachineModelTimer
from passes.canonicalize import Canonicalize
from passes.hollow import compiled_form
from passes.quantizable import quantizable
from qcompiler.core.formats import QuantScheme
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.frontend import capture
from qcompiler.runtime.step import Step
from targets import find
from tests.families import tiny_model

pytestmark = [pytest.mark.tvm, pytest.mark.slow]


@pytest.fixture
def hollow() -> Callable[[str], Program]:
    """Return a function that gives what would be compiled of a small model in one scheme."""
    program = capture(tiny_model("llama"))
    Pipeline((Canonicalize(),)).run(program, PassContext(target=find("native")))

    def make(scheme: str) -> Program:
        plan = dict.fromkeys(
            (w.operator for w in quantizable(program).values()), QuantScheme.parse(scheme)
        )
        return compiled_form(program, plan, find("native"))

    return make


def test_a_model_is_timed_once_for_each_plan(
    hollow: Callable[[str], Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path))
    timer = MachineModelTimer(find("native"), lambda: 1, Step)
    first = timer.model_seconds(hollow("w8a8g32"), 16)
    assert 0 < first[0] < 1
    assert 0 < first[1] < 1
    assert len(list(tmp_path.rglob("models/*.json"))) == 1
    monkeypatch.setattr("codegen.timing.machine_is_busy", lambda: True)
    measured: list[int] = []

    def measure(_: MachineModelTimer, __: Program, prompt_tokens: int) -> list[float]:
        measured.append(prompt_tokens)
        return [1.0, 2.0]

    monkeypatch.setattr(MachineModelTimer, "_measure", measure)
    assert timer.model_seconds(hollow("w8a8g32"), 16) == first
    assert timer.model_seconds(hollow("w8a8g32"), 24) == (1.0, 2.0)
    assert timer.model_seconds(hollow("w4a8g32"), 24) == (1.0, 2.0)
    assert measured == [24, 24]
