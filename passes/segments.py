"""Cut a program's graph into segments and run them one after the other on samples.

Between two segments only the values that are still needed are kept, and within one only its own
weights are in memory: calibration, learned rounding and sensitivities go through a model of any
size in this way. Products run on dequantised weights and on activations that are quantised and
dequantised again: what `core.reference` computes, but for the last bits of float sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import fx

from passes.activations import Values
from passes.input_scales import scale_entry
from qcompiler.core import kv_rows, ops
from qcompiler.core.fake_quant import fake_quantize, fake_query, fake_store
from qcompiler.core.formats import PerTensor, QuantScheme, TensorFormat
from qcompiler.core.kv_format import pair
from qcompiler.core.program import LINEARS, Program, operator_name, weight_of
from qcompiler.core.qtensor import QuantizedTensor

Weights = Callable[[str], torch.Tensor]
"""Names of weights to float32 tensors."""

Tap = Callable[[str, torch.Tensor], None]
"""Called with each product's operator name and input [..., k], as the product sees it."""

Requantized = dict[tuple[Any, TensorFormat, float | None], torch.Tensor]
"""What products have read so far, by node, format and static scale, so that several share it."""

Replace = Callable[[fx.Node, Mapping[str, Any]], Any]
"""Returns the value of a node for those of others, or None where the node is to be called."""

TABLES = frozenset({ops.embedding, ops.quantized_embedding})


@dataclass(frozen=True)
class Segment:
    """Consecutive calls of a graph, from place `begin` up to place `end`."""

    order: GraphOrder
    begin: int
    end: int

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return self.order.nodes[self.begin : self.end]

    def linears(self) -> list[tuple[str, fx.Node]]:
        """Return the products with a stored weight, as (operator name, node), in graph order."""
        found = [(node, weight_of(node)) for node in self.nodes if node.target in LINEARS]
        return [(operator_name(weight), node) for node, weight in found if weight is not None]

    def split(self) -> list[Segment]:
        """Cut before every product whose input no product before it in the segment reads.

        Products of one input, such as those of queries, keys and values, stay together. The first
        part has no products.
        """
        seen: set[fx.Node] = set()
        cuts = [self.begin]
        named = {node for _, node in self.linears()}
        for place, node in enumerate(self.nodes, start=self.begin):
            if node in named and node.args[0] not in seen:
                assert isinstance(node.args[0], fx.Node)
                seen.add(node.args[0])
                cuts.append(place)
        return [Segment(self.order, a, b) for a, b in pairwise([*cuts, self.end])]

    def run(
        self,
        values: Values,
        weights: Weights,
        schemes: Mapping[str, QuantScheme] | None = None,
        tap: Tap | None = None,
        replace: Replace | None = None,
    ) -> Values:
        """Run the segment on what was live before it; return what is live after it.

        Products named in `schemes` see their input as the scheme quantises it, as does `tap`. What
        `replace` gives takes the place of calling a node. `values` is left as it is. Caches start
        empty, and are forgotten.
        """
        env: dict[str, Any] = dict(values)
        requantized: Requantized = {}
        for place, node in enumerate(self.nodes, start=self.begin):
            self.order.provide_caches(node, env)
            given = None if replace is None else replace(node, env)
            env[node.name] = (
                _call(node, env, weights, schemes or {}, tap, requantized)
                if given is None
                else given
            )
            for name in self.order.dead_after[place]:
                env.pop(name, None)
        return env


@dataclass(frozen=True, eq=False)
class GraphOrder:
    """The calls of a graph in order, and after which of them a value is needed no more."""

    program: Program

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        return tuple(n for n in self.program.graph.nodes if n.op == "call_function")

    @cached_property
    def dead_after(self) -> list[list[str]]:
        """For each call the values that it is the last to use; inputs but caches stay."""
        last: dict[fx.Node, int] = {node: place for place, node in enumerate(self.nodes)}
        for place, node in enumerate(self.nodes):
            for source in node.all_input_nodes:
                if source.op == "call_function" or source in self.caches:
                    last[source] = place
        for source in self.program.graph.output_node().all_input_nodes:
            last.pop(source, None)
        dead: list[list[str]] = [[] for _ in self.nodes]
        for node, place in last.items():
            dead[place].append(node.name)
        return dead

    @cached_property
    def caches(self) -> frozenset[fx.Node]:
        """The inputs that are KV caches."""
        count = 2 * len(self.program.info.kv)
        return frozenset(self.program.placeholders()[-count:]) if count else frozenset()

    def provide_caches(self, node: fx.Node, env: dict[str, Any]) -> None:
        """Make the caches that a call changes, empty and as long as the sample."""
        for source in node.all_input_nodes:
            if source in self.caches and source.name not in env:
                val = source.meta["val"]
                _, heads, _, size = val.shape
                tokens = env[self.program.placeholders()[0].name].shape[1]
                env[source.name] = torch.zeros(1, int(heads), tokens, int(size), dtype=val.dtype)

    def inputs(self, sample: Sequence[torch.Tensor]) -> Values:
        """Return the values that the first segment starts from, for one calibration sample.

        A causal LM reads the sample's tokens from position 0, and gives logits for each.
        """
        names = [node.name for node in self.program.placeholders() if node not in self.caches]
        if self.program.info.kind == "causal-lm":
            (tokens,) = sample
            given = (tokens.reshape(1, -1), torch.tensor([0]), torch.arange(tokens.numel()))
            return dict(zip(names, given, strict=True))
        return dict(zip(names, sample, strict=True))


def segments(program: Program) -> list[Segment]:
    """Cut a program into what is before its blocks, each block, and what is after them.

    A program without blocks is one segment.
    """
    order = GraphOrder(program)
    place = {node.name: i for i, node in enumerate(order.nodes)}
    cuts = [0, *(place[block.nodes[0]] for block in program.blocks)]
    if program.blocks:
        cuts.append(place[program.blocks[-1].nodes[-1]] + 1)
    return [Segment(order, a, b) for a, b in pairwise([*cuts, len(order.nodes)])]


class SegmentWeights:
    """The float32 weights of a segment, each read (and dequantised) once, some under another value.

    `codes` are quantised entries that take the place of what the store holds.
    """

    def __init__(
        self, program: Program, codes: Mapping[str, QuantizedTensor] | None = None
    ) -> None:
        self._store = program.weights
        self._codes = codes or {}
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        entry = self._store.resolve(name)
        if entry not in self._kept:
            weight = self._codes.get(entry) or self._store.get(entry)
            plain = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
            self._kept[entry] = plain
        return self._kept[entry]


def _call(
    node: fx.Node,
    env: dict[str, Any],
    weights: Weights,
    schemes: Mapping[str, QuantScheme],
    tap: Tap | None,
    requantized: Requantized,
) -> Any:
    args, kwargs = arguments(node, env, weights)
    weight = weight_of(node) if node.target in LINEARS else None
    if weight is None:
        return evaluate(node, args, kwargs)
    name = operator_name(weight)
    if name in schemes:
        args[0] = _as_quantized(name, node.args[0], args[0], weights, schemes, requantized)
    if tap is not None:
        tap(name, args[0])
    return ops.linear(*args, **kwargs)


def _as_quantized(
    name: str,
    source: Any,
    x: torch.Tensor,
    weights: Weights,
    schemes: Mapping[str, QuantScheme],
    requantized: Requantized,
) -> torch.Tensor:
    """Return what a product sees of x [..., k] when its scheme quantises it."""
    form = schemes[name].activation
    if form is None:
        return x
    scale = static_scale(weights, name, form)
    key = (source, form, None if scale is None else float(scale))
    if key not in requantized:
        requantized[key] = fake_quantize(x, scale, form=form)
    return requantized[key]


def static_scale(weights: Weights, operator: str, form: TensorFormat | None) -> torch.Tensor | None:
    """Return the scale [1] of a product's input, where the format has one that is static."""
    if form is None or not isinstance(form.granularity, PerTensor):
        return None
    return weights(scale_entry(operator))


def arguments(
    node: fx.Node, env: Mapping[str, Any], weights: Weights
) -> tuple[list[Any], dict[str, Any]]:
    """Return what a node is called with, weights dequantised."""

    def fetch(source: fx.Node) -> Any:
        return weights(str(source.target)) if source.op == "get_attr" else env[source.name]

    args: list[Any] = list(cast(Any, fx.node.map_arg(node.args, fetch)))
    kwargs: dict[str, Any] = dict(cast(Any, fx.node.map_arg(node.kwargs, fetch)))
    kwargs.pop("scheme", None)
    return args, kwargs


def evaluate(node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call what a node calls, other than a product with a stored weight."""
    if node.target in TABLES:
        return ops.embedding(*args, **kwargs)
    if node.target is ops.attention:
        return _attention(*args, **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    kv: str = "",
) -> torch.Tensor:
    """Compute `ops.attention` from position 0, with gradients; the caches are not written."""
    if kv:
        k_form, v_form = pair(kv)
        q, k = fake_query(q, k_form), fake_store(kv_rows.turned(k, k_form), k_form)
        v = fake_store(v, v_form)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    hidden = _hidden(q.shape[2], window) if softcap > 0 or 0 < window < q.shape[2] else None
    if softcap > 0:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = softcap * torch.tanh((q @ k.transpose(-1, -2)) * (scale / softcap))
        assert hidden is not None
        y = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
    else:
        # Torch's own kernel is several times as fast.
        y = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if hidden is None else ~hidden,
            is_causal=hidden is None,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    return y.transpose(1, 2)


def _hidden(tokens: int, window: int) -> torch.Tensor:
    """Return where a token (row) does not see another, [tokens, tokens]."""
    place = torch.arange(tokens)
    query = place.unsqueeze(1)
    hidden = place > query
    return hidden | (place <= query - window) if window > 0 else hidden
