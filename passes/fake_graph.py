"""Fake-quantised programs as trainers see them: rounded weights apart from what reads them.

A weight is rounded once for a whole batch, and the batch's gradient passes its rounding once;
the graph is then run on the rounded weights, or as the float model that it came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from passes.activations import Values
from passes.segments import Segment, SegmentWeights, Weights, arguments, evaluate
from qcompiler.core import ops
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.formats import TensorFormat
from qcompiler.core.program import Program, fake_weight_name

Rounded = Mapping[str, torch.Tensor]
"""Rounded weights by the name of the node that rounds them."""


@dataclass(frozen=True, eq=False)
class FakeWeight:
    """A call of `fake_quantize_weight`: the weight's name as its product has it, and its entry."""

    node: fx.Node
    name: str
    entry: str

    @property
    def form(self) -> TensorFormat:
        """What it is rounded to."""
        found: Any = self.node.kwargs["form"]
        assert isinstance(found, TensorFormat)
        return found

    @property
    def sources(self) -> tuple[str, ...]:
        """The names in the weight store that the value depends on."""
        return tuple(dict.fromkeys(_sources(self.node)))

    def value(self, fetch: Weights) -> torch.Tensor:
        """Return the rounded weight [n, k] for what `fetch` gives for its sources."""
        found: torch.Tensor = _evaluate(self.node, fetch)
        return found

    def argument(self, index: int, fetch: Weights) -> torch.Tensor | None:
        """Return what is rounded (0), its scales (1) or zero points (2); None for none."""
        if index >= len(self.node.args):
            return None
        source = self.node.args[index]
        assert isinstance(source, fx.Node)
        with torch.no_grad():
            found: torch.Tensor = _evaluate(source, fetch)
        return found


def fake_weights(program: Program, nodes: tuple[fx.Node, ...] | None = None) -> list[FakeWeight]:
    """Return the fake-quantised weights of a program, or of some of its nodes, in graph order."""
    found = []
    for node in program.graph.nodes if nodes is None else nodes:
        if node.target is ops.fake_quantize_weight:
            name = fake_weight_name(node)
            assert name is not None
            found.append(FakeWeight(node, name, program.weights.resolve(name)))
    return found


def round_weights(weights: list[FakeWeight], fetch: Weights) -> dict[str, torch.Tensor]:
    """Return the rounded weights by node; those of one weight are one tensor."""
    shared: dict[Any, torch.Tensor] = {}
    found = {}
    for weight in weights:
        key = weight.sources
        if key not in shared:
            shared[key] = weight.value(fetch)
        found[weight.node.name] = shared[key]
    return found


class FakeProgram:
    """Runs the segments of a fake-quantised program, or of the float one that it came from."""

    def __init__(self, program: Program) -> None:
        self.program = program
        fact: FakeQuantization = program.facts[FakeQuantization]
        self._float = dataclasses.replace(program, weights=fact.float_weights)
        # Those of one segment, which is run on one sample after the other.
        self._float_part: Segment | None = None
        self._float_fetch: Weights = SegmentWeights(self._float)
        self._inner = {
            id(node)
            for weight in fake_weights(program)
            for node in _inner_nodes(weight.node)
            if node is not weight.node
        }

    def run(self, part: Segment, values: Values, rounded: Rounded, fetch: Weights) -> Values:
        """Run a segment on rounded weights; others, such as those of norms, are fetched."""

        def replace(node: fx.Node, env: Mapping[str, Any]) -> Any:
            if id(node) in self._inner:
                return 0  # nobody reads it
            return rounded[node.name] if node.target is ops.fake_quantize_weight else None

        return part.run(values, fetch, replace=replace)

    def run_float(self, part: Segment, values: Values) -> Values:
        """Run a segment as it was before anything was rounded, caches included."""
        if self._float_part is not part:
            self._float_part = part
            self._float_fetch = SegmentWeights(self._float)
        fetch = self._float_fetch

        def replace(node: fx.Node, env: Mapping[str, Any]) -> Any:
            if id(node) in self._inner:
                return 0
            if node.target is ops.fake_quantize_weight:
                return fetch(str(fake_weight_name(node)))
            if node.target is ops.fake_quantize:
                return env[str(node.args[0])]
            if node.target is ops.attention:
                args, kwargs = arguments(node, env, fetch)
                return evaluate(node, args, {**kwargs, "kv": ""})
            return None

        return part.run(values, fetch, replace=replace)


def overlaid(
    first: Mapping[str, torch.Tensor], rest: Weights, resolve: Callable[[str], str]
) -> Weights:
    """Return what reads weights from `first`, by entry, and those not in it from `rest`."""

    def fetch(name: str) -> torch.Tensor:
        found = first.get(resolve(name))
        return rest(name) if found is None else found

    return fetch


def _inner_nodes(node: fx.Node) -> list[fx.Node]:
    """Return the calls that a rounded weight is computed by, itself last."""
    found = [inner for source in node.all_input_nodes for inner in _inner_nodes(source)]
    return [*found, node] if node.op == "call_function" else found


def _sources(node: fx.Node) -> list[str]:
    if node.op == "get_attr":
        return [str(node.target)]
    return [name for source in node.all_input_nodes for name in _sources(source)]


def _evaluate(node: fx.Node, fetch: Weights) -> Any:
    if node.op == "get_attr":
        return fetch(str(node.target))
    assert callable(node.target)
    args = fx.node.map_arg(node.args, lambda source: _evaluate(source, fetch))
    return node.target(*args, **node.kwargs)
