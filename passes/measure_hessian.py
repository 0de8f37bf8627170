"""Measure the second moments of what every product reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from passes.activations import Activations
from passes.moments import Moment, moments
from qcompiler.core.errors import ConfigError
from qcompiler.core.facts import Hessians
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage


@dataclass(frozen=True, kw_only=True)
class MeasureHessian(Pass):
    """Sum x xᵀ over the inputs x of every product on calibration samples, in the float model.

    The blocks are run one after the other, so that one block's weights are in memory at a time.
    `samples` limits how many samples are run (all, if left out); `precision` is what sums are made
    in. The matrices are float32 and stay in memory as far as the context's `max_ram` allows, the
    others in files until the program ends.
    """

    name: ClassVar[str] = "measure-hessian"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED})
    adds: ClassVar[frozenset[type[Any]]] = frozenset({Hessians})
    keeps: ClassVar[frozenset[type[Any]] | None] = None

    samples: int | None = None
    precision: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"samples = {self.samples} measures nothing; use 1 or more")

    @property
    def calibrates(self) -> bool:
        return True

    def run(self, program: Program, context: PassContext) -> None:
        calibration = context.samples(self.name, self.samples)
        # What is live before and after a segment, and the matrices.
        budget = None if context.max_ram is None else context.max_ram // 3
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        store = _MatrixStore(budget, context.work)
        inputs: dict[str, str] = {}
        tokens: dict[str, int] = {}
        walk = moments(
            program, calibration.samples, budget=budget, dtype=dtype, progress=context.progress
        )
        for found in walk:
            for value, moment in found.items():
                for operator in moment.operators:
                    name, whole = value, moment
                    if operator in inputs:  # one weight, used once more on other inputs
                        before = inputs[operator]
                        name = f"{before}+{value}"
                        whole = Moment(store[before].to(dtype), tokens[before]).merge(moment)
                    inputs[operator] = name
                    if name not in tokens:
                        store.put(name, whole.matrix.to(torch.float32))
                        tokens[name] = whole.tokens
        program.facts[Hessians] = Hessians(inputs=inputs, matrices=store, tokens=tokens)
        context.record(self.name, "tokens", max(tokens.values(), default=0))
        context.record(self.name, "precision", self.precision)


class _MatrixStore(Mapping[str, torch.Tensor]):
    """Matrices by name: in memory as far as a budget allows, the others in files."""

    def __init__(self, budget: int | None, scratch: Path | None) -> None:
        self._kept = Activations(budget=budget, scratch=scratch)
        self._places: dict[str, int] = {}

    def put(self, name: str, matrix: torch.Tensor) -> None:
        self._places[name] = len(self._kept)
        self._kept.append({"matrix": matrix})

    def __getitem__(self, name: str) -> torch.Tensor:
        matrix = self._kept[self._places[name]]["matrix"]
        assert isinstance(matrix, torch.Tensor)
        return matrix

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
