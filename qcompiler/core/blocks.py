"""Find the repeated decoder layers of a model in its graph.

The graph in topological order is read as a string of labels (operator and shapes); the layers are
its longest tandem repeat. Cut points are placed where the fewest values cross, and blocks whose
Weisfeiler-Lehman hashes (operator, attributes, shapes) agree share one kind.
"""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import fx

from qcompiler.core.printer import target_name
from qcompiler.core.program import Block


def find_blocks(graph: fx.Graph) -> tuple[Block, ...]:
    """Return the repeated blocks of `graph` in order, or nothing when it does not repeat itself."""
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    labels = [_label(n, attributes=False) for n in nodes]
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    found = _tandem_repeat(np.array([numbers[label] for label in labels]))
    if found is None:
        return ()
    first, period, run = found
    count = run // period
    slack = run - count * period
    start = min(range(first, first + slack + 1), key=lambda s: (_crossing(nodes, s, period), s))
    blocks = []
    for index in range(count):
        part = nodes[start + index * period : start + (index + 1) * period]
        blocks.append(Block(index, _kind(part), tuple(n.name for n in part)))
    return tuple(blocks)


def _tandem_repeat(labels: np.ndarray[Any, Any]) -> tuple[int, int, int] | None:
    """Return (start, period, length) of the repeat that covers most, at the shortest period that does."""
    best: tuple[int, int, int] | None = None
    for period in range(2, len(labels) // 2 + 1):
        same = np.concatenate(([0], (labels[:-period] == labels[period:]).astype(np.int8), [0]))
        edges = np.flatnonzero(np.diff(same))
        if not len(edges):
            continue
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        longest = int(lengths.argmax())
        length = int(lengths[longest]) + period
        if length < 2 * period:
            continue
        covered = length // period * period
        if best is None or covered > 1.05 * (best[2] // best[1] * best[1]):
            best = (int(starts[longest]), period, length)
    return best


def _crossing(nodes: list[fx.Node], start: int, period: int) -> int:
    """Count the values made in the first block that are used outside it."""
    inside = set(nodes[start : start + period])
    return sum(any(user not in inside for user in node.users) for node in inside)


def _label(node: fx.Node, *, attributes: bool) -> str:
    parts = [target_name(node), _shape(node.meta.get("val"))]
    for argument in [*node.args, *node.kwargs.values()]:
        if isinstance(argument, fx.Node):
            parts.append(_shape(argument.meta.get("val")))
        elif attributes:
            parts.append(repr(fx.node.map_arg(argument, lambda _: "·")))
    return "|".join(parts)


def _shape(val: Any) -> str:
    if isinstance(val, torch.Tensor):
        return f"{val.dtype}{[str(d) for d in val.shape]}"
    if isinstance(val, tuple | list):
        return str([_shape(v) for v in val])
    return ""


def _kind(part: list[fx.Node]) -> str:
    """Hash a block's structure: its operators, their attributes and shapes, and how they connect."""
    inside = set(part)
    net: nx.DiGraph[str] = nx.DiGraph()
    for node in part:
        net.add_node(node.name, label=_label(node, attributes=True))
        for place, source in enumerate(node.all_input_nodes):
            if source in inside:
                net.add_edge(source.name, node.name, place=str(place))
    return str(nx.weisfeiler_lehman_graph_hash(net, node_attr="label", edge_attr="place"))
