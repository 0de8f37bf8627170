"""Quantise planned weights by GPTQ, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from passes.block_loop import quantize_blocks
from passes.gptq import GptqSettings, Order, ScaleSearch, ScaleTime
from passes.gptq_block import GptqOfBlocks, note_operators
from passes.input_scales import check_scales
from passes.observe_activations import check_observed
from qcompiler.core.errors import ConfigError
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage


@dataclass(frozen=True, kw_only=True)
class QuantizeGptq(Pass):
    """Round weights column by column, correcting what is left for the errors made (GPTQ).

    Blocks are taken in order, and within one the products in the order of their inputs, each with
    the inputs that all that is quantised before it gives, quantised themselves as they will be.
    `order`, `scales`, `search`, `damping`, `block`, `sweeps` and `precision` are those of
    `passes.gptq.GptqSettings`. `correction` is the share of what inputs lost, in the blocks and
    products before, that a weight is to make up for (`passes.drift_correction`); with 0 the float
    model is not run beside the other, which takes half the time. `accumulate` is what second
    moments of inputs are summed in. Weights that a table shares, or that two products read, are
    rounded at searched scales.
    """

    name: ClassVar[str] = "quantize-gptq"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.PLANNED})
    yields: ClassVar[Stage] = Stage.QUANTIZED

    order: Order = "group"
    scales: ScaleTime = "running"
    search: ScaleSearch = "hessian"
    damping: float = 0.05
    correction: float = 0.5
    block: int = 128
    sweeps: int = 2
    precision: Literal["float32", "float64"] = "float32"
    accumulate: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        _ = self.settings  # which checks them
        if not 0 <= self.correction <= 1:
            raise ConfigError(
                f"correction {self.correction} is not a share between 0 and 1; 0.5 is usual"
            )

    @property
    def calibrates(self) -> bool:
        return True

    def check_after(self, earlier: Sequence[Pass]) -> None:
        check_observed(earlier)

    def run(self, program: Program, context: PassContext) -> None:
        check_scales(program)
        quantizer = GptqOfBlocks(
            settings=self.settings,
            correction=self.correction,
            dtype=torch.float64 if self.accumulate == "float64" else torch.float32,
        )
        records = quantize_blocks(program, context, self, quantizer)
        operators = {name: found for record in records for name, found in record.items()}
        note_operators(context, self.name, operators, self.damping)

    @property
    def settings(self) -> GptqSettings:
        """How each weight's codes are found."""
        return GptqSettings(
            block=self.block,
            order=self.order,
            scales=self.scales,
            search=self.search,
            damping=self.damping,
            sweeps=self.sweeps,
            precision=self.precision,
        )
