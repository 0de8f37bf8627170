"""What every pass has: options that cannot change, notes, and sensible defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest

from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.progress import NO_PROGRESS
from qcompiler.core.stage import Stage
from targets import TARGETS


@dataclass(frozen=True, kw_only=True)
class Rename(Pass):
    name: ClassVar[str] = "rename"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})

    prefix: str = ""

    def run(self, program: Program, context: PassContext) -> None:
        context.note(self.name, self.prefix)


def test_a_pass_has_its_options_and_no_other_state() -> None:
    step = Rename(prefix="a")
    assert step == Rename(prefix="a") != Rename(prefix="b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.prefix = "b"  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Rename("a")  # type: ignore[misc]


def test_a_pass_keeps_its_stage_and_no_facts_unless_it_says_so() -> None:
    assert Rename.yields is None
    assert Rename.needs == Rename.adds == Rename.keeps == frozenset()


def test_a_pass_must_do_something() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nothing(Pass):
        name: ClassVar[str] = "nothing"
        accepts: ClassVar[frozenset[Stage]] = frozenset()

    with pytest.raises(TypeError, match="abstract"):
        Nothing()  # type: ignore[abstract]


def test_notes_are_gathered_by_pass() -> None:
    context = PassContext(target=TARGETS[0])
    assert context.progress is NO_PROGRESS
    context.note("a", "one")
    context.note("b", "two")
    context.note("a", "three")
    assert context.notes == {"a": ["one", "three"], "b": ["two"]}
