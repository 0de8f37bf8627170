"""What a pass is: a frozen set of options and one function that rewrites a program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qcompiler.core.calibration import Calibration
from qcompiler.core.cost import KernelTimer, ModelTimer, PackedBytes, unpadded_bytes
from qcompiler.core.errors import UsageError
from qcompiler.core.program import Program
from qcompiler.core.progress import NO_PROGRESS, Progress
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target


@dataclass(kw_only=True)
class PassContext:
    """What a pass may need from elsewhere; wired by `qcompiler.api`.

    `calibration` is there when a step of the pipeline says that it `calibrates`. `max_ram` bounds,
    in bytes, the activations kept in memory; more goes to files. `work` is a folder in which long
    work is kept from one run to the next, so that it can go on where it was stopped; None: nothing
    is kept. The timers are there where this machine can run the target's code. `records` are what
    passes measured, as JSON, for the report; `seconds` what they measured with a clock, which is no
    part of the same bytes for the same input. `reuse` allows what was measured in an earlier run,
    in the same circumstances, to be taken from the user's cache.
    """

    target: Target
    progress: Progress = NO_PROGRESS
    calibration: Calibration | None = None
    kernel_timer: KernelTimer | None = None
    model_timer: ModelTimer | None = None
    packed_bytes: PackedBytes = unpadded_bytes
    max_ram: int | None = None
    work: Path | None = None
    reuse: bool = False
    notes: dict[str, list[str]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, name: str, text: str) -> None:
        """Record what a pass did or declined to do, for the report."""
        self.notes.setdefault(name, []).append(text)

    def record(self, name: str, key: str, value: Any) -> None:
        """Keep what pass `name` measured under `key`, as JSON can say it, for the report."""
        self.records.setdefault(name, {})[key] = value

    def record_seconds(self, name: str, key: str, value: Any) -> None:
        """Keep what pass `name` measured with a clock under `key`, or what follows from that."""
        self.seconds.setdefault(name, {})[key] = value

    def samples(self, name: str, count: int | None = None) -> Calibration:
        """Return the calibration samples, the first `count` of them, for pass `name`.

        Raises:
            UsageError: there are none.
        """
        if self.calibration is None or not len(self.calibration):
            raise UsageError(f"pass '{name}' runs the model on samples, and none were given")
        return self.calibration if count is None else self.calibration.first(count)


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """One step of a pipeline; its fields are its options and it has no other state.

    `accepts` are the stages it can start from and `yields` the stage it leaves (None: the same).
    `needs` are facts it reads; `keeps` are facts that stay true after it (a measuring pass keeps
    all). `saved` is said of a measuring pass whose facts, which JSON can say, are worth keeping for
    a later run. `sample_sizes` are how many samples of text it wants, and of how many tokens, if
    that is not usual. A pass changes the program in place; running the same pass on the same
    program gives the same result.
    """

    name: ClassVar[str]
    accepts: ClassVar[frozenset[Stage]]
    yields: ClassVar[Stage | None] = None
    needs: ClassVar[frozenset[type[Any]]] = frozenset()
    adds: ClassVar[frozenset[type[Any]]] = frozenset()
    keeps: ClassVar[frozenset[type[Any]] | None] = frozenset()
    saved: ClassVar[bool] = False
    sample_sizes: ClassVar[tuple[int, int] | None] = None

    @property
    def calibrates(self) -> bool:
        """Whether the pass, with these options, runs the model on calibration samples."""
        return False

    def check_after(self, earlier: Sequence[Pass]) -> None:  # noqa: B027 most have nothing to say
        """Refuse options that the steps before this one cannot serve; a pipeline asks for it.

        Raises:
            ConfigError: what this pass is to do, they will not have prepared.
        """

    def check_program(self, program: Program, context: PassContext) -> None:  # noqa: B027
        """Refuse a program that this pass, which is still to come, will not be able to serve.

        A pipeline asks for it before the first step that calibrates, which may take long.

        Raises:
            ConfigError: the options do not suit this program.
        """

    @abstractmethod
    def run(self, program: Program, context: PassContext) -> None:
        """Rewrite `program`."""
