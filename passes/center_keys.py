"""Store keys less their mean: what all of them have in common need not be cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from passes.activations import Activations
from passes.block_loop import check_finite
from passes.rewrite import emit
from passes.segments import SegmentWeights, segments
from qcompiler.core import ops, shapes
from qcompiler.core.errors import ConfigError
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class CenterKeys(Pass):
    """Subtract from the keys of each head their mean over calibration samples.

    All scores of a query change by the same number, which softmax does not see, so that the model
    computes what it did (SageAttention's smoothing, arXiv 2410.02367, with a mean that is known
    beforehand). Keys of many models have features that are large for every token; without these,
    they lose less in caches of few bits. The first `samples` are run, all if left out. Layers whose
    scores are capped before softmax, or whose caches hold floats, stay as they are.
    """

    name: ClassVar[str] = "center-keys"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.PLANNED})
    keeps: ClassVar[frozenset[type[Any]] | None] = None

    samples: int | None = 32

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"samples = {self.samples} shows nothing; use 1 or more")

    @property
    def calibrates(self) -> bool:
        return True

    def run(self, program: Program, context: PassContext) -> None:
        layers = [node for node in program.graph.nodes if node.target is ops.attention]
        cached = [node for node in layers if node.kwargs.get("kv")]
        if not cached:
            context.note(self.name, "no cache has codes; put it after 'quantize-kv'")
            return
        wanted = [node for node in cached if not node.kwargs.get("softcap")]
        if len(wanted) < len(layers):
            context.note(self.name, f"{len(layers) - len(wanted)} of {len(layers)} layers stay")
        samples = context.samples(self.name, self.samples).samples
        for node, mean in _mean_keys(program, wanted, samples, context).items():
            entry = f"{node.name}.key_mean"
            program.weights.put(entry, mean)
            with program.graph.inserting_before(node):
                stored = shapes.add_weight(program.graph, program.weights, entry)
            keys = node.args[1]
            assert isinstance(keys, fx.Node)
            centred = emit(node, aten.sub.Tensor, keys, stored, val=keys.meta["val"])
            node.args = (node.args[0], centred, *node.args[2:])


def _mean_keys(
    program: Program,
    layers: Sequence[fx.Node],
    samples: Sequence[tuple[torch.Tensor, ...]],
    context: PassContext,
) -> dict[fx.Node, torch.Tensor]:
    """Return the mean keys [hk, d] that some layers have, of all tokens."""
    sums: dict[fx.Node, torch.Tensor] = {}
    parts = segments(program)
    tokens = sum(sample[0].numel() for sample in samples)
    budget = None if context.max_ram is None else context.max_ram // 2

    def add(node: fx.Node, values: Mapping[str, Any]) -> None:
        if node in layers:
            keys = values[str(node.args[1])].sum((0, 1), dtype=torch.float64)
            sums[node] = sums[node] + keys if node in sums else keys

    with Activations(map(parts[0].order.inputs, samples), budget=budget) as live, torch.no_grad():
        for done, part in enumerate(parts[:-1] or parts, start=1):
            weights = SegmentWeights(program)
            for index, values in enumerate(live):
                live[index] = check_finite(part.run(values, weights, replace=add), part)
            context.progress.advance(done, len(parts))
    return {node: (sums[node] / tokens).to(torch.float32) for node in layers}
