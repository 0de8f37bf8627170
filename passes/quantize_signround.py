"""Quantise planned weights by learned rounding, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from passes.activations import Activations
from passes.block_error import thinned, values_error
from passes.block_loop import FLOAT_TOKENS, BlockResult, BlockRun, cannot_quantize, quantize_blocks
from passes.gptq import GptqSettings
from passes.gptq_block import GptqOfBlocks, note_operators
from passes.input_scales import check_scales
from passes.observe_activations import check_observed
from passes.rounding import round_to_nearest
from passes.scale_search import round_searched
from passes.signround import BlockLoss, LearnedScales, LearnedWeight, Training, learn_rounding
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.formats import TensorFormat
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program, weight_of
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage

Start = Literal["rtn", "search", "gptq"]
Learn = Literal["scales", "rounding"]

SCALE_RATE = 0.005
"""The rate at first where scales alone are learned."""

RATES: dict[Start, tuple[float, float]] = {
    "rtn": (1.0, 1.0),
    "search": (1.0, 1.0),
    "gptq": (0.25, 0.15),
}
"""The rates of offsets and of scales at first, times the iterations, unless they are given. GPTQ's
codes make up for one another's errors, and large steps would undo that before they found better."""

LEARNED_BITS = 7
"""With more, rounding to nearest loses next to nothing."""

GPTQ = GptqOfBlocks(settings=GptqSettings(), keeps_inputs=True)
"""How codes are found that learning starts from."""

MOST_TOKENS = FLOAT_TOKENS
"""Of the samples: each iteration sees one batch, and others have all been seen by then."""

GPTQ_SHARE = 0.4
"""About which share of the time that takes; what is left is for learning."""

MOST_WEIGHED = 16
"""On how many samples the mean squares of inputs are measured, by which scales are searched."""


@dataclass(frozen=True, kw_only=True)
class QuantizeSignround(Pass):
    """Learn how weights are rounded so that each block's output stays near the float model's.

    Blocks are taken in order, each with the inputs that the quantised blocks before it give, and
    trained towards what the float model has after it, with its activations quantised as they will
    be. `start` says which codes and scales the learning starts from: the nearest codes at the scale
    of the full range ("rtn"), at the scale that errs least on the inputs ("search"), or those of
    `quantize-gptq` as it is by default ("gptq"). `learn` says whether rounding and scales are
    learned, or codes stay and only scales are. Learning rates fall linearly to zero, those of
    offsets and scales from 1 / iterations unless given, or from 0.25 and 0.15 of that where
    learning starts from GPTQ. Of a language model's samples, those are used that have the first
    32,768 tokens. Weights of 8 bits keep what they start from; those that a table
    shares are rounded at searched scales.
    """

    name: ClassVar[str] = "quantize-signround"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.PLANNED})
    yields: ClassVar[Stage] = Stage.QUANTIZED

    iterations: int = 48
    batch: int = 1
    learning_rate: float | None = None
    scale_learning_rate: float | None = None
    start: Start = "gptq"
    learn: Learn = "scales"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ConfigError(f"{self.iterations} iterations learn nothing; use 1 or more")
        if self.batch < 1:
            raise ConfigError(f"a batch of {self.batch} samples is none; use 1 or more")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 1:
            raise ConfigError(
                f"the learning rate {self.learning_rate:g} is not between 0 and 1; "
                f"{1 / self.iterations:g}, one by the iterations, is usual"
            )
        if self.scale_learning_rate is not None and not 0 <= self.scale_learning_rate <= 1:
            raise ConfigError(
                f"the learning rate of scales {self.scale_learning_rate:g} is not between 0 and 1; "
                "0 leaves them as they are at the start"
            )

    @property
    def calibrates(self) -> bool:
        return True

    def check_after(self, earlier: Sequence[Pass]) -> None:
        check_observed(earlier)

    def run(self, program: Program, context: PassContext) -> None:
        check_scales(program)
        rate, scale_rate = (share / self.iterations for share in RATES[self.start])
        if self.learn == "scales":
            scale_rate = SCALE_RATE
        training = Training(
            iterations=self.iterations,
            batch=self.batch,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            scale_learning_rate=(
                scale_rate if self.scale_learning_rate is None else self.scale_learning_rate
            ),
            seed=self.seed,
        )
        records = quantize_blocks(
            program,
            context,
            self,
            _LearnedRounding(training, self.start, self.learn),
            most_tokens=MOST_TOKENS,
        )
        if self.start == "gptq":
            operators = {
                name: one for record in records for name, one in record.get("operators", {}).items()
            }
            note_operators(context, self.name, operators, GPTQ.settings.damping)
        learned = [record for record in records if "learned" in record]
        context.record(
            self.name,
            "blocks_measure",
            "squared error of the block's output, relative for each token",
        )
        context.record(self.name, "curves", [record["curve"] for record in learned])
        context.record(self.name, "blocks", [record["learned"] for record in learned])


@dataclass
class _LearnedRounding:
    """Learned rounding as the block loop calls it."""

    training: Training
    start: Start
    learn: Learn
    float_chain: bool = True

    def round_weight(self, weight: torch.Tensor, form: TensorFormat) -> QuantizedTensor:
        return round_searched(weight, form)

    def quantize_block(self, run: BlockRun) -> BlockResult:
        if self.start == "gptq":
            start = GPTQ.quantize_block(replace(run, span=(0.0, GPTQ_SHARE)))
            run = replace(run, span=(GPTQ_SHARE, 1.0))
        else:
            start = rounded(run, self.start)
        record: dict[str, Any] = {"operators": start.record}
        learned = {
            entry: (
                LearnedScales(start.codes[entry])
                if self.learn == "scales"
                else LearnedWeight(run.program.weights.tensor(entry), start.codes[entry])
            )
            for entry, weight in run.planned.items()
            if weight.scheme.weight.bits <= LEARNED_BITS
        }
        if not learned:
            return replace(start, record=record)
        targets = run.float_outputs if start.float_outputs is None else start.float_outputs
        assert targets is not None
        loss = block_loss(run, start.codes, targets)
        found = learn_rounding(learned, loss, len(targets), self.training, watch=run.advance)
        record["learned"] = {
            "block": run.index,
            "before": found.before,
            "after": found.after,
            "iterations": self.training.iterations,
            "best": found.best,
        }
        record["curve"] = thinned(found.curve)
        codes = start.codes | found.codes
        return BlockResult(codes, record, float_outputs=targets)


def block_loss(
    run: BlockRun, codes: Mapping[str, QuantizedTensor], targets: Activations
) -> BlockLoss:
    """Return the error of a block's output, relative to `targets`, by sample and weights.

    The weights by entry that it is called with take the place of `codes`, which take that of the
    float ones; activations are quantised as the plan says.
    """
    fixed = run.weights(dict(codes))
    schemes = run.schemes(codes)
    store = run.program.weights
    made = {node.name for node in run.segment.nodes}

    def loss(sample: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        def fetch(name: str) -> torch.Tensor:
            found = weights.get(store.resolve(name))
            return fixed(name) if found is None else found

        outputs = run.segment.run(run.inputs[sample], fetch, schemes)
        return values_error(outputs, targets[sample], made)

    return loss


def rounded(run: BlockRun, start: Literal["rtn", "search"]) -> BlockResult:
    """Return codes that are the nearest, by entry, at searched scales if wanted."""
    powers = _mean_squares(run) if start == "search" else {}
    codes = {}
    for entry, weight in run.planned.items():
        value, form = run.program.weights.tensor(entry), weight.scheme.weight
        power = powers.get(entry)
        try:
            codes[entry] = (
                round_to_nearest(value, form)
                if power is None
                else round_searched(value, form, importance=power)
            )
        except QCompilerError as problem:
            raise cannot_quantize(entry, problem) from None
    return BlockResult(codes)


def _mean_squares(run: BlockRun) -> dict[str, torch.Tensor]:
    """Return the squares of what planned products read, [k], summed over tokens, by entry."""
    entries = {
        name: run.program.weights.resolve(str(weight_of(node)))
        for name, node in run.segment.linears()
    }
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, x: torch.Tensor) -> None:
        entry = entries[name]
        if entry in run.planned:
            squares = x.reshape(-1, x.shape[-1]).square().sum(0)
            sums[entry] = sums[entry].add_(squares) if entry in sums else squares

    weights, schemes = run.weights(), run.schemes(run.planned)
    for index in range(min(MOST_WEIGHED, len(run.inputs))):
        run.segment.run(run.inputs[index], weights, schemes, tap=add)
    return sums
