"""Put fake quantisers where a plan will have codes: a model is then trained as it will run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from passes.block_loop import cannot_quantize, quantize_blocks
from passes.gptq import GptqSettings
from passes.gptq_block import GptqOfBlocks
from passes.input_scales import check_scales, scale_entry
from passes.observe_activations import check_observed
from passes.planned import PlannedWeight, planned_weights
from passes.rewrite import emit, is_weight
from passes.rounding import round_to_nearest
from passes.scale_search import round_searched
from passes.segments import static_scale
from passes.signround import within_cells
from qcompiler.core import ops, shapes
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.formats import TensorFormat
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program, operator_name, weight_of
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage

Start = Literal["rtn", "search", "gptq"]
Learn = Literal["scales", "low-rank", "weights"]
Scales = Literal["step", "clip", "range"]

SCALE, ZERO, CLIP, LEFT, RIGHT = "_scale", "_zero_point", "_clip", "_left", "_right"
"""What follows an entry's name in the names of what its rounding needs."""

PARAMETERS = frozenset({ops.linear, ops.embedding, ops.rms_norm, ops.layer_norm})
"""Operators whose second and third arguments are parameters."""


@dataclass(frozen=True, kw_only=True)
class InsertFakeQuant(Pass):
    """Have every planned weight rounded, and activations too, as they will be, but in floats.

    `start` says which codes and scales training starts from: the nearest codes at the scale of the
    full range ("rtn"), at the scale that errs least ("search"), or those of `quantize-gptq` as it
    is by default ("gptq"). `learn` says what is trained: scales alone, under codes that stay
    (EfficientQAT, arXiv 2407.11062); updates of `rank` rows and columns, which are added to weights
    before they are rounded (LoRA, arXiv 2106.09685), and scales; or all weights, those of norms
    too, and scales. `scales` says how the latter come about: as learned step sizes (LSQ, arXiv
    1902.08153); as a learned share of each group's range ("clip"); or as that range, not learned.
    Static scales of activations learn too. What a table reads stays as it is rounded at the start,
    unless all weights learn; other tables stay in any case.

    Caches are rounded as `quantize-kv` says, activations as the plan says.
    """

    name: ClassVar[str] = "insert-fake-quant"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.PLANNED})
    yields: ClassVar[Stage] = Stage.FAKE_QUANTIZED
    adds: ClassVar[frozenset[type[Any]]] = frozenset({FakeQuantization})

    start: Start = "gptq"
    learn: Learn = "scales"
    scales: Scales = "step"
    rank: int = 8

    def __post_init__(self) -> None:
        if self.learn == "scales" and self.scales != "step":
            raise ConfigError(
                f"scales = '{self.scales}' follows weights, and learn = 'scales' has them stay; "
                "use scales = 'step', or learn = 'weights'"
            )
        if self.rank < 1:
            raise ConfigError(f"updates of rank {self.rank} are none; use 1 or more")

    @property
    def calibrates(self) -> bool:
        return self.start == "gptq"

    def check_after(self, earlier: Sequence[Pass]) -> None:
        check_observed(earlier)

    def run(self, program: Program, context: PassContext) -> None:
        check_scales(program)
        planned = planned_weights(program)
        codes = self._codes(program, context, planned)
        before = program.weights.copy()
        learned = _Learned()
        inputs: dict[tuple[fx.Node, TensorFormat, float | None], fx.Node] = {}
        for entry, weight in planned.items():
            self._add_weights(program, weight, codes[entry], learned)
            for node in weight.nodes:
                # The input first: its scale goes by the name of the stored weight.
                if node.target is ops.linear:
                    _round_input(program, node, weight, inputs, learned)
                _round_weight(program, node, weight)
        if self.learn == "weights":
            learned.others += _other_floats(program, planned)
        program.facts[FakeQuantization] = FakeQuantization(
            trainable=tuple(dict.fromkeys([*learned.scales, *learned.others])),
            scales=frozenset(learned.scales),
            float_weights=before,
        )
        if not planned:
            context.note(self.name, "nothing is planned, so that there is nothing to train")

    def _codes(
        self, program: Program, context: PassContext, planned: dict[str, PlannedWeight]
    ) -> dict[str, QuantizedTensor]:
        if self.start == "gptq":
            twin = program.copy(facts={})
            quantize_blocks(twin, context, self, _GPTQ)
            found = {entry: twin.weights.get(entry) for entry in planned}
            return {e: q for e, q in found.items() if isinstance(q, QuantizedTensor)}
        rounded = round_to_nearest if self.start == "rtn" else round_searched
        codes = {}
        for done, (entry, weight) in enumerate(planned.items(), start=1):
            try:
                codes[entry] = rounded(program.weights.tensor(entry), weight.scheme.weight)
            except QCompilerError as error:
                raise cannot_quantize(entry, error) from None
            context.progress.advance(done, len(planned))
        return codes

    def _add_weights(
        self, program: Program, weight: PlannedWeight, start: QuantizedTensor, learned: _Learned
    ) -> None:
        """Write what the rounding of a weight needs into the store."""
        store, entry = program.weights, weight.entry
        learns = weight.is_product_only or self.learn == "weights"
        scale = start.scale.to(torch.float32)
        holds = self.learn == "scales" or not learns
        if holds:
            store.put(entry, start.codes)
        elif self.start == "gptq":
            store.put(entry, within_cells(store.tensor(entry), start))
        if start.zero_point is not None:
            store.put(entry + ZERO, start.zero_point)
        if holds or self.scales == "step":
            store.put(entry + SCALE, scale)
            if learns:
                learned.scales.append(entry + SCALE)
        elif self.scales == "clip":
            store.put(entry + CLIP, _clip(store.tensor(entry), start))
            learned.scales.append(entry + CLIP)
        if not learns or self.learn == "scales":
            return
        if self.learn == "weights":
            learned.others.append(entry)
            return
        n, k = start.shape
        # Zero at first, so that training starts from the weight; drawn by the entry's size alone.
        generator = torch.Generator().manual_seed(n * k + len(learned.others))
        rank = min(self.rank, n, k)
        store.put(entry + LEFT, torch.zeros(n, rank))
        store.put(entry + RIGHT, torch.randn(rank, k, generator=generator) * k**-0.5)
        learned.others += [entry + LEFT, entry + RIGHT]


@dataclass
class _Learned:
    """Names of what is trained."""

    scales: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


_GPTQ = GptqOfBlocks(settings=GptqSettings())


def _clip(weight: torch.Tensor, start: QuantizedTensor) -> torch.Tensor:
    """Return the share of each group's range that its scale reaches at the start, [n, g]."""
    full = ops.range_scale(weight, form=start.format)
    share = start.scale.to(torch.float32) / torch.where(full == 0, torch.ones_like(full), full)
    return torch.where(full == 0, torch.ones_like(share), share.abs())


def _round_weight(program: Program, node: fx.Node, weight: PlannedWeight) -> None:
    """Have an operator read its weight rounded."""
    graph, store, entry = program.graph, program.weights, weight.entry
    form = weight.scheme.weight
    stored = node.args[1]
    assert isinstance(stored, fx.Node)

    def read(name: str) -> fx.Node:
        with graph.inserting_before(node):
            return shapes.add_weight(graph, store, name)

    latent = stored
    if entry + LEFT in store:
        factors = read(entry + LEFT), read(entry + RIGHT)
        latent = emit(node, ops.low_rank_update, stored, *factors, val=stored.meta["val"])
    if entry + SCALE in store:
        scale = read(entry + SCALE)
    else:
        clips = [read(entry + CLIP)] if entry + CLIP in store else []
        scale = emit(node, ops.range_scale, latent, *clips, form=form)
    zero = [read(entry + ZERO)] if entry + ZERO in store else []
    rounded = emit(
        node,
        ops.fake_quantize_weight,
        latent,
        scale,
        *zero,
        val=stored.meta["val"],
        form=form,
    )
    node.args = (node.args[0], rounded, *node.args[2:])


def _round_input(
    program: Program,
    node: fx.Node,
    weight: PlannedWeight,
    inputs: dict[tuple[fx.Node, TensorFormat, float | None], fx.Node],
    learned: _Learned,
) -> None:
    """Round what a product reads; products of one value that want it alike share that."""
    form = weight.scheme.activation
    if form is None:
        return
    x = node.args[0]
    assert isinstance(x, fx.Node)
    operator = operator_name(str(weight_of(node)))
    static = static_scale(program.weights.tensor, operator, form)
    key = (x, form, None if static is None else float(static))
    if key not in inputs:
        scales = []
        if static is not None:
            name = scale_entry(operator)
            with program.graph.inserting_before(node):
                scales = [shapes.add_weight(program.graph, program.weights, name)]
            learned.scales.append(name)
        inputs[key] = emit(node, ops.fake_quantize, x, *scales, val=x.meta["val"], form=form)
    node.args = (inputs[key], *node.args[1:])


def _other_floats(program: Program, planned: dict[str, PlannedWeight]) -> list[str]:
    """Return the parameters that are not planned: of norms, biases, other products and tables."""
    found = []
    for node in program.graph.nodes:
        if node.target not in PARAMETERS:
            continue
        for source in [*node.args[1:3], node.kwargs.get("bias")]:
            if is_weight(source):
                entry = program.weights.resolve(str(source.target))
                if entry not in planned:
                    found.append(entry)
    return list(dict.fromkeys(found))
