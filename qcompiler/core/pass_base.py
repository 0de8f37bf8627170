"""What a pass is: a frozen set of options and one function that rewrites a program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qcompiler.core.program import Program
from qcompiler.core.progress import NO_PROGRESS, Progress
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target


@dataclass(kw_only=True)
class PassContext:
    """What a pass may need from elsewhere; wired by `qcompiler.api`."""

    target: Target
    progress: Progress = NO_PROGRESS
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, name: str, text: str) -> None:
        """Record what a pass did or declined to do, for the report."""
        self.notes.setdefault(name, []).append(text)


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """One step of a pipeline; its fields are its options and it has no other state.

    `accepts` are the stages it can start from and `yields` the stage it leaves (None: the same).
    `needs` are facts it reads; `keeps` are facts that stay true after it (a measuring pass keeps
    all). A pass changes the program in place; running the same pass on the same program gives the
    same result.
    """

    name: ClassVar[str]
    accepts: ClassVar[frozenset[Stage]]
    yields: ClassVar[Stage | None] = None
    needs: ClassVar[frozenset[type[Any]]] = frozenset()
    adds: ClassVar[frozenset[type[Any]]] = frozenset()
    keeps: ClassVar[frozenset[type[Any]] | None] = frozenset()

    @abstractmethod
    def run(self, program: Program, context: PassContext) -> None:
        """Rewrite `program`."""
