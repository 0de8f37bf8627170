"""Order and facts are checked when a pipeline is built; running one sets stages and verifies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.errors import ConfigError, UsageError, VerifyError
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.progress import NoProgress
from qcompiler.core.stage import Stage
from targets import TARGETS


class Heat:
    """A fact."""


class Weight:
    """Another fact."""


@dataclass(frozen=True, kw_only=True)
class Measure(Pass):
    name: ClassVar[str] = "measure-heat"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED})
    adds: ClassVar[frozenset[type[Any]]] = frozenset({Heat})
    keeps: ClassVar[frozenset[type[Any]] | None] = None

    def run(self, program: Program, context: PassContext) -> None:
        program.facts[Heat] = Heat()


@dataclass(frozen=True, kw_only=True)
class Decide(Pass):
    name: ClassVar[str] = "decide"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    yields: ClassVar[Stage] = Stage.PLANNED
    needs: ClassVar[frozenset[type[Any]]] = frozenset({Heat})

    places: int = 2

    def run(self, program: Program, context: PassContext) -> None:
        assert Heat in program.facts
        context.note(self.name, "decided")


@dataclass(frozen=True, kw_only=True)
class Rewrite(Pass):
    name: ClassVar[str] = "rewrite"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED})
    keeps: ClassVar[frozenset[type[Any]] | None] = frozenset({Weight})

    def run(self, program: Program, context: PassContext) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Break(Pass):
    name: ClassVar[str] = "break"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})

    def run(self, program: Program, context: PassContext) -> None:
        next(n for n in program.graph.nodes if n.op == "call_function").meta.clear()


@dataclass(frozen=True, kw_only=True)
class Lie(Pass):
    name: ClassVar[str] = "lie"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})
    adds: ClassVar[frozenset[type[Any]]] = frozenset({Weight})

    def run(self, program: Program, context: PassContext) -> None:
        return None


@pytest.fixture
def program() -> Program:
    build = ProgramBuilder({"fc.weight": torch.eye(8)})
    x = build.input("x", (1, "s", 8))
    return build.finish(build.call(ops.linear, x, build.weight("fc.weight")))


@pytest.fixture
def context() -> PassContext:
    return PassContext(target=TARGETS[0])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            (Measure(), Decide(), Decide()),
            r"^step 3 'decide' accepts a float program, but step 2 'decide' leaves it planned$",
        ),
        (
            (Decide(),),
            r"^step 1 'decide' needs Heat, which no earlier step adds$",
        ),
        (
            (Measure(), Rewrite(), Decide()),
            r"^step 3 'decide' needs Heat, which step 2 'rewrite' drops$",
        ),
    ],
)
def test_what_cannot_work_cannot_be_built(steps: tuple[Pass, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pipeline(steps)


def test_the_first_step_must_accept_where_the_pipeline_starts() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^step 1 'rewrite' accepts a float or planned program, but a pipeline starts with "
        "a legal one$",
    ):
        Pipeline((Rewrite(),), start=Stage.LEGAL)


def test_a_pipeline_says_where_it_ends() -> None:
    assert Pipeline(()).yields is Stage.FLOAT
    assert Pipeline((Measure(), Decide(), Rewrite())).yields is Stage.PLANNED
    assert Pipeline((Rewrite(),), start=Stage.PLANNED).yields is Stage.PLANNED


def test_running_sets_the_stage_and_drops_facts(program: Program, context: PassContext) -> None:
    seen = []

    class Watch:
        @contextmanager
        def around(self, step: Pass, program: Program) -> Iterator[None]:
            before = program.stage
            yield
            seen.append((step.name, before, program.stage, set(program.facts)))

    Pipeline((Measure(), Decide(places=3))).run(program, context, [Watch()])
    assert seen == [
        ("measure-heat", Stage.FLOAT, Stage.FLOAT, {Heat}),
        ("decide", Stage.FLOAT, Stage.PLANNED, set()),
    ]
    assert context.notes == {"decide": ["decided"]}


def test_a_kept_fact_stays(program: Program, context: PassContext) -> None:
    program.facts[Weight] = Weight()
    Pipeline((Measure(), Rewrite())).run(program, context)
    assert set(program.facts) == {Weight}


def test_every_pass_is_announced_and_ended_even_if_it_fails(program: Program) -> None:
    events = []

    class Watcher(NoProgress):
        def step(self, name: str) -> AbstractContextManager[None]:
            @contextmanager
            def announce() -> Iterator[None]:
                events.append(f"{name} begins")
                try:
                    yield
                finally:
                    events.append(f"{name} ends")

            return announce()

    context = PassContext(target=TARGETS[0], progress=Watcher())
    with pytest.raises(VerifyError, match=r"linear has no shape \(meta\['val'\]\)"):
        Pipeline((Measure(), Break())).run(program, context)
    assert events == ["measure-heat begins", "measure-heat ends", "break begins", "break ends"]


def test_a_pass_that_breaks_its_word_is_a_defect(program: Program, context: PassContext) -> None:
    with pytest.raises(TypeError, match="pass 'lie' says that it adds Weight, but it did not"):
        Pipeline((Lie(),)).run(program, context)


def test_a_program_of_another_stage_is_refused(program: Program, context: PassContext) -> None:
    program.stage = Stage.QUANTIZED
    with pytest.raises(UsageError, match="starts from a float program, but this one is quantized"):
        Pipeline((Measure(),)).run(program, context)


def test_the_spec_lists_steps_without_defaults() -> None:
    assert Pipeline((Measure(), Decide(), Decide(places=3))[:2]).spec() == [
        {"name": "measure-heat"},
        {"name": "decide"},
    ]
    assert Pipeline((Measure(), Decide(places=3))).spec()[1] == {"name": "decide", "places": 3}
