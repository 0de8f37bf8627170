"""Quantise planned weights by GPTQ, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from passes.activations import Activations
from passes.block_loop import BlockResult, BlockRun, cannot_quantize, quantize_blocks
from passes.drift_correction import corrected_weight
from passes.gptq import GptqResult, GptqSettings, Order, ScaleSearch, ScaleTime, gptq
from passes.planned import PlannedWeight
from passes.scale_search import round_searched
from passes.segments import Segment, as_quantized
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.formats import TensorFormat
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program, weight_of
from qcompiler.core.qtensor import QuantizedTensor
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

    def run(self, program: Program, context: PassContext) -> None:
        dtype = torch.float64 if self.accumulate == "float64" else torch.float32
        quantizer = _Gptq(self.settings, dtype, self.correction, self.correction > 0)
        records = quantize_blocks(program, context, self, quantizer)
        operators = {name: found for record in records for name, found in record.items()}
        context.record(self.name, "measure", "relative squared output error")
        context.record(self.name, "operators", operators)
        for operator, found in operators.items():
            _note(context, operator, found, self.damping)

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


def _note(context: PassContext, operator: str, found: dict[str, Any], damping: float) -> None:
    """Say of an operator what did not go as asked."""
    name = QuantizeGptq.name
    if found["damping"] is None:
        context.note(name, f"{operator}: rounded to nearest, its Hessian is not positive definite")
    elif found["damping"] != damping:
        context.note(name, f"{operator}: damping raised to {found['damping']:g}")
    if found["dead_columns"]:
        context.note(name, f"{operator}: {found['dead_columns']} inputs were always zero")


@dataclass
class _Gptq:
    """GPTQ as the block loop calls it."""

    settings: GptqSettings
    dtype: torch.dtype
    correction: float
    float_chain: bool

    def round_weight(self, weight: torch.Tensor, form: TensorFormat) -> QuantizedTensor:
        return round_searched(weight, form)

    def quantize_block(self, run: BlockRun) -> BlockResult:
        codes: dict[str, QuantizedTensor] = {}
        record: dict[str, Any] = {}
        parts = run.segment.split()
        live = Activations(run.inputs, budget=run.budget)
        plain = None
        if run.float_inputs is not None:
            plain = Activations(run.float_inputs, budget=run.budget)
        steps = _Steps(run, 2 * len(parts) * len(live))
        for part in parts:
            for read in _inputs(run, part):
                moments = self._moments(read, live, plain, steps)
                for weight in read.weights:
                    found = self._quantize(run, weight, moments)
                    codes[weight.entry] = found.weight
                    record[weight.operator] = {
                        "before": found.error_before,
                        "after": found.error_after,
                        "damping": found.damping,
                        "dead_columns": found.dead,
                    }
            if run.index + 1 == run.count and part is parts[-1]:
                # Nobody reads what comes after the last product.
                return BlockResult(
                    codes, record, Activations(), None if plain is None else Activations()
                )
            weights, schemes = run.weights(codes), run.schemes(codes)
            for index, values in enumerate(live):
                live[index] = part.run(values, weights, schemes)
                steps.advance()
            if plain is not None:
                weights = run.weights()
                for index, values in enumerate(plain):
                    plain[index] = part.run(values, weights)
        return BlockResult(codes, record, live, plain)

    def _moments(
        self, read: _Input, live: Activations, plain: Activations | None, steps: _Steps
    ) -> _Moments:
        """Sum over the inputs of products as they see them, and how far these have drifted."""
        found: _Moments | None = None
        for index, values in enumerate(live):
            x = values[read.name]
            assert isinstance(x, torch.Tensor)
            flat = as_quantized(x, read.form).reshape(-1, x.shape[-1]).to(self.dtype)
            if found is None:
                found = _Moments.zeros(flat, drift=plain is not None)
            found.hessian.addmm_(flat.T, flat)
            if plain is not None and found.drift is not None:
                wanted = plain[index][read.name]
                assert isinstance(wanted, torch.Tensor)
                found.drift.addmm_((wanted.reshape(flat.shape).to(self.dtype) - flat).T, flat)
            steps.advance()
        assert found is not None
        return found

    def _quantize(self, run: BlockRun, weight: PlannedWeight, moments: _Moments) -> GptqResult:
        value = run.program.weights.tensor(weight.entry)
        target = None
        if moments.drift is not None:
            target = corrected_weight(
                value,
                moments.hessian,
                moments.drift,
                share=self.correction,
                damping=self.settings.damping,
            )
        try:
            return gptq(value, moments.hessian, weight.scheme.weight, self.settings, target=target)
        except QCompilerError as error:
            raise cannot_quantize(weight.entry, error) from None


@dataclass
class _Moments:
    """H = Σ x̂ x̂ᵀ of inputs, and D = Σ (x − x̂) x̂ᵀ against those of the float model."""

    hessian: torch.Tensor
    drift: torch.Tensor | None

    @classmethod
    def zeros(cls, x: torch.Tensor, *, drift: bool) -> _Moments:
        k = x.shape[1]
        return cls(x.new_zeros(k, k), x.new_zeros(k, k) if drift else None)


@dataclass
class _Input:
    """A value that planned products of one part read, in the format they quantise it to."""

    name: str
    form: TensorFormat | None
    weights: list[PlannedWeight] = field(default_factory=list)


def _inputs(run: BlockRun, part: Segment) -> Iterator[_Input]:
    """Yield what planned products of a part read, in graph order.

    The part was cut before the first product of a new input, so that all of these values are there
    before it runs.
    """
    found: dict[tuple[str, TensorFormat | None], _Input] = {}
    for _, node in part.linears():
        entry = run.program.weights.resolve(str(weight_of(node)))
        if entry not in run.planned:
            continue
        weight, source = run.planned[entry], node.args[0]
        assert isinstance(source, fx.Node)
        form = weight.scheme.activation
        read = found.setdefault((source.name, form), _Input(source.name, form))
        read.weights.append(weight)
    yield from found.values()


class _Steps:
    """Counts the runs of one block's samples for the progress bar."""

    def __init__(self, run: BlockRun, total: int) -> None:
        self._run, self._total, self._done = run, max(total, 1), 0

    def advance(self) -> None:
        self._done += 1
        self._run.advance(min(self._done / self._total, 1.0))
