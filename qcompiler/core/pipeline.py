"""Passes in order: checked when they are put together, run and verified one after the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from qcompiler.core.blocks import find_blocks
from qcompiler.core.errors import ConfigError, UsageError
from qcompiler.core.instruments import Instrument
from qcompiler.core.options import build_pass, pass_table, spec
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.saved_facts import run_or_recall
from qcompiler.core.stage import Stage
from qcompiler.core.verify import verify

__all__ = ["Pipeline", "build_pass", "pass_table", "spec"]


@dataclass(frozen=True)
class Pipeline:
    """Passes that can follow one another, from a program at the stage `start` with such `facts`.

    Raises:
        ConfigError: a pass does not accept what comes before it leaves, or lacks a fact it needs.
    """

    steps: tuple[Pass, ...]
    start: Stage = Stage.FLOAT
    facts: frozenset[type[Any]] = frozenset()

    def __post_init__(self) -> None:
        _check_order(self.steps, self.start)
        _check_facts(self.steps, self.facts)

    @property
    def yields(self) -> Stage:
        """The stage that a program has come to at the end."""
        changes = [step.yields for step in self.steps if step.yields is not None]
        return changes[-1] if changes else self.start

    def spec(self) -> list[dict[str, Any]]:
        """Return the steps as a pipeline file would list them."""
        return [spec(step) for step in self.steps]

    def run(
        self, program: Program, context: PassContext, instruments: Sequence[Instrument] = ()
    ) -> None:
        """Run every pass on `program`, in place, inside the instruments, the first outermost.

        After each pass the stage is set, facts that it does not keep are dropped, the blocks are
        found again and the program is verified.

        Raises:
            QCompilerError: what a pass says of a program that it cannot work on.
        """
        if program.stage is not self.start:
            raise UsageError(
                f"the pipeline starts from a {self.start} program, but this one is {program.stage}"
            )
        slow = next((n for n, step in enumerate(self.steps) if step.calibrates), None)
        for number, step in enumerate(self.steps):
            if number == slow:
                for later in self.steps[number:]:
                    later.check_program(program, context)
            with ExitStack() as stack:
                stack.enter_context(context.progress.step(step.name))
                for instrument in instruments:
                    stack.enter_context(instrument.around(step, program))
                _run_step(step, program, context)


def _run_step(step: Pass, program: Program, context: PassContext) -> None:
    if step.saved and context.reuse:
        run_or_recall(step, program, context)
    else:
        step.run(program, context)
    if step.yields is not None:
        program.stage = step.yields
    lacking = [fact.__name__ for fact in step.adds if fact not in program.facts]
    if lacking:
        raise TypeError(f"pass '{step.name}' says that it adds {lacking[0]}, but it did not")
    if step.keeps is not None:
        kept = step.keeps | step.adds
        program.facts = {kind: fact for kind, fact in program.facts.items() if kind in kept}
    program.blocks = find_blocks(program.graph)
    verify(program)


def _check_order(steps: tuple[Pass, ...], start: Stage) -> None:
    stage, reason = start, f"a pipeline starts with a {start} one"
    for number, step in enumerate(steps, start=1):
        if stage not in step.accepts:
            accepted = _either(step.accepts)
            raise ConfigError(
                f"step {number} '{step.name}' accepts a {accepted} program, but {reason}"
            )
        if step.yields is not None:
            stage = step.yields
            reason = f"step {number} '{step.name}' leaves it {stage}"


def _check_facts(steps: tuple[Pass, ...], facts: frozenset[type[Any]]) -> None:
    known: set[type[Any]] = set(facts)
    dropped: dict[type[Any], str] = {}
    for number, step in enumerate(steps, start=1):
        this = f"step {number} '{step.name}'"
        for fact in sorted(step.needs - known, key=lambda kind: kind.__name__):
            why = (
                f"which {dropped[fact]} drops" if fact in dropped else "which no earlier step adds"
            )
            raise ConfigError(f"{this} needs {fact.__name__}, {why}")
        try:
            step.check_after(steps[: number - 1])
        except ConfigError as error:
            raise ConfigError(f"{this}: {error}") from None
        if step.keeps is not None:
            dropped |= {fact: this for fact in known - step.keeps}
            known &= step.keeps
        known |= step.adds


def _either(stages: Collection[Stage]) -> str:
    """List stages in the order of the road.

    >>> _either({Stage.QUANTIZED, Stage.FLOAT})
    'float or quantized'
    """
    return " or ".join(str(stage) for stage in Stage if stage in stages)
