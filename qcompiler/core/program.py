"""A model on its way through the compiler."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx

from qcompiler.core import ops
from qcompiler.core.formats import QuantScheme
from qcompiler.core.kv_format import pair, row_of
from qcompiler.core.stage import Stage
from qcompiler.core.weights import WeightStore

LINEARS = frozenset({ops.linear, ops.quantized_linear, ops.quantized_matmul})
"""Operators that multiply by a weight, which is their second (third for the last) argument."""


@dataclass(frozen=True, kw_only=True)
class KvCache:
    """The keys and values of one layer: [1, heads, context, head_dim] each.

    `format` is that of their rows, as `KvFormat` writes it for keys and values; "" is float32.
    """

    heads: int
    head_dim: int
    format: str = ""

    def new(self, context: int) -> list[torch.Tensor]:
        """Return both caches, empty, with room for `context` tokens."""
        rows = [row_of(form, self.head_dim) for form in pair(self.format)]
        return [
            torch.zeros((1, self.heads, context, numbers), dtype=getattr(torch, dtype))
            for numbers, dtype in rows
        ]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model says about itself beside its graph and weights."""

    name: str
    kind: Literal["causal-lm", "module"]
    architecture: str
    vocab_size: int | None = None
    max_context: int | None = None
    kv: tuple[KvCache, ...] = ()
    end_tokens: tuple[int, ...] = ()
    begin_token: int | None = None
    tokenizer_json: str | None = None
    chat_template: str | None = None
    source: str = ""


@dataclass(frozen=True)
class Block:
    """A repeated part of the graph, such as one decoder layer.

    `nodes` are names in graph order; blocks of equal `kind` compute the same function of different
    weights, so that one compiled function serves them.
    """

    index: int
    kind: str
    nodes: tuple[str, ...]


@dataclass(kw_only=True)
class Program:
    """One exported graph, the weights it names, and what is known about both.

    Weights are `get_attr` nodes whose targets are names in `weights`; the graph belongs to no
    module. `plan` gives the scheme of every operator that is to be quantised, by operator name: the
    name of its weight without ".weight".
    """

    graph: fx.Graph
    weights: WeightStore
    info: ModelInfo
    stage: Stage = Stage.FLOAT
    facts: dict[type[Any], Any] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    plan: dict[str, QuantScheme] = field(default_factory=dict)

    def linears(self) -> Iterator[tuple[str, fx.Node]]:
        """Yield every product with a stored weight as (operator name, node), in graph order."""
        for node in self.graph.nodes:
            if node.op == "call_function" and node.target in LINEARS:
                weight = weight_of(node)
                if weight is not None:
                    yield operator_name(weight), node

    def copy(self, **changes: Any) -> Program:
        """Return a program that can be changed without this one, some fields other than its own.

        Both read the same weights until one is written.
        """
        own = {"weights": self.weights.copy(), "facts": dict(self.facts), "plan": dict(self.plan)}
        return replace(self, graph=deepcopy(self.graph), **{**own, **changes})

    def placeholders(self) -> list[fx.Node]:
        """Return the graph's inputs, in order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]


def operator_name(weight: str) -> str:
    """Name an operator after its weight.

    >>> operator_name("model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj'
    """
    return weight.removesuffix(".weight")


def weight_of(node: fx.Node) -> str | None:
    """Return the stored name of the weight a product multiplies by, or None if it is computed."""
    index = 2 if node.target is ops.quantized_matmul else 1
    weight = node.args[index]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target)
    return None


def fake_weight_name(node: fx.Node) -> str | None:
    """Return the stored name of the weight that a `fake_quantize_weight` rounds, if it has one."""
    weight = node.args[0]
    if isinstance(weight, fx.Node) and weight.target is ops.low_rank_update:
        weight = weight.args[0]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target)
    return None


def value(node: fx.Node) -> torch.Tensor:
    """Return the fake tensor that carries a node's shape and dtype."""
    found: torch.Tensor = node.meta["val"]
    return found
