"""Quantise planned weights by rounding to nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from passes.input_scales import check_scales
from passes.moments import moments
from passes.observe_activations import check_observed
from passes.planned import PlannedWeight, planned_weights, put_codes
from passes.rounding import round_to_nearest
from passes.scale_search import round_searched
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program, operator_name
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage

Search = Literal["none", "weight", "activation"]


@dataclass(frozen=True, kw_only=True)
class QuantizeRtn(Pass):
    """Round every planned weight to its nearest codes.

    `range` says how symmetric codes are used: "full" gives the entry of largest magnitude the one
    code more that there is on the negative side, whatever its sign; "restricted" leaves that code
    out. Relative weight error of int4 in groups of 64: .101 and .115 (all-MiniLM-L6-v2), .098 and
    .113 (SmolLM2-135M); of int8 they are alike.

    `search` shrinks each group's range where that errs less, in the full range: by the error of the
    weight, or weighted by the mean square of each product's inputs in the float model, which takes
    calibration samples; tables, and products that share their weight, count all columns alike.
    """

    name: ClassVar[str] = "quantize-rtn"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.PLANNED})
    yields: ClassVar[Stage] = Stage.QUANTIZED

    range: Literal["full", "restricted"] = "full"
    search: Search = "none"

    def __post_init__(self) -> None:
        if self.search != "none" and self.range == "restricted":
            raise ConfigError(
                "the search uses the full range of codes; leave out range = 'restricted', or search"
            )

    @property
    def calibrates(self) -> bool:
        return self.search == "activation"

    def check_after(self, earlier: Sequence[Pass]) -> None:
        check_observed(earlier)

    def run(self, program: Program, context: PassContext) -> None:
        check_scales(program)
        planned = planned_weights(program)
        importance = self._importance(program, context) if self.calibrates else {}
        errors: dict[str, dict[str, float]] = {}
        for done, weight in enumerate(planned.values(), start=1):
            inputs = importance.get(operator_name(weight.entry))
            value = program.weights.tensor(weight.entry)
            codes = self._quantize(weight, value, inputs if weight.is_product_only else None)
            errors[operator_name(weight.entry)] = {"after": _relative_error(codes, value)}
            put_codes(program, planned, {weight.entry: codes})
            context.progress.advance(done, len(planned))
        context.record(self.name, "measure", "relative weight error")
        context.record(self.name, "operators", errors)

    def _importance(self, program: Program, context: PassContext) -> dict[str, torch.Tensor]:
        """Return the mean squares [k] of what products read, by operator."""
        samples = context.samples(self.name).samples
        budget = None if context.max_ram is None else context.max_ram // 2
        return {
            operator: moment.matrix.diagonal().clone()
            for found in moments(program, samples, budget=budget)
            for moment in found.values()
            for operator in moment.operators
        }

    def _quantize(
        self, weight: PlannedWeight, value: torch.Tensor, importance: torch.Tensor | None
    ) -> QuantizedTensor:
        form = weight.scheme.weight
        try:
            if self.search == "none":
                return round_to_nearest(value, form, span=self.range)
            return round_searched(value, form, importance=importance)
        except QCompilerError as error:
            raise QCompilerError(
                f"'{weight.entry}' cannot be quantised: {error}; leave it float with "
                f"{{pattern = '{operator_name(weight.entry)}', scheme = 'float'}}"
            ) from None


def _relative_error(codes: QuantizedTensor, weight: torch.Tensor) -> float:
    """Return ‖Q(W) − W‖ / ‖W‖, nothing for a weight of zeros."""
    size = float(weight.norm())
    return float((codes.dequantize() - weight).norm()) / size if size else 0.0
