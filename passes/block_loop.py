"""Quantise a program block by block, each from the inputs that the blocks before it then give."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch

from passes.activations import Activations, owned
from passes.checkpoint import (
    Checkpoint,
    Codes,
    open_checkpoint,
    pack_codes,
    unpack_codes,
)
from passes.planned import PlannedWeight, planned_weights, put_codes
from passes.segments import GraphOrder, Segment, SegmentWeights, segments
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import QuantScheme, TensorFormat
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.core.progress import Progress
from qcompiler.core.qtensor import QuantizedTensor

FLOAT_TOKENS = 1 << 15
"""Tokens of samples that the float model is run on beside the quantised one. What it is wanted for,
a correction and a target, needs fewer than a second moment does, and it takes half the time."""


KEEP_EVERY = 60.0
"""Seconds after which the values after a block are kept: writing them takes longer than running a
block that is quantised already."""


@dataclass
class BlockRun:
    """One block that is to be quantised, and what goes into it.

    `inputs` are the values before the block when all that was before it is quantised,
    `float_inputs` those of the float model when the loop was asked for them, of the first samples
    only where there are many (`FLOAT_TOKENS`), which `float_forward` runs through the block. A
    quantiser may turn either into the outputs that it returns. `planned` are the block's weights
    that are to be quantised, by entry; `known` the codes of entries that are settled already, such
    as a table that is tied to the head.
    """

    program: Program
    segment: Segment
    index: int
    count: int
    planned: dict[str, PlannedWeight]
    inputs: Activations
    float_inputs: Activations | None
    float_forward: Callable[[], Activations] | None
    known: Codes
    progress: Progress
    budget: int | None
    span: tuple[float, float] = (0.0, 1.0)
    """Which part of the work on this block is under way, as shares of it."""

    @cached_property
    def float_outputs(self) -> Activations | None:
        """What the float model has after the block; it is run when this is first asked for."""
        return None if self.float_forward is None else self.float_forward()

    def weights(self, codes: Codes | None = None) -> SegmentWeights:
        """Return the block's weights: the float ones, or with `codes` those they stand for."""
        return SegmentWeights(self.program, None if codes is None else self.known | codes)

    def schemes(self, codes: Mapping[str, Any]) -> dict[str, QuantScheme]:
        """Return the schemes of products by operator name: of those with codes, settled or given.

        Without them in `Segment.run`, a product reads float activations.
        """
        return schemes_of(self.program, self.segment, {**self.known, **codes})

    def advance(self, share: float) -> None:
        """Say that a share of this part of the block's work is done, from 0 to 1."""
        begin, end = self.span
        done = self.index + begin + share * (end - begin)
        self.progress.advance(round(100 * done), 100 * self.count)


@dataclass
class BlockResult:
    """What a quantiser made of a block: codes by entry, and what is to be reported.

    `outputs` are the values after the quantised block, and `float_outputs` those after the float
    one, if the quantiser has them anyway.
    """

    codes: Codes
    record: dict[str, Any] = field(default_factory=dict)
    outputs: Activations | None = None
    float_outputs: Activations | None = None


class BlockQuantizer(Protocol):
    """A method to find codes."""

    @property
    def float_chain(self) -> bool:
        """Whether it wants the float model's values before and after the block."""

    def quantize_block(self, run: BlockRun) -> BlockResult:
        """Return codes for every planned weight of a block."""

    def round_weight(self, weight: torch.Tensor, form: TensorFormat) -> QuantizedTensor:
        """Return codes for a weight that no single product reads, such as a table."""


def quantize_blocks(
    program: Program,
    context: PassContext,
    step: Pass,
    quantizer: BlockQuantizer,
    *,
    most_tokens: int | None = None,
) -> list[dict[str, Any]]:
    """Replace every planned weight by codes; return what was recorded of each block.

    Of a language model's samples, those after the first `most_tokens` tokens are left out.

    With a work folder in the context, each finished block is kept there, and those that are there
    already are not worked on again.

    Raises:
        QCompilerError: a weight or activation is not finite, in one sentence.
    """
    calibration = context.samples(step.name)
    if most_tokens is not None:
        calibration = context.samples(step.name, samples_within(program, calibration, most_tokens))
    planned = planned_weights(program)
    checkpoint = (
        None if context.work is None else open_checkpoint(context.work, step, program, calibration)
    )
    with torch.no_grad():
        loop = _Loop(program, context, quantizer, planned, calibration, checkpoint)
        records = loop.run()
    put_codes(program, planned, loop.codes)
    return records


class _Loop:
    def __init__(
        self,
        program: Program,
        context: PassContext,
        quantizer: BlockQuantizer,
        planned: dict[str, PlannedWeight],
        calibration: Calibration,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.program, self.context, self.quantizer = program, context, quantizer
        self.planned, self.calibration, self.checkpoint = planned, calibration, checkpoint
        self.formats = {entry: weight.scheme.weight for entry, weight in planned.items()}
        self.codes: Codes = {}
        self._kept_at = time.monotonic()
        parts = segments(program)
        # What comes after the last planned product need not be run.
        needed = [i for i, part in enumerate(parts) if self._planned_in(part)]
        self.parts = parts[: needed[-1] + 1] if needed else []
        chains = 2 if quantizer.float_chain else 1
        # A chain is read and written at once.
        self.budget = None if context.max_ram is None else context.max_ram // (2 * chains)

    def run(self) -> list[dict[str, Any]]:
        self._round_the_rest()
        records: list[dict[str, Any]] = []
        start = 0
        if self.checkpoint is not None and self.checkpoint.done:
            for index in range(min(self.checkpoint.done, len(self.parts))):
                tensors, record = self.checkpoint.read(index)
                self.codes |= unpack_codes(tensors, self.formats)
                records.append(record)
            start = len(records)
            self.context.progress.tell(
                f"going on after {start} of {len(self.parts)} blocks, which were done before"
            )
            self.context.progress.advance(100 * start, 100 * len(self.parts))
        if start == len(self.parts):
            return records
        quantized, plain = self._chains_into(start)
        for index in range(start, len(self.parts)):
            result, quantized, plain = self._block(index, quantized, plain)
            self.codes |= result.codes
            records.append(result.record)
            if self.checkpoint is not None:
                self._save(self.checkpoint, result, quantized, plain)
            self.context.progress.advance(100 * (index + 1), 100 * len(self.parts))
        return records

    def _save(
        self,
        checkpoint: Checkpoint,
        result: BlockResult,
        quantized: Activations,
        plain: Activations | None,
    ) -> None:
        """Keep a finished block, and now and then the values after it."""
        now = time.monotonic()
        chains = None
        if now - self._kept_at >= KEEP_EVERY:
            self._kept_at = now
            chains = {"quantized": quantized}
            if plain is not None:
                chains["float"] = plain
        checkpoint.save(pack_codes(result.codes), result.record, chains)

    def _block(
        self, index: int, quantized: Activations, plain: Activations | None
    ) -> tuple[BlockResult, Activations, Activations | None]:
        part = self.parts[index]
        forward = None
        if plain is not None:
            forward = partial(self._forward, part, plain, SegmentWeights(self.program), {})
        run = BlockRun(
            program=self.program,
            segment=part,
            index=index,
            count=len(self.parts),
            planned={entry: self.planned[entry] for entry in self._planned_in(part)},
            inputs=quantized,
            float_inputs=plain,
            float_forward=forward,
            known=self.codes,
            progress=self.context.progress,
            budget=self.budget,
        )
        result = self.quantizer.quantize_block(run) if run.planned else BlockResult({})
        missing = run.planned.keys() - result.codes.keys()
        if missing:
            raise TypeError(f"no codes were found for {sorted(missing)[0]}")
        outputs = result.outputs
        if outputs is None:
            outputs = self._quantized_forward(part, quantized, self.codes | result.codes)
        after = run.float_outputs if result.float_outputs is None else result.float_outputs
        for old in (quantized, plain):
            if old is not None and old is not outputs and old is not after:
                old.close()
        gc.collect()
        return result, outputs, after

    def _forward(
        self,
        part: Segment,
        inputs: Activations,
        weights: SegmentWeights,
        schemes: Mapping[str, QuantScheme],
    ) -> Activations:
        """Run a block on every sample, cut as a quantiser may cut it: the bits are the same."""
        outputs = Activations(budget=self.budget)
        pieces = part.split()
        for values in inputs:
            for piece in pieces:
                values = owned(piece.run(values, weights, schemes))
            outputs.append(check_finite(values, part))
        return outputs

    def _quantized_forward(self, part: Segment, inputs: Activations, codes: Codes) -> Activations:
        schemes = schemes_of(self.program, part, codes)
        return self._forward(part, inputs, SegmentWeights(self.program, codes), schemes)

    def _chains_into(self, done: int) -> tuple[Activations, Activations | None]:
        """Return what goes into the first block that is not done.

        What lies between the last values that were kept, or the samples, and that is run again.
        """
        wanted = ("quantized", "float") if self.quantizer.float_chain else ("quantized",)
        reached = 0 if self.checkpoint is None else self.checkpoint.reached
        if reached and self.checkpoint is not None:
            opened = [self.checkpoint.activations(chain, self.budget) for chain in wanted]
        else:
            order = GraphOrder(self.program)
            samples = self.calibration.samples
            compared = samples_within(self.program, self.calibration, FLOAT_TOKENS)
            opened = [
                Activations(map(order.inputs, part), budget=self.budget)
                for part in (samples, samples[:compared])[: len(wanted)]
            ]
        quantized, plain = opened[0], opened[1] if len(opened) > 1 else None
        for part in self.parts[reached:done]:
            quantized = self._quantized_forward(part, quantized, self.codes)
            if plain is not None:
                plain = self._forward(part, plain, SegmentWeights(self.program), {})
        return quantized, plain

    def _planned_in(self, part: Segment) -> list[str]:
        """Return the entries that the products of a segment read, and nothing else does."""
        weights = self.program.weights
        entries = [weights.resolve(str(weight_of(node))) for _, node in part.linears()]
        return [e for e in entries if e in self.planned and self.planned[e].is_product_only]

    def _round_the_rest(self) -> None:
        for weight in self.planned.values():
            if not weight.is_product_only:
                value = self.program.weights.tensor(weight.entry)
                self.codes[weight.entry] = round_named(self.quantizer, weight.entry, value, weight)


def samples_within(program: Program, calibration: Calibration, tokens: int) -> int:
    """Return how many of the first samples have that many tokens at most; one at least.

    Samples of what is no language model are all counted.
    """
    if program.info.kind != "causal-lm":
        return len(calibration.samples)
    ends = itertools.accumulate(ids.numel() for (ids,) in calibration.samples)
    return max(1, sum(end <= tokens for end in ends))


def round_named(
    quantizer: BlockQuantizer, entry: str, value: torch.Tensor, weight: PlannedWeight
) -> QuantizedTensor:
    """Round a weight; an error names it."""
    try:
        return quantizer.round_weight(value, weight.scheme.weight)
    except QCompilerError as error:
        raise cannot_quantize(entry, error) from None


def cannot_quantize(entry: str, error: QCompilerError) -> QCompilerError:
    """Say of a weight why it cannot be quantised, and the way out."""
    return QCompilerError(
        f"'{entry}' cannot be quantised: {error}; leave it float with "
        f"{{pattern = '{operator_name(entry)}', scheme = 'float'}}"
    )


def schemes_of(program: Program, part: Segment, codes: Mapping[str, Any]) -> dict[str, QuantScheme]:
    """Return the schemes of a segment's products whose codes are known, by operator name."""
    return {
        name: program.plan[name]
        for name, node in part.linears()
        if program.weights.resolve(str(weight_of(node))) in codes
    }


def check_finite(values: dict[str, Any], part: Segment) -> dict[str, Any]:
    """Return the values after a segment, all of which must be finite.

    Raises:
        QCompilerError: naming the first operator that is known to give something else.
    """
    for name, value in values.items():
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            continue
        if not bool(torch.isfinite(value).all()):
            products = ", ".join(operator for operator, _ in part.linears()) or "no products"
            raise QCompilerError(
                f"'{name}', computed from {products}, is infinite or not a number on a "
                "calibration sample; look for damaged weights there"
            )
    return values
