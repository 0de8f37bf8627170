"""GPTQ of one block: product by product, each from the inputs that it will have by then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from passes.activations import Activations
from passes.block_loop import BlockResult, BlockRun, cannot_quantize
from passes.drift_correction import corrected_weight
from passes.gptq import GptqResult, GptqSettings, gptq
from passes.planned import PlannedWeight
from passes.scale_search import round_searched
from passes.segments import Segment, static_scale
from qcompiler.core.errors import QCompilerError
from qcompiler.core.fake_quant import fake_quantize
from qcompiler.core.formats import TensorFormat
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import weight_of
from qcompiler.core.qtensor import QuantizedTensor

TILE = 256
"""Rows of a second moment that are summed at a time."""


@dataclass(frozen=True, kw_only=True)
class GptqOfBlocks:
    """GPTQ as the block loop calls it.

    `correction` is the share of what inputs lost that weights make up for; with none the float
    model is not run. Second moments are summed in `dtype`. `outputs` says whether anybody reads
    what comes after the last block.
    """

    settings: GptqSettings
    correction: float = 0.5
    dtype: torch.dtype = torch.float32
    keeps_inputs: bool = False

    @property
    def float_chain(self) -> bool:
        """Whether the float model runs beside the quantised one."""
        return self.correction > 0

    def round_weight(self, weight: torch.Tensor, form: TensorFormat) -> QuantizedTensor:
        return round_searched(weight, form)

    def quantize_block(self, run: BlockRun) -> BlockResult:
        codes: dict[str, QuantizedTensor] = {}
        record: dict[str, Any] = {}
        parts = run.segment.split()
        live, plain = run.inputs, run.float_inputs
        if self.keeps_inputs:
            live = Activations(live, budget=run.budget)
        steps = _Steps(run, 2 * len(parts) * len(live))
        for part in parts:
            for read in _inputs(run, part):
                moments = self._moments(read, live, plain, steps)
                for weight in read.weights:
                    found = self._quantize(run, weight, moments)
                    codes[weight.entry] = found.weight
                    record[weight.operator] = _record(found)
            if not self.keeps_inputs and run.index + 1 == run.count and part is parts[-1]:
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
            flat = read.quantized(x).reshape(-1, x.shape[-1]).to(self.dtype)
            if found is None:
                found = _Moments.zeros(flat, drift=plain is not None)
            found.add_inputs(flat)
            if plain is not None and index < len(plain):
                wanted = plain[index][read.name]
                assert isinstance(wanted, torch.Tensor)
                found.add_drift(wanted.reshape(flat.shape).to(self.dtype) - flat, flat)
            steps.advance()
        assert found is not None
        found.complete()
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


def _record(found: GptqResult) -> dict[str, Any]:
    return {
        "before": found.error_before,
        "after": found.error_after,
        "damping": found.damping,
        "dead_columns": found.dead,
    }


def note_operators(
    context: PassContext, step: str, operators: Mapping[str, Mapping[str, Any]], damping: float
) -> None:
    """Record each operator's errors, and say which of them did not go as asked."""
    context.record(step, "measure", "relative squared output error")
    context.record(step, "operators", dict(operators))
    for operator, found in operators.items():
        if found["damping"] is None:
            context.note(
                step, f"{operator}: rounded to nearest, its Hessian is not positive definite"
            )
        elif found["damping"] != damping:
            context.note(step, f"{operator}: damping raised to {found['damping']:g}")
        if found["dead_columns"]:
            context.note(step, f"{operator}: {found['dead_columns']} inputs were always zero")


@dataclass
class _Moments:
    """H = Σ x̂ x̂ᵀ of inputs, and D = Σ (x − x̂) x̂ᵀ against those of the float model.

    Where the float model has seen fewer of them, D is made up to as many as H has.
    """

    hessian: torch.Tensor
    drift: torch.Tensor | None
    inputs: int = 0
    compared: int = 0

    @classmethod
    def zeros(cls, x: torch.Tensor, *, drift: bool) -> _Moments:
        k = x.shape[1]
        return cls(x.new_zeros(k, k), x.new_zeros(k, k) if drift else None)

    def add_inputs(self, x: torch.Tensor) -> None:
        """Add inputs [tokens, k] to H, of which nothing far below the diagonal is computed."""
        self.inputs += len(x)
        for begin in range(0, x.shape[1], TILE):
            rows = slice(begin, begin + TILE)
            self.hessian[rows, begin:].addmm_(x[:, rows].T, x[:, begin:])

    def add_drift(self, lost: torch.Tensor, x: torch.Tensor) -> None:
        """Add to D what inputs [tokens, k] have lost against the float model's."""
        assert self.drift is not None
        self.compared += len(x)
        self.drift.addmm_(lost.T, x)

    def complete(self) -> None:
        """Fill in what lies below the diagonal of H, and scale D."""
        self.hessian = self.hessian.triu() + self.hessian.triu(1).T
        if self.drift is not None:
            self.drift *= self.inputs / self.compared


@dataclass
class _Input:
    """A value that planned products of one part read, in the format they quantise it to."""

    name: str
    form: TensorFormat | None
    scale: torch.Tensor | None = None
    weights: list[PlannedWeight] = field(default_factory=list)

    def quantized(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [..., k] as the products see it."""
        return x if self.form is None else fake_quantize(x, self.scale, form=self.form)


def _inputs(run: BlockRun, part: Segment) -> Iterator[_Input]:
    """Yield what planned products of a part read, in graph order.

    The part was cut before the first product of a new input, so that all of these values are there
    before it runs.
    """
    found: dict[tuple[str, TensorFormat | None, float | None], _Input] = {}
    for operator, node in part.linears():
        entry = run.program.weights.resolve(str(weight_of(node)))
        if entry not in run.planned:
            continue
        weight, source = run.planned[entry], node.args[0]
        assert isinstance(source, fx.Node)
        form = weight.scheme.activation
        scale = static_scale(run.program.weights.tensor, operator, form)
        key = (source.name, form, None if scale is None else float(scale))
        read = found.setdefault(key, _Input(source.name, form, scale))
        read.weights.append(weight)
    yield from found.values()


class _Steps:
    """Counts the runs of one block's samples for the progress bar."""

    def __init__(self, run: BlockRun, total: int) -> None:
        self._run, self._total, self._done = run, max(total, 1), 0

    def advance(self) -> None:
        self._done += 1
        self._run.advance(min(self._done / self._total, 1.0))
