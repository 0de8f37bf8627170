"""Find the repeated decoder layers of a model in its graph.

The nodes that use weights, in topological order, are read as a string of labels (operator and
shapes); the layers are its longest tandem repeat. They are cut where the fewest values cross,
and blocks whose Weisfeiler-Lehman hashes (operators, attributes, shapes, and how all is connected)
agree share one kind. What uses no weight may differ from layer to layer: SmolLM3 leaves the rotary
embedding out of every fourth.
"""

from __future__ import annotations

from itertools import pairwise
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
    anchors = [i for i, node in enumerate(nodes) if _is_anchor(node)]
    labels = [_label(nodes[i], attributes=False) for i in anchors]
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    found = _tandem_repeat(np.array([numbers[label] for label in labels]))
    if found is None:
        return ()
    first, period, run = found
    count = run // period
    crossing = _crossing(nodes)

    def cut(anchor: int) -> int:
        """Return where to cut between an anchor and the one before: the latest of the best."""
        places = range(anchors[anchor - 1] + 1, anchors[anchor] + 1)
        return min(places, key=lambda place: (crossing[place], -place))

    starts = range(first, first + run - count * period + 1)
    start = min(starts, key=lambda anchor: (crossing[cut(anchor + period)], -anchor))
    cuts = [cut(start + i * period) for i in range(1, count)]
    # What stands before the first layer and after the last is another matter than between two.
    cuts.insert(0, anchors[start] - (anchors[start + period] - cuts[0]))
    cuts.append(anchors[start + count * period - 1] + cuts[1] - anchors[start + period - 1])
    parts = [nodes[begin:end] for begin, end in pairwise(cuts)]
    return tuple(
        Block(index, _kind(part), tuple(n.name for n in part)) for index, part in enumerate(parts)
    )


def _is_anchor(node: fx.Node) -> bool:
    """Tell whether a node uses a weight."""
    return any(source.op == "get_attr" for source in node.all_input_nodes)


def _tandem_repeat(labels: np.ndarray[Any, Any]) -> tuple[int, int, int] | None:
    """Return (start, period, length) of the repeat that covers most, of the shortest period.

    One that covers less than half is an accident, such as two products of one shape in a layer.
    """
    best: tuple[int, int, int] | None = None
    for period in range(1, len(labels) // 2 + 1):
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
    return best if best is not None and 2 * best[2] >= len(labels) else None


def _crossing(nodes: list[fx.Node]) -> list[int]:
    """Count the values made before and used after a cut: before each node, and at the end."""
    place = {node: i for i, node in enumerate(nodes)}
    change = [0] * (len(nodes) + 2)
    for i, node in enumerate(nodes):
        last = max((place.get(user, len(nodes)) for user in node.users), default=i)
        change[i + 1] += 1
        change[last + 1] -= 1
    return [int(n) for n in np.cumsum(change)[: len(nodes) + 1]]


def _label(node: fx.Node, *, attributes: bool) -> str:
    parts = [target_name(node), _shape(node.meta.get("val"))]
    for argument in [*node.args, *node.kwargs.values()]:
        if isinstance(argument, fx.Node):
            parts.append(_shape(argument.meta.get("val")))
        elif attributes:
            parts.append(repr(fx.node.map_arg(argument, lambda _: "_")))
    return "|".join(parts)


def _shape(val: Any) -> str:
    if isinstance(val, torch.Tensor):
        return f"{val.dtype}{[str(d) for d in val.shape]}"
    if isinstance(val, tuple | list):
        return str([_shape(v) for v in val])
    return ""


def _kind(part: list[fx.Node]) -> str:
    """Hash what a block computes: its operators, attributes and shapes, and how they connect.

    Nodes, and what they take from outside, are numbered in the order of their use: blocks of one
    kind are the same node for node, and take the same things in the same order.
    """
    labels = {node: _label(node, attributes=True) for node in part}
    edges: dict[tuple[fx.Node, fx.Node], list[int]] = {}
    for node in part:
        for place, source in enumerate(_operands(node)):
            origin = "weight" if source.op == "get_attr" else "input"
            labels.setdefault(source, f"{origin} {_shape(source.meta.get('val'))}")
            edges.setdefault((source, node), []).append(place)
    net: nx.DiGraph[fx.Node] = nx.DiGraph()
    for number, (node, label) in enumerate(labels.items()):
        net.add_node(node, label=f"{number} {label}")
    for (source, node), places in edges.items():
        net.add_edge(source, node, place=str(places))
    return str(nx.weisfeiler_lehman_graph_hash(net, node_attr="label", edge_attr="place"))


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the values a node takes, each as often as it takes it."""
    operands: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), operands.append)
    return operands
