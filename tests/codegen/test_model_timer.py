"""A whole model is timed without weights, and once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    both = [hollow("w8a8g32"), hollow("w4a8g32")]
    found = timer.model_seconds(both, 16)
    assert len(found) == 2
    assert all(0 < seconds < 1 for pair in found for seconds in pair)
    assert len(list(tmp_path.rglob("models/*.json"))) == 1
    monkeypatch.setattr("codegen.timing.machine_is_busy", lambda: True)
    measured: list[int] = []

    def measure(
        _: MachineModelTimer, programs: Sequence[Program], prompt_tokens: int
    ) -> list[float]:
        measured.append(prompt_tokens)
        return [1.0, 2.0] * len(programs)

    monkeypatch.setattr(MachineModelTimer, "_measure", measure)
    assert timer.model_seconds(both, 16) == found
    assert timer.model_seconds(both, 24) == [(1.0, 2.0), (1.0, 2.0)]
    assert timer.model_seconds(both[1:], 24) == [(1.0, 2.0)]
    assert measured == [24, 24]
