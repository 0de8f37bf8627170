"""Quantise planned weights by learned rounding, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import fx

from passes.activations import Values
from passes.block_loop import BlockResult, BlockRun, cannot_quantize, quantize_blocks
from passes.gptq import GptqSettings, gptq
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

SMALLEST = 1e-12
"""The least power that an error is divided by."""

LEARNED_BITS = 7
"""With more, rounding to nearest loses next to nothing."""

MOST_WEIGHED = 16
"""On how many samples the mean squares of inputs are measured, by which scales are searched."""

POINTS = 25
"""How many points of a curve are kept for the report."""


@dataclass(frozen=True, kw_only=True)
class QuantizeSignround(Pass):
    """Learn how weights are rounded so that each block's output stays near the float model's.

    Blocks are taken in order, each with the inputs that the quantised blocks before it give, and
    trained towards what the float model has after it, with its activations quantised as they will
    be. `start` says which codes and scales the learning starts from: the nearest codes at the
    scale of the full range ("rtn"), at the scale that errs least on the inputs ("search"), or those
    of GPTQ. The learning rates of offsets and of scales fall linearly to zero, from 1 / iterations
    unless given, and from 0.25 and 0.15 of that where learning starts from GPTQ. `learn` says
    whether rounding and scales are learned, or codes stay and only scales are. Weights of 8 bits,
    and those that a table shares, are rounded at searched scales.
    """

    name: ClassVar[str] = "quantize-signround"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.PLANNED})
    yields: ClassVar[Stage] = Stage.QUANTIZED

    iterations: int = 160
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

    def run(self, program: Program, context: PassContext) -> None:
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
            program, context, self, _LearnedRounding(training, self.start, self.learn)
        )
        learned = [record for record in records if record]
        context.record(
            self.name,
            "blocks_measure",
            "squared error of the block's output, relative for each token",
        )
        context.record(self.name, "curves", [record.pop("curve") for record in learned])
        context.record(self.name, "blocks", learned)


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
        codes = starting_codes(run, self.start)
        learned = {
            entry: (
                LearnedScales(codes[entry])
                if self.learn == "scales"
                else LearnedWeight(run.program.weights.tensor(entry), codes[entry])
            )
            for entry, weight in run.planned.items()
            if weight.scheme.weight.bits <= LEARNED_BITS
        }
        if not learned:
            return BlockResult(codes)
        loss = block_loss(run, codes)
        found = learn_rounding(learned, loss, len(run.inputs), self.training, watch=run.advance)
        record = {
            "block": run.index,
            "before": found.before,
            "after": found.after,
            "iterations": self.training.iterations,
            "best": found.best,
            "curve": thinned(found.curve),
        }
        return BlockResult(codes | found.codes, record)


def thinned(curve: Sequence[float]) -> list[float]:
    """Return the means of consecutive parts of a curve, of which there are few enough to draw.

    >>> thinned([4.0, 2.0, 1.0])
    [4.0, 2.0, 1.0]
    """
    size = -(-len(curve) // POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [sum(part) / len(part) for part in parts]


def block_loss(run: BlockRun, codes: Mapping[str, QuantizedTensor]) -> BlockLoss:
    """Return the relative error of a block's output as a function of sample and weights.

    The weights by entry that it is called with take the place of `codes`, which take that of the
    float ones; activations are quantised as the plan says.
    """
    assert run.float_outputs is not None
    targets = run.float_outputs
    fixed = run.weights(dict(codes))
    schemes = run.schemes(codes)
    store = run.program.weights
    made = {node.name for node in run.segment.nodes}

    def loss(sample: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        def fetch(name: str) -> torch.Tensor:
            found = weights.get(store.resolve(name))
            return fixed(name) if found is None else found

        outputs = run.segment.run(run.inputs[sample], fetch, schemes)
        wanted = targets[sample]
        errors = [error(outputs, wanted, name) for name in wanted if name in made]
        return torch.stack([e for e in errors if e is not None]).sum()

    return loss


def error(outputs: Values, wanted: Values, name: str) -> torch.Tensor | None:
    """Return the error of one value [..., n] relative to its power, None if it is no float tensor.

    Each token counts alike: what reads a residual stream normalises it first, and a few tokens,
    such as the first, may be a thousand times as large as all others.
    """
    target, output = wanted[name], outputs[name]
    if not isinstance(target, torch.Tensor) or not isinstance(output, torch.Tensor):
        return None
    if not target.is_floating_point():
        return None
    power = target.square().mean(-1, keepdim=True).clamp(min=SMALLEST)
    return ((output - target).square() / power).mean()


def starting_codes(run: BlockRun, start: Start) -> dict[str, QuantizedTensor]:
    """Return the codes that learning starts from, by entry."""
    moments = {} if start == "rtn" else _moments(run, whole=start == "gptq")
    codes = {}
    for entry, weight in run.planned.items():
        value, form = run.program.weights.tensor(entry), weight.scheme.weight
        try:
            codes[entry] = _rounded(value, form, start, moments.get(entry))
        except QCompilerError as problem:
            raise cannot_quantize(entry, problem) from None
    return codes


def _rounded(
    weight: torch.Tensor, form: TensorFormat, start: Start, moment: torch.Tensor | None
) -> QuantizedTensor:
    if moment is None:
        return round_to_nearest(weight, form)
    if start == "gptq" and form.bits <= LEARNED_BITS:
        return gptq(weight, moment, form, GptqSettings(sweeps=2)).weight
    return round_searched(
        weight, form, importance=moment if moment.dim() == 1 else moment.diagonal()
    )


def _moments(run: BlockRun, *, whole: bool) -> dict[str, torch.Tensor]:
    """Return the second moments of what planned products read, by entry: [k, k], or the diagonal.

    Products that read one value share one matrix.
    """
    store = run.program.weights
    products = {name: node for name, node in run.segment.linears()}
    read: dict[fx.Node, list[str]] = {}
    for node in products.values():
        entry = store.resolve(str(weight_of(node)))
        if entry in run.planned:
            read.setdefault(cast(fx.Node, node.args[0]), []).append(entry)
    sums: dict[fx.Node, torch.Tensor] = {}

    def add(seen: set[fx.Node], name: str, x: torch.Tensor) -> None:
        source = cast(fx.Node, products[name].args[0])
        if source not in read or source in seen:
            return
        seen.add(source)
        flat = x.reshape(-1, x.shape[-1])
        moment = flat.T @ flat if whole else flat.square().sum(0)
        sums[source] = sums[source].add_(moment) if source in sums else moment

    weights, schemes = run.weights(), run.schemes(run.planned)
    for index in range(len(run.inputs) if whole else min(MOST_WEIGHED, len(run.inputs))):
        run.segment.run(run.inputs[index], weights, schemes, tap=partial(add, set()))
    return {entry: sums[source] for source, entries in read.items() for entry in entries}
